"""Which law do the losses follow, and what does it promise?

Fit laws, doubt them, extrapolate with them, from logged runs or any table of (N, D, loss). Imports `configs`,
`data.files` and the counts of `model`; neither torch nor `train` nor `evaluation`.
"""
