"""What the bridge stands on: kept connections, pipes without threads, questions that are told apart."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from lab_mcp import pipes
from lab_mcp.channel import Broken, Channel
from lab_mcp.questions import Questions

pytestmark = pytest.mark.anyio
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Server:
    """Answers each request on a loopback port with the next of `answers`; b"" closes the connection instead."""

    def __init__(self, answers: list[bytes | list[bytes]]) -> None:
        self.answers = answers
        self.connections = 0
        self.closed = anyio.Event()  # a connection was closed by us
        self.channel = Channel(0)

    async def serve(self, stream: SocketStream) -> None:
        self.connections += 1
        async with stream:
            received = b""
            while True:
                try:
                    received += await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return
                while b"\r\n\r\n" in received:
                    head, _, received = received.partition(b"\r\n\r\n")
                    received = received[int(head.lower().split(b"content-length: ")[1].split(b"\r")[0]) :]
                    answer = self.answers.pop(0)
                    for part in [answer] if isinstance(answer, bytes) else answer:
                        if not part:
                            await stream.aclose()
                            self.closed.set()
                            return
                        await stream.send(part)


@asynccontextmanager
async def serving(*answers: bytes | list[bytes]) -> AsyncIterator[Server]:
    server = Server(list(answers))
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, server.serve)
        server.channel = Channel(listener.extra(anyio.abc.SocketAttribute.local_port))
        with anyio.fail_after(30):
            yield server
        await server.channel.close()
        group.cancel_scope.cancel()


async def ask(channel: Channel) -> bytes:
    return (await channel.post_json("/mcp", {}, {"a": 1}))[1]


async def test_one_after_the_other_goes_over_one_connection_and_at_once_over_several() -> None:
    async with serving(*[OK] * 6) as server:
        for _ in range(3):
            assert await ask(server.channel) == b"{}"
        assert server.connections == 1
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask, server.channel)
        assert server.connections == 3


async def test_a_kept_connection_that_was_closed_meanwhile_is_not_used_again() -> None:
    async with serving([OK, b""], OK) as server:
        await ask(server.channel)
        await server.closed.wait()
        await anyio.sleep(0.05)
        assert await ask(server.channel) == b"{}"
        assert server.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        [b""],
        [OK[:20], b""],
        [OK[:-1], b""],
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", b""],
        [b"what is this?\r\n\r\n"],
    ],
)
async def test_an_answer_that_breaks_off_is_no_answer(answer: list[bytes]) -> None:
    async with serving(answer, OK) as server:
        with pytest.raises(Broken):
            await ask(server.channel)
        assert await ask(server.channel) == b"{}"


async def test_connections_that_are_not_needed_are_closed() -> None:
    async with serving([OK, b""], [OK, b""], OK, OK, OK) as server:
        channel = server.channel
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask, channel)
        while sum(connection.alive() for connection in channel._idle) > 1:
            await anyio.sleep(0)
        await ask(channel)
        assert len(channel._idle) == 1, "what the service closed is not kept below those that are used"
        async with channel.request("POST", "/", {}) as answer:
            await channel.close()
            assert await answer.body() == b"{}"
        assert channel._idle == []


async def test_a_request_is_sent_again_when_a_kept_connection_broke_before_any_answer() -> None:
    async with serving(OK, [b""], OK, [OK[:20], b""], OK) as server:
        await ask(server.channel)
        assert await ask(server.channel) == b"{}"
        assert (server.connections, len(server.answers)) == (2, 2)
        with pytest.raises(Broken):  # part of an answer came: it may be half done
            await ask(server.channel)
        assert (server.connections, len(server.answers)) == (2, 1)


async def test_nobody_there_is_told() -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
    with pytest.raises(Broken, match=str(port)):
        await ask(Channel(port))


async def test_events_come_as_they_are_sent_however_they_are_cut() -> None:
    text = ': ping\r\n\r\nevent: message\r\ndata: {"a": "ü"}\r\n\r\ndata:1\ndata: 2\n\ndata: unfinished'.encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    for size in (1, 7, len(text)):
        chunks = [text[start : start + size] for start in range(0, len(text), size)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        async with serving(head + body) as server, server.channel.request("POST", "/", {}) as answer:
            assert answer.streams
            assert [data async for data in answer.events()] == ['{"a": "ü"}'.encode(), b"1\n2"]


async def test_a_stream_that_was_left_is_closed_not_kept() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    async with serving([head + b"9\r\ndata: 1\n\n\r\n"], OK) as server:
        async with server.channel.request("POST", "/", {}) as answer:
            async for _ in answer.events():
                break
        assert await ask(server.channel) == b"{}"
        assert server.connections == 2


async def test_lines_come_from_a_pipe_and_from_a_file(tmp_path: Path) -> None:
    text = b"one\n\n" + b"2" * 200_000 + b"\nlast"
    (tmp_path / "lines").write_bytes(text)
    with (tmp_path / "lines").open("rb") as file:
        assert [line async for line in pipes.lines(file.fileno())] == text.split(b"\n")
    reading, writing = os.pipe()
    found: list[bytes] = []

    async def read() -> None:
        found.extend([line async for line in pipes.lines(reading)])

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await pipes.write(writing, text)
        os.close(writing)
    os.close(reading)
    assert found == text.split(b"\n")


async def test_a_reader_or_writer_that_died_is_an_end_on_sockets_too() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.send(b"one\n")
        ours.send(b"never read")
        theirs.close()  # from now on reading fails, once the kernel has said so
        assert [line async for line in pipes.lines(ours.fileno())] in ([b"one"], [])
        with pytest.raises(ConnectionError):
            await pipes.write(ours.fileno(), b"x")


async def test_a_slow_reader_holds_up_nothing_else() -> None:
    reading, writing = os.pipe()
    with anyio.move_on_after(0.2) as waiting:  # far more than a pipe holds, and nobody reads
        await pipes.write(writing, b"x" * 1_000_000)
    assert waiting.cancelled_caught
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        await pipes.write(writing, b"x")
    os.close(writing)


def test_the_same_number_asked_by_two_services_is_two_questions() -> None:
    questions = Questions()
    ask = {"jsonrpc": "2.0", "id": 0, "method": "elicitation/create", "params": {}}
    first = questions.asked(ask, 1)
    assert questions.withdrawn(1) == []
    withdrawn = questions.withdrawn(2)
    assert [message["params"]["requestId"] for message in withdrawn] == [first["id"]]
    second = questions.asked(ask, 2)
    assert second["id"] != first["id"]
    reply = {"jsonrpc": "2.0", "result": {"action": "accept"}}
    assert questions.answered({**reply, "id": first["id"]}, 2) is None
    for _ in range(2):  # until it has arrived
        assert questions.answered({**reply, "id": second["id"]}, 2) == {**reply, "id": 0}
    questions.settled({**reply, "id": second["id"]})
    assert questions.answered({**reply, "id": second["id"]}, 2) is None, "once"


def test_a_question_that_the_service_withdraws_has_its_name_and_all_else_is_left_as_it_is() -> None:
    questions = Questions()
    shown = questions.asked({"jsonrpc": "2.0", "id": 7, "method": "elicitation/create"}, 3)
    withdrawal = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
    assert questions.asked(withdrawal, 3)["params"]["requestId"] == shown["id"]
    assert questions.withdrawn(4) == []
    for other in ({"jsonrpc": "2.0", "id": 7, "result": {}}, {"jsonrpc": "2.0", "method": "notifications/progress"}):
        assert questions.asked(other, 3) is other
