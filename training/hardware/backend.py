"""The accelerator as torch sees it: one object for what differs between HPU, ROCm, CUDA, MPS and CPU.

Importing this module imports torch. What the lab shows about devices without torch is in `devices`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from training.hardware import cpu_precision
from training.hardware.compiler import compile_obstacle
from training.hardware.cpu import memory_bytes, model_name
from training.hardware.peak_flops import Peak, peak_flops
from training.hardware.status import ORDER, BackendName
from workspace.errors import Refused

# torch.compile takes this long on two CPU cores and gains about a quarter there: below this budget it cannot pay
CPU_COMPILE_PAYS_AFTER_SECONDS = 600.0


_torch: Any = torch  # torch.hpu exists only after habana_frameworks is imported


@dataclass(frozen=True)
class Choice:
    """A decision and why it was taken, as the summary records it."""

    used: str
    reason: str
    fell_back: bool = False  # not what was asked for, or would pay, because something is missing

    def as_json(self) -> dict[str, str]:
        return {"used": self.used, "reason": self.reason} | ({"fell_back": "yes"} if self.fell_back else {})


@dataclass(frozen=True)
class Backend:
    """One device to train on. The first of ORDER that is there is taken."""

    kind: BackendName
    device: torch.device
    name: str
    memory_total_bytes: int | None
    unified: bool  # the device shares the machine's memory

    def synchronize(self) -> None:
        """Wait for the device; without it a clock measures how fast work is queued."""
        if self.kind != "cpu":
            self._module().synchronize()

    def deterministic(self) -> None:
        """Only algorithms that give the same bits each time, for the rest of this process; an operation without one
        raises RuntimeError. As in pytorch/torchtitan, distributed/utils.py:set_determinism.
        """
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product on a GPU is made
        torch.use_deterministic_algorithms(True)
        _torch.utils.deterministic.fill_uninitialized_memory = False
        torch.backends.cudnn.benchmark = False

    def reset_peak_memory(self) -> None:
        if self.kind in ("cuda", "rocm", "hpu"):
            self._module().reset_peak_memory_stats()
        elif self.kind == "cpu":
            with contextlib.suppress(OSError):  # Linux; elsewhere the peak is that of the whole process
                Path("/proc/self/clear_refs").write_text("5")

    def peak_memory_bytes(self) -> int:
        """The most memory held so far: allocated on the device, or resident in this process on a CPU."""
        if self.kind in ("cuda", "rocm", "hpu"):
            return int(self._module().max_memory_allocated())
        if self.kind == "mps":
            return int(torch.mps.driver_allocated_memory())
        return _resident_peak_bytes()

    def memory_now_bytes(self) -> int:
        if self.kind in ("cuda", "rocm", "hpu"):
            return int(self._module().memory_allocated())
        if self.kind == "mps":
            return int(torch.mps.current_allocated_memory())
        return int(psutil.Process().memory_info().rss)

    def peak_flops(self, dtype: torch.dtype) -> Peak | None:
        """The data sheet's peak for this device and format; None when it is not known (every CPU, every Apple GPU)."""
        return peak_flops(self.name, dtype_name(dtype)) if self.kind in ("cuda", "rocm") else None

    def dtype_choice(self, asked: str, cache_dir: Path | None = None) -> Choice:
        """The format of the matrix products: `asked`, or where that is "auto" the one that pays here."""
        if asked != "auto":
            return Choice(asked, "set in the recipe")
        if self.kind == "cpu":
            pays, reason = cpu_precision.bfloat16_pays(cache_dir)
            return Choice("bfloat16" if pays else "float32", reason)
        if self.kind == "mps":
            return Choice("float32", "bfloat16 saves memory on Apple GPUs but is not reliably faster")
        if self.kind == "cuda" and torch.cuda.get_device_capability(self.device) < (8, 0):
            return Choice("float32", "bfloat16 needs compute capability 8.0")
        return Choice("bfloat16", "supported by the device")

    def dtype_that_pays(self, choice: Choice, cache_dir: Path | None = None) -> str:
        """`choice` of the run, but bfloat16 only where it pays, whatever its recipe asks for."""
        return choice.used if choice.used == "float32" else self.dtype_choice("auto", cache_dir).used

    def compile_choice(self, asked: str, budget_seconds: float | None) -> Choice:
        """Whether to use torch.compile ("on") or not ("off"); `budget_seconds` is None for a budget in steps."""
        if asked == "off":
            return Choice("off", "set in the recipe")
        too_short = budget_seconds is None or budget_seconds < CPU_COMPILE_PAYS_AFTER_SECONDS
        if asked == "auto" and self.kind == "cpu" and too_short:
            return Choice("off", "the run is too short to pay for compiling")
        obstacle = compile_obstacle(self.kind)
        if asked == "on":
            if obstacle:
                raise Refused(f"compile = 'on' is not possible: {obstacle}", fix="compile = 'auto' or 'off'")
            return Choice("on", "set in the recipe")
        if obstacle:
            return Choice("off", obstacle, fell_back=True)
        if self.kind in ("cuda", "rocm"):
            return Choice("on", "pays on this backend")
        if self.kind == "cpu":
            return Choice("on", f"a budget of {budget_seconds:.0f} s is long enough to pay for compiling")
        return Choice("off", "not dependable on this backend")

    def compile(self, function: Any) -> Any:
        return torch.compile(function, backend="hpu_backend" if self.kind == "hpu" else "inductor")

    def _module(self) -> Any:
        return {"cuda": torch.cuda, "rocm": torch.cuda, "mps": torch.mps}.get(self.kind) or _torch.hpu


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def found() -> dict[str, str]:
    """What is there: each backend with "available" or why not."""
    report = {"cpu": "available"}
    gpu = torch.cuda.is_available()
    for kind, version in (("rocm", torch.version.hip), ("cuda", torch.version.cuda)):
        if version is None:
            report[kind] = "this torch is built without it"
        else:
            report[kind] = "available" if gpu else "torch supports it, but sees no device"
    if not torch.backends.mps.is_built():
        report["mps"] = "this torch is built without it"
    else:
        report["mps"] = "available" if torch.backends.mps.is_available() else "torch supports it, but sees no device"
    report["hpu"] = _hpu_state()
    return {kind: report[kind] for kind in ORDER}


