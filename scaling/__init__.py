"""Scaling laws: fit them, doubt them, extrapolate with them. Imports no torch."""
