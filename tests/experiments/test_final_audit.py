"""What a campaign reports: a mean of replicates on text no decision has seen, opened once."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from campaigns_bench import CampaignBench
from experiments_bench import Killed

from experiments.campaign import Budget
from experiments.campaign_ledger import CampaignLedger
from experiments.final_audit import TRIES
from experiments.proposers.port import Answer, Question
from lab_mcp.cli_models import refuse_while_deciding
from training.runs.records import LIVE
from workspace import durable
from workspace.errors import LabError, Refused, Unavailable


def claim(rate: float, **more: Any) -> dict[str, Any]:
    return {"statement": f"Setting optimizer.matrix_lr to {rate} lowers val_bpb", "metric": "val_bpb",
            "direction": "lower", "smallest_effect": 0.005, "change": {"optimizer.matrix_lr": rate}} | more  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> CampaignBench:
    return CampaignBench(tmp_path / "lab")


def conclude(bench: CampaignBench, *rates: float) -> None:
    """A campaign of these experiments, to its end."""
    if not bench.campaigns.ledger.list("running"):
        bench.start(len(rates), proposer="assistant")
    campaign = bench.campaigns.ledger.list("running")[0].id
    for value in rates:
        bench.lab.propose(claim(value), **bench.campaigns.admit(campaign))
        while bench.lab.busy():
            bench.step()
    bench.run_out()


def test_the_best_is_a_mean_of_replicates_on_the_audit_text_opened_once(bench: CampaignBench) -> None:
    conclude(bench, 0.012, 0.3)
    best = bench.lab.get("exp-0001")
    runs = [score.run for score in best.decisive()]
    assert best.verdict == "keep" and len(runs) >= 3
    assert sorted(bench.openings) == sorted((run, "camp-0001") for run in runs), "its fresh runs, each once"
    audit = bench.campaigns.get("camp-0001").audit
    assert audit is not None and audit.state == "done" and audit.chosen_by is not None
    assert statistics.fmean(audit.values) == pytest.approx(audit.chosen_by + 0.01)
    told = str(bench.campaigns.look("camp-0001").audit)
    assert f"exp-0001 has val_bpb {statistics.fmean(audit.values):.6g} (mean of {len(runs)} runs, SD" in told
    bench.campaigns.audit("camp-0001")
    bench.again()
    bench.run_out()
    assert len(bench.openings) == len(runs), "neither a request nor a restart opens it again"
    bench.campaigns.extend("camp-0001", Budget(experiments=1))
    conclude(bench, 0.29)
    audit = bench.campaigns.get("camp-0001").audit
    assert audit is not None and (audit.state, audit.experiment, audit.runs) == ("done", "exp-0001", runs)
    assert len(bench.openings) == len(runs), "the same best is not scored again"
    bench.campaigns.extend("camp-0001", Budget(experiments=1))
    conclude(bench, 0.039)
    better = bench.lab.get("exp-0004")
    newer = [score.run for score in better.decisive()]
    assert better.verdict == "keep" and better.is_best and len(newer) >= 3 and not set(newer) & set(runs)
    assert [run for run, _ in bench.openings[len(runs) :]] == newer, "a new best is scored, by its own runs alone"
    audit = bench.campaigns.get("camp-0001").audit
    assert audit is not None and (audit.state, audit.experiment, audit.runs) == ("done", "exp-0004", newer)
    assert len(audit.values) == len(newer) and audit.values != [audit.scores[run] for run in runs]


def test_what_was_scored_while_it_was_extended_is_not_opened_again(
    bench: CampaignBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = bench.opened

    def extends(*arguments: Any) -> dict[str, Any]:
        if not bench.openings:
            bench.campaigns.extend("camp-0001", Budget(experiments=1))
        return plain(*arguments)

    monkeypatch.setattr(bench, "opened", extends)
    bench.again()
    bench.start(1, proposer="assistant")
    bench.lab.propose(claim(0.02), **bench.campaigns.admit("camp-0001"))
    while not bench.openings:
        bench.step()
    campaign = bench.campaigns.get("camp-0001")
    assert campaign.state == "running" and campaign.audit is not None and len(campaign.audit.scores) == 1
    conclude(bench, 0.3)
    runs = [score.run for score in bench.lab.get("exp-0001").decisive()]
    assert sorted(run for run, _ in bench.openings) == sorted(runs), "each once"


def extended_to_another_end(bench: CampaignBench) -> None:
    """One more experiment, which becomes the best, while the audit's thread is busy."""
    bench.campaigns.extend("camp-0001", Budget(experiments=1))
    bench.lab.propose(claim(0.039), **bench.campaigns.admit("camp-0001"))
    while bench.lab.busy() or bench.campaigns.ledger.list("running"):
        bench.step()


