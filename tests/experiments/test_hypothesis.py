"""A hypothesis that cannot be wrong is refused, with one that can be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from experiments.hypothesis import Hypothesis, example, parse
from workspace.errors import Refused

GOOD: dict[str, Any] = {
    "statement": "Halving optimizer.matrix_lr lowers val_bpb by at least 0.01",
    "change": {"optimizer.matrix_lr": 0.02},
    "direction": "lower",
    "smallest_effect": 0.01,
}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GOOD.items() if key != name}


def test_a_good_one_is_taken_and_its_hash_is_its_content() -> None:
    hypothesis = parse(GOOD)
    assert hypothesis.metric == "val_bpb" and hypothesis.kind == "superiority"
    assert parse(GOOD | {"change": {"optimizer.matrix_lr": 0.02}}).digest() == hypothesis.digest()
    assert parse(GOOD | {"why": "noise"}).digest() != hypothesis.digest()
    assert Hypothesis.model_validate_json(hypothesis.model_dump_json()).digest() == hypothesis.digest()
    assert hypothesis.describe_change() == "optimizer.matrix_lr = 0.02"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (without("direction"), "names no direction"),
        (GOOD | {"metric": " "}, "names no metric"),
        (GOOD | {"change": {}}, "changes nothing"),
        (without("change"), "changes nothing"),
        (without("smallest_effect"), "worth having"),
        (GOOD | {"smallest_effect": 0}, "smallest_effect"),
        (GOOD | {"smallest_effect": float("nan")}, "smallest_effect"),
        (GOOD | {"statement": "Make the model better"}, "too vague"),
        (GOOD | {"statement": "Let us try something and see what happens"}, "too vague"),
        (GOOD | {"statement": ""}, "too vague"),
        (GOOD | {"direction": "higher"}, "gets better when it is lower"),
        (GOOD | {"direction": "sideways"}, "direction"),
        (GOOD | {"predicted_effect": 0.001}, "less than"),
        (GOOD | {"change": {"seed": 137}}, "lucky seed"),
        (GOOD | {"change": {"evaluation.bytes": 100}}, "measured alike"),
        (GOOD | {"change": {"data.corpus": "files"}}, "cannot be compared"),
        (GOOD | {"change": {"budget.amount": 1200}}, "more budget"),
        (GOOD | {"change": {"optimizer.matrix_lr": float("inf")}}, "finite"),
        (GOOD | {"kind": "non_inferiority", "cost_metric": "tokens_per_s"}, "no cost"),
    ],
)
def test_an_unfalsifiable_one_is_refused_with_a_rewritten_one_that_holds(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(Refused, match=problem) as refusal:
        parse(values)
    assert refusal.value.fix is not None
    parse(json.loads(refusal.value.fix.split("for example: ")[1]))


def test_the_rewritten_one_keeps_what_was_given() -> None:
    assert example(without("direction"))["change"] == GOOD["change"]
    assert example({"metric": "tokens_per_s"})["direction"] == "higher"


def test_an_unknown_field_is_refused_with_the_closest() -> None:
    with pytest.raises(Refused, match="statement"):
        parse(GOOD | {"statment": "x"})


def test_a_smaller_budget_is_a_claim_of_non_inferiority() -> None:
    text = "Half the budget gives the same val_bpb within 0.01"
    parse(GOOD | {"statement": text, "kind": "non_inferiority", "change": {"budget.amount": 30}})
