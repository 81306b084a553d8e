"""The fingerprint: moved by every setting that acts, by nothing else."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from training_support import module_command, needs, small

from training import corpus, size
from training.config import TrainingConfig, apply, knobs, value_of
from training.fingerprint import WITHOUT_EFFECT, fingerprint
from workspace.errors import LabError, Unavailable

# a setting's other value, where the rule in `other_value` would not give an allowed or a telling one
OTHER: dict[str, dict[str, Any]] = {
    "evaluation.min_delta": {"evaluation.min_delta": 0.1, "evaluation.patience": 2},
    "parallel.processes": {"parallel.processes": 2, "parallel.kind": "ddp"},
    "model.width": {"model.width": 64},
    "model.head_dim": {"model.head_dim": 8},
    "model.kv_share": {"model.kv_share": 2},
    "model.windows": {"model.windows": "L"},
    "model.short_window": {"model.short_window": 0.25},
    "data.corpus": {"data.corpus": "python-stdlib", "data.files": []},
    "data.files": {"data.files": ["other"]},
    "data.text_field": {"data.text_field": "body"},
    "data.context": {"data.context": 64, "batch.rows": 2},
    "batch.tokens": {"batch.tokens": 512},
    "batch.rows": {"batch.rows": 2},
    "budget.kind": {"budget.kind": "seconds"},
    "budget.amount": {"budget.amount": 7},
    "optimizer.polar_steps": {"optimizer.polar_steps": 4},
    "schedule.warmup": {"schedule.warmup": 0.05},
    "dtype": {"dtype": "bfloat16"},
    "compile": {"compile": "off"},
}


def other_value(config: TrainingConfig, key: str) -> dict[str, Any]:
    if key in OTHER:
        return OTHER[key]
    value, field = value_of(config, key), dict(knobs())[key]
    if isinstance(value, bool):
        return {key: not value}
    if isinstance(value, int) and field.annotation is int:
        return {key: value + 1}
    if isinstance(value, float):
        return {key: value * 0.9 if value else 0.5}
    choices = [choice for choice in field.annotation.__args__ if choice != value]  # type: ignore[union-attr]
    return {key: choices[0]}


@pytest.fixture(scope="module")
def base() -> tuple[str, str]:
    return hashes(small())


def hashes(config: TrainingConfig) -> tuple[str, str]:
    found = fingerprint(config)
    return found["structural"], found["behavioural"]


@pytest.mark.parametrize("key", [key for key, _ in knobs()])
def test_every_setting_acts_or_is_excused(base: tuple[str, str], key: str) -> None:
    if key == "optimizer.state_bits":
        needs("torchao")
    moved = hashes(apply(small(), other_value(small(), key))) != base
    if key in WITHOUT_EFFECT:
        assert not moved, f"{key} is said to have no effect: {WITHOUT_EFFECT[key]}"
    else:
        assert moved, f"{key} changes nothing"


@pytest.mark.parametrize(
    "key",
    ["model.rope_base", "model.softcap", "model.activation", "model.skip_init", "model.residual_init"]
    + ["schedule.shape", "schedule.warmdown", "schedule.final", "dtype"]
    + [key for key, _ in knobs() if key.startswith("optimizer.") and key not in WITHOUT_EFFECT],
)
def test_what_no_structure_shows_shows_in_the_steps(base: tuple[str, str], key: str) -> None:
    """Also what structure does show must act: a setting that is only listed would move the structural hash alone."""
    if key == "optimizer.state_bits":
        needs("torchao")
    changes = {"optimizer.grad_clip": 0.01} if key == "optimizer.grad_clip" else other_value(small(), key)
    assert hashes(apply(small(), changes))[1] != base[1]


def test_excuses_are_for_settings_there_are() -> None:
    assert set(WITHOUT_EFFECT) <= {key for key, _ in knobs()}


def test_the_same_again_is_the_same(base: tuple[str, str]) -> None:
    assert hashes(small()) == base


def test_settings_the_corpus_does_not_look_at_do_not_count() -> None:
    plain = small(data__corpus="python-stdlib", data__files=[])
    assert hashes(plain) == hashes(apply(plain, {"data.text_field": "body"}))
    for files, matters in ((["a.txt", "b.MD"], False), (["a.txt", "rows.JSONL"], True), (["folder.v2"], True)):
        texts = small(data__files=files)
        other = apply(texts, {"data.text_field": "body"})
        assert (corpus.settings_that_matter(texts.data) != corpus.settings_that_matter(other.data)) == matters


def test_auto_is_what_it_resolves_to(base: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for pays, used in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr("training.hardware.cpu_precision.bfloat16_pays", lambda *_, pays=pays: (pays, "so"))
        assert hashes(small(dtype="auto")) == hashes(small(dtype=used))
    assert hashes(small(dtype="auto")) != base


def test_a_recipe_that_renames_nothing_but_comments_is_the_same(base: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("from training.model import build_model  # ours\n")
    found = fingerprint(small(), tmp_path)
    assert (found["structural"], found["behavioural"]) == base


def test_a_recipe_that_changes_the_arithmetic_is_another(base: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "from training.model import GPT\n"
        "class Louder(GPT):\n"
        "    def features(self, tokens):\n"
        "        return 1.01 * super().features(tokens)\n"
        "def build_model(config):\n    return Louder(config)\n"
    )
    found = fingerprint(small(), tmp_path)
    assert found["structural"] == base[0]
    assert found["behavioural"] != base[1]


def test_as_a_process(base: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(small().model_dump(mode="json")))
    done = subprocess.run(
        module_command("training.fingerprint", tmp_path / "config.json"), capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    assert answer["structural"] == base[0]
    assert answer["structure"]["parameter_count"] == size.parameter_counts(small())["total"]

    (tmp_path / "model.py").write_text("import no_such_package\n")
    done = subprocess.run(
        module_command("training.fingerprint", tmp_path / "config.json", "--recipe-dir", tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 13
    assert json.loads(done.stdout)["class"] == "import"


def test_a_recipe_that_fails_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def build_model(config):\n    return config.model.dpeth\n")
    with pytest.raises(LabError, match="dpeth"):
        fingerprint(small(), tmp_path)


def test_a_missing_package_is_no_fault_of_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="torchao"):
        fingerprint(small(optimizer__state_bits=8))
