"""The folder of an experiment, experiments/exp-0003/: written for people, and enough to rebuild the ledger.

experiment.json and hypothesis.md are frozen before anything runs; change.patch, results.json and report.md follow.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from experiments.record import ExperimentRecord, Score
from experiments.verdict import Numbers
from experiments.words import count
from workspace import durable
from workspace.ids import number
from workspace.layout import Workspace

log = logging.getLogger(__name__)
# what experiment.json holds: what was decided before the first run
FROZEN = ("id", "key", "hypothesis", "hypothesis_hash", "created_at", "session", "conversation", "campaign",
          "proposer", "budget", "skip_test_run", "rule")  # fmt: skip


def freeze(workspace: Workspace, record: ExperimentRecord) -> None:
    """Write down what is claimed. Files that are there already are left as they are."""
    folder = workspace.experiment_dir(record.id)
    folder.mkdir(parents=True, exist_ok=True)
    durable.sync_folder(folder.parent)
    if not (folder / "hypothesis.md").exists():
        durable.write_text(folder / "hypothesis.md", hypothesis_page(record))
    if not (folder / "experiment.json").exists():
        content = record.model_dump(mode="json")
        durable.write_json(folder / "experiment.json", {name: content[name] for name in FROZEN})


def write_results(workspace: Workspace, record: ExperimentRecord, patch: str | None = None) -> None:
    """Bring results.json up to date, and report.md and change.patch when there is something to say."""
    folder = workspace.experiment_dir(record.id)
    folder.mkdir(parents=True, exist_ok=True)
    durable.write_json(folder / "results.json", record.model_dump(mode="json"))
    if record.verdict is not None:
        durable.write_text(folder / "report.md", report_page(record))
    if patch is not None:
        durable.write_text(folder / "change.patch", patch)


def read_all(workspace: Workspace, known: Collection[str] = ()) -> Iterator[ExperimentRecord]:
    """The experiments as their folders describe them, by number, those in `known` left out.

    A folder that cannot be read is reported and left.
    """
    skip = set(known)
    present = [f for f in workspace.experiments_dir.glob("exp-*") if f.name not in skip]
    folders = [f for f in present if number(f.name, "exp") is not None]
    for folder in sorted(folders, key=lambda path: number(path.name, "exp") or 0):
        try:
            record = _read(folder)
        except (ValueError, ValidationError, OSError) as error:
            log.warning("experiments/%s cannot be read: %s", folder.name, error)
            continue
        if record is not None:
            yield record


def _read(folder: Path) -> ExperimentRecord | None:
    frozen: dict[str, Any] | None = durable.read_json(folder / "experiment.json")
    if frozen is None:
        return None  # killed before the proposal was written down: nothing was promised, nothing ran
    content = durable.read_json(folder / "results.json") or {**frozen, "state": "preflight"}
    record = ExperimentRecord.model_validate({**content, **frozen})
    if record.hypothesis.digest() != record.hypothesis_hash:
        note = "The hypothesis in experiment.json is not the one that was frozen: its hash differs."
        record = record.model_copy(update={"notes": [*record.notes, note]})
    return record


# -- pages ------------------------------------------------------------------------------------------------------------


def hypothesis_page(record: ExperimentRecord) -> str:
    h = record.hypothesis
    lines = [
        f"# {record.id}: {h.statement}",
        "",
        f"Frozen {record.created_at}, before anything ran. SHA-256 of the hypothesis: `{record.hypothesis_hash}`",
        "",
        "| | |",
        "|---|---|",
        f"| change | {_cell(h.describe_change())} |",
        f"| metric | {_cell(h.metric)}, better when {h.direction} |",
        f"| kind | {h.kind} |",
        f"| {'margin' if h.kind == 'non_inferiority' else 'smallest effect worth having'} | {h.smallest_effect:g} |",
    ]
    if h.kind == "non_inferiority":
        lines.append(f"| and | {_cell(h.cost_metric)} falls by at least {h.smallest_saving:.0%} |")
    if h.predicted_effect is not None:
        lines.append(f"| predicted effect | {h.predicted_effect:g} |")
    if h.category:
        lines.append(f"| category | {_cell(h.category)} |")
    if h.citations:
        lines.append(f"| rests on | {_cell(', '.join(h.citations))} |")
    if h.why:
        lines += ["", "## Why", "", h.why]
    return "\n".join(lines) + "\n"


def report_page(record: ExperimentRecord) -> str:
    """The report: the verdict's sentence, the numbers, every run."""
    h = record.hypothesis
    lines = [f"# {record.id}: {record.verdict or 'under way'}", "", record.sentence or h.statement, ""]
    lines += [f"**Hypothesis.** {h.statement}", "", f"**Change.** `{h.describe_change()}`", ""]
    if record.numbers:
        lines += ["## Numbers", "", *numbers_table(h.metric, record.numbers), ""]
    if record.saving:
        lines += [f"## Saving in {h.cost_metric}, as a fraction of the control's", ""]
        lines += [*numbers_table(h.cost_metric, record.saving), ""]
    if record.scores:
        lines += ["## Runs", "", *_runs_table(record), ""]
    for nth, version in enumerate(record.versions, 2):
        lines += [f"## Hypothesis, version {nth}", "", f"Written {version.at} ({version.state}), not judged: "
                  f"{version.why}", "", version.hypothesis.statement, ""]  # fmt: skip
    if record.advice:
        lines += ["## Next", "", record.advice, ""]
    if record.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in record.notes), ""]
    lines += ["## Where", "", f"- hypothesis frozen {record.created_at}, `{record.hypothesis_hash[:16]}`"]
    if record.parent:
        origin = f" ({record.parent.experiment})" if record.parent.experiment else ""
        lines.append(f"- parent `{record.parent.commit[:12]}`{origin}")
    if record.commit:
        lines.append(f"- commit `{record.commit[:12]}`" + (f" on `{record.ref}`" if record.ref else ""))
    if record.runs:
        lines.append(f"- {count(len(record.runs), 'run')}, {record.seconds:.0f} s: {', '.join(record.runs)}")
    return "\n".join(lines) + "\n"


def numbers_table(metric: str, n: Numbers) -> list[str]:
    looks = "this look" if n.method == "screen" else "all looks"
    return [
        f"| {_cell(metric)} | |",
        "|---|---|",
        f"| gain (positive = better) | {n.effect:.6g} |",
        f"| interval at {100 * n.level:.4g}%, {looks} | {n.low:.6g} to {n.high:.6g} |",
        f"| upper bound at {100 * n.reach_level:.3g}%, one-sided, this look | {n.reach:.6g} |",
        f"| standard error | {n.error:.4g} |",
        f"| candidate, mean of {n.n_candidate} | {n.candidate_mean:.6g} |",
        f"| control, mean of {n.n_control} | {n.control_mean:.6g} |",
        f"| noise of one run (sd, {n.df:g} degrees of freedom) | {n.noise_sd:.4g} |",
        f"| p, one-sided, one look | {n.p:.4g} |",
        f"| method | {n.method} |",
    ]


def _runs_table(record: ExperimentRecord) -> list[str]:
    lines = [f"| run | role | seed | {_cell(record.hypothesis.metric)} |", "|---|---|---|---|"]

    def order(score: Score) -> tuple[int, str]:
        return score.index, score.role

    for score in sorted(record.scores, key=order):
        lines.append(f"| {score.run} | {score.role} | {score.seed} | {score.value:.6g} |")
    return lines


def _cell(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("|", "\\|").replace('\\"', '"')
