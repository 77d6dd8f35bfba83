"""How are the runs of a ladder started, watched and started again on the devices there are?

Imports `train.sweep`, `train.checkpoint`, `train.telemetry`, `train.cost` and what lies below them.
"""
