"""Asking a public server as its owners wish: slowly, one process of the workspace at a time, answers kept."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator

from workspace import durable
from workspace.layout import Workspace

LOOK_S = 0.05  # between looks at a lock another process holds


class Polite:
    """Calls to one server: at least `interval_s` seconds between any two, across all processes of the workspace."""

    def __init__(self, workspace: Workspace, name: str, interval_s: float, keep_s: float) -> None:
        self.interval_s = interval_s
        self.keep_s = keep_s  # an answer is used again for so long
        self._lock = workspace.locks_dir / f"{name}.lock"
        self._folder = workspace.cache_dir / name

    @contextlib.contextmanager
    def turn(self) -> Iterator[Callable[[], None]]:
        """The only one to call while the block runs; `wait()` is to be called ahead of each call."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            called = False

            def wait() -> None:
                nonlocal called
                found = os.fstat(descriptor)
                last = found.st_mtime if found.st_size else 0.0
                left = last + self.interval_s - time.time()
                time.sleep(min(max(left, 0.0), self.interval_s))  # a clock that was set back costs one interval
                called = True
                os.pwrite(descriptor, b"called", 0)
                os.utime(descriptor)

            try:
                yield wait
            finally:
                if called:
                    os.utime(descriptor)  # the distance counts from the end of a call
        finally:
            os.close(descriptor)

    def cached(self, question: str, fetch: Callable[[], bytes]) -> bytes:
        """The answer to `question`, fetched anew when none is kept or the one kept is too old."""
        file = self._folder / hashlib.sha256(question.encode()).hexdigest()[:32]
        with contextlib.suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime < self.keep_s:
                return file.read_bytes()
        answer = fetch()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._forget_old()
        durable.write_bytes(file, answer)
        return answer

    def _forget_old(self) -> None:
        for file in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > self.keep_s:
                    file.unlink()
