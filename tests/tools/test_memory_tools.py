"""What `rag_search` shows of a long answer: as much as fits, and where the rest begins."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rag.records import Hit, SearchPage
from tools.bounds import RESULT_CHARACTERS, size
from tools.memory import RagSearchArguments, rag_search
from tools.tool import Caller
from workspace.layout import Workspace
from workspace.settings import SearchSettings, Settings

pytestmark = pytest.mark.anyio


class LongMemory:
    """Twenty hits with everything as long as it can be."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def search(self, text: str, **given: Any) -> SearchPage:
        self.asked = given
        hits = [
            Hit(
                *(f"paper-{n}", "paper", "t" * 300, "ü" * 400, f"papers/{'f' * 200}.pdf", n, "s" * 300, "2024-05-01"),
                *(0.5, "words: " + "w" * 200, 0.5, ["tag"] * 5, [0, 1000], [f"paper-{m}" for m in range(200)]),
                cursor=f"after-{n}",
            )
            for n in range(20)
        ]
        return SearchPage(hits, "after-19", partial="p" * 400)


async def test_twenty_long_hits_fit_and_the_cursor_is_that_of_the_last_one_shown(tmp_path: Path) -> None:
    memory = LongMemory()
    arguments = RagSearchArguments(query="x", limit=20, where=["val_bpb<1"], variants=["y"])
    lab: Any = SimpleNamespace(memory=memory, workspace=Workspace(tmp_path), settings=Settings())
    answer = await rag_search(lab, arguments, Caller("test"))
    assert size(answer) <= RESULT_CHARACTERS
    assert 0 < len(answer.hits) < 20
    assert answer.next_cursor == f"after-{len(answer.hits) - 1}"
    assert (memory.asked["where"], memory.asked["variants"], memory.asked["limit"]) == (["val_bpb<1"], ["y"], 20)


async def test_a_web_search_that_cannot_be_made_hides_nothing_of_the_labs_own(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    settings = Settings(search=SearchSettings(provider="searxng", url=url))
    lab: Any = SimpleNamespace(memory=LongMemory(), workspace=Workspace(tmp_path), settings=settings)
    answer = await rag_search(lab, RagSearchArguments(query="x", web=True), Caller("test"))
    assert answer.hits and answer.web == [] and "the web was not searched: " in (answer.partial or "")
