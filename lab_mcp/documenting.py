"""Who is told of what: the outbox's messages, turned into notebook events and documents of the memory.

Two rounds, so that a slow memory never holds up the notebook: the first writes the notebook and posts `remember`, the
second hands documents to the memory. Handling a message twice leaves the same state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from experiments.folder import report_page
from sessions import page
from tools.lab import Lab
from training.runs.comparison import flat
from training.runs.records import RunRecord
from workspace.outbox import Handler, Message

SHORTEST_REMEMBERED_RUN_S = 1.0


class Documenting:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.notebook_round: Mapping[str, Handler] = {
            "run.started": lambda message: self._tell("runs", message.payload["run"]),  # its call is in the journal
            "run.ended": self._run_ended,
            "experiment.proposed": lambda message: self._tell("experiments", message.payload["experiment"]),
            "experiment.ended": self._experiment_ended,
            "campaign.changed": self._campaign_changed,
            "note.written": self._note_written,
        }
        self.memory_round: Mapping[str, Handler] = {"remember": self._remember}

    def _post_remember(self, kind: str, id: str) -> None:
        with self.lab.database.transaction() as tx:
            self.lab.outbox.post(tx, "remember", {"kind": kind, "id": id})

    def _tell(self, family: str, id: str) -> None:
        """Clients that listen hear of what happens by itself."""
        self.lab.changed(f"lab://{family}/{id}")

    def _run_ended(self, message: Message) -> None:
        record = self.lab.runs.get(message.payload["run"])
        if record.experiment is None:  # an experiment tells of its runs itself, once, with its verdict
            self.lab.notebook.event(
                record.session,
                run_sentence(record),
                links={"runs": [record.id]},
                key=f"run.ended:{record.id}:{record.ended_at}",  # an end that was not known may become known
                facts=run_facts(record),
            )
        self._post_remember("run", record.id)
        self._tell("runs", record.id)

    def _experiment_ended(self, message: Message) -> None:
        self._post_remember("experiment", message.payload["experiment"])
        self._tell("experiments", message.payload["experiment"])

    def _campaign_changed(self, message: Message) -> None:
        campaign, position = message.payload["campaign"], message.payload["step"]
        record = self.lab.campaigns.get(campaign)
        step = record.steps[position]
        text = f"{campaign} ({record.goal}) {step.name}" + (f": {step.why}" if step.why else "") + "."
        if step.name == "ended":
            view = self.lab.campaigns.look(campaign)
            verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(view.counts.items()))
            text += f" Experiments: {verdicts or 'none'}. " + (f"Best: {view.best}. " if view.best else "")
        self.lab.notebook.event(
            record.conversation, text.strip(), key=f"{campaign}/step/{position}", session=record.session
        )
        self._tell("campaigns", campaign)

    def _note_written(self, message: Message) -> None:
        """An amendment changes what the notes it names say: they are remembered anew as well."""
        entry = self.lab.notebook.entry(message.payload["entry"])
        for name in dict.fromkeys([entry.id, *entry.amends]):
            self._post_remember("note", name)
        self._post_remember("session", message.payload["session"])

    def _remember(self, message: Message) -> None:
        build = {"run": self._run, "experiment": self._experiment, "note": self._note, "session": self._session}
        kind, name = message.payload["kind"], message.payload["id"]
        document = build[kind](name)
        if document is not None:
            self.lab.memory.add(kind, **document)
        elif kind == "note":
            self.lab.memory.remove(f"note-{name}")  # it may have been struck out since

    def _run(self, run_id: str) -> dict[str, Any] | None:
        record = self.lab.runs.get(run_id)
        if record.experiment is not None or (record.elapsed_s or 0) < SHORTEST_REMEMBERED_RUN_S:
            return None
        config = self.lab.runs.detail(run_id, points=0)["config"] or {}
        settings = ", ".join(f"{key} = {value}" for key, value in flat(config))
        text = f"{run_sentence(record)}\n\nSettings: {settings}" if settings else run_sentence(record)
        return {
            "id": run_id,
            "title": f"{run_id}: {record.name or record.kind}",
            "text": text,
            "date": record.created_at[:10],
            "metadata": {"source": record.folder, "metrics": numbers(record.summary or {})},
        }

    def _experiment(self, experiment_id: str) -> dict[str, Any] | None:
        record = self.lab.experiments.get(experiment_id)
        return {
            "id": experiment_id,
            "title": f"{experiment_id}: {record.hypothesis.statement}",
            "text": report_page(record),
            "date": record.created_at[:10],
            "metadata": {
                "source": f"experiments/{experiment_id}/report.md",
                "tags": [tag for tag in (record.verdict, record.hypothesis.category) if tag],
                "campaign": record.campaign,
                "metrics": {} if record.mean() is None else {record.hypothesis.metric: record.mean()},
            },
        }

    def _note(self, entry_id: str) -> dict[str, Any] | None:
        entry = self.lab.notebook.entry(entry_id)
        words = self.lab.notebook.words(entry_id)
        if not words:
            return None
        session = self.lab.notebook.get(entry.session)
        return {
            "id": f"note-{entry_id}",
            "title": f"{session.title} ({entry.section or entry.kind}, {entry.at[:10]})",
            "text": words,
            "date": entry.at[:10],
            "metadata": {"source": f"docs/sessions/{session.page}", "tags": [entry.author]},
        }

    def _session(self, session_id: str) -> dict[str, Any] | None:
        """A session as one short document: what it was about and where it went, not every word once more."""
        session = self.lab.notebook.get(session_id)
        entries = self.lab.notebook.entries(session_id)
        parts = [session.title]
        for section in ("Objective", "Hypothesis", "Next steps"):
            if words := page.last_words(entries, section):
                parts.append(f"{section}: {words}")
        about = sorted({ref for entry in entries for ref in (*entry.links.experiments, *entry.links.runs)})
        if about:
            parts.append("About " + ", ".join(about[:40]))
        return {
            "id": f"session-{session_id}",
            "title": f"Session {session_id}: {session.title}",
            "text": "\n\n".join(parts),
            "date": session.date,
            "metadata": {"source": f"docs/sessions/{session.page}"},
        }


def numbers(summary: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a run's summary, by which memory can be narrowed."""
    found = {name: value for name, value in summary.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def run_sentence(record: RunRecord) -> str:
    """A run's end in one or two sentences, as notebook and memory tell it."""
    name = f" ({record.name})" if record.name else ""
    outcome = record.state + (f", {record.failure_class}" if record.failure_class else "")
    parts = [f"{record.id}{name} ended: {outcome} after {record.elapsed_s or 0:.0f} s"]
    summary = record.summary or {}
    shown = [(label, summary.get(key)) for label, key in (("val_bpb", "val_bpb"), ("train loss", "train_loss"))]
    parts += [f"{label} {value:.4f}" for label, value in shown if isinstance(value, int | float)]
    if summary.get("steps"):
        parts.append(f"{summary['steps']} steps")
    if record.reason and record.state != "succeeded":
        parts.append(record.reason)
    return ", ".join(parts) + "."


def run_facts(record: RunRecord) -> dict[str, Any]:
    """The line of the session's closing summary."""
    facts: dict[str, Any] = {
        "run": record.id,
        "name": record.name,
        "state": record.state,
        "elapsed_s": round(record.elapsed_s or 0, 1),
    }
    value = (record.summary or {}).get("val_bpb")
    if isinstance(value, int | float):
        facts |= {"metric": "val_bpb", "value": value, "direction": "lower"}
    return facts
