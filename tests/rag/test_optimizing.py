"""Optimising the index in this process: beside, while it is searched and written; killed at any moment."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from killed_child import ROOT, Child
from rag_support import eventually

from rag.index import optimizer
from rag.index.edge import EdgeStore
from rag.index.store import DENSE, WORDS, Narrowing, Passage

DIMENSION, PARTS = 48, 4
ALL = Narrowing()


def eager_shard(folder: Path) -> None:
    """An empty shard whose engine builds a vector index from 60 vectors on, so that a small test has one to build."""
    import qdrant_edge as edge

    (folder / "shard-0001").mkdir(parents=True)
    shard = edge.EdgeShard.create(
        str(folder / "shard-0001"),
        edge.EdgeConfig(
            vectors={DENSE: edge.EdgeVectorParams(size=DIMENSION, distance=edge.Distance.Cosine)},
            sparse_vectors={WORDS: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)},
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=10),
        ),
    )
    shard.close()
    (folder / "current.json").write_text('{"shard": "shard-0001", "points": 0, "dense": 0}')


def parts(n: int, version: int = 0) -> tuple[list[Passage], np.ndarray]:
    """A document of `PARTS` passages with the vectors that belong to it."""
    dense = np.random.default_rng([n, version]).standard_normal((PARTS, DIMENSION)).astype(np.float32)
    made = [
        Passage(f"doc-{n}", m, "note", f"Note {n}", f"source {version}", "", f"word{n} is part {m}", "")
        for m in range(PARTS)
    ]
    return made, dense / np.linalg.norm(dense, axis=1, keepdims=True)


def holds(store: EdgeStore, n: int, version: int = 0) -> None:
    passages, dense = parts(n, version)
    assert store.passages([one.id for one in passages]) == {one.id: one for one in passages}, n
    for one, vector in zip(passages, dense, strict=True):
        assert store.vectors([one.id])[one.id] == pytest.approx(vector.tolist(), abs=1e-5)
    assert {name for name, _ in store.words(f"word{n}", 50, ALL)} == {one.id for one in passages}, n


def shards(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("shard-*"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    eager_shard(tmp_path / "store")
    return tmp_path / "store"


def test_it_begins_by_itself_when_enough_is_new_and_again_at_the_double(folder: Path) -> None:
    store = EdgeStore(folder, DIMENSION, optimize_at=200)
    for n in range(50):
        store.upsert(*parts(n))
    store.maintain()
    assert not store.optimizing  # 200 are not more than 200
    store.upsert(*parts(50))
    store.maintain()
    eventually(lambda: not store.optimizing)
    assert shards(folder) == ["shard-0002"]
    assert store._current.size().indexed > 204  # dense vectors are in an index now, too
    for n in range(51, 101):
        store.upsert(*parts(n))
    store.maintain()
    assert not store.optimizing
    store.upsert(*parts(101))
    store.upsert(*parts(102))
    store.maintain()
    eventually(lambda: not store.optimizing)
    assert shards(folder) == ["shard-0003"]
    for n in range(103):
        holds(store, n)
    store.close()


def test_many_deleted_points_are_a_reason_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag.index.edge.DELETED_AT", 100)
    store = EdgeStore(folder, DIMENSION)
    for n in range(50):
        store.upsert(*parts(n))
    store.maintain()
    assert not store.optimizing
    for n in range(30):
        store.delete(f"doc-{n}")
    store.maintain()
    eventually(lambda: not store.optimizing)
    assert shards(folder) == ["shard-0002"]
    assert store.count() == 20 * PARTS
    store.maintain()  # what the engine did not pack is no reason to try again and again
    assert not store.optimizing
    store.close()


def test_searches_and_writes_go_on_and_nothing_written_meanwhile_is_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EdgeStore(folder, DIMENSION, optimize_at=300)
    for n in range(100):
        store.upsert(*parts(n))
    go = threading.Event()
    waiting = optimizer.start

    def held(target: Path) -> object:
        child = waiting(target)
        assert go.wait(30)
        return child

    monkeypatch.setattr(optimizer, "start", held)
    store.maintain()
    eventually(lambda: shards(folder) == ["shard-0001", "shard-0002"])
    for n in range(100, 140):  # new
        store.upsert(*parts(n))
    for n in range(10):  # replaced
        store.upsert(*parts(n, version=1))
    for n in range(10, 20):  # removed
        store.delete(f"doc-{n}")
    store.delete("doc-20", from_number=2)
    store.relabel("doc-21", "elsewhere")
    holds(store, 139)
    stop = threading.Event()
    searched, failures = [0], []

    def search() -> None:
        while not stop.is_set():
            try:
                assert len(store.words("word50", 10, ALL)) == PARTS
                assert store.dense(parts(50)[1][0].tolist(), 1, ALL)[0][0] == parts(50)[0][0].id
                searched[0] += 1
            except BaseException as error:  # noqa: BLE001 - shown below
                failures.append(error)
                return

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    go.set()
    more = 140
    while store.optimizing:
        store.upsert(*parts(more))
        more += 1
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert searched[0] > 0
    assert shards(folder) == ["shard-0002"]

    def check(store: EdgeStore) -> None:
        for n in [*range(22, 100, 7), *range(100, more)]:
            holds(store, n)
        for n in range(10):
            holds(store, n, version=1)
        assert store.words("word10", 10, ALL) == []
        assert len(store.words("word20", 10, ALL)) == 2
        assert {one.source for one in store.passages([one.id for one in parts(21)[0]]).values()} == {"elsewhere"}
        assert store.count() == (more - 10) * PARTS - 2

    check(store)
    store.close()
    again = EdgeStore(folder, DIMENSION)
    check(again)
    again.close()


def test_an_optimisation_that_fails_leaves_the_index_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EdgeStore(folder, DIMENSION, optimize_at=100)
    for n in range(40):
        store.upsert(*parts(n))
    waiting = optimizer.start

    def killed(target: Path) -> object:
        child = waiting(target)
        child.kill()
        return child

    monkeypatch.setattr(optimizer, "start", killed)
    store.maintain()
    eventually(lambda: not store.optimizing)
    assert shards(folder) == ["shard-0001"]
    holds(store, 7)
    store.maintain()
    assert not store.optimizing  # not again at once
    store.close()


def test_closing_does_not_wait_for_it(folder: Path) -> None:
    store = EdgeStore(folder, DIMENSION, optimize_at=100)
    for n in range(40):
        store.upsert(*parts(n))
    store.maintain()
    store.close()
    assert shards(folder) == ["shard-0001"]
    again = EdgeStore(folder, DIMENSION)
    holds(again, 39)
    again.close()


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/rag"]
from test_optimizing import DIMENSION, EdgeStore, parts
store = EdgeStore(Path(sys.argv[1]), DIMENSION, optimize_at=100)
n = store.count() // 4
while True:
    store.upsert(*parts(n))
    print(n, flush=True)
    n += 1
    if n % 5 == 0:
        store.flush()
        store.maintain()
"""


