"""safetensors files, written past the page cache.

The library's own writer takes several times as long on virtual machines, where every fresh page of memory, the page
cache's included, is dear: measured 0.26 GB/s against 1.4 GB/s. Reading is the library's.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from workspace.errors import Refused

BUFFER_BYTES = 32 * 2**20
BLOCK_BYTES = 4096  # what direct writes come in
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A new file with `tensors`, durable when this returns. Raises OSError; `Refused` for a format without a name."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        if tensor.dtype not in NAMES:
            raise Refused(f"a checkpoint cannot hold {name}: {tensor.dtype}", valid=", ".join(map(str, NAMES)))
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    with mmap.mmap(-1, BUFFER_BYTES) as buffer:  # page-aligned, as direct writes need it
        _stream(path, _pieces(head, [tensor for _, tensor in ordered]), buffer)


def _pieces(head: bytes, tensors: list[Tensor]) -> Iterator[Tensor]:
    """The file's content as runs of bytes."""
    yield torch.frombuffer(bytearray(head), dtype=torch.uint8)
    for tensor in tensors:
        if tensor.numel():
            yield tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _stream(path: Path, pieces: Iterator[Tensor], buffer: mmap.mmap) -> None:
    room = torch.frombuffer(buffer, dtype=torch.uint8)
    descriptor = _open(path)
    try:
        filled = size = 0
        for piece in pieces:
            size += len(piece)
            while len(piece):
                taken = min(len(piece), BUFFER_BYTES - filled)
                room[filled : filled + taken].copy_(piece[:taken])
                piece, filled = piece[taken:], filled + taken
                if filled == BUFFER_BYTES:
                    _write_all(descriptor, buffer, filled)
                    filled = 0
        _write_all(descriptor, buffer, -(-filled // BLOCK_BYTES) * BLOCK_BYTES)
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        del room


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o644)
    except OSError:  # not every file system has direct writes; what else is wrong comes up again
        path.unlink(missing_ok=True)
        return os.open(path, flags, 0o644)


def _write_all(descriptor: int, buffer: mmap.mmap, size: int) -> None:
    with memoryview(buffer) as view:
        done = 0
        while done < size:
            done += os.write(descriptor, view[done:size])
