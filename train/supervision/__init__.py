"""Are all processes of a run alive, and how does it end when one is not?

Imports `train.distributed`, `train.config` and `train.exit_codes`.
"""
