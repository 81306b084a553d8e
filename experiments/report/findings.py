"""The results: in a few words, as a figure, and as tables of everything that was tried."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

from experiments.record import VERDICTS, ExperimentRecord
from experiments.report.blocks import Block, Figure, Heading, Piece, Span, Table, paragraph
from experiments.report.material import Material
from experiments.verdict import Numbers
from experiments.words import count, duration, listed, measured

VERDICT_WORDS: dict[str, str] = {
    "keep": "kept", "discard": "discarded", "inconclusive": "undecided", "no_effect": "without any effect",
    "crash": "crashed", "invalid": "invalid",
}  # fmt: skip
LONGEST_CHANGE = 90  # characters, in the table of everything


def in_short(m: Material) -> list[Piece]:
    """The answer in a paragraph."""
    if not m.ended:
        return ["No experiment has a verdict yet."]
    runs, seconds = sum(len(r.runs) for r in m.ended), sum(r.seconds for r in m.ended)
    said = (
        f"{count(len(m.ended), 'experiment')} with a verdict ({count(runs, 'run')}, {duration(seconds)} of running). "
    )
    if not m.kept:
        return [said, "No change was kept: none was shown to gain as much as was asked for."]
    said += f"{count(len(m.kept), 'change')} {'was' if len(m.kept) == 1 else 'were'} kept. "
    best = next((record for record in reversed(m.kept) if record.is_best), None)
    pieces: list[Piece] = [said]
    if best is not None and best.numbers is not None:
        n = best.numbers
        pieces += [
            "The best recipe is that of ", Span(text=best.id, style="strong"), ": ", Span(text=best.hypothesis.metric),
            f" {n.candidate_mean:.6g} (mean of {count(n.n_candidate, 'run')}). ",
        ]  # fmt: skip
        pieces.append(_total(m, best))
    audit = m.campaign.audit if m.campaign else None
    if audit is not None and audit.state in ("done", "failed"):
        told = audit.sentence()
        pieces.append(f" {told[0].upper()}{told[1:]}.")
    return pieces


def _total(m: Material, best: ExperimentRecord) -> str:
    """The gains along the best recipe's own line of descent, added up."""
    by_id = {record.id: record for record in m.kept}
    line: list[ExperimentRecord] = []
    at: ExperimentRecord | None = best
    while at is not None:
        line.append(at)
        at = by_id.get(at.parent.experiment or "") if at.parent else None
    same = [r for r in line if r.numbers and r.hypothesis.metric == best.hypothesis.metric]
    effects = [r.numbers.effect for r in same if r.numbers]
    errors = [r.numbers.error for r in same if r.numbers]
    if len(effects) < 2:
        return (
            ""
            if not effects
            else f"Its gain over its parent is {measured(effects[0], errors[0])} (standard error {errors[0]:.2g})."
        )
    total, error = math.fsum(effects), math.sqrt(math.fsum(e * e for e in errors))
    return (
        f"The {len(effects)} gains that lead to it, each measured against its own parent, add up to "
        f"{measured(total, error)} (standard error {error:.2g})."
    )


def section(m: Material) -> list[Block]:
    blocks: list[Block] = [Heading(text="Results")]
    if not m.ended:
        return [*blocks, paragraph("There is nothing to show yet.")]
    counts = Counter(record.verdict for record in m.ended)
    named = [f"{counts[verdict]} {VERDICT_WORDS[verdict]}" for verdict in VERDICTS if counts[verdict]]
    blocks.append(paragraph(f"Of {count(len(m.ended), 'experiment')}: {listed(named)}."))
    if m.measured:
        metric = m.measured[0].hypothesis.metric
        blocks.append(Figure(caption=f"{metric} over the experiments, in the order proposed. {FIGURE_WORDS}"))
    if m.kept:
        blocks.append(_kept(m))
    blocks.append(paragraph(TABLE_WORDS + (SAVING_WORDS if any(record.saving for record in m.kept) else "")))
    if categories := _categories(m):
        blocks.append(categories)
    blocks.append(_everything(m))
    if open_ones := len(m.records) - len(m.ended):
        blocks.append(paragraph(f"{count(open_ones, 'experiment')} without a verdict yet: not in these tables."))
    return blocks


