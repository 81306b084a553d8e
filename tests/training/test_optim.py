"""The optimizer and the schedule."""

from __future__ import annotations

import copy
from typing import cast

import pytest
import torch
from torch import nn
from training_support import needs, small

from training import extras
from training.model import GPT, build_model
from training.optim import (
    MuonAdamW,
    assert_each_once,
    build_optimizer,
    orthogonalize,
    parameter_groups,
    set_dtype,
    set_rates,
)
from training.schedule import rates
from workspace.errors import Refused, Unavailable


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8)])
def test_orthogonalize_brings_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    g = torch.randn(shape)
    values = torch.linalg.svdvals(orthogonalize(g, 5))
    assert values.max() < 1.3
    assert values.median() > 0.7
    left, _, right = torch.linalg.svd(g, full_matrices=False)
    alignment = (orthogonalize(g, 5) * (left @ right)).sum(dim=(-2, -1)) / min(shape[1:])
    assert (alignment > 0.8).all()  # the directions are the gradient's own


def test_muons_products_are_in_the_format_the_run_has_chosen() -> None:
    """Not in one that goes by the device; a run that goes on keeps its own."""
    torch.manual_seed(0)
    g = torch.randn(2, 16, 16)
    by_format = {name: orthogonalize(g, 5, name) for name in ("float32", "bfloat16")}
    assert not torch.equal(by_format["float32"], by_format["bfloat16"])
    stepped = {}
    for name in by_format:
        p = nn.Parameter(torch.zeros(16, 16))
        p.grad = g[0].clone()
        settings = {"kind": "muon", "params": [p], "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
        optimizer = MuonAdamW([settings | {"name": "x", "polar_steps": 5, "variance_beta": 0.9}])
        set_dtype(optimizer, name)
        optimizer.step()
        stepped[name] = p.detach()
        resumed = MuonAdamW([settings | {"name": "x", "polar_steps": 5, "variance_beta": 0.9}])
        set_dtype(resumed, "float32")
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert resumed.param_groups[0]["dtype"] == name
    assert not torch.equal(stepped["float32"], stepped["bfloat16"])
    torch.testing.assert_close(stepped["float32"], stepped["bfloat16"], rtol=0.1, atol=0.02)


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = build_model(small())
    groups = parameter_groups(model, small())
    assert_each_once(model, groups)
    with pytest.raises(AssertionError, match="in 0 groups"):
        assert_each_once(model, groups[1:])
    with pytest.raises(AssertionError, match="in 2 groups"):
        assert_each_once(model, [*groups, groups[0]])


def test_a_parameter_that_fits_no_group_is_refused() -> None:
    """A gain in a layer too: Muon would take the gains of all layers for one matrix."""
    model = build_model(small())
    model.register_parameter("stray", nn.Parameter(torch.zeros(3)))
    with pytest.raises(Refused, match=r"stray.*recipe/optim\.py"):
        parameter_groups(model, small())
    model = build_model(small())
    model.blocks[0].register_parameter("gain", nn.Parameter(torch.zeros(3)))
    with pytest.raises(Refused, match=r"blocks\.0\.gain"):
        parameter_groups(model, small())


def test_adamw_is_torchs_without_decay() -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(5)) for _ in range(2))
    settings = {"name": "x", "kind": "adamw", "params": [ours], "lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-8}
    a = MuonAdamW([settings])
    b = torch.optim.AdamW([theirs], lr=0.1, betas=(0.8, 0.95), eps=1e-8, weight_decay=0)
    for _ in range(5):
        gradient = torch.randn(5)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("bits", "betas", "off"),
    [
        (8, (0.8, 0.95), 0.05),
        (32, (0.8, 0.95), 1e-6),
        (8, (0.96, 0.95), 0.08),
        (8, (0.96, 0.9), 0.08),  # no bound of Cauchy and Schwarz from here on: beta1^2 > beta2
        (8, (0.9, 0.81), 0.08),
    ],
)
def test_moments_in_less_memory_step_nearly_the_same(bits: int, betas: tuple[float, float], off: float) -> None:
    """With rows that are seldom used beside rows that always are: a root rounded to nothing would show."""
    if bits == 8:
        needs("torchao")
    small_moments, exact = [torch.nn.Parameter(torch.zeros(60, 100)) for _ in range(2)]  # no whole number of blocks
    common = {"name": "x", "kind": "adamw", "lr": 0.01, "betas": betas, "eps": 1e-10}
    ours = MuonAdamW([common | {"params": [small_moments], "state_bits": bits, "offload": bits == 32}])
    plain = MuonAdamW([common | {"params": [exact], "state_bits": 32, "offload": False}])
    draw = torch.Generator().manual_seed(0)
    for step in range(60):
        grad = torch.randn(60, 100, generator=draw)
        grad[1::2] *= float(step % 20 == 0)
        small_moments.grad, exact.grad = grad.clone(), grad
        before = small_moments.detach().clone()
        ours.step()
        plain.step()
        assert (small_moments - before).abs().max() < 2 * 0.01
        if step == 30:  # through a checkpoint
            dtypes = {key: value.dtype for key, value in ours.state[small_moments].items()}
            ours.load_state_dict(copy.deepcopy(ours.state_dict()))
            assert {key: value.dtype for key, value in ours.state[small_moments].items()} == dtypes
    held = sum(v.numel() * v.element_size() for v in ours.state[small_moments].values())
    assert held < 0.27 * 8 * 6000 if bits == 8 else held >= 8 * 6000
    assert (small_moments - exact).norm() < off * exact.norm()


