"""The console of the command line: as wide as the terminal, and wide enough for tables where there is none."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH_WITHOUT_TERMINAL = 160  # a pipe or a log file: nothing needs to be squeezed into 80 columns

console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)


def size(count: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit in ("B", "kB") or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def sparkline(values: Sequence[float]) -> str:
    """A curve as one line of blocks."""
    low, high = min(values), max(values)
    scale = (len(BLOCKS) - 1) / ((high - low) or 1)
    return "".join(BLOCKS[round((value - low) * scale)] for value in values)
