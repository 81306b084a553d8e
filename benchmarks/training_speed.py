"""How fast one step trains on a CPU, beside GPT-2 of transformers with AdamW: equal products, batch and context.

python benchmarks/training_speed.py [--size 14M | 30M] [--rounds 6] [--write]
--write also replaces the section in docs/benchmarks.md; a size that was not asked for is written as it was measured
last (benchmarks/training_speed.json)

Whoever is measured takes turns: in a round each makes one pass over 8 rows, forward and backward, and one optimizer
step; then the canary multiplies matrices. A step of TOKENS tokens is PASSES such passes and one optimizer step. So what
else the machine does hits all alike. Tokens are made up: the arithmetic does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpt2
import torch
from report import measured, stamp, write_section
from torch import nn
from torch.profiler import ProfilerActivity, profile

from training import size
from training.canary import product_gflops
from training.config import TrainingConfig, apply
from training.hardware.backend import choose
from training.hardware.compiler import compile_obstacle
from training.model import build_model
from training.optim import build_optimizer, set_dtype, set_rates
from training.schedule import rates
from workspace import durable

WHY = (
    "Where GPT-2 itself reaches nine tenths of the matrix product's rate, equal arithmetic leaves no room for 1.5x;\n"
    "it takes a processor that multiplies bf16 faster than float32."
)
KEPT = Path(__file__).resolve().parent / "training_speed.json"
SIZES = {"14M": (6, 384), "30M": (8, 512)}
CONTEXT, ROWS, VOCABULARY = 256, 8, 8192
PASSES = 8  # of ROWS x CONTEXT tokens in a step: 16,384 tokens, as nanochat's runs/runcpu.sh takes on a CPU
TOKENS = PASSES * ROWS * CONTEXT
OURS, DEFAULT = "ours", "GPT-2, default (float32, eager attention, dropout)"
KINDS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkl", "mkldnn", "aten::linear"),
    "attention": ("attention",),
}


def configuration(name: str) -> TrainingConfig:
    """Every layer sees the whole context, as GPT-2's do: short windows would save FLOPs."""
    depth, width = SIZES[name]
    changes = {"model.depth": depth, "model.width": width, "model.head_dim": 64, "model.windows": "L"}
    batch = {"data.vocab_size": VOCABULARY, "data.context": CONTEXT, "batch.rows": ROWS, "batch.tokens": TOKENS}
    return apply(TrainingConfig(), changes | batch)


