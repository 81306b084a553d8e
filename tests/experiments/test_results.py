"""results.tsv: one row per verdict, autoresearch's columns first, replaced cheaply and never torn."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from made_up_night import night

from experiments import results
from experiments.history import categories
from experiments.ledger import Ledger
from experiments.record import ExperimentRecord
from experiments.results import COLUMNS, Results, escape
from workspace.database import Database
from workspace.layout import Workspace


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Database(Workspace(tmp_path).database_file))


def rows(workspace: Workspace) -> list[dict[str, str]]:
    text = workspace.results_file.read_text()
    assert text.endswith("\n")
    return list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))


def test_the_first_columns_are_those_of_autoresearch(tmp_path: Path, ledger: Ledger) -> None:
    workspace = Workspace(tmp_path)
    made = list(night(40))
    ledger.restore(made)
    Results(workspace, ledger).write()
    found = rows(workspace)
    assert list(found[0])[:5] == ["commit", "val_bpb", "memory_gb", "status", "description"]
    assert [row["experiment"] for row in found] == [record.id for record in made]
    assert {row["status"] for row in found} <= {"keep", "discard", "crash"}
    crashed = next(row for row in found if row["verdict"] == "crash")
    assert float(crashed["val_bpb"]) == 0 and crashed["status"] == "crash"


def test_a_row_is_rendered_once(tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[str] = []
    plain = results.row
    monkeypatch.setattr(results, "row", lambda record: rendered.append(record.id) or plain(record))
    made = list(night(20))
    ledger.restore(made[:19])
    kept = Results(Workspace(tmp_path), ledger)
    kept.write()
    kept.write()
    assert len(rendered) == 19
    ledger.restore(made)
    kept.write()
    assert rendered[19:] == [made[-1].id] and len(rows(Workspace(tmp_path))) == 20
    monkeypatch.setattr(results, "FORMAT", results.FORMAT + 1)
    kept.write()
    assert len(rendered) == 40, "another version of the lab writes its own cells in every row"


def test_experiments_under_way_have_no_row_yet(tmp_path: Path, ledger: Ledger) -> None:
    (first, second) = night(2)
    ledger.restore([first, second.model_copy(update={"state": "measuring", "verdict": None})])
    Results(Workspace(tmp_path), ledger).write()
    assert [row["experiment"] for row in rows(Workspace(tmp_path))] == [first.id]


def test_no_text_breaks_a_row() -> None:
    (record,) = night(1)
    nasty = "a\tb\r\nc\\n \x00\x1b[31m\u2028d"
    claim = record.hypothesis.model_copy(update={"statement": nasty})
    cells = results.row(_with(record, claim)).split("\t")
    assert len(cells) == len(COLUMNS)
    assert cells[4] == "a\\tb\\r\\nc\\\\n [31md" == escape(nasty)


def _with(record: ExperimentRecord, claim: object) -> ExperimentRecord:
    return record.model_copy(update={"hypothesis": claim})


def test_what_was_tried_in_a_category_is_counted(tmp_path: Path, ledger: Ledger) -> None:
    made = list(night(60))
    ledger.restore(made)
    found = {category.name: category for category in categories(ledger)}
    assert sum(category.tried for category in found.values()) == 60
    mine = [record for record in made if record.hypothesis.category == "schedule"]
    kept = [record for record in mine if record.verdict == "keep" and record.numbers]
    assert (found["schedule"].tried, found["schedule"].kept) == (len(mine), len(kept))
    assert found["schedule"].last == mine[-1].id
    assert found["schedule"].best_effect == max((r.numbers.effect for r in kept if r.numbers), default=None)
    assert [r.id for r in ledger.find(limit=100, category="schedule")] == [record.id for record in reversed(mine)]
    one = categories_of_one(tmp_path)
    assert "1 experiment," in one and "1 experiments" not in one


def categories_of_one(tmp_path: Path) -> str:
    other = Ledger(Database(tmp_path / "other.db"))
    other.restore(night(1))
    return str(categories(other)[0])