def crash(folder: Path, tmp_path: Path, rounds: int, seed: int) -> None:
    """The thresholds are such that it optimises nearly all the time; every kill is at a random moment of it."""
    chance = random.Random(seed)
    last = -1
    for _ in range(rounds):
        child = Child(CHILD, tmp_path / "written", str(folder), str(ROOT / "tests"))
        child.wait_for_first_line()
        # only few of these 100 points each time: let it begin anew in each round
        time.sleep(chance.random() * 2.0)
        last = max([last, *child.kill()])
        orphans = [int(path.name) for path in Path("/proc").glob("[0-9]*") if _is_orphan(path, folder)]
        assert orphans == []
        store = EdgeStore(folder, DIMENSION)
        count = store.count()
        assert count % PARTS == 0
        assert count // PARTS >= last + 1
        for n in chance.sample(range(last + 1), min(last + 1, 25)):
            holds(store, n)
        assert len(shards(folder)) == 1
        store._about["points"] = 0  # the next round finds a reason at once
        store._point_at(store._about)
        store.close()


def _is_orphan(process: Path, folder: Path) -> bool:
    """An optimiser of this folder that is still there two seconds after its parent was killed."""
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            return False
        if b"rag.index.optimizer" not in command or str(folder).encode() not in command:
            return False
        time.sleep(0.05)
    return True


def test_killed_while_optimising(folder: Path, tmp_path: Path) -> None:
    crash(folder, tmp_path, 4, seed=1)


@pytest.mark.slow
def test_killed_forty_times_while_optimising(folder: Path, tmp_path: Path) -> None:
    crash(folder, tmp_path, 40, seed=2)


def test_the_optimiser_ends_with_its_parent(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from rag.index import optimizer\n"
        "child = optimizer.start(Path(sys.argv[1]) / 'shard-0001')\n"
        "print(child.pid, flush=True)\nimport time; time.sleep(60)\n"
    )
    child = Child(code, folder.parent / "pid", str(folder))
    child.wait_for_first_line()
    (pid,) = child.kill()
    eventually(lambda: not Path(f"/proc/{pid}").exists(), 10)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


FALLS = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/rag"]
from rag.index import edge
from test_optimizing import DIMENSION, EdgeStore, parts
store = EdgeStore(Path(sys.argv[1]), DIMENSION, optimize_at=100)
for n in range(60):
    store.upsert(*parts(n))
place, name, when = sys.argv[3].split(" ")
place = {"shutil": edge.shutil, "durable": edge.durable, "optimizer": edge.optimizer, "Shard": edge.Shard}[place]
real = getattr(place, name)
def falls(*given, **more):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    real(*given, **more)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(place, name, falls)
print(1, flush=True)
store.maintain()
for n in range(60, 80):
    store.upsert(*parts(n))
store._work.join()
"""


@pytest.mark.parametrize(
    "moment",
    [
        "shutil copytree before",
        "shutil copytree after",
        "optimizer start after",
        "Shard copy_document before",
        "durable write_json before",
        "durable write_json after",
        "Shard close before",
        "shutil rmtree before",
    ],
)
def test_killed_at_each_step_of_an_optimisation(folder: Path, tmp_path: Path, moment: str) -> None:
    child = Child(FALLS, tmp_path / "written", str(folder), str(ROOT / "tests"), moment)
    child.process.wait(60)
    assert child.process.returncode == -signal.SIGKILL
    store = EdgeStore(folder, DIMENSION)
    for n in range(60):
        holds(store, n)
    assert store.count() % PARTS == 0
    assert len(shards(folder)) == 1
    store.close()
