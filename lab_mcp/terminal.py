"""The console of the command line: as wide as the terminal, and wide enough for tables where there is none."""

from __future__ import annotations

import sys

from rich.console import Console

WIDTH_WITHOUT_TERMINAL = 160  # a pipe or a log file: nothing needs to be squeezed into 80 columns

console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)
