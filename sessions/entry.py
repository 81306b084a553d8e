"""One entry of the notebook, and the chain that makes a later change of it visible."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from workspace.errors import LabError, closest

SECTIONS = ("Objective", "Hypothesis", "Method", "Results", "Analysis", "Next steps")
BY_HAND = "Edited by hand"  # where a person's words go that have no place in a section
GENESIS = "0" * 64  # what the first entry of a session carries as the hash of the one before

Kind = Literal["open", "note", "journal", "amendment", "event", "close"]
Author = Literal["assistant", "user", "lab"]
KINDS: tuple[str, ...] = get_args(Kind)
AUTHORS: tuple[str, ...] = get_args(Author)


@dataclass(frozen=True)
class Links:
    """What an entry is about: ids of runs and experiments, and papers (a file under papers/, an arXiv id, a title)."""

    runs: tuple[str, ...] = ()
    experiments: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()

    def as_json(self) -> dict[str, list[str]]:
        return {"runs": list(self.runs), "experiments": list(self.experiments), "papers": list(self.papers)}

    @classmethod
    def from_json(cls, value: dict[str, Any] | None) -> Links:
        value = value or {}
        return cls(*(tuple(map(str, value.get(name) or ())) for name in ("runs", "experiments", "papers")))

    def __bool__(self) -> bool:
        return bool(self.runs or self.experiments or self.papers)


@dataclass(frozen=True)
class Entry:
    """A line of `docs/sessions/.journal/<session>.jsonl`.

    `data` holds what only one kind has: of `open` the title, slug, conversation and hardware; of `event` the plain
    facts the closing summary is made of; of `amendment` the changes found and the unified diff they came from.
    """

    id: str  # <session>-0001, ...
    at: str
    kind: Kind
    author: Author
    section: str | None = None
    text: str = ""
    links: Links = Links()
    tool: str | None = None
    arguments: dict[str, Any] | None = None
    outcome: str | None = None
    key: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    previous: str = GENESIS
    hash: str = ""

    @property
    def session(self) -> str:
        return self.id.rsplit("-", 1)[0]

    @property
    def amends(self) -> tuple[str, ...]:
        """The ids of the entries whose words this amendment changed."""
        changes = [change for change in self.data.get("changes", []) if change.get("what") == "block"]
        return tuple(dict.fromkeys(str(change.get("block", "")).partition(".")[0] for change in changes))

    def __hash__(self) -> int:
        return hash(self.hash)

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "at": self.at,
            "kind": self.kind,
            "author": self.author,
            "section": self.section,
            "text": self.text,
            "links": self.links.as_json(),
            "tool": self.tool,
            "arguments": self.arguments,
            "outcome": self.outcome,
            "key": self.key,
            "data": self.data,
            "previous": self.previous,
            "hash": self.hash,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Entry:
        """Raises ValueError, TypeError or AttributeError for what no version of the lab wrote."""
        entry = cls(**{**value, "links": Links.from_json(value.get("links"))})
        texts = (entry.id, entry.at, entry.text, entry.previous, entry.hash)
        if entry.kind not in KINDS or not all(isinstance(text, str) for text in texts) or len(entry.at) < 19:
            raise ValueError("it is no entry of a notebook")
        if not isinstance(entry.data, dict) or not all(isinstance(c, dict) for c in entry.data.get("changes", [])):
            raise ValueError("its data cannot be understood")
        return entry

    def sealed(self, previous: str) -> Entry:
        """This entry as the one after the entry whose hash is `previous`."""
        linked = replace(self, previous=previous)
        return replace(linked, hash=fingerprint(linked.as_json()))


def fingerprint(record: dict[str, Any]) -> str:
    """sha256 of a record's canonical JSON (keys sorted, no blanks, UTF-8), its own `hash` left out."""
    content = {key: value for key, value in record.items() if key != "hash"}
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def section_name(given: str) -> str:
    """The section meant by `given`, whatever its case; `LabError` lists the sections."""
    wanted = " ".join(given.replace("_", " ").replace("-", " ").split()).casefold()
    for name in SECTIONS:
        if name.casefold() == wanted:
            return name
    near = closest(wanted.capitalize(), SECTIONS, limit=1)
    raise LabError(
        f"a session has no section {given[:80]!r}",
        valid=", ".join(SECTIONS),
        fix=f"did you mean {near[0]!r}?" if near else "write under one of these",
    )
