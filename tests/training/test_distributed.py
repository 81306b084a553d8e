"""Two processes on the CPU: the same training as one, at the same global batch."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_support import metrics, module_command, run_folder, small, summary, train, workspace_with_text

from training import extras
from training.checkpoint import open_checkpoint
from workspace.errors import LabError
from workspace.layout import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspace_with_text(tmp_path)


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in metrics(folder) if "loss" in record]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_as_one(workspace: Workspace, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one process: 2 x 4; of two: 2 x 2 each. Only the order of sums differs."""
    alone = run_folder(workspace, small(batch__tokens=512, batch__rows=8), "alone")
    both = run_folder(
        workspace, small(batch__tokens=512, batch__rows=4, parallel__kind=kind, parallel__processes=2), "both"
    )
    for folder in (alone, both):
        done = train(folder)
        assert done.returncode == 0, done.stdout + done.stderr
    a, b = summary(alone), summary(both)
    assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-4)
    assert b["val_bpb"] == pytest.approx(a["val_bpb"], rel=1e-3)
    assert losses(both)[0] == pytest.approx(losses(alone)[0], rel=1e-5)
    assert (b["tokens"], b["parameters"], b["parallel"]["processes"]) == (a["tokens"], a["parameters"], 2)
    assert len(metrics(both)[0]["devices"]) == 2
    could = 2 * b["mfu_ceiling"]["flops"]  # of each process
    assert b["mfu"] == pytest.approx(b["flops_per_token"] * b["tokens_per_s"] / could) == b["mfu_of_canary"]
    assert (open_checkpoint(both).folder / "shards").is_dir() == (kind == "fsdp")


@pytest.mark.slow
def test_gradients_are_really_averaged(workspace: Workspace) -> None:
    """Without it, the first process would learn from half of the rows and end elsewhere."""
    config = {"batch__tokens": 512, "parallel__kind": "ddp", "parallel__processes": 2}
    both = run_folder(workspace, small(batch__rows=8, **config), "both")
    half = run_folder(workspace, small(batch__tokens=256, batch__rows=8), "half")
    alone = run_folder(workspace, small(batch__tokens=512, batch__rows=16), "alone")
    for folder in (both, half, alone):
        assert train(folder).returncode == 0
    name = "blocks.0.mlp.expand.weight"
    weights = [load_file(open_checkpoint(f).folder / "model.safetensors")[name] for f in (both, half, alone)]
    assert (weights[0] - weights[2]).abs().max() < 0.1 * (weights[1] - weights[2]).abs().max()


