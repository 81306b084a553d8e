"""The database: what is committed stays, what is not leaves no trace, and threads neither block nor leak."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from killed_child import START, Child

from workspace import database as module
from workspace.database import Database
from workspace.errors import Unavailable

TABLE = ["CREATE TABLE things (n INTEGER PRIMARY KEY, half INTEGER)"]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "lab.db")
    yield opened
    opened.close()


def count(database: Database) -> int:
    row = database.one("SELECT count(*) AS n FROM things")
    assert row is not None
    return int(row["n"])


def test_wal_and_full_synchronous(database: Database, tmp_path: Path) -> None:
    assert database.one("PRAGMA journal_mode")[0] == "wal"  # type: ignore[index]
    assert database.one("PRAGMA synchronous")[0] == 2  # type: ignore[index]
    telemetry = Database(tmp_path / "telemetry.db", synchronous="NORMAL")
    assert telemetry.one("PRAGMA synchronous")[0] == 1  # type: ignore[index]
    telemetry.close()


def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    database.migrate("things", TABLE)
    with pytest.raises(RuntimeError), database.transaction() as tx:
        tx.execute("INSERT INTO things VALUES (1, 1)")
        raise RuntimeError
    assert count(database) == 0
    with database.transaction() as tx:
        tx.execute("INSERT INTO things VALUES (1, 1)")
    assert count(database) == 1


def test_a_mistake_in_a_statement_stays_what_it_is(database: Database) -> None:
    database.migrate("things", TABLE)
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        database.query("SELECT * FROM absent")
    with pytest.raises(sqlite3.IntegrityError), database.transaction() as tx:
        tx.execute("INSERT INTO things VALUES (1, 1), (1, 2)")
    with database.transaction() as tx:  # and the connection is usable afterwards
        tx.execute("INSERT INTO things VALUES (1, 1)")
    with pytest.raises(sqlite3.OperationalError), database.transaction(), database.transaction():
        pass
    assert count(database) == 1


# -- migrations -------------------------------------------------------------------------------------------------------


def test_migrations_are_applied_once_and_in_order(database: Database) -> None:
    database.migrate("things", TABLE)
    with database.transaction() as tx:
        tx.execute("INSERT INTO things VALUES (1, 1)")
    steps = [*TABLE, "ALTER TABLE things ADD COLUMN note TEXT DEFAULT 'a;b'; CREATE INDEX by_half ON things (half);"]
    for _ in range(2):
        database.migrate("things", steps)
    assert database.one("SELECT note FROM things")["note"] == "a;b"  # type: ignore[index]


def test_a_failing_migration_leaves_the_old_version(database: Database) -> None:
    database.migrate("things", TABLE)
    with pytest.raises(sqlite3.OperationalError):
        database.migrate("things", [*TABLE, "CREATE TABLE more (a); CREATE TABLE things (b);"])
    assert database.query("SELECT name FROM sqlite_master WHERE name = 'more'") == []
    database.migrate("things", [*TABLE, "CREATE TABLE more (a);"])


def test_a_script_may_hold_triggers_comments_and_quoted_semicolons(database: Database) -> None:
    script = """
    -- a comment; with a semicolon
    CREATE TABLE a (x TEXT DEFAULT ';');
    CREATE TABLE log (x TEXT);
    CREATE TRIGGER copy AFTER INSERT ON a BEGIN
      INSERT INTO log VALUES (new.x); INSERT INTO log VALUES ('twice;');
    END;
    INSERT INTO a DEFAULT VALUES
    """
    database.migrate("triggers", [script])
    assert [row["x"] for row in database.query("SELECT x FROM log")] == [";", "twice;"]


def test_a_newer_file_is_refused_and_untouched(database: Database) -> None:
    database.migrate("things", [*TABLE, "ALTER TABLE things ADD COLUMN newer TEXT"])
    with pytest.raises(Unavailable, match="version 2; this lab-mcp knows 1") as refusal:
        database.migrate("things", TABLE)
    assert "upgrade lab-mcp" in str(refusal.value)
    database.query("SELECT newer FROM things")


def test_components_do_not_know_each_other(database: Database) -> None:
    database.migrate("a", ["CREATE TABLE a (x)"])
    database.migrate("b", ["CREATE TABLE b (x)", "CREATE TABLE bb (x)"])
    database.migrate("a", ["CREATE TABLE a (x)", "CREATE TABLE aa (x)"])
    versions = {row["component"]: row["version"] for row in database.query("SELECT * FROM schema_versions")}
    assert versions == {"a": 2, "b": 2}


def test_two_processes_migrating_at_once(tmp_path: Path) -> None:
    code = (
        START + "from pathlib import Path\nfrom workspace.database import Database\n"
        "Database(Path(sys.argv[1])).migrate('x', ['CREATE TABLE x (a)', 'CREATE TABLE y (a)'])"
    )
    command = [sys.executable, "-P", "-s", "-c", code, str(tmp_path / "lab.db")]
    started = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(timeout=60) for process in started] == [0, 0, 0]


# -- kills and threads ------------------------------------------------------------------------------------------------

WRITER = """
from pathlib import Path
from workspace.database import Database
database = Database(Path(sys.argv[1]))
database.migrate("things", ["CREATE TABLE things (n INTEGER PRIMARY KEY, half INTEGER)"])
n = database.one("SELECT coalesce(max(n), 0) AS n FROM things")["n"]
while True:
    n += 2
    with database.transaction() as tx:
        tx.execute("INSERT INTO things VALUES (?, 1)", (n - 1,))
        tx.execute("INSERT INTO things VALUES (?, 2)", (n,))
    print(n, flush=True)
