"""Which tokens does a step train on?

Imports `data.corpus` and what lies below it.
"""
