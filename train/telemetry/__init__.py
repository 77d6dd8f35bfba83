"""What does a run say of itself: metrics, record, console and W&B?

Imports `train.engine`, `train.stability`, `train.cost` and what lies below them.
"""
