"""Which laws are there, each beside its formula and its paper?

Chinchilla's and its variants, Kaplan's, repeated data, and loss to task score. See scaling/laws/law.py for what the
fields and the shapes mean. Imports nothing but `scaling.errors`.
"""

from scaling.laws.chinchilla import CHINCHILLA, CHINCHILLA_TIED, COUPLED
from scaling.laws.data_constrained import DATA_CONSTRAINED
from scaling.laws.kaplan import KAPLAN_C, KAPLAN_D, KAPLAN_N, KAPLAN_ND, KAPLAN_NS
from scaling.laws.law import Array, Law
from scaling.laws.task import TASK_SIGMOID

__all__ = ["LAWS", "Array", "Law", "law_named"]

# In the order in which the commands list them.
_ALL = (
    CHINCHILLA,
    KAPLAN_N,
    KAPLAN_D,
    KAPLAN_C,
    CHINCHILLA_TIED,
    KAPLAN_NS,
    KAPLAN_ND,
    COUPLED,
    DATA_CONSTRAINED,
    TASK_SIGMOID,
)
LAWS: dict[str, Law] = {law.name: law for law in _ALL}


def law_named(name: str) -> Law:
    """The law of that name. Raises KeyError listing the known names."""
    if name not in LAWS:
        raise KeyError(f"unknown law {name!r}; the laws are {', '.join(LAWS)}")
    return LAWS[name]
