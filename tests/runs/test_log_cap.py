"""A log beyond its cap loses its head, never its end; the job writes on and notices nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from training.runs import log_cap
from training.runs.log_cap import LogCap
from training.runs.tail import tail
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


@pytest.mark.parametrize(("policy", "severities"), [("off", []), ("note", ["note"]), ("stop", ["stop"])])
def test_what_it_does_about_it_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, severities: list[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(log_cap, "punch", refuse)
    write(tmp_path, 3)
    LogCap(tmp_path, 2 * MIB, policy).hold()
    told = list(durable.read_jsonl(tmp_path / "alerts.jsonl")) if (tmp_path / "alerts.jsonl").exists() else []
    assert [alert["severity"] for alert in told] == severities
    assert (tmp_path / "stop.json").exists() is (policy == "stop")
    if policy == "stop":
        assert "cannot drop its beginning" in durable.read_json(tmp_path / "stop.json")["reason"]


@pytest.mark.parametrize("full", ["alerts.jsonl", "stop.json"])
def test_a_disk_too_full_to_say_it_neither_forgets_it_nor_keeps_the_run_from_its_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def no_space(path: Path, write: object) -> None:
        if path.name == full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path)  # type: ignore[operator]

    json_, line = durable.write_json, durable.append_jsonl
    monkeypatch.setattr(log_cap, "punch", refuse)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_json", lambda p, v: no_space(p, lambda p: json_(p, v)))
        patch.setattr(durable, "append_jsonl", lambda p, v, sync: no_space(p, lambda p: line(p, v, sync=sync)))
        write(tmp_path, 3)
        cap = LogCap(tmp_path, 2 * MIB, "stop")
        cap.hold()
        cap.hold()
        assert "cannot drop its beginning" in cap.stop_request["reason"] and cap.stop_request["alert"] == "log"
        assert capfd.readouterr().err.count("not written down") == 1
    cap.hold()
    (alert,) = durable.read_jsonl(tmp_path / "alerts.jsonl")
    assert alert["severity"] == "stop"
    assert durable.read_json(tmp_path / "stop.json") == cap.stop_request
    monkeypatch.setattr(log_cap, "punch", None)
    cap.hold()  # it is told: never tried again


def test_no_cap_and_no_log_are_no_trouble(tmp_path: Path) -> None:
    LogCap(tmp_path, 8 * MIB).hold()
    write(tmp_path, 2)
    LogCap(tmp_path, 0).hold()
    assert not (tmp_path / "alerts.jsonl").exists()


def test_a_log_without_its_head_is_read_from_its_first_whole_line(tmp_path: Path) -> None:
    """A punched head reads as zeros: no page may show them, and no search may end in them."""
    if not can_punch(tmp_path):
        pytest.skip("this file system cannot punch holes")
    log = tmp_path / "train.log"
    log.write_text("".join(f"line {number:06d}\n" for number in range(1_000_000)))
    log_cap.punch(log, 8 * MIB)
    first = tail(log, cursor=0, lines=2)
    number = int(first.lines[0].removeprefix("line "))
    assert first.lines == [f"line {number:06d}", f"line {number + 1:06d}"] and first.cursor == 12 * number
    assert 8 * MIB <= first.cursor < 8 * MIB + 100 and "were dropped" in (first.cut or "")
    assert tail(log, cursor=first.next_cursor, lines=1).lines == [f"line {number + 2:06d}"]
    assert tail(log, before=first.next_cursor, lines=50).lines == first.lines, "nothing before"
    newest = tail(log, contains=f"line {number:06d}", lines=5)
    assert newest.lines == [f"line {number:06d}"] and "go on" not in (newest.cut or "")
    assert tail(log, contains="line 000001", lines=5).lines == []
    assert tail(log, lines=1).lines == ["line 999999"]
