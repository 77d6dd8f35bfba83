"""What was measured: rows of (N, D, loss), from files, runs and curves?

Imports `scaling.laws` and `scaling.errors`.
"""