def _hpu_state() -> str:
    if importlib.util.find_spec("habana_frameworks") is None:
        return "habana_frameworks is not installed"
    importlib.import_module("habana_frameworks.torch.core")  # registers torch.hpu
    return "available" if _torch.hpu.is_available() else "habana_frameworks is installed, but sees no device"


def choose(asked: str | None = None) -> Backend:
    """The backend `asked` for, or `LAB_BACKEND`, or the first of `ORDER` that is there.

    Raises `Refused`, with what was found instead, when the one asked for is not there.
    """
    return _build(chosen(asked))


def chosen(asked: str | None = None) -> BackendName:
    """Which one `choose` takes; no device is touched yet."""
    wanted = (asked or os.environ.get("LAB_BACKEND") or "auto").strip().lower()
    if wanted not in (*ORDER, "auto"):
        raise Refused(f"there is no backend {wanted[:40]!r}", valid=", ".join(("auto", *ORDER)))
    report = found()
    kind = next(k for k in ORDER if (report[k] == "available" if wanted == "auto" else k == wanted))
    if report[kind] != "available":
        others = "; ".join(f"{k}: {state}" for k, state in report.items())
        raise Refused(f"backend {kind} was asked for and is not here: {report[kind]}", valid=others, fix="LAB_BACKEND=")
    return kind


def _build(kind: BackendName) -> Backend:
    if kind in ("cuda", "rocm"):
        device = torch.device("cuda", torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(device)
        unified = bool(getattr(properties, "is_integrated", False))
        return Backend(kind, device, properties.name, properties.total_memory, unified)
    if kind == "hpu":
        hpu = _torch.hpu
        total = hpu.get_device_properties(0).total_memory if hasattr(hpu, "get_device_properties") else None
        return Backend(kind, torch.device("hpu"), hpu.get_device_name(), total, False)
    if kind == "mps":
        return Backend(kind, torch.device("mps"), model_name(), int(torch.mps.recommended_max_memory()), True)
    return Backend("cpu", torch.device("cpu"), model_name(), memory_bytes(), True)


def _resident_peak_bytes() -> int:
    """The most memory this process had resident. `ru_maxrss` on Linux begins with what the process that started it
    had (it survives exec), so the kernel's own mark of this program comes first."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(found.group(1)) * 1024
    try:
        import resource
    except ImportError:  # Windows keeps the peak with the process
        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere
