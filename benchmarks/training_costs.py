"""What training costs beside the arithmetic: tokenizing, loading, checkpoints, instruments, memory. On a CPU.

python benchmarks/training_costs.py [--only tokenizing | steps | checkpoint | memory ...] [--write]
--write also replaces the section in docs/benchmarks.md; figures of parts that were not asked for stay in
benchmarks/training_costs.json and are written again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from report import measured, stamp, write_section

from training import checkpoint, corpus, data, size
from training.config import TrainingConfig, apply
from training.hardware.backend import choose
from training.job import read_job
from training.loader import TrainingLoader
from training.model import build_model
from training.optim import build_optimizer, set_rates
from training.recipe_code import builders
from training.schedule import rates
from training.snapshot import Writer
from training.tokenizer import ByteTokenizer
from training.trainer import Trainer
from workspace import durable
from workspace.layout import Workspace

KEPT = Path(__file__).resolve().parent / "training_costs.json"
STEPS = 60
SMALL_RUN = {
    "budget.kind": "steps", "budget.amount": 3, "data.max_bytes": 1_500_000, "evaluation.bytes": 20_000,
    "evaluation.quick_count": 0, "evaluation.sample_tokens": 0,
}  # fmt: skip
MEMORY = {
    "default recipe": {},
    "10 M parameters, context 2048": {
        "model.depth": 6, "model.width": 256, "data.vocab_size": 4096, "data.context": 2048, "batch.rows": 1,
    },
    "default recipe, 32 rows": {"batch.rows": 32, "batch.tokens": 8192},
    "width 384, vocabulary 8192": {"model.depth": 6, "model.width": 384, "data.vocab_size": 8192},
}  # fmt: skip


@contextmanager
def workspace() -> Iterator[Workspace]:
    with tempfile.TemporaryDirectory() as folder:
        found = Workspace(Path(folder))
        found.create_folders()
        yield found


def run_folder(place: Workspace, config: TrainingConfig) -> Path:
    folder = place.run_dir("run-0001")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.model_dump_json())
    (folder / "run.json").write_text(json.dumps({"id": "run-0001", "kind": "recipe"}))
    return folder


def tokenizing() -> dict[str, float]:
    """The preparation's own path, to the file of ids, against `tokenizers` encoding the same batch and no more."""
    with workspace() as place:
        settings = apply(TrainingConfig(), {"data.max_bytes": 6_000_000}).data
        documents = corpus.documents(corpus.find(settings, place), settings.max_bytes)
        tokenizer = ByteTokenizer.train(documents, settings.vocab_size)
        raw = tokenizer._tokenizer
        count = sum(len(d.encode()) for d in documents) / 1e6
        out = place.root / "ids.bin"
        pairs = []
        for turn in range(6):  # the first pair warms up
            pair = [_seconds(lambda: raw.encode_batch_fast(documents)), 0.0]
            pair[1] = _seconds(lambda: data.write_ids(out, documents, tokenizer))
            if turn:
                pairs.append(pair)
    bare, ours = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    part = statistics.median(p[0] / p[1] for p in pairs)
    return {"megabytes": count, "tokenizers_mb_s": count / bare, "ours_mb_s": count / ours, "part": part}


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def steps() -> dict[str, float]:
    """Shares of the default recipe's training time, by clocks around the trainer's own methods.

    Loading is timed over a whole epoch, packing included: the first rows are packed before the first step.
    """
    spent = {"instruments": 0.0}

    def timed(owner: Any, name: str, kind: str) -> None:
        inner = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                spent[kind] += time.perf_counter() - started

        setattr(owner, name, wrapper)

    with workspace() as place:
        config = apply(TrainingConfig(), SMALL_RUN | {"budget.amount": STEPS})
        folder = run_folder(place, config)
        os.environ["LAB_BACKEND"] = "cpu"
        prepared = data.prepare(config.data, place)
        trainer = Trainer(read_job(folder), prepared, choose(), builders(None))
        for name in ("_gradient_norm", "_agree", "_report_step"):
            timed(trainer, name, "instruments")
        timed(trainer.reporter, "is_due", "instruments")
        trainer.train()
        lines = len((folder / "metrics.jsonl").read_text().splitlines())
        whole = trainer.clock.seconds
        loading = _epoch_seconds(config, prepared)
    return {
        "steps": STEPS, "lines": lines, "step_s": whole / STEPS,
        "loader": loading["per_token"] * config.batch.tokens * STEPS / whole, "epoch_tokens": loading["tokens"],
        "instruments": spent["instruments"] / whole,
    }  # fmt: skip


