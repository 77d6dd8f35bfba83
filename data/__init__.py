"""How does text become the batches of a step?

Settings and files here, `corpus/` from text to tokens on disk, `loading/` from there to batches.
Imports `configs`.
"""
