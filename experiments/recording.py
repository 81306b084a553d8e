"""The end of an experiment: its verdict committed and stored, then refs, results.tsv, notebook and folder.

Where git fails for good (a lock that may be held, a branch of the user's in the way, objects that cannot be written),
the verdict, its row and its note are written all the same, and a note says what is missing and how to mend it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from experiments import folder
from experiments.ledger import Ledger
from experiments.lineage import Lineage
from experiments.plumbing import GitFailed
from experiments.ports import NotebookPort, RunsPort
from experiments.preflight import trailers
from experiments.record import Best, ExperimentRecord, Step
from experiments.results import Results
from training.runs.records import RunRecord
from workspace import clock
from workspace.errors import LabError
from workspace.layout import Workspace
from workspace.outbox import Outbox

BESIDE = "Kept against its parent; another experiment became the best meanwhile: try it on top."
CHECKED_OUT = "The branch of the best recipe is checked out somewhere, so it was not moved."
MEND = "mend git (`git status` and `git fsck` say what is wrong), then propose it again with repeat_of = {}"


@dataclass(frozen=True)
class Recording:
    """The last two steps. Each may be done twice."""

    workspace: Workspace
    ledger: Ledger
    results: Results
    outbox: Outbox
    lineage: Lineage
    runs: RunsPort
    notebook: NotebookPort | None

    def decide(self, record: ExperimentRecord, lost: GitFailed | None = None) -> ExperimentRecord:
        """Commit, then in one transaction: the verdict, the new best, and the message that tells others.

        `lost`: why no commit can be made; where the candidate's is there, it stays that one. Raises `GitFailed`.
        """
        made = self.runs.list(experiment=record.id, limit=200)
        commit, notes, advice = None, list(record.notes), record.advice
        if lost is not None:
            commit = self._candidate(record)
            left = "It is the candidate's, whose message has no verdict" if commit else "The verdict stands without one"
            notes.append(f"Its commit could not be made ({lost.problem}). {left}.")
        elif record.parent is not None and record.candidate is not None:
            candidate, parent = record.candidate.commit, record.parent.commit
            commit = self.lineage.reword(candidate, parent, final_message(record), record.steps[-1].at)
        best = self.ledger.best()
        leads = record.verdict == "keep" and record.best_before == (best.experiment if best else None)
        if record.verdict == "keep" and not leads:
            notes.append(BESIDE)
        elif leads and commit is None:
            leads = False
            notes.append("Kept, but without a commit nothing can start from it: the best recipe is the one before.")
            advice = MEND.format(record.id)
        decided = record.model_copy(
            update={
                "state": "record",
                "commit": commit,
                "ended_at": clock.now(),
                "is_best": leads,
                "advice": advice,
                "notes": notes,
                "runs": sorted(run.id for run in made),
                "seconds": round(sum(run.elapsed_s or 0.0 for run in made), 3),
                "device_seconds": round(device_seconds(made), 3),
            }
        )
        new_best = None
        if leads and commit is not None and record.parent is not None:
            new_best = Best(experiment=record.id, commit=commit, base=record.parent.base)
        return self.ledger.advance(
            decided,
            Step(name="verdict", at=clock.now(), data={"commit": commit}),
            best=new_best,
            also=lambda tx: self.outbox.post(tx, "experiment.ended", {"experiment": record.id}),
        )

    def _candidate(self, record: ExperimentRecord) -> str | None:
        """The commit that was measured, where git still has it: the same recipe on the same parent."""
        if record.candidate is None:
            return None
        try:
            return record.candidate.commit if self.lineage.exists(record.candidate.commit) else None
        except GitFailed:
            return None

    def record(self, record: ExperimentRecord, lost: GitFailed | None = None) -> ExperimentRecord:
        """Refs, results.tsv, the notebook, the folder. `lost`: what git refuses is noted. Raises `GitFailed`."""
        notes = list(record.notes)
        ref, patch = self._in_git(record, notes, final=lost is not None)
        self.results.write()
        try:
            self._tell(record)
        except LabError as error:
            notes.append(f"Not in the notebook: {error.problem}.")
        step = Step(name="recorded", at=clock.now())
        done = record.model_copy(update={"state": "done", "ref": ref, "notes": notes})
        folder.write_results(self.workspace, done.model_copy(update={"steps": [*done.steps, step]}), patch)
        return self.ledger.advance(done, step)

    def _in_git(self, record: ExperimentRecord, notes: list[str], *, final: bool) -> tuple[str | None, str | None]:
        """(ref, patch) of the experiment. `final`: what git refuses is told in `notes`."""
        ref = patch = None
        if record.parent is None or record.candidate is None:
            return ref, patch
        if record.commit:
            with _noted(notes, _unpointed(f"{self.lineage.prefix}/{record.id}", record.commit), final):
                ref = self.lineage.point(record.id, record.commit)
        with _noted(notes, "change.patch could not be written", final or not record.commit):
            patch = self.lineage.patch(record.parent.commit, record.commit or record.candidate.commit)
        if record.is_best and record.commit:
            with _noted(notes, _unpointed(f"{self.lineage.prefix}/best", record.commit), final):
                if self.lineage.point("best", record.commit, only_if_free=True) is None:
                    notes.append(CHECKED_OUT)
        return ref, patch

    def _tell(self, record: ExperimentRecord) -> None:
        if self.notebook is None:
            return
        text = f"{record.id}: {record.sentence}\n\nHypothesis: {record.hypothesis.statement}"
        if record.advice:
            text += f"\n\nNext: {record.advice}"
        facts = {
            "experiment": record.id,
            "change": record.hypothesis.describe_change(),
            "verdict": record.verdict,
            "metric": record.hypothesis.metric,
            "value": record.mean(),
        }
        self.notebook.event(
            record.conversation,
            text,
            {"experiments": [record.id], "runs": record.runs[:40]},
            f"{record.id}/verdict",
            section="Results",
            facts={name: value for name, value in facts.items() if value is not None},
            session=record.session,
        )


@contextlib.contextmanager
def _noted(notes: list[str], what: str, final: bool) -> Iterator[None]:
    try:
        yield
    except GitFailed as error:
        if not final:
            raise
        notes.append(f"{what} ({error.problem}).")


def _unpointed(branch: str, commit: str) -> str:
    command = f"git update-ref refs/heads/{branch} {commit}"
    return f"The branch {branch} was not moved; when git is mended: `{command}`"


def device_seconds(runs: Iterable[RunRecord]) -> float:
    """Time of runs, times the devices each held; a run on the CPU holds one."""
    return sum((run.elapsed_s or 0.0) * max(1, len(run.devices)) for run in runs)


def final_message(record: ExperimentRecord) -> str:
    """The message of the experiment's commit: the verdict, its sentence, the numbers."""
    lines = [f"{record.id} {record.verdict}: {record.hypothesis.statement}", "", record.sentence or "", ""]
    if record.numbers:
        n = record.numbers
        lines += [
            f"{record.hypothesis.metric}: candidate {n.candidate_mean:.6g} (n = {n.n_candidate}), "
            f"control {n.control_mean:.6g} (n = {n.n_control}), noise {n.noise_sd:.4g}",
            "",
        ]
    return "\n".join(lines) + f"Lab-Verdict: {record.verdict}\n" + trailers(record)
