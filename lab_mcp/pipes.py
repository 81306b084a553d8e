"""The bridge's standard input and output, without a thread: a hop into one and back costs more than a small call."""

from __future__ import annotations

import os
import select
from collections.abc import AsyncIterator

import anyio
import anyio.to_thread

CHUNK = 65536


async def lines(descriptor: int) -> AsyncIterator[bytes]:
    """Each line that comes in, without its end, until there are no more."""
    rest = b""
    while data := await _read(descriptor):
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield line
    if rest:
        yield rest


async def _read(descriptor: int) -> bytes:
    try:
        await anyio.wait_readable(descriptor)
    except PermissionError:  # a regular file cannot be waited for
        return await anyio.to_thread.run_sync(os.read, descriptor, CHUNK)
    try:
        return os.read(descriptor, CHUNK)
    except ConnectionError:  # a socket, as Node's pipes are: the other end died with something of ours unread
        return b""


async def write(descriptor: int, data: bytes) -> None:
    """Write all of it, and let others go on while the reader is slow.

    In parts of PIPE_BUF bytes: so much can be written at once wherever writing is possible at all.
    Raises ConnectionError when the reader has gone.
    """
    view = memoryview(data)
    while view:
        if not select.select([], [descriptor], [], 0)[1]:
            await anyio.wait_writable(descriptor)
        view = view[os.write(descriptor, view[: select.PIPE_BUF]) :]
