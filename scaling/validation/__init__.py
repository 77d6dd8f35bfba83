"""Should this fit be believed?

Imports `scaling.forecast`, `scaling.fit` and what lies below them.
"""
