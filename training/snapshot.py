"""Checkpoints without waiting for the disk: training stands still for a copy in memory, a thread writes that.

The copy's memory is made once, before the clock starts: where memory is handed out page by page (virtual machines),
making it takes fifty times as long as filling it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from training import checkpoint
from training.checkpoint import Content


class Writer:
    """Writes checkpoints of one run, one after another. `stalled_s` is how long training has waited for it."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.stalled_s = 0.0
        self._folder, self._keep = folder, keep
        self._copies: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def reserve(self, content: Content) -> None:
        """Make the memory of a copy of `content`."""
        self._copied(content)

    def save(self, content: Content) -> None:
        """Copy and return; the file follows. Raises what the write before this one raised, e.g. OSError."""
        started = time.perf_counter()
        self.finish()
        copy = self._copied(content)
        self._thread = threading.Thread(target=self._write, args=(copy,), name="checkpoint")
        self._thread.start()
        self.stalled_s += time.perf_counter() - started

    def save_now(self, content: Content) -> None:
        """Write and wait, without a copy."""
        self.finish()
        checkpoint.write(self._folder, content, self._keep)

    def finish(self) -> None:
        """Wait until what was handed over is on disk. Raises what its writing raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, content: Content) -> None:
        try:
            checkpoint.write(self._folder, content, self._keep)
        except BaseException as error:  # noqa: BLE001  raised where the run can end by it
            self._error = error

    def _copied(self, content: Content) -> Content:
        """`content` with tensors of our own on the CPU; they are used again for the next."""
        with torch.no_grad():
            model = _fill(self._copies["model"], content.model)
            optimizer = _fill(self._copies["optimizer"], content.optimizer)
        return replace(content, model=model, optimizer=optimizer)


def _fill(copies: dict[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        held = copies.get(name)
        if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
            copies[name] = held = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        held.copy_(tensor)
    for gone in copies.keys() - tensors.keys():
        del copies[gone]
    return copies
