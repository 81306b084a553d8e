"""The optimizer: Muon for the matrices of the layers, AdamW for everything else, in one class.

Muon as in karpathy/nanochat: Nesterov momentum, orthogonalisation by Polar Express (arXiv 2505.16932), a variance per
neuron (NorMuon, arXiv 2510.05491), cautious weight decay (arXiv 2510.12402). Matrices of equal shape are stepped
together as one (N, rows, columns) stack.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from training import moments
from training.config import TrainingConfig
from training.distributed import gathered
from training.schedule import Rates
from workspace.errors import Refused

# quintic coefficients of five Polar Express iterations for a safety factor of 2e-2 (arXiv 2505.16932, as in nanochat)
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
REFERENCE_WIDTH = 768  # the width at which the AdamW rates are quoted; they scale with width ** -0.5
ADAM_EPS = 1e-10
# At the first step every output projection is zero, so a scalar's gradient is zero but for rounding, about 1e-10; an
# eps of that size would make a full step of the noise, different on every machine. Later gradients are far above this.
SCALAR_EPS = 1e-6


def orthogonalize(g: Tensor, steps: int, dtype: str | None = None) -> Tensor:
    """The nearest semi-orthogonal matrices to a stack g (N, rows, columns), roughly: singular values land near 1.

    `dtype` of the products, which tolerate bfloat16; None: bfloat16 on accelerators, float32 on a CPU.
    """
    x = g.to(getattr(torch, dtype or ("float32" if g.device.type == "cpu" else "bfloat16")))
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    for a, b, c in POLAR_EXPRESS[:steps]:
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(g.dtype)


def muon_step(parameters: list[Tensor], state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """One step for matrices of one shape; `state` holds `momentum` (N, rows, columns) and `variance` over one side."""
    weights = torch.stack(parameters)
    g = torch.stack([p.grad for p in parameters if p.grad is not None])
    side = -1 if weights.size(-2) >= weights.size(-1) else -2  # the side that is averaged away
    if not state:
        state["momentum"] = torch.zeros_like(g)
        state["variance"] = torch.zeros_like(g.mean(dim=side, keepdim=True))
    state["momentum"].lerp_(g, 1 - group["momentum"])
    g = orthogonalize(g.lerp_(state["momentum"], group["momentum"]), group["polar_steps"], group.get("dtype"))

    variance = g.square().mean(dim=side, keepdim=True)
    state["variance"].lerp_(variance, 1 - group["variance_beta"])
    scale = state["variance"].clamp_min(1e-10).rsqrt()
    before = variance.sum(dim=(-2, -1), keepdim=True).sqrt()  # the update keeps its norm: only its shape changes
    after = (variance * scale.square()).sum(dim=(-2, -1), keepdim=True).sqrt()
    g = g * (scale * (before / after.clamp_min(1e-10)))

    lr = group["lr"] * max(1.0, weights.size(-2) / weights.size(-1)) ** 0.5
    agrees = (g * weights) >= 0  # decay only where the step itself shrinks the weight
    weights -= lr * g + (lr * group["weight_decay"]) * weights * agrees
    torch._foreach_copy_(parameters, list(weights.unbind(0)))


class MuonAdamW(torch.optim.Optimizer):
    """Groups carry `kind` ("muon" or "adamw"), `name`, `initial_lr` and what their kind needs; Muon's may have the
    `dtype` of its products.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(list(groups), {"lr": 0.0})
        for group in self.param_groups:
            group.setdefault("initial_lr", group["lr"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step from the gradients as they are; a parameter without a gradient stays as it is."""
        assert closure is None, "MuonAdamW takes no closure"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["kind"] == "muon":
                by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
                for p in parameters:
                    by_shape[p.shape].append(p)
                for same in by_shape.values():
                    with gathered(same) as matrices:
                        muon_step(matrices, self.state[same[0]], group)
            else:
                self._adamw(parameters, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch, but moments in less memory keep dtype and place: torch gives all state its parameter's."""
        super().load_state_dict(state_dict)
        for saved, group in zip(state_dict["param_groups"], self.param_groups, strict=True):
            if not moments.are_small(group):
                continue
            for index, p in zip(saved["params"], group["params"], strict=True):
                given = state_dict["state"].get(index)
                if given is not None:
                    self.state[p] = moments.restored(given, p, group)

    def _adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        small = moments.are_small(group)
        for p in parameters:
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros(())
                if not small:
                    state["first"], state["second"] = torch.zeros_like(p), torch.zeros_like(p)
            state["step"] += 1
            if small:
                moments.step(p, state, group)
                continue
            count = state["step"].item()
            state["first"].lerp_(p.grad, 1 - beta1)
            state["second"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            root = (state["second"] / (1 - beta2**count)).sqrt_().add_(group["eps"])
            p.addcdiv_(state["first"], root, value=-group["lr"] / (1 - beta1**count))


def parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """The groups of our model's parameters with their peak rates; every parameter is in exactly one.

    Raises `Refused` for a parameter our model does not have, and for one of a layer that is no matrix: Muon would take
    the vectors of all layers for one matrix.
    """
    o = config.optimizer
    members: dict[str, list[nn.Parameter]] = {
        name: [] for name in ("head", "embeddings", "value_embeddings", "residual_weights", "skip_weights", "matrices")
    }
    for name, p in model.named_parameters():
        top = name.split(".", 1)[0]
        kind = {"embedding": "embeddings", "blocks": "matrices"}.get(top, top)
        if kind not in members or (kind == "matrices" and p.ndim != 2):
            shape = " x ".join(map(str, p.shape)) or "a scalar"
            raise Refused(
                f"the built-in optimizer has no group for the model's parameter {name} ({shape})",
                fix="write recipe/optim.py with build_optimizer(model, config)",
            )
        members[kind].append(p)
    width_scale = (config.model.width / REFERENCE_WIDTH) ** -0.5
    betas = (o.adam_beta1, o.adam_beta2)
    adamw = {
        "head": (o.head_lr * width_scale, betas, ADAM_EPS),
        "embeddings": (o.embedding_lr * width_scale, betas, ADAM_EPS),
        "value_embeddings": (o.embedding_lr * width_scale, betas, ADAM_EPS),
        "residual_weights": (o.scalar_lr * 0.01, betas, SCALAR_EPS),
        "skip_weights": (o.scalar_lr, (0.96, o.adam_beta2), SCALAR_EPS),
    }
    groups: list[dict[str, Any]] = [
        {"name": name, "kind": "adamw", "params": members[name], "lr": lr, "betas": pair, "eps": eps,
         "state_bits": o.state_bits, "offload": o.offload}
        for name, (lr, pair, eps) in adamw.items()
        if members[name]
    ]  # fmt: skip
    groups.append(
        {"name": "matrices", "kind": "muon", "params": members["matrices"], "lr": o.matrix_lr, "momentum": o.momentum,
         "weight_decay": o.weight_decay, "polar_steps": o.polar_steps, "variance_beta": o.variance_beta}
    )  # fmt: skip
    assert_each_once(model, groups)
    return groups


def assert_each_once(model: nn.Module, groups: Iterable[dict[str, Any]]) -> None:
    """Every parameter of `model` is in exactly one group; AssertionError names those that are not."""
    seen: dict[int, int] = defaultdict(int)
    for group in groups:
        for p in group["params"]:
            seen[id(p)] += 1
    wrong = [f"{name} in {seen[id(p)]} groups" for name, p in model.named_parameters() if seen[id(p)] != 1]
    assert not wrong, "optimizer groups: " + ", ".join(wrong[:5])


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates) -> None:
    """Put the rates of the coming step into every group; an optimizer of a recipe's own gets its learning rates."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * rates.lr
        if group.get("kind") == "muon":
            group["momentum"], group["weight_decay"] = rates.momentum, rates.weight_decay


def set_dtype(optimizer: torch.optim.Optimizer, dtype: str) -> None:
    """Put the number format of the run's products into Muon's groups; one that a checkpoint brings replaces it."""
    for group in optimizer.param_groups:
        if group.get("kind") == "muon":
            group.setdefault("dtype", dtype)


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    return MuonAdamW(parameter_groups(model, config))
