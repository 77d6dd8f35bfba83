"""Which parameters of a law fit a table, and how sure are they?

Imports `scaling.tables` and `scaling.laws`.
"""
