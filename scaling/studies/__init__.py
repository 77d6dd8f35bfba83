"""What do special ladders say: learning-rate schedules, mixtures, transfer, curves?

Imports `scaling.tables`, `scaling.laws` and `scaling.errors`.
"""
