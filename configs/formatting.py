"""Numbers as people read them: 7B parameters, 1.2e21 FLOPs, 3.142 nats."""

import math
import re

from markupsafe import Markup, escape

_SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))

SYMBOLS = {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "rho": "ρ", "sigma": "σ"}


def count(value: float, digits: int = 3) -> str:
    """Parameters or tokens with a suffix: 25_088 is 25.1k, 7e9 is 7B."""
    for size, suffix in _SUFFIXES:
        if abs(value) >= size * (1 - 0.5 * 10**-digits) and abs(value) < 1e16:
            return f"{value / size:.{digits}g}{suffix}" if abs(value) < 999.5 * size else f"{value / size:,.0f}{suffix}"
    return significant(value, digits)


def short_count(count: float) -> str:
    """Write a count to four digits: 1_000_000 as 1.0M, 131_072 as 131.1k."""
    exponent = min(max(int(math.log10(max(count, 1)) // 3), 0), 4)
    digits = f"{count / 1000**exponent:.4g}"
    return (digits if "." in digits or len(digits) > 1 or not exponent else f"{digits}.0") + " kMBT"[exponent].strip()


def flops(value: float, digits: int = 3) -> str:
    """FLOPs as 1.2e21."""
    if not math.isfinite(value) or value <= 0:
        return "–"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def significant(value: float | None, digits: int = 4) -> str:
    """`digits` significant figures, without an exponent where that stays short."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    magnitude = abs(value)
    if 1e-4 <= magnitude < 1e6:
        decimals = max(0, digits - 1 - math.floor(math.log10(magnitude)))
        return f"{value:,.{decimals}f}"
    return f"{value:.{digits - 1}e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e−").replace("e-", "e−")


def nats(value: float) -> str:
    """A loss: 3.1416, or 1.000e39 where something has gone wrong."""
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3e}"


def percent(value: float) -> str:
    """A ratio as a signed percentage."""
    return f"{100 * value:+.2f} %".replace("-", "−")


def duration(seconds: float) -> str:
    """Write a duration for people: 45s, 12m, 3.4h, 2.5d."""
    if not math.isfinite(seconds):
        return "?"
    for size, unit in ((86_400, "d"), (3600, "h")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f}{unit}"
    return f"{seconds / 60:.0f}m" if seconds >= 120 else f"{seconds:.0f}s"


def quantity(name: str, value: float) -> str:
    """The value of a variable, N, D or C, in its usual notation."""
    return flops(value) if name == "C" else count(value)


def symbol(parameter: str) -> str:
    """A parameter's name as it is printed: alpha is α, A_c stays."""
    head, _, tail = parameter.partition("_")
    return SYMBOLS.get(head, head) + (f"_{tail}" if tail else "")


def formula(text: str) -> Markup:
    """A sentence for a page, with x^2 raised and N_opt lowered; everything else is escaped."""
    raised = re.sub(r"\^([\w.−+/()-]*[\w)])", r"<sup>\1</sup>", str(escape(text)))
    return Markup(re.sub(r"(?<![\w.])([A-Zα-ω])_(\w+)", r"\1<sub>\2</sub>", raised))
