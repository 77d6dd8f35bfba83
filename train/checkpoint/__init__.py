"""What of a run is saved, and how does it go on from there, on any devices?

Imports `train.engine`, `train.distributed` and `train.config`.
"""
