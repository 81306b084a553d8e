"""Text that training processes are not handed: kept under a key stream, so that who opens the file finds noise.

This keeps an over-eager script honest, not a thief out: key and file belong to the same user.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from training.corpus import DataProblem
from workspace import durable

FOLDER = "held-back"  # below the workspace's cache
KEY = "key"
PIECE = 16 * 2**20  # bytes of key stream made at once


def store(cache_dir: Path, name: str, data: bytes) -> None:
    """Keep `data` as `name`, durably; an older one of that name is replaced."""
    folder = cache_dir / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    sealed = hashlib.sha256(data).digest() + _turned(data, _key(folder), name)
    durable.write_bytes(folder / f"{name}.sealed", sealed, mode=0o600)


def take(cache_dir: Path, name: str) -> bytes:
    """What was stored as `name`. Raises `DataProblem` when it is not there or not whole."""
    folder = cache_dir / FOLDER
    try:
        sealed = (folder / f"{name}.sealed").read_bytes()
    except FileNotFoundError as error:
        raise DataProblem("the held-back text is gone", fix="run the recipe again: that prepares it anew") from error
    data = _turned(sealed[32:], _key(folder), name)
    if hashlib.sha256(data).digest() != sealed[:32]:
        raise DataProblem(
            "the held-back text is damaged",
            fix=f"delete .lab/cache/{FOLDER} and run the recipe again: that prepares it anew",
        )
    return data


def holds(cache_dir: Path, name: str) -> bool:
    """Whether something was stored as `name`, whole or not."""
    return (cache_dir / FOLDER / f"{name}.sealed").is_file()


_attempts: list[str] | None = None  # while opening is forbidden: the paths that were tried


@contextlib.contextmanager
def forbidden() -> Iterator[list[str]]:
    """Meanwhile this process cannot open anything held back; gives the list that attempts are added to."""
    global _attempts
    _watch_once()
    before, _attempts = _attempts, []
    try:
        yield _attempts
    finally:
        _attempts = before


@cache
def _watch_once() -> None:
    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if _attempts is None or event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = os.fsdecode(arguments[0])
        if FOLDER in Path(path).parts:
            _attempts.append(path)
            raise PermissionError("text that is held back from training cannot be opened by it")

    sys.addaudithook(watch)  # for the life of the process: Python has no way of taking one back


def _key(folder: Path) -> bytes:
    file = folder / KEY
    if not file.exists():
        mine = folder / f".{KEY}-{secrets.token_hex(8)}"
        durable.write_bytes(mine, secrets.token_bytes(32), mode=0o600)
        try:
            os.link(mine, file)  # unlike a rename it leaves the key of another process that was first
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not file.exists():
                mine.rename(file)
        finally:
            mine.unlink(missing_ok=True)
        durable.sync_folder(folder)
    return file.read_bytes()


def _turned(data: bytes, key: bytes, name: str) -> bytes:
    """`data` under the key stream of `name`; twice is `data` again."""
    pieces = []
    for number, start in enumerate(range(0, len(data), PIECE)):
        piece = np.frombuffer(data[start : start + PIECE], dtype=np.uint8)
        stream = hashlib.shake_256(key + f"{name}/{number}".encode()).digest(len(piece))
        pieces.append((piece ^ np.frombuffer(stream, dtype=np.uint8)).tobytes())
    return b"".join(pieces)
