"""The fitted E beside the true one, for a language whose entropy rate is known (data/corpus/grammar.py)."""

import numpy as np

from configs.formatting import nats, percent
from scaling.forecast.law_file import LawFile
from scaling.tables.table import Table


def entropy_rate(table: Table) -> float | None:
    """Nats per token that no model can do better than on the text of all rows; None where that is not known."""
    values = table.columns.get("entropy_rate")
    return float(values[0]) if values is not None and np.ptp(values) == 0 else None


def verdict(law: LawFile) -> str | None:
    """One sentence on how far the E of a law.json is from the truth, and whether its interval covers that.

    None where the truth is not known, or the law has no E of its own to compare.
    """
    true, fitted = law.data.entropy_rate, law.fit.params.get("E")
    if true is None or fitted is None or "E" in law.fit.pinned:
        return None
    low, high = law.fit.intervals["E"]
    covers = "covers" if low <= true <= high else "does not cover"
    return (
        f"The entropy rate of this language is {nats(true)} nats per token. The fitted E = {nats(fitted)} is off by "
        f"{percent(fitted / true - 1)}; its {100 * law.fit.level:g} % interval, {nats(low)} to {nats(high)}, {covers} "
        "the truth."
    )
