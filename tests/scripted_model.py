"""A model that plays a script, for tests with a real MCP client: the Messages API on loopback, standard library only.

The client talks to it as to any model, so its log is what a model would have been shown. A script is a list of turns
(or a function of the transcript so far that gives the next one); a turn is words, which end the conversation, or calls.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SERVER = "mcp__lab__"


@dataclass(frozen=True)
class Call:
    """One use of a tool; `tool` as the client names it."""

    tool: str
    input: dict[str, Any]


def call(tool: str, **arguments: Any) -> Call:
    """A call of one of the lab's tools."""
    return Call(SERVER + tool, arguments)


@dataclass(frozen=True)
class Result:
    """What the model was given for one of its calls."""

    tool: str  # without the server's prefix
    input: dict[str, Any]
    text: str
    is_error: bool

    @property
    def content(self) -> dict[str, Any]:
        """The structured content. Fails the test when the model was given anything else."""
        assert not self.is_error, self.text
        value = json.loads(self.text)
        assert isinstance(value, dict)
        return value


Turn = str | Call | Sequence[Call]
Script = Sequence[Turn | Callable[[list[Result]], Turn]] | Callable[[list[Result]], Turn]


def results_in(messages: list[dict[str, Any]]) -> list[Result]:
    """Every tool result in a conversation, oldest first."""
    calls: dict[str, dict[str, Any]] = {}
    found = []
    for block in itertools.chain.from_iterable(m["content"] for m in messages if isinstance(m["content"], list)):
        if block["type"] == "tool_use":
            calls[block["id"]] = block
        elif block["type"] == "tool_result":
            use, content = calls[block["tool_use_id"]], block.get("content") or ""
            text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
            name = str(use["name"]).removeprefix(SERVER)
            found.append(Result(name, use["input"], text, bool(block.get("is_error"))))
    return found


def turns_taken(messages: list[dict[str, Any]]) -> int:
    """How often the model has called tools so far: a request that is sent again gets the same turn again."""
    return sum(
        any(block["type"] == "tool_use" for block in message["content"])
        for message in messages
        if message["role"] == "assistant" and isinstance(message["content"], list)
    )


@dataclass
class ScriptedModel:
    """`with ScriptedModel(script) as model:`; `url` is what the client is told, `requests` what it sent."""

    script: Script
    requests: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # monotonic seconds at which each of them came
    failure: Exception | None = None
    url: str = ""

    def __enter__(self) -> ScriptedModel:
        self._turns: dict[int, Turn] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def results(self) -> list[Result]:
        """What the model was given for its calls, all of them, in order."""
        return results_in(self.requests[-1]["messages"]) if self.requests else []

    def reply(self, body: dict[str, Any]) -> Turn:
        """The model's next turn. A request without tools is the client's own (a title, say) and no part of it."""
        if not body.get("tools"):
            return "ok"
        messages = body["messages"]
        with self._lock:
            number = turns_taken(messages)
            self.requests.append(body)
            self.times.append(time.monotonic())
            if number not in self._turns:
                try:
                    self._turns[number] = self._next(number, results_in(messages))
                except Exception as error:  # noqa: BLE001, for the test to raise: a thread of the server would hide it
                    self.failure = self.failure or error
                    self._turns[number] = f"the script failed: {error!r}"
            return self._turns[number]

    def _next(self, number: int, results: list[Result]) -> Turn:
        if callable(self.script):
            return self.script(results)
        turn = self.script[number] if number < len(self.script) else "done"
        return turn(results) if callable(turn) else turn


def _blocks(turn: Turn) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(empty block, the delta that fills it) for each block of a turn."""
    if isinstance(turn, str):
        yield {"type": "text", "text": ""}, {"type": "text_delta", "text": turn}
        return
    for use in [turn] if isinstance(turn, Call) else turn:
        block = {"type": "tool_use", "id": f"toolu_{next(_numbers):024d}", "name": use.tool, "input": {}}
        yield block, {"type": "input_json_delta", "partial_json": json.dumps(use.input)}


_numbers = itertools.count(1)


def _events(turn: Turn, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A turn as the stream of events of the Messages API."""
    usage = {"input_tokens": 1, "output_tokens": 1, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    message = {"id": f"msg_{next(_numbers):024d}", "type": "message", "role": "assistant", "content": []}
    message |= {"model": body.get("model", "scripted"), "stop_reason": None, "stop_sequence": None, "usage": usage}
    yield {"type": "message_start", "message": message}
    for index, (block, delta) in enumerate(_blocks(turn)):
        yield {"type": "content_block_start", "index": index, "content_block": block}
        yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stop = {"stop_reason": "end_turn" if isinstance(turn, str) else "tool_use", "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 1}}
    yield {"type": "message_stop"}


def _whole(turn: Turn, body: dict[str, Any]) -> dict[str, Any]:
    """A turn as one message, for a request that does not stream."""
    events = list(_events(turn, body))
    content = []
    for block, delta in _blocks(turn):
        filled = {"text": delta["text"]} if block["type"] == "text" else {"input": json.loads(delta["partial_json"])}
        content.append(block | filled)
    return events[0]["message"] | {"content": content} | events[-2]["delta"]


def _handler(model: ScriptedModel) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer({})

        def do_GET(self) -> None:
            self._answer({"data": [], "has_more": False})

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            path = self.path.partition("?")[0]
            with contextlib.suppress(ConnectionError):  # a client that was killed takes no answer
                if path == "/v1/messages/count_tokens":
                    self._answer({"input_tokens": len(raw) // 4})
                elif path == "/v1/messages":
                    body = json.loads(raw)
                    turn = model.reply(body)
                    self._stream(turn, body) if body.get("stream") else self._answer(_whole(turn, body))
                else:
                    self._answer({})

        def _answer(self, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self._head("application/json", len(data))
            if self.command != "HEAD":
                self.wfile.write(data)

        def _stream(self, turn: Turn, body: dict[str, Any]) -> None:
            self._head("text/event-stream")
            for event in _events(turn, body):
                self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())

        def _head(self, kind: str, length: int | None = None) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            if length is not None:
                self.send_header("content-length", str(length))
            self.end_headers()

    return Handler
