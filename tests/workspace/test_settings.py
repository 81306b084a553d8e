"""Settings: all optional, the environment wins, and a wrong one is refused with file, key and what is allowed."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest

from workspace import settings as module
from workspace.errors import Refused
from workspace.settings import Settings, default_toml, load


@pytest.fixture(autouse=True)
def no_lab_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("LAB_"):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lab.toml"


def refused(file: Path, text: str) -> str:
    file.write_text(text)
    with pytest.raises(Refused) as refusal:
        load(file)
    return str(refusal.value)


def test_everything_is_optional(file: Path) -> None:
    assert load(file) == Settings()
    file.write_text("")
    assert load(file) == Settings()
    file.write_text("[runs]\ngrace_seconds = 5\n")
    assert load(file).runs.grace_seconds == 5 and load(file).hardware == Settings().hardware


def test_the_default_file_changes_nothing_and_shows_every_setting(file: Path) -> None:
    file.write_text(default_toml())
    assert load(file) == Settings()
    live = re.sub(r"(?m)^# ([a-z_]+ = )", r"\1", default_toml())
    content = tomllib.loads(live)
    for section, field in Settings.model_fields.items():
        assert set(content[section]) == set(field.annotation.model_fields)  # type: ignore[union-attr]
    file.write_text(live)
    assert load(file) == Settings()


def test_the_environment_wins_over_the_file_key_by_key(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('[runs]\ngrace_seconds = 5\ntime_limit_hours = 3\n[hardware]\nbackend = "cpu"\n')
    monkeypatch.setenv("LAB_RUNS__GRACE_SECONDS", "7.5")
    loaded = load(file)
    assert loaded.runs.grace_seconds == 7.5 and loaded.runs.time_limit_hours == 3 and loaded.hardware.backend == "cpu"


def test_short_forms(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('[hardware]\nbackend = "cuda"\n')
    monkeypatch.setenv("LAB_BACKEND", "cpu")
    monkeypatch.setenv("LAB_QDRANT_URL", "http://127.0.0.1:6333")
    assert load(file).hardware.backend == "cpu" and load(file).rag.qdrant_url == "http://127.0.0.1:6333"
    monkeypatch.setenv("LAB_HARDWARE__BACKEND", "mps")  # the long form is the more exact one
    assert load(file).hardware.backend == "mps"
    monkeypatch.setenv("LAB_BACKEND", "")
    monkeypatch.delenv("LAB_HARDWARE__BACKEND")
    assert load(file).hardware.backend == "cuda"


def test_lists_and_unrelated_variables(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_HARDWARE__EXCLUDE_DEVICES", '["0", "GPU-1"]')
    monkeypatch.setenv("LAB_WORKSPACE", "/somewhere")
    monkeypatch.setenv("LAB_RUN_DIR", "/somewhere/else")
    assert load(file).hardware.exclude_devices == ["0", "GPU-1"]
    monkeypatch.setenv("LAB_HARDWARE__EXCLUDE_DEVICES", "0,1")
    with pytest.raises(Refused, match="LAB_"):
        load(file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[runs]\ngrace_second = 5\n", ["lab.toml", "runs.grace_second", "grace_seconds"]),
        ("[run]\ngrace_seconds = 5\n", ["lab.toml", "there is no setting run", "runs"]),
        ('[hardware]\nbackend = "gpu"\n', ["hardware.backend", '"gpu"', "auto, hpu, rocm, cuda, mps, cpu"]),
        ("[runs]\ngrace_seconds = -1\n", ["runs.grace_seconds", "-1", "at least 0", "at most 600"]),
        ("[experiments]\nconfidence = 1.5\n", ["experiments.confidence", "above 0.5"]),
        ('[runs]\ngrace_seconds = "soon"\n', ["runs.grace_seconds", '"soon"', "a number"]),
        ("[network]\nhub = 7\n", ["network.hub", "true or false"]),
        ('[git]\nprefix = "../x"\n', ["git.prefix", "matching"]),
        ('[hardware]\nexclude_devices = "0"\n', ["hardware.exclude_devices", "a list"]),
        ("[hardware]\nexclude_devices = [0.5]\n", ["hardware.exclude_devices.0"]),
        ("hardware = 3\n", ["lab.toml", "hardware"]),
        ("[runs\n", ["lab.toml is not valid TOML", "line 1"]),
    ],
)
def test_a_wrong_setting_is_refused_with_file_key_and_what_is_allowed(file: Path, text: str, words: list[str]) -> None:
    message = refused(file, text)
    for word in words:
        assert word in message, message


def test_a_wrong_variable_is_named_instead_of_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_RUNS__GRACE_SECONDS", "-3")
    message = refused(file, "")
    assert "environment variable LAB_RUNS__GRACE_SECONDS" in message and "lab.toml" not in message
    monkeypatch.delenv("LAB_RUNS__GRACE_SECONDS")
    monkeypatch.setenv("LAB_BACKEND", "gpu")
    message = refused(file, "")
    assert "environment variable LAB_BACKEND" in message and "auto, hpu" in message


def test_an_unknown_key_in_a_variable_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_RUNS__GRACE_SECOND", "3")
    assert "grace_seconds" in refused(file, "")


def test_a_file_that_cannot_be_read_is_an_error_in_words(file: Path) -> None:
    file.mkdir()
    with pytest.raises(Refused, match=r"lab\.toml"):
        load(file)


def test_bytes_that_are_no_text(file: Path) -> None:
    file.write_bytes(b"[runs]\n# \xff\xfe\n")
    with pytest.raises(Refused, match=r"lab\.toml is not valid TOML"):
        load(file)


def test_settings_cannot_be_changed_after_loading(file: Path) -> None:
    loaded = load(file)
    with pytest.raises(Exception, match="frozen"):
        loaded.runs.grace_seconds = 3  # type: ignore[misc]


def test_every_setting_says_what_it_is_for() -> None:
    for section in Settings.model_fields.values():
        for name, field in section.annotation.model_fields.items():  # type: ignore[union-attr]
            assert field.description, name
    assert set(module.SHORT_FORMS) == {"LAB_BACKEND", "LAB_QDRANT_URL"}
