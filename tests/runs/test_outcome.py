"""How a run ended follows from facts, and words in a log are not among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.runs.outcome import (
    ENDED_BY_RULE,
    End,
    Evidence,
    Stop,
    decide,
    has_checkpoint,
    last_exception,
    stop_asked_for,
)
from workspace.settings import AlertSettings

LATER, EARLIER = "2026-11-21T10:00:05.000Z", "2026-11-21T10:00:00.000Z"
DONE, FAILED = {"state": "succeeded"}, {"state": "failed", "class": "oom", "error": "out of memory. Next: rows = 4"}


@pytest.mark.parametrize(
    ("end", "stop", "seen", "state", "failure"),
    [
        (End(0), None, Evidence("recipe", DONE), "succeeded", None),
        (End(10), None, Evidence("recipe"), "failed", "nan"),
        (End(11), None, Evidence("recipe"), "failed", "oom"),
        (End(12), None, Evidence("recipe"), "failed", "data"),
        (End(13), None, Evidence("recipe"), "failed", "exit"),
        (End(13), None, Evidence("recipe", exception=("ImportError", "x")), "failed", "import"),
        (End(1), None, Evidence("recipe", FAILED), "failed", "oom"),
        (End(75), None, Evidence("recipe", checkpoint=True), "preempted", None),
        (End(11), None, Evidence("script"), "failed", "exit"),
        (End(signal="SIGKILL"), None, Evidence("script"), "failed", "signal"),
        (End(signal="SIGKILL"), None, Evidence("script", memory_kill=True), "failed", "oom"),
        (End(signal="SIGSEGV"), None, Evidence("script", memory_kill=True), "failed", "signal"),
        (End(1), None, Evidence("script", exception=("torch.OutOfMemoryError", "CUDA out of memory")), "failed", "oom"),
        (End(1), None, Evidence("script", exception=("RuntimeError", "CUDA out of memory. x")), "failed", "oom"),
        (End(1), None, Evidence("script", exception=("RuntimeError", "not CUDA out of memory")), "failed", "exit"),
        (End(2), None, Evidence("script", exception=("MemoryError", "")), "failed", "exit"),
        (End(), None, Evidence("script"), "lost", None),
        (End(), None, Evidence("script", DONE, checkpoint=True), "lost", None),
        (End(), None, Evidence("recipe", DONE), "succeeded", None),
        (End(), None, Evidence("recipe", FAILED), "failed", "oom"),
        (End(), None, Evidence("recipe", checkpoint=True), "preempted", None),
        (End(signal="SIGTERM"), Stop("cancelled", "r", EARLIER), Evidence("script"), "cancelled", None),
        (End(75, ended_at=LATER), Stop("cancelled", "r", EARLIER), Evidence("recipe"), "cancelled", None),
        (End(75), Stop("preempted", "r", EARLIER), Evidence("recipe"), "preempted", None),
        (End(signal="SIGKILL"), Stop("preempted", "r", EARLIER), Evidence("script"), "cancelled", None),
        (End(signal="SIGKILL"), Stop("timed_out", "r", EARLIER), Evidence("recipe"), "timed_out", None),
        (End(), Stop("cancelled", "r", EARLIER), Evidence("script"), "cancelled", None),
        (End(3, ended_at=EARLIER), Stop("cancelled", "r", LATER), Evidence("script"), "failed", "exit"),
        (End(0, ended_at=EARLIER), Stop("timed_out", "r", LATER), Evidence("script"), "succeeded", None),
        (End(0, ended_at=LATER), Stop("cancelled", "r", EARLIER), Evidence("recipe", DONE), "succeeded", None),
        (End(0, ended_at=LATER), Stop("cancelled", "r", EARLIER), Evidence("script"), "cancelled", None),
    ],
)
def test_decision(end: End, stop: Stop | None, seen: Evidence, state: str, failure: str | None) -> None:
    record = decide(end, stop, seen)
    assert (record["state"], record["class"]) == (state, failure)
    assert (record["exit_code"], record["signal"]) == (end.exit_code, end.signal)
    assert record["reason"] or state == "succeeded"


@pytest.mark.parametrize(
    ("rule", "kind", "checkpoint", "state", "failure"),
    [
        ("stalled", "script", False, "failed", "stalled"),
        ("nan", "recipe", True, "failed", "nan"),
        ("loss_flat", "recipe", True, "failed", "stalled"),
        ("loss_rising", "script", False, "failed", "stalled"),
        ("overfitting", "recipe", True, "failed", "stalled"),
        ("memory_growing", "script", False, "failed", "oom"),
        ("disk_filling", "recipe", True, "preempted", None),
        ("disk_filling", "script", True, "cancelled", None),  # nobody knows how to go on from it
        ("throughput_falling", "recipe", True, "cancelled", None),
        ("utilisation_low", "script", False, "cancelled", None),
        ("imbalance", "script", False, "cancelled", None),
        ("thermal", "recipe", True, "cancelled", None),
        ("log", "script", False, "cancelled", None),
        (None, "script", False, "cancelled", None),  # a person
    ],
)
def test_what_a_rule_makes_of_the_run_it_ends(
    rule: str | None, kind: str, checkpoint: bool, state: str, failure: str | None
) -> None:
    asked = {"reason": f"{rule}: 40 steps missing", "by": f"alerts.{rule} in lab.toml", "alert": rule}
    stop = stop_asked_for(asked, EARLIER)
    record = decide(End(signal="SIGTERM", ended_at=LATER), stop, Evidence(kind, checkpoint=checkpoint))
    assert (record["state"], record["class"]) == (state, failure)
    assert record["reason"] == f"{rule}: 40 steps missing (by alerts.{rule} in lab.toml)"
    assert record.get("alert") == rule
    by_itself = decide(End(3, ended_at=EARLIER), stop_asked_for(asked, LATER), Evidence(kind))
    assert by_itself["class"] == "exit" and "alert" not in by_itself


def test_only_rules_there_are_end_runs() -> None:
    assert set(ENDED_BY_RULE) < set(AlertSettings.model_fields)


def test_a_run_killed_for_memory_is_told_what_was_predicted() -> None:
    advice = "The estimate for this configuration is 9.1 GB of 8.0 GB. Next: batch.rows = 4."
    ran_out = [End(signal="SIGKILL"), End(137)]
    for end in ran_out:
        record = decide(end, None, Evidence("recipe", memory_kill=True, memory_advice=advice))
        assert record["class"] == "oom" and record["reason"].endswith(f". {advice}")
    unsure = decide(End(signal="SIGKILL"), None, Evidence("recipe", memory_advice=advice))
    assert unsure["class"] == "signal" and unsure["reason"].endswith(advice)
    assert advice not in decide(End(signal="SIGSEGV"), None, Evidence("recipe", memory_advice=advice))["reason"]


def test_a_reason_quotes_the_log_without_secrets_and_control_characters() -> None:
    seen = Evidence(
        "script", exception=("RuntimeError", "login \x1b[31mfailed: hf_abcdefghijklmnopqrstuv password=hunter22")
    )
    reason = decide(End(1), None, seen)["reason"]
    assert reason == "RuntimeError: login [31mfailed: hf_*** password=***"


TRACEBACK = 'Traceback (most recent call last):\n  File "/x/t.py", line 3, in <module>\n    f()\n'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (TRACEBACK + "MemoryError\n", ("MemoryError", "")),
        (TRACEBACK + "torch.OutOfMemoryError: CUDA: tried 2 GiB\n", ("torch.OutOfMemoryError", "CUDA: tried 2 GiB")),
        (TRACEBACK + "ValueError: a\nsecond line of it\nwandb: run ended\n", ("ValueError", "a")),
        (TRACEBACK + "    ^^^^\nKeyError: 'x'\n", ("KeyError", "'x'")),
        ("x" * 9000 + "\n" + TRACEBACK + "MemoryError\n", ("MemoryError", "")),
        (TRACEBACK + "MemoryError\n" + "training goes on\n" * 30, None),
        ("MemoryError\nCUDA out of memory\nKilled\nloss is nan\n", None),
        ("INFO ImportError: optional package absent, going on\n", None),
        ("", None),
    ],
)  # fmt: skip
def test_only_the_traceback_at_the_end_counts(tmp_path: Path, text: str, found: tuple[str, str] | None) -> None:
    log = tmp_path / "train.log"
    log.write_text(text)
    assert last_exception(log) == found
    assert last_exception(tmp_path / "absent") is None


def test_half_written_checkpoints_do_not_count(tmp_path: Path) -> None:
    assert not has_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / ".step-00000010abc").mkdir(parents=True)
    assert not has_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / "step-00000010").mkdir()
    assert has_checkpoint(tmp_path)
