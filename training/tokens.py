"""A file of token ids that describes itself: magic, version, width, count. Read through a memory map."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.corpus import DataProblem

MAGIC = b"LABTOKEN"
VERSION = 1
HEADER = struct.Struct("<8sIIQ")  # magic, version, bytes per id (2 or 4), count


def write(path: Path, ids: NDArray[np.integer], vocab_size: int) -> None:
    """Write ids (N,) to a new file; 2 bytes an id where the vocabulary allows."""
    kind = np.uint16 if vocab_size <= 2**16 else np.uint32
    with path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, np.dtype(kind).itemsize, len(ids)))
        file.write(np.ascontiguousarray(ids, dtype=kind).tobytes())


def read(path: Path) -> NDArray[np.integer]:
    """The ids (N,) as a read-only memory map. Raises `DataProblem` for a foreign, older or truncated file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if len(head) < HEADER.size or head[:8] != MAGIC:
        raise DataProblem(f"{path.name} is not a token file", fix="delete .lab/cache/data and start again")
    _, version, width, count = HEADER.unpack(head)
    if version != VERSION or width not in (2, 4):
        raise DataProblem(f"{path.name} has version {version}", fix="delete .lab/cache/data and start again")
    if size != HEADER.size + width * count:
        raise DataProblem(
            f"{path.name} is truncated: {size} bytes of {HEADER.size + width * count}",
            fix="delete .lab/cache/data and start again",
        )
    if count == 0:
        return np.empty(0, dtype=np.uint16)
    return np.memmap(path, dtype=np.uint16 if width == 2 else np.uint32, mode="r", offset=HEADER.size, shape=(count,))


def from_bytes(content: bytes) -> NDArray[np.integer]:
    """The ids (N,) of the content of a token file."""
    _, _, width, count = HEADER.unpack(content[: HEADER.size])
    return np.frombuffer(content, dtype=np.uint16 if width == 2 else np.uint32, offset=HEADER.size, count=count)
