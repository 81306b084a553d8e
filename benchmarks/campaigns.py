"""Campaigns that must not fool their owner: kills, an A/A campaign, a planted mistake, what proposing costs.

python benchmarks/campaigns.py [kills|neutral|planted|overhead ...] [--seed N] [--write]

Without names all of them. `kills` and `overhead` use made-up scores, `neutral` and `planted` the real trainer.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import machine, write_section

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from campaigns_bench import CampaignBench, kills
from tests_support import TINY
from users_repository import make

from experiments.campaign import Budget
from experiments.campaigns import Campaigns
from experiments.fingerprints import ChildFingerprint
from experiments.lab import Experiments
from experiments.ports import Fingerprint, Fingerprinter
from experiments.proposers.optuna_search import OptunaProposer
from experiments.proposers.port import Answer, Question
from sessions.notebook import Notebook
from training.config import default_recipe_toml
from training.runs.manager import Runs
from workspace.database import Database
from workspace.outbox import Outbox
from workspace.settings import RunSettings, Settings

KILLS, NEUTRAL, PLANTED, HISTORY = 100, 20, 15, 1000
SPACE = """
[search_space]
"optimizer.head_lr" = { low = 0.0001, high = 0.04, log = true }
"optimizer.matrix_lr" = { low = 0.004, high = 0.2, log = true }
"schedule.warmdown" = { low = 0.2, high = 0.8 }
"""
SMALL = TINY | {"dtype": "float32", "compile": "off", "data.max_bytes": 200_000, "evaluation.quick_count": 0}


def killed(folder: Path, seed: int) -> dict[str, Any]:
    """Campaigns of four experiments on made-up scores, killed at random moments until there were enough kills."""
    rounds, done = 0, 0
    while done < KILLS:
        done += kills(folder / f"kills-{rounds}", 10, seed + rounds)
        rounds += 1
    text = f"{done} kills in {rounds * 10} campaigns, all like their twin"
    return {
        "kills": done,
        "campaigns": rounds * 10,
        "seed": seed,
        "says": text,
    }


class Real:
    """A workspace with the real trainer, ticked here instead of by a service."""

    def __init__(
        self, folder: Path, recipe: dict[str, Any], proposer: Any, fingerprint: Callable[..., Fingerprinter]
    ) -> None:
        text = default_recipe_toml(recipe).partition("[search_space]")[0]
        workspace = make(folder, recipe=text + SPACE)
        settings = Settings(runs=RunSettings(max_concurrent=1))
        self.database = Database(workspace.database_file)
        outbox = Outbox(self.database)
        self.runs = Runs(workspace, settings, self.database, outbox, devices=lambda: [])
        notebook = Notebook(workspace, self.database, outbox)
        self.lab = Experiments(
            workspace, settings, self.database, outbox, self.runs, None, notebook, fingerprint=fingerprint(workspace)
        )
        self.campaigns = Campaigns(workspace, self.database, outbox, self.lab, {"optuna": lambda record: proposer})

    def finish(self, experiments: int, smallest_effect: float, until: Callable[[], bool] = lambda: False) -> Any:
        self.campaigns.start("benchmark", Budget(experiments=experiments), smallest_effect=smallest_effect)
        while self.campaigns.busy() or self.lab.busy():
            if self.campaigns.ledger.list("running") and until():
                self.campaigns.stop("camp-0001", "that is enough")
            self.runs.tick()
            self.campaigns.tick()
            self.campaigns.tick_audits()
            self.lab.tick()
            time.sleep(0.05)
        return self.campaigns.look("camp-0001")


class Neutral:
    """Changes that are real and neutral: our model with other initial weights, drawn a little later from the seed."""

    def check(self, question: Question) -> None:
        pass

    def propose(self, question: Question) -> Answer:
        lines = [
            "import torch",
            "from training import model",
            "",
            "def build_model(config):",
            f"    torch.rand({question.number})",
            "    return model.build_model(config)",
        ]
        added = "\n".join("+" + line for line in lines)
        patch = f"--- /dev/null\n+++ b/recipe/model.py\n@@ -0,0 +1,{len(lines)} @@\n{added}\n"
        return Answer("neutral", {"statement": f"Model number {question.number} lowers val_bpb", "patch": patch})


def neutral(folder: Path, seed: int) -> dict[str, Any]:
    """An A/A campaign on the real trainer. After a (false) keep the patch no longer applies, and it ends there."""

    def unique(workspace: Any) -> Fingerprinter:
        draw = random.Random(seed)
        return lambda config, recipe_dir: Fingerprint(structural=str(draw.random()), behavioural="")

    recipe = SMALL | {"budget.kind": "steps", "budget.amount": 40}
    view = Real(folder / "neutral", recipe, Neutral(), unique).finish(NEUTRAL, 0.01)
    kept = view.counts.get("keep", 0)
    verdicts = ", ".join(f"{n} {verdict}" for verdict, n in sorted(view.counts.items()))
    return {"kept": kept, "counts": view.counts, "runs": view.spent.runs, "hours": view.spent.hours,
            "says": f"{NEUTRAL} neutral changes: {verdicts}; {kept} kept; {view.spent.runs} runs"}  # fmt: skip


def planted(folder: Path, seed: int) -> dict[str, Any]:
    """The head's learning rate is ten times too low; Optuna is not told which one."""
    recipe = SMALL | {"budget.kind": "steps", "budget.amount": 60, "optimizer.head_lr": 0.0004}
    bench = Real(folder / "planted", recipe, OptunaProposer(), ChildFingerprint)

    def found() -> bool:
        return any("optimizer.head_lr" in r.hypothesis.change for r in bench.lab.list(20, verdict="keep"))

    view = bench.finish(PLANTED, 0.02, found)
    records = list(reversed(bench.lab.list(50)))
    at = next((n for n, r in enumerate(records, 1) if r.id == view.best), None)
    change = bench.lab.get(str(view.best)).hypothesis.describe_change() if view.best else "nothing"
    return {"proposals": len(records), "kept_at": at, "kept": change, "runs": view.spent.runs, "counts": view.counts,
            "says": f"kept at proposal {at} of at most {PLANTED}: {change}; {view.spent.runs} runs"}  # fmt: skip


