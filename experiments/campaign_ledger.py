"""The tables of campaigns, their steps and proposals in lab.db, mirrored into experiments/campaigns/.

Every change is one transaction; the folder follows it and is enough to rebuild the tables.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from experiments.campaign import Attempt, CampaignRecord, CampaignStep, Proposal
from experiments.final_audit import FinalAudit
from workspace import clock, durable
from workspace.database import Database
from workspace.ids import number
from workspace.outbox import Outbox

TABLES = [
    """
    CREATE TABLE campaigns (
      id TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, key TEXT UNIQUE, state TEXT NOT NULL, document TEXT NOT NULL
    );
    CREATE TABLE proposals (
      campaign TEXT NOT NULL REFERENCES campaigns (id), number INTEGER NOT NULL, state TEXT NOT NULL,
      experiment TEXT, money REAL NOT NULL, document TEXT NOT NULL, PRIMARY KEY (campaign, number)
    );
    """
]
KIND = "camp"
log = logging.getLogger(__name__)


class CampaignLedger:
    """Reads and writes of the campaigns' tables; `folder` is experiments/campaigns/."""

    def __init__(self, database: Database, outbox: Outbox, folder: Path) -> None:
        self.database = database
        self.outbox = outbox
        self.folder = folder
        database.migrate("campaigns", TABLES)
        self._restore()

    # -- writing ------------------------------------------------------------------------------------------------------

    def create(self, make_id: Callable[[sqlite3.Connection], str], record: CampaignRecord) -> CampaignRecord:
        """Store a new campaign under an id given out in the same transaction, with its first step."""
        with self.database.transaction() as tx:
            name = make_id(tx)
            begun = [CampaignStep(name="started", at=record.created_at)]
            # another campaign, other draws
            made = record.model_copy(update={"id": name, "seed": number(name, KIND) or 0, "steps": begun})
            self._insert(tx, made)
            self.outbox.post(tx, "campaign.changed", {"campaign": made.id, "step": 0})
        self._mirror(made)
        return made

    def step(
        self, record: CampaignRecord, name: str, why: str = "", data: dict[str, Any] | None = None, **changes: Any
    ) -> CampaignRecord:
        """Store what happened to a campaign, and the fields it changes; with `state`, `why` is the reason for it."""
        if "state" in changes:
            changes["why"] = why
        with self.database.transaction() as tx:
            row = tx.execute("SELECT document FROM campaigns WHERE id = ?", (record.id,)).fetchone()
            now = CampaignRecord.model_validate_json(row["document"])
            happened = CampaignStep(name=name, at=clock.now(), why=why, data=data or {})
            changed = now.model_copy(update={**changes, "steps": [*now.steps, happened]})
            tx.execute(
                "UPDATE campaigns SET state = ?, document = ? WHERE id = ?",
                (changed.state, changed.model_dump_json(), record.id),
            )
            self.outbox.post(tx, "campaign.changed", {"campaign": record.id, "step": len(changed.steps) - 1})
        self._mirror(changed)
        return changed

    def audited(self, record: CampaignRecord, audit: FinalAudit) -> CampaignRecord:
        """Store how far the audit of a campaign's best is; what came of it is a step."""
        if audit.state != "due":
            return self.step(record, "audited", audit.sentence(), audit=audit)
        with self.database.transaction() as tx:
            row = tx.execute("SELECT document FROM campaigns WHERE id = ?", (record.id,)).fetchone()
            now = CampaignRecord.model_validate_json(row["document"])
            changed = now.model_copy(update={"audit": audit})
            tx.execute("UPDATE campaigns SET document = ? WHERE id = ?", (changed.model_dump_json(), record.id))
        self._mirror(changed)
        return changed

    def ask(self, proposal: Proposal) -> None:
        """Write down that the next proposal is being asked for."""
        with self.database.transaction() as tx:
            self._insert_proposal(tx, proposal)
        self._mirror_proposal(proposal)

    def attempt(self, proposal: Proposal, attempt: Attempt | None) -> Proposal:
        """Add one question put to a model; its answer takes the place of its intent. None: it never got there.

        An intent that a kill left behind stays and counts: the answer may have been paid for.
        """
        with self.database.transaction() as tx:
            now = self._proposal(tx, proposal)
            kept = list(now.attempts)
            if (attempt is None or not attempt.open) and kept and kept[-1].open:
                kept.pop()
            kept += [attempt] if attempt is not None else []
            return self._replace(tx, now.model_copy(update={"attempts": kept}))

    def settle(self, proposal: Proposal, **changes: Any) -> Proposal:
        """Change a proposal's state, answer, experiment."""
        with self.database.transaction() as tx:
            changed = self._replace(tx, self._proposal(tx, proposal).model_copy(update=changes))
        self._mirror_proposal(changed)
        return changed

    def _proposal(self, tx: sqlite3.Connection, proposal: Proposal) -> Proposal:
        row = tx.execute(
            "SELECT document FROM proposals WHERE campaign = ? AND number = ?", (proposal.campaign, proposal.number)
        ).fetchone()
        return Proposal.model_validate_json(row["document"])

    def _replace(self, tx: sqlite3.Connection, proposal: Proposal) -> Proposal:
        tx.execute("DELETE FROM proposals WHERE campaign = ? AND number = ?", (proposal.campaign, proposal.number))
        self._insert_proposal(tx, proposal)
        return proposal

    def _insert(self, tx: sqlite3.Connection, record: CampaignRecord) -> None:
        tx.execute(
            "INSERT INTO campaigns VALUES (?, ?, ?, ?, ?)",
            (record.id, number(record.id, KIND), record.key, record.state, record.model_dump_json()),
        )

    def _insert_proposal(self, tx: sqlite3.Connection, proposal: Proposal) -> None:
        money = sum(attempt.money for attempt in proposal.attempts)
        tx.execute(
            "INSERT INTO proposals VALUES (?, ?, ?, ?, ?, ?)",
            (proposal.campaign, proposal.number, proposal.state, proposal.experiment, money,
             proposal.model_dump_json()),
        )  # fmt: skip

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, campaign: str) -> CampaignRecord | None:
        row = self.database.one("SELECT document FROM campaigns WHERE id = ?", (campaign,))
        return None if row is None else CampaignRecord.model_validate_json(row["document"])

    def by_key(self, key: str) -> CampaignRecord | None:
        row = self.database.one("SELECT document FROM campaigns WHERE key = ?", (key,))
        return None if row is None else CampaignRecord.model_validate_json(row["document"])

    def list(self, state: str | None = None, limit: int = 20) -> Sequence[CampaignRecord]:
        """Newest first."""
        rows = self.database.query(
            "SELECT document FROM campaigns WHERE ? IN (state, '') ORDER BY number DESC LIMIT ?", (state or "", limit)
        )
        return [CampaignRecord.model_validate_json(row["document"]) for row in rows]

    def to_audit(self) -> Sequence[CampaignRecord]:
        """Those that have ended and whose best is still to be audited, oldest first."""
        rows = self.database.query(
            "SELECT document FROM campaigns WHERE state = 'ended' AND json_extract(document, '$.audit.state') = 'due'"
            " ORDER BY number"
        )
        return [CampaignRecord.model_validate_json(row["document"]) for row in rows]

    def ids(self) -> Sequence[str]:
        return [row["id"] for row in self.database.query("SELECT id FROM campaigns ORDER BY number")]

    def proposals(self, campaign: str, last: int | None = None) -> Sequence[Proposal]:
        """A campaign's proposals, oldest first; of the `last` ones only, if that is given."""
        rows = self.database.query(
            "SELECT document FROM proposals WHERE campaign = ? ORDER BY number DESC LIMIT ?",
            (campaign, -1 if last is None else last),
        )
        return [Proposal.model_validate_json(row["document"]) for row in reversed(rows)]

    def money(self, campaign: str) -> float:
        """What the models' answers have cost."""
        row = self.database.one(
            "SELECT coalesce(sum(money), 0) AS money FROM proposals WHERE campaign = ?", (campaign,)
        )
        assert row is not None
        return float(row["money"])

    def dearest(self, campaign: str) -> float:
        """What the dearest of these answers has cost."""
        row = self.database.one(
            "SELECT coalesce(max(json_extract(attempt.value, '$.money')), 0) AS money"
            " FROM proposals, json_each(document, '$.attempts') AS attempt WHERE campaign = ?",
            (campaign,),
        )
        assert row is not None
        return float(row["money"])

    # -- the folder ---------------------------------------------------------------------------------------------------

    def _mirror(self, record: CampaignRecord) -> None:
        folder = self.folder / record.id
        folder.mkdir(parents=True, exist_ok=True)
        durable.write_json(folder / "campaign.json", record.model_dump(mode="json"))

    def _mirror_proposal(self, proposal: Proposal) -> None:
        folder = self.folder / proposal.campaign / "proposals"
        folder.mkdir(parents=True, exist_ok=True)
        durable.write_json(folder / f"{proposal.number:04d}.json", proposal.model_dump(mode="json"))

    def _restore(self) -> None:
        """Add the campaigns only their folders know; write again what a kill kept from a folder."""
        known = set(self.ids())
        found = [f for f in self.folder.glob(f"{KIND}-*") if number(f.name, KIND) is not None and f.name not in known]
        for folder in sorted(found, key=lambda path: number(path.name, KIND) or 0):
            try:
                record = CampaignRecord.model_validate(durable.read_json(folder / "campaign.json"))
                proposals = list(_read_proposals(folder))
            except (ValueError, ValidationError, OSError) as error:
                log.warning("experiments/campaigns/%s cannot be read: %s", folder.name, error)
                continue
            with self.database.transaction() as tx:
                self._insert(tx, record)
                for proposal in proposals:
                    self._insert_proposal(tx, proposal)
        for record in self.list(limit=3):
            self._mirror(record)
            for proposal in self.proposals(record.id, last=2):
                self._mirror_proposal(proposal)


def _read_proposals(folder: Path) -> Iterator[Proposal]:
    for file in sorted((folder / "proposals").glob("*.json")):
        yield Proposal.model_validate(durable.read_json(file))
