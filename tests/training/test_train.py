"""The trainer as it is really run: a process on a run's folder."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from training_support import (
    facts,
    metrics,
    module_command,
    run_folder,
    small,
    summary,
    train,
    train_here,
    workspace_with_text,
)

from training import corpus, data
from training.checkpoint import open_checkpoint
from workspace.layout import Workspace

STEP_LINE = re.compile(r"^Step (\d+) \| Loss: (\d+\.\d{4}) \| lr: \S+ \| tok/s: [\d,]+ \| [\d.]+% \| eta \S+$", re.M)
CPU_LINE = re.compile(r"^CPU: [\d.]+GB / [\d.]+GB resident \([\d.]+% utilization\)$", re.M)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspace_with_text(tmp_path)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(open_checkpoint(folder).folder / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_from_start_to_summary(workspace: Workspace) -> None:
    folder = run_folder(workspace, small(budget__amount=40, evaluation__quick_count=2))
    done = train(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = STEP_LINE.findall(done.stdout)
    assert steps[0][0] == "1" and steps[-1][0] == "40"
    assert CPU_LINE.search(done.stdout)

    block = done.stdout.split("\n---\n")[1]
    values = dict(re.findall(r"^(\w+): +(\S+)$", block, re.M))
    assert list(values) == [
        "val_bpb", "training_seconds", "total_seconds", "peak_vram_mb", "mfu_percent", "total_tokens_M", "num_steps",
        "num_params_M", "depth",
    ]  # fmt: skip

    end = summary(folder)
    assert end["state"] == "succeeded"
    assert float(values["val_bpb"]) == pytest.approx(end["val_bpb"], abs=1e-6)
    assert end["steps"] == 40 and end["tokens"] == 40 * 256
    assert end["parameters"]["total"] == sum(w.numel() for w in weights(folder).values())
    assert end["peak_flops"] is None  # nobody knows a CPU's peak, so what the canary measured is the ceiling
    assert end["mfu_ceiling"]["source"] == "measured by the canary"
    assert 0 < end["mfu"] == end["mfu_of_canary"]
    assert end["canary"].items() <= json.loads((folder / "canary.json").read_text()).items()
    assert end["val_bpb"] < 3.5 and end["train_loss"] < 5.0  # a uniform guess: 5.7 nats a token
    assert end["compile"]["used"] == "off" and end["compile"]["reason"]

    records = metrics(folder)
    losses = [r for r in records if "loss" in r]
    assert losses[0].keys() >= {"step", "time", "elapsed_s", "loss", "lr", "grad_norm", "tokens", "tokens_per_s"}
    assert losses[-1]["step"] == 40
    assert [r["val_kind"] for r in records if "val_bpb" in r] == ["quick", "quick", "full"]
    assert records[-1]["val_bpb"] == end["val_bpb"]

    told = subprocess.run(
        module_command("training.sample", folder, "--prompt", "the cat", "--tokens", "5"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.startswith("the cat")


def test_deterministic_algorithms_are_there_for_all_we_do(workspace: Workspace) -> None:
    """An operation without one would raise. Also under autocast, which takes other paths."""
    folder = run_folder(workspace, small(deterministic=True, dtype="bfloat16", model__kv_share=2))
    assert train(folder).returncode == 0


def test_a_seeded_run_repeats_bit_by_bit_and_another_seed_differs(workspace: Workspace) -> None:
    folders = [run_folder(workspace, small(seed=seed), name) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    assert [train_here(folder) for folder in folders] == [0, 0, 0]
    a, b = map(facts, folders[:2])
    assert (a["train_loss"], a["sample"]) == (b["train_loss"], b["sample"])
    assert same(weights(folders[0]), weights(folders[1]))
    assert not same(weights(folders[0]), weights(folders[2]))


@pytest.mark.parametrize("optimizer", ["ours", "Adagrad"])
def test_the_warm_up_teaches_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    """Adagrad has state before its first step: that too is as it was."""
    from training.trainer import Trainer

    if optimizer != "ours":
        (workspace.root / "recipe").mkdir()
        (workspace.root / "recipe" / "optim.py").write_text(
            "import torch\ndef build_optimizer(model, config):\n"
            f"    return torch.optim.{optimizer}(model.parameters())\n"
        )
    assert train_here(run_folder(workspace, small(), "with")) == 0
    monkeypatch.setattr(Trainer, "warm_up", lambda self: None)
    assert train_here(run_folder(workspace, small(), "without")) == 0
    assert same(weights(workspace.run_dir("with")), weights(workspace.run_dir("without")))


@pytest.mark.parametrize(
    ("kind", "amount", "stop_after"), [("steps", 6, 1), ("steps", 6, 3), ("tokens", 6 * 256, 3), ("flops", 6.5e8, 3)]
)
def test_stopping_and_resuming_gives_the_run_that_was_never_stopped(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, kind: str, amount: float, stop_after: int
) -> None:
    """Bit by bit, in every unit that does not depend on the clock."""
    from training.trainer import Trainer

    config = small(budget__kind=kind, budget__amount=amount)
    whole = run_folder(workspace, config, "whole")
    assert train_here(whole) == 0
    assert facts(whole)["steps"] > stop_after

    halved = run_folder(workspace, config, "halved")
    between = Trainer._between_steps

    def stop_then(self: Trainer) -> None:
        between(self)
        self.stop_requested = self.clock.steps == stop_after

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_between_steps", stop_then)
        assert train_here(halved) == 75
    assert summary(halved)["state"] == "preempted"
    assert open_checkpoint(halved).step == stop_after
    assert train_here(halved, "--resume") == 0
    assert same(weights(whole), weights(halved))
    steps = [r["step"] for r in metrics(halved) if "loss" in r]
    assert steps == sorted(set(steps))


DROPOUT = (
    "import torch.nn.functional as F\nfrom training.model import GPT\n"
    "class Drops(GPT):\n"
    "    def features(self, tokens):\n"
    "        return F.dropout(super().features(tokens), 0.2, self.training)\n"
    "def build_model(config):\n    return Drops(config)\n"
)


@pytest.mark.parametrize("drops", [False, True])
def test_the_next_rows_are_made_while_the_device_computes_and_not_lost_in_a_stop_within_a_step(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, drops: bool
) -> None:
    """They are there when the loss has been waited for; the checkpoint is of those that were trained on. Nor are random
    numbers lost that the part before the stop has drawn."""
    from training.trainer import Trainer

    if drops:
        (workspace.root / "recipe").mkdir()
        (workspace.root / "recipe" / "model.py").write_text(DROPOUT)
    whole = run_folder(workspace, small(), "whole")
    agree, ready = Trainer._agree, []

    def after_the_wait(self: Trainer, loss: float, took: float) -> tuple[float, float]:
        assert self.loader._ahead is not None
        ready.append(len(self.loader._ahead[0]))
        return agree(self, loss, took)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_agree", after_the_wait)
        assert train_here(whole) == 0
    assert ready == [4] * 6
    halved = run_folder(workspace, small(), "halved")
    next_rows, asked = Trainer._next_rows, []

    def stop_then(self: Trainer) -> Any:
        asked.append(1)
        self.stop_requested = len(asked) == 5  # the first part of the third step
        return next_rows(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_next_rows", stop_then)
        assert train_here(halved) == 75
    assert open_checkpoint(halved).step == 2
    assert train_here(halved, "--resume") == 0
    assert same(weights(whole), weights(halved))


def test_sigterm_ends_with_a_checkpoint_and_another_run_can_go_on_from_it(workspace: Workspace) -> None:
    config = small(budget__amount=100_000)
    folder = run_folder(workspace, config)
    with (folder / "train.log").open("w") as log:
        process = subprocess.Popen(module_command("training.train", folder), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and "Step 1 " not in (folder / "train.log").read_text():
            assert process.poll() is None, (folder / "train.log").read_text()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 75
    finally:
        process.kill()
        process.wait()
    reached = open_checkpoint(folder).step
    assert reached >= 1
    assert summary(folder)["state"] == "preempted"

    changed = small(budget__amount=reached + 2)
    following = run_folder(workspace, changed, "run-0002", resume_from="runs/run-0001")
    assert train_here(following) == 0
    assert facts(following)["steps"] == reached + 2


def test_a_killed_run_goes_on_from_its_last_checkpoint(workspace: Workspace) -> None:
    """SIGKILL, at a moment nobody chose, and the run is the one that was never killed, bit by bit."""
    config = small(budget__amount=150, checkpoint__every_seconds=0.05)
    whole = run_folder(workspace, small(budget__amount=150), "whole")
    assert train_here(whole) == 0
    killed = run_folder(workspace, config, "killed")
    with (killed / "train.log").open("w") as log:
        process = subprocess.Popen(module_command("training.train", killed), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list(killed.glob("checkpoints/step-*/state.json")):
            assert process.poll() is None, (killed / "train.log").read_text()
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    wait_until_nothing_is_written(killed)
    reached = open_checkpoint(killed).step
    assert 0 < reached < 150 and not (killed / "summary.json").exists()
    done = train(killed, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resumed from step-{reached:08d}" in done.stdout
    assert same(weights(whole), weights(killed)) and summary(killed)["steps"] == 150
    steps = [r["step"] for r in metrics(killed) if "loss" in r]
    assert steps == sorted(set(steps))


def wait_until_nothing_is_written(folder: Path) -> None:
    """The process that trains dies with its parent, a moment later."""
    deadline = time.monotonic() + 60
    while any(str(folder) in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_checkpoint_holds_the_curve_as_it_was_then(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread writes it while training goes on."""
    states: list[Any] = []
    monkeypatch.setattr("training.snapshot.Writer.save", lambda self, content: states.append(content.state))
    changes = {"checkpoint__every_seconds": 1e-6, "evaluation__quick_count": 5, "budget__amount": 12}
    assert train_here(run_folder(workspace, small(**changes))) == 0
    assert max(len(state["validation"]) for state in states) == 5
    assert all(step <= state["step"] for state in states for step, _ in state["validation"])


