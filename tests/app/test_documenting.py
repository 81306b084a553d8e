"""What reaches the memory of what was written into the notebook, and changed there by a person."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab_mcp.documenting import Documenting
from sessions.notebook import Notebook
from workspace.database import Database
from workspace.layout import Workspace
from workspace.outbox import Outbox


class Kept:
    """Stands for the memory: what it would hold."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def add(self, kind: str, **document: Any) -> None:
        self.texts[document["id"]] = document["text"]

    def remove(self, name: str) -> bool:
        return self.texts.pop(name, None) is not None


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Any]:
    workspace = Workspace(tmp_path)
    workspace.create_folders()
    database = Database(workspace.database_file)
    outbox = Outbox(database)
    notebook = Notebook(workspace, database, outbox)
    yield SimpleNamespace(workspace=workspace, database=database, outbox=outbox, notebook=notebook, memory=Kept())
    database.close()


def held(lab: Any) -> dict[str, str]:
    """The texts in memory by id, when all that was told of has been handed over."""
    documenting = Documenting(lab)
    while lab.outbox.drain(documenting.notebook_round) + lab.outbox.drain(documenting.memory_round):
        pass
    assert lab.outbox.pending() == 0
    return dict(lab.memory.texts)


def test_memory_says_what_the_page_says(lab: Any) -> None:
    lab.notebook.new("About rates", "c")
    entry = lab.notebook.write(conversation="c", section="Next steps", text="Repeat with lr 0.1.")
    note, session = f"note-{entry.id}", f"session-{entry.session}"
    page = lab.workspace.sessions_dir / lab.notebook.get(entry.session).page

    def edit(old: str, new: str) -> dict[str, str]:
        assert old in page.read_text()
        page.write_text(page.read_text().replace(old, new))
        assert lab.notebook.absorb_edits() == 1
        return held(lab)

    texts = held(lab)
    assert texts[note] == "Repeat with lr 0.1." and "Next steps: Repeat with lr 0.1." in texts[session]
    texts = edit("lr 0.1.", "lr 0.2.")
    assert texts[note] == "Repeat with lr 0.2." and "Next steps: Repeat with lr 0.2." in texts[session]
    assert list(texts) == [note, session]
    texts = edit("Repeat with lr 0.2.\n", "")
    assert note not in texts and "lr 0.2" not in texts[session]

    texts = edit("## Analysis\n\n*Nothing yet.*", "## Analysis\n\nOne seed is none.")
    (added,) = (name for name, text in texts.items() if text == "One seed is none.")
    texts = edit("One seed is none.", "One seed is not enough.")
    assert texts[added] == "One seed is not enough." and len(texts) == 2
