"""What a reader makes of a file: what it is called, and its paragraphs in reading order. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff\u200b-\u200f\u202a-\u202e\u2060-\u2069]")
ARXIV = re.compile(r"(?<![\d.])(\d{2}(?:0[1-9]|1[0-2])\.\d{4,5})(?:v\d+)?(?![\d.])")
TITLE_LIMIT = 300


class Unreadable(Exception):
    """A file that cannot be indexed; the text is the reason, for the researcher."""


@dataclass(frozen=True)
class Block:
    """A paragraph. `start` counts characters in the document's text, for a PDF in the text of its page (from 1).

    That text is the file's own for Markdown and plain text; for other kinds it is what the reader makes of the file
    (of the page): its paragraphs in reading order, an empty line between them.
    """

    text: str
    section: str = ""
    page: int | None = None
    start: int = 0


@dataclass(frozen=True)
class Details:
    """What is known about a document besides its text. `date` is `YYYY`, `YYYY-MM` or `YYYY-MM-DD`."""

    title: str = ""
    date: str = ""
    tags: tuple[str, ...] = ()
    authors: str = ""
    arxiv: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def over(self, other: Details) -> Details:
        """These details, completed from `other` where something is missing."""
        return Details(
            self.title or other.title,
            self.date or other.date,
            tuple(dict.fromkeys([*self.tags, *other.tags])),
            self.authors or other.authors,
            self.arxiv or other.arxiv,
            {**other.extra, **self.extra},
        )


@dataclass(frozen=True)
class Document:
    details: Details
    blocks: Iterable[Block]


def clean(text: str) -> str:
    """`text` without control, zero-width and direction-changing characters; newlines and tabs stay."""
    return CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def clean_title(text: str) -> str:
    return " ".join(clean(text).split())[:TITLE_LIMIT]


def arxiv_date(arxiv: str) -> str:
    """`2017-06` for `1706.03762`: an arXiv id begins with the month of its submission."""
    return f"20{arxiv[:2]}-{arxiv[2:4]}" if ARXIV.fullmatch(arxiv) else ""
