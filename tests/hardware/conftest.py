"""Stand-ins for hardware: a compiled libnvidia-ml.so.1, and vendors' command-line tools as small scripts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent

# Answers each line on stdin with one snapshot, so that the machine can change between two readings.
READER = """
import json, sys
from training.hardware import devices
from workspace.errors import LabError
from workspace.settings import load
from pathlib import Path
settings = load(Path(sys.argv[1])).hardware
for line in sys.stdin:
    try:
        print(json.dumps({"status": devices.snapshot(settings).model_dump()}), flush=True)
    except LabError as error:
        print(json.dumps({"refused": str(error)}), flush=True)
"""
START = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"


class Reader:
    """A child process that reads the hardware as it is told to see it."""

    def __init__(self, environment: dict[str, str], settings: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-c", START + READER, str(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def answer(self) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the reading process ended with {self.process.wait(timeout=10)}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def status(self) -> dict[str, Any]:
        answer = self.answer()
        assert "status" in answer, answer
        status: dict[str, Any] = answer["status"]
        return status

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=10)
        self.process.stdout.close()


@pytest.fixture(scope="session")
def compile_nvml(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds the stand-in library; returns the folder to put into LD_LIBRARY_PATH."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler on Linux to build the stand-in libnvidia-ml.so.1")

    built: dict[tuple[str, ...], Path] = {}

    def build(*flags: str) -> Path:
        if flags not in built:
            folder = tmp_path_factory.mktemp("nvml")
            subprocess.run(
                [compiler, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", *flags, str(HERE / "fake_nvml.c"),
                 "-o", str(folder / "libnvidia-ml.so.1")],
                check=True,
            )  # fmt: skip
            built[flags] = folder
        return built[flags]

    return build


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Callable[..., Reader]]:
    """Starts a `Reader` with the given extra environment and lab.toml text; ended with the test."""
    started: list[Reader] = []
    base = {k: v for k, v in os.environ.items() if not k.startswith(("LAB_", "CUDA_", "HIP_", "ROCR_", "HABANA_"))}

    def start(settings: str = "", **environment: str) -> Reader:
        file = tmp_path / "lab.toml"
        file.write_text(settings)
        started.append(Reader({**base, **environment}, file))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def tool(tmp_path: Path) -> Callable[[str, str], Path]:
    """Puts a shell script in place of a vendor's tool; returns the folder to put first into PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def write(name: str, script: str) -> Path:
        path = folder / name
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o755)
        return folder

    return write
