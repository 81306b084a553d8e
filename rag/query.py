"""A search request, checked before anything is started for it. Standard library only."""

from __future__ import annotations

import base64
import calendar
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from rag.records import KINDS
from workspace.errors import LabError, Refused, closest, unknown

LONGEST_QUERY = 2_000  # characters; the embedder reads some 1,000 of them
MOST_HITS = 50
DEEPEST = 200  # hits one query can be paged through
MOST_VARIANTS = 4
CAMPAIGN = "campaign"
CONDITION = re.compile(r"([^<>=\s]+)\s*(<=|>=|==|=|<|>)\s*(.+)")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ufeff\u200b-\u200f\u202a-\u202e]+")


@dataclass(frozen=True)
class Condition:
    """One of `where`: a campaign, or a metric's value. `sign` is one of = < <= > >=."""

    field: str
    sign: str
    value: str


@dataclass(frozen=True)
class Query:
    """A valid request. `since` and `until` are ISO dates; both are included. `variants` are other wordings of it."""

    text: str
    kinds: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    limit: int = 8
    offset: int = 0
    variants: tuple[str, ...] = ()
    where: tuple[Condition, ...] = ()
    whole: bool = False  # hits carry their whole passage

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Query:
        lists = {name: tuple(value[name]) for name in ("kinds", "tags", "variants")}
        return cls(**{**value, **lists, "where": tuple(Condition(**one) for one in value["where"])})

    @property
    def narrowed(self) -> bool:
        return any((self.kinds, self.tags, self.since, self.until, self.where))

    def cursor(self, offset: int) -> str:
        """Where the next page begins; valid for this query only."""
        return base64.urlsafe_b64encode(json.dumps([offset, self._digest]).encode()).decode().rstrip("=")

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(repr(replace(self, limit=0, offset=0)).encode()).hexdigest()[:12]

    def at(self, cursor: str | None) -> Query:
        """This query from a cursor on. Raises `Refused` for a cursor of another query."""
        if not cursor:
            return self
        try:
            offset, digest = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        except (ValueError, TypeError) as error:
            raise Refused("cursor is not one this search gave", fix="leave cursor out to start again") from error
        if digest != self._digest or not isinstance(offset, int) or not 0 <= offset <= DEEPEST:
            raise Refused("cursor belongs to another query", fix="repeat the query it came from, or leave cursor out")
        return replace(self, offset=offset)


def check(
    text: str,
    kinds: Sequence[str] | None = None,
    limit: int = 8,
    since: str | None = None,
    until: str | None = None,
    tags: Sequence[str] | None = None,
    cursor: str | None = None,
    variants: Sequence[str] | None = None,
    where: Sequence[str] | None = None,
    whole: bool = False,
) -> Query:
    """The request as a `Query`. Raises `LabError` for an empty or overlong query, an unknown kind, a bad date..."""
    asked = _wording(text)
    if not asked:
        raise Refused("the query is empty", valid="a question or a few words", fix='for example query="learning rate"')
    others = tuple(dict.fromkeys(words for one in variants or () if (words := _wording(one)) and words != asked))
    if len(others) > MOST_VARIANTS:
        raise Refused(f"{len(others)} variants of a query are too many", valid=f"at most {MOST_VARIANTS}")
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
    query = Query(
        *(asked, tuple(sorted(set(kinds or ()))), labels, since or "", until or "", limit),
        variants=others,
        where=tuple(_condition(one) for one in where or ()),
        whole=whole,
    )
    return query.at(cursor)


def _wording(text: str) -> str:
    """`text` in one line without control characters; empty when there is no word in it. Raises `Refused`."""
    if len(text) > LONGEST_QUERY:
        raise Refused(
            f"the query has {len(text):,} characters", valid=f"at most {LONGEST_QUERY:,}", fix="ask with fewer words"
        )
    words = " ".join(CONTROL.sub(" ", text).split())
    return words if re.search(r"\w", words) else ""


def _condition(text: str) -> Condition:
    parts = CONDITION.fullmatch(text.strip()[:300])
    if parts is None:
        raise Refused(
            f"where = {text[:80]!r} is not a condition", valid="FIELD=VALUE or METRIC<NUMBER (also <= > >=)",
            fix='for example where=["campaign=camp-0001", "val_bpb<1.2"]',
        )  # fmt: skip
    field, sign, value = parts.groups()
    own = {"kind": "kinds", "tag": "tags", "date": "since and until"}
    if field.lower() in own:
        raise Refused(f"{field} is not a field of where", fix=f"use the argument {own[field.lower()]}")
    return Condition(metric_name(field), sign.replace("==", "="), value.strip())


def metric_name(name: str) -> str:
    """As the index keeps a metric's name: letters, digits and `_` only."""
    return re.sub(r"\W", "_", name.strip())


def ranges(conditions: Sequence[Condition], known: Sequence[str]) -> tuple[str, list[tuple[str, str, float]]]:
    """The campaign asked for and the metrics' conditions (metric, sign, number).

    Raises `Refused` for a field that is neither the campaign nor one of the `known` metrics, naming the closest.
    """
    campaign, found = "", []
    for one in conditions:
        if one.field.lower() == CAMPAIGN:
            if one.sign != "=":
                raise Refused(f"campaign {one.sign} {one.value} makes no sense", valid="campaign=ID")
            campaign = one.value
            continue
        if one.field not in known:
            fields = [CAMPAIGN, *known]
            near = closest(one.field, fields)
            more = "" if near or len(fields) <= 12 else f" and {len(fields) - 12} more"
            raise Refused(
                f"nothing in memory has a field {one.field[:80]!r}",
                valid=f"closest {', '.join(near)}" if near else ", ".join(fields[:12]) + more,
            )
        try:
            found.append((one.field, one.sign, float(one.value)))
        except ValueError as error:
            raise Refused(f"{one.field} {one.sign} {one.value[:40]!r} compares with no number") from error
    return campaign, found


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
            length = 1 if day else calendar.monthrange(year, month)[1] if month else 365 + calendar.isleap(year)
            return start, min(start, datetime.max - timedelta(days=length)) + timedelta(days=length)
        except ValueError:
            pass
    raise Refused(f"{name} = {date[:40]!r} is not a date", valid="YYYY, YYYY-MM or YYYY-MM-DD")


def seconds(date: str, *, after: bool = False) -> float | None:
    """Start of a checked date as seconds since 1970, with `after` the moment it is over; None for none."""
    if not date:
        return None
    moment = _span("date", date)[1 if after else 0]
    return (moment - datetime(1970, 1, 1)).total_seconds()
