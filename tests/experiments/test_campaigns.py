"""Campaigns that nobody watches: they use their budget, keep what is better, and know when to stop."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from campaigns_bench import CampaignBench, landscape
from experiments_bench import Killed
from scripted_runs import Script

from experiments.campaign import Budget, CampaignRecord, CampaignStep
from experiments.campaign_view import hours
from experiments.lab import Experiments
from experiments.proposers.port import Answer, Exhausted, Question
from training.runs.records import RunRequest
from workspace.errors import NotFound, Refused, Unavailable


@pytest.fixture
def bench(tmp_path: Path) -> CampaignBench:
    return CampaignBench(tmp_path / "lab")


class Scripted:
    """A proposer whose answers are written down; an exception is raised instead."""

    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[Question] = []

    def check(self, question: Question) -> None:
        pass

    def propose(self, question: Question) -> Answer:
        self.asked.append(question)
        answer = self.answers.pop(0) if self.answers else Exhausted("the script is over")
        if isinstance(answer, Exception):
            raise answer
        return Answer("scripted", answer)


def rate(value: float) -> dict[str, Any]:
    return {"statement": f"Setting optimizer.matrix_lr to {value} lowers val_bpb", "change":
            {"optimizer.matrix_lr": value}, "predicted_effect": 0.02}  # fmt: skip


def scripted(root: Path, *answers: dict[str, Any] | Exception, script: Script = landscape) -> CampaignBench:
    proposer = Scripted(*answers)
    bench = CampaignBench(root, script, proposers={"optuna": lambda record: proposer})
    bench.scripted = proposer  # type: ignore[attr-defined]
    return bench


def failing(*classes: str) -> Script:
    """Test runs fail with these classes, one after another; then all is well."""
    left = list(classes)

    def script(request: RunRequest, key: str) -> dict[str, Any]:
        if request.purpose == "test" and left:
            return {"state": "failed", "failure_class": left.pop(0)}
        return landscape(request, key)

    return script


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_learning_rate_that_is_ten_times_too_low_is_found(bench: CampaignBench, sampler: str) -> None:
    bench.start(15, settings={"sampler": sampler})
    bench.run_out()
    (view,) = bench.campaigns.list()
    assert view.state == "ended" and view.why == "the budget of 15 experiments is used up"
    assert view.counts["keep"] >= 1 and sum(view.counts.values()) == 15
    best = bench.lab.get(str(view.best))
    assert best.candidate is not None and best.proposer == f"optuna/{sampler}"
    assert 0.01 < best.candidate.settings["optimizer"]["matrix_lr"] < 0.2
    assert view.spent.runs == len(bench.runs.records) and view.spent.gpu_hours > 0
    changes = [str(r.hypothesis.change) for r in bench.lab.list(50)]
    assert len(set(changes)) == 15, "nothing is tried twice"


def test_a_campaign_needs_a_budget_a_known_metric_and_a_search_space(bench: CampaignBench) -> None:
    with pytest.raises(Refused, match="needs a budget"):
        bench.campaigns.start("forever", Budget())
    with pytest.raises(Refused, match="no run reports"):
        bench.start(metric="val_bqb")
    with pytest.raises(Refused, match="gets better when it is lower"):
        bench.start(direction="higher")
    with pytest.raises(Refused, match="no proposer 'optna'"):
        bench.start(proposer="optna")
    with pytest.raises(Refused, match="has a price"):
        bench.campaigns.start("", Budget(money=5))
    (bench.workspace.recipe_dir / "recipe.toml").write_text('[search_space]\n"optimizer.matrix_rl" = {low=1, high=2}\n')
    with pytest.raises(Refused, match=r"optimizer\.matrix_lr"):
        bench.start()
    (bench.workspace.recipe_dir / "recipe.toml").write_text("")
    with pytest.raises(Refused, match=r"\[search_space\]"):
        bench.start()
    assert bench.campaigns.list() == [] and bench.runs.records == {}


def test_only_one_runs_at_a_time_and_a_key_starts_one(bench: CampaignBench) -> None:
    first = bench.start(key="night")
    assert bench.start(key="night") == first
    with pytest.raises(Refused, match="camp-0001 is running"):
        bench.start()
    with pytest.raises(NotFound, match="camp-0001"):
        bench.campaigns.pause("camp-0002")


def test_pause_resume_extend_and_stop(bench: CampaignBench) -> None:
    campaign = bench.start(2).id
    for _ in range(3):
        bench.step()
    bench.campaigns.pause(campaign, "lunch")
    for _ in range(40):
        bench.step()
    view = bench.campaigns.look(campaign)
    assert view.state == "paused" and view.why == "lunch" and sum(view.counts.values()) == 1, "what ran was finished"
    assert not bench.campaigns.busy()
    with pytest.raises(Refused, match="not limited in hours"):
        bench.campaigns.extend(campaign, Budget(hours=1))
    bench.campaigns.resume(campaign)
    bench.run_out()
    assert bench.campaigns.look(campaign).spent.experiments == 2
    bench.campaigns.extend(campaign, Budget(experiments=2))
    while not bench.lab.busy():
        bench.step()
    bench.campaigns.stop(campaign, "enough")
    bench.run_out()
    view = bench.campaigns.look(campaign)
    assert (view.state, view.why) == ("ended", "stopped: enough") and view.counts["invalid"] == 1
    names = [step.name for step in bench.campaigns.get(campaign).steps]
    assert names == ["started", "paused", "resumed", "ended", "audited", "extended", "ended", "audited"]
    with pytest.raises(Refused, match="ended"):
        bench.campaigns.resume(campaign)
    assert bench.posted("campaign.changed") == 8


def test_amounts_out_of_range_are_refused_with_the_range(bench: CampaignBench) -> None:
    with pytest.raises(Refused, match=r"a budget of 10000 hours is not possible.*at most 8,784"):
        Budget.of({"hours": 10_000, "runs": None})
    with pytest.raises(Refused, match=r"a budget of -1 gpu hours is not possible"):
        Budget.of({"gpu_hours": -1})
    campaign = bench.campaigns.start("", Budget(hours=8000)).id
    with pytest.raises(Refused, match=r"a budget of 9000 hours is not possible.*at most 8,784"):
        bench.campaigns.extend(campaign, Budget(hours=1000))
    assert bench.campaigns.get(campaign).budget == Budget(hours=8000)


# -- stopping ---------------------------------------------------------------------------------------------------------


def until_under_way(bench: CampaignBench) -> str:
    """A campaign whose first experiment has a run."""
    campaign = bench.start(5).id
    while not bench.runs.records:
        bench.campaigns.tick()
        bench.lab.tick()
    return campaign


def stop_killed(bench: CampaignBench, campaign: str) -> None:
    """The campaign has ended, and the service died before its experiment was cancelled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experiments, "cancel", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            bench.campaigns.stop(campaign, "enough", by="me")
    bench.database.close()
    bench.again()
    assert bench.campaigns.get(campaign).state == "ended" and bench.lab.get("exp-0001").cancelled_by is None


