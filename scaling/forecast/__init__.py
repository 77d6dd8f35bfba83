"""What loss does a fitted law promise a model that nobody has trained, and did it keep its word?

Imports `scaling.fit`, `scaling.tables` and `scaling.laws`.
"""