def overhead(folder: Path, seed: int) -> dict[str, Any]:
    """One more proposal after a thousand measured experiments, the state of the sampler rebuilt from their records."""
    bench = CampaignBench(folder / "overhead")
    bench.start(1)
    bench.run_out()
    record = bench.lab.get("exp-0001")
    assert record.candidate is not None
    draw, history = random.Random(seed), []
    for n in range(HISTORY):
        changes = {"matrix_lr": 10 ** draw.uniform(-3, -0.4), "weight_decay": draw.uniform(0, 0.5)}
        settings = record.candidate.settings | {"optimizer": record.candidate.settings["optimizer"] | changes}
        candidate = record.candidate.model_copy(update={"settings": settings})
        numbers = record.numbers and record.numbers.model_copy(update={"effect": draw.gauss(-0.02, 0.02)})
        update = {"id": f"exp-{n + 2:04d}", "candidate": candidate, "numbers": numbers, "verdict": "discard"}
        history.append(record.model_copy(update=update))
    config, base, space = bench.lab.starting_point()
    campaign = bench.campaigns.get("camp-0001")
    found = {}
    for sampler in ("tpe", "cmaes"):
        times = []
        for n in range(7):
            question = Question(campaign, HISTORY + n, n, config, base, space, history)
            started = time.perf_counter()
            OptunaProposer(sampler).propose(question)
            times.append(time.perf_counter() - started)
        found[sampler] = statistics.median(times)
    words = ", ".join(f"{sampler} {seconds:.2f} s" for sampler, seconds in found.items())
    return {**found, "history": HISTORY, "says": f"one proposal after {HISTORY} experiments: {words}"}


PARTS = {"kills": killed, "neutral": neutral, "planted": planted, "overhead": overhead}
ASKED = {
    "kills": "no row lost, doubled or invented in 100 random kills; the same decisions",
    "neutral": "no keep among 20 neutral changes",
    "planted": "found and kept within 15 proposals",
    "overhead": "under 1 s an experiment",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which of them")
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--write", action="store_true", help="replace the section in docs/benchmarks.md")
    arguments = parser.parse_args()
    file = Path(__file__).with_suffix(".json")
    measured: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for name in arguments.parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="campaigns-") as folder:
            started = time.perf_counter()
            measured[name] = PARTS[name](Path(folder), arguments.seed)
            print(f"{name}: {measured[name]['says']} ({time.perf_counter() - started:.0f} s)", flush=True)
        file.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    if arguments.write:
        rows = [f"| {name} | {ASKED[name]} | {measured[name]['says']} |" for name in PARTS if name in measured]
        table = "\n".join(["| | asked | measured |", "|---|---|---|", *rows])
        write_section("Campaigns", "python benchmarks/campaigns.py --write", f"{machine()}\n\n{table}")


if __name__ == "__main__":
    main()
