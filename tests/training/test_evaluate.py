"""Bits per byte, against values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from training import evaluate as module
from training.evaluate import evaluate, looks_ahead
from training.loader import IGNORED

BYTES = torch.tensor([1, 2, 3, 0], dtype=torch.int32)  # the last id is BOS


class Fixed(nn.Module):
    """Logits that depend on the input token alone."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[tokens]


def test_a_uniform_guess_costs_log_v_a_token() -> None:
    rows = np.array([[3, 0, 1, 2], [3, 2, 2, IGNORED]])
    result = evaluate(Fixed(torch.zeros(4, 4)), rows, BYTES)
    assert (result.tokens, result.bytes) == (5, 1 + 2 + 3 + 3 + 3)
    assert result.val_loss == pytest.approx(math.log(4))
    assert result.perplexity == pytest.approx(4)
    assert result.val_bpb == pytest.approx(5 * 2 / 12)


def test_bos_and_padding_are_not_scored() -> None:
    table = torch.zeros(4, 4)
    table[:, 3] = -50.0  # to predict BOS would cost dearly
    rows = np.array([[3, 0, 3, 1], [3, 1, IGNORED, IGNORED]])
    result = evaluate(Fixed(table), rows, BYTES)
    assert result.tokens == 3
    assert result.val_loss == pytest.approx(math.log(3))


@settings(max_examples=20, deadline=None)
@given(at_once=st.integers(1, 100))
def test_the_division_into_batches_does_not_matter(at_once: int) -> None:
    torch.manual_seed(0)
    rows = np.random.default_rng(0).integers(0, 4, (7, 6))
    rows[:, 0] = 3
    whole = evaluate(Fixed(torch.randn(4, 4)), rows, BYTES)
    torch.manual_seed(0)
    kept, module.LOGITS_AT_ONCE = module.LOGITS_AT_ONCE, at_once
    try:
        parts = evaluate(Fixed(torch.randn(4, 4)), rows, BYTES)
    finally:
        module.LOGITS_AT_ONCE = kept
    assert parts.val_bpb == pytest.approx(whole.val_bpb, rel=1e-6)
    assert parts.bytes == whole.bytes


def test_the_model_comes_back_in_the_mode_it_was_in() -> None:
    model = Fixed(torch.zeros(4, 4)).train()
    evaluate(model, np.array([[3, 0]]), BYTES)
    assert model.training


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="no byte"):
        evaluate(Fixed(torch.zeros(4, 4)), np.array([[3, 3, IGNORED]]), BYTES)


def test_a_hopeless_model_has_infinite_perplexity_not_an_overflow() -> None:
    table = torch.zeros(4, 4)
    table[:, 0] = -1000.0
    result = evaluate(Fixed(table), np.array([[3, 0]]), BYTES)
    assert result.perplexity == math.inf
    assert result.val_loss == pytest.approx(1000, rel=0.01)


def test_looking_ahead_is_seen_wherever_the_model_gets_it_from() -> None:
    rows = np.random.default_rng(0).integers(0, 4, (3, 9))
    embedding, cpu = nn.Embedding(4, 8), torch.device("cpu")

    class Sees(nn.Module):
        def __init__(self, mix: Tensor) -> None:
            super().__init__()
            self.mix = mix

        def forward(self, tokens: Tensor) -> Tensor:
            return self.mix @ embedding(tokens)

    past, all_of_it = torch.ones(8, 8).tril(), torch.ones(8, 8)
    assert looks_ahead(Sees(past), rows, 4, cpu) is None
    assert looks_ahead(Sees(past + torch.diag(torch.full((7,), 0.1), 1)), rows, 4, cpu) == (3, 4)
    assert looks_ahead(Sees(all_of_it), rows, 4, cpu) == (0, 4)


@pytest.mark.parametrize("disguise", [lambda x: x + 1e5, lambda x: x.index_fill(-1, torch.tensor([1]), -torch.inf)])
def test_looking_ahead_is_seen_under_what_changes_no_probability(disguise: Callable[[Tensor], Tensor]) -> None:
    rows, embedding = np.random.default_rng(0).integers(0, 4, (3, 9)), nn.Embedding(4, 4)

    class Sees(nn.Module):
        def __init__(self, dim: int | None) -> None:
            super().__init__()
            self.dim = dim

        def forward(self, tokens: Tensor) -> Tensor:
            said: Tensor = embedding(tokens).cumsum(dim=1)
            return disguise(said if self.dim is None else said + embedding(tokens).mean(dim=self.dim, keepdim=True))

    assert looks_ahead(Sees(None), rows, 4, torch.device("cpu")) is None
    assert looks_ahead(Sees(1), rows, 4, torch.device("cpu")) is not None
    assert looks_ahead(Sees(0), rows, 4, torch.device("cpu")) is not None
