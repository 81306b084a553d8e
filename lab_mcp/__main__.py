"""The command `lab-mcp`. Decides only how to start: clean of a user's packages, and quickly for `mcp`."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType


def _own_interpreter_module() -> ModuleType:
    """`workspace.interpreter` by its path: the name `workspace` may belong to a folder of the user's."""
    path = Path(__file__).resolve().parent.parent / "workspace" / "interpreter.py"
    specification = importlib.util.spec_from_file_location("_lab_interpreter", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def main() -> None:
    """Entry point of the console script and of `python -m lab_mcp`."""
    interpreter = _own_interpreter_module()
    polluted = [name for name in interpreter.PYTHON_VARIABLES if name in os.environ]
    if interpreter.is_shadowed() or "PYTHONPATH" in polluted or "PYTHONHOME" in polluted:
        # A `tools/` folder of the user's, or PYTHONPATH, would be imported instead of ours: start again without.
        if os.environ.get("LAB_RESTARTED_CLEAN"):
            sys.exit("lab-mcp: its own packages are shadowed by others of the same name; see `lab-mcp doctor`")
        environment = {k: v for k, v in os.environ.items() if k not in interpreter.PYTHON_VARIABLES}
        environment["LAB_RESTARTED_CLEAN"] = "1"
        command = interpreter.python_command("lab_mcp", *sys.argv[1:])
        os.execve(command[0], command, environment)
    os.environ.pop("LAB_RESTARTED_CLEAN", None)

    if sys.argv[1:2] == ["mcp"]:
        from lab_mcp import bridge

        sys.exit(bridge.main(sys.argv[2:]))
    from lab_mcp import cli

    cli.main()


if __name__ == "__main__":
    main()
