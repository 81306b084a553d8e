"""JSON-RPC messages as the bridge sees them: what may pass, what a header may hold, refusals."""

from __future__ import annotations

from typing import Any

PROTOCOL_VERSION_META = "io.modelcontextprotocol/protocolVersion"
CANCELLED = "notifications/cancelled"
PARSE_ERROR, INVALID_REQUEST, INTERNAL_ERROR = -32700, -32600, -32603

Message = dict[str, Any]


def well_formed(message: Any) -> bool:
    """Is it an object whose parts have the types that are relied on here?"""
    if not isinstance(message, dict) or not plain(message.get("method", "")):
        return False
    parameters = message.get("params") or {}
    meta = parameters.get("_meta") or {} if isinstance(parameters, dict) else None
    if not isinstance(meta, dict) or not plain(meta.get(PROTOCOL_VERSION_META, "")):
        return False
    taken_back = parameters.get("requestId") if message.get("method") == CANCELLED else None
    return isinstance(message.get("id"), str | int | None) and isinstance(taken_back, str | int | None)


def malformed(message: Any) -> Message:
    """The answer to what is not well formed: to its own id, where it has one."""
    request_id = message.get("id") if isinstance(message, dict) else None
    known = request_id if isinstance(request_id, str | int) else None
    return error(known, "one JSON-RPC message a line, please", code=INVALID_REQUEST)


def plain(text: Any) -> bool:
    """Can it be the value of a header as it stands?"""
    return isinstance(text, str) and text.isascii() and text == text.strip() and (not text or text.isprintable())


def modern(message: Message) -> str | None:
    """The protocol version a message of the newer era carries."""
    version: str | None = ((message.get("params") or {}).get("_meta") or {}).get(PROTOCOL_VERSION_META)
    return version


def header_value(name: str) -> str:
    if plain(name):
        return name
    from mcp.shared.inbound import encode_header_value

    return encode_header_value(name)


def answers(incoming: Message, request_id: Any) -> bool:
    return incoming.get("id") == request_id and ("result" in incoming or "error" in incoming)


def error(request_id: Any, text: str, *, code: int = INTERNAL_ERROR) -> Message:
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": text}}


def refusal(message: Message, text: str) -> Message:
    """A tool call is refused as a tool's error, which the model can read; anything else as a protocol error."""
    if message["method"] != "tools/call":
        return error(message["id"], text)
    result = {"content": [{"type": "text", "text": text}], "isError": True, "resultType": "complete"}
    return {"jsonrpc": "2.0", "id": message["id"], "result": result}
