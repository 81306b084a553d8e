"""What the installed torch was built for, read from its `version.py` without importing it (an import takes seconds)."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from training.hardware.status import BackendName


class TorchBuild(BaseModel):
    """`version` is None when torch is not installed; `cuda` and `hip` are the toolkits it was built with."""

    model_config = ConfigDict(frozen=True)

    version: str | None = None
    cuda: str | None = None
    hip: str | None = None
    gaudi: bool = False

    @property
    def text(self) -> str:
        if self.version is None:
            return "no torch"
        toolkit = f"CUDA {self.cuda}" if self.cuda else f"ROCm {self.hip}" if self.hip else "no GPU support"
        return f"torch {self.version} ({toolkit})"

    def drives(self, backend: BackendName) -> bool:
        """Can this torch run on `backend`, given a device and driver?"""
        if self.version is None:
            return False
        needs = {"cuda": bool(self.cuda), "rocm": bool(self.hip), "hpu": self.gaudi}
        return needs.get(backend, True)


@cache
def installed() -> TorchBuild:
    """The torch this interpreter would import."""
    spec = PathFinder.find_spec("torch")
    if spec is None or spec.origin is None:
        return TorchBuild()
    gaudi = importlib.util.find_spec("habana_frameworks") is not None
    return read(Path(spec.origin).parent / "version.py", gaudi=gaudi)


def read(version_file: Path, *, gaudi: bool = False) -> TorchBuild:
    """The build that a torch's `version.py` tells of."""
    try:
        tree = ast.parse(version_file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return TorchBuild(version="unknown", gaudi=gaudi)
    found: dict[str, str] = {}
    for node in tree.body:
        target: ast.expr | None = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign):
            target = node.targets[0]
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
            found[target.id] = value.value
    return TorchBuild(
        version=found.get("__version__", "unknown"), cuda=found.get("cuda"), hip=found.get("hip"), gaudi=gaudi
    )
