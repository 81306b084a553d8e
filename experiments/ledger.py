"""The ledger: the tables of experiments, their steps and their scores in lab.db.

Everything in it can be rebuilt from the folders under experiments/ (`restore`). A step is one transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

from experiments.error_budget import charge, confirmed, week_of
from experiments.record import Best, ExperimentRecord, Score, Step, Version
from workspace.clock import parse, stamp
from workspace.database import Database
from workspace.ids import number

TABLES = [
    """
    CREATE TABLE experiments (
      id TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, key TEXT UNIQUE,
      state TEXT NOT NULL, verdict TEXT, category TEXT, text TEXT NOT NULL, metric TEXT NOT NULL,
      score REAL, effect REAL, control TEXT, candidate TEXT, yardstick TEXT,
      created_at TEXT NOT NULL, ended_at TEXT, document TEXT NOT NULL
    );
    CREATE INDEX experiments_open ON experiments (number) WHERE state != 'done';
    CREATE INDEX experiments_verdict ON experiments (verdict, number);
    CREATE INDEX experiments_candidate ON experiments (candidate) WHERE candidate IS NOT NULL;
    CREATE TABLE experiment_steps (
      experiment TEXT NOT NULL REFERENCES experiments (id), position INTEGER NOT NULL,
      name TEXT NOT NULL, at TEXT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (experiment, position)
    );
    CREATE TABLE scores (
      experiment TEXT NOT NULL REFERENCES experiments (id), role TEXT NOT NULL, replicate INTEGER NOT NULL,
      run TEXT NOT NULL, value REAL NOT NULL, machine TEXT NOT NULL, at TEXT NOT NULL,
      recipe TEXT NOT NULL, yardstick TEXT NOT NULL, borrowed INTEGER NOT NULL, document TEXT NOT NULL,
      PRIMARY KEY (experiment, role, replicate)
    );
    CREATE INDEX scores_controls ON scores (yardstick, machine, at) WHERE role = 'control' AND borrowed = 0;
    CREATE TABLE experiment_facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    """,
    """
    ALTER TABLE experiments ADD COLUMN campaign TEXT;
    ALTER TABLE experiments ADD COLUMN proposer TEXT;
    ALTER TABLE experiments ADD COLUMN predicted REAL;
    ALTER TABLE experiments ADD COLUMN runs INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE experiments ADD COLUMN device_seconds REAL NOT NULL DEFAULT 0;
    CREATE INDEX experiments_campaign ON experiments (campaign, number) WHERE campaign IS NOT NULL;
    """,
    """
    DROP INDEX scores_controls;
    ALTER TABLE scores DROP COLUMN borrowed;
    CREATE INDEX scores_session ON scores (yardstick, machine, at);
    """,
    # words are looked for in all texts: without the documents between them that takes half the time
    "CREATE INDEX experiments_words ON experiments (number, text);",
]
LISTS = {"steps", "scores"}  # kept in their own tables
Post = Callable[[sqlite3.Connection], object]


class Ledger:
    """Reads and writes of the experiments' tables."""

    def __init__(self, database: Database) -> None:
        self.database = database
        database.migrate("experiments", TABLES)

    # -- writing ------------------------------------------------------------------------------------------------------

    def insert(self, tx: sqlite3.Connection, record: ExperimentRecord) -> None:
        """Add an experiment with its steps and scores, inside the caller's transaction."""
        columns = _columns(record)
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        tx.execute(f"INSERT INTO experiments ({names}) VALUES ({marks})", list(columns.values()))
        for position, step in enumerate(record.steps):
            _insert_step(tx, record.id, position, step)
        for score in record.scores:
            _insert_score(tx, record, score)

    def advance(
        self,
        record: ExperimentRecord,
        step: Step,
        *,
        best: Best | None = None,
        void: Sequence[Score] = (),
        also: Post | None = None,
    ) -> ExperimentRecord:
        """Store `record` in its new state together with the step that led there; `also` runs in the transaction.

        Scores in `void` go: they are made anew. A cancellation that was asked for meanwhile is kept, and so is another
        wording of the hypothesis.
        """
        with self.database.transaction() as tx:
            row = tx.execute("SELECT document FROM experiments WHERE id = ?", (record.id,)).fetchone()
            now = _parse(row["document"])  # what others may have added meanwhile
            changed = record.model_copy(
                update={
                    "steps": [*record.steps, step],
                    "scores": [score for score in record.scores if score not in void],
                    "cancelled_by": record.cancelled_by or now.cancelled_by,
                    "versions": now.versions,
                }
            )
            self._update(tx, changed)
            _insert_step(tx, record.id, len(record.steps), step)
            for score in void:
                tx.execute(
                    "DELETE FROM scores WHERE experiment = ? AND role = ? AND replicate = ?",
                    (record.id, score.role, score.index),
                )
            if best is not None:
                tx.execute("INSERT OR REPLACE INTO experiment_facts VALUES ('best', ?)", (best.model_dump_json(),))
            if also is not None:
                also(tx)
        return changed

    def add_scores(self, record: ExperimentRecord, scores: Sequence[Score]) -> ExperimentRecord:
        """Add scores; one that is there already stays as it was."""
        with self.database.transaction() as tx:
            for score in scores:
                _insert_score(tx, record, score)
        found = self.get(record.id)
        assert found is not None
        return found

    def cancel(self, experiment: str, by: str) -> bool:
        """Note that an open experiment shall end; False when its verdict has been reached."""
        with self.database.transaction() as tx:
            cursor = tx.execute(
                "UPDATE experiments SET document = json_set(document, '$.cancelled_by', ?)"
                " WHERE id = ? AND state NOT IN ('verdict', 'record', 'done')",
                (by, experiment),
            )
            return cursor.rowcount == 1

    def add_version(self, experiment: str, version: Version) -> None:
        """Keep a later wording of a hypothesis."""
        with self.database.transaction() as tx:
            tx.execute(
                "UPDATE experiments SET document = json_insert(document, '$.versions[#]', json(?)) WHERE id = ?",
                (version.model_dump_json(), experiment),
            )

    def wait(self, experiment: str, since: str | None, what: str | None, tries: int = 0) -> None:
        """Note what an experiment has been waiting for since when, and how often git failed; None: for nothing."""
        with self.database.transaction() as tx:
            tx.execute(
                "UPDATE experiments SET document = json_set(document, '$.waits_since', ?, '$.waits_for', ?,"
                " '$.waits_tries', ?) WHERE id = ?",
                (since, what, tries, experiment),
            )

    def restore(self, records: Iterable[ExperimentRecord]) -> int:
        """Add the experiments the ledger does not know, as their folders describe them; returns how many."""
        added = 0
        with self.database.transaction() as tx:
            known = {row["id"] for row in tx.execute("SELECT id FROM experiments")}
            for record in records:
                if record.id not in known:
                    self.insert(tx, record)
                    added += 1
                    if record.is_best and record.commit and record.parent:
                        best = Best(experiment=record.id, commit=record.commit, base=record.parent.base)
                        tx.execute(
                            "INSERT OR REPLACE INTO experiment_facts VALUES ('best', ?)", (best.model_dump_json(),)
                        )
        return added

    def _update(self, tx: sqlite3.Connection, record: ExperimentRecord) -> None:
        columns = _columns(record)
        sets = ", ".join(f"{name} = ?" for name in columns)
        tx.execute(f"UPDATE experiments SET {sets} WHERE id = ?", [*columns.values(), record.id])

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, experiment: str) -> ExperimentRecord | None:
        """One experiment with its steps and scores."""
        row = self.database.one("SELECT document FROM experiments WHERE id = ?", (experiment,))
        return None if row is None else self._whole(row["document"])

    def by_key(self, key: str) -> ExperimentRecord | None:
        row = self.database.one("SELECT document FROM experiments WHERE key = ?", (key,))
        return None if row is None else self._whole(row["document"])

    def open(self) -> list[ExperimentRecord]:
        """The experiments that have not ended, oldest first."""
        rows = self.database.query("SELECT document FROM experiments WHERE state != 'done' ORDER BY number")
        return [self._whole(row["document"]) for row in rows]

    def ids(self) -> list[str]:
        return [row["id"] for row in self.database.query("SELECT id FROM experiments ORDER BY number")]

    def find(
        self,
        *,
        limit: int,
        verdict: str | None = None,
        text: str | None = None,
        before: str | None = None,
        campaign: str | None = None,
        category: str | None = None,
    ) -> list[ExperimentRecord]:
        """Newest first, without steps and scores. `text`: all its words occur in statement, change, why or verdict."""
        where, values = ["1"], list[Any]()
        if verdict is not None:
            where.append("verdict = ?")
            values.append(verdict)
        for column, value in (("campaign", campaign), ("category", category)):
            if value is not None:
                where.append(f"{column} = ?")
                values.append(value)
        if before is not None:
            where.append("number < ?")
            values.append(number(before, "exp") or 0)
        for word in (text or "").lower().split():
            where.append("text LIKE ? ESCAPE '\\'")
            values.append("%" + word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%")
        sql = f"SELECT document FROM experiments WHERE {' AND '.join(where)} ORDER BY number DESC LIMIT ?"
        return [_parse(row["document"]) for row in self.database.query(sql, [*values, limit])]

    def of_campaign(self, campaign: str, last: int | None = None) -> list[ExperimentRecord]:
        """A campaign's experiments (the `last` ones), oldest first, without steps and scores."""
        rows = self.database.query(
            "SELECT document FROM experiments WHERE campaign = ? ORDER BY number DESC LIMIT ?",
            (campaign, -1 if last is None else last),
        )
        return [_parse(row["document"]) for row in reversed(rows)]

    def since_keep(self, campaign: str) -> tuple[int, int]:
        """How many experiments of a campaign were measured to a verdict: in all, and since the last keep."""
        row = self.database.one(
            "SELECT count(*) AS n, coalesce(sum(number > (SELECT coalesce(max(number), 0) FROM experiments"
            " WHERE campaign = ?1 AND verdict = 'keep')), 0) AS since FROM experiments"
            " WHERE campaign = ?1 AND state IN ('record', 'done') AND verdict IN ('keep', 'discard', 'inconclusive')",
            (campaign,),
        )
        assert row is not None
        return int(row["n"]), int(row["since"])

    def used(self, campaign: str) -> tuple[int, int, float]:
        """(experiments, runs of those with a verdict, device-seconds of these runs) of a campaign."""
        row = self.database.one(
            "SELECT count(*) AS n, coalesce(sum(runs), 0) AS runs, coalesce(sum(device_seconds), 0) AS seconds"
            " FROM experiments WHERE campaign = ?",
            (campaign,),
        )
        assert row is not None
        return int(row["n"]), int(row["runs"]), float(row["seconds"])

    def charges(self, campaign: str | None, at: str) -> list[float]:
        """What each experiment of a campaign takes from its error budget; None: the lone ones of the week of `at`."""
        first = stamp(parse(at) - timedelta(days=7))
        of_one, value = ("campaign = ?", campaign) if campaign else ("campaign IS NULL AND created_at >= ?", first)
        rows = self.database.query(
            "SELECT created_at, state, verdict, json_extract(document, '$.rule.alpha') AS alpha,"
            f" json_extract(document, '$.numbers.method') AS method FROM experiments WHERE {of_one} ORDER BY number",
            (value,),
        )
        return [
            charge(
                row["alpha"],
                ended=row["state"] in ("record", "done"),
                confirmed=confirmed(row["method"]),
                kept=row["verdict"] == "keep",
            )
            for row in rows
            if row["alpha"] is not None and (campaign or week_of(row["created_at"]) == week_of(at))
        ]

    def predictions(self) -> list[tuple[str, float, float, float, float]]:
        """(proposer, predicted effect, measured effect, low, high) of the experiments that have all of them."""
        rows = self.database.query(
            "SELECT proposer, predicted, effect, json_extract(document, '$.numbers.low') AS low,"
            " json_extract(document, '$.numbers.high') AS high FROM experiments"
            " WHERE predicted IS NOT NULL AND effect IS NOT NULL AND state IN ('record', 'done') ORDER BY number"
        )
        return [(row["proposer"], row["predicted"], row["effect"], row["low"], row["high"]) for row in rows]

    def ended(self, campaign: str | None = None) -> list[ExperimentRecord]:
        """Every experiment (of a campaign) with a verdict, oldest first, with scores."""
        of_one, values = (" AND campaign = ?", (campaign,)) if campaign else ("", ())
        rows = self.database.query(
            f"SELECT document FROM experiments WHERE state IN ('record', 'done'){of_one} ORDER BY number", values
        )
        scores: dict[str, list[Score]] = {}
        for row in self.database.query("SELECT experiment, document FROM scores ORDER BY at"):
            scores.setdefault(row["experiment"], []).append(Score.model_validate_json(row["document"]))
        records = [_parse(row["document"]) for row in rows]
        return [record.model_copy(update={"scores": scores.get(record.id, [])}) for record in records]

    def leaders(self, metric: str, higher: bool, limit: int, yardstick: str | None) -> list[ExperimentRecord]:
        """The kept experiments of one metric, measured by one yardstick, best score first."""
        order = "DESC" if higher else "ASC"
        rows = self.database.query(
            "SELECT document FROM experiments WHERE verdict = 'keep' AND state IN ('record', 'done') AND metric = ?"
            f" AND yardstick IS ? ORDER BY score {order} LIMIT ?",
            (metric, yardstick, limit),
        )
        return [self._whole(row["document"]) for row in rows]

    def leader(self, campaign: str, metric: str) -> ExperimentRecord | None:
        """The last experiment of a campaign, judged by its metric, that became the best. One that was kept beside it,
        against the same parent, did not."""
        row = self.database.one(
            "SELECT document FROM experiments WHERE campaign = ? AND metric = ? AND verdict = 'keep'"
            " AND state IN ('record', 'done') AND json_extract(document, '$.is_best') ORDER BY number DESC LIMIT 1",
            (campaign, metric),
        )
        return None if row is None else self._whole(row["document"])

    def counts(self, campaign: str | None = None) -> dict[str, int]:
        """Experiments (of a campaign) by verdict."""
        of_one, values = (" AND campaign = ?", (campaign,)) if campaign else ("", ())
        rows = self.database.query(
            f"SELECT verdict, count(*) AS n FROM experiments WHERE state IN ('record', 'done'){of_one} GROUP BY 1",
            values,
        )
        return {row["verdict"]: row["n"] for row in rows}

    def best(self) -> Best | None:
        row = self.database.one("SELECT value FROM experiment_facts WHERE name = 'best'")
        return None if row is None else Best.model_validate_json(row["value"])

    def same(self, control: str, candidate: str, but: str) -> list[ExperimentRecord]:
        """Ended experiments with the same effective settings and code on both sides, newest first."""
        rows = self.database.query(
            "SELECT document FROM experiments WHERE candidate = ? AND control = ? AND id != ?"
            " AND state IN ('record', 'done') ORDER BY number DESC",
            (candidate, control, but),
        )
        return [_parse(row["document"]) for row in rows]

    def measured_alike(
        self, yardstick: str, machine: str, *, since: str = "", last: int = -1, but: str = ""
    ) -> list[tuple[str, str, Score]]:
        """(recipe digest, experiment, score) of the runs measured alike on this machine (the `last` ones), oldest
        first."""
        rows = self.database.query(
            "SELECT recipe, experiment, document FROM scores WHERE yardstick = ? AND machine = ? AND at >= ?"
            " AND experiment != ? ORDER BY at DESC, rowid DESC LIMIT ?",
            (yardstick, machine, since, but, last),
        )
        return [(row["recipe"], row["experiment"], Score.model_validate_json(row["document"])) for row in rows[::-1]]

    def _whole(self, document: str) -> ExperimentRecord:
        record = _parse(document)
        steps = self.database.query(
            "SELECT name, at, data FROM experiment_steps WHERE experiment = ? ORDER BY position", (record.id,)
        )
        scores = self.database.query(
            "SELECT document FROM scores WHERE experiment = ? ORDER BY at, rowid", (record.id,)
        )
        return record.model_copy(
            update={
                "steps": [Step(name=row["name"], at=row["at"], data=json.loads(row["data"])) for row in steps],
                "scores": [Score.model_validate_json(row["document"]) for row in scores],
            }
        )


def _columns(record: ExperimentRecord) -> dict[str, Any]:
    hypothesis = record.hypothesis
    text = " ".join(
        [record.id, hypothesis.statement, hypothesis.describe_change(), hypothesis.why, record.sentence or "",
         hypothesis.category or "", record.verdict or ""]
    )  # fmt: skip
    return {
        "id": record.id,
        "number": number(record.id, "exp"),
        "key": record.key,
        "state": record.state,
        "verdict": record.verdict,
        "category": hypothesis.category,
        "text": text.lower(),
        "metric": hypothesis.metric,
        "score": record.mean(),
        "effect": record.numbers.effect if record.numbers else None,
        "control": record.control.digest if record.control else None,
        "candidate": record.candidate.digest if record.candidate else None,
        "yardstick": record.yardstick,
        "created_at": record.created_at,
        "ended_at": record.ended_at,
        "campaign": record.campaign,
        "proposer": record.proposer,
        "predicted": hypothesis.predicted_effect,
        "runs": len(record.runs),
        "device_seconds": record.device_seconds,
        "document": record.model_dump_json(exclude=LISTS),
    }


def _parse(document: str) -> ExperimentRecord:
    return ExperimentRecord.model_validate_json(document)


def _insert_step(tx: sqlite3.Connection, experiment: str, position: int, step: Step) -> None:
    tx.execute(
        "INSERT INTO experiment_steps VALUES (?, ?, ?, ?, ?)",
        (experiment, position, step.name, step.at, json.dumps(step.data, ensure_ascii=False)),
    )


def _insert_score(tx: sqlite3.Connection, record: ExperimentRecord, score: Score) -> None:
    arm = record.control if score.role == "control" else record.candidate
    assert arm is not None and record.yardstick is not None
    tx.execute(
        "INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record.id, score.role, score.index, score.run, score.value, score.machine, score.at,
            arm.digest, record.yardstick, score.model_dump_json(),
        ),
    )  # fmt: skip