"""


def test_kill_9_loses_no_acknowledged_commit_and_tears_none(tmp_path: Path) -> None:
    path = tmp_path / "lab.db"
    for _ in range(6):
        child = Child(WRITER, tmp_path / "said", str(path))
        child.wait_for_first_line()
        time.sleep(random.uniform(0, 0.05))
        acknowledged = child.kill()[-1]
        database = Database(path)
        assert database.one("PRAGMA integrity_check")[0] == "ok"  # type: ignore[index]
        row = database.one("SELECT max(n) AS n, count(*) AS rows, sum(half) AS halves FROM things")
        assert row is not None and row["n"] in (acknowledged, acknowledged + 2)
        assert row["rows"] == row["n"] and row["halves"] * 2 == row["n"] * 3
        database.close()


def test_two_threads_writing_queue_instead_of_failing(database: Database) -> None:
    database.migrate("counter", ["CREATE TABLE counter (n INTEGER)", "INSERT INTO counter VALUES (0)"])
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(100):
                with database.transaction() as tx:  # read, then write: an upgrade of a read lock would fail here
                    n = tx.execute("SELECT n FROM counter").fetchone()["n"]
                    tx.execute("UPDATE counter SET n = ?", (n + 1,))
        except Exception as error:  # noqa: BLE001  told by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures and database.one("SELECT n FROM counter")["n"] == 400  # type: ignore[index]


def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    database.migrate("things", TABLE)
    seen: list[int] = []
    with database.transaction() as tx:
        tx.execute("INSERT INTO things VALUES (1, 1)")
        reader = threading.Thread(target=lambda: seen.append(count(database)))
        reader.start()
        reader.join(20)
        assert seen == [0]  # read while the writer was still at it, and saw nothing of it


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files through /proc")
def test_a_thread_that_ended_leaves_no_open_file(database: Database) -> None:
    database.migrate("things", TABLE)

    def open_files() -> int:
        return sum(str(database.path) in str(link.readlink()) for link in _descriptors())

    count(database)
    before = open_files()
    for _ in range(20):
        thread = threading.Thread(target=count, args=(database,))
        thread.start()
        thread.join(20)
    assert open_files() <= before + 3  # a connection holds the file and its log


def _descriptors() -> list[Path]:
    return [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]


def test_it_can_be_used_again_after_close(database: Database) -> None:
    database.migrate("things", TABLE)
    database.close()
    assert count(database) == 0


# -- when the machine is to blame -------------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_nothing_is_half_written(database: Database) -> None:
    database.migrate("things", ["CREATE TABLE things (n INTEGER PRIMARY KEY, half BLOB)"])
    pages = database.one("PRAGMA page_count")[0]  # type: ignore[index]
    database.query(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(Unavailable, match="disk is full"), database.transaction() as tx:
        for n in range(100):
            tx.execute("INSERT INTO things VALUES (?, zeroblob(4000))", (n,))
    assert count(database) == 0
    database.query("PRAGMA max_page_count = 1000000")
    with database.transaction() as tx:
        tx.execute("INSERT INTO things VALUES (1, NULL)")
    assert count(database) == 1


@pytest.mark.parametrize("content", [b"this is not a database, only text that is long enough" * 100])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lab.db").write_bytes(content)
    with pytest.raises(Unavailable, match="not a database"):
        Database(tmp_path / "lab.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    with pytest.raises(Unavailable):
        Database(folder / "lab.db")


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "lab.db").mkdir()
    with pytest.raises(Unavailable, match=r"lab\.db"):
        Database(tmp_path / "lab.db")


def test_another_process_that_keeps_it_locked(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.migrate("things", TABLE)
    monkeypatch.setattr(module, "BUSY_TIMEOUT_S", 0.05)
    other = Database.__new__(Database)
    other.__dict__.update(database.__dict__, _local=threading.local())
    with database.transaction(), pytest.raises(Unavailable, match="locked"), other.transaction():
        pass
