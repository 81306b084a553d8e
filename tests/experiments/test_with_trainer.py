"""The whole way with real parts: real runs, the real trainer, the real fingerprint, the real notebook."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from users_repository import git, make, untouchable

from experiments.fingerprints import ChildFingerprint
from experiments.lab import Experiments
from experiments.measured_on import DEVICE, TEXT, TOKENS, differing, measured_on
from experiments.ports import RecipeFailure
from sessions.notebook import Notebook
from training.config import apply, load_recipe
from training.data import prepare
from training.runs.manager import Runs
from workspace.database import Database
from workspace.errors import Unavailable
from workspace.layout import Workspace
from workspace.outbox import Outbox
from workspace.settings import Settings

RECIPE = """\
# a very small model on a very small text
dtype = "float32"
compile = "off"
[model]
depth = 1
width = 32
head_dim = 16
[data]
corpus = "files"
files = ["text.txt"]
vocab_size = 300
context = 32
max_bytes = 200000
[batch]
tokens = 256
rows = 8
[budget]
kind = "steps"
amount = 30
[optimizer]
matrix_lr = 1e-5  # far too low
embedding_lr = 1e-4
head_lr = 1e-5
[evaluation]
bytes = 4000
quick_bytes = 1000
quick_count = 0
sample_tokens = 0
[checkpoint]
every_seconds = 0
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    draw = random.Random(5)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(60)]
    documents = [" ".join(draw.choices(words, k=120)) for _ in range(150)]
    workspace = make(tmp_path / "lab", recipe=RECIPE)
    (workspace.root / "text.txt").write_text("\n\n".join(documents))
    return workspace


@pytest.fixture
def runs(workspace: Workspace) -> Iterator[Runs]:
    database = Database(workspace.database_file)
    runs = Runs(workspace, Settings(), database, Outbox(database), devices=lambda: [])
    yield runs
    for run in runs.list(states=["queued", "starting", "running", "stopping"]):
        runs.stop(run.id, "test is over")
    deadline = time.monotonic() + 30
    while runs.list(states=["starting", "running", "stopping"]) and time.monotonic() < deadline:
        runs.tick()
        time.sleep(0.1)


@pytest.mark.slow
def test_learning_rates_that_were_far_too_low_are_found_and_kept(workspace: Workspace, runs: Runs) -> None:
    before = untouchable(workspace.root)
    notebook = Notebook(workspace, runs.database, runs.outbox)
    lab = Experiments(workspace, Settings(), runs.database, runs.outbox, runs, None, notebook)
    claim = {
        "statement": "Raising the rates (optimizer.head_lr and its kin) lowers val_bpb by at least 0.1",
        "change": {"optimizer.matrix_lr": 0.02, "optimizer.embedding_lr": 0.3, "optimizer.head_lr": 0.01},
        "direction": "lower",
        "smallest_effect": 0.1,
    }
    proposed = lab.propose(claim, conversation="chat", skip_test_run="thirty steps are a test run themselves")
    deadline = time.monotonic() + 400
    while lab.busy() and time.monotonic() < deadline:
        runs.tick()
        lab.tick()
        time.sleep(0.1)
    record = lab.get(proposed.id)
    assert record.verdict == "keep", (record.state, record.sentence, record.advice)
    assert record.numbers is not None and record.numbers.low > 0 and record.numbers.noise_sd > 0
    assert all(score.values["val_bpb"] == score.value and score.values["steps"] == 30 for score in record.scores)
    assert all(set(score.on) == {*TEXT, *TOKENS, DEVICE} for score in record.scores)
    assert untouchable(workspace.root) == before
    assert git(workspace.root, "rev-parse", "lab/best") == record.commit
    assert "keep" in workspace.results_file.read_text() and proposed.id in notebook.export()


def test_the_prepared_data_tell_the_text_apart_from_the_tokens_made_of_it(workspace: Workspace) -> None:
    def made(vocabulary: int) -> dict[str, str]:
        config = apply(load_recipe(workspace.recipe_dir), {"data.vocab_size": vocabulary, "data.context": 16})
        return measured_on({"data": prepare(config.data, workspace).fingerprint})

    before, smaller = made(300), made(280)
    assert set(before) == {*TEXT, *TOKENS} - {"evaluated.code"}
    assert not differing(before, smaller, TEXT) and set(differing(before, smaller, TOKENS)) == set(TOKENS)
    with (workspace.root / "text.txt").open("a") as file:
        file.write("\n\none more document, written while the lab was measuring")
    assert "data.identity" in differing(before, made(300), TEXT)


def test_a_missing_package_is_no_fault_of_the_recipes(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    config = apply(load_recipe(workspace.recipe_dir), {"optimizer.state_bits": 8})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="torchao"):
        ChildFingerprint(workspace)(config, workspace.recipe_dir)


@pytest.mark.slow
def test_the_real_fingerprint(workspace: Workspace) -> None:
    fingerprint = ChildFingerprint(workspace)
    config = load_recipe(workspace.recipe_dir)
    plain = fingerprint(config, workspace.recipe_dir)
    assert fingerprint(apply(config, {"seed": 3}), workspace.recipe_dir) == plain
    assert fingerprint(apply(config, {"optimizer.head_lr": 0.01}), workspace.recipe_dir) != plain
    (workspace.recipe_dir / "model.py").write_text("def build_model(config:\n")
    with pytest.raises(RecipeFailure) as failure:
        fingerprint(config, workspace.recipe_dir)
    assert failure.value.kind == "import"
