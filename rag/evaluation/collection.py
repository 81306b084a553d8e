"""A test collection in the BEIR layout: corpus.jsonl, queries.jsonl, qrels/test.tsv. Standard library only.

Collections in the wild differ: titles may be missing or null, ids may be numbers, judgement files come with or without
a header, with three columns or TREC's four, separated by tabs or spaces. All of that is read; what cannot be is refused
by file and line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workspace.errors import NotFound, Refused

CORPUS, QUERIES = "corpus.jsonl", "queries.jsonl"
JUDGMENTS = ("qrels/test.tsv", "qrels/dev.tsv", "qrels/train.tsv", "qrels.tsv")  # the first that is there
IDS = ("_id", "id", "doc_id", "docid", "query_id")


@dataclass(frozen=True)
class Item:
    """A document, or with an empty title a query."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Collection:
    """`judgments` maps a query's id to {document id: grade above 0}; every query has at least one."""

    name: str
    folder: Path
    queries: tuple[Item, ...]
    judgments: dict[str, dict[str, int]]

    def documents(self) -> Iterator[Item]:
        """The corpus, document by document: it need not fit into memory."""
        return _items(self.folder / CORPUS)

    @property
    def fingerprint(self) -> str:
        """Of the corpus: what an index of it depends on."""
        digest = hashlib.sha256()
        with (self.folder / CORPUS).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()[:16]


def read(folder: Path) -> Collection:
    """Raises `NotFound` when a file is missing, `Refused` naming file and line when one cannot be read."""
    judged = next((folder / name for name in JUDGMENTS if (folder / name).is_file()), None)
    missing = [name for name in (CORPUS, QUERIES) if not (folder / name).is_file()]
    if missing or judged is None:
        what = ", ".join([*missing, *([] if judged else [JUDGMENTS[0]])])
        raise NotFound(
            f"{folder} has no {what}", valid="a folder in the BEIR layout: corpus.jsonl, queries.jsonl, qrels/test.tsv"
        )
    judgments = _judgments(judged)
    queries = tuple(item for item in _items(folder / QUERIES) if item.id in judgments and item.text.strip())
    if not queries:
        raise Refused(f"no query of {folder / QUERIES} is judged in {judged.name}", fix="check that the ids are alike")
    return Collection(folder.resolve().name, folder, queries, {query.id: judgments[query.id] for query in queries})


def _items(file: Path) -> Iterator[Item]:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip().strip("\ufeff"):
                continue
            try:
                fields: dict[str, Any] = json.loads(line.strip("\ufeff"))
                name = next(fields[key] for key in IDS if key in fields)
            except (ValueError, TypeError, StopIteration) as error:
                raise Refused(
                    f"{file.name}, line {number}: not a JSON object with an _id", valid='{"_id": ..., "text": ...}'
                ) from error
            yield Item(str(name), str(fields.get("title") or ""), str(fields.get("text") or ""))


def _judgments(file: Path) -> dict[str, dict[str, int]]:
    judgments: dict[str, dict[str, int]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        parts = [part.strip() for part in (line.split("\t") if "\t" in line else line.split())]
        if len(parts) == 4:  # TREC: query, iteration, document, grade
            del parts[1]
        try:
            query, document, grade = parts[0], parts[1], int(float(parts[2]))
        except (ValueError, IndexError) as error:
            if number == 1:  # a header
                continue
            raise Refused(
                f"{file.name}, line {number}: {line[:80]!r} is not a judgement", valid="query-id, corpus-id, score"
            ) from error
        if grade > 0:
            judgments.setdefault(query, {})[document] = grade
    if not judgments:
        raise Refused(f"{file.name} judges no document relevant")
    return judgments
