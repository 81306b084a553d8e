"""Messages between the service and the memory worker: JSON with its length before it, on pipes. Standard library only.

A request is `{"id", "call", "with": {...}}`; its answer `{"id", "answer"}` or `{"id", "error": {...}}`. Answers come
in any order.
"""

from __future__ import annotations

import json
import struct
from typing import IO, Any

from workspace import errors
from workspace.errors import LabError

LENGTH = struct.Struct(">I")
LARGEST = 64 << 20  # bytes of one message


def write(stream: IO[bytes], message: dict[str, Any]) -> None:
    """Write one message and flush. Raises OSError when the other side is gone, ValueError when it is too large."""
    data = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="replace")
    if len(data) > LARGEST:
        raise ValueError(f"a message of {len(data)} bytes is too large")
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def read(stream: IO[bytes]) -> dict[str, Any] | None:
    """The next message; None at the end of the stream, also when it ends in the middle of a message."""
    head = _exactly(stream, LENGTH.size)
    if head is None:
        return None
    (length,) = LENGTH.unpack(head)
    if length > LARGEST:
        raise ValueError(f"a message of {length} bytes is too large")
    data = _exactly(stream, length)
    if data is None:
        return None
    message: dict[str, Any] = json.loads(data)
    return message


def _exactly(stream: IO[bytes], count: int) -> bytes | None:
    parts = []
    while count:
        part = stream.read(count)
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def pack_error(error: BaseException) -> dict[str, str | None]:
    """An error as JSON. What is not a `LabError` is told by type and text, never with a traceback."""
    if isinstance(error, LabError):
        return {"type": type(error).__name__, "problem": error.problem, "valid": error.valid, "fix": error.fix}
    problem = f"memory could not answer ({type(error).__name__}: {str(error)[:200]})"
    return {"type": "Unavailable", "problem": problem, "valid": None, "fix": "see .lab/memory.log"}


def unpack_error(value: dict[str, str | None]) -> LabError:
    kind = getattr(errors, str(value.get("type")), LabError)
    made: LabError = kind(str(value.get("problem")), valid=value.get("valid"), fix=value.get("fix"))
    return made