def test_sigterm_while_the_data_are_prepared(workspace: Workspace) -> None:
    """Somebody else prepares the same data: the run waits, and is asked to end."""
    import fcntl

    config = small()
    key = data.data_key(config.data, corpus.find(config.data, workspace).identity)
    folder = run_folder(workspace, config)
    (workspace.cache_dir / "data").mkdir(parents=True)
    with (workspace.cache_dir / "data" / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(module_command("training.train", folder), stdout=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and key not in _locks_opened(process.pid):
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            told, _ = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 75
    assert told == "ended: SIGTERM while nothing was being trained; what is prepared or trained is kept\n"
    assert summary(folder)["state"] == "preempted"
    assert train_here(folder, "--resume") == 0  # there is no checkpoint: from the beginning


def test_sigterm_when_the_last_step_is_done_is_not_lost(workspace: Workspace) -> None:
    """The worker passes it by: it has nothing to stop any more."""
    (workspace.root / "recipe").mkdir()
    (workspace.root / "recipe" / "model.py").write_text(
        "import atexit, os, signal, sys, time\nfrom training.model import build_model\n"
        "def late():\n    os.kill(os.getppid(), signal.SIGTERM)\n    time.sleep(1)\n"
        "if 'worker' in sys.argv[0] and '--resume' not in sys.argv: atexit.register(late)\n"
    )
    folder = run_folder(workspace, small())
    done = train(folder)
    assert done.returncode == 75, done.stdout + done.stderr
    assert summary(folder)["state"] == "preempted"
    done = train(folder, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(folder)["steps"] == 6 and summary(folder)["val_bpb"] > 0


def test_sigterm_while_the_modules_are_imported(workspace: Workspace) -> None:
    code = (
        "import os, runpy, signal, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'training.failure': os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "runpy.run_module('training.train', run_name='__main__')\n"
    )
    folder = run_folder(workspace, small())
    assert subprocess.run([sys.executable, "-P", "-c", code, str(folder)], check=False, timeout=60).returncode == 75


def _locks_opened(pid: int) -> str:
    names = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            names.append(link.readlink().name)
    return " ".join(name for name in names if name.endswith(".lock"))


def test_only_the_newest_checkpoints_are_kept(workspace: Workspace) -> None:
    folder = run_folder(workspace, small(checkpoint__every_seconds=1e-6, checkpoint__keep=2))
    assert train_here(folder) == 0
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-00000005", "step-00000006"]


def test_resuming_with_another_model_is_refused(workspace: Workspace) -> None:
    assert train_here(run_folder(workspace, small(), "first")) == 0
    second = run_folder(workspace, small(model__depth=3), "second", resume_from="runs/first")
    assert train_here(second) == 13
    assert "[model] differs" in summary(second)["error"]


def test_a_budget_in_seconds_is_kept(workspace: Workspace) -> None:
    folder = run_folder(workspace, small(budget__kind="seconds", budget__amount=1.5))
    assert train_here(folder) == 0
    end = facts(folder)
    longest = max(r["tokens"] / r["step"] / r["tokens_per_s"] for r in metrics(folder) if "loss" in r)
    assert 1.5 <= end["training_seconds"] < 1.5 + 3 * longest + 0.5
    assert end["training_seconds"] == pytest.approx(metrics(folder)[-1]["elapsed_s"], abs=0.01)


def test_a_run_stops_early_when_validation_no_longer_falls(workspace: Workspace) -> None:
    """Nothing falls by 5 bits a byte, so every evaluation but the first is one too many."""
    changes = {"budget__amount": 100, "evaluation__quick_count": 20, "evaluation__patience": 2}
    folder = run_folder(workspace, small(evaluation__min_delta=5.0, **changes))
    assert train_here(folder) == 0
    end = facts(folder)
    assert end["steps"] < 20 and "in 2 evaluations" in end["stopped_early"]
    assert open_checkpoint(folder).step == end["steps"]
