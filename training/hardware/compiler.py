"""Can torch.compile work here? Asked without importing torch: of the compiler, Python's headers and Triton."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

from training.hardware.status import BackendName

TIMEOUT_S = 10.0


def compile_obstacle(backend: BackendName) -> str | None:
    """Why torch.compile cannot be used on `backend`, None when nothing stands in its way."""
    if backend in ("cuda", "rocm") and importlib.util.find_spec("triton") is None:
        return "the package triton, which writes the GPU kernels, is not installed"
    if backend == "hpu":
        return None if importlib.util.find_spec("habana_frameworks") else "habana_frameworks is not installed"
    if backend == "mps":
        return None  # Metal kernels are compiled by macOS itself
    return _compiler_obstacle("c++" if backend == "cpu" else "c")


@cache
def _compiler_obstacle(language: str) -> str | None:
    """Compiles a line that includes Python.h: inductor builds C++ for a CPU, Triton a C launcher for a GPU."""
    wanted, usual = ("CXX", ("g++", "clang++", "c++")) if language == "c++" else ("CC", ("gcc", "clang", "cc"))
    named = os.environ.get(wanted)
    names = (named,) if named else usual
    compiler = next((path for name in names if (path := shutil.which(name))), None)
    if compiler is None:
        return f"there is no {'C++' if language == 'c++' else 'C'} compiler ({' or '.join(names)})"
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        return "Python's headers are missing (package python3-dev or python3-devel)"
    source = "#include <Python.h>\n" + ("#include <vector>\n" if language == "c++" else "")
    try:
        answer = subprocess.run(
            [compiler, "-x", language, "-fsyntax-only", "-I", str(headers), "-"],
            input=source, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the compiler {Path(compiler).name} does not run ({type(error).__name__})"
    if answer.returncode != 0:
        lines = [line for line in answer.stderr.splitlines() if "error" in line] or ["no message"]
        return f"the compiler {Path(compiler).name} fails: {lines[0].strip()[:160]}"
    return None
