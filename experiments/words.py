"""Numbers as people write them in a sentence."""

from __future__ import annotations

import math


def count(number: int, one: str, several: str | None = None) -> str:
    """`1 run`, `2 runs`, `1,200 runs`."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} d {hours % 24} h"


def listed(names: list[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def measured(value: float, error: float, *, sign: bool = False) -> str:
    """`value` to the second significant digit of its standard error: 0.0081283 with 0.0016 is `0.0081`."""
    if not (error > 0 and math.isfinite(error)) or not 1e-12 < error < 1e6:
        return f"{value:{'+' if sign else ''}.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    rounded = round(value, digits) + 0.0  # no minus before a zero
    return f"{rounded:{'+' if sign and rounded else ''},.{digits}f}"
