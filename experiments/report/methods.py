"""The methods-and-results section of a paper, from what the lab has on record. Nothing in it is written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from experiments.report import findings, threats
from experiments.report.blocks import (
    Block,
    Bullets,
    Commands,
    Document,
    Heading,
    Paragraph,
    Piece,
    Span,
    Table,
    paragraph,
)
from experiments.report.material import Material, on_pairs, values
from experiments.rule import Rule
from experiments.words import count, duration, listed

RULE_WORDS = {
    "alpha": "chance of keeping a change without effect, over all looks of one experiment",
    "first_confidence": "one-sided confidence at which the first looks rule out a gain worth finding",
    "discard_confidence": "the same, at each look at the pairs",
    "resolution": "gains below this many standard deviations of a run are not searched for",
    "min_controls": "controls of the parent before a candidate is compared with them",
    "stale_after": "runs after which the newest control is too old",
    "min_pairs": "pairs of fresh runs before a keep is possible",
    "max_pairs": "pairs of fresh runs at most",
}
NOT_SHOWN = ("seed", "checkpoint", "search_space")  # settings that are no part of a recipe's difference


def build(material: Material) -> Document:
    """The whole report. Raises nothing: what is not known is said to be not known."""
    blocks: list[Block] = [
        *_question(material),
        *_setup(material),
        *_rule(material),
        *findings.section(material),
        *threats.section(material),
        *_reproduction(material),
    ]
    return Document(title=_title(material), subtitle=_subtitle(material), blocks=blocks)


def _title(m: Material) -> str:
    if m.campaign:
        return f"{m.campaign.id}: {m.campaign.goal}"
    return "All experiments" if m.what == "all" else f"Experiments of {m.what}"


def _subtitle(m: Material) -> str:
    times = [record.created_at for record in m.records]
    ends = [record.ended_at for record in m.records if record.ended_at]
    span = f"{min(times)[:16].replace('T', ' ')} to {max(ends)[:16].replace('T', ' ')} UTC. " if times and ends else ""
    return f"{span}Written by lab-mcp {m.version} from the record of {m.lab}, {m.at[:16].replace('T', ' ')} UTC."


# -- the question -----------------------------------------------------------------------------------------------------


def _question(m: Material) -> list[Block]:
    blocks: list[Block] = [Heading(text="Question")]
    if m.campaign:
        c = m.campaign
        limits = [
            f"{value:g} {name.replace('_', ' ')}" for name, value in c.budget.model_dump(exclude_none=True).items()
        ]
        blocks.append(
            paragraph(
                f"{c.goal[:1].upper()}{c.goal[1:].rstrip('.')}. Judged by ", Span(text=c.metric), f", better when "
                f"{c.direction}; the smallest effect worth having is {c.smallest_effect:g}. Changes were proposed by "
                f"{c.proposer}, within a budget of {listed(limits)}.",
            )
        )  # fmt: skip
    else:
        claims = [record.hypothesis for record in m.records]
        smallest = sorted({claim.smallest_effect for claim in claims})
        effects = f"{smallest[0]:g}" + (f" to {smallest[-1]:g}" if len(smallest) > 1 else "")
        pieces: list[Piece] = ["Which changes of the training recipe improve "]
        for i, metric in enumerate(m.metrics):
            direction = next(claim.direction for claim in claims if claim.metric == metric)
            pieces += [", " if i else "", Span(text=metric), f" ({direction} is better)"]
        blocks.append(Paragraph(pieces=[*pieces, f"? Smallest effects worth having: {effects}."]))
    blocks.append(paragraph(*findings.in_short(m)))
    return blocks


# -- the setup --------------------------------------------------------------------------------------------------------


def _setup(m: Material) -> list[Block]:
    s = m.summaries
    rows: list[list[Piece]] = []

    def add(what: str, path: str, words: str = "{}") -> None:
        found = values(s, path)
        if found:
            rows.append([what, "; ".join(words.format(_n(value)) for value in found[:6])])

    machines = list(dict.fromkeys(score.machine for record in m.records for score in record.scores))
    if machines:
        rows.append(["Machine", "; ".join(machines[:6])])
    add("Device", "backend.device")
    add("Number format", "dtype.used")
    add("Compiled", "compile.used")
    add("Parameters", "parameters.total")
    add("Layers", "depth")
    add("FLOPs per token", "flops_per_token")
    budgets = list(dict.fromkeys(_budget(r.candidate.settings) for r in m.records if r.candidate))
    if budgets:
        rows.append(["Training budget of a run", "; ".join(b for b in budgets[:6] if b)])
    add("Corpus", "data.corpus")
    for split in ("train", "validation", "audit"):
        add(f"Text, {split}", f"data.bytes.{split}", "{} bytes")
    add("Evaluated per run", "evaluated.bytes", "{} bytes")
    add("Key of the prepared data", "data.key")
    for hashes in values(s, "data.sha256")[:2]:
        for name, digest in hashes.items():
            rows.append([f"SHA-256 of {name}", Span(text=str(digest))])
    versions = {name: values(s, f"versions.{name}") for name in _names(s, "versions")}
    rows += [[f"Version of {name}", "; ".join(map(str, found))] for name, found in versions.items() if found]
    blocks: list[Block] = [Heading(text="Setup")]
    if rows:
        blocks.append(Table(caption="What was trained, on what, with what", columns=["", ""], rows=rows))
    else:
        blocks.append(paragraph("No run of these experiments has left a summary: hardware and data are not known."))
    return [*blocks, *_differences(m)]


def _names(summaries: Mapping[str, Mapping[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(name for summary in summaries.values() for name in (summary.get(key) or {})))


def _n(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.6g}"


def _budget(settings: Mapping[str, Any]) -> str:
    budget = settings.get("budget")
    return f"{budget.get('amount'):g} {budget.get('kind')}" if isinstance(budget, Mapping) else ""


def _differences(m: Material) -> list[Block]:
    """The starting recipe beside the best one."""
    first = next((record for record in m.records if record.control), None)
    best = next((record for record in reversed(m.kept) if record.is_best), None)
    if first is None or best is None or first.control is None or best.candidate is None:
        return []
    before, after = flat(first.control.settings), flat(best.candidate.settings)
    keys = [key for key in after if before.get(key) != after[key] and key.split(".")[0] not in NOT_SHOWN]
    rows: list[list[Piece]] = [
        [Span(text=key), Span(text=_value(before.get(key))), Span(text=_value(after[key]))] for key in keys
    ]
    if not rows:
        return [paragraph(f"The settings of {best.id} are those of the starting recipe; its code differs.")]
    caption = f"The best recipe ({best.id}) beside the starting one"
    return [Table(caption=caption, columns=["setting", "start", "best"], rows=rows)]


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"model.depth": 4, ...}` of nested settings."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


# -- the decision rule ------------------------------------------------------------------------------------------------


def _rule(m: Material) -> list[Block]:
    rules: dict[str, list[Rule]] = {}
    for record in m.records:
        for name, value in vars(record.rule).items():
            rules.setdefault(name, [])
            if value not in rules[name]:
                rules[name].append(value)
    rows: list[list[Piece]] = []
    for name, found in rules.items():
        numbers = sorted(found)  # type: ignore[type-var]
        shown = f"{numbers[0]:.4g}" + (f" to {numbers[-1]:.4g}" if len(numbers) > 1 else "")
        rows.append([Span(text=name), shown, RULE_WORDS.get(name, "")])
    looks = sum(m.looks(record) for record in m.ended)
    fresh = sum(map(on_pairs, m.ended))
    blocks: list[Block] = [
        Heading(text="Decision rule"),
        paragraph(
            "A hypothesis is frozen, with its hash, before anything runs. A short test run comes first. A first run of "
            "the candidate is then compared with the controls of the same session, which can only end the experiment. "
            "Only pairs of fresh runs, candidate and control side by side with the same seed, can keep it: the mean of "
            "their differences is judged by Student's t, and a look after each pair is allowed for."
        ),
        Bullets(
            items=[
                [Span(text="keep", style="verdict"), " the lower bound of the gain is above zero and the estimate at "
                 "least the smallest effect worth having"],
                *_other_keeps(m),
                [Span(text="discard", style="verdict"), " a gain of that size is ruled out"],
                [Span(text="inconclusive", style="verdict"), " neither, with the runs that were to be had"],
                [Span(text="no_effect", style="verdict"), " the change alters nothing that is trained; ",
                 Span(text="crash", style="verdict"), " a run of the candidate failed; ",
                 Span(text="invalid", style="verdict"), " the measurement itself cannot be trusted"],
            ]
        ),
        Table(caption="The rule as it was used", columns=["parameter", "value", "meaning"], rows=rows, right=[1]),
        paragraph(
            f"{count(looks, 'look')} at scores in {count(len(m.ended), 'experiment')}; {fresh} of them came to pairs "
            f"of fresh runs. {_error(m)}"
        ),
    ]  # fmt: skip
    return blocks


def _other_keeps(m: Material) -> list[list[Piece]]:
    """When a claim of another kind is kept, where there are any."""
    found: list[list[Piece]] = []
    if any(record.hypothesis.kind == "non_inferiority" for record in m.records):
        found.append([
            Span(text="keep", style="verdict"), " of the same quality at lower cost: the lower bound of the gain is "
            "above minus the margin, the lower bound of the saving above zero, and the saving at least the one asked "
            "for; discarded where the margin is passed or that saving is ruled out",
        ])  # fmt: skip
    if any(r.hypothesis.kind == "cost" and r.numbers and r.numbers.method == "exact" for r in m.records):
        found.append([
            Span(text="keep", style="verdict"), " of a cost that is the same with every seed: it falls by the smallest "
            "effect worth having, in two pairs of runs; there is no noise to bound it with",
        ])  # fmt: skip
    return found


def _error(m: Material) -> str:
    """What is guaranteed, and how far it is used: two things, since what was kept costs nothing by the books."""
    of = "this campaign" if m.campaign else "a campaign, or of a calendar week outside campaigns,"
    most = "its error budget" + ("" if m.error_budget is None else f" of {100 * m.error_budget:.3g} %")
    return (
        f"The chance that any experiment of {of} keeps a change without effect is at most {most}. By the books "
        f"{m.spent_error():.2%} is spent: the alphas of the experiments whose fresh runs were looked at and that were "
        "not kept."
    )


# -- doing it again ---------------------------------------------------------------------------------------------------


def _reproduction(m: Material) -> list[Block]:
    best = next((record for record in reversed(m.kept) if record.is_best), None)
    lines: list[str] = []
    for record in [best] if best else m.measured[-1:]:
        lines.append(f"lab-mcp reproduce {record.id}    # the same commit, settings and data, run again")
        if record.commit:
            lines.append(f"git show {record.commit[:12]}    # the change, with the verdict in its message")
    lines.append(f"lab-mcp report {m.what}    # this report, from the record as it then is")
    blocks: list[Block] = [Heading(text="Doing it again"), Commands(lines=lines)]
    if m.kept:
        rows: list[list[Piece]] = [
            [record.id, Span(text=record.commit or ""), Span(text=record.ref or ""),
             Span(text=record.hypothesis_hash[:16])]
            for record in m.kept
        ]  # fmt: skip
        columns = ["experiment", "commit", "ref", "hypothesis (SHA-256)"]
        blocks.append(Table(caption="Where the kept recipes are", columns=columns, rows=rows, wide=True))
    runs = sum(len(record.runs) for record in m.ended)
    seconds = sum(record.seconds for record in m.ended)
    blocks.append(
        paragraph(
            f"The raw data: {count(runs, 'run')} ({duration(seconds)}) under runs/, one folder per experiment under "
            "experiments/, all rows in results.tsv, the notebook under docs/sessions/."
        )
    )
    return blocks
