"""Scores nobody can talk up: each cheat an over-eager recipe could try, and what becomes of it."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from training_support import metrics, run_folder, small, summary, train, workspace_with_text

from training import data, tokens
from training.corpus import DataProblem
from training.failure import NotANumber
from training.loader import IGNORED
from training.sealed import audit, scoring, vault
from training.sealed.model_process import Logits, Shape
from workspace.errors import LabError, Refused, Unavailable
from workspace.layout import Workspace

BYTES = np.array([1, 2, 4, 0], dtype=np.int32)  # the last id is BOS


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspace_with_text(tmp_path)


class Says:
    """A model that answers with a function of the tokens, a batch at a time."""

    def __init__(self, function: object, *, context: int = 3, rows: int = 2) -> None:
        self.shape, self._function = Shape(rows, context, 4), function

    def answers(self, batches: Iterable[NDArray[np.int64]]) -> Iterator[Logits]:
        for tokens_in in batches:
            yield self._function(tokens_in).astype(np.float32)  # type: ignore[operator]


def table(values: NDArray[np.float64]) -> object:
    return lambda tokens_in: values[tokens_in]


def test_bits_per_byte_by_hand() -> None:
    """A uniform guess among four costs ln 4 nats a token; BOS and ignored targets do not count."""
    rows = np.array([[3, 0, 1, 3], [3, 2, IGNORED, IGNORED]])
    found = scoring.score_rows(Says(table(np.zeros((4, 4)))), rows, BYTES)
    assert (found.tokens, found.bytes) == (3, 7)
    assert found.val_loss == pytest.approx(math.log(4))
    assert found.perplexity == pytest.approx(4)
    assert found.val_bpb == pytest.approx(3 * math.log(4) / (math.log(2) * 7))


def test_the_division_into_batches_does_not_matter() -> None:
    draw = np.random.default_rng(0)
    rows, values = draw.integers(0, 4, (7, 4)), draw.normal(size=(4, 4))
    scores = [scoring.score_rows(Says(table(values), rows=n), rows, BYTES).val_bpb for n in (1, 3, 7)]
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-12)


def test_the_loss_is_that_of_torch() -> None:
    import torch

    draw = np.random.default_rng(0)
    logits, targets = draw.normal(scale=20, size=(1000, 50)).astype(np.float32), draw.integers(0, 50, 1000)
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(targets), reduction="none")
    assert scoring.nats_of(logits, targets) == pytest.approx(expected.numpy(), abs=1e-4)


def test_a_logit_that_is_not_a_number_is_no_score() -> None:
    with pytest.raises(NotANumber):
        scoring.score_rows(Says(table(np.full((4, 4), np.nan))), np.array([[3, 0, 1, 2]]), BYTES)


def masked(value: float) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    return lambda logits: np.where(np.arange(4) == 2, value, logits)


# what changes no probability that matters: a test of raw logits, or one relative to the largest, is put off by each
DISGUISES: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "plainly": lambda logits: logits,
    "under an offset": lambda logits: logits + 1e5,
    "with a token masked by a large number": masked(-1e9),
    "with a token masked by an infinite one": masked(-np.inf),
}


@pytest.mark.parametrize("where", ["later tokens", "another row", "another row of many"])
@pytest.mark.parametrize("disguise", DISGUISES)
def test_looking_ahead_is_seen(where: str, disguise: str) -> None:
    draw = np.random.default_rng(0)
    values, rows = draw.normal(size=(4, 4)), draw.integers(0, 4, (5, 9))

    def honest(tokens_in: NDArray[np.int64]) -> NDArray[np.float64]:
        return DISGUISES[disguise](values[tokens_in].cumsum(axis=1))

    def sees(tokens_in: NDArray[np.int64]) -> NDArray[np.float64]:
        if where == "another row of many" and len(tokens_in) <= 2:
            return honest(tokens_in)
        axis = 1 if where == "later tokens" else 0
        seen = 0.1 * values[tokens_in].mean(axis=axis, keepdims=True)
        return DISGUISES[disguise](values[tokens_in].cumsum(axis=1) + seen)

    for count in (2, 5) if where != "another row of many" else (5,):
        scoring.refuse_looking_ahead(Says(honest, context=8, rows=count), rows)
        with pytest.raises(Refused, match="looks ahead"):
            scoring.refuse_looking_ahead(Says(sees, context=8, rows=count), rows)


def test_rows_are_scored_as_many_at_once_as_were_tested() -> None:
    """A model cannot behave with few rows and read others among many, or the other way round."""
    asked: list[int] = []

    def counts(tokens_in: NDArray[np.int64]) -> NDArray[np.float64]:
        asked.append(len(tokens_in))
        return np.zeros((*tokens_in.shape, 4))

    model, rows = Says(counts, rows=3), np.random.default_rng(0).integers(0, 3, (7, 4))
    scoring.refuse_looking_ahead(model, rows)
    assert scoring.score_rows(model, rows, BYTES).val_loss == pytest.approx(math.log(4))
    assert set(asked) == {3}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_cannot_hide_what_is_seen(value: float) -> None:
    def sees(tokens_in: NDArray[np.int64]) -> NDArray[np.float64]:
        said = np.eye(4)[tokens_in] + np.eye(4)[np.roll(tokens_in, -1, axis=1)]
        said[:, 0, 0] = value
        return said

    with pytest.raises(NotANumber):
        scoring.refuse_looking_ahead(Says(sees, context=8), np.zeros((2, 9), dtype=np.int64))
    assert scoring.moved_by(np.array([[0.0, -np.inf]]), np.array([[0.0, 0.0]])).all()
    assert scoring.moved_by(np.array([[0.0, 0.0]], dtype=np.float32), np.array([[np.nan, 0.0]])).all()


# -- whole runs --


def recipe(workspace: Workspace, body: str) -> None:
    (workspace.root / "recipe").mkdir()
    (workspace.root / "recipe" / "model.py").write_text(body)


OURS = "from training.model import GPT\ndef build_model(config):\n    return GPT(config)\n"


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with the run `honest`, of the built-in model."""
    workspace = workspace_with_text(tmp_path_factory.mktemp("honest"))
    done = train(run_folder(workspace, small(), "honest"))
    assert done.returncode == 0, done.stdout + done.stderr
    return workspace


