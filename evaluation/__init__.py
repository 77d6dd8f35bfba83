"""What can a model do, and what would a model without a network do on the same text?

Imports `data`, `model` and `configs`; `train` imports it, and `scaling` does not.
"""
