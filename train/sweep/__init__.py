"""Which runs is a ladder made of?

Imports `train.checkpoint`, `train.config` and `model`.
"""
