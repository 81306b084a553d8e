"""Memory as the service uses it: a worker process that starts, answers many at once, dies and comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rag_support import eventually, pdf

from rag import client
from rag.client import Memory
from rag.embedding.embedder import PACKAGED_MODEL, Embedder
from rag.engine import Engine
from rag.index.catalogue import Entry
from rag.index.inspect import work_waits
from workspace import process
from workspace.errors import LabError, NotFound, Refused, Unavailable
from workspace.layout import Workspace
from workspace.settings import RagSettings, Settings


def test_the_client_is_light() -> None:
    heavy = "numpy torch onnxruntime onnx qdrant_edge qdrant_client tokenizers pypdfium2 sentence_transformers"
    code = f"import sys, rag.client; print([m for m in {heavy.split()!r} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_search_index_add_and_remove_through_the_worker(memory: Memory, papers: Workspace) -> None:
    assert memory.worker_pid is None
    assert memory.search("compute-optimal training of large language models").hits[0].id == "shelf:chinchilla"
    (papers.papers_dir / "fish.pdf").write_bytes(pdf([["Zebrafish Swim", "Zebrafish larvae swim."], ["In flumes."]]))
    (papers.papers_dir / "broken.pdf").write_bytes(b"%PDF-1.4 broken")
    report = memory.index()
    assert (report.state, report.added) == ("done", 2)
    assert [(p.source, p.reason) for p in report.failed] == [("papers/broken.pdf", "it is damaged, or not a PDF")]
    assert memory.search("zebrafish").hits[0].page == 1
    assert memory.add("experiment", "exp-0007", "Badgers", "They dig.", "2026-01-02", {"tags": ["Dig"], "source": "x"})
    eventually(lambda: memory.search("badgers dig", kinds=["experiment"]).hits)
    hit = memory.search("badgers dig", kinds=["experiment"]).hits[0]
    assert (hit.id, hit.kind, hit.date, hit.tags, hit.source) == ("exp-0007", "experiment", "2026-01-02", ["dig"], "x")
    eventually(lambda: memory.status().waiting == 0)  # a passage is found a moment before its document is done
    status = memory.status()
    assert (status.state, status.waiting, status.failed_total) == ("ready", 0, 1)
    assert status.documents["experiment"] == 1
    assert status.worker == memory.worker_pid
    assert memory.remove("exp-0007")
    eventually(lambda: not memory.search("badgers dig", kinds=["experiment"]).hits)


def test_refusals_come_through_in_words(memory: Memory) -> None:
    with pytest.raises(Refused, match="empty"):
        memory.search(" ")
    with pytest.raises(Refused, match="no kind 'notes'"):
        memory.add("notes", "n-1", "T", "text")
    assert memory.worker_pid is None  # nothing was started for them
    with pytest.raises(NotFound, match="no file or folder 'papers/none'"):
        memory.index(["papers/none"])
    with pytest.raises(Refused, match="outside the workspace"):
        memory.index(["/etc"])


def test_a_killed_worker_is_started_again_and_nothing_is_lost(memory: Memory) -> None:
    for n in range(2):
        assert memory.add("note", f"note-{n}", f"Note {n}", f"Walrus number {n} dozes on the ice.")
        killed = memory.worker_pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        assert memory.search("walrus on the ice") is not None
        assert memory.worker_pid not in (None, killed)
    eventually(lambda: memory.status().waiting == 0)
    found = [hit.id for hit in memory.search("walrus on the ice", kinds=["note"]).hits]
    assert sorted(found) == [f"note-{n}" for n in range(2)]


def test_calls_under_way_are_repeated_when_the_worker_dies(memory: Memory) -> None:
    memory.search("anything at all")
    stop = threading.Event()
    failures: list[LabError] = []
    answers: list[int] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                answers.append(len(memory.search("learning rate").hits))
            except LabError as error:
                failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        eventually(lambda: memory.worker_pid is not None)
        before = len(answers)
        os.kill(memory.worker_pid or 0, signal.SIGKILL)
        eventually(lambda before=before: len(answers) > before + 8)  # type: ignore[misc]
    stop.set()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert min(answers) > 0


def test_searches_are_answered_while_documents_are_indexed(memory: Memory, papers: Workspace) -> None:
    for n in range(3):
        text = " ".join(f"Sentence {i} of herd {n} is about migrating wildebeest." for i in range(150))
        (papers.papers_dir / f"herd-{n}.txt").write_text(text)
    assert memory.index(wait_s=0).state == "indexing"
    answered = 0
    while memory.status().waiting > 1:
        page = memory.search("who needs a warm-up of the learning rate")
        assert page.hits
        answered += 1
    assert answered >= 3
    memory.add("note", "note-1", "Seen", "An aardvark at dusk.")
    eventually(lambda: memory.search("aardvark", kinds=["note"]).hits)


def test_the_worker_ends_with_its_service(papers: Workspace) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom rag.client import Memory\n"
        "from workspace.layout import Workspace\nfrom workspace.settings import Settings\n"
        "memory = Memory(Workspace(Path(sys.argv[1])), Settings())\nmemory.search('x')\n"
        "print(memory.worker_pid, flush=True)\ntime.sleep(600)\n"
    )
    service = subprocess.Popen([sys.executable, "-P", "-c", code, str(papers.root)], stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    worker = process.identify(int(service.stdout.readline()))
    assert worker is not None
    service.kill()
    service.wait()
    service.stdout.close()
    eventually(lambda: not process.is_alive(worker))
    again = Memory(papers, Settings())  # and its index is free and whole
    try:
        assert again.search("how many tokens for each parameter").hits
    finally:
        again.close()


def test_one_index_has_one_owner(memory: Memory, papers: Workspace) -> None:
    memory.search("x")
    second = Memory(papers, Settings())
    try:
        with pytest.raises(Unavailable, match="in use by another process"):
            second.search("x")
        memory.close()
        assert second.search("how many tokens for each parameter").hits
    finally:
        second.close()


def test_a_closed_memory_refuses_and_a_slow_one_says_so(memory: Memory) -> None:
    memory.search("x")
    pid = memory.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(Unavailable, match="has not answered within"):
            memory._ask("status", {}, 0.3)
    finally:
        os.kill(pid, signal.SIGCONT)
    memory.close()
    with pytest.raises(Unavailable, match="closed"):
        memory.search("x")


def test_a_worker_that_hangs_is_ended_and_comes_back(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it takes no more messages: others wait for their turn to write, and no longer than they said."""
    memory.search("x")
    hanging = memory.worker_pid
    assert hanging is not None
    os.kill(hanging, signal.SIGSTOP)
    failures: list[LabError] = []

    def add() -> None:
        try:
            memory.add("note", "note-1", "Long", "A wall creeper climbs. " * 100_000)
        except LabError as error:
            failures.append(error)

    writer = threading.Thread(target=add)
    writer.start()
    monkeypatch.setattr(client, "HANGS_S", 1.0)
    time.sleep(1.0)
    with pytest.raises(Unavailable, match="is started again"):
        memory._ask("status", {}, 1.0)
    writer.join(60)
    assert not writer.is_alive() and failures == []  # its call was made again
    assert memory.worker_pid not in (None, hanging)
    assert memory.search("x") is not None


