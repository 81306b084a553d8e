"""The recipe's model in a process of its own, seen from outside: tokens go in, logits come out, nothing else counts."""

from __future__ import annotations

import contextlib
import json
import mmap
import multiprocessing
import os
import signal
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.failure import Failure, Told
from workspace.interpreter import python_command

SLOTS = 2  # the child fills one while the other is scored
LOGITS_AT_ONCE = 2**23  # values of a slot, 32 MiB; more when a single row has more
VALUE_BYTES = 4

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """What one answer may hold: `rows` rows of `context` tokens, each with `vocab_size` logits."""

    rows: int
    context: int
    vocab_size: int

    @classmethod
    def fitting(cls, context: int, vocab_size: int, most: int | None = None) -> Shape:
        """At least two rows, however large; no more than `most` otherwise."""
        rows = LOGITS_AT_ONCE // (context * vocab_size)
        return cls(max(2, rows if most is None else min(rows, most)), context, vocab_size)

    @property
    def values(self) -> int:
        return self.rows * self.context * self.vocab_size


class ModelProcess:
    """A context manager: the child ends with it. Raises `Told` with the child's own failure."""

    def __init__(self, checkpoint: Path, recipe_dir: Path, dtype: str, shape: Shape) -> None:
        self.shape = shape
        self._ours, theirs = multiprocessing.Pipe()
        with theirs, _memory(SLOTS * shape.values * VALUE_BYTES) as memory:
            self._memory = mmap.mmap(memory, SLOTS * shape.values * VALUE_BYTES)
            arguments = [str(checkpoint), str(recipe_dir), dtype, str(theirs.fileno()), str(memory)]
            arguments += [str(number) for number in (shape.rows, shape.context, shape.vocab_size)]
            self._process = subprocess.Popen(
                python_command("training.sealed.child", *arguments),
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), memory],
            )
        slots = np.frombuffer(self._memory, dtype=np.float32).reshape(SLOTS, shape.values)
        self._slots: list[Logits] = list(slots)

    def __enter__(self) -> ModelProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ours.close()
        if kind is not None:
            self._process.kill()
        self._process.wait()
        self._slots.clear()
        with contextlib.suppress(BufferError):  # a caller still looks at an answer: it goes with that
            self._memory.close()

    def answers(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[Logits]:
        """For tokens (B, T) each: logits (B, T, V), valid until the next one is asked for."""
        waiting: deque[tuple[int, int]] = deque()
        for number, tokens in enumerate(batches):
            slot = number % SLOTS
            try:
                self._ours.send_bytes(json.dumps({"slot": slot, "rows": len(tokens)}).encode())
                self._ours.send_bytes(np.ascontiguousarray(tokens, dtype=np.int64).tobytes())
            except (BrokenPipeError, ConnectionResetError):
                while waiting:  # what it had said before it ended, its own failure above all
                    self._answer(*waiting.popleft())
                raise self._died() from None
            waiting.append((slot, len(tokens)))
            if len(waiting) == SLOTS:
                yield self._answer(*waiting.popleft())
        while waiting:
            yield self._answer(*waiting.popleft())

    def _answer(self, slot: int, rows: int) -> Logits:
        try:
            told: dict[str, Any] = json.loads(self._ours.recv_bytes())
        except (EOFError, ConnectionResetError):
            raise self._died() from None
        if "error" in told:
            raise Told(Failure(told["code"], "failed", told["class"], told["error"]))
        size = rows * self.shape.context * self.shape.vocab_size
        return self._slots[slot][:size].reshape(rows, self.shape.context, self.shape.vocab_size)

    def _died(self) -> Told:
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        kind = "signal" if code < 0 else "exit"
        return Told(Failure(1, "failed", kind, f"the model's process {how} while it was evaluated"))


@contextlib.contextmanager
def _memory(size: int) -> Iterator[int]:
    """A descriptor of `size` bytes of memory two processes can share."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("logits")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size)
        yield descriptor
    finally:
        os.close(descriptor)
