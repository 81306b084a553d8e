"""A recipe is edited in place and verified by another parser."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from experiments import recipe
from training.config import apply, default_recipe_toml, load_recipe, to_toml
from workspace.errors import Refused


def test_comments_and_layout_stay() -> None:
    text = '# mine\n[optimizer]\nmatrix_lr = 0.04   # tuned\n\n[search_space]\n"a.b" = { low = 1 }\n'
    edited = recipe.edit(text, {"optimizer.matrix_lr": 0.02, "model.depth": 6, "seed": 3})
    assert "# mine" in edited and "# tuned" in edited and '"a.b" = { low = 1 }' in edited
    content = tomllib.loads(edited)
    assert content["optimizer"]["matrix_lr"] == 0.02 and content["model"]["depth"] == 6 and content["seed"] == 3


@pytest.mark.parametrize("text", ["", default_recipe_toml(), default_recipe_toml({"model.depth": 2})])
def test_what_is_written_is_what_apply_gives(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    before = load_recipe(tmp_path)
    change = {"optimizer.matrix_lr": 0.01, "model.depth": 3, "dtype": "float32", "schedule.shape": "cosine"}
    (tmp_path / "recipe.toml").write_text(recipe.edit(text, change))
    assert load_recipe(tmp_path) == apply(before, change)


def test_dotted_keys(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(to_toml(load_recipe(tmp_path)))
    (tmp_path / "recipe.toml").write_text(recipe.edit((tmp_path / "recipe.toml").read_text(), {"model.depth": 7}))
    assert load_recipe(tmp_path).model.depth == 7


def test_broken_toml_is_refused() -> None:
    with pytest.raises(Refused, match="not valid TOML"):
        recipe.edit("[optimizer\n", {"seed": 1})


def test_digest_is_of_effective_settings_and_code(tmp_path: Path) -> None:
    config = load_recipe(tmp_path)
    assert recipe.digest(config, tmp_path) == recipe.digest(apply(config, {"seed": 9}), tmp_path)
    assert recipe.digest(config, tmp_path) != recipe.digest(apply(config, {"model.depth": 2}), tmp_path)
    plain = recipe.digest(config, tmp_path)
    (tmp_path / "model.py").write_text("x = 1\n")
    assert recipe.digest(config, tmp_path) != plain


def test_yardstick_is_budget_text_and_evaluation(tmp_path: Path) -> None:
    config = load_recipe(tmp_path)
    assert recipe.yardstick(config) == recipe.yardstick(apply(config, {"model.depth": 2, "data.vocab_size": 512}))
    assert recipe.yardstick(config) != recipe.yardstick(apply(config, {"budget.amount": 10}))
