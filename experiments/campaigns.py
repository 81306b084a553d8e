"""The campaigns of one workspace: experiments one after another without anybody there.

A campaign is a state machine like an experiment: what is to be done next follows from what is stored, and doing it
twice does no harm. Proposal n of a campaign is asked for once, its answer is stored before it is acted upon, and the
experiment it becomes carries the key `camp-0001/n`. `tick` is called about twice a second; asking a model may take
minutes, so it has a thread of its own, and so has the audit of what has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from experiments import final_audit, hypothesis
from experiments.breaker import barren, same_crash, stagnant
from experiments.campaign import Budget, CampaignRecord, Proposal, Spent, proposer_named
from experiments.campaign_ledger import KIND, CampaignLedger
from experiments.campaign_view import CampaignView, hours, view
from experiments.lab import Experiments
from experiments.proposers.port import Answer, Exhausted, Malformed, Proposer, Question
from experiments.questions import LOOK_BACK, question
from experiments.record import ENDING, MEASURING, ExperimentRecord
from experiments.recording import device_seconds
from experiments.tries import NotYet, Tries
from training.runs.records import LIVE, RunRecord
from workspace import clock
from workspace.database import Database
from workspace.errors import NotFound, Refused, Unavailable, unknown
from workspace.ids import Ids
from workspace.layout import Workspace
from workspace.outbox import Outbox


class Campaigns:
    """See the module. `proposers`: by name; `gpu_hour_price`: money one GPU-hour costs."""

    def __init__(
        self,
        workspace: Workspace,
        database: Database,
        outbox: Outbox,
        experiments: Experiments,
        proposers: Mapping[str, Callable[[CampaignRecord], Proposer]],
        *,
        gpu_hour_price: float = 0.0,
        score: final_audit.Score = final_audit.score,
    ) -> None:
        self.workspace = workspace
        self.experiments = experiments
        self.proposers = proposers
        self.gpu_hour_price = gpu_hour_price
        self.score = score
        folder = workspace.experiments_dir / "campaigns"
        self.ledger = CampaignLedger(database, outbox, folder)
        self.ids = Ids(database, KIND, folder)
        self._changing = threading.Lock()
        self._ticking = threading.Lock()
        self._auditing = threading.Lock()
        self._tries = Tries(lambda campaign, why: self._hold(self.get(campaign), why))

    # -- asking for something -----------------------------------------------------------------------------------------

    def start(
        self,
        goal: str,
        budget: Budget,
        *,
        metric: str = "val_bpb",
        direction: str = "lower",
        smallest_effect: float = 0.005,
        proposer: str = "optuna",
        settings: Mapping[str, Any] | None = None,
        session: str | None = None,
        conversation: str | None = None,
        key: str | None = None,
    ) -> CampaignRecord:
        """Begin a campaign; it goes on by itself. The same `key` gives the same campaign.

        Raises `Refused` without a budget, while another one runs, or when its proposer cannot work here.
        """
        with self._changing:
            if key is not None and (earlier := self.ledger.by_key(key)) is not None:
                return earlier
            self._only_one()
            budget.check()
            if budget.money and not (self.gpu_hour_price or proposer in ("llm", "hybrid", "claude-code")):
                raise Refused(
                    "nothing this campaign does has a price, so a budget in money would never be used up",
                    fix="set [campaigns] gpu_hour_price in lab.toml, or name hours or experiments",
                )
            name = proposer_named(proposer)
            claim = hypothesis.example({"metric": metric, "direction": direction, "smallest_effect": smallest_effect})
            checked = hypothesis.parse({**claim, "metric": metric, "direction": direction,
                                        "smallest_effect": smallest_effect})  # fmt: skip
            now = clock.now()
            record = CampaignRecord(
                id=KIND,
                key=key,
                goal=" ".join(goal.split()) or f"{direction} {metric}",
                metric=checked.metric,
                direction=checked.direction,
                smallest_effect=checked.smallest_effect,
                budget=budget,
                proposer=name,
                settings=dict(settings or {}),
                planned=budget.experiments,
                created_at=now,
                session=session,
                conversation=conversation,
            )
            if name != "assistant":
                first = Proposal(campaign=KIND, number=1, state="asked", asked_at=now)
                self.proposers[name](record).check(self._question(record, first))
            return self.ledger.create(self.ids.allocate, record)

    def pause(self, campaign: str, why: str = "asked to") -> CampaignRecord:
        """No further experiment begins; the one under way is finished."""
        with self._changing:
            record = self.get(campaign)
            if record.state != "running":
                raise Refused(f"{campaign} is {record.state} already", fix="nothing to do")
            return self.ledger.step(record, "paused", why, state="paused")

    def resume(self, campaign: str) -> CampaignRecord:
        with self._changing:
            record = self.get(campaign)
            if record.state != "paused":
                raise Refused(
                    f"{campaign} is {record.state}" + (f" ({record.why})" if record.why else ""),
                    fix="start a new campaign; it begins from the best recipe" if record.state == "ended" else None,
                )
            self._only_one()
            self._tries.forget(campaign)
            return self.ledger.step(record, "resumed", state="running")

    def stop(self, campaign: str, why: str = "asked to", by: str = "user") -> CampaignRecord:
        """End it now; the experiment under way is cancelled."""
        with self._changing:
            record = self.get(campaign)
            if record.state == "ended" and not (record.stopped_by and self._open(campaign)):
                raise Refused(f"{campaign} has ended already ({record.why})", fix="nothing to do")
            ended = self._end(record, f"stopped: {why}", stopped_by=by)
        self._cancel_stopped()
        return ended

    def extend(self, campaign: str, more: Budget) -> CampaignRecord:
        """Give it more of what limits it. One that ended because its budget was used up runs again."""
        with self._changing:
            record = self.get(campaign)
            budget = record.budget.plus(more.check())
            words = ", ".join(f"{value:g} {name}" for name, value in more.model_dump(exclude_none=True).items())
            if record.state == "ended":
                if not record.budget.used_up(self.spent(record)):
                    raise Refused(f"{campaign} has ended ({record.why})", fix="start a new campaign")
                self._only_one()
                return self.ledger.step(record, "extended", words, budget=budget, state="running", ended_at=None,
                                        stopped_by=None)  # fmt: skip
            return self.ledger.step(record, "extended", words, budget=budget)

    def audit(self, campaign: str) -> CampaignRecord:
        """Have the best of an ended campaign scored on the audit text, where that has not come to an end."""
        with self._changing:
            record = self.get(campaign)
            if record.state != "ended":
                raise Refused(
                    f"{campaign} is {record.state}: what it has found is audited when it has ended, once",
                    fix=f"lab-mcp campaign stop {campaign}, or wait",
                )
            self._tries.forget(campaign)
            if record.audit is not None and record.audit.state in ("due", "done"):
                return record
            return self.ledger.audited(record, final_audit.anew(record.audit))

    def admit(self, campaign: str, key: str | None = None) -> dict[str, Any]:
        """What an experiment somebody else proposes for this campaign is proposed with. Raises `Refused`.

        One that is there already under its `key` has been admitted.
        """
        record = self.get(campaign)
        if key is not None and self.experiments.ledger.by_key(key) is not None:
            return {"campaign": campaign, "planned": record.planned}
        if record.state != "running":
            raise Refused(f"{campaign} is {record.state}" + (f" ({record.why})" if record.why else ""))
        if over := record.budget.used_up(self.spent(record)):
            raise Refused(f"{over} in {campaign}", fix=f"run_campaign(action='extend', campaign_id={campaign!r}, ...)")
        return {"campaign": campaign, "planned": record.planned}

    def _only_one(self) -> None:
        for other in self.ledger.list("running", limit=1):
            raise Refused(
                f"{other.id} is running, and two campaigns would move each other's parent",
                fix=f"pause or stop {other.id} first",
            )

    # -- looking ------------------------------------------------------------------------------------------------------

    def get(self, campaign: str) -> CampaignRecord:
        record = self.ledger.get(campaign)
        if record is None:
            raise unknown("campaign", campaign, self.ledger.ids())
        return record

    def list(self, limit: int = 20) -> list[CampaignView]:
        """Newest first."""
        return [self._view(record) for record in self.ledger.list(limit=limit)]

    def look(self, campaign: str) -> CampaignView:
        """One campaign with what it has used and found."""
        return self._view(self.get(campaign))

    def spent(self, record: CampaignRecord) -> Spent:
        """What it has used, from the ledger, the runs under way and the answers paid for."""
        ledger = self.experiments.ledger
        experiments, runs, seconds = ledger.used(record.id)
        for open_one in self._open(record.id):
            made: Sequence[RunRecord] = []
            if open_one.state != "record":  # from then on its runs are counted in the ledger
                made = self.experiments.runs.list(experiment=open_one.id, limit=200)
            runs += len(made)
            seconds += device_seconds(made)
        gpu_hours = seconds / 3600
        return Spent(
            experiments=experiments,
            runs=runs,
            hours=hours(record, clock.now()),
            gpu_hours=gpu_hours,
            money=self.ledger.money(record.id) + gpu_hours * self.gpu_hour_price,
        )

    def busy(self) -> bool:
        """Is a campaign under way that goes on without anybody? (one the assistant proposes for does not)"""
        return any(record.proposer != "assistant" for record in self.ledger.list("running")) or bool(
            self.ledger.to_audit()
        )

    def _view(self, record: CampaignRecord) -> CampaignView:
        return view(record, self.experiments.ledger, self.spent(record), self._tries.waits_for(record.id))

    def _open(self, campaign: str) -> Sequence[ExperimentRecord]:
        return [r for r in self.experiments.ledger.open() if r.campaign == campaign]

    # -- moving on ----------------------------------------------------------------------------------------------------

    def tick(self) -> int:
        """Move every running campaign on, if it can be; returns how many moved. Not two ticks at once."""
        if not self._ticking.acquire(blocking=False):
            return 0
        try:
            self._cancel_stopped()
            return sum(self._tries.step(each.id, partial(self._advance, each)) for each in self.ledger.list("running"))
        finally:
            self._ticking.release()

    def _cancel_stopped(self) -> None:
        """Cancel what is under way of campaigns that somebody stopped: also what a kill left, or what was being
        proposed at that moment."""
        for experiment in self.experiments.ledger.open():
            may_end = experiment.campaign and experiment.state not in ENDING and not experiment.cancelled_by
            campaign = self.ledger.get(experiment.campaign or "") if may_end else None
            if campaign is not None and campaign.stopped_by:
                self.experiments.cancel(experiment.id, campaign.stopped_by)

    def tick_audits(self) -> int:
        """Make the next step of every audit that is due; returns how many moved. One may take hours: it has a thread
        of its own. Not two at once."""
        if not self._auditing.acquire(blocking=False):
            return 0
        try:
            return sum(self._tries.step(each.id, partial(self._audit, each)) for each in self.ledger.to_audit())
        finally:
            self._auditing.release()

    def _advance(self, record: CampaignRecord) -> bool:
        last = next(iter(self.ledger.proposals(record.id, last=1)), None)
        pending = last if last is not None and last.state in ("asked", "answered") else None
        if pending is not None and pending.state == "answered":
            self._propose(record, pending)
            return True
        recent = self.experiments.ledger.of_campaign(record.id, last=LOOK_BACK)
        if why := same_crash(record, recent) or barren(record, self.ledger.proposals(record.id, LOOK_BACK), recent):
            self._hold(record, why)
            return True
        under_way = self._open(record.id)
        if over := record.budget.used_up(self.spent(record)):
            if under_way:
                return False  # what was begun is finished
            if pending is not None:
                self.ledger.settle(pending, state="refused", problem=over)
            with self._changing:
                self._end(self.get(record.id), over)
            return True
        if record.proposer == "assistant" or len(under_way) >= self.experiments.slots:
            return False
        if (found := stagnant(record, self.experiments.ledger)) is not None:
            words = f"nothing was kept in the last {found['since_keep']} measured experiments"
            record = self.ledger.step(record, "stagnation", words, found)
        if pending is None:
            number = 1 if last is None else last.number + 1
            pending = Proposal(campaign=record.id, number=number, state="asked", asked_at=clock.now())
            self.ledger.ask(pending)
            return True
        self._ask(record, pending)
        return True

    def _audit(self, record: CampaignRecord) -> bool:
        """One step of the audit of an ended campaign's best."""
        due = record.audit
        if due is None or self._open(record.id):
            return False  # what was under way when it was stopped is still ending
        if due.left and (busy := self._device_is_used()):
            raise NotYet(f"the score on the audit text is made when the device is free: {busy}")
        best = self.experiments.ledger.leader(record.id, record.metric)
        try:
            after = final_audit.step(due, best, self.workspace, record.id, self.score)
        except Unavailable:
            with self._changing:
                now = self.get(record.id)
                if not _is_still(now, due):
                    return False  # it is no longer asked for
                self.ledger.audited(now, due.model_copy(update={"tries": due.tries + 1}))
            raise
        with self._changing:
            now = self.get(record.id)
            if now.state == "ended" and _is_still(now, due):
                self.ledger.audited(now, after)
            elif now.audit is not None:  # extended meanwhile: what was seen is kept, so that it is not looked at again
                self.ledger.audited(now, now.audit.model_copy(update=final_audit.seen(after, now.audit)))
        return True

    def _device_is_used(self) -> str | None:
        """By what: scoring beside a run would slow both, and a run's score may depend on its speed."""
        if live := self.experiments.runs.list(states=LIVE, limit=1):
            return f"{live[0].id} is {live[0].state}"
        between = [r.id for r in self.experiments.ledger.open() if r.state in MEASURING]
        return f"{between[0]} is being measured" if between else None

    def _ask(self, record: CampaignRecord, proposal: Proposal) -> None:
        try:
            answer: Answer = self.proposers[record.proposer](record).propose(self._question(record, proposal))
        except Exhausted as error:
            self.ledger.settle(proposal, state="refused", problem=error.problem)
            with self._changing:
                self._end(self.get(record.id), error.problem)
        except Malformed as error:
            self.ledger.settle(proposal, state="refused", problem=str(error))
        except (Unavailable, Refused):
            if self.get(record.id).state != "ended":
                raise
            # stopped while it was asked: its audit neither waits nor fails for that
        else:
            self.ledger.settle(proposal, state="answered", proposer=answer.proposer, answer=answer.claim)

    def _propose(self, record: CampaignRecord, proposal: Proposal) -> None:
        """The experiment of an answer; what the lab refuses is kept with the reason, for the next question.

        `record` may be old. A stop that comes before begins nothing; one that comes meanwhile finds the experiment, or
        is found here. No lock is held, since git may be asked, and a stop does not wait for that.
        """
        state = self.get(record.id).state
        if state == "ended":
            self.ledger.settle(proposal, state="refused", problem="the campaign had ended before it was tried")
        if state != "running":
            return
        fixed = {"metric": record.metric, "direction": record.direction, "smallest_effect": record.smallest_effect}
        try:
            experiment = self.experiments.propose(
                {**(proposal.answer or {}), **fixed},
                session=record.session,
                conversation=record.conversation,
                key=proposal.key,
                campaign=record.id,
                proposer=proposal.proposer or record.proposer,
                planned=record.planned,
            )
        except (Refused, NotFound) as error:
            self.ledger.settle(proposal, state="refused", problem=str(error)[:1500])
        else:
            self.ledger.settle(proposal, state="proposed", experiment=experiment.id)
            if by := self.get(record.id).stopped_by:
                self.experiments.cancel(experiment.id, by)

    def _question(self, record: CampaignRecord, proposal: Proposal) -> Question:
        return question(record, proposal, self.ledger, self.experiments, self.spent(record).money)

    def _hold(self, record: CampaignRecord, why: str) -> None:
        with self._changing:
            now = self.get(record.id)
            if now.state == "running":
                self.ledger.step(record, "paused", why, state="paused")
            elif now.state == "ended" and now.audit is not None:
                self.ledger.audited(now, now.audit.model_copy(update={"state": "failed", "why": why}))

    def _end(self, record: CampaignRecord, why: str, stopped_by: str | None = None) -> CampaignRecord:
        """`_changing` is held."""
        if record.state == "ended":
            return record
        self._tries.forget(record.id)  # its audit does not wait for what its proposer waited for
        audit = final_audit.anew(record.audit)
        return self.ledger.step(
            record, "ended", why, state="ended", ended_at=clock.now(), stopped_by=stopped_by, audit=audit
        )


def _is_still(now: CampaignRecord, due: final_audit.FinalAudit) -> bool:
    """Is what was due still to be audited, or has an extension made it that of an earlier end?"""
    return now.audit is not None and (now.audit.experiment, now.audit.runs) == (due.experiment, due.runs)