def _epoch_seconds(config: TrainingConfig, prepared: data.PreparedData) -> dict[str, float]:
    """Seconds a token of all rows of one epoch, and how many tokens these are."""
    started, rows = time.perf_counter(), 0
    loader = TrainingLoader(prepared.ids("train"), config.data.context, prepared.tokenizer.bos, config.seed)
    while loader.state.epoch == 0:
        rows += len(loader.next(config.batch.rows))
    tokens = rows * config.data.context
    return {"per_token": (time.perf_counter() - started) / tokens, "tokens": tokens}


def watching() -> dict[str, float]:
    """lab_watch's cost of a call in microseconds: outside the lab, and under it."""
    code = (
        "import time, lab_watch\n"
        "started = time.perf_counter()\n"
        "for i in range(100_000): lab_watch.step(loss=0.5, tokens=2048)\n"
        "print((time.perf_counter() - started) * 10)"
    )
    folder = Path(data.__file__).parent / "watch"
    found = {}
    with tempfile.TemporaryDirectory() as run:
        for name, extra in (("outside_us", {}), ("inside_us", {"LAB_RUN_DIR": run})):
            environment = {"PYTHONPATH": str(folder), "PATH": os.environ["PATH"], **extra}
            found[name] = float(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True))
    return found


def checkpoints() -> dict[str, float]:
    """50.3 M parameters with the optimizer's state: how long training stands still, and until it is all on disk."""
    changes = {"model.depth": 8, "model.width": 512, "model.head_dim": 128, "data.vocab_size": 8192}
    config = apply(TrainingConfig(), changes)
    torch.manual_seed(0)
    model: Any = build_model(config)
    optimizer = build_optimizer(model, config)
    set_rates(optimizer, rates(config, 0.1))
    ids = torch.randint(config.data.vocab_size, (1, 65))
    torch.autograd.backward(model.loss(ids[:, :-1], ids[:, 1:]))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    stalls, whole, plain = [], [], []
    with tempfile.TemporaryDirectory(dir=KEPT.parent) as folder:  # beside the project: a disk, not memory
        tokenizer_file = Path(folder) / "tokenizer.json"
        tokenizer_file.write_text("{}")
        writer = Writer(Path(folder) / "checkpoints", 1)
        for step in range(5):
            content = checkpoint.content_of(model, optimizer, config, {"step": step}, tokenizer_file)
            if step == 0:
                writer.reserve(content)
            started, before = time.perf_counter(), writer.stalled_s
            writer.save(content)
            stalls.append(writer.stalled_s - before)
            writer.finish()
            whole.append(time.perf_counter() - started)
            plain.append(_plain_file(Path(folder) / "plain", sum(map(_bytes, (content.model, content.optimizer)))))
        files = [f for f in (Path(folder) / "checkpoints").rglob("*") if f.is_file()]
        written = sum(f.stat().st_size for f in files)
    count = sum(p.numel() for p in model.parameters())
    return {"parameters": count, "bytes": written, "stalled_s": max(stalls), "written_s": statistics.median(whole),
            "slowest_s": max(whole), "plain_s": statistics.median(plain)}  # fmt: skip


def _bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _plain_file(path: Path, size: int) -> float:
    """Seconds for a file of `size` bytes on the same disk, written and synced: what no checkpoint can go below."""
    block = os.urandom(2**25)
    started = time.perf_counter()
    with path.open("wb") as file:
        for begin in range(0, size, len(block)):
            file.write(block[: size - begin])
        file.flush()
        os.fsync(file.fileno())
    elapsed = time.perf_counter() - started
    path.unlink()
    return elapsed


