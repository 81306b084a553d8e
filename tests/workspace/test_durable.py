"""Durable files: whole or not at all, whatever is killed and whenever."""

from __future__ import annotations

import errno
import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killed_child import Child

from workspace import durable


def test_json_and_text_come_back_as_written(tmp_path: Path) -> None:
    value = {"name": "Größe ✓", "numbers": [1, 2.5, None], "nested": {"a": True}}
    durable.write_json(tmp_path / "a.json", value)
    assert durable.read_json(tmp_path / "a.json") == value
    durable.write_text(tmp_path / "ä ö.txt", "zeile\n")
    assert (tmp_path / "ä ö.txt").read_text(encoding="utf-8") == "zeile\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "ä ö.txt"]  # no temporary file stays


def test_a_missing_file_is_none_and_a_broken_one_is_named(tmp_path: Path) -> None:
    assert durable.read_json(tmp_path / "none.json") is None
    (tmp_path / "broken.json").write_text('{"a": 1')
    with pytest.raises(ValueError, match=r"broken\.json"):
        durable.read_json(tmp_path / "broken.json")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.json")
    for path in (tmp_path / "fifo.json", tmp_path):
        for read in (durable.read_json, lambda path: list(durable.read_jsonl(path))):
            with pytest.raises(OSError, match="not a regular file"):
                read(path)


def test_mode(tmp_path: Path) -> None:
    durable.write_json(tmp_path / "secret.json", {}, mode=0o600)
    durable.write_json(tmp_path / "open.json", {})
    assert (tmp_path / "secret.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "open.json").stat().st_mode & 0o777 == 0o644


def test_the_order_of_operations_is_write_fsync_rename_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the first fsync a power loss can leave an empty file, without the second the old name."""
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        seen.append("fsync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "fsync file")  # noqa: PTH112
        fsync(descriptor)

    def record_replace(source: str, target: Path) -> None:
        seen.append("rename")
        assert Path(source).parent == target.parent and Path(source).read_text() == "new"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    durable.write_text(tmp_path / "a", "new")
    assert seen == ["fsync file", "rename", "fsync folder"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    durable.write_text(tmp_path / "a", "old")

    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space"):
        durable.write_text(tmp_path / "a", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


WRITER = """
from pathlib import Path
from workspace import durable
path, n = Path(sys.argv[1]), 0
while True:
    n += 1
    durable.write_json(path, {"n": n, "filler": "x" * 20000, "again": n})
    print(n, flush=True)
"""


def test_kill_9_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for _ in range(8):
        child = Child(WRITER, tmp_path / "said", str(path))
        child.wait_for_first_line()
        time.sleep(random.uniform(0, 0.05))
        acknowledged = child.kill()
        content = durable.read_json(path)
        assert content is not None and content["n"] == content["again"]
        # the last one that was said to be durable, or the one after
        assert content["n"] in (acknowledged[-1], acknowledged[-1] + 1)


# -- JSON lines -------------------------------------------------------------------------------------------------------


def test_lines_come_back_in_order_and_a_missing_file_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert list(durable.read_jsonl(path)) == []
    for n in range(5):
        durable.append_jsonl(path, {"n": n, "text": "zwei\nZeilen ✓"})
    assert [r["n"] for r in durable.read_jsonl(path)] == list(range(5))
    assert len(path.read_bytes().splitlines()) == 5


@pytest.mark.parametrize("torn", ['{"n": 1', '{"n": 1}', '"', "\0\0\0", "{" + "x" * 200_000])
def test_a_torn_last_line_is_skipped_by_readers_and_cut_by_the_next_writer(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "a.jsonl"
    durable.append_jsonl(path, {"n": 0})
    with path.open("a") as file:
        file.write(torn)
    assert [r["n"] for r in durable.read_jsonl(path)] == [0]
    durable.append_jsonl(path, {"n": 2})
    assert [r["n"] for r in durable.read_jsonl(path)] == [0, 2]


def test_repair_tail_says_what_it_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert durable.repair_tail(path) == 0
    path.write_bytes(b'{"n":1}\n{"n":')
    assert durable.repair_tail(path) == 5 and durable.repair_tail(path) == 0
    path.write_bytes(b"no newline at all")
    assert durable.repair_tail(path) == 17 and path.read_bytes() == b""


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=40)), max_size=8), st.data())
def test_any_prefix_of_the_file_reads_as_a_prefix_of_the_records(records: list[dict[str, str]], data: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        for record in records:
            durable.append_jsonl(path, record)
        content = path.read_bytes() if path.exists() else b""
        cut = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:cut])
        read = list(durable.read_jsonl(path))
        assert read == records[: content[:cut].count(b"\n")]
        durable.append_jsonl(path, {"after": "kill"})
        assert list(durable.read_jsonl(path)) == [*read, {"after": "kill"}]


def test_a_complete_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\nnonsense\n{"n": 3}\n')
    with pytest.raises(ValueError, match="line 2"):
        list(durable.read_jsonl(path))


def test_a_line_that_did_not_fit_on_the_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    durable.append_jsonl(path, {"n": 1})
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: len(data) // 2]))
    with pytest.raises(OSError, match="No space"):
        durable.append_jsonl(path, {"n": 2})
    monkeypatch.undo()
    assert path.read_text() == '{"n":1}\n'


def concurrently(work: Callable[[int], None], threads: int) -> None:
    failures: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except Exception as error:  # noqa: BLE001  told by the assertion below
            failures.append(error)

    running = [threading.Thread(target=guarded, args=(n,)) for n in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    assert not failures, failures


def test_threads_appending_long_lines_lose_nothing(tmp_path: Path) -> None:
    """A long line is not written in one piece: without a lock another writer would take its start for torn."""
    path = tmp_path / "a.jsonl"
    filler = "x" * 200_000

    def work(thread: int) -> None:
        for n in range(25):
            durable.append_jsonl(path, {"thread": thread, "n": n, "filler": filler})

    concurrently(work, 4)
    records = list(durable.read_jsonl(path))
    for thread in range(4):
        assert [r["n"] for r in records if r["thread"] == thread] == list(range(25))


APPENDER = """
from pathlib import Path
from workspace import durable
n = 0
while True:
    n += 1
    durable.append_jsonl(Path(sys.argv[1]), {"who": sys.argv[2], "n": n, "filler": "y" * 30000})
    print(n, flush=True)
"""


def test_kill_9_while_appending_beside_another_process(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    steady = Child(APPENDER, tmp_path / "steady", str(path), "steady")
    said: dict[str, int] = {}
    try:
        for name in ("killed-1", "killed-2", "killed-3", "killed-4", "killed-5"):
            child = Child(APPENDER, tmp_path / name, str(path), name)
            child.wait_for_first_line()
            time.sleep(random.uniform(0, 0.03))
            said[name] = child.kill()[-1]
        steady.wait_for_first_line()
    finally:
        said["steady"] = max([0, *steady.kill()])
    durable.append_jsonl(path, {"who": "last", "n": 1})
    records = [json.loads(line) for line in path.read_bytes().splitlines()]  # every line is whole
    assert records[-1] == {"who": "last", "n": 1}
    for name, last in said.items():
        numbers = [r["n"] for r in records if r["who"] == name]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) in (last, last + 1)
