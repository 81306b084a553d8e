"""The model: shapes, causality, windows, and a loss that is the plain cross-entropy."""

from __future__ import annotations

from typing import cast

import pytest
import torch
import torch.nn.functional as F
from training_support import small

from training import size
from training.config import TrainingConfig
from training.elementwise import mix, norm, relu2, rotate, rotated_norm
from training.loss import cross_entropy
from training.model import GPT, attend, build_model, rotary_tables


def trained(config: TrainingConfig) -> GPT:
    """A model whose output projections are no longer zero, so that every part takes part."""
    torch.manual_seed(0)
    model = cast(GPT, build_model(config))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def tokens(config: TrainingConfig, rows: int = 2) -> torch.Tensor:
    return torch.randint(
        config.data.vocab_size, (rows, config.data.context), generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model__kv_share": 2},
        {"model__value_embeddings": False},
        {"model__windows": "S", "model__short_window": 0.25},
        {"model__softcap": 0.0},
        {"model__activation": "silu"},
        {"model__depth": 3, "model__mlp_ratio": 2},
    ],
)
def test_what_size_computes_is_what_is_built(changes: dict[str, object]) -> None:
    config = small(**changes)
    model = trained(config)
    counts = size.parameter_counts(config)
    assert sum(p.numel() for p in model.parameters()) == counts["total"]
    logits = model(tokens(config))
    assert logits.shape == (2, config.data.context, config.data.vocab_size)
    assert logits.dtype == torch.float32
    if config.model.softcap:
        assert logits.abs().max() <= config.model.softcap
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    attention = sum(12 * config.model.width * window for window in size.windows(config))
    assert model.flops_per_token == 6 * linear + attention


@pytest.mark.parametrize("windows", ["L", "S", "SL"])
def test_later_tokens_do_not_change_earlier_logits(windows: str) -> None:
    config = small(model__windows=windows, model__short_window=0.25)
    model, ids = trained(config), tokens(config)
    changed = ids.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % config.data.vocab_size
    before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :20], after[:, :20], rtol=0, atol=1e-5)
    assert (before[:, 20:] - after[:, 20:]).abs().max() > 1e-3


@pytest.mark.parametrize(("length", "window"), [(32, 8), (32, 32), (30, 8), (7, 8), (33, 16), (32, 1)])
def test_blocks_attend_as_one_masked_product_would(length: int, window: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, length, 8, requires_grad=True).unbind(0)
    position = torch.arange(length)
    distance = position[:, None] - position[None, :]
    mask = (distance >= 0) & (distance < window)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    found = attend(q, k, v, window)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    grads = [torch.autograd.grad((y * weight).sum(), (q, k, v), retain_graph=True) for y in (found, expected)]
    for ours, plain in zip(*grads, strict=True):
        torch.testing.assert_close(ours, plain)


def test_rotation_makes_products_depend_on_distance_only() -> None:
    cos, sin = rotary_tables(16, 8, 10000.0)
    q, k = torch.randn(8), torch.randn(8)
    rotated_q = rotate(q.expand(1, 16, 1, 8), cos, sin)[0, :, 0]
    rotated_k = rotate(k.expand(1, 16, 1, 8), cos, sin)[0, :, 0]
    products = rotated_q @ rotated_k.t()
    for distance in (0, 3, -5):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[0].expand_as(diagonal))


@pytest.mark.parametrize("part", ["norm", "rotated_norm", "relu2", "mix"])
def test_gradients_written_by_hand_are_those_of_autograd(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(2, 16, 3, 8, requires_grad=True) for _ in range(2))
    a, b = (torch.randn((), requires_grad=True) for _ in range(2))
    cos, sin = rotary_tables(16, 8, 100.0)
    calls = {
        "norm": lambda: norm(x),
        "rotated_norm": lambda: rotated_norm(x, cos, sin),
        "relu2": lambda: relu2(x),
        "mix": lambda: mix(x, y, a, b),
    }
    by_hand = calls[part]()
    monkeypatch.setattr("training.elementwise._by_hand", lambda _: False)
    plain = calls[part]()
    assert type(by_hand.grad_fn) is not type(plain.grad_fn)
    torch.testing.assert_close(by_hand, plain)
    taken = (x, y, a, b) if part == "mix" else (x,)
    weight = torch.randn(2, 3, 16, 8)  # the gradient comes transposed, as from attention
    grads = [torch.autograd.grad((out.transpose(1, 2) * weight).sum(), taken) for out in (by_hand, plain)]
    for ours, autograds in zip(*grads, strict=True):
        torch.testing.assert_close(ours, autograds)


@pytest.mark.parametrize("part", ["norm", "rotated_norm", "relu2", "mix", "cross_entropy"])
def test_gradients_written_by_hand_are_not_differentiated_again(part: str) -> None:
    """They would come out wrong, and in silence where the incoming gradient is a constant, as here."""
    x, weight = torch.randn(1, 4, 1, 8, requires_grad=True), torch.randn(50, 8)
    cos, sin = rotary_tables(4, 8, 100.0)
    scalar = torch.ones((), requires_grad=True)
    out = {
        "norm": lambda: norm(x),
        "rotated_norm": lambda: rotated_norm(x, cos, sin),
        "relu2": lambda: relu2(x),
        "mix": lambda: mix(x, x, scalar, scalar),
        "cross_entropy": lambda: cross_entropy(x.view(4, 8), weight, torch.arange(4), 15.0),
    }[part]()
    with pytest.raises(RuntimeError, match=r"create_graph=True.*torch\.nn\.functional"):
        torch.autograd.grad(out.sum() + x.pow(3).sum(), x, create_graph=True)


@pytest.mark.parametrize("softcap", [0.0, 15.0])
def test_the_chunked_loss_is_the_plain_one(softcap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.loss.loss_chunk_tokens", lambda *_, **__: 7)  # the last chunk is a short one
    torch.manual_seed(0)
    x = torch.randn(20, 8, requires_grad=True)
    weight = torch.randn(50, 8, requires_grad=True)
    targets = torch.randint(50, (20,))
    logits = x @ weight.t()
    plain = F.cross_entropy(softcap * torch.tanh(logits / softcap) if softcap else logits, targets)
    chunked = cross_entropy(x, weight, targets, softcap)
    torch.testing.assert_close(chunked, plain)
    ours = torch.autograd.grad(3 * chunked, (x, weight))
    theirs = torch.autograd.grad(3 * plain, (x, weight))
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(x, weight, targets, softcap), plain)


def test_the_first_loss_is_that_of_a_uniform_guess() -> None:
    config = small()
    torch.manual_seed(0)
    model = cast(GPT, build_model(config))
    loss = model.loss(tokens(config), tokens(config).roll(1))
    assert abs(loss.item() - torch.log(torch.tensor(float(config.data.vocab_size))).item()) < 0.01


def test_low_precision_stays_close(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small()
    model, ids = trained(config), tokens(config)
    exact = model.loss(ids, ids.roll(-1, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.loss(ids, ids.roll(-1, 1))
    rough.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert abs(rough.item() - exact.item()) < 0.03 * exact.item()