@pytest.mark.parametrize("again", [False, True])
def test_a_stop_that_was_killed_half_way_is_finished(bench: CampaignBench, again: bool) -> None:
    """By the next tick, or by whoever says it once more."""
    campaign = until_under_way(bench)
    stop_killed(bench, campaign)
    if again:
        assert bench.campaigns.stop(campaign).why == "stopped: enough"
    else:
        bench.campaigns.tick()
    assert bench.lab.get("exp-0001").cancelled_by == "me"
    bench.run_out()
    assert bench.campaigns.look(campaign).counts == {"invalid": 1}
    with pytest.raises(Refused, match="has ended already"):
        bench.campaigns.stop(campaign)


def answered(bench: CampaignBench) -> CampaignRecord:
    """A campaign whose first proposal has its answer, as a tick that is about to act on it knows it."""
    campaign = bench.start(5).id
    while not any(p.state == "answered" for p in bench.campaigns.ledger.proposals(campaign)):
        bench.campaigns.tick()
    return bench.campaigns.get(campaign)


@pytest.mark.parametrize("how", ["stop", "pause"])
def test_a_stop_or_pause_before_a_proposal_is_tried_begins_nothing(tmp_path: Path, how: str) -> None:
    bench = scripted(tmp_path / "lab", rate(0.04))
    known = answered(bench)
    getattr(bench.campaigns, how)(known.id)
    bench.campaigns._advance(known)
    assert bench.lab.list() == []
    (proposal,) = bench.campaigns.ledger.proposals(known.id)
    assert proposal.state == ("refused" if how == "stop" else "answered")
    if how == "pause":
        bench.campaigns.resume(known.id)
        bench.campaigns.tick()
        assert [record.id for record in bench.lab.list()] == ["exp-0001"], "a pause loses no answer"


