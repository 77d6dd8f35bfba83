"""Which runs should be trained next, and when is enough known?

Imports `scaling.validation`, `scaling.forecast`, `scaling.fit` and what lies below them.
"""
