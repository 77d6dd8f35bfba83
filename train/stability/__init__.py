"""Is the loss as it should be, and where does a run go back to if it is not?

Imports `train.config` and `train.exit_codes`; plain numbers in, verdicts out.
"""
