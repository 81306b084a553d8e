"""Tools about experiments: `propose_and_run_experiment`, `list_experiments`, `lab_overview`."""

from __future__ import annotations

import time
from typing import Any, Literal

import anyio
import anyio.to_thread
from pydantic import Field

from experiments.calibration import Calibration
from experiments.campaign_view import CampaignView
from experiments.folder import report_page
from experiments.history import categories
from experiments.overview import Line
from experiments.record import ExperimentRecord
from experiments.words import count
from tools import bounds
from tools.hardware import summary
from tools.lab import Lab
from tools.tool import Arguments, Caller, Result, Tool
from training.runs.records import LIVE

WAIT_POLL_S = 0.5
REPORT_CHARACTERS = 6_000
Verdict = Literal["keep", "discard", "inconclusive", "no_effect", "crash", "invalid"]


class ProposeArguments(Arguments):
    statement: str = Field(max_length=600, description="one sentence: what is changed, and what it does to the metric")
    change: dict[str, Any] | None = Field(None, description='settings, e.g. {"optimizer.matrix_lr": 0.02}')
    patch: str | None = Field(
        None, max_length=100_000, description="unified diff of recipe/{recipe.toml,model.py,optim.py}; or with change"
    )
    metric: str = Field(max_length=80, description="a number of the run's summary; val_bpb is the usual one")
    direction: Literal["lower", "higher"] = Field(description="which way the metric gets better")
    smallest_effect: float = Field(
        gt=0, description="smallest improvement worth having, in the metric's units (non_inferiority: the margin)"
    )
    why: str = Field("", max_length=4000, description="the reasoning, and what earlier work says")
    citations: list[str] | None = Field(None, max_length=40, description="ids from rag_search it rests on")
    predicted_effect: float | None = Field(None, description="the improvement you expect; kept to judge predictions")
    kind: Literal["superiority", "non_inferiority", "cost"] = Field(
        "superiority", description="non_inferiority: worse by less than smallest_effect while cost_metric falls"
    )
    cost_metric: str | None = Field(None, max_length=80, description="non_inferiority: training_seconds by default")
    smallest_saving: float | None = Field(None, gt=0, lt=1, description="non_inferiority: a fraction, 0.05 by default")
    category: str | None = Field(None, max_length=60, description="e.g. optimizer, schedule, architecture")
    repeat_of: str | None = Field(None, max_length=40, description="the experiment this repeats on purpose")
    changed_assumption: str | None = Field(None, max_length=600, description="what is new since a similar one failed")
    campaign_id: str | None = Field(None, max_length=40, description="the campaign whose budget it uses")
    budget_kind: Literal["seconds", "steps", "tokens", "flops"] | None = Field(
        None, description="of each run, instead of the recipe's"
    )
    budget_amount: float | None = Field(None, gt=0)
    skip_test_run: str | None = Field(None, max_length=400, description="a reason, recorded; normally leave it out")
    idempotency_key: str | None = Field(
        None, min_length=4, max_length=100, description="the same key never starts a second experiment"
    )


class ExperimentView(Result):
    experiment_id: str
    state: str = Field(description="proposed, preflight, ready, test_run, gate, measuring, verdict, record or done")
    verdict: Verdict | None = None
    sentence: str | None = Field(None, description="the verdict in plain words")
    campaign_id: str | None = None
    statement: str
    change: str
    metric: str
    effect: float | None = Field(None, description="improvement, positive = better")
    interval: list[float] | None = Field(None, description="of the effect, at the confidence of the rule")
    runs_scored: str | None = Field(None, description="candidate and control runs behind it")
    advice: str | None = None
    commit: str | None = None
    waiting_for: str | None = Field(None, description="what keeps it from going on")
    created_at: str
    ended_at: str | None = None


class ProposeResult(ExperimentView):
    similar: list[str] = Field([], description="earlier experiments like this one, with their outcome")
    next: str


async def propose_and_run_experiment(lab: Lab, arguments: ProposeArguments, caller: Caller) -> ProposeResult:
    own = {"budget_kind", "budget_amount", "skip_test_run", "idempotency_key", "campaign_id"}
    claim = arguments.model_dump(exclude=own, exclude_none=True)
    budget = {"kind": arguments.budget_kind, "amount": arguments.budget_amount}
    given = {name: value for name, value in budget.items() if value is not None} or None
    record = await anyio.to_thread.run_sync(
        lambda: lab.experiments.propose(
            claim,
            budget=given,
            conversation=caller.conversation,
            skip_test_run=arguments.skip_test_run,
            key=caller.key,
            **(lab.campaigns.admit(arguments.campaign_id, caller.key) if arguments.campaign_id else {}),
        )
    )
    found, question = await anyio.to_thread.run_sync(lab.experiments.similar, record.hypothesis)
    return ProposeResult(
        **view(record).model_dump(),
        similar=[f"{d.experiment}: {d.verdict}. {d.sentence or ''}".strip() for d in found],
        next=(f"{question} " if question else "")
        + f"list_experiments(experiment_id={record.id!r}, wait_s=50), again until its state is done",
    )