@pytest.mark.parametrize("scored", [True, False])
def test_a_score_that_comes_after_another_end_does_not_take_its_place(
    bench: CampaignBench, monkeypatch: pytest.MonkeyPatch, scored: bool
) -> None:
    monkeypatch.setattr("experiments.tries.FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr("experiments.tries.LONGEST_PAUSE_S", 0.0)
    plain, asked = bench.opened, list[str]()

    def late(workspace: Any, run: str, by: str) -> dict[str, Any]:
        asked.append(run)
        if len(asked) == 1:
            extended_to_another_end(bench)
            if not scored:
                raise Unavailable("no memory is left")
        return plain(workspace, run, by)

    monkeypatch.setattr(bench, "opened", late)
    bench.again()
    conclude(bench, 0.012)
    view, audit = bench.campaigns.look("camp-0001"), bench.campaigns.get("camp-0001").audit
    assert audit is not None and (audit.state, audit.tries) == ("done", 0)
    assert view.best == audit.experiment == "exp-0002" and "exp-0002 has val_bpb" in str(view.audit)
    newer = [score.run for score in bench.lab.get("exp-0002").decisive()]
    assert asked[1:] == newer, "of the earlier end nothing more is opened"
    assert (asked[0] in audit.scores) == scored, "and what was seen of it is kept"


def test_what_was_kept_beside_the_best_is_not_reported(tmp_path: Path) -> None:
    """Two measured at once against one parent: the first to end becomes the best, the other is kept beside it."""
    bench = CampaignBench(tmp_path / "lab", slots=2)
    bench.start(2, proposer="assistant")
    for value in (0.03, 0.02):
        bench.lab.propose(claim(value), **bench.campaigns.admit("camp-0001"))
    bench.run_out()
    kept = {record.id: record.is_best for record in bench.lab.list(verdict="keep")}
    assert sorted(kept.values()) == [False, True]
    view, audit = bench.campaigns.look("camp-0001"), bench.campaigns.get("camp-0001").audit
    assert audit is not None and kept[str(view.best)] and view.best == audit.experiment


def test_what_a_campaign_still_decides_about_is_not_looked_at(bench: CampaignBench) -> None:
    bench.start(2, proposer="assistant")
    bench.lab.propose(claim(0.02), **bench.campaigns.admit("camp-0001"))
    while bench.lab.busy():
        bench.step()
    run = bench.workspace.run_dir("run-0001") / "run.json"
    run.parent.mkdir(exist_ok=True)
    run.write_text('{"experiment": "exp-0001"}')
    for what in ("exp-0001", "run-0001"):
        with pytest.raises(Refused, match=f"{what} belongs to camp-0001, which has not ended.*--anyway"):
            refuse_while_deciding(bench.workspace, what)
    bench.campaigns.stop("camp-0001")
    refuse_while_deciding(bench.workspace, "run-0001")


def test_without_a_keep_nothing_is_opened(bench: CampaignBench) -> None:
    conclude(bench, 0.001)
    assert bench.openings == []
    assert bench.campaigns.look("camp-0001").audit == "nothing was kept, so nothing was audited"


def test_a_kill_opens_it_again_for_the_run_it_interrupted_only(bench: CampaignBench) -> None:
    with pytest.MonkeyPatch.context() as patch:
        calls = list[int]()

        def killed(self: CampaignLedger, *arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:  # what is scored was chosen, the first run's score stored; the second's is lost
                raise Killed("before it was stored")
            return stored(self, *arguments)

        stored = CampaignLedger.audited
        patch.setattr(CampaignLedger, "audited", killed)
        with pytest.raises(Killed):
            conclude(bench, 0.02)
    bench.database.close()
    bench.again()
    bench.run_out()
    runs = [score.run for score in bench.lab.get("exp-0001").decisive()]
    assert [run for run, _ in bench.openings] == [runs[0], runs[1], *runs[1:]]


@pytest.mark.parametrize(
    ("error", "tries"), [(Refused("the prepared data are gone"), 1), (Unavailable("no memory is left"), 5)]
)
def test_an_audit_that_cannot_be_made_is_told(
    bench: CampaignBench, monkeypatch: pytest.MonkeyPatch, error: LabError, tries: int
) -> None:
    monkeypatch.setattr("experiments.tries.FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr("experiments.tries.LONGEST_PAUSE_S", 0.0)
    asked = []

    def fails(workspace: Any, run: str, by: str) -> dict[str, Any]:
        asked.append(run)
        raise error

    monkeypatch.setattr(bench, "opened", fails)
    bench.again()
    conclude(bench, 0.02)
    assert len(asked) == tries
    assert f"could not be scored on the audit text: {error.problem}" in str(bench.campaigns.look("camp-0001").audit)
    assert not bench.campaigns.busy()


def ended_and_chosen(bench: CampaignBench) -> None:
    """A campaign with a keep, its runs chosen, the first not yet scored."""
    bench.start(1, proposer="assistant")
    bench.lab.propose(claim(0.02), **bench.campaigns.admit("camp-0001"))
    while bench.lab.busy() or bench.campaigns.ledger.list("running"):
        bench.campaigns.tick()
        bench.lab.tick()
        bench.runs.step()
    assert bench.campaigns.tick_audits() == 1 and bench.openings == []


def test_it_waits_for_the_device_and_says_so(bench: CampaignBench) -> None:
    ended_and_chosen(bench)
    other = bench.lab.propose(claim(0.3))
    while not (live := bench.runs.list(states=LIVE)):
        bench.lab.tick()
    for _ in range(2 * TRIES):
        assert bench.campaigns.tick_audits() == 0
    told = f"is made when the device is free: {live[0].id} is queued"
    assert told in str(bench.campaigns.look("camp-0001").waiting_for) and bench.openings == []
    bench.runs.step()
    assert bench.campaigns.tick_audits() == 0, "another run of the experiment is to follow"
    assert f"free: {other.id} is being measured" in str(bench.campaigns.look("camp-0001").waiting_for)
    bench.run_out()
    audit = bench.campaigns.get("camp-0001").audit
    assert audit is not None and audit.state == "done" and audit.tries == 0
    assert bench.campaigns.look("camp-0001").waiting_for is None


def test_others_go_on_while_it_is_made(bench: CampaignBench, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, begun, go_on = bench.opened, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> dict[str, Any]:
        begun.set()
        assert go_on.wait(60)
        return plain(*arguments)

    monkeypatch.setattr(bench, "opened", slow)
    bench.again()
    ended_and_chosen(bench)
    with ThreadPoolExecutor(1) as thread:
        audit = thread.submit(bench.campaigns.tick_audits)
        try:
            assert begun.wait(60)
            bench.start(1, goal="another", proposer="assistant")
            bench.lab.propose(claim(0.3), **bench.campaigns.admit("camp-0002"))
            while bench.campaigns.ledger.list("running"):
                bench.step()
            assert bench.campaigns.get("camp-0002").state == "ended" and not audit.done()
        finally:
            go_on.set()
        assert audit.result(60) == 1
    bench.run_out()
    runs = [score.run for score in bench.lab.get("exp-0001").decisive()]
    assert [run for run, _ in bench.openings] == runs, "each once"


@pytest.mark.parametrize(
    ("run", "by", "scored", "counts"),
    [("run-0404", "ada", True, 1), ("run-0404", "camp-0001", True, 1), ("", "ada", True, 1),
     ("", "camp-0001", False, 1), ("", "camp-0001", True, 1)],
)  # fmt: skip
def test_openings_before_are_told(bench: CampaignBench, run: str, by: str, scored: bool, counts: int) -> None:
    """Of another run, by somebody else, broken off, or by other code: each saw the text. "" is a run of the best's
    own, which is opened once more."""
    ended_and_chosen(bench)
    own = bench.lab.get("exp-0001").decisive()[0].run
    opening = {"id": "1", "run": run or own, "by": by, "data": "text"} | ({"val_bpb": 1.0} if scored else {})
    for record in (opening, opening | {"id": "2", "data": "another text"}):
        durable.append_jsonl(bench.workspace.lab_dir / "audits.jsonl", record)
    bench.run_out()
    told = str(bench.campaigns.look("camp-0001").audit)
    assert ("the text had been opened 1 time before: .lab/audits.jsonl" in told) == (counts > 0), told
    assert ("opened" in told) == (counts > 0)


def test_an_opening_that_gave_a_reported_score_is_not_one_before(
    bench: CampaignBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody had looked at the runs already; the scores reported are those, nothing was opened again."""
    plain = bench.opened

    def known(workspace: Any, run: str, by: str) -> dict[str, Any]:
        earlier = plain(workspace, run, by) | {"id": f"ada-{run}", "by": "ada"}
        durable.append_jsonl(bench.workspace.lab_dir / "audits.jsonl", earlier)
        return earlier

    monkeypatch.setattr(bench, "opened", known)
    bench.again()
    ended_and_chosen(bench)
    bench.run_out()
    audit = bench.campaigns.get("camp-0001").audit
    assert audit is not None and (audit.state, audit.opened_before) == ("done", 0)
    assert audit.openings == {run: f"ada-{run}" for run in audit.runs}
    bench.campaigns.extend("camp-0001", Budget(experiments=1))
    conclude(bench, 0.29)
    audit = bench.campaigns.get("camp-0001").audit
    assert audit is not None and (audit.state, audit.opened_before) == ("done", 0), "known over an extension, too"


def test_openings_before_are_told_after_an_extension_too(bench: CampaignBench) -> None:
    ended_and_chosen(bench)
    durable.append_jsonl(bench.workspace.lab_dir / "audits.jsonl", {"id": "1", "run": "r", "by": "ada", "data": "text"})
    bench.run_out()
    bench.campaigns.extend("camp-0001", Budget(experiments=1))
    conclude(bench, 0.29)
    assert "opened 1 time before" in str(bench.campaigns.look("camp-0001").audit)


def away_for_an_hour(what: str) -> Unavailable:
    error = Unavailable(what)
    error.wait_s = 3600.0
    return error


class Away:
    """A proposer that cannot be asked after its first answer; before that is said, `meanwhile`."""

    def __init__(self, error: LabError, meanwhile: Callable[[], object]) -> None:
        self.error, self.meanwhile, self.asked = error, meanwhile, 0

    def check(self, question: Question) -> None:
        pass

    def propose(self, question: Question) -> Answer:
        self.asked += 1
        if self.asked > 1:
            self.meanwhile()
            raise self.error
        return Answer("away", claim(0.02))


@pytest.mark.parametrize("while_asked", [False, True])
@pytest.mark.parametrize("error", [away_for_an_hour("the model is away"), Refused("the key is wrong")])
def test_an_audit_does_not_wait_for_the_proposer(tmp_path: Path, error: LabError, while_asked: bool) -> None:
    away = Away(error, lambda: bench.campaigns.stop("camp-0001") if while_asked else None)
    bench = CampaignBench(tmp_path / "lab", proposers={"optuna": lambda record: away})
    bench.start(5)
    while away.asked < 2 or bench.lab.busy():
        bench.step()
    if not while_asked:
        assert error.problem in f"{bench.campaigns.look('camp-0001')}"
        bench.campaigns.stop("camp-0001")
    bench.run_out()
    audit = bench.campaigns.get("camp-0001").audit
    assert audit is not None and (audit.state, audit.experiment) == ("done", "exp-0001")
    assert bench.campaigns.look("camp-0001").waiting_for is None


def test_who_asks_for_an_audit_that_waits_has_it_tried_at_once(
    bench: CampaignBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, asked = bench.opened, list[str]()

    def away_once(workspace: Any, run: str, by: str) -> dict[str, Any]:
        asked.append(run)
        if len(asked) == 1:
            raise away_for_an_hour("no memory is left")
        return plain(workspace, run, by)

    monkeypatch.setattr(bench, "opened", away_once)
    bench.again()
    ended_and_chosen(bench)
    for _ in range(5):
        assert bench.campaigns.tick_audits() == 0
    assert len(asked) == 1 and bench.campaigns.look("camp-0001").waiting_for == "no memory is left."
    assert bench.campaigns.audit("camp-0001").audit == bench.campaigns.get("camp-0001").audit
    bench.run_out()
    audit = bench.campaigns.get("camp-0001").audit
    assert audit is not None and audit.state == "done"


def test_a_running_campaign_is_not_audited(bench: CampaignBench) -> None:
    bench.start(5)
    with pytest.raises(Refused, match="is audited when it has ended, once"):
        bench.campaigns.audit("camp-0001")