def test_few_values_step_exactly_whatever_their_betas() -> None:
    """As skip weights do: too few to be worth eight bits, with betas of their own."""
    few, exact = [torch.nn.Parameter(torch.zeros(8)) for _ in range(2)]
    common = {"name": "x", "kind": "adamw", "lr": 0.01, "betas": (0.96, 0.9), "eps": 1e-6}
    ours = MuonAdamW([common | {"params": [few], "state_bits": 8}])
    plain = MuonAdamW([common | {"params": [exact]}])
    for gradient in torch.randn(20, 8, generator=torch.Generator().manual_seed(0)):
        few.grad, exact.grad = gradient.clone(), gradient.clone()
        ours.step()
        plain.step()
    torch.testing.assert_close(few, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("offload", [True, False])
def test_a_checkpoints_moments_keep_dtype_and_place(offload: bool) -> None:
    """torch itself gives all state its parameter's. Device "meta" stands for an accelerator."""
    p = torch.nn.Parameter(torch.zeros(4, 4, device="meta"))
    group = {"name": "x", "kind": "adamw", "params": [p], "lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-10}
    optimizer = MuonAdamW([group | {"state_bits": 8, "offload": offload}])
    codes, scale = torch.arange(16, dtype=torch.uint8), torch.ones(1)
    saved = {"step": torch.tensor(3.0), "first_codes": codes, "first_scale": scale}
    optimizer.load_state_dict(optimizer.state_dict() | {"state": {0: saved}})
    state = optimizer.state[p]
    place = "cpu" if offload else "meta"
    assert {key: (value.dtype, value.device.type) for key, value in state.items()} == {
        "step": (torch.float32, "cpu"), "first_codes": (torch.uint8, place), "first_scale": (torch.float32, place),
    }  # fmt: skip


def test_small_moments_where_they_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    extras.check(small(optimizer__offload=True), "cuda")
    with pytest.raises(Refused, match="a CPU trains in the machine's memory"):
        extras.check(small(optimizer__offload=True), "cpu")
    with pytest.raises(Refused, match="sharded"):
        small(optimizer__offload=True, parallel__kind="fsdp")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="torchao"):
        extras.check(small(optimizer__state_bits=8), "cuda")


def test_stacked_matrices_step_as_each_would_alone() -> None:
    torch.manual_seed(0)
    start = torch.randn(3, 8, 16)
    gradients = torch.randn(2, 3, 8, 16)
    group = {"name": "m", "kind": "muon", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "polar_steps": 5}

    def stepped(together: bool) -> torch.Tensor:
        matrices = [nn.Parameter(m.clone()) for m in start]
        members = [matrices] if together else [[m] for m in matrices]
        optimizer = MuonAdamW([{**group, "variance_beta": 0.9, "params": some} for some in members])
        for gradient in gradients:
            for m, g in zip(matrices, gradient, strict=True):
                m.grad = g.clone()
            optimizer.step()
        return torch.stack([m.detach() for m in matrices])

    torch.testing.assert_close(stepped(True), stepped(False))


def test_decay_acts_only_where_the_step_shrinks_the_weight() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 8), torch.randn(8, 8)

    def after(decay: float) -> torch.Tensor:
        p = nn.Parameter(start.clone())
        p.grad = gradient.clone()
        group = {"name": "m", "kind": "muon", "lr": 0.1, "momentum": 0.9, "polar_steps": 5, "variance_beta": 0.9}
        MuonAdamW([{**group, "weight_decay": decay, "params": [p]}]).step()
        return p.detach()

    plain, decayed = after(0.0), after(0.5)
    shrinking = ((start - plain) * start) > 0
    torch.testing.assert_close(decayed, plain - 0.1 * 0.5 * start * shrinking)
    assert shrinking.any() and not shrinking.all()


def test_it_learns_to_copy() -> None:
    config = small()
    torch.manual_seed(0)
    model = cast(GPT, build_model(config))
    optimizer = build_optimizer(model, config)
    ids = torch.randint(300, (4, 1)).expand(4, 33).contiguous()  # rows of one repeated token
    losses = []
    for step in range(30):
        set_rates(optimizer, rates(config, step / 30))
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_rounding_noise_in_the_first_gradient_moves_no_scalar() -> None:
    config = small()
    torch.manual_seed(0)
    model = cast(GPT, build_model(config))
    optimizer = build_optimizer(model, config)
    before = model.skip_weights.detach().clone()
    ids = torch.randint(300, (4, 33))
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    optimizer.step()
    torch.testing.assert_close(model.skip_weights.detach(), before, rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", ["linear", "cosine", "sqrt"])
def test_the_schedule_rises_holds_and_falls(shape: str) -> None:
    config = small(
        schedule__warmup=0.1, schedule__warmdown=0.4, schedule__final=0.05, schedule__shape=shape,
        optimizer__momentum_warmup=0.5,
    )  # fmt: skip
    points = [rates(config, i / 100) for i in range(101)]
    factors = [p.lr for p in points]
    assert factors[0] == 0
    assert factors[10:61] == [1.0] * 51
    assert factors[60:] == sorted(factors[60:], reverse=True)
    assert factors[100] == pytest.approx(0.05)
    assert rates(config, 1.7) == points[100]
    assert points[0].momentum == config.optimizer.momentum_start
    assert points[50].momentum == pytest.approx(config.optimizer.momentum)
    assert points[0].weight_decay == config.optimizer.weight_decay
    assert points[100].weight_decay == 0
