"""How much memory, time and money does a run take?

Imports `train.distributed`, `train.config` and `model`.
"""