def test_a_worker_that_dies_comes_back_by_itself_while_documents_wait(
    memory: Memory, papers: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
    memory.start()
    eventually(lambda: memory.worker_pid is not None)
    (papers.papers_dir / "herd.txt").write_text(" ".join(f"Herd {n} of wildebeest migrates." for n in range(2000)))
    assert memory.index(wait_s=0).state == "indexing"
    killed = memory.worker_pid
    os.kill(killed or 0, signal.SIGKILL)
    eventually(lambda: memory.worker_pid not in (None, killed))
    eventually(lambda: not work_waits(papers.index_dir))
    second = memory.worker_pid
    eventually(lambda: memory.status().state == "ready")
    assert memory.worker_pid == second and memory.search("wildebeest migrate").hits


def test_a_death_with_nothing_left_to_do_is_left_at_that_until_somebody_asks(
    memory: Memory, papers: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, starts, start = threading.Event(), [], memory._came_up

    def counted() -> bool:
        starts.append(memory.worker_pid)
        return start()

    def watched(folder: Path) -> bool:
        try:
            return work_waits(folder)
        finally:
            looked.set()

    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(client, "work_waits", watched)
    monkeypatch.setattr(memory, "_came_up", counted)
    memory.start()
    eventually(lambda: memory.worker_pid is not None)
    eventually(lambda: not work_waits(papers.index_dir))
    os.kill(memory.worker_pid or 0, signal.SIGKILL)
    assert looked.wait(60)
    time.sleep(0.2)  # it would be starting by now
    assert starts == [None] and memory.worker_pid is None
    assert memory.search("how many tokens for each parameter").hits


def test_a_worker_that_dies_at_every_start_is_started_ever_later(
    memory: Memory, papers: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted without a clock: the pauses are noted instead of waited for."""
    pauses: list[float] = []

    class Closing(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return len(pauses) > 10

    def dies() -> None:
        raise client._Died

    monkeypatch.setattr(memory, "_closing", Closing())
    monkeypatch.setattr(memory, "_running", dies)
    monkeypatch.setattr(client, "work_waits", lambda folder: True)
    memory._look_after()
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert pauses[6:] == [client.LONGEST_PAUSE_S] * 5


def test_whether_work_waits_is_read_from_the_catalogue(papers: Workspace, embedder: Embedder) -> None:
    assert work_waits(papers.root / "nowhere")
    assert not work_waits(papers.index_dir)
    engine = Engine(papers, PACKAGED_MODEL, 0.3, load=lambda: embedder)
    engine.indexer.stop(10)
    engine.add(Entry("note-1", "note", "Note", "note-1", "", body="A wombat digs."))
    assert work_waits(papers.index_dir)
    assert engine.close(10)
    catalogue = next(papers.index_dir.glob("generation-*")) / "catalogue.db"
    catalogue.write_bytes(b"damaged")
    assert work_waits(papers.index_dir)


@pytest.mark.slow  # sentence-transformers takes its time to import
def test_a_worker_that_cannot_start_is_told_in_words(papers: Workspace) -> None:
    broken = Memory(papers, Settings(rag=RagSettings(model="no-such-model-anywhere")))
    try:
        with pytest.raises(Unavailable, match="no-such-model-anywhere"):
            broken.search("x")
    finally:
        broken.close()


def test_a_large_log_is_put_aside(papers: Workspace) -> None:
    log = papers.lab_dir / "memory.log"
    log.write_bytes(b"x" * (client.LOG_LIMIT + 1))
    assert not client._log_file(log).exists()
    assert (papers.lab_dir / "memory.log.1").exists()
