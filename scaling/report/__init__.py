"""How is a fit shown: one page, its pictures and the console?

Imports all of `scaling` but `scaling.study`.
"""
