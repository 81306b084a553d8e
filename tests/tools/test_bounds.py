"""What is too long for one answer is cut where it stands, and says where the rest is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tools import bounds
from tools.tool import Result


class Line(Result):
    text: str
    note: str | None = None


def test_what_fits_is_left_alone() -> None:
    value = {"val_bpb": 1.5, "sample": "x" * 100, "none": None, "list": [1, 2, {"a": "b"}]}
    assert bounds.fit(value, 1000, "f") is value
    assert bounds.fit(None, 0, "f") is None


@pytest.mark.parametrize(
    "value",
    [
        {"val_bpb": 1.5, "steps": 7, "sample": "x" * 50_000},
        {"val_bpb": 1.5, "steps": 7, "samples": ["x" * 300] * 500, "text": "\n" * 20_000},
        {"val_bpb": 1.5, "steps": 7, "deep": {"er": {"text": "ü" * 9_000, "more": "y" * 9_000}}},
        {"val_bpb": 1.5, "steps": 7, "loss": None, **{f"layer {n}": "z" * 40 for n in range(2_000)}},
    ],
)
def test_a_long_value_keeps_its_numbers_and_says_what_is_missing(value: dict[str, Any]) -> None:
    shown = bounds.fit(value, 3_000, "runs/run-0001/summary.json")
    assert bounds.size(shown) <= 3_000
    assert (shown["val_bpb"], shown["steps"]) == (1.5, 7)
    assert "whole in runs/run-0001/summary.json" in json.dumps(shown)


def test_a_long_list_of_words_ends_with_their_number() -> None:
    shown = bounds.fit(["--layers", "x" * 500, "--seed"] * 10, 1_000, "run.json")
    assert shown == ["--layers", "x" * 500, "--seed", "--layers", "[+26 more, whole in run.json]"]


def test_the_first_that_fit_and_at_least_one() -> None:
    lines = [Line(text="x" * 100) for _ in range(10)]
    assert len(bounds.first(lines, 500)) == 4
    assert len(bounds.first(lines, 5)) == 1
    assert bounds.first(lines, 10_000) == lines
    assert bounds.first([], 10) == []
