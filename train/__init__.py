"""How does a run go from its configuration to its record?

The story is `__main__`, `run` and `loop`; each room below answers one question of it.
Imports `evaluation`, `data`, `model` and `configs`; not `scaling`, which reads what runs have written.
"""
