"""One suite for every store: the engine in this process, and qdrant-client (in its local mode; it is the same calls
a server gets). Then what only a server can do: be away, stumble, refuse."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from rag_support import eventually

from rag.embedding.embedder import PACKAGED_MODEL, Embedder
from rag.engine import Engine
from rag.index.catalogue import Catalogue, Entry
from rag.index.edge import EdgeStore
from rag.index.place import Place, forget, place_for
from rag.index.server import QdrantStore, connector, local_connector, shown
from rag.index.store import Narrowing, Passage, Range, Store
from rag.index.words import PlainWords, StemmedWords, Words
from rag.query import check
from workspace.errors import Unavailable
from workspace.layout import Workspace

DIMENSION = 32
ALL = Narrowing()
BEASTS = "lynx otter heron badger weasel marten stoat plover curlew dunlin".split()


def local(folder: Path, dimension: int, made: Callable[[], None] = lambda: None, encoder: Words | None = None) -> Store:
    connect = local_connector(folder / "qdrant")
    return QdrantStore(folder, dimension, made, connect=connect, name="here", local=True, encoder=encoder)


KINDS: dict[str, Callable[[Path], Store]] = {
    "edge": lambda folder: EdgeStore(folder, DIMENSION),
    "client": lambda folder: local(folder, DIMENSION),
    "client, plain words": lambda folder: local(folder, DIMENSION, encoder=PlainWords()),
}


def passage(n: int, number: int = 0, **more: object) -> Passage:
    beast = BEASTS[n % len(BEASTS)]
    text = f"The {beast} was running near the rivers in year {n}; " + "a common sentence of all of them. " * (n % 3 + 1)
    given = {"kind": "paper" if n % 2 else "note", "tags": (beast, "all"), "time": float(n * 100), "source": f"s-{n}"}
    return Passage(f"doc-{n}", number, **{"title": "Seen", "section": "", "text": text, "hash": "", **given, **more})  # type: ignore[arg-type]


def vectors(count: int, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = KINDS[request.param](tmp_path / "store")
    yield made
    made.close()


def fill(store: Store, count: int = 20) -> tuple[list[Passage], np.ndarray]:
    passages, dense = [passage(n) for n in range(count)], vectors(count)
    store.upsert(passages, dense)
    return passages, dense


def names(found: list[tuple[str, float]]) -> list[str]:
    return [name for name, _ in found]


def test_the_nearest_vector_comes_first_with_its_cosine(store: Store) -> None:
    passages, dense = fill(store)
    found = store.dense(dense[3].tolist(), 5, ALL)
    assert len(found) == 5
    assert found[0][0] == passages[3].id
    expected = sorted((dense @ dense[3]).tolist(), reverse=True)[:5]
    assert [score for _, score in found] == pytest.approx(expected, abs=1e-4)


def test_words_are_found_whatever_their_number_and_rare_ones_weigh_more(store: Store) -> None:
    passages, _ = fill(store)
    assert names(store.words("a herons river", 3, ALL))[:2] != names(store.words("river", 3, ALL))[:2]
    assert set(names(store.words("herons", 50, ALL))) == {passages[2].id, passages[12].id}
    assert store.words("of the and", 5, ALL) == []
    assert store.words("zebra", 5, ALL) == []
    assert set(store.tokens("running herons")) <= set(store.tokens("running rivers herons"))


def test_filters(store: Store) -> None:
    passages, dense = fill(store)
    asked = dense[0].tolist()
    by_id = {one.id: one for one in passages}

    def numbers(narrowing: Narrowing) -> set[int]:
        found = {int(by_id[name].document[4:]) for name in names(store.dense(asked, 50, narrowing))}
        assert found == {int(by_id[n].document[4:]) for n in names(store.words("common sentence", 50, narrowing))}
        return found

    assert numbers(Narrowing(kinds=("note",))) == set(range(0, 20, 2))
    assert numbers(Narrowing(kinds=("note", "paper"))) == set(range(20))
    assert numbers(Narrowing(tags=("lynx",))) == {0, 10}
    assert numbers(Narrowing(tags=("lynx", "otter"))) == set()
    assert numbers(Narrowing(since=500.0, until=800.0)) == {5, 6, 7}
    assert numbers(Narrowing(since=1800.0)) == {18, 19}
    assert numbers(Narrowing(ids=(passages[4].id, passages[9].id))) == {4, 9}
    assert numbers(Narrowing(ids=(passages[4].id, passages[9].id), kinds=("paper",))) == {9}


def test_filters_by_campaign_and_metric(store: Store) -> None:
    held = [passage(n, campaign=f"camp-{n % 2}", metrics={"val_bpb": n / 10, "tokens": 1e9 * n}) for n in range(8)]
    store.upsert([*held, passage(9)], vectors(9))
    by_id = {one.id: one for one in held}

    def numbers(**narrowed: object) -> set[int]:
        found = store.words("common sentence", 50, Narrowing(**narrowed))  # type: ignore[arg-type]
        return {int(by_id[name].document[4:]) for name, _ in found}

    assert numbers(campaign="camp-1") == {1, 3, 5, 7}
    assert numbers(ranges=(Range("val_bpb", low=0.2, high=0.5),)) == {2, 3, 4, 5}
    assert numbers(ranges=(Range("val_bpb", low=0.2, high=0.5, open=True),)) == {3, 4}
    assert numbers(ranges=(Range("tokens", low=5e9), Range("val_bpb", high=0.6))) == {5, 6}
    assert numbers(ranges=(Range("val_bpb", low=0.5),), campaign="camp-0") == {6}
    assert numbers(ranges=(Range("absent", low=0.0),)) == set()
    assert store.passages([held[3].id])[held[3].id] == held[3]


def test_what_is_stored_comes_back_whole(store: Store) -> None:
    rich = passage(1, section="Ménagerie ✓", date="2024-05", page=3, page_end=4, start=7, end=99)
    dense = vectors(1)
    store.upsert([rich], dense)
    assert store.passages([rich.id, passage(2).id]) == {rich.id: rich}
    assert store.vectors([rich.id])[rich.id] == pytest.approx(dense[0].tolist(), abs=1e-5)
    assert store.passages([]) == {} == store.vectors([])


def test_writing_again_replaces(store: Store) -> None:
    fill(store)
    changed = passage(3, title="Changed")
    store.upsert([changed], vectors(1, seed=9))
    assert store.count() == 20
    assert store.passages([changed.id])[changed.id].title == "Changed"
    assert store.dense(vectors(1, seed=9)[0].tolist(), 1, ALL)[0][0] == changed.id


def test_a_document_is_deleted_whole_or_from_a_passage_on(store: Store) -> None:
    fill(store)
    parts = [passage(3, number) for number in range(6)]
    store.upsert(parts, vectors(6, seed=1))
    store.delete("doc-3", from_number=2)
    assert store.passages([one.id for one in parts]).keys() == {one.id for one in parts[:2]}
    store.delete("doc-3")
    store.delete("doc-none")
    assert (store.count(), store.passages([parts[0].id])) == (19, {})


def test_relabelling_changes_the_source_only(store: Store) -> None:
    fill(store)
    store.relabel("doc-3", "papers/new place.pdf")
    held = store.passages([passage(3).id, passage(4).id])
    assert [held[passage(n).id].source for n in (3, 4)] == ["papers/new place.pdf", "s-4"]
    assert held[passage(3).id].tags == passage(3).tags


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_there_after_closing_and_opening(kind: str, tmp_path: Path) -> None:
    first = KINDS[kind](tmp_path / "store")
    fill(first)
    first.flush()
    first.maintain()
    words, dense = dict(first.words("otter river", 20, ALL)), first.dense(vectors(1)[0].tolist(), 8, ALL)
    first.close()
    second = KINDS[kind](tmp_path / "store")
    assert second.count() == 20
    assert dict(second.words("otter river", 20, ALL)) == pytest.approx(words)
    assert dict(second.dense(vectors(1)[0].tolist(), 8, ALL)) == pytest.approx(dict(dense))
    second.close()


@pytest.mark.parametrize("kind", ["edge", "client"])
def test_one_process_one_owner(kind: str, tmp_path: Path) -> None:
    first = KINDS[kind](tmp_path / "store")
    with pytest.raises(Unavailable, match="in use by another process"):
        KINDS[kind](tmp_path / "store")
    first.close()
    KINDS[kind](tmp_path / "store").close()


def test_both_stores_agree(tmp_path: Path) -> None:
    edge, client = KINDS["edge"](tmp_path / "edge"), KINDS["client"](tmp_path / "client")
    fill(edge)
    fill(client)
    for query in ("otter river", "common sentence of herons", "running year 7"):
        one, other = dict(edge.words(query, 20, ALL)), dict(client.words(query, 20, ALL))
        assert one.keys() == other.keys()
        assert [one[name] for name in one] == pytest.approx([other[name] for name in one], rel=1e-3)
        assert edge.tokens(query) == client.tokens(query)
    edge.close()
    client.close()


def test_many_threads_at_once(store: Store) -> None:
    failures: list[BaseException] = []

    def work(n: int) -> None:
        try:
            for m in range(10):
                one = passage(n * 10 + m)
                store.upsert([one], vectors(1, seed=n * 10 + m))
                assert one.id in store.passages([one.id])
                store.words("river", 5, ALL)
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert store.count() == 40


def test_a_store_that_lost_everything_is_filled_again(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "catalogue.db")
    catalogue.put(Entry("note-1", "note", "T", "note-1", "h", body="text"))
    entry = catalogue.get("note-1")
    assert entry is not None
    catalogue.written_all([(entry, 1, "")])
    catalogue.flushed()
    EdgeStore(tmp_path / "store", DIMENSION, catalogue.store_is_empty).close()
    assert catalogue.waiting() == 1
    catalogue.close()


def test_a_collection_that_vanishes_is_filled_again_by_itself(papers: Workspace, embedder: Embedder) -> None:
    engine = Engine(papers, PACKAGED_MODEL, 0.3, load=lambda: embedder, place=Place("elsewhere", local), shelf=False)
    try:
        engine.add(Entry("note-1", "note", "Herons", "n", "", body="Herons fish at dusk."))
        assert engine.indexer.wait_idle(60)
        store = engine.generations.building.store
        assert isinstance(store, QdrantStore)
        time.sleep(1.0)  # the indexer has nothing more to do and waits to be woken
        store._client.delete_collection(store.collection)
        store._there = False
        engine.search(check("herons"))
        eventually(lambda: engine.search(check("herons fish")).hits, 60)
    finally:
        assert engine.close(10)


def test_plain_words_join_singular_and_plural_and_leave_stop_words_out() -> None:
    plain = PlainWords()
    assert plain.query("The Studies of herons")[0] == plain.query("study heron")[0]
    assert plain.query("grass bus loss")[0] != plain.query("gras bu los")[0]
    ids, weights = plain.document("otter otter lynx")
    assert weights[ids.index(plain.query("otter")[0][0])] > weights[ids.index(plain.query("lynx")[0][0])]
    assert plain.document("") == ([], []) == StemmedWords().query("")


class Stub(BaseHTTPRequestHandler):
    """As much of a Qdrant server as one write needs; answers 503 as often as `server.stumbles` says."""

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        stumbling = "/points" in self.path and self.server.stumbles > 0  # type: ignore[attr-defined]
        refusing = self.server.key is not None and self.headers.get("api-key") != self.server.key  # type: ignore[attr-defined]
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        if stumbling:
            self.server.stumbles -= 1  # type: ignore[attr-defined]
        result = {"exists": True} if self.path.endswith("/exists") else {"operation_id": 1, "status": "completed"}
        data = json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()
        self.send_response(503 if stumbling else 401 if refusing else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST = _answer

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.stumbles, server.key, server.asked = 0, None, []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def at(server: ThreadingHTTPServer, folder: Path) -> QdrantStore:
    url = f"http://127.0.0.1:{server.server_port}"
    return QdrantStore(folder, DIMENSION, connect=connector(url), name=shown(url), label="My Lab ä")


def test_a_server_that_stumbles_is_asked_again_a_bounded_number_of_times(
    stub: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.index.server.WRITE_WAITS_S", (0.01, 0.01, 0.01))
    store = at(stub, tmp_path / "store")
    assert store.collection.startswith("lab-my-lab-schema")
    stub.stumbles = 3  # type: ignore[attr-defined]
    store.upsert([passage(1)], vectors(1))
    stub.stumbles = 100  # type: ignore[attr-defined]
    with pytest.raises(Unavailable, match=f"http://127.0.0.1:{stub.server_port} does not answer .503") as raised:
        store.upsert([passage(1)], vectors(1))
    assert raised.value.fix and "LAB_QDRANT_URL" in raised.value.fix
    assert stub.stumbles == 96  # type: ignore[attr-defined]
    store.close()


def test_many_passages_go_in_batches(stub: ThreadingHTTPServer, tmp_path: Path) -> None:
    store = at(stub, tmp_path / "store")
    store.upsert([passage(n) for n in range(150)], vectors(150))
    assert sum("/points" in path for path in stub.asked) == 3  # type: ignore[attr-defined]
    store.close()


def test_a_server_that_wants_a_key_gets_it_from_the_environment(
    stub: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.key = "open sesame"  # type: ignore[attr-defined]
    store = at(stub, tmp_path / "store")
    with pytest.raises(Unavailable, match=r"refused a request \(401"):
        store.upsert([passage(1)], vectors(1))
    store.close()
    monkeypatch.setenv("LAB_QDRANT_API_KEY", "open sesame")
    again = at(stub, tmp_path / "store")
    assert again.collection == store.collection
    again.upsert([passage(1)], vectors(1))
    again.close()


def test_no_password_of_an_url_is_shown_or_recorded() -> None:
    assert shown("https://ada:secret@q.example.org:6333/x/?api_key=1") == "https://q.example.org:6333/x"
    assert "secret" not in place_for("https://ada:secret@q.example.org", "lab").name


def test_while_a_server_is_away_documents_wait_and_the_reason_is_told(
    stub: ThreadingHTTPServer, tmp_path: Path, papers: Workspace, embedder: Embedder
) -> None:
    url = f"http://127.0.0.1:{stub.server_port}"
    stub.shutdown()
    stub.server_close()  # nobody listens there now
    away = Engine(papers, PACKAGED_MODEL, 0.3, load=lambda: embedder, place=place_for(url, "lab"))
    assert away.add(Entry("note-1", "note", "Ospreys", "note-1", "", body="Ospreys plunge for trout."))
    with pytest.raises(Unavailable, match=f"{url} does not answer"):
        away.search(check("ospreys"))
    with pytest.raises(Unavailable, match=url):
        away.index(None, 60)
    status = away.status()
    assert url in status.partial
    assert status.waiting > 0
    assert not forget(papers.index_dir / away.generations.building.folder.name / "store")
    assert away.close(20)

    def open_local(folder: Path, dimension: int, made: Callable[[], None]) -> Store:
        return local(folder, dimension, made)

    here = Engine(papers, PACKAGED_MODEL, 0.3, load=lambda: embedder, place=Place("client", open_local))
    assert here.indexer.wait_idle(60)
    assert here.search(check("ospreys trout")).hits[0].id == "note-1"  # kept though no store ever had it
    assert here.search(check("how many tokens for each parameter")).hits[0].id == "shelf:chinchilla"
    assert here.close(10)
