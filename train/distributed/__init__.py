"""Which processes does a run consist of, and do they agree on what they train?

Imports `train.config`, `data` and `configs`.
"""
