"""The outbox: told exactly when committed, in order, again when it failed, and never lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from workspace import outbox as module
from workspace.database import Database
from workspace.errors import Unavailable
from workspace.outbox import MAX_ATTEMPTS, Message, Outbox


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "lab.db")
    yield opened
    opened.close()


@pytest.fixture
def outbox(database: Database) -> Outbox:
    return Outbox(database)


def post(outbox: Outbox, topic: str, **payload: object) -> int:
    with outbox.database.transaction() as tx:
        return outbox.post(tx, topic, payload)


class Handler:
    """Remembers what it was given; fails for payloads named in `failing`."""

    def __init__(self, *failing: object) -> None:
        self.seen: list[object] = []
        self.failing = set(failing)

    def __call__(self, message: Message) -> None:
        self.seen.append(message.payload.get("run"))
        if message.payload.get("run") in self.failing:
            raise RuntimeError("the index is not there")


def test_messages_are_handled_once_and_in_order(outbox: Outbox) -> None:
    handler = Handler()
    for n in range(5):
        post(outbox, "run.ended", run=n)
    assert outbox.pending() == 5
    assert outbox.drain({"run.ended": handler}) == 5 and outbox.drain({"run.ended": handler}) == 0
    assert handler.seen == [0, 1, 2, 3, 4] and outbox.pending() == 0


def test_a_message_of_a_rolled_back_change_is_never_told(outbox: Outbox) -> None:
    with pytest.raises(RuntimeError), outbox.database.transaction() as tx:
        outbox.post(tx, "run.ended", {"run": 1})
        raise RuntimeError
    assert outbox.pending() == 0


def test_a_message_is_not_told_before_its_commit(outbox: Outbox) -> None:
    handler = Handler()
    with outbox.database.transaction() as tx:
        outbox.post(tx, "run.ended", {"run": 1})
        other = threading.Thread(target=outbox.drain, args=({"run.ended": handler},))
        other.start()
        other.join(20)
        assert handler.seen == []
    assert outbox.drain({"run.ended": handler}) == 1


def test_a_failure_holds_up_its_own_topic_only_and_keeps_the_order(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.0)
    ended, note = Handler("b"), Handler()
    for run in "abc":
        post(outbox, "run.ended", run=run)
        post(outbox, "note.written", run=run)
    outbox.drain({"run.ended": ended, "note.written": note})
    assert ended.seen == ["a", "b"] and note.seen == ["a", "b", "c"]
    ended.failing.clear()
    outbox.drain({"run.ended": ended, "note.written": note})
    assert ended.seen == ["a", "b", "b", "c"] and outbox.pending() == 0


def test_a_failed_message_waits_before_it_is_tried_again(outbox: Outbox) -> None:
    handler = Handler("a")
    post(outbox, "run.ended", run="a")
    for _ in range(20):
        outbox.drain({"run.ended": handler})
    assert handler.seen == ["a"] and outbox.pending() == 1  # twenty ticks at once are one attempt


def test_a_message_that_never_works_is_set_aside_and_the_rest_goes_on(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.0)
    handler = Handler("bad")
    post(outbox, "run.ended", run="bad")
    post(outbox, "run.ended", run="good")
    for _ in range(MAX_ATTEMPTS + 2):
        outbox.drain({"run.ended": handler})
    assert handler.seen == ["bad"] * MAX_ATTEMPTS + ["good"]
    assert [m.payload for m in outbox.failed()] == [{"run": "bad"}] and outbox.pending() == 0
    row = outbox.database.one("SELECT error FROM outbox WHERE done_at IS NULL")
    assert row is not None and row["error"] == "RuntimeError: the index is not there"
    again = Outbox(outbox.database)  # a new start of the service gives it another chance
    handler.failing.clear()
    assert again.drain({"run.ended": handler}) == 1 and again.failed() == []


def test_what_is_merely_away_is_tried_for_ever(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.0)
    away = True

    def handler(message: Message) -> None:
        if away:
            raise Unavailable("the index is being rebuilt")

    post(outbox, "run.ended", run=1)
    for _ in range(3 * MAX_ATTEMPTS):
        outbox.drain({"run.ended": handler})
    assert outbox.pending() == 1 and outbox.failed() == []
    away = False
    assert outbox.drain({"run.ended": handler}) == 1


def test_a_kill_between_handling_and_ticking_off_tells_it_twice(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least once: handlers make the second time harmless by the message's id."""
    ids: list[int] = []
    post(outbox, "run.ended", run=1)

    class Killed(BaseException):
        pass

    def handle(message: Message) -> None:
        ids.append(message.id)
        if len(ids) == 1:
            raise Killed

    with pytest.raises(Killed):
        outbox.drain({"run.ended": handle})
    Outbox(outbox.database).drain({"run.ended": handle})
    assert len(ids) == 2 and ids[0] == ids[1]


def test_no_more_than_the_limit_at_once(outbox: Outbox) -> None:
    handler = Handler()
    for n in range(5):
        post(outbox, "run.ended", run=n)
    assert [outbox.drain({"run.ended": handler}, limit=2) for _ in range(4)] == [2, 2, 1, 0]


def test_a_topic_without_a_handler_waits(outbox: Outbox) -> None:
    post(outbox, "campaign.ended", run=1)
    assert outbox.drain({"run.ended": Handler()}) == 0 and outbox.pending() == 1
    assert outbox.drain({"campaign.ended": Handler()}) == 1
