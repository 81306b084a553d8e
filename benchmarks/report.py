"""Where the figures go: one section per benchmark in docs/benchmarks.md, with date and hardware."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Every figure here was printed by the command above it; run them all with `make bench`. Shared machines are noisy:
compare figures of one run with each other rather than with other days.
"""


def machine() -> str:
    """Date and hardware in words."""
    from training.hardware.cpu import CpuProbe

    found = CpuProbe().read()
    return (
        f"{datetime.now(UTC):%Y-%m-%d} on {found.model}, {found.usable_cores:g} cores, "
        f"{found.memory_total_bytes / 2**30:.0f} GiB, no GPU unless said"
    )


def commit() -> str:
    """The commit of what is measured; with `+` where files differ from it."""
    command = ["git", "-C", str(PAGE.parent.parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def stamp() -> str:
    """Date, hardware and version in words, to be kept with a figure."""
    return f"{machine()}, at {commit()}"


def measured(stamps: Mapping[str, str]) -> str:
    """When and where each named part was measured: figures that were kept are not passed off as today's."""
    if len(set(stamps.values())) == 1:
        return f"Measured {next(iter(stamps.values()))}."
    parts = (f"{', '.join(n for n in stamps if stamps[n] == each)}: {each}" for each in dict.fromkeys(stamps.values()))
    return f"Measured at different times. {'; '.join(parts)}."


def write_section(title: str, command: str, text: str) -> None:
    """Replace the section `title` of the page, or add it."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else HEAD
    section = f"## {title}\n\n`{command}`\n\n{text}\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
    page = pattern.sub(lambda _: section + "\n", page) if pattern.search(page) else f"{page.rstrip()}\n\n{section}"
    PAGE.write_text(page.rstrip() + "\n", encoding="utf-8")
