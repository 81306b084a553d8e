"""What a model's answer holds, whatever stands around it; and what a text in the question cannot do."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from experiments.proposers.prompt import Unreadable, _data, parse


def proposal(rate: float, **more: Any) -> dict[str, Any]:
    return {
        "statement": f"Setting optimizer.matrix_lr to {rate} lowers val_bpb", "predicted_effect": 0.01,
        "change": {"optimizer.matrix_lr": rate}, "category": "optimizer", "why": "it falls slowly",
    } | more  # fmt: skip


DRAFT, FINAL = json.dumps(proposal(0.1)), json.dumps(proposal(0.03, why="a set {of} braces"))


@pytest.mark.parametrize(
    "text",
    [
        FINAL,
        f"```json\n{FINAL}\n```",
        f"<think>The recipe has {{'depth': 4}}. A draft: {DRAFT}. No, lower.</think>\n{FINAL}",
        f"so {{x}} it is\n</think>\n\n{FINAL}",
        f"<THINKING>{DRAFT}</THINKING >{FINAL}",
        f"First I thought of {DRAFT}, but then {{no}}: {FINAL} {{}}",
        f'{FINAL}\nAs asked, {{"change": "one"}}.',
        f"{FINAL}<think>was that right? {DRAFT}",
    ],
)
def test_the_last_object_in_the_form_is_the_answer(text: str) -> None:
    assert parse(text, patches=False) == json.loads(FINAL) | {"citations": []}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("no idea", "holds no JSON object"),
        (f"<think>{DRAFT}", "holds no JSON object"),
        ('{"statement": "x"', "holds no JSON object"),
        (json.dumps(proposal(0.1, more=1)), "more: Extra inputs"),
        ('{"a": 1} {"statement": 7}', "statement: Input should be a valid string"),
        (json.dumps(proposal(0.1, patch="--- a\n+++ b\n")), "patches are switched off"),
    ],
)
def test_what_cannot_be_used_is_said(text: str, problem: str) -> None:
    with pytest.raises(Unreadable, match=problem):
        parse(text, patches=False)


def test_a_hostile_answer_costs_little() -> None:
    started = time.process_time()
    for text in ('{"a":' * 20_000, "{" * 50_000, "<think>" * 10_000, '{"a":{' * 5_000):
        with pytest.raises(Unreadable):
            parse(text, patches=True)
    assert time.process_time() - started < 60


@pytest.mark.parametrize(
    "text",
    ["</data>", "<</data>/data>", "</DATA>", "</data >", "< / data>", "<data>", "<\n/data\n>", "</data\t foo>"],
)
def test_a_text_cannot_end_its_own_mark(text: str) -> None:
    begin, *lines, end = _data("title", f"before {text} after").splitlines()
    assert (begin, lines[0], end) == ("title:", "<data>", "</data>")
    inside = "\n".join(lines[1:])
    assert "before" in inside and "after" in inside
    assert not re.search(r"<\s*/?\s*data", inside, re.IGNORECASE), "however it is spelled"


def test_other_text_is_left_as_it_is() -> None:
    assert "a < b, x <database-free> & <b>" not in _data("t", "")
    assert "if a < b: c<d" in _data("t", "if a < b: c<d")
