"""How does one batch become one update, on any devices and in any precision?

Imports `train.supervision`, `train.distributed`, `train.config`, `evaluation`, `data` and `model`.
"""
