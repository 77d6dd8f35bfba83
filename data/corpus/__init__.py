"""How does text become a corpus of tokens on disk, checked and complete?

Imports `data.config`, `data.files`, `data.hashing` and `configs`.
"""
