"""What is learned in equal time: the lab's trainer at its CPU defaults beside GPT-2 with AdamW, in pairs.

python benchmarks/learning.py [--seconds 300] [--seeds 5] [--corpus python-stdlib tinyshakespeare] [--write]
    [--kept FILE]        finished pairs are kept there: a benchmark that was stopped goes on (benchmarks/learning.json)
    [--rate-seconds 100] how long GPT-2 is tried at each of three or more rates before; [--rate RATE] takes that one
--write also replaces the section in docs/benchmarks.md. tinyshakespeare is $LAB_BENCH_DATA/tinyshakespeare/input.txt.

A pair trains at the same time, each process held to one core with one thread; the cores change from seed to seed, so
whatever else the machine does hits both. Ours is a whole run (`training.train`) with its sealed score; GPT-2 of equal
depth, width, vocabulary, context, batch and order of rows is scored by the same code on the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gpt2
import numpy as np
import torch
from report import measured, stamp, write_section

from training import data
from training.config import TrainingConfig, apply, load_config, suggest
from training.loader import TrainingLoader, evaluation_rows
from training.sealed.model_process import Shape
from training.sealed.scoring import score_rows
from workspace import durable
from workspace.layout import Workspace

KEPT = Path(__file__).resolve().parent / "learning.json"
CORPORA = ("python-stdlib", "tinyshakespeare")
RATES = (2e-3, 4e-3, 8e-3)  # and half or twice that, while the best is at the edge
RATE_SEED = 100  # none of the pairs'
# as karpathy/nanoGPT trains GPT-2
BETAS, DECAY, CLIP, WARMUP, FINAL = (0.9, 0.95), 0.1, 1.0, 0.03, 0.1


def configuration(corpus: str, seconds: float, seed: int) -> TrainingConfig:
    """What the lab suggests for a CPU, in float32 and not compiled; nothing but training and one score."""
    text = {} if corpus == "python-stdlib" else {"data.corpus": "files", "data.files": ["text"]}
    quiet = {"evaluation.quick_count": 0, "evaluation.sample_tokens": 0, "checkpoint.every_seconds": 0}
    plain = {"compile": "off", "dtype": "float32"}  # as GPT-2 here
    changes = suggest("cpu") | text | quiet | plain | {"budget.amount": seconds, "seed": seed}
    return apply(TrainingConfig(), changes)


# -- GPT-2, in a process of its own -----------------------------------------------------------------------------------


def gpt2_run(job: dict[str, Any]) -> dict[str, Any]:
    """Train for the seconds of the budget, then score."""
    config = load_config(job["config"])
    prepared = data.load(Path(job["data"]))
    torch.manual_seed(config.seed)
    model = gpt2.build(config)
    loss_of = gpt2.loss_of(model)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=job["rate"], betas=BETAS, fused=True)
    d, parts = config.data, config.batch.tokens // (config.batch.rows * config.data.context)
    loader = TrainingLoader(prepared.ids("train"), d.context, prepared.tokenizer.bos, config.seed)
    made_up = torch.randint(d.vocab_size, (config.batch.rows, d.context))
    torch.autograd.backward(loss_of(made_up, made_up))  # as ours: caches are filled before the clock starts
    optimizer.zero_grad(set_to_none=True)
    spent, steps, budget = 0.0, 0, config.budget.amount
    while spent < budget:
        started = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = job["rate"] * _factor(spent / budget)
        total = 0.0
        for _ in range(parts):
            rows = torch.from_numpy(loader.next(config.batch.rows))
            loss = loss_of(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) / parts
            torch.autograd.backward(loss)
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        spent += time.perf_counter() - started
        steps += 1
    count = sum(p.numel() for p in model.parameters())
    tokens = steps * config.batch.tokens
    return {"val_bpb": _score(model, config, prepared), "tokens": tokens, "train_loss": total, "parameters": count}


def _factor(progress: float) -> float:
    """Linear warm-up, then a cosine down to `FINAL`."""
    return min(1.0, progress / WARMUP + 0.01) * (FINAL + (1 - FINAL) * 0.5 * (1 + math.cos(math.pi * progress)))


def _score(model: torch.nn.Module, config: TrainingConfig, prepared: data.PreparedData) -> float:
    lengths = prepared.tokenizer.byte_lengths()
    ids, bos = prepared.ids("validation"), prepared.tokenizer.bos
    rows, _ = evaluation_rows(ids, lengths, config.data.context, bos, config.evaluation.bytes)
    shape = Shape.fitting(config.data.context, len(lengths))
    return score_rows(_Answers(gpt2.Logits(model.eval()), shape), rows, lengths).val_bpb


class _Answers:
    """What `score_rows` asks: logits for tokens."""

    def __init__(self, model: torch.nn.Module, shape: Shape) -> None:
        self.model, self.shape = model, shape

    def answers(self, batches: Iterable[Any]) -> Iterator[Any]:
        with torch.no_grad():
            for batch in batches:
                yield self.model(torch.from_numpy(np.ascontiguousarray(batch))).numpy()


# -- pairs ------------------------------------------------------------------------------------------------------------


class Machine:
    """Starts processes held to one core each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[subprocess.Popen[bytes]] = []
        self.cores = sorted(os.sched_getaffinity(0))[:2]
        if len(self.cores) < 2:
            sys.exit("a pair needs two cores")

    def start(self, command: list[str], core: int, name: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "LAB_BACKEND": "cpu"}
        log = (self.folder / f"{name}.log").open("wb")
        pin = lambda: os.sched_setaffinity(0, {self.cores[core]})  # noqa: E731
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, preexec_fn=pin)
        self.running.append(process)
        return process

    def finish(self, process: subprocess.Popen[bytes], name: str) -> None:
        failed = process.wait() != 0
        self.running.remove(process)
        if failed:
            for other in self.running:  # its folder goes with this process
                other.terminate()
                other.wait()
            sys.exit(f"{name} failed:\n" + (self.folder / f"{name}.log").read_text()[-3000:])

    def gpt2(self, config: TrainingConfig, prepared: Path, rate: float, core: int, name: str) -> Any:
        """A started run of GPT-2; call what is returned for its result."""
        job = {"config": config.model_dump(mode="json"), "data": str(prepared), "rate": rate}
        file, out = self.folder / f"{name}.json", self.folder / f"{name}.out.json"
        file.write_text(json.dumps(job))
        command = [sys.executable, str(Path(__file__).resolve()), "--as-gpt2", str(file), str(out)]
        process = self.start(command, core, name)

        def result() -> dict[str, Any]:
            self.finish(process, name)
            found: dict[str, Any] = json.loads(out.read_text())
            return found

        return result

    def ours(self, workspace: Workspace, config: TrainingConfig, core: int, name: str) -> Any:
        """A started run of the lab's trainer; call what is returned for its result."""
        folder = workspace.run_dir(name)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(config.model_dump_json())
        (folder / "run.json").write_text(json.dumps({"id": name, "kind": "recipe"}))
        command = [sys.executable, "-P", "-s", "-m", "training.train", str(folder)]
        process = self.start(command, core, name)

        def result() -> dict[str, Any]:
            self.finish(process, name)
            found = json.loads((folder / "summary.json").read_text())
            kept = {key: found[key] for key in ("val_bpb", "tokens", "train_loss")}
            shutil.rmtree(folder)
            return kept | {"parameters": found["parameters"]["total"]}

        return result


