"""A search request, checked before anything is started for it. Standard library only."""

from __future__ import annotations

import base64
import calendar
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from rag.records import KINDS
from workspace.errors import LabError, Refused, unknown

LONGEST_QUERY = 2_000  # characters; the embedder reads some 1,000 of them
MOST_HITS = 50
DEEPEST = 200  # hits one query can be paged through
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ufeff\u200b-\u200f\u202a-\u202e]+")


@dataclass(frozen=True)
class Query:
    """A valid request. `since` and `until` are ISO dates; both are included."""

    text: str
    kinds: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    limit: int = 8
    offset: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Query:
        return cls(**{**value, "kinds": tuple(value["kinds"]), "tags": tuple(value["tags"])})

    def cursor(self, offset: int) -> str:
        """Where the next page begins; valid for this query only."""
        return base64.urlsafe_b64encode(json.dumps([offset, self._digest()]).encode()).decode().rstrip("=")

    def _digest(self) -> str:
        fields = [self.text, self.kinds, self.tags, self.since, self.until]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:12]

    def at(self, cursor: str | None) -> Query:
        """This query from a cursor on. Raises `Refused` for a cursor of another query."""
        if not cursor:
            return self
        try:
            offset, digest = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        except (ValueError, TypeError) as error:
            raise Refused("cursor is not one this search gave", fix="leave cursor out to start again") from error
        if digest != self._digest() or not isinstance(offset, int) or not 0 <= offset <= DEEPEST:
            raise Refused("cursor belongs to another query", fix="repeat the query it came from, or leave cursor out")
        return Query(self.text, self.kinds, self.tags, self.since, self.until, self.limit, offset)


def check(
    text: str,
    kinds: Sequence[str] | None = None,
    limit: int = 8,
    since: str | None = None,
    until: str | None = None,
    tags: Sequence[str] | None = None,
    cursor: str | None = None,
) -> Query:
    """The request as a `Query`. Raises `LabError` for an empty or overlong query, an unknown kind, a bad date..."""
    words = CONTROL.sub(" ", text[: LONGEST_QUERY + 1]).strip()
    if not re.search(r"\w", words):
        raise Refused("the query is empty", valid="a question or a few words", fix='for example query="learning rate"')
    if len(text) > LONGEST_QUERY:
        raise Refused(
            f"the query has {len(text):,} characters", valid=f"at most {LONGEST_QUERY:,}", fix="ask with fewer words"
        )
    for kind in kinds or ():
        check_kind(kind)
    if not 1 <= limit <= MOST_HITS:
        raise Refused(f"limit = {limit} is not allowed", valid=f"1 to {MOST_HITS}; use cursor for more")
    for name, value in (("since", since), ("until", until)):
        if value:
            _span(name, value)
    if since and until and _span("since", since)[0] >= _span("until", until)[1]:
        raise Refused(f"since {since} is later than until {until}", fix="exchange them")
    labels = tuple(sorted({tag.strip().lower() for tag in tags or () if tag.strip()}))
    query = Query(" ".join(words.split()), tuple(sorted(set(kinds or ()))), labels, since or "", until or "", limit)
    return query.at(cursor)


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        error: LabError = unknown("kind", kind, KINDS)
        raise Refused(error.problem, valid=", ".join(KINDS), fix=error.fix)


def _span(name: str, date: str) -> tuple[datetime, datetime]:
    """First moment of a date, month or year, and the first moment after it."""
    parts = re.fullmatch(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?(?:T.*)?", date.strip())
    if parts:
        year, month, day = (int(part) if part else 0 for part in parts.groups())
        try:
            start = datetime(year, month or 1, day or 1)
        except ValueError:
            parts = None
        else:
            length = 1 if day else calendar.monthrange(year, month)[1] if month else 365 + calendar.isleap(year)
            return start, start + timedelta(days=length)
    raise Refused(f"{name} = {date[:40]!r} is not a date", valid="YYYY, YYYY-MM or YYYY-MM-DD")


def seconds(date: str, *, after: bool = False) -> float | None:
    """Start of a checked date as seconds since 1970, with `after` the moment it is over; None for none."""
    if not date:
        return None
    moment = _span("date", date)[1 if after else 0]
    return (moment - datetime(1970, 1, 1)).total_seconds()
