"""The process that runs a recipe's model for an evaluation: it is given tokens and returns logits, no more.

    python -P -s -m training.sealed.child CHECKPOINT RECIPE_DIR DTYPE PIPE_FD MEMORY_FD ROWS CONTEXT VOCABULARY

A request is {"slot", "rows"} and the tokens (rows, context) as int64; the logits go to that slot of the shared memory
as float32, and {} comes back. A failure is {"code", "class", "error"}.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.sealed.model_process import SLOTS, VALUE_BYTES, Shape

if TYPE_CHECKING:
    from torch import nn

    from training.checkpoint import Checkpoint
    from training.hardware.backend import Backend


def main(arguments: list[str]) -> int:
    checkpoint, recipe_dir, dtype, pipe, memory, *numbers = arguments
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see training.worker; before torch is imported
    shape = Shape(*map(int, numbers))
    connection: Connection[Any, Any] = Connection(int(pipe))
    shared = mmap.mmap(int(memory), SLOTS * shape.values * VALUE_BYTES)
    os.close(int(memory))
    from training.failure import classify

    try:
        _serve(Path(checkpoint), Path(recipe_dir), dtype, shape, connection, shared)
    except (Exception, SystemExit) as error:  # noqa: BLE001  foreign code: it may raise anything, and the asker must know
        failure = classify(error, None)
        told = {"code": failure.code, "class": failure.kind, "error": failure.text}
        connection.send_bytes(json.dumps(told).encode())
        return failure.code
    return 0


def _serve(
    folder: Path, recipe_dir: Path, dtype: str, shape: Shape, connection: Connection[Any, Any], shared: mmap.mmap
) -> None:
    from training.checkpoint import open_checkpoint
    from training.hardware.backend import choose
    from training.recipe_code import builders
    from training.sealed import vault

    backend = choose()
    checkpoint = open_checkpoint(folder)
    with vault.forbidden():
        _answer(checkpoint, builders(recipe_dir).model(checkpoint.config), backend, dtype, shape, connection, shared)


def _answer(
    checkpoint: Checkpoint,
    model: nn.Module,
    backend: Backend,
    dtype: str,
    shape: Shape,
    connection: Connection[Any, Any],
    shared: mmap.mmap,
) -> None:
    import numpy as np
    import torch

    checkpoint.load_model(model)
    model.to(backend.device).eval()
    slots = torch.frombuffer(shared, dtype=torch.float32).view(SLOTS, shape.values)
    autocast = torch.autocast(backend.device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")
    while True:
        try:
            request = json.loads(connection.recv_bytes())
            raw = connection.recv_bytes()
        except EOFError:
            return
        size = (request["rows"], shape.context)
        tokens = torch.from_numpy(np.frombuffer(raw, dtype=np.int64).reshape(size).copy()).to(backend.device)
        with torch.no_grad(), autocast:
            logits = model(tokens)
        _check(logits, (*size, shape.vocab_size))
        slots[request["slot"], : logits.numel()].copy_(logits.flatten())
        connection.send_bytes(b"{}")


def _check(logits: Any, expected: tuple[int, ...]) -> None:
    import torch

    from training.failure import RecipeProblem

    found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if found != expected:
        raise RecipeProblem(
            f"the model returned {found} for tokens {expected[:2]}", valid=f"logits of shape {expected}"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