class ListExperimentsArguments(Arguments):
    experiment_id: str | None = Field(None, max_length=40, description="one experiment whole, with its report")
    wait_s: float = Field(0.0, ge=0, le=300, description="with experiment_id: wait for its end at most this long")
    verdict: Verdict | None = None
    text: str | None = Field(None, max_length=200, description="words that all occur in hypothesis or change")
    campaign_id: str | None = Field(None, max_length=40)
    category: str | None = Field(None, max_length=60)
    best: bool = Field(False, description="the leaderboard of kept experiments instead of the newest")
    limit: int = Field(10, ge=1, le=50)
    before: str | None = Field(None, max_length=40, description="older than this id (from `more`)")


class ListExperimentsResult(Result):
    experiments: list[ExperimentView]
    more: str | None = Field(None, description="pass as `before` for older ones")
    tried: str | None = Field(None, description="with category: what came of it so far; of an unknown one, of all")
    report: str | None = Field(None, description="with experiment_id: hypothesis, numbers, every run")
    live_runs: list[str] = Field([], description="with experiment_id: its runs that run or wait now")
    next: str | None = None


async def list_experiments(lab: Lab, arguments: ListExperimentsArguments, caller: Caller) -> ListExperimentsResult:
    if arguments.experiment_id is not None:
        return await _one(lab, arguments.experiment_id, arguments.wait_s, caller)
    left_out: str | None = None
    if arguments.best:
        found, left_out = await anyio.to_thread.run_sync(lab.experiments.leaderboard, arguments.limit)
    else:
        found = await anyio.to_thread.run_sync(
            lambda: lab.experiments.list(
                limit=arguments.limit,
                verdict=arguments.verdict,
                text=arguments.text,
                before=arguments.before,
                campaign=arguments.campaign_id,
                category=arguments.category,
            )
        )
    shown = bounds.first([view(record) for record in found], bounds.RESULT_CHARACTERS - 200)
    cut = len(shown) < len(found)
    if arguments.best:
        further = f"{len(found) - len(shown)} further ones do not fit one answer; all are in results.tsv."
        notes = [further if cut else None, left_out]
        return ListExperimentsResult(experiments=shown, next=" ".join(filter(None, notes)) or None)
    more = shown[-1].experiment_id if cut or len(found) == arguments.limit else None
    tried = None
    if arguments.category is not None:
        known = await anyio.to_thread.run_sync(categories, lab.experiments.ledger)
        chosen = [each for each in known if each.name == arguments.category] or known
        tried = "; ".join(str(each) for each in chosen[:12]) or "no experiment names a category yet"
    return ListExperimentsResult(experiments=shown, more=more, tried=tried)


async def _one(lab: Lab, experiment: str, wait_s: float, caller: Caller) -> ListExperimentsResult:
    deadline = time.monotonic() + wait_s
    told = ""
    while True:
        record = await anyio.to_thread.run_sync(lab.experiments.get, experiment)
        if not record.open or time.monotonic() >= deadline:
            break
        line = f"{record.id} {record.state}, {scored(record)}"
        if line != told:
            told = line
            await caller.progress(_fraction(record), 1.0, line)
        await anyio.sleep(WAIT_POLL_S)
    live = await anyio.to_thread.run_sync(lambda: lab.runs.list(states=LIVE, experiment=experiment, limit=20))
    report = report_page(record)
    if len(report) > REPORT_CHARACTERS:
        report = report[:REPORT_CHARACTERS] + f"\n(cut; whole in experiments/{record.id}/report.md)"
    following = f"list_experiments(experiment_id={record.id!r}, wait_s=50) again" if record.open else record.advice
    return ListExperimentsResult(
        experiments=[view(record)], report=report, live_runs=[run.id for run in live], next=following
    )


def scored(record: ExperimentRecord) -> str:
    candidate, control = len(record.scored("candidate")), len(record.scored("control"))
    return f"{candidate} candidate and {count(control, 'control run')} scored"


def _fraction(record: ExperimentRecord) -> float:
    """How far it is, roughly: the runs a verdict needs at least."""
    wanted = record.rule.min_controls + record.rule.min_pairs + 1
    done = len(record.scored("candidate")) + len(record.scored("control")) + (record.state == "measuring")
    return min(0.95, done / wanted)


