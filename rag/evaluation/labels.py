"""A person's own judgements of search results, and what evaluations on them have shown over time.

Both are JSON lines under docs/search/, where they can be read and committed; the last word about a document counts.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from workspace import clock, durable
from workspace.errors import Refused
from workspace.layout import Workspace

GRADES = {0: "does not answer", 1: "helps", 2: "answers"}


class Labels:
    """Thread-safe; owned by the service."""

    def __init__(self, workspace: Workspace) -> None:
        folder = workspace.root / "docs" / "search"
        self._judgments = folder / "labels.jsonl"
        self._history = folder / "history.jsonl"
        self._guard = threading.Lock()

    def add(self, query: str, grades: Mapping[str, int]) -> int:
        """Record {document id: grade} for a query; how many. On disk when this returns."""
        words = " ".join(query.split())
        if not words or len(words) > 2_000:
            raise Refused("the query to be judged is empty or longer than 2,000 characters")
        for document, grade in grades.items():
            if grade not in GRADES or not document.strip():
                allowed = ", ".join(f"{value} ({text})" for value, text in GRADES.items())
                raise Refused(f"{document[:80]!r} cannot be judged {grade!r}", valid=allowed)
        with self._guard:
            self._judgments.parent.mkdir(parents=True, exist_ok=True)
            for document, grade in grades.items():
                line = {"at": clock.now(), "query": words, "document": document, "grade": grade}
                durable.append_jsonl(self._judgments, line, sync=True)
        return len(grades)

    def all(self) -> dict[str, dict[str, int]]:
        """{query: {document: grade}}, grade 0 included, queries in the order they were first judged."""
        found: dict[str, dict[str, int]] = {}
        for line in durable.read_jsonl(self._judgments):
            found.setdefault(line["query"], {})[line["document"]] = line["grade"]
        return found

    def relevant(self) -> dict[str, dict[str, int]]:
        """The queries for which something was judged to help, with that alone."""
        kept = {query: {d: grade for d, grade in grades.items() if grade} for query, grades in self.all().items()}
        return {query: grades for query, grades in kept.items() if grades}

    def record(self, measured: Mapping[str, Any]) -> None:
        """Add an evaluation to the history."""
        with self._guard:
            self._history.parent.mkdir(parents=True, exist_ok=True)
            durable.append_jsonl(self._history, {"at": clock.now(), **measured}, sync=True)

    def history(self) -> list[dict[str, Any]]:
        return list(durable.read_jsonl(self._history))
