"""Collections as they come, measures and intervals against values worked out by hand, judgements that stay."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from rag.evaluation import bootstrap, collection, measures
from rag.evaluation.evaluate import evaluate, pooled, summarise
from rag.evaluation.labels import Labels
from workspace.errors import NotFound, Refused
from workspace.layout import Workspace

BEASTS = {
    "otter/1": "Otters hold hands while they sleep so that they do not drift apart.",
    "lynx ü": "The lynx hunts snowshoe hares and its numbers follow theirs.",
    "7": "Herons stand still in shallow water and wait for fish to pass.",
    "badger": "Badgers dig setts with many chambers and line them with dry grass.",
}


def write(folder: Path, judgements: str) -> Path:
    """A small collection with what collections in the wild have: no titles, null titles, numbers as ids."""
    (folder / "qrels").mkdir(parents=True)
    lines = [{"_id": int(name) if name.isdigit() else name, "text": text} for name, text in BEASTS.items()]
    lines[0]["title"] = None
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n")
    queries = [
        {"_id": "q 1", "text": "sea animals that sleep together"},
        {"_id": 2, "text": "birds that wait for fish"},
    ]
    (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in queries))
    (folder / "qrels" / "test.tsv").write_text(judgements)
    return folder


@pytest.mark.parametrize(
    "judgements",
    [
        "query-id\tcorpus-id\tscore\nq 1\totter/1\t2\nq 1\tbadger\t0\n2\t7\t1\n",
        "q 1\totter/1\t2\n2\t7\t1\n",
        "q 1\t0\totter/1\t2\n2\t0\t7\t1\n",
    ],
    ids=["with a header", "without", "as TREC has it"],
)
def test_collections_are_read_as_they_come(tmp_path: Path, judgements: str) -> None:
    found = collection.read(write(tmp_path / "beasts", judgements))
    assert [query.id for query in found.queries] == ["q 1", "2"]
    assert found.judgments == {"q 1": {"otter/1": 2}, "2": {"7": 1}}
    assert [item.id for item in found.documents()] == list(BEASTS)
    assert {item.title for item in found.documents()} == {""}


def test_what_cannot_be_read_is_named_by_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no corpus.jsonl, queries.jsonl, qrels/test.tsv"):
        collection.read(tmp_path)
    folder = write(tmp_path / "beasts", "q 1\totter/1\t1\nnonsense\n")
    with pytest.raises(Refused, match=r"test.tsv, line 2: 'nonsense'"):
        collection.read(folder)
    (folder / "qrels" / "test.tsv").write_text("q 1\totter/1\t1\n")
    (folder / "queries.jsonl").write_text('{"_id": 1, "text": "a"}\n{"text": "no id"}\n')
    with pytest.raises(Refused, match=r"queries.jsonl, line 2"):
        collection.read(folder)
    (folder / "queries.jsonl").write_text('{"_id": "other", "text": "a"}\n')
    with pytest.raises(Refused, match="no query"):
        collection.read(folder)


def test_measures_against_values_worked_out_by_hand() -> None:
    relevant = {"a": 2, "b": 1}
    perfect = 2 + 1 / math.log2(3)
    assert measures.ndcg(["a", "b"], relevant) == pytest.approx(1.0)
    assert measures.ndcg(["x", "b", "a"], relevant) == pytest.approx((1 / math.log2(3) + 2 / 2) / perfect)
    assert measures.ndcg([*"0123456789", "a"], relevant) == 0.0
    assert measures.recall(["x", "b"], relevant) == 0.5
    assert measures.reciprocal_rank(["x", "y", "b", "a"], relevant) == pytest.approx(1 / 3)
    assert measures.reciprocal_rank([], relevant) == 0.0


def test_an_interval_is_paired_and_covers_what_it_should() -> None:
    theirs = [n / 100 for n in range(100)]
    ours = [value + (0.02 if n % 2 else 0.0) for n, value in enumerate(theirs)]
    found = bootstrap.difference(ours, theirs)
    assert found.mean == pytest.approx(0.01)
    assert 0.0 < found.low < 0.01 < found.high < 0.02  # unpaired it would be wider than the values' own spread
    assert bootstrap.interval([0.5]) == bootstrap.Interval(0.5, 0.5, 0.5)
    assert bootstrap.difference(ours, theirs) == found


def test_a_collection_is_measured_by_the_engine_itself_and_indexed_once(tmp_path: Path) -> None:
    found = collection.read(write(tmp_path / "beasts", "q 1\totter/1\t2\n2\t7\t1\n"))
    seen: list[tuple[int, int]] = []
    first = evaluate(found, tmp_path / "scratch", "all-MiniLM-L6-v2", 0.3, progress=lambda *n: seen.append(n))
    assert (first.queries, first.documents, first.passages) == (2, 4, 4)
    assert first.values.keys() == {"words", "dense", "fusion", "default", "shown"}
    assert first.values["default"]["mrr"] == [1.0, 1.0]
    assert seen[-1] == (4, 4)
    seen.clear()
    again = evaluate(found, tmp_path / "scratch", "all-MiniLM-L6-v2", 0.3, progress=lambda *n: seen.append(n))
    assert again.values == first.values
    assert seen == []  # nothing was indexed again
    both = pooled([first, again])
    assert both.queries == 4
    assert both.gains()["default"].mean == pytest.approx(first.gains()["default"].mean)


def test_judgements_stay_and_the_last_word_counts(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    labels = Labels(workspace)
    assert labels.all() == {} == labels.relevant()
    assert labels.add("how  long is\nwarm-up", {"note-1": 2, "note-2": 1}) == 2
    labels.add("how long is warm-up", {"note-2": 0})
    labels.add("of no use", {"note-3": 0})
    with pytest.raises(Refused, match=r"cannot be judged 5.*0 \(does not answer\)"):
        labels.add("x", {"note-1": 5})
    with pytest.raises(Refused, match="empty"):
        labels.add(" ", {"note-1": 1})
    again = Labels(workspace)
    assert again.all()["how long is warm-up"] == {"note-1": 2, "note-2": 0}
    assert again.relevant() == {"how long is warm-up": {"note-1": 2}}
    measured = summarise("own", list(again.relevant().values()), {"fusion": [["x"]], "default": [["note-1"]]})
    again.record(measured.as_json())
    assert labels.history()[0]["ndcg@10 over fusion"]["default"]["mean"] == 1.0


COLLECTIONS = os.environ.get("LAB_BENCH_DATA")


@pytest.mark.slow
@pytest.mark.skipif(not COLLECTIONS, reason="LAB_BENCH_DATA names no folder of collections")
def test_the_default_is_no_worse_than_plain_fusion_on_a_known_collection(tmp_path: Path) -> None:
    measured = evaluate(collection.read(Path(COLLECTIONS or "") / "cranfield"), tmp_path, "all-MiniLM-L6-v2", 0.3)
    assert measured.gains()["default"].low > 0.0