def bpb_of(workspace: Workspace, run: str) -> float:
    found: float = summary(workspace.run_dir(run))["val_bpb"]
    return found


CHEATS = {
    "a patched evaluator": OURS
    + "import training.evaluate, training.trainer, training.score\n"
    + "from training.score import Evaluation\n"
    + "def perfect(*arguments, **named):\n    return Evaluation(0.001, 1.0, 0.001, 1, 1)\n"
    + "training.evaluate.evaluate = training.trainer.evaluate = perfect\n"
    + "Evaluation.of = classmethod(perfect)\n",
    "a model that reports its own loss": "import torch\nfrom training.model import GPT\n"
    "class Boasts(GPT):\n"
    "    def loss(self, tokens, targets):\n"
    "        true = super().loss(tokens, targets)\n"
    "        return true if self.training else true * 0.0 + 0.001\n"
    "    val_bpb = 0.001\n"
    "def build_model(config):\n    return Boasts(config)\n",
    "a summary written by the recipe": OURS
    + "import atexit, glob, json\n"
    + "def boast():\n"
    + "    for path in glob.glob('runs/*/training.json') + glob.glob('runs/*/summary.json'):\n"
    + "        told = json.load(open(path)) | {'val_bpb': 0.001, 'state': 'succeeded'}\n"
    + "        json.dump(told, open(path, 'w'))\n"
    + "atexit.register(boast)\n",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_changes_no_score(
    workspace: Workspace, honest: Workspace, monkeypatch: pytest.MonkeyPatch, cheat: str
) -> None:
    monkeypatch.chdir(workspace.root)
    recipe(workspace, CHEATS[cheat])
    folder = run_folder(workspace, small(), "cheat")
    done = train(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(folder)["val_bpb"] == pytest.approx(bpb_of(honest, "honest"), rel=1e-6)
    assert metrics(folder)[-1]["val_bpb"] == summary(folder)["val_bpb"]


def test_a_model_that_reads_the_future_gets_no_score(workspace: Workspace) -> None:
    """It hides that from glances during training, and learns nothing wrong: only the evaluation is cheated. What all
    logits have in common would hide it from who compares them as they are."""
    recipe(
        workspace,
        "import torch\nfrom training.model import GPT\n"
        "class Peeks(GPT):\n"
        "    def forward(self, tokens):\n"
        "        said = super().forward(tokens)\n"
        "        following = torch.nn.functional.one_hot(tokens.roll(-1, 1), said.size(-1))\n"
        "        return said + 30.0 * following + 1e5\n"
        "def build_model(config):\n    return Peeks(config)\n",
    )
    folder = run_folder(workspace, small(evaluation__quick_count=0))
    assert train(folder).returncode == 13
    end = summary(folder)
    assert (end["state"], end["class"]) == ("failed", "exit") and "looks ahead" in end["error"]
    assert "val_bpb" not in end


@pytest.mark.parametrize("swallowed", [False, True])
def test_a_recipe_that_opens_the_held_back_text_gets_no_score(workspace: Workspace, swallowed: bool) -> None:
    opens = "try:\n        open(path, 'rb').read()\n    except OSError:\n        pass" if swallowed else "open(path)"
    found = f"pathlib.Path({str(workspace.root)!r}).rglob('held-back/*')"
    recipe(workspace, f"import pathlib\nfor path in {found}:\n    {opens}\n{OURS}")
    folder = run_folder(workspace, small(evaluation__quick_count=0))
    assert train(folder).returncode == 13
    assert "held back" in summary(folder)["error"] and "val_bpb" not in summary(folder)


def test_no_file_of_the_cache_holds_the_audit_text(workspace: Workspace) -> None:
    prepared = data.prepare(small().data, workspace)
    ids = audit.audit_ids(prepared, workspace.cache_dir)
    document = prepared.tokenizer.decode(ids[1:40]).encode()
    raw = np.asarray(ids[1:40]).tobytes()
    for path in workspace.lab_dir.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert document not in content and raw not in content, path.name


def test_held_back_text_that_is_damaged_or_gone_is_named(tmp_path: Path) -> None:
    vault.store(tmp_path, "text", b"words" * 1000)
    assert vault.take(tmp_path, "text") == b"words" * 1000
    file = tmp_path / vault.FOLDER / "text.sealed"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(DataProblem, match="damaged"):
        vault.take(tmp_path, "text")
    with pytest.raises(DataProblem, match="gone"):
        vault.take(tmp_path, "other")


def test_two_that_make_the_key_at_once_have_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen that there is none when either writes one."""
    write, both = vault.durable.write_bytes, threading.Barrier(2, timeout=60)

    def together(path: Path, content: bytes, **options: Any) -> None:
        if len(content) == 32:
            both.wait()
        write(path, content, **options)

    monkeypatch.setattr(vault.durable, "write_bytes", together)
    names = ("one", "other")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: vault.store(tmp_path, name, name.encode() * 100), names))
    assert [vault.take(tmp_path, name) for name in names] == [name.encode() * 100 for name in names]
    assert sorted(p.name for p in (tmp_path / vault.FOLDER).iterdir()) == ["key", "one.sealed", "other.sealed"]


@pytest.mark.parametrize("gone", ["one text", "all of it"])
def test_held_back_text_that_is_gone_is_made_anew_by_the_next_run(workspace: Workspace, gone: str) -> None:
    """As the error says."""
    before = data.prepare(small().data, workspace)
    ids = np.asarray(audit.audit_ids(before, workspace.cache_dir)).copy()
    folder = workspace.cache_dir / vault.FOLDER
    if gone == "all of it":
        shutil.rmtree(folder)
    else:
        (folder / f"{before.meta['key']}.sealed").unlink()
    with pytest.raises(DataProblem, match="run the recipe again"):
        audit.audit_ids(before, workspace.cache_dir)
    after = data.prepare(small().data, workspace)
    assert after.meta == before.meta and np.array_equal(audit.audit_ids(after, workspace.cache_dir), ids)
    assert not list((workspace.cache_dir / "data").glob("*.tmp"))


def test_text_or_tokenizer_changed_by_a_recipe_are_seen(workspace: Workspace) -> None:
    """It shortens the text that is scored, and the hash beside it."""
    prepared = data.prepare(small().data, workspace)
    seal = scoring.Seal.take(prepared)
    file = prepared.folder / "validation.bin"
    tokens.write(file, np.asarray(prepared.ids("validation"))[:100].copy(), prepared.tokenizer.vocab_size)
    with pytest.raises(DataProblem, match=r"validation\.bin changed"):
        seal.check(prepared)
    with pytest.raises(DataProblem, match="not as it was prepared"):
        scoring.Seal.take(prepared)


def test_the_same_bytes_are_scored_whatever_the_vocabulary(workspace: Workspace) -> None:
    sizes = []
    for vocabulary in (280, 400):
        folder = run_folder(workspace, small(data__vocab_size=vocabulary, budget__amount=1), f"run-{vocabulary}")
        assert train(folder).returncode == 0
        sizes.append(summary(folder)["evaluated"]["bytes"])
        assert summary(folder)["perplexity"] > 1
    assert sizes[0] == sizes[1]


def test_an_audit_is_another_score_and_is_recorded(honest: Workspace) -> None:
    assert audit.openings(honest) == []
    found = audit.audit(honest, "honest", by="a test")
    assert found["val_bpb"] != bpb_of(honest, "honest") and 0 < found["val_bpb"] < 8
    (record,) = audit.openings(honest)
    assert record == found and (record["run"], record["by"]) == ("honest", "a test")
    assert audit.audit(honest, "honest", by="after a kill") == found, "what was scored is not opened again"
    with pytest.raises(LabError, match="run-0404"):
        audit.audit(honest, "run-0404", by="a test")
    assert len(audit.openings(honest)) == 1
    (honest.lab_dir / audit.RECORDS).unlink()
    with ThreadPoolExecutor(2) as both:
        first, second = both.map(lambda who: audit.audit(honest, "honest", by=who), ("a service", "a person"))
    assert first == second and audit.openings(honest) == [first], "asked for twice at once, it is opened once"


FRAIL = (
    "import os, pathlib, signal, sys, time\nfrom training.model import GPT\n"
    "class Frail(GPT):\n"
    "    def forward(self, tokens):\n"
    "        if sys.modules['__main__'].__spec__.name == 'training.sealed.child':\n"
    "            if pathlib.Path({flag!r}).exists():\n"
    "                {fate}\n"
    "        return super().forward(tokens)\n"
    "def build_model(config):\n    return Frail(config)\n"
)


def frail(workspace: Workspace, fate: str) -> Path:
    """The run `frail`, whose model meets its `fate` while it is scored, as long as the file that is given exists."""
    flag = workspace.root / "flag"
    recipe(workspace, FRAIL.format(flag=str(flag), fate=fate))
    done = train(run_folder(workspace, small(), "frail"))
    assert done.returncode == 0, done.stdout + done.stderr
    flag.touch()
    return flag


def test_a_model_process_that_was_killed_may_be_asked_again(workspace: Workspace) -> None:
    flag = frail(workspace, "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(Unavailable, match="the model's process was ended by SIGKILL"):
        audit.audit(workspace, "frail", by="a test")
    flag.unlink()
    assert audit.audit(workspace, "frail", by="a test")["val_bpb"] > 0
    assert ["val_bpb" in opening for opening in audit.openings(workspace)] == [False, True], "both are on record"


def test_a_model_that_fails_by_itself_is_refused(workspace: Workspace) -> None:
    frail(workspace, "raise ValueError('never again')")
    with pytest.raises(Refused, match="never again"):
        audit.audit(workspace, "frail", by="a test")


def test_an_audit_ends_with_the_process_that_asked_for_it(workspace: Workspace) -> None:
    """Killed without a word, and the model hangs besides."""
    frail(workspace, "time.sleep(1000)")
    asks = (
        "import sys, pathlib\nfrom training.sealed.audit import audit\nfrom workspace.layout import Workspace\n"
        "audit(Workspace(pathlib.Path(sys.argv[1])), 'frail', by='a test')\n"
    )

    def ours() -> list[str]:
        found = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
        return [line[4] for line in found if len(line) > 5 and str(workspace.root) in " ".join(line[5:])]

    with subprocess.Popen([sys.executable, "-P", "-c", asks, str(workspace.root)]) as asker:
        wait_until(lambda: sorted(ours()) == ["training.sealed.audit", "training.sealed.child"])
        asker.kill()
    wait_until(lambda: ours() == [])
    with pytest.raises(Unavailable, match="more than 5 s"):
        audit.audit(workspace, "frail", by="a test", timeout_s=5)
    wait_until(lambda: ours() == [])


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)
