"""From texts to token files and rows: nothing lost, nothing leaked, nothing half written."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from training_support import small, workspace_with_text

from training import corpus, data, tokens
from training.config import DataConfig
from training.corpus import DataProblem
from training.loader import IGNORED, TrainingLoader, evaluation_rows
from training.sealed.audit import audit_ids
from workspace.errors import LabError
from workspace.layout import Workspace

PREPARE = """
import sys
from pathlib import Path
from training_support import small
from training import data
from workspace.layout import Workspace
print(data.prepare(small().data, Workspace(Path(sys.argv[1]))).meta["key"])
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspace_with_text(tmp_path)


# -- corpus --


@given(text=st.text(max_size=300), limit=st.integers(1, 50))
def test_cutting_loses_nothing(text: str, limit: int) -> None:
    pieces = list(corpus.cut(text, limit))
    assert "".join(pieces) == text
    assert all(len(piece) <= limit for piece in pieces)


def test_json_lines_and_markdown_are_read(workspace: Workspace) -> None:
    lines = [{"body": f"entry {i} {'x' * i}"} for i in range(40)]
    (workspace.root / "a.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (workspace.root / "b.md").write_text("# heading\n")
    config = small(data__files=["a.jsonl", "b.md"], data__text_field="body").data
    found = corpus.documents(corpus.find(config, workspace), config.max_bytes)
    assert found == [line["body"] for line in lines] + ["# heading\n"]


def test_lone_surrogates_and_broken_bytes_become_text(workspace: Workspace) -> None:
    (workspace.root / "a.jsonl").write_text('"\\ud800 half"\n')
    (workspace.root / "b.txt").write_bytes(b"caf\xe9")
    found = corpus.documents(corpus.find(small(data__files=["a.jsonl", "b.txt"]).data, workspace), 10_000)
    assert found == ["? half", "caf\ufffd"]


def test_the_cap_counts_bytes(workspace: Workspace) -> None:
    config = small(data__max_bytes=10_000).data
    found = corpus.documents(corpus.find(config, workspace), config.max_bytes)
    assert 0.9 * 10_000 < sum(len(text.encode()) for text in found) <= 10_000


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["/etc/passwd"], "outside the workspace"),
        (["../secret.txt"], "outside the workspace"),
        (["missing.txt"], "no file 'missing.txt'"),
        (["recipe.bin"], "no known suffix"),
        (["empty"], "no file to read"),
    ],
)
def test_files_that_cannot_be_used(workspace: Workspace, files: list[str], told: str) -> None:
    (workspace.root / "recipe.bin").write_text("x")
    (workspace.root / "empty").mkdir()
    with pytest.raises(LabError, match=told):
        corpus.find(small(data__files=files).data, workspace)


def test_a_link_out_of_the_workspace_is_refused(workspace: Workspace) -> None:
    (workspace.root / "link.txt").symlink_to("/etc/passwd")
    with pytest.raises(LabError, match="outside the workspace"):
        corpus.find(small(data__files=["link.txt"]).data, workspace)


def test_a_missing_field_is_named_with_those_there_are(workspace: Workspace) -> None:
    (workspace.root / "a.jsonl").write_text('{"body": "x", "title": "y"}\n')
    with pytest.raises(DataProblem, match=r"a\.jsonl line 1.*'text'.*body, title"):
        corpus.documents(corpus.find(small(data__files=["a.jsonl"]).data, workspace), 10_000)


def test_the_network_is_not_touched_unless_allowed(workspace: Workspace) -> None:
    with pytest.raises(LabError, match=r"hub = true"):
        corpus.find(DataConfig(corpus="hub:someone/something"), workspace)


