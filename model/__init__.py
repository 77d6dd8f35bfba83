"""What is trained: a decoder-only transformer, its sizes, its initialisation and its exact costs?

Imports `configs`.
"""
