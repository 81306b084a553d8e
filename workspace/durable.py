"""Files that survive a kill or a power loss at any moment. Standard library only.

A durable write is: temporary file in the same folder, fsync, os.replace, fsync of the folder.
A JSON-lines file is appended to line by line; a reader ignores a torn last line, a writer repairs it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace the content of `path` atomically and durably. Raises OSError (e.g. ENOSPC); `path` is then unchanged."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    write_bytes(path, text.encode("utf-8"), mode=mode)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    write_bytes(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode("utf-8"), mode=mode)


def open_regular(path: Path) -> BinaryIO:
    """A file to be read that somebody else wrote. Raises OSError for what is none: a FIFO would be waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_json(path: Path) -> Any | None:
    """The JSON value in `path`, or None when the file does not exist.

    Raises ValueError naming the file when it is not JSON: a durable writer never leaves such a file.
    """
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8")
    except FileNotFoundError:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path.name} is not valid JSON ({error})") from error


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def repair_tail(path: Path) -> int:
    """Cut a torn last line (one without its newline) off a JSON-lines file; returns the bytes cut."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a line that somebody is just appending looks torn, too
        return _cut_torn_line(file.fileno())
    return 0


def _cut_torn_line(descriptor: int) -> int:
    size = os.fstat(descriptor).st_size
    position = size
    while position > 0:
        step = min(65536, position)
        newline = os.pread(descriptor, step, position - step).rfind(b"\n")
        if newline >= 0:
            position = position - step + newline + 1
            break
        position -= step
    if position < size:
        os.ftruncate(descriptor, position)
        os.fsync(descriptor)
    return size - position


def append_jsonl(path: Path, record: Any, *, sync: bool = False) -> None:
    """Append one record as one line with one write call; with `sync`, fsync before returning.

    A torn line left by a killed writer is repaired first, so two records can never run together. Threads and processes
    may append to the same file. Raises OSError (e.g. ENOSPC); no part of the record is then in the file.
    """
    line = (json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n").encode("utf-8")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            size -= _cut_torn_line(descriptor)
        written = os.write(descriptor, line)
        if written != len(line):  # the disk filled up in the middle of the line
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_jsonl(path: Path) -> Iterator[Any]:
    """The records of a JSON-lines file in order; a torn last line is skipped, a missing file is empty.

    Raises ValueError for a complete line that is not JSON.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return
    with file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path.name} line {number} is not valid JSON ({error})") from error
