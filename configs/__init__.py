"""What was asked for, and how are mistakes in it told?

YAML files and the reader that turns them into typed dataclasses; the contracts between `train` and `scaling`.
Imports `data.files` alone, which imports nothing.
"""
