"""The report: true to the record, complete, readable without a network, and nobody's text in it runs."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from experiments_bench import BETTER, WORSE, Bench
from made_up_night import MACHINE, night
from markdown_it import MarkdownIt

from experiments.campaign import Budget, CampaignRecord
from experiments.campaigns import Campaigns
from experiments.final_audit import FinalAudit
from experiments.record import ExperimentRecord
from experiments.report import figures
from experiments.report.blocks import Document, Table, markdown
from experiments.report.gather import choose, gather
from experiments.report.material import Material
from experiments.report.methods import build
from experiments.report.page import page
from experiments.report.progress import progress
from workspace.errors import LabError, NotFound

SUMMARY: dict[str, Any] = {
    "backend": {"kind": "cpu", "device": "A Processor", "threads": 2},
    "parameters": {"total": 1_841_234},
    "data": {"corpus": "project", "key": "ab12", "sha256": {"train.bin": "e" * 64}},
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
}
NASTY = (
    "</td><script>alert(1)</script> [x](javascript:alert(1)) ![i](http://evil/x.png) | `a` **b** &lt; \u202e\x1b[31m"
)


def material(records: list[ExperimentRecord], **changes: Any) -> Material:
    start = {"what": "all", "lab": "my-lab", "version": "0.1.0", "at": "2026-11-21T08:00:00Z", "records": records}
    return Material(**{**start, "summaries": {"run-0001": SUMMARY}, **changes})


def tables(document: Document) -> dict[str, Table]:
    return {block.caption: block for block in document.blocks if isinstance(block, Table)}


def plain(document: Document) -> str:
    return " ".join(markdown(document).split())


def test_records_are_told_apart_by_their_place_and_never_compared_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with each, the work for ten thousand of them would grow with the square."""
    records = list(night(40))
    records += [record.model_copy(update={"verdict": None, "state": "measuring"}) for record in night(2, first=41)]

    def compared(*_: object) -> bool:
        raise AssertionError("records were compared")

    monkeypatch.setattr(ExperimentRecord, "__eq__", compared)
    assert "2 experiments without a verdict yet: not in these tables." in plain(build(material(records)))


def test_every_experiment_is_in_it_not_only_the_winners() -> None:
    records = list(night(60))
    document = build(material(records))
    everything = tables(document)["Everything that was tried"]
    assert [row[0] for row in everything.rows] == [record.id for record in records]
    kept = tables(document)["Kept"]
    assert [row[0] for row in kept.rows] == [record.id for record in records if record.verdict == "keep"]
    first = next(record for record in records if record.verdict == "keep")
    assert first.numbers and f"{first.numbers.level:.2%}" in str(kept.rows[0]) and "3 + 3" in str(kept.rows[0])


def test_setup_rule_threats_and_commands_come_from_the_record() -> None:
    records = list(night(30))
    text = plain(build(material(records)))
    for fact in ("A Processor", MACHINE, "1,841,234", "e" * 64, "2.13.0", "60 seconds", "lab-mcp reproduce exp-"):
        assert fact in text, fact
    looks = sum(step.name.startswith("look ") for record in records for step in record.steps)
    assert f"30 experiments and {looks} looks" in text
    assert "The audit text was not opened" in text and "ended without a comparison (oom)" in text
    kept = next(record for record in records if record.verdict == "keep")
    opened = {"run": kept.scored("candidate")[0].run, "val_bpb": 0.9321}
    text = plain(build(material(records, openings=[opened])))
    assert "The audit text was opened 1 time for these" in text and "0.9321" in text


def of_kind(record: ExperimentRecord, kind: str, **numbers: Any) -> ExperimentRecord:
    claim = record.hypothesis.model_copy(update={"kind": kind, "cost_metric": "training_seconds"})
    assert record.numbers is not None
    return record.model_copy(
        update={"hypothesis": claim, "numbers": record.numbers.model_copy(update=numbers)} | {"verdict": "keep"}
    )


