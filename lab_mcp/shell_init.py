"""`lab-mcp shell-init`: short commands for the terminal, printed for the shell to read."""

from __future__ import annotations

import shlex
import sysconfig
from pathlib import Path

from workspace.errors import Refused

COMMANDS = {
    "gpu-status": "gpu",
    "train-status": "runs",
    "train-log": "tail",
    "train-wait": "wait",
    "train-stop": "stop",
    "lab-runs": "runs",
    "lab-status": "status",
    "lab-doctor": "doctor",
}
SHELLS = ("bash", "zsh", "fish")


def text(shell: str) -> str:
    """Functions for `shell` that call this installation's `lab-mcp`. Raises `Refused` for another shell."""
    if shell not in SHELLS:
        raise Refused(f"no shell {shell!r}", valid=", ".join(SHELLS))
    script = Path(sysconfig.get_path("scripts")) / "lab-mcp"
    program = shlex.quote(str(script)) if script.is_file() else "lab-mcp"
    how = "lab-mcp shell-init fish | source" if shell == "fish" else f'eval "$(lab-mcp shell-init {shell})"'
    lines = [f"# short commands of the lab; put this line into your shell's start-up file: {how}"]
    for name, command in COMMANDS.items():
        if shell == "fish":
            lines.append(f"function {name}; {program} {command} $argv; end")
        else:
            lines.append(f'{name}() {{ {program} {command} "$@"; }}')
    return "\n".join(lines)