@dataclass
class Contestant:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: gpt2.Loss
    precision: Callable[[], AbstractContextManager[object]] = nullcontext
    passes: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    def forward_backward(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        with self.precision():
            loss = self.loss(inputs, targets) / PASSES
        torch.autograd.backward(loss)

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def take_turn(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        for part in (lambda: self.forward_backward(inputs, targets), self.step):
            started = time.perf_counter()
            part()
            (self.steps if part == self.step else self.passes).append(time.perf_counter() - started)

    def seconds(self, round_: int) -> float:
        """Of a whole step, had it been made in this round."""
        return PASSES * self.passes[round_] + self.steps[round_]


def ours(config: TrainingConfig, *, compiled: bool, low: bool) -> Contestant:
    torch.manual_seed(0)
    model: Any = build_model(config)
    optimizer = build_optimizer(model, config)
    set_dtype(optimizer, "bfloat16" if low else "float32")  # as the trainer does
    set_rates(optimizer, rates(config, 0.1))
    loss = torch.compile(model.loss) if compiled else model.loss
    return Contestant(model, optimizer, loss, _bfloat16 if low else nullcontext)


def theirs(config: TrainingConfig, *, compiled: bool = False, low: bool = False, default: bool = False) -> Contestant:
    """GPT-2 with AdamW; `default`: as transformers and torch make it when nothing is asked for but eager attention."""
    torch.manual_seed(0)
    model = gpt2.build(config, attention="eager" if default else "sdpa", dropout=0.1 if default else 0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=None if default else True)
    loss = gpt2.loss_of(model)
    return Contestant(model, optimizer, torch.compile(loss) if compiled else loss, _bfloat16 if low else nullcontext)


def _bfloat16() -> AbstractContextManager[object]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def contestants(config: TrainingConfig, *, low: bool, compiling: bool) -> dict[str, Contestant]:
    found = {OURS: ours(config, compiled=False, low=low), "GPT-2, SDPA": theirs(config, low=low)}
    if compiling:
        found["ours, compiled"] = ours(config, compiled=True, low=low)
        found["GPT-2, SDPA, compiled"] = theirs(config, compiled=True, low=low)
    return found | {DEFAULT: theirs(config, default=True)}


def rows(config: TrainingConfig) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(config.data.vocab_size, (ROWS, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def measure(name: str, rounds: int) -> dict[str, Any]:
    config = configuration(name)
    count, their_flops = size.flops_per_token(config), gpt2.flops_per_token(config)
    assert abs(count / their_flops - 1) < 0.02, "the arithmetic is not equal"
    dtype = choose("cpu").dtype_choice("auto").used
    obstacle = compile_obstacle("cpu")
    everyone = contestants(config, low=dtype == "bfloat16", compiling=obstacle is None)
    inputs, targets = rows(config)
    first: dict[str, float] = {}
    for title, each in everyone.items():  # the first turn compiles, and makes the optimizer's state
        started = time.perf_counter()
        each.take_turn(inputs, targets)
        first[title] = time.perf_counter() - started
        each.passes.clear()
        each.steps.clear()
    products: list[float] = []
    order = list(everyone.values())
    for round_ in range(rounds):
        for each in order[round_ % len(order) :] + order[: round_ % len(order)]:
            each.take_turn(inputs, targets)
        products.append(product_gflops(torch.device("cpu"), dtype, 0.8) or 0.0)
    return {
        "size": name, "dtype": dtype, "flops_per_token": count, "gpt2_flops_per_token": their_flops,
        "parameters": size.parameter_counts(config), "compile_obstacle": obstacle, "rounds": rounds,
        "canary_gflops": statistics.median(products),
        "contestants": {t: _figures(each, products, count, first[t]) for t, each in everyone.items()},
        "ratios": _ratios(everyone),
        "shares": {title: shares(everyone[title], inputs, targets) for title in (OURS, "GPT-2, SDPA")},
    }  # fmt: skip


def _figures(each: Contestant, products: list[float], flops: float, first: float) -> dict[str, float]:
    seconds = [each.seconds(i) for i in range(len(products))]
    rate = [TOKENS / s * flops / 1e9 for s in seconds]
    return {
        "tokens_per_s": TOKENS / statistics.median(seconds),
        "pass_s": statistics.median(each.passes),
        "optimizer_s": statistics.median(each.steps),
        "of_canary": statistics.median(r / p for r, p in zip(rate, products, strict=True)),
        "first_turn_s": first,
    }


def _ratios(everyone: dict[str, Contestant]) -> dict[str, list[float]]:
    """Our best against GPT-2's best and its default: median, least and most over the rounds."""

    def best(ours_: bool) -> Contestant:
        names = [n for n in everyone if n.startswith(OURS) == ours_ and n != DEFAULT]
        return min((everyone[n] for n in names), key=lambda c: statistics.median(map(c.seconds, range(len(c.passes)))))

    mine, found = best(True), {}
    for title, other in (("best GPT-2", best(False)), ("default GPT-2", everyone[DEFAULT])):
        each = [other.seconds(i) / mine.seconds(i) for i in range(len(mine.passes))]
        found[title] = [statistics.median(each), min(each), max(each)]
    return found


def shares(each: Contestant, inputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Parts of a step's time, by torch.profiler; the optimizer by itself."""
    spent: dict[str, float] = defaultdict(float)
    for part, work, weight in (
        ("", lambda: each.forward_backward(inputs, targets), PASSES),
        ("optimizer", each.step, 1),
    ):
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            work()
        for event in seen.key_averages():
            kinds = [kind for kind, words in KINDS.items() if any(word in event.key for word in words)]
            spent[part or (kinds[0] if kinds else "everything else")] += weight * event.self_cpu_time_total
    whole = sum(spent.values())
    return {kind: time_ / whole for kind, time_ in sorted(spent.items())}


def page(found: list[dict[str, Any]]) -> str:
    lines = [
        f"{measured({r['size']: r['stamp'] for r in found})} Steps of {TOKENS:,} tokens in passes of {ROWS} x "
        f"{CONTEXT}, vocabulary {VOCABULARY:,}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__.split('+')[0]}; the optimizer is "
        "included on both sides. `of the product rate`: FLOPs a second as a part of what the canary's matrix product "
        "reached in the same round. Short windows are off, so that both do the same arithmetic. No GPU was at hand: "
        "the trainer's speed on one is not measured."
    ]
    for r in found:
        lines += [
            "",
            f"{r['size']}: {r['flops_per_token'] / 1e6:.1f} MFLOPs a token "
            f"(GPT-2 {r['gpt2_flops_per_token'] / 1e6:.1f}), {r['dtype']}, matrix product "
            f"{r['canary_gflops']:.0f} GFLOP/s, {r['rounds']} rounds",
            "",
            "| | tokens/s | one pass s | optimizer s | of the product rate | first turn s |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for title, c in r["contestants"].items():
            lines.append(
                f"| {title} | {c['tokens_per_s']:,.0f} | {c['pass_s']:.2f} | {c['optimizer_s']:.2f} "
                f"| {c['of_canary']:.0%} | {c['first_turn_s']:.0f} |"
            )
        ratios = [
            f"{middle:.2f}x {title} ({low:.2f} to {high:.2f})" for title, (middle, low, high) in r["ratios"].items()
        ]
        lines += ["", f"Ours reaches {' and '.join(ratios)} (asked: 1.5x and 3x). Where the time goes:"]
        for title, parts in r["shares"].items():
            lines.append(f"{title}: " + ", ".join(f"{kind} {part:.0%}" for kind, part in parts.items()) + ".")
    lines += ["", WHY]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=list(SIZES), help="measure only this one")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    found = dict(durable.read_json(KEPT) or {}) if options.size else {}
    for name in [options.size] if options.size else SIZES:
        found[name] = measure(name, options.rounds) | {"stamp": stamp()}
        durable.write_json(KEPT, found)
    text = page([found[name] for name in SIZES if name in found])
    print(text)
    print(json.dumps(found))
    if options.write:
        write_section("Training speed", "python benchmarks/training_speed.py", text)


if __name__ == "__main__":
    main()