def test_a_stop_while_a_proposal_is_looked_at_cancels_what_comes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = scripted(tmp_path / "lab", rate(0.04))
    known = answered(bench)
    check = bench.lab._check

    def stopped(*arguments: Any) -> None:
        bench.campaigns.stop(known.id, by="me")
        check(*arguments)

    monkeypatch.setattr(bench.lab, "_check", stopped)
    bench.campaigns.tick()
    assert bench.lab.get("exp-0001").cancelled_by == "me"
    bench.run_out()
    assert bench.lab.get("exp-0001").verdict == "invalid"


def test_an_ended_budget_still_lets_what_was_begun_finish(bench: CampaignBench) -> None:
    campaign = bench.start(1).id
    bench.run_out()
    assert bench.campaigns.get(campaign).stopped_by is None
    assert "invalid" not in bench.campaigns.look(campaign).counts


def test_the_hours_of_a_pause_are_not_charged_whatever_happens_in_it(bench: CampaignBench) -> None:
    record = bench.campaigns.start("", Budget(hours=8))

    def after(*steps: tuple[int, str], now: int, state: str = "running") -> float:
        made = [CampaignStep(name=name, at=f"2026-01-0{1 + hour // 24}T{hour % 24:02d}:00:00Z") for hour, name in steps]
        told = record.model_copy(update={"steps": made, "state": state})
        return hours(told, f"2026-01-0{1 + now // 24}T{now % 24:02d}:00:00Z")

    begun = (0, "started"), (1, "paused")
    assert after(*begun, (2, "extended"), (21, "resumed"), now=22) == 2
    assert after(*begun, (2, "extended"), now=22, state="paused") == 1
    assert after(*begun, (2, "extended"), (20, "ended"), (21, "extended"), now=22) == 2
    assert after((0, "started"), (1, "extended"), (2, "ended"), (20, "extended"), (21, "extended"), now=22) == 4


def test_many_small_campaigns_buy_no_cheaper_evidence_than_a_large_one(bench: CampaignBench) -> None:
    claim = {**rate(0.04), "metric": "val_bpb", "direction": "lower", "smallest_effect": 0.005}
    lone = bench.lab.propose(claim).rule.alpha
    for planned in (1, 20, 80):
        small = bench.lab.propose(claim, campaign=f"camp-{planned}", planned=planned).rule.alpha
        assert small == lone, planned
    assert bench.lab.propose(claim, campaign="camp-400", planned=400).rule.alpha < lone


def test_three_crashes_of_one_class_pause_it(tmp_path: Path) -> None:
    bench = CampaignBench(tmp_path / "lab", failing("oom", "oom", "oom", "nan", "oom", "nan"))
    campaign = bench.start(10).id
    bench.run_out()
    view = bench.campaigns.look(campaign)
    assert view.state == "paused" and "3 crashes of class oom in a row (exp-0001, exp-0002, exp-0003)" in str(view.why)
    assert "batch.rows" in str(view.why)
    bench.campaigns.resume(campaign)
    bench.run_out()
    assert bench.campaigns.look(campaign).state == "ended", "what crashed before it was resumed does not count"


def test_a_corpus_that_never_stands_still_pauses_it(tmp_path: Path) -> None:
    def growing(request: RunRequest, key: str) -> dict[str, Any]:
        course = landscape(request, key)
        return course | {"summary": course["summary"] | {"data": {"identity": key}}}

    bench = CampaignBench(tmp_path / "lab", growing)
    bench.start(10)
    bench.run_out()
    (view,) = bench.campaigns.list()
    assert view.state == "paused" and view.counts == {"invalid": 3}
    assert "of class data in a row" in str(view.why) and "files that nobody writes to" in str(view.why)


