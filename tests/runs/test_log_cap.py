"""A log beyond its cap loses its head, never its end; the job writes on and notices nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from training.runs import log_cap
from training.runs.log_cap import LogCap
from workspace import durable

MIB = 2**20


def write(folder: Path, count: int) -> None:
    with (folder / "train.log").open("ab") as file:
        for number in range(count):
            file.write(b"%07d" % number + b"x" * (MIB - 8) + b"\n")


def can_punch(folder: Path) -> bool:
    probe = folder / "probe"
    probe.write_bytes(b"x" * 65536)
    try:
        log_cap.punch(probe, 4096)
    except OSError:
        return False
    return True


def test_the_head_goes_and_the_end_stays(tmp_path: Path) -> None:
    if not can_punch(tmp_path):
        pytest.skip("this file system cannot punch holes")
    log = tmp_path / "train.log"
    cap = LogCap(tmp_path, 8 * MIB)
    write(tmp_path, 7)
    cap.hold()
    assert not (tmp_path / "alerts.jsonl").exists() and log.read_bytes()[:7] == b"0000000"
    with log.open("ab") as job:  # open all the time, as a job has it
        write(tmp_path, 5)
        cap.hold()
        job.write(b"after\n")
    state = log.stat()
    assert state.st_size == 12 * MIB + 6, "offsets stay what they were"
    assert state.st_blocks * 512 <= 5 * MIB
    content = log.read_bytes()
    assert content[: 8 * MIB].count(b"\0") == 8 * MIB
    assert content[8 * MIB :].startswith(b"0000001") and content.endswith(b"after\n")
    for _ in range(3):
        write(tmp_path, 6)
        cap.hold()
    alerts = list(durable.read_jsonl(tmp_path / "alerts.jsonl"))
    assert [(a["class"], a["severity"]) for a in alerts] == [("log", "note")], "told once"


def test_where_it_cannot_be_done_it_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(log_cap, "punch", refuse)
    write(tmp_path, 3)
    for _ in range(2):  # also by the supervisor that adopts the run
        cap = LogCap(tmp_path, 2 * MIB)
        cap.hold()
        cap.hold()
    (alert,) = durable.read_jsonl(tmp_path / "alerts.jsonl")
    assert alert["severity"] == "warn" and "cannot drop its beginning" in alert["text"]
    assert (tmp_path / "train.log").read_bytes()[:7] == b"0000000"


def test_no_cap_and_no_log_are_no_trouble(tmp_path: Path) -> None:
    LogCap(tmp_path, 8 * MIB).hold()
    write(tmp_path, 2)
    LogCap(tmp_path, 0).hold()
    assert not (tmp_path / "alerts.jsonl").exists()
