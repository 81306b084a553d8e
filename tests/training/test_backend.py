"""Which device is taken, and what is said when the one asked for is not there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from training.hardware import backend, cpu, cpu_precision
from training.hardware.backend import Backend, choose
from training.hardware.peak_flops import peak_flops
from workspace.errors import LabError

NOTHING = {"hpu": "absent", "rocm": "absent", "cuda": "absent", "mps": "absent", "cpu": "available"}


def pretend(monkeypatch: pytest.MonkeyPatch, *available: str) -> None:
    monkeypatch.setattr(backend, "found", lambda: NOTHING | dict.fromkeys(available, "available"))
    monkeypatch.setattr(
        backend, "_build", lambda kind: Backend(kind, torch.device("cpu"), f"a {kind}", 80 * 2**30, False)
    )


@pytest.mark.parametrize(
    ("available", "taken"),
    [((), "cpu"), (("mps",), "mps"), (("cuda", "mps"), "cuda"), (("rocm",), "rocm"), (("hpu", "cuda"), "hpu")],
)
def test_the_first_of_the_order_is_taken(
    monkeypatch: pytest.MonkeyPatch, available: tuple[str, ...], taken: str
) -> None:
    pretend(monkeypatch, *available)
    assert choose().kind == taken


def test_the_environment_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "cuda")
    for asked in ("cpu", " CPU"):
        monkeypatch.setenv("LAB_BACKEND", asked)
        assert choose().kind == backend.chosen() == "cpu"


def test_an_impossible_override_is_refused_with_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "mps")
    monkeypatch.setenv("LAB_BACKEND", "hpu")
    with pytest.raises(LabError, match=r"hpu was asked for.*mps: available"):
        choose()


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(LabError, match="hpu, rocm, cuda, mps, cpu"):
        choose("tpu")


def test_this_machine_really_has_what_is_found() -> None:
    for kind, state in backend.found().items():
        if state == "available":
            x = torch.ones(3, device=choose(kind).device)
            choose(kind).synchronize()
            assert x.sum().item() == 3


def test_rocm_is_told_by_torchs_build_not_by_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "version", SimpleNamespace(hip="6.4", cuda=None))
    found = backend.found()
    assert (found["rocm"], found["cuda"]) == ("available", "this torch is built without it")


def test_a_containers_memory_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "container_limits", lambda: (None, 2**30, None))
    assert choose("cpu").memory_total_bytes == 2**30
    monkeypatch.setattr(cpu, "container_limits", lambda: (None, None, None))
    assert choose("cpu").memory_total_bytes == psutil.virtual_memory().total


def test_peak_memory_grows_with_what_is_held() -> None:
    cpu = choose("cpu")
    before = cpu.peak_memory_bytes()
    held = torch.ones(64 * 2**20)  # 256 MiB
    assert cpu.peak_memory_bytes() >= before
    assert cpu.memory_now_bytes() > held.nbytes


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H200", "bfloat16", 989.5),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("AMD Instinct MI300X", "bfloat16", 1307.4),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA GB200", "bfloat16", 2500),
    ],
)
def test_known_peaks(name: str, dtype: str, tera: float) -> None:
    peak = peak_flops(name, dtype)
    assert peak is not None
    assert peak.flops == pytest.approx(tera * 1e12)
    assert peak.source


@pytest.mark.parametrize(
    "name",
    [
        "AMD EPYC", "Apple M3 Max", "NVIDIA RTX A1000", "NVIDIA L40", "Tesla T4", "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA B300", "AMD Instinct MI355X",
    ],
)  # fmt: skip
def test_an_unknown_device_has_no_peak(name: str) -> None:
    assert peak_flops(name, "bfloat16") is None


def test_an_unknown_format_has_no_peak() -> None:
    assert peak_flops("NVIDIA H100", "float8") is None


def test_bfloat16_is_not_even_tried_without_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_precision, "_bfloat16_units", lambda: None)
    monkeypatch.setattr(cpu_precision, "_gflops", lambda dtype: pytest.fail("it was"))
    assert choose("cpu").dtype_choice("auto").used == "float32"
    asked_for = choose("cpu").dtype_choice("bfloat16")
    assert asked_for.used == "bfloat16" and choose("cpu").dtype_that_pays(asked_for) == "float32"


@pytest.mark.parametrize(("bfloat16_gflops", "used"), [(200.0, "bfloat16"), (110.0, "float32"), (0.3, "float32")])
def test_bfloat16_must_pay_and_is_measured_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bfloat16_gflops: float, used: str
) -> None:
    asked: list[Any] = []

    def gflops(dtype: str) -> float:
        asked.append(dtype)
        return bfloat16_gflops if dtype == "bfloat16" else 100.0

    monkeypatch.setattr(cpu_precision, "_bfloat16_units", lambda: "AMX")
    monkeypatch.setattr(cpu_precision, "_gflops", gflops)
    first = choose("cpu").dtype_choice("auto", tmp_path)
    assert first == choose("cpu").dtype_choice("auto", tmp_path)
    assert first.used == used and "measured" in first.reason
    assert choose("cpu").dtype_that_pays(choose("cpu").dtype_choice("bfloat16"), tmp_path) == used
    assert len(asked) == 2 * cpu_precision.ROUNDS


def test_a_round_in_which_the_machine_was_busy_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = {"float32": iter([30.0, 100.0, 95.0, 20.0]), "bfloat16": iter([110.0, 60.0, 40.0, 105.0])}
    monkeypatch.setattr(cpu_precision, "_bfloat16_units", lambda: "AVX-512 BF16")
    monkeypatch.setattr(cpu_precision, "_gflops", lambda dtype: next(speeds[dtype]))
    choice = choose("cpu").dtype_choice("auto")
    assert choice.used == "float32" and "1.10 times as fast" in choice.reason


def test_the_probe_measures_something() -> None:
    assert cpu_precision._gflops("float32") > 0


@pytest.mark.parametrize(("budget", "used"), [(60.0, "off"), (3600.0, "on"), (None, "off")])
def test_compiling_on_a_cpu_must_pay(monkeypatch: pytest.MonkeyPatch, budget: float | None, used: str) -> None:
    monkeypatch.setattr(backend, "compile_obstacle", lambda kind: None)
    assert choose("cpu").compile_choice("auto", budget).used == used


def test_compiling_without_a_compiler_is_refused_or_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "compile_obstacle", lambda kind: "there is no C++ compiler")
    assert choose("cpu").compile_choice("auto", 3600.0).reason == "there is no C++ compiler"
    assert "too short" in choose("cpu").compile_choice("auto", 60.0).reason
    with pytest.raises(LabError, match="C\\+\\+ compiler"):
        choose("cpu").compile_choice("on", 60.0)
