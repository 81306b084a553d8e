"""A child process that writes until it is killed, and what it had said to be done by then."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
START = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"


class Child:
    """Runs `code`; its output goes to a file, since a pipe's buffers would hide part of it from the count."""

    def __init__(self, code: str, output: Path, *arguments: str) -> None:
        self.output = output
        with output.open("w") as file:
            command = [sys.executable, "-P", "-s", "-c", START + code, *arguments]
            self.process = subprocess.Popen(command, stdout=file)

    def wait_for_first_line(self) -> None:
        deadline = time.monotonic() + 60
        while "\n" not in self.output.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, "the child did not get going"
            time.sleep(0.002)

    def kill(self) -> list[int]:
        """Kill -9; returns the numbers it had printed, the last perhaps torn away."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=20)
        return [int(line) for line in self.output.read_text().splitlines(keepends=True) if line.endswith("\n")]
