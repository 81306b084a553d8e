"""Keeping results short: what does not fit is left out where it stands, and the place says so and where the rest is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel

RESULT_CHARACTERS = 16_000  # of one result as compact JSON, about 4,000 tokens
NOTE_CHARACTERS = 80  # kept free for the words that say what is missing
SMALL_CHARACTERS = 120  # an entry of an object that is never left out for the sake of larger ones
T = TypeVar("T", bound=BaseModel)


def size(value: Any) -> int:
    """Characters of a JSON-like value, or of a result, as compact JSON."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_none=True)
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def first(items: Sequence[T], limit: int) -> list[T]:
    """As many of the first `items` as fit into `limit` characters, at least one."""
    kept: list[T] = []
    used = 0
    for item in items:
        used += size(item) + 1
        if kept and used > limit:
            break
        kept.append(item)
    return kept


def fit(value: Any, limit: int, whole: str) -> Any:
    """A JSON-like value in about `limit` characters: small parts stay, long texts and lists are cut.

    `whole` names where all of it is.
    """
    if size(value) <= limit:
        return value
    room = max(0, limit - NOTE_CHARACTERS - len(whole))
    if isinstance(value, str):
        kept = value[:room]
        while size(kept) > room + 2:  # escapes count
            kept = kept[: len(kept) * 3 // 4]
        return f"{kept} [+{len(value) - len(kept)} characters, whole in {whole}]"
    if isinstance(value, list):
        return _fit_list(value, room, whole)
    if isinstance(value, dict):
        return _fit_dict(value, room, whole)
    return value


def _fit_list(value: list[Any], room: int, whole: str) -> list[Any]:
    kept: list[Any] = []
    for item in value:
        if size([*kept, item]) > room:
            break
        kept.append(item)
    return [*kept, f"[+{len(value) - len(kept)} more, whole in {whole}]"]


def _fit_dict(value: dict[str, Any], room: int, whole: str) -> dict[str, Any]:
    """Small entries whole, as long as there is room; the others share what is left or, with too small a share, are
    counted."""
    kept: dict[str, Any] = {}
    names = sorted(value, key=lambda name: size(value[name]))
    for number, name in enumerate(names):
        share = max(room // (len(names) - number), min(room, SMALL_CHARACTERS)) - size(name) - 2
        item = value[name] if size(value[name]) <= share else None
        if item is None and share > 2 * NOTE_CHARACTERS + len(whole):
            item = fit(value[name], share, whole)
        if item is not None or value[name] is None:
            kept[name] = item
            room -= size(name) + size(item) + 2
    shown = {name: kept[name] for name in value if name in kept}
    left_out = len(value) - len(shown)
    return shown | ({"left_out": f"{left_out} entries, whole in {whole}"} if left_out else {})