def test_proposals_that_come_to_nothing_pause_it(tmp_path: Path) -> None:
    bench = scripted(tmp_path / "lab", *[rate(20.0)] * 4, *[rate(0.004)] * 6)
    bench.start(20)
    bench.run_out()
    (view,) = bench.campaigns.list()
    assert view.state == "paused" and "none of the last 8 proposals could be measured" in str(view.why)
    refused = [p for p in bench.campaigns.ledger.proposals("camp-0001") if p.state == "refused"]
    assert len(refused) == 4 and "at most 10" in str(refused[0].problem)
    assert [len(q.refused) for q in bench.scripted.asked[:5]] == [0, 1, 2, 3, 3]  # type: ignore[attr-defined]


def test_a_proposer_that_is_away_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.tries.FIRST_PAUSE_S", 0.01)
    bench = scripted(tmp_path / "lab", Unavailable("the model's server is away"), rate(0.04))
    bench.start(1)
    bench.step()
    bench.step()
    assert "server is away" in str(bench.campaigns.list()[0].waiting_for)
    time.sleep(0.02)
    bench.run_out()
    assert bench.campaigns.list()[0].counts == {"keep": 1}


def test_stagnation_is_told_and_known_to_the_proposer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.breaker.STAGNANT", 3)
    bench = scripted(tmp_path / "lab", *[rate(0.0001 * n) for n in range(1, 6)])
    bench.start(5)
    bench.run_out()
    steps = bench.campaigns.get("camp-0001").steps
    assert [s.name for s in steps] == ["started", "stagnation", "ended", "audited"]
    assert [q.stagnant for q in bench.scripted.asked] == [0, 0, 0, 3, 3]  # type: ignore[attr-defined]


def test_the_assistant_proposes_and_the_campaign_keeps_the_budget(bench: CampaignBench) -> None:
    bench.start(1, proposer="assistant")
    assert not bench.campaigns.busy()
    claim = {**rate(0.04), "metric": "val_bpb", "direction": "lower", "smallest_effect": 0.005}
    experiment = bench.lab.propose(claim, **bench.campaigns.admit("camp-0001"))
    with pytest.raises(Refused, match="budget of 1 experiments is used up in camp-0001"):
        bench.campaigns.admit("camp-0001")
    bench.run_out()
    assert bench.lab.get(experiment.id).verdict == "keep"
    assert [r.id for r in bench.lab.list(campaign="camp-0001")] == [experiment.id]
    with pytest.raises(Refused, match="ended"):
        bench.campaigns.admit("camp-0001")


def test_it_is_rebuilt_from_its_folder(bench: CampaignBench) -> None:
    bench.start(3)
    for _ in range(12):
        bench.step()
    before = bench.campaigns.look("camp-0001"), bench.campaigns.ledger.proposals("camp-0001")
    bench.database.close()
    for file in bench.workspace.state_dir.glob("lab.db*"):
        file.unlink()
    bench.again()
    after = bench.campaigns.look("camp-0001"), bench.campaigns.ledger.proposals("camp-0001")
    assert after[1] == before[1]
    assert after[0].model_copy(update={"spent": before[0].spent}) == before[0]
    bench.run_out()
    assert bench.campaigns.look("camp-0001").spent.experiments == 3
    shutil.rmtree(bench.workspace.experiments_dir / "campaigns" / "camp-0001")
    assert bench.start(1).id == "camp-0002", "an id is not given out again"


def test_a_proposal_costs_little_time_after_many_experiments(bench: CampaignBench) -> None:
    """A thousand of them took 0.3 s; a tenth is enough to see that it does not grow out of hand."""
    bench.start(1)
    bench.run_out()
    record = bench.lab.get("exp-0001")
    assert record.candidate is not None
    history = []
    for n in range(100):
        settings = {**record.candidate.settings, "optimizer": {**record.candidate.settings["optimizer"],
                                                               "matrix_lr": 0.001 * (n + 1)}}  # fmt: skip
        candidate = record.candidate.model_copy(update={"settings": settings})
        history.append(record.model_copy(update={"id": f"exp-{n + 2:04d}", "candidate": candidate, "verdict": "discard",
                                                 "state": "done"}))  # fmt: skip
    config, base, space = bench.lab.starting_point()
    question = Question(bench.campaigns.get("camp-0001"), 101, 5, config, base, space, history)
    proposer = bench.proposers["optuna"](bench.campaigns.get("camp-0001"))
    first = proposer.propose(question)
    assert proposer.propose(question) == first, "the same history and seed give the same proposal"