@pytest.mark.parametrize("processes", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_sharded_run_goes_on_with_another_number_of_processes(workspace: Workspace, processes: int) -> None:
    config = {"batch__tokens": 512, "batch__rows": 4, "parallel__kind": "fsdp"}
    whole = run_folder(workspace, small(parallel__processes=2, budget__amount=6, **config), "whole")
    first = run_folder(
        workspace, small(parallel__processes=2, budget__amount=3, schedule__warmdown=0.0, **config), "first"
    )
    for folder in (whole, first):
        assert train(folder).returncode == 0
    then = small(parallel__processes=processes, budget__amount=6, schedule__warmdown=0.0, **config)
    second = run_folder(workspace, then, "second", resume_from="runs/first")
    done = train(second)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed from step-00000003" in done.stdout
    assert summary(second)["steps"] == 6 and summary(second)["val_bpb"] < summary(first)["val_bpb"]

    single = run_folder(workspace, small(batch__tokens=512, batch__rows=4), "single", resume_from="runs/first")
    assert train(single).returncode == 13
    assert "sharded" in summary(single)["error"]


def test_sigterm_ends_all_with_one_checkpoint(workspace: Workspace) -> None:
    config = small(budget__amount=100_000, parallel__kind="ddp", parallel__processes=2)
    folder = run_folder(workspace, config)
    with (folder / "train.log").open("w") as log:
        process = subprocess.Popen(module_command("training.train", folder), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and "Step 1 " not in (folder / "train.log").read_text():
            assert process.poll() is None, (folder / "train.log").read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 75, (folder / "train.log").read_text()
    finally:
        process.kill()
        process.wait()
    assert summary(folder)["state"] == "preempted"
    assert open_checkpoint(folder).step >= 1


def test_the_failure_of_one_is_the_failure_of_the_run(workspace: Workspace) -> None:
    (workspace.root / "recipe").mkdir()
    (workspace.root / "recipe" / "model.py").write_text(
        "import os\nfrom training.model import GPT\n"
        "class Explodes(GPT):\n"
        "    def loss(self, tokens, targets):\n"
        "        value = super().loss(tokens, targets)\n"
        "        return value * float('nan') if os.environ['RANK'] == '1' else value\n"
        "def build_model(config):\n    return Explodes(config)\n"
    )
    folder = run_folder(workspace, small(parallel__kind="ddp", parallel__processes=2))
    assert train(folder).returncode == 10
    assert (summary(folder)["state"], summary(folder)["class"]) == ("failed", "nan")


@pytest.mark.parametrize("parallel", [{"kind": "none"}, {"kind": "ddp", "processes": 2}], ids=["one", "two"])
def test_what_aborts_while_the_interpreter_ends_does_not_take_a_finished_run_with_it(
    workspace: Workspace, parallel: dict[str, Any]
) -> None:
    """As gloo's threads do now and then, when one lets go of a tensor in that moment."""
    (workspace.root / "recipe").mkdir()
    (workspace.root / "recipe" / "model.py").write_text(
        "import builtins, os\nfrom training.model import GPT\n"
        "class Left:\n    def __del__(self, abort=os.abort):\n        abort()\n"
        "builtins.left = Left()\n"
        "def build_model(config):\n    return GPT(config)\n"
    )
    folder = run_folder(workspace, small(**{f"parallel__{name}": value for name, value in parallel.items()}))
    done = train(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(folder)["state"] == "succeeded"


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(LabError, match=r"cannot be shared by parallel\.processes = 3"):
        small(parallel__kind="ddp", parallel__processes=3)
    with pytest.raises(LabError, match=r"parallel\.processes is not used"):
        small(parallel__processes=2)
    assert torch.distributed.is_available()


def test_as_many_processes_as_devices_that_cannot_share_a_step_are_refused(workspace: Workspace) -> None:
    """Not trained on nothing: rows for all of them would be more than a step."""
    config = small(parallel__kind="ddp", batch__rows=8)
    folder = run_folder(workspace, config, devices=[{"index": 0}, {"index": 1}])
    assert train(folder).returncode == 13
    assert "cannot be shared by 2 devices" in summary(folder)["error"]
    assert "batch.rows = 4" in summary(folder)["error"]


def test_energy_is_that_of_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads its own; a processor's counter is the machine's, which one process reads for all."""
    from training import energy
    from training.hardware.backend import choose
    from training.trainer import Trainer

    class Counter:
        def joules(self) -> float:
            return 7.0

    monkeypatch.setattr(energy, "Energy", Counter)
    assert energy.Meter(choose("cpu"), first=False).joules() == 0.0
    mine = energy.Meter(choose("cpu"))
    mine._before = 0.0

    def share(values: list[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([values, [*values[:-1], 3.0]])

    told = SimpleNamespace(
        config=small(), stop_requested=False, _saved_at=time.monotonic(), _forward_seconds=0.0, meter=mine,
        backend=SimpleNamespace(memory_now_bytes=lambda: 5), group=SimpleNamespace(world=2, share=share),
        clock=SimpleNamespace(tokens=40),
    )  # fmt: skip
    Trainer._agree(cast(Trainer, told), 1.0, 0.1)
    found = mine.summary()
    assert found is not None and (found["joules"], found["joules_per_token"]) == (10.0, 0.25)
    assert [list(device) for device in told.devices] == [["forward_seconds", "memory_bytes"]] * 2


def test_the_backend_that_is_asked_for_decides_how_processes_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is written."""
    from training import distributed
    from training.hardware import backend

    talks: list[str] = []
    monkeypatch.setattr(backend, "found", lambda: dict.fromkeys(backend.ORDER, "available"))
    monkeypatch.setattr(distributed.dist, "init_process_group", talks.append)
    monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for asked in (" CPU", "Cuda"):
        monkeypatch.setenv("LAB_BACKEND", asked)
        with distributed.joined("ddp") as group:
            talks.append(group.device.type)
    assert talks == ["gloo", "cpu", "nccl", "cuda"]


@pytest.mark.parametrize("backend", ["mps", "hpu"])
def test_several_devices_where_they_do_not_work_are_refused(backend: str) -> None:
    with pytest.raises(LabError, match="does not work on"):
        extras.check(small(parallel__kind="ddp"), backend)
    extras.check(small(parallel__kind="ddp"), "cuda")
