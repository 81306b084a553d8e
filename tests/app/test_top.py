"""`lab-mcp top`: one picture at a time, useful in a narrow and in a wide terminal."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from lab_mcp.cli_top import Frame, picture
from workspace import clock

GIB = 2**30
CPU = {
    "model": "AMD EPYC 9354 32-Core Processor", "usable_cores": 32.0, "utilization_percent": 12.5,
    "memory_total_bytes": 256 * GIB, "memory_used_bytes": 61 * GIB, "memory_available_bytes": 190 * GIB,
}  # fmt: skip


def device(index: int, **values: Any) -> dict[str, Any]:
    return {
        "id": f"cuda:{index}", "name": "NVIDIA H200", "usable": True, "utilization_percent": 97.0,
        "memory_total_bytes": 140 * GIB, "memory_used_bytes": 101 * GIB, "temperature_c": 66.0, "power_w": 612.0,
        "temperature_slowdown_c": 92.0, "clock_mhz": 1980, "throttle_reasons": [], "processes": [], **values,
    }  # fmt: skip


def run(number: int, state: str, **values: Any) -> dict[str, Any]:
    about = {"purpose": "run", "devices": ["cuda:0"], "alert_classes": [], "name": f"try number {number}"}
    return {"run_id": f"run-{number:04d}", "state": state, **about, **values}


def alert(rule: str, words: str, suggestion: str) -> dict[str, Any]:
    return {"class": rule, "severity": "warn", "text": words, "suggestion": suggestion, "time": clock.now()}


def busy() -> Frame:
    losses = [5.1 / (1 + n / 6) + 1.8 for n in range(20)]
    going = {
        "step": 8000,
        "loss": 2.9123,
        "val_bpb": 1.0421,
        "tokens_per_s": 812345.0,
        "fraction": 0.42,
        "eta_s": 5040.0,
    }
    flat = {"step": 300, "loss": 5.5412, "tokens_per_s": 40210.0, "fraction": 0.3, "eta_s": 300.0}
    return Frame(
        workspace="mein Labor ü",
        hardware={
            "devices": [
                device(0, lease="run-0041"),
                device(1, lease="run-0042", temperature_c=91.0, throttle_reasons=["thermal, hardware"], clock_mhz=1350),
                device(2, utilization_percent=55.0, processes=[{"pid": 7, "user": "anna", "memory_bytes": 5 * GIB}]),
                device(3, usable=False, unusable_because="fell off the bus: the driver lost it"),
                device(4, memory_used_bytes=None, utilization_percent=None, temperature_c=None, processes=None),
            ],
            "cpu": CPU,
        },
        live=[
            run(41, "running", name="wider, with a cosine schedule", progress=going),
            run(42, "running", progress=flat, devices=["cuda:1"], alert_classes=["loss_flat", "thermal"]),
            run(43, "queued", waiting_for="1 accelerator: cuda:0 is held by run-0041; position 1 of 1 in the queue"),
        ],
        ended=[
            run(40, "succeeded", ended_at=clock.now(), result={"val_bpb": 1.0377, "train_loss": 2.88}),
            run(39, "failed", ended_at="2026-01-01T00:00:00.000Z", failure_class="oom", reason="no memory [2]"),
        ],
        curves={"run-0041": losses, "run-0042": [5.54, 5.53, 5.55, 5.54]},
        alerts=[
            ("run-0042", alert("thermal", "cuda:1 (NVIDIA H200) is held down by heat at 91 C", "improve cooling")),
            ("run-0042", alert("loss_flat", "the loss has not fallen since the run began", "try other rates")),
        ],
    )  # fmt: skip


def text(frame: Frame, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(picture(frame, width))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_a_picture_fits_its_terminal_and_leaves_no_run_or_device_out(width: int) -> None:
    shown = text(busy(), width)
    assert all(len(line.rstrip()) <= width for line in shown.splitlines())
    for name in ("cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4", "cpu", *(f"run-{n:04d}" for n in range(39, 44))):
        assert name in shown
    assert "2 running, 1 waiting" in shown
    assert len(shown.splitlines()) <= 24, "it should fit a small terminal"


def test_what_matters_is_told_also_in_80_columns() -> None:
    shown = text(busy(), 80)
    for words in (
        " 97%",
        "101.0/140 GiB",
        "91 C",
        "42%",
        "2.912",
        "1.0421",
        "loss_flat",
        "used by anna",
        "fell off",
        "oom",
    ):
        assert words in shown, words


def test_a_wide_terminal_shows_curves_speed_and_what_to_do() -> None:
    shown = text(busy(), 140)
    for words in ("█▇▆", "812,345", "1350 MHz", "84m", "improve cooling", "wider, with"):
        assert words in shown, words


def test_a_machine_without_a_gpu_and_a_new_workspace() -> None:
    shown = text(Frame("new", {"devices": [], "cpu": CPU}, [], []), 80)
    assert "cpu" in shown and "no runs yet" in shown


def test_once_prints_one_picture(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    answer = command("top", "--once")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("lab mein Labor ü") and "no runs yet" in answer.stdout
