"""Ids are short, in order, and never given out twice, whatever is deleted."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from workspace.database import Database
from workspace.ids import MARK_FILE, Ids, number


def allocate(ids: Ids, database: Database) -> str:
    with database.transaction() as tx:
        return ids.allocate(tx)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "lab.db")


def test_ids_count_up_and_kinds_are_apart(database: Database, tmp_path: Path) -> None:
    runs, experiments = Ids(database, "run", tmp_path / "runs"), Ids(database, "exp", tmp_path / "experiments")
    assert [allocate(runs, database) for _ in range(3)] == ["run-0001", "run-0002", "run-0003"]
    assert allocate(experiments, database) == "exp-0001"


def test_an_id_is_not_given_again_after_its_folder_is_deleted(database: Database, tmp_path: Path) -> None:
    runs = Ids(database, "run", tmp_path / "runs")
    for _ in range(3):
        (tmp_path / "runs" / allocate(runs, database)).mkdir()
    shutil.rmtree(tmp_path / "runs" / "run-0003")
    assert allocate(Ids(database, "run", tmp_path / "runs"), database) == "run-0004"


def test_ids_survive_a_lost_database_by_the_mark(tmp_path: Path) -> None:
    first = Database(tmp_path / "a.db")
    runs = Ids(first, "run", tmp_path / "runs")
    for _ in range(5):
        allocate(runs, first)
    rebuilt = Database(tmp_path / "b.db")
    assert allocate(Ids(rebuilt, "run", tmp_path / "runs"), rebuilt) == "run-0006"


def test_ids_survive_a_lost_database_and_mark_by_the_folders(tmp_path: Path) -> None:
    for name in ("run-0007", "run-12345", "run-9", "run-abcd", "exp-99999", "run-0008.bak"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / MARK_FILE).write_text("not a number")
    database = Database(tmp_path / "lab.db")
    assert allocate(Ids(database, "run", tmp_path / "runs"), database) == "run-12346"


def test_ids_survive_a_lost_folder_by_the_database(database: Database, tmp_path: Path) -> None:
    runs = Ids(database, "run", tmp_path / "runs")
    for _ in range(4):
        allocate(runs, database)
    shutil.rmtree(tmp_path / "runs")
    assert allocate(Ids(database, "run", tmp_path / "runs"), database) == "run-0005"


def test_a_rolled_back_id_may_be_skipped_but_never_doubled(database: Database, tmp_path: Path) -> None:
    runs = Ids(database, "run", tmp_path / "runs")
    with pytest.raises(RuntimeError), database.transaction() as tx:
        runs.allocate(tx)
        raise RuntimeError
    given = [allocate(Ids(database, "run", tmp_path / "runs"), database) for _ in range(2)]
    assert len(set(given)) == 2 and given == sorted(given)


def test_threads_never_get_the_same_id(database: Database, tmp_path: Path) -> None:
    runs = Ids(database, "run", tmp_path / "runs")
    given: list[str] = []

    def work() -> None:
        given.extend(allocate(runs, database) for _ in range(25))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(given) == [f"run-{n:04d}" for n in range(1, 101)]


def test_number() -> None:
    assert number("run-0007", "run") == 7 and number("run-12345", "run") == 12345
    assert [number(name, "run") for name in ("run-7", "exp-0007", "run-0007x", "xrun-0007", "run-")] == [None] * 5