def memory() -> dict[str, list[float]]:
    """Whole runs of three steps: what was predicted, what the process held at its peak, parameters."""
    found = {}
    for name, changes in MEMORY.items():
        with workspace() as place:
            config = apply(TrainingConfig(), SMALL_RUN | changes)
            folder = run_folder(place, config)
            command = [sys.executable, "-P", "-s", "-m", "training.train", str(folder)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "LAB_BACKEND": "cpu"})
            summary = json.loads((folder / "summary.json").read_text())
        low = summary["dtype"]["used"] == "bfloat16"
        predicted = size.predict_memory(config, "cpu", low_precision=low).total
        found[name] = [predicted, summary["peak_memory_bytes"], summary["parameters"]["total"]]
    return found


PARTS: dict[str, Callable[[], Any]] = {
    "tokenizing": tokenizing, "steps": steps, "watching": watching, "checkpoint": checkpoints, "memory": memory,
}  # fmt: skip


def page(found: dict[str, Any]) -> str:
    lines = ["| what | asked | measured |", "|---|---:|---:|"]
    if t := found.get("tokenizing"):
        lines.append(
            f"| tokenizing {t['megabytes']:.1f} MB into a file of ids, as a part of what `tokenizers` itself reaches "
            f"({t['tokenizers_mb_s']:.1f} MB/s) | 90 % | {t['part']:.0%} ({t['ours_mb_s']:.1f} MB/s) |"
        )
    if s := found.get("steps"):
        lines.append(
            f"| loading rows, packing included (an epoch of {s['epoch_tokens']:,} tokens), of the default recipe's "
            f"step of {s['step_s']:.2f} s | < 1 % | {s['loader']:.2%} |"
        )
        lines.append(
            f"| instruments (gradient norm, lines of metrics and log, clocks; {s['lines']:.0f} lines in "
            f"{s['steps']:.0f} steps), of the same | < 1 % | {s['instruments']:.2%} |"
        )
    if w := found.get("watching"):
        lines.append(
            f"| one call of `lab_watch.step` outside the lab, inside | | {w['outside_us']:.2f} µs, "
            f"{w['inside_us']:.2f} µs |"
        )
    if c := found.get("checkpoint"):
        lines.append(
            f"| checkpoint of {c['parameters'] / 1e6:.1f} M parameters with the optimizer ({c['bytes'] / 1e6:.0f} MB), "
            f"until on disk: median, slowest of 5 | < 1.5 s | {c['written_s']:.2f} s, {c['slowest_s']:.2f} s |"
        )
        lines.append(
            f"| the same: a plain file of as many bytes, written and synced in turn with it, median | | "
            f"{c['plain_s']:.2f} s |"
        )
        lines.append(f"| training stands still for it, longest of 5 | < 0.3 s | {c['stalled_s']:.3f} s |")
    for name, (predicted, used, count) in (found.get("memory") or {}).items():
        asked = "< 2 GB, within 20 %" if name.startswith("10 M") else "within 20 %"
        lines.append(
            f"| peak memory, {name} ({count / 1e6:.1f} M parameters): predicted before the start, held | {asked} "
            f"| {predicted / 1e9:.2f} GB, {used / 1e9:.2f} GB ({predicted / used - 1:+.0%}) |"
        )
    note = "The trainer on a GPU is not measured: none was at hand."
    return f"{measured(found['stamps'])} {note}\n\n" + "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    found = dict(durable.read_json(KEPT) or {}) if options.only else {}
    found.setdefault("stamps", {})
    for name in options.only or PARTS:
        found[name] = PARTS[name]()
        found["stamps"][name] = stamp()
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    durable.write_json(KEPT, found)
    text = page(found)
    print(text)
    if options.write:
        write_section("Training costs", "python benchmarks/training_costs.py", text)


if __name__ == "__main__":
    main()
