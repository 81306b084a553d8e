"""Papers, answers and notes through the real service and the real command line; the world outside is on loopback."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pdf_files
from loopback import Answer, Asked, Loopback

from lab_mcp import connection
from workspace.layout import Workspace

Command = Callable[..., subprocess.CompletedProcess[str]]
FEED = """<?xml version="1.0" encoding="UTF-8"?>
<feed xmlns="http://www.w3.org/2005/Atom"><entry><id>http://arxiv.org/abs/2001.00001v1</id>
<published>2020-01-01T00:00:00Z</published><title>Capybaras in Warm Springs</title>
<summary>Capybaras bathe in warm springs through the winter.</summary>
<author><name>Ann Smith</name></author></entry></feed>"""


def unwrapped(answer: subprocess.CompletedProcess[str]) -> str:
    """What a command printed, without the line breaks of a narrow terminal."""
    return " ".join(answer.stdout.split())


def outside(asked: Asked) -> Answer:
    """arXiv, SearXNG and a language model in one."""
    if asked.path.startswith("/pdf/"):
        text = [("1 Bathing", ["Capybaras bathe for four hours each day in winter."])]
        return Answer(pdf_files.article("Capybaras in Warm Springs", "Ann Smith", text))
    if asked.path == "/search":
        return Answer({"results": [{"title": "Hot springs", "url": "https://springs.example", "content": "Rodents."}]})
    if asked.path == "/v1/chat/completions":
        text = asked.json()["messages"][1]["content"]
        said = "Four hours [paper-2001.00001]." if "four hours" in text else "Nobody knows [paper-made-up]."
        return Answer({"choices": [{"message": {"content": said}}]})
    return Answer(FEED)


def test_from_arxiv_to_a_cited_answer(lab: Workspace, command: Command) -> None:
    assert "arXiv is switched off" in command("arxiv", "2001.00001").stderr
    with Loopback(outside) as server:
        lines = ["[network]", "arxiv = true", "[search]", f'arxiv_url = "{server.url}"', 'provider = "searxng"']
        lines += [f'url = "{server.url}"', "[ask]", 'api = "openai"', f'url = "{server.url}/v1"', 'model = "tiny"']
        lab.settings_file.write_text("\n".join([*lines, 'key_variable = "MY_KEY"', ""]))
        command("shutdown")
        fetched = command("arxiv", "2001.00001")
        assert fetched.returncode == 0, fetched.stderr
        assert "papers/2001.00001.pdf" in fetched.stdout
        key = {"MY_KEY": "k-0123456789abcdef"}
        said = command("ask", "how long do capybaras bathe", "--json", env=key)
        assert said.returncode == 0, said.stderr
        answer = json.loads(said.stdout)
        assert answer["answer"]["text"] == "Four hours [paper-2001.00001]."
        assert {passage["id"] for passage in answer["passages"]} == {"paper-2001.00001"}
        assert server.asked[-1].headers["authorization"] == "Bearer k-0123456789abcdef"
        refused = command("ask", "what is the best learning rate for small models", env=key)
        assert refused.returncode == 2 and "cites what was not retrieved: paper-made-up" in refused.stderr
        assert "MY_KEY" in command("ask", "how long do capybaras bathe").stderr
        web = json.loads(command("search", "capybaras", "--web", "--json").stdout)["web"]
        assert [found["url"] for found in web] == ["https://springs.example"]
        status = unwrapped(command("status"))
        assert all(name in status for name in ("network.arxiv", "search.provider = searxng", "ask.api = openai"))
    doctor = unwrapped(command("doctor"))
    assert "papers may be fetched from 127.0.0.1" in doctor and "web search, searxng" in doctor
    assert "language model at 127.0.0.1" not in doctor  # this machine is on the premises
    lab.settings_file.write_text("")
    shown = unwrapped(command("ask", "how long do capybaras bathe"))
    assert "[paper-2001.00001] Capybaras in Warm Springs" in shown and "four hours" in shown
    kept = b"".join(file.read_bytes() for file in lab.root.rglob("*") if file.is_file())
    assert b"k-0123456789abcdef" not in kept


def test_a_note_is_found_two_seconds_after_it_was_written(lab: Workspace, command: Command) -> None:
    """Measured from the answer to the first search that finds it; the median, as machines stall now and then."""
    command("search", "warm up")  # service, index and model are there
    endpoint = connection.ensure_service(lab)

    def tool(name: str, **arguments: Any) -> Any:
        headers = {"Lab-Conversation": "a test"}
        return connection.request(endpoint, "POST", f"/api/tools/{name}", arguments, headers=headers)

    waits = []
    for beast in ("Aardvarks", "Binturongs", "Cassowaries", "Dugongs", "Echidnas"):
        written = tool("write_session_note", text=f"{beast} were counted by drone at dusk.", section="Results")
        answered = time.monotonic()
        while True:
            hits = tool("rag_search", query=f"{beast} counted by drone", kinds=["note"])["hits"]
            if any(f"note-{written['entry_id']}" in (hit["id"], *hit["also"]) for hit in hits):  # alike ones are folded
                break
            assert time.monotonic() - answered < 60
            time.sleep(0.05)
        waits.append(time.monotonic() - answered)
    assert sorted(waits)[2] < 2.0, waits


def test_doctor_says_when_the_notebook_was_changed_behind_its_back(lab: Workspace, command: Command) -> None:
    command("note", "The true result is 1.25.")
    command("note", "And it was repeated.")
    assert "the notebook is whole" in command("doctor").stdout
    command("shutdown")
    journal = next(lab.journal_dir.glob("*.jsonl"))
    journal.write_text(journal.read_text().replace("1.25", "1.05"))
    found = command("doctor")
    assert "was changed after it was written" in unwrapped(found) and found.returncode == 1