def test_a_data_set_that_moved_on_is_another_corpus(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the two libraries: there is no network in a test."""
    commit, asked = "1" * 40, list[str]()

    def dataset_info(name: str, revision: str | None) -> SimpleNamespace:
        return SimpleNamespace(sha=commit)

    def load_dataset(name: str, revision: str, split: str, streaming: bool) -> list[dict[str, str]]:
        asked.append(revision)
        return [{"text": f"words of {revision}"}]

    modules = {
        "datasets": SimpleNamespace(load_dataset=load_dataset, __spec__=SimpleNamespace()),
        "huggingface_hub": SimpleNamespace(HfApi=lambda: SimpleNamespace(dataset_info=dataset_info)),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    config = DataConfig(corpus="hub:someone/something")
    first, again = (corpus.find(config, workspace, allow_network=True) for _ in range(2))
    commit = "2" * 40
    later = corpus.find(config, workspace, allow_network=True)
    assert first.identity == again.identity != later.identity
    assert list(later.read()) == [f"words of {'2' * 40}"] and asked == ["1" * 40, "1" * 40, "2" * 40]


def test_the_standard_library_is_the_same_each_time_and_capped(workspace: Workspace) -> None:
    config = DataConfig(max_bytes=200_000)
    first, second = corpus.find(config, workspace), corpus.find(config, workspace)
    assert first.identity == second.identity
    assert first.identity != corpus.find(DataConfig(max_bytes=400_000), workspace).identity
    assert sum(len(text.encode()) for text in corpus.documents(first, 200_000)) <= 200_000


# -- token files --


def test_a_token_file_reads_back_and_a_truncated_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    ids = np.arange(1000, dtype=np.int64)
    for vocabulary, width in ((1000, 2), (100_000, 4)):
        tokens.write(file, ids, vocabulary)
        assert tokens.read(file).dtype.itemsize == width
        np.testing.assert_array_equal(tokens.read(file), ids)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataProblem, match="truncated"):
        tokens.read(file)
    file.write_bytes(b"something else entirely, not tokens")
    with pytest.raises(DataProblem, match="not a token file"):
        tokens.read(file)


# -- preparation --


def test_every_byte_of_the_corpus_is_in_exactly_one_split(workspace: Workspace) -> None:
    config = small().data
    prepared = data.prepare(config, workspace)
    texts: list[str] = []
    for split in data.SPLITS:
        ids = audit_ids(prepared, workspace.cache_dir) if split == "audit" else prepared.ids(split)
        assert ids[0] == prepared.tokenizer.bos
        starts = np.flatnonzero(ids == prepared.tokenizer.bos)
        texts += [prepared.tokenizer.decode(part[1:]) for part in np.split(ids, starts[1:])]
        assert int(prepared.tokenizer.byte_lengths()[ids].sum()) == prepared.meta["bytes"][split]
    assert sorted(texts) == sorted(corpus.documents(corpus.find(config, workspace), config.max_bytes))


def test_audit_text_lies_in_a_folder_of_its_own(workspace: Workspace) -> None:
    prepared = data.prepare(small().data, workspace)
    assert not (prepared.folder / "audit.bin").exists()
    assert len(audit_ids(prepared, workspace.cache_dir)) == prepared.meta["tokens"]["audit"]


def test_a_document_stays_in_its_split_whatever_joins_it() -> None:
    config = DataConfig(validation_percent=20, audit_percent=20)
    texts = [f"document {i}" for i in range(2000)]
    counts = {split: sum(data.split_of(t, config) == split for t in texts) for split in data.SPLITS}
    assert 320 < counts["validation"] < 480 and 320 < counts["audit"] < 480
    digest = int.from_bytes(hashlib.sha256(texts[0].encode()).digest()[:4], "big") / 2**32
    assert (data.split_of(texts[0], config) == "validation") == (digest < 0.2)


def test_the_cache_is_used_and_follows_content_and_settings(workspace: Workspace) -> None:
    first = data.prepare(small().data, workspace)
    stamp = (first.folder / "train.bin").stat().st_mtime_ns
    again = data.prepare(small(data__context=64, batch__rows=1).data, workspace)  # the context does not matter to it
    assert again.folder == first.folder
    assert (again.folder / "train.bin").stat().st_mtime_ns == stamp
    assert data.prepare(small(data__vocab_size=310).data, workspace).folder != first.folder
    os.utime(workspace.root / "text" / "part0.txt")
    assert data.prepare(small().data, workspace).folder == first.folder
    with (workspace.root / "text" / "part0.txt").open("a") as file:
        file.write("one more line\n")
    assert data.prepare(small().data, workspace).folder != first.folder


def test_a_corpus_too_small_to_split_says_so(workspace: Workspace) -> None:
    (workspace.root / "tiny.txt").write_text("a few words only")
    with pytest.raises(DataProblem, match="too small"):
        data.prepare(small(data__files=["tiny.txt"]).data, workspace)
    assert not list((workspace.cache_dir / "data").glob("*.tmp"))


def _prepare_elsewhere(root: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", PREPARE, str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_two_processes_preparing_at_once_agree(workspace: Workspace) -> None:
    both = [_prepare_elsewhere(workspace.root) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    folders = [p for p in (workspace.cache_dir / "data").iterdir() if p.is_dir()]
    assert [folder.name for folder in folders] == [answers[0][0].strip()]


def test_a_killed_preparation_leaves_nothing_that_is_believed(workspace: Workspace) -> None:
    process = _prepare_elsewhere(workspace.root)
    cache = workspace.cache_dir / "data"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None and not list(cache.glob("*.tmp")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    prepared = data.prepare(small().data, workspace)
    assert len(prepared.ids("train")) == prepared.meta["tokens"]["train"]
    assert not list(cache.glob("*.tmp"))


# -- rows --


BOS = 10_000


def text_of(lengths: list[int]) -> NDArray[np.integer]:
    """Documents of these lengths, BOS included; no id occurs twice."""
    ids = np.arange(sum(lengths))
    ids[np.cumsum([0, *lengths[:-1]])] = BOS
    return ids


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12), context=st.integers(2, 12), epochs=st.integers(0, 2)
)
def test_every_epoch_gives_every_token_once_in_full_rows(lengths: list[int], context: int, epochs: int) -> None:
    """What fills no row at an epoch's end comes in the next one."""
    ids = text_of([2 * context + 2, *lengths])
    loader = TrainingLoader(ids, context, BOS, seed=1)
    rows = []
    while loader._next.epoch <= epochs or loader.state.position < len(loader._rows):
        rows.append(loader.next(1)[0])
    assert all(row[0] == BOS for row in rows)
    waiting = [ids[piece.start : piece.start + piece.length] for piece in loader._next.over]
    counts = Counter(np.concatenate([*rows, *waiting]).tolist())
    assert {counts[token] for token in ids.tolist() if token != BOS} == {epochs + 1}
    assert sum(piece.cost for piece in loader._next.over) <= context


def test_documents_that_fit_are_not_cut() -> None:
    lengths = [5, 4, 7, 2, 6, 3, 9] * 5
    ids = text_of(lengths)
    starts = np.flatnonzero(ids == BOS)
    rows = TrainingLoader(ids, 8, BOS, seed=1).next(len(ids) // 9)
    whole = sum(
        any(str(ids[s : s + n].tolist())[1:-1] in str(row.tolist()) for row in rows)
        for s, n in zip(starts, lengths, strict=True)
    )
    assert whole >= 0.8 * len(lengths)  # in a stream cut every 9 ids, about half are


def test_rows_repeat_by_seed() -> None:
    ids = text_of([20, 31, 5, 40])
    rows = TrainingLoader(ids, 8, BOS, seed=1).next(20)
    np.testing.assert_array_equal(rows, TrainingLoader(ids, 8, BOS, seed=1).next(20))
    assert not np.array_equal(rows, TrainingLoader(ids, 8, BOS, seed=2).next(20))


@settings(max_examples=30, deadline=None)
@given(before=st.integers(0, 40), after=st.integers(1, 40))
@pytest.mark.parametrize("group", [30, 2**21])
def test_a_restored_loader_goes_on_where_it_was(group: int, before: int, after: int) -> None:
    ids = np.arange(100) % 50
    ids[[0, 13, 40, 55, 90]] = 50
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.loader.GROUP_TOKENS", group)
        _restored(ids, before, after)


def _restored(ids: NDArray[np.integer], before: int, after: int) -> None:
    first = TrainingLoader(ids, 8, 50, seed=3)
    first.next(before)
    state = json.loads(json.dumps(first.state_dict()))
    second = TrainingLoader(ids, 8, 50, seed=3)
    second.load_state_dict(state)
    np.testing.assert_array_equal(first.next(after), second.next(after))


@settings(max_examples=40, deadline=None)
@given(calls=st.lists(st.tuples(st.sampled_from(["next", "ahead", "restore"]), st.integers(1, 9)), max_size=14))
@pytest.mark.parametrize("group", [30, 2**21])
def test_rows_made_ahead_are_those_that_come(group: int, calls: list[tuple[str, int]]) -> None:
    """Nor does the state move before they are given out, whatever is made ahead, dropped or gone back to."""
    ids = np.arange(100) % 50
    ids[[0, 13, 40, 55, 90]] = 50
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.loader.GROUP_TOKENS", group)
        ahead, plain = TrainingLoader(ids, 8, 50, seed=3), TrainingLoader(ids, 8, 50, seed=3)
        for call, count in calls:
            if call == "next":
                np.testing.assert_array_equal(ahead.next(count), plain.next(count))
            elif call == "ahead":
                ahead.read_ahead(count)
            else:
                ahead.load_state_dict(json.loads(json.dumps(ahead.state_dict())))
            assert ahead.state_dict() == plain.state_dict()


def test_going_back_within_a_group_packs_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = TrainingLoader(np.arange(100), 8, 100, seed=3)
    before = loader.state_dict()
    first = loader.next(4)
    monkeypatch.setattr("training.loader.pack", None)
    loader.load_state_dict(json.loads(json.dumps(before)))
    np.testing.assert_array_equal(loader.next(4), first)


def test_a_loader_does_not_go_on_in_another_text() -> None:
    state = TrainingLoader(np.arange(100), 8, 100, seed=3).state_dict()
    with pytest.raises(DataProblem, match="changed"):
        TrainingLoader(np.arange(101), 8, 101, seed=3).load_state_dict(state)


@settings(max_examples=60)
@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=8), context=st.integers(2, 12))
def test_an_evaluation_scores_every_token_once(lengths: list[int], context: int) -> None:
    bos = 50
    stream = [token for length in lengths for token in [bos, *range(length)]]
    byte_lengths = np.ones(51, dtype=np.int32)
    byte_lengths[bos] = 0
    rows, size = evaluation_rows(np.array(stream), byte_lengths, context, bos, 10**6)
    assert (rows[:, 0] == bos).all()
    targets = rows[:, 1:].ravel()
    assert [int(t) for t in targets if t not in (bos, IGNORED)] == [t for t in stream if t != bos]
    assert size == sum(lengths)


def test_an_evaluation_takes_whole_documents_whatever_the_vocabulary(workspace: Workspace) -> None:
    sizes = set()
    for vocabulary in (260, 400):
        prepared = data.prepare(small(data__vocab_size=vocabulary).data, workspace)
        lengths = prepared.tokenizer.byte_lengths()
        sizes.add(evaluation_rows(prepared.ids("validation"), lengths, 32, prepared.tokenizer.bos, 3000)[1])
    assert len(sizes) == 1
    assert sizes.pop() >= 3000