def next_rates(found: dict[str, float]) -> list[float]:
    """Those still to be tried: `RATES`, then beyond the best while it is at an edge. `found`: val_bpb by rate."""
    if todo := [rate for rate in RATES if str(rate) not in found]:
        return todo
    tried = sorted(map(float, found))
    best = min(tried, key=lambda rate: found[str(rate)])
    return [best / 2 if best == tried[0] else best * 2] if best in (tried[0], tried[-1]) else []


class Bench:
    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.seconds, self.rate_seconds, self.rate = options.seconds, options.rate_seconds, options.rate
        self.file: Path = options.kept
        self.kept: dict[str, Any] = durable.read_json(self.file) or {"rates": {}, "pairs": {}}
        self.machine = Machine(folder)
        self.workspace = Workspace(folder / "lab")
        self.workspace.create_folders()

    def keep(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        durable.write_json(self.file, self.kept)

    def prepare(self, corpus: str) -> Path:
        if corpus == "tinyshakespeare":
            source = Path(os.environ["LAB_BENCH_DATA"]) / "tinyshakespeare" / "input.txt"
            (self.workspace.root / "text").mkdir(exist_ok=True)
            shutil.copyfile(source, self.workspace.root / "text" / "input.txt")
        return data.prepare(configuration(corpus, self.seconds, 0).data, self.workspace).folder

    def rate_for(self, corpus: str, prepared: Path) -> float:
        """GPT-2's best of `RATES` after `rate_seconds`, on the text it is scored on later: in its favour."""
        if self.rate is not None:
            return float(self.rate)
        key = f"{corpus} {self.rate_seconds:g} s"
        found = self.kept["rates"].setdefault(key, {})
        config = configuration(corpus, self.rate_seconds, RATE_SEED)
        while todo := next_rates(found):
            now = todo[:2] if len(todo) > 1 else todo * 2  # both cores are busy for every rate
            runs = [(r, self.machine.gpt2(config, prepared, r, i, f"rate-{r}-{i}")) for i, r in enumerate(now)]
            for rate, result in runs:
                value = result()["val_bpb"]
                found.setdefault(str(rate), value)
                print(f"{corpus}: GPT-2 at {rate:g} after {self.rate_seconds:g} s: {found[str(rate)]:.4f}", flush=True)
            self.keep()
        return float(min(found, key=lambda rate: found[rate]))

    def pair(self, corpus: str, seed: int, prepared: Path, rate: float) -> None:
        key = f"{corpus} {self.seconds:g} s seed {seed} rate {rate:g}"
        if key in self.kept["pairs"]:
            return
        config = configuration(corpus, self.seconds, seed)
        ours = self.machine.ours(self.workspace, config, seed % 2, "run-0001")
        theirs = self.machine.gpt2(config, prepared, rate, 1 - seed % 2, f"gpt2-{corpus}-{seed}")
        results = {"ours": ours(), "gpt2": theirs()}
        self.kept["pairs"][key] = {"corpus": corpus, "seconds": self.seconds, "seed": seed, "rate": rate} | results
        self.kept["pairs"][key]["stamp"] = stamp()
        self.keep()
        print(f"{key}: ours {results['ours']['val_bpb']:.4f}, GPT-2 {results['gpt2']['val_bpb']:.4f}", flush=True)

    def run(self, corpora: list[str], seeds: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for corpus in corpora:
            prepared = self.prepare(corpus)
            rate = self.rate_for(corpus, prepared)
            for seed in range(seeds):
                self.pair(corpus, seed, prepared, rate)
            pairs = [p for p in self.kept["pairs"].values() if self._is_of(p, corpus, rate) and p["seed"] < seeds]
            searched = self.rate is None
            tried = self.kept["rates"].get(f"{corpus} {self.rate_seconds:g} s", {}) if searched else {}
            found[corpus] = {"pairs": pairs, "rate": rate, "tried": tried, "searched": searched} | difference(pairs)
        return found

    def _is_of(self, pair: dict[str, Any], corpus: str, rate: float) -> bool:
        return (pair["corpus"], pair["seconds"], pair["rate"]) == (corpus, self.seconds, rate)


def difference(pairs: list[dict[str, Any]]) -> dict[str, float]:
    """GPT-2's val_bpb minus ours: mean, and the 95 % interval of a paired t-test."""
    from scipy import stats

    each = np.array([p["gpt2"]["val_bpb"] - p["ours"]["val_bpb"] for p in pairs])
    half = 0.0
    if len(each) > 1:
        half = float(stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / math.sqrt(len(each)))
    return {"mean": float(each.mean()), "low": float(each.mean()) - half, "high": float(each.mean()) + half}


def _choice(found: dict[str, Any], seconds: float, rate_seconds: float) -> str:
    """How GPT-2's rate was come by."""
    if not all(result["searched"] for result in found.values()):
        return "its rate was given, not searched for"
    other = "" if rate_seconds == seconds else f" (not for {seconds:g} s, where another may be better)"
    return f"its rate is the best of those tried for {rate_seconds:g} s{other}, by the text of the score itself"


def page(found: dict[str, Any], seconds: float, rate_seconds: float) -> str:
    config = configuration("python-stdlib", seconds, 0)
    m, d = config.model, config.data
    pairs = [p for result in found.values() for p in result["pairs"]]
    stamps = {f"{p['corpus']} seed {p['seed']}": p["stamp"] for p in pairs}
    lines = [
        f"{measured(stamps)} {seconds:g} s of training on one core each, both at once, cores changed from seed to "
        f"seed. Both: {m.depth} layers of width {m.width}, vocabulary {d.vocab_size:,}, context {d.context}, "
        f"{config.batch.tokens:,} tokens a step, the same rows in the same order, float32, neither compiled. Ours: "
        f"the lab's defaults for a CPU, {pairs[0]['ours']['parameters'] / 1e6:.2f} M parameters (a head of its own, "
        f"tables of value embeddings). GPT-2: {pairs[0]['gpt2']['parameters'] / 1e6:.2f} M (the head is the "
        f"embedding), AdamW with betas {BETAS[0]} and {BETAS[1]}, decay {DECAY}, clipped at {CLIP:g}, warm-up and "
        f"cosine; {_choice(found, seconds, rate_seconds)}.",
        "",
        "| text | seed | ours val_bpb | tokens | GPT-2 val_bpb | tokens | lower by |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for corpus, result in found.items():
        for p in sorted(result["pairs"], key=lambda p: p["seed"]):
            ours, theirs = p["ours"], p["gpt2"]
            lines.append(
                f"| {corpus} | {p['seed']} | {ours['val_bpb']:.4f} | {ours['tokens']:,} | {theirs['val_bpb']:.4f} "
                f"| {theirs['tokens']:,} | {theirs['val_bpb'] - ours['val_bpb']:.4f} |"
            )
    for corpus, r in found.items():
        tried = ", ".join(f"{float(rate):g}: {bpb:.3f}" for rate, bpb in r["tried"].items())
        count = len(r["pairs"])
        lines += [
            "",
            f"{corpus}: ours is lower by {r['mean']:.3f} bits per byte ({r['low']:.3f} to {r['high']:.3f}, "
            f"95 %, {count} pairs). GPT-2's rate {r['rate']:g}" + (f" (tried: {tried})." if tried else "."),
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--corpus", nargs="+", choices=CORPORA)
    parser.add_argument("--rate-seconds", type=float, default=100)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--kept", type=Path, default=KEPT)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--as-gpt2", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_gpt2:
        job, out = options.as_gpt2
        out.write_text(json.dumps(gpt2_run(json.loads(job.read_text()))))
        return
    corpora = options.corpus or [c for c in CORPORA if c != "tinyshakespeare" or os.environ.get("LAB_BENCH_DATA")]
    with tempfile.TemporaryDirectory() as folder:
        found = Bench(options, Path(folder)).run(corpora, options.seeds)
    text = page(found, options.seconds, options.rate_seconds)
    print(text)
    print(json.dumps(found))
    if options.write:
        write_section("Learning", "python benchmarks/learning.py", text)


if __name__ == "__main__":
    main()