FIGURE_WORDS = (
    "A point is the mean of a candidate's runs; the line is the best recipe so far; the band is two standard "
    "deviations of one run to either side of it. Scores of different sessions may differ by drift: verdicts rest on "
    "controls of the same session, not on the heights of points."
)


TABLE_WORDS = (
    "Gains are in the metric's units and positive where the candidate is better, each over its own control; n counts "
    "the candidate and control runs behind it. p is one-sided and for one look; the "
    "intervals of kept ones hold over all looks at their stated level."
)
SAVING_WORDS = (
    " A saving is that part of the control's cost, with its interval at the same level; such a change may be kept "
    "though its gain lies below zero, within the margin."
)


def _kept(m: Material) -> Table:
    cheaper = any(record.saving for record in m.kept)
    rows: list[list[Piece]] = []
    for record in m.kept:
        n = record.numbers
        rows.append(
            [
                record.id,
                Span(text=record.hypothesis.describe_change()),
                measured(n.effect, n.error, sign=True) if n else "",
                _interval(n),
                *([_saving(record)] if cheaper else []),
                f"{n.level:.2%}" if n else "",
                f"{n.n_candidate} + {n.n_control}" if n else "",
                f"{n.noise_sd:#.2g}" if n else "",
                f"{n.p:.2g}" if n else "",
                count(len(record.runs), "run"),
                duration(record.seconds),
            ]
        )
    columns = ["experiment", "change", "gain", "interval", "level", "n", "noise SD", "p, one look", "cost", "time"]
    if cheaper:
        columns.insert(4, "saving")
    return Table(caption="Kept", columns=columns, rows=rows, right=list(range(2, len(columns))), wide=True)


def _saving(record: ExperimentRecord) -> str:
    """`training_seconds 12.3% (8.1% to 16.5%)`, of a change that was kept for its cost."""
    s = record.saving
    return f"{record.hypothesis.cost_metric} {s.effect:.1%} ({s.low:.1%} to {s.high:.1%})" if s else ""


def _interval(n: Numbers | None) -> str:
    return f"{measured(n.low, n.error, sign=True)} to {measured(n.high, n.error, sign=True)}" if n else ""


def _categories(m: Material) -> Table | None:
    groups: dict[str, list[ExperimentRecord]] = defaultdict(list)
    for record in m.ended:
        groups[record.hypothesis.category or "none given"].append(record)
    if len(groups) < 2:
        return None
    rows: list[list[Piece]] = []
    for name, records in sorted(groups.items(), key=lambda item: -len(item[1])):
        kept = [record for record in records if record.verdict == "keep"]
        best = max((r.numbers for r in kept if r.numbers), key=lambda n: n.effect, default=None)
        crashed = sum(record.verdict == "crash" for record in records)
        shown = "" if best is None else measured(best.effect, best.error, sign=True)
        rows.append([name, str(len(records)), str(len(kept)), str(crashed), shown])
    columns = ["category", "tried", "kept", "crashed", "largest kept gain"]
    return Table(caption="What was tried, by category", columns=columns, rows=rows, right=[1, 2, 3, 4])


def _everything(m: Material) -> Table:
    several = len(m.metrics) > 1
    rows: list[list[Piece]] = []
    for record in m.ended:
        n = record.numbers
        change = record.hypothesis.describe_change()
        row: list[Piece] = [
            record.id,
            Span(text=change if len(change) <= LONGEST_CHANGE else change[: LONGEST_CHANGE - 1] + "…"),
            Span(text=record.verdict or "", style="verdict"),
            measured(n.effect, n.error, sign=True) if n else "",
            _interval(n),
            f"{n.n_candidate} + {n.n_control}" if n else "",
            count(len(record.runs), "run") if record.runs else "none",
            record.failure_class or "",
        ]
        rows.append([*row[:2], Span(text=record.hypothesis.metric), *row[2:]] if several else row)
    columns = ["experiment", "change", "verdict", "gain", "interval", "n", "cost", "failure"]
    right = [3, 4, 5, 6]
    if several:
        columns, right = [*columns[:2], "metric", *columns[2:]], [i + 1 for i in right]
    return Table(caption="Everything that was tried", columns=columns, rows=rows, right=right, wide=True)
