"""What one search may ask and how it is ordered: conditions, other wordings, a cross-encoder, pages, documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from rag.client import Memory
from rag.embedding.embedder import PACKAGED_MODEL, Embedder
from rag.engine import Engine
from rag.index.catalogue import Entry
from rag.index.store import Narrowing
from rag.query import check
from rag.ranking import STEADY, Wording, deepened, join, rank, reciprocal_ranks, scaled_dense, scaled_words
from workspace.errors import NotFound, Refused
from workspace.layout import Workspace


def experiment(number: int, campaign: str, **metrics: float) -> Entry:
    body = f"Experiment {number} widens the feed-forward layer of the wombat model by {number} units."
    details = {"campaign": campaign, "metrics": metrics}
    return Entry(f"exp-{number:04d}", "experiment", f"Wombat {number}", f"e{number}", "", details=details, body=body)


@pytest.fixture
def results(engine: Engine) -> Engine:
    engine.add_all(experiment(n, f"camp-{n % 2}", val_bpb=1.0 + n / 10, tokens=n * 1e6) for n in range(6))
    assert engine.indexer.wait_idle(60)
    return engine


def ids(engine: Engine, **narrowed: object) -> set[str]:
    return {hit.id for hit in engine.search(check("wombat feed-forward", limit=20, **narrowed)).hits}  # type: ignore[arg-type]


def test_a_passage_taken_out_while_it_is_searched_only_gives_no_feedback() -> None:
    class Emptied:
        """A store from which everything goes between the search and the look at what it found."""

        def dense(self, vector: object, limit: int, narrowing: Narrowing) -> list[tuple[str, float]]:
            return [("note-1#0", 0.9)]

        def words(self, query: str, limit: int, narrowing: Narrowing) -> list[tuple[str, float]]:
            return [("note-1#0", 3.0)]

        def vectors(self, ids: object) -> dict[str, list[float]]:
            return {}

    assert rank([Wording("otters", [1.0, 0.0])], Emptied(), Narrowing(), 0.3).order == ["note-1#0"]


def test_runs_that_differ_in_one_setting_are_all_found(engine: Engine) -> None:
    settings = ", ".join(f"model.knob_{n} = {n * 7}" for n in range(70))
    for n in range(5):
        body = f"run-000{n} ended: succeeded.\n\nSettings: optimizer.lr = 0.0{n}, {settings}"
        engine.add(Entry(f"run-000{n}", "run", f"run-000{n}: wombats", f"r{n}", "", body=body))
        engine.add(Entry(f"note-{n}", "note", f"Wombats {n}", f"n{n}", "", body=f"A copy {n}: {settings}"))
    assert engine.indexer.wait_idle(60)
    page = engine.search(check("optimizer.lr of the wombats, model.knob_3", limit=20))
    assert {hit.id for hit in page.hits if hit.kind == "run"} == {f"run-000{n}" for n in range(5)}
    assert len({hit.id for hit in page.hits if hit.kind == "note"}) == 1, "notes that say the same are still folded"


def test_dates_at_the_end_of_time() -> None:
    assert check("x", since="9999", until="9999-12-31").until == "9999-12-31"
    with pytest.raises(Refused, match="is not a date"):
        check("x", since="0000")


class Deep:
    """A store of 500 passages: by words in their order, by meaning too but for the first hundred, which it has last."""

    names = [f"p{n:03d}" for n in range(500)]

    def dense(self, vector: object, limit: int, narrowing: Narrowing) -> list[tuple[str, float]]:
        order = self.names[100:] + self.names[:100]
        return [(name, 0.9 - n / 1000) for n, name in enumerate(order)][:limit]

    def words(self, query: str, limit: int, narrowing: Narrowing) -> list[tuple[str, float]]:
        return [(name, 30.0 - n / 20) for n, name in enumerate(self.names)][:limit]

    def vectors(self, ids: object) -> dict[str, list[float]]:
        return {}


def test_far_down_what_both_rankings_hold_comes_before_what_one_holds() -> None:
    store = Deep()
    ranked = rank([Wording("otters", [1.0, 0.0])], store, Narrowing(), 0.3)
    whole = deepened(ranked, store, Narrowing())
    assert whole.order[:STEADY] == ranked.order[:STEADY] and sorted(whole.order) == Deep.names
    place = {name: n for n, name in enumerate(whole.order)}
    assert place["p180"] < place["p099"], (
        "181st and 81st, against one that is 100th in one ranking and far down in the other"
    )
    scores = [whole.scores[name] for name in whole.order]
    assert scores == sorted(scores, reverse=True) and scores[-1] > 0


def test_every_hit_is_on_one_page(engine: Engine) -> None:
    for n in range(120):
        engine.add(Entry(f"run-{n:04d}", "run", f"Run {n}", f"r{n}", "", body=f"Aardwolf run number {n} of the night."))
    assert engine.indexer.wait_idle(120)
    found: list[str] = []
    cursor = None
    while True:
        page = engine.search(check("aardwolf", limit=17, cursor=cursor, kinds=["run"]))
        found += [hit.id for hit in page.hits]
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
    assert len(found) == len(set(found)) == 120


def test_conditions_on_campaign_and_metrics(results: Engine) -> None:
    every = {f"exp-{n:04d}" for n in range(6)}
    assert every <= ids(results)
    assert ids(results, where=["campaign=camp-1"]) == {"exp-0001", "exp-0003", "exp-0005"}
    assert ids(results, where=["val_bpb<1.2"]) == {"exp-0000", "exp-0001"}
    assert ids(results, where=["val_bpb <= 1.2"]) == {"exp-0000", "exp-0001", "exp-0002"}
    assert ids(results, where=["val_bpb>1.2", "tokens<=4e6", "campaign=camp-0"]) == {"exp-0004"}
    assert ids(results, where=["tokens=3000000"]) == {"exp-0003"}
    page = results.search(check("wombat", where=["val_bpb>9"]))
    assert (page.hits, page.note) == ([], "nothing relevant under these filters")


def test_a_condition_that_makes_no_sense_is_refused_in_words(results: Engine) -> None:
    with pytest.raises(Refused, match=r"no? ?thing in memory has a field 'val_bbp'.*closest val_bpb"):
        results.search(check("wombat", where=["val_bbp<1"]))
    with pytest.raises(Refused, match="compares with no number"):
        results.search(check("wombat", where=["val_bpb<low"]))
    with pytest.raises(Refused, match="is not a condition"):
        check("wombat", where=["val_bpb"])
    with pytest.raises(Refused, match="use the argument kinds"):
        check("wombat", where=["kind=paper"])


def test_other_wordings_find_what_the_query_does_not(engine: Engine) -> None:
    engine.add(Entry("note-1", "note", "Aye-aye", "n", "", body="The aye-aye taps on bark to hear grubs."))
    assert engine.indexer.wait_idle(30)
    asked = "who won the chess championship in Oslo"
    assert "note-1" not in [hit.id for hit in engine.search(check(asked)).hits]
    assert engine.search(check(asked, variants=["aye-aye taps bark for grubs"])).hits[0].id == "note-1"
    with pytest.raises(Refused, match="variants"):
        check("x", variants=list("abcde"))


def test_the_only_passage_with_a_rare_word_stands_out() -> None:
    near = [(f"d{n}", 0.6 - n / 1000) for n in range(100)]
    joined = join([(scaled_words([("rare", 9.0)]), 0.45), (scaled_dense(near), 0.55)])
    assert max(joined, key=lambda name: joined[name]) == "rare"
    assert scaled_words([]) == {} == scaled_dense([])
    assert set(scaled_dense([("a", 0.5)] * 3).values()) == {0.5}
    assert reciprocal_ranks([("a", 1.0), ("b", 0.5)], [("b", 1.0)]) == ["b", "a"]


def test_pages_follow_each_other_without_gap_or_repetition(results: Engine) -> None:
    whole = [hit.id for hit in results.search(check("wombat feed-forward", limit=6)).hits]
    first = results.search(check("wombat feed-forward", limit=4))
    third = first.hits[2]
    rest = results.search(check("wombat feed-forward", limit=4, cursor=third.cursor))
    assert [hit.id for hit in first.hits[:3]] + [hit.id for hit in rest.hits][:3] == whole


def test_bad_queries_are_refused(engine: Engine) -> None:
    with pytest.raises(Refused, match="100,000 characters"):
        check("a" * 100_000)
    for empty in ("", "  ", "\x00\u200b", "?!"):
        with pytest.raises(Refused, match="empty"):
            check(empty)


def test_documents_are_listed_counted_and_read_again(results: Engine) -> None:
    page = results.documents(["experiment"], "", "", 4)
    assert (page.total, [one.id for one in page.documents]) == (6, [f"exp-{n:04d}" for n in range(4)])
    rest = results.documents(["experiment"], "", page.next_cursor or "", 4)
    assert ([one.id for one in rest.documents], rest.next_cursor) == (["exp-0004", "exp-0005"], None)
    assert results.documents([], "WOMBAT 3", "", 4).documents[0].id == "exp-0003"
    before = results.generations.building.store.count()
    assert results.reindex(["exp-0001"]) == 1
    assert results.reindex(None) > 6
    assert results.indexer.wait_idle(120)
    assert results.generations.building.store.count() == before
    with pytest.raises(NotFound, match="closest exp-000"):
        results.reindex(["exp-0009"])


def test_metrics_and_campaign_travel_through_the_worker(memory: Memory) -> None:
    memory.add("run", "run-0001", "Quokka run", "A quokka smiled.", metadata={"metrics": {"val/bpb": 1.5}})
    assert memory.reindex(["run-0001"]) == 1
    assert [one.id for one in memory.documents(["run"]).documents] == ["run-0001"]
    found = memory.rankings(["quokka"])
    assert found.documents.keys() == {"words", "dense", "fusion", "default", "shown"}
    with pytest.raises(Refused, match="closest val_bpb"):
        memory.search("quokka", where=["val_bp>1"])


@pytest.fixture(scope="module")
def tiny_reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder of a few thousand weights, made here: it knows nothing, but it is a real one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("reranker")
    words = {name: n for n, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "wombat", "feed", "forward"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]")
    fast.model_max_length = 64
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(vocab_size=len(words), num_labels=1, **shape)).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.mark.slow  # imports torch and transformers
def test_a_cross_encoder_orders_the_best_passages(tiny_reranker: Path, papers: Workspace, embedder: Embedder) -> None:
    from rag.embedding.reranker import Reranker

    model = Reranker(str(tiny_reranker))
    engine = Engine(papers, PACKAGED_MODEL, 0.3, load=lambda: embedder, reranker=str(tiny_reranker))
    try:
        engine.add_all(experiment(n, "c") for n in range(6))
        assert engine.indexer.wait_idle(60)
        engine._reranker = model
        hits = engine.search(check("wombat feed-forward", kinds=["experiment"], limit=6)).hits
        passages = {
            p.document: p
            for p in engine.generations.building.store.passages(
                [name for name, _ in engine.generations.building.store.words("wombat", 20, _everything())]
            ).values()
        }
        scores = [model.scores("wombat feed-forward", [passages[hit.id].searchable])[0] for hit in hits]
        assert len(hits) == 6
        assert scores == sorted(scores, reverse=True)
    finally:
        assert engine.close(10)


def _everything() -> object:
    from rag.index.store import Narrowing

    return Narrowing()


@pytest.mark.slow  # imports torch and transformers
def test_a_reranker_that_cannot_be_had_is_told_and_searches_go_on(papers: Workspace, embedder: Embedder) -> None:
    engine = Engine(papers, PACKAGED_MODEL, 0.3, load=lambda: embedder, reranker="no-such-model-anywhere")
    try:
        page = engine.search(check("how many tokens for each parameter"))
        assert page.hits[0].id == "shelf:chinchilla"
        assert "not reranked" in page.partial
    finally:
        assert engine.close(10)