def test_a_change_kept_for_its_cost_is_told_as_what_it_is() -> None:
    records = list(night(60))
    assert "saving" not in tables(build(material(records)))["Kept"].columns
    place, kept = next((i, r) for i, r in enumerate(records) if r.verdict == "keep")
    assert kept.numbers is not None
    saved = kept.numbers.model_copy(update={"effect": 0.213, "low": 0.182, "high": 0.244})
    cheaper = of_kind(kept, "non_inferiority", effect=-0.001, low=-0.003, high=0.001)
    records[place] = cheaper.model_copy(update={"saving": saved})
    document = build(material(records))
    table = tables(document)["Kept"]
    at = table.columns.index("saving")
    shown = {str(row[0]): str(row[at]) for row in table.rows}
    assert shown.pop(kept.id) == "training_seconds 21.3% (18.2% to 24.4%)" and set(shown.values()) == {""}
    text = plain(document)
    assert "of the same quality at lower cost: the lower bound of the gain is above minus the margin" in text
    assert "same with every seed" not in text
    exact = next(r for r in records if r.verdict == "discard" and r.numbers)
    text = plain(build(material([*records, of_kind(exact, "cost", method="exact")])))
    assert "of a cost that is the same with every seed" in text


def test_what_is_guaranteed_is_not_what_is_spent() -> None:
    """All pairs ended in a keep: nothing is spent, and yet the chance of a false one was not zero."""
    records = [r for r in night(60) if r.verdict == "keep" or r.numbers is None or r.numbers.method == "screen"]
    shown = material(records, error_budget=0.05)
    text = plain(build(shown))
    assert shown.spent_error() == 0 and "By the books 0.00% is spent" in text
    assert "keeps a change without effect is at most its error budget of 5 %." in text
    looked_at = of_kind(records[0], "superiority", method="exact").model_copy(update={"verdict": "discard"})
    assert material([looked_at]).spent_error() == looked_at.rule.alpha, "charged as the ledger charges it"


def test_a_corpus_that_changed_is_a_threat_to_the_line_of_best_scores() -> None:
    def on(record: ExperimentRecord, text: str) -> ExperimentRecord:
        scores = [score.model_copy(update={"on": {"data.identity": text}}) for score in record.scores]
        return record.model_copy(update={"scores": scores})

    records = list(night(20))
    assert "The corpus changed" not in plain(build(material([on(record, "a") for record in records[:9]] + records[9:])))
    text = plain(build(material([on(record, "ab"[i > 9]) for i, record in enumerate(records)])))
    assert "The corpus changed between experiments (2 different ones)" in text


def test_the_best_recipe_is_shown_beside_the_starting_one() -> None:
    records = list(night(40))
    best = next(record for record in reversed(records) if record.is_best)
    (table,) = [t for caption, t in tables(build(material(records))).items() if caption.startswith("The best recipe")]
    changed = {str(row[0].text) for row in table.rows if not isinstance(row[0], str)}
    assert set(best.hypothesis.change) <= changed and "seed" not in changed


def test_a_campaign_is_named_with_goal_and_budget() -> None:
    campaign = CampaignRecord(
        id="camp-0001", goal="a smaller val_bpb", metric="val_bpb", direction="lower", smallest_effect=0.004,
        budget=Budget(hours=8, experiments=80), proposer="optuna", created_at="2026-11-20T20:00:00Z",
    )  # fmt: skip
    document = build(material(list(night(5)), what="camp-0001", campaign=campaign))
    assert document.title == "camp-0001: a smaller val_bpb"
    assert "within a budget of 80 experiments and 8 hours" in plain(document)
    audit = FinalAudit(
        state="done", experiment="exp-0002", runs=["run-0001", "run-0002"], chosen_by=0.99,
        scores={"run-0001": 1.01, "run-0002": 1.03},
    )  # fmt: skip
    ended = campaign.model_copy(update={"state": "ended", "audit": audit})
    text = plain(build(material(list(night(60)), what="camp-0001", campaign=ended)))
    assert "On the audit text, which no decision has seen, exp-0002 has val_bpb 1.02 (mean of 2 runs" in text


