"""The configuration: what it accepts, what it says when it does not, and its form as text."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from training import shares
from training.config import (
    GIBI,
    TrainingConfig,
    apply,
    default_recipe_toml,
    knobs,
    load_config,
    load_recipe,
    read_recipe,
    suggest,
    to_toml,
    value_of,
)
from training.size import predict_memory
from workspace.errors import LabError, Refused


def test_no_recipe_means_the_defaults(tmp_path: Path) -> None:
    assert load_recipe(tmp_path) == TrainingConfig()


def test_the_default_recipe_changes_nothing_and_names_every_setting(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(default_recipe_toml())
    assert load_recipe(tmp_path) == TrainingConfig()
    nested = tomllib.loads(re.sub(r"^# (?=[a-z_0-9]+ = )", "", default_recipe_toml(), flags=re.MULTILINE))
    nested.pop("search_space")
    assert load_config(nested) == TrainingConfig()
    for key, _ in knobs():
        section, _, name = key.rpartition(".")
        assert name in (nested[section] if section else nested), key


def test_the_search_space_names_real_settings_and_allowed_values(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(default_recipe_toml())
    space = read_recipe(tmp_path)["search_space"]
    assert space
    for key, where in space.items():
        for value in where.get("choices", [where.get("low"), where.get("high")]):
            apply(TrainingConfig(), {key: value})


@pytest.mark.parametrize("memory_gib", [None, 8, 16, 18, 24, 40, 48, 80, 96, 128, 141])
@pytest.mark.parametrize("backend", ["cpu", "cuda", "rocm", "hpu", "mps"])
def test_what_is_suggested_is_valid_and_survives_as_text(tmp_path: Path, backend: str, memory_gib: int | None) -> None:
    changes = suggest(backend, memory_gib and memory_gib * GIBI)
    (tmp_path / "recipe.toml").write_text(default_recipe_toml(changes))
    config = apply(TrainingConfig(), changes)
    assert load_recipe(tmp_path) == config
    if memory_gib and backend != "cpu" and (backend != "hpu" or memory_gib >= 40):  # the smallest Gaudi has 32
        assert predict_memory(config, backend).total < memory_gib * GIBI


@pytest.mark.parametrize("devices", [2, 3, 8])
@pytest.mark.parametrize("backend", ["cuda", "rocm"])
def test_what_is_suggested_can_be_shared_by_all_devices(backend: str, devices: int) -> None:
    for memory_gib in (8, 24, 48, 80):
        config = apply(TrainingConfig(), suggest(backend, memory_gib * GIBI, devices))
        alone = apply(TrainingConfig(), suggest(backend, memory_gib * GIBI))
        shares.check(config, devices)
        assert config.batch.tokens == pytest.approx(alone.batch.tokens, rel=0.1)
        assert 8 <= config.batch.rows <= alone.batch.rows


@pytest.mark.parametrize(("tokens", "rows", "devices"), [(256, 4, 4), (1024, 4, 3), (256, 8, 2), (2048, 1, 5)])
def test_a_step_that_cannot_be_shared_is_refused_with_one_that_can(tokens: int, rows: int, devices: int) -> None:
    config = apply(TrainingConfig(), {"data.context": 32, "batch.tokens": tokens, "batch.rows": rows})
    with pytest.raises(Refused, match=f"cannot be shared by {devices} devices") as refused:
        shares.check(config, devices)
    changes = dict(part.split(" = ") for part in str(refused.value.fix).split(" and "))
    shares.check(apply(config, {key: int(value) for key, value in changes.items()}), devices)


def test_toml_round_trip() -> None:
    config = apply(
        TrainingConfig(), {"data.corpus": "files", "data.files": ['a "b".txt', "ü\\n.md"], "model.rope_base": 1e6}
    )
    assert load_config(tomllib.loads(to_toml(config))) == config


def test_json_round_trip() -> None:
    config = apply(TrainingConfig(), {"optimizer.matrix_lr": 0.0123456789})
    assert load_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("optimizer.matrx_lr", 0.1, "optimizer.matrix_lr"),
        ("depth", 3, "model.depth"),
        ("model.depth", "many", "a whole number at least 1"),
        ("model.activation", "tanh", "one of relu2, gelu, silu"),
        ("model.width", 100, "model.width = 128"),
        ("batch.tokens", 5000, "batch.tokens = "),
        ("model.kv_share", 3, "does not divide"),
        ("data.corpus", "wikipedia", "python-stdlib"),
        ("data.corpus", "files", "data.files"),
        ("optimizer.matrix_lr", float("nan"), "optimizer.matrix_lr"),
        ("schedule.warmup", 0.7, "warmdown"),
        ("evaluation.quick_bytes", 10**9, "evaluation.bytes"),
    ],
)
def test_a_refusal_names_the_setting_and_a_way_out(key: str, value: object, told: str) -> None:
    with pytest.raises(LabError) as refused:
        apply(TrainingConfig(), {key: value})
    assert told in str(refused.value)


def test_half_a_step_is_no_budget() -> None:
    with pytest.raises(LabError, match="whole number"):
        apply(TrainingConfig(), {"budget.kind": "steps", "budget.amount": 2.5})


def test_an_unknown_key_in_the_recipe_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[optimizer]\nmatrix_rate = 1.0\n")
    with pytest.raises(LabError, match=r"recipe\.toml.*optimizer\.matrix_rate"):
        load_recipe(tmp_path)


def test_changes_are_checked_together() -> None:
    config = apply(TrainingConfig(), {"data.context": 512, "batch.rows": 4, "batch.tokens": 4096})
    assert (config.data.context, value_of(config, "batch.tokens")) == (512, 4096)


def test_reading_a_configuration_does_not_import_torch() -> None:
    code = "import sys, training.config, training.size, training.schedule, training.job; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