def view(record: ExperimentRecord) -> ExperimentView:
    numbers = record.numbers
    return ExperimentView(
        experiment_id=record.id,
        state=record.state,
        verdict=record.verdict,
        sentence=record.sentence,
        campaign_id=record.campaign,
        statement=record.hypothesis.statement,
        change=record.hypothesis.describe_change(),
        metric=record.hypothesis.metric,
        effect=numbers.effect if numbers else None,
        interval=[numbers.low, numbers.high] if numbers else None,
        runs_scored=f"{numbers.n_candidate} candidate, {numbers.n_control} control" if numbers else None,
        advice=record.advice,
        commit=record.commit[:12] if record.commit else None,
        waiting_for=record.waits_for,
        created_at=record.created_at,
        ended_at=record.ended_at,
    )


class LabOverviewArguments(Arguments):
    pass


class LabOverviewResult(Result):
    hardware: str
    running: list[str] = Field(description="runs that run or wait now")
    campaigns: list[CampaignView] = Field([], description="campaigns that run or are paused")
    best: Line | None = Field(None, description="the recipe kept last; absent = nothing was kept yet")
    experiments_running: list[Line]
    experiments_waiting: list[Line]
    last_learnt: list[Line] = Field(description="the newest verdicts, in words")
    counts: dict[str, int] = Field(description="experiments by verdict")
    calibration: list[Calibration] = Field([], description="how predictions turned out, by proposer")
    last_next_steps: str | None = Field(None, description="what the notebook last noted under Next steps")
    next: list[str] = Field(description="what the last verdicts suggest")


async def lab_overview(lab: Lab, arguments: LabOverviewArguments, caller: Caller) -> LabOverviewResult:
    found = await anyio.to_thread.run_sync(lab.experiments.overview)
    noted = await anyio.to_thread.run_sync(lab.notebook.latest, "Next steps")
    live = await anyio.to_thread.run_sync(lambda: lab.runs.list(states=LIVE, limit=20))
    campaigns = [c for c in await anyio.to_thread.run_sync(lab.campaigns.list, 5) if c.state != "ended"]
    under_way, waiting = (bounds.first(lines, 3_000) for lines in (found.running, found.queue))
    left_out = len(found.running) + len(found.queue) - len(under_way) - len(waiting)
    if left_out:
        found.next.append(f"{left_out} further experiments run or wait: list_experiments shows them.")
    return LabOverviewResult(
        hardware=summary(lab.hardware.latest()),
        running=[f"{run.id} {run.state} {run.name}".strip() for run in live],
        campaigns=campaigns[:2],
        best=found.best,
        experiments_running=under_way,
        experiments_waiting=waiting,
        last_learnt=bounds.first(found.last_learnt, 5_000),
        counts=found.counts,
        calibration=found.calibration[:5],
        last_next_steps=f"{noted.at[:10]}: {noted.text[:600]}" if noted else None,
        next=found.next,
    )


TOOLS: list[Tool[Any, Any]] = [
    Tool(
        name="propose_and_run_experiment",
        title="Run an experiment",
        description=(
            "Test one change of the training recipe: the hypothesis is frozen, checked (does the change do anything?), "
            "given a short test run, measured against the best recipe with replicates, and judged against measured "
            "noise: keep, discard or inconclusive. Returns the id at once; the rest happens by itself. "
            "Use it instead of start_training whenever two settings are compared; for many changes overnight "
            "run_campaign. First rag_search whether it was tried; then wait with list_experiments."
        ),
        arguments=ProposeArguments,
        result=ProposeResult,
        run=propose_and_run_experiment,
        example={
            "statement": "Halving optimizer.matrix_lr lowers val_bpb because the loss oscillates late in the run",
            "change": {"optimizer.matrix_lr": 0.02},
            "metric": "val_bpb",
            "direction": "lower",
            "smallest_effect": 0.01,
        },
        read_only=False,
        meta={"anthropic/alwaysLoad": True},
    ),
    Tool(
        name="list_experiments",
        title="Experiments",
        description=(
            "Experiments, newest first, with verdict, effect and interval; the leaderboard with best=true; or one "
            "experiment whole with its report, waiting for its end when wait_s is given. To search past ones by "
            "meaning use rag_search."
        ),
        arguments=ListExperimentsArguments,
        result=ListExperimentsResult,
        run=list_experiments,
        example={"experiment_id": "exp-0001", "wait_s": 50},
        read_only=True,
    ),
    Tool(
        name="lab_overview",
        title="Lab overview",
        description=(
            "Where the lab stands: hardware, what runs, the best recipe, what was learnt last, what next. Use it at "
            "the start of a conversation and when the user asks how things are."
        ),
        arguments=LabOverviewArguments,
        result=LabOverviewResult,
        run=lab_overview,
        example={},
        read_only=True,
        meta={"anthropic/alwaysLoad": True},
    ),
]