@pytest.mark.parametrize(
    "records", [list(night(1)), [r.model_copy(update={"state": "ready", "verdict": None}) for r in night(2)]]
)
def test_little_or_nothing_measured_is_said_as_it_is(records: list[ExperimentRecord]) -> None:
    document = build(material(records, summaries={}))
    text = plain(document)
    assert "hardware and data are not known" in text or records[0].scores
    for wrong in (r"\b1 experiments", r"\b1 runs", r"\b1 looks", r"\b1 changes", r"\bNone\b"):
        assert not re.search(wrong, text), wrong


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def hostile() -> list[ExperimentRecord]:
    def spoilt(record: ExperimentRecord) -> ExperimentRecord:
        claim = record.hypothesis.model_copy(
            update={"change": {NASTY: NASTY}, "category": NASTY + record.id, "statement": NASTY, "metric": NASTY}
        )
        scores = [score.model_copy(update={"machine": NASTY}) for score in record.scores]
        update = {"hypothesis": claim, "scores": scores, "proposer": NASTY, "skip_test_run": NASTY, "ref": NASTY}
        return record.model_copy(update={**update, "failure_class": NASTY})

    return [spoilt(record) for record in night(25)]


def test_nothing_anybody_wrote_becomes_markup() -> None:
    records = hostile()
    summary = {**SUMMARY, "backend": {"device": NASTY}, "versions": {NASTY: NASTY}}
    document = build(material(records, what=NASTY, summaries={"run-1": summary}))
    whole = page(document, figures.svg(progress(records)))
    elements = _Elements()
    elements.feed(whole)
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"script", "img", "iframe", "link", "object", "form"}
    links = [attributes.get("href") or "" for tag, attributes in elements.found if tag == "a"]
    assert links and all(link.startswith("#") for link in links)
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    assert "\x1b" not in whole and "\u202e" not in whole
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown(document))
    marked = _Elements()
    marked.feed(rendered)
    assert not {tag for tag, _ in marked.found} & {"script", "img", "a"}
    widths = {line.count("<td") for line in re.findall(r"<tr>.*?</tr>", rendered, re.DOTALL)}
    assert all(len(row) == len(table.columns) for table in tables(document).values() for row in table.rows)
    assert widths


def test_the_page_loads_nothing() -> None:
    whole = page(build(material(list(night(12)))), figures.svg(progress(night(12))))
    assert "default-src 'none'" in whole and len(whole) < 500_000
    assert not re.search(r'(src|href)\s*=\s*["\'](https?:)?//', re.sub(r'xmlns(:\w+)?="[^"]*"', "", whole))


# -- gathering --------------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path: Path) -> Any:
    bench = Bench(tmp_path / "lab")
    campaigns = Campaigns(bench.workspace, bench.database, bench.outbox, bench.lab, {})
    first = bench.conclude(BETTER, conversation="chat-1")
    second = bench.conclude(WORSE, conversation="chat-2")
    assert (first.id, second.id) == ("exp-0001", "exp-0002")
    return SimpleNamespace(
        workspace=bench.workspace, runs=bench.runs, notebook=bench.notebook, experiments=bench.lab, campaigns=campaigns
    )


def test_what_is_meant_is_found(parts: Any) -> None:
    assert choose(parts, "all") == ["exp-0001", "exp-0002"] == choose(parts, "exp-0001..exp-0002")
    assert choose(parts, "exp-0002") == ["exp-0002"]
    sessions = sorted(parts.notebook.list(10), key=lambda session: session.id)
    assert [choose(parts, session.id) for session in sessions] == [["exp-0001"], ["exp-0002"]]
    assert choose(parts, sessions[0].date) == ["exp-0001", "exp-0002"]
    for wrong, words in (("yesterday", "names no experiments"), ("camp-0009", "camp"), ("exp-0009", "exp-0009")):
        with pytest.raises(LabError, match=words):
            choose(parts, wrong)


def test_a_report_of_real_records(parts: Any) -> None:
    text = plain(build(gather(parts, "all", "0.1.0")))
    assert "2 experiments with a verdict" in text and "optimizer.matrix" in text and "exp-0002" in text
    with pytest.raises(NotFound):
        gather(parts, "2001-01-01", "0.1.0")
