from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sessions.notebook import Notebook
from workspace.database import Database
from workspace.layout import Workspace
from workspace.outbox import Message, Outbox


class Lab:
    """A workspace with a notebook; `again()` is what a new service process would see."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.workspace = Workspace(root)
        self.workspace.create_folders()
        self.again()

    def again(self) -> Notebook:
        self.database = Database(self.workspace.database_file)
        self.outbox = Outbox(self.database)
        self.notebook = Notebook(self.workspace, self.database, self.outbox, lambda: "one GPU <24 GiB>")
        return self.notebook

    def page(self, session: str) -> Path:
        return self.workspace.sessions_dir / self.notebook.get(session).page

    def journal(self, session: str) -> Path:
        return self.workspace.journal_dir / f"{session}.jsonl"

    def edit(self, session: str, change: Callable[[str], str]) -> None:
        page = self.page(session)
        page.write_text(change(page.read_text(encoding="utf-8")), encoding="utf-8")

    def told(self) -> list[dict[str, str]]:
        """What the outbox would tell others, each message once."""
        seen: list[dict[str, str]] = []
        handler: Callable[[Message], None] = lambda message: seen.append(message.payload)  # noqa: E731
        self.outbox.drain({"note.written": handler}, limit=10_000)
        return seen


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.database.close()
