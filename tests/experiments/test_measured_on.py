"""Only what was measured on one text, by one evaluation and on devices of one kind is compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from campaigns_bench import fingerprint
from experiments_bench import BETTER, WORSE, Bench
from scripted_runs import Script, healthy

from experiments.measured_on import measured_on
from experiments.ports import Device
from experiments.record import ExperimentRecord
from training.config import TrainingConfig
from training.runs.records import RunRequest

KINDS = ("NVIDIA A100-SXM4-80GB", "NVIDIA H200")
VOCABULARY = BETTER | {
    "statement": "A smaller data.vocab_size of 512 lowers val_bpb",
    "change": {"data.vocab_size": 512, "optimizer.matrix_lr": 0.02},
}


def on(text: str, vocabulary: int = 2048, device: str = KINDS[0], code: str = "c0de") -> dict[str, Any]:
    """The part of a summary that tells what a run was measured on, as the trainer writes it."""
    files = {name: f"{name} {text} {vocabulary}" for name in ("train.bin", "validation.bin", "tokenizer.json")}
    data = {"key": f"{text} {vocabulary}", "corpus": "files", "identity": text * 40, "sha256": files,
            "bytes": {"train": 1000 + len(text), "validation": 100, "audit": 100}}  # fmt: skip
    return {"data": data, "evaluated": {"code": code, "bytes": 100}, "backend": {"kind": "cuda", "device": device}}


def telling(what: Callable[[RunRequest, str], dict[str, Any]]) -> Script:
    def script(request: RunRequest, key: str) -> dict[str, Any]:
        course = healthy(request, key)
        return course | {"summary": course["summary"] | what(request, key)}

    return script


def own(bench: Bench, record: ExperimentRecord) -> list[str]:
    return [key.removeprefix(f"{record.id}/") for key in bench.runs.order if key.startswith(record.id)]


def test_what_a_summary_tells_and_what_it_does_not() -> None:
    found = measured_on(on("a"))
    assert found["data.identity"] == "a" * 16 and found["data.sha256.train.bin"].startswith("train.bin a")
    assert found["backend.device"] == KINDS[0] and found["data.bytes.train"] == "1001"
    assert measured_on(None) == measured_on({"data": "broken", "backend": {"device": None}}) == {}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda key: {"data": {"key": "a" if "control" in key else "b"}}, "the text changed within"),
        (lambda key: on("a" if "test" in key else "ab"), "and aaaaaaaaaaaaaaaa in test run run-0001"),
        (lambda key: on("ab" if "/7" in key else "a"), "data.identity is abababababababab"),
        (lambda key: on("a", code="c0de" if "test" in key else "other"), "the code that scores changed within"),
    ],
)
def test_a_text_that_changes_within_an_experiment_makes_it_invalid(
    tmp_path: Path, change: Callable[[str], dict[str, Any]], names: str
) -> None:
    record = Bench(tmp_path / "lab", telling(lambda request, key: change(key))).conclude(BETTER)
    assert record.verdict == "invalid" and names in str(record.sentence), record.sentence
    assert "propose it again" in str(record.advice)
    about_text = "the text" in str(record.sentence)
    assert ("files that nobody writes to" in str(record.advice)) == about_text
    assert record.failure_class == ("data" if about_text else None), "three in a row pause a campaign"


def test_controls_on_another_text_are_not_taken(tmp_path: Path) -> None:
    text = ["a"]
    bench = Bench(tmp_path / "lab", telling(lambda request, key: on(text[0])))
    assert bench.conclude(WORSE).verdict == "discard"
    assert own(bench, bench.conclude(WORSE | {"change": {"model.depth": 8}})) == ["test", "candidate/1"]
    text[0] = "b"
    record = bench.conclude(BETTER)
    assert record.verdict == "keep" and record.notes == []
    assert [f"control/{n}" for n in (1, 2, 3, 4)] == own(bench, record)[1:5]
    (step,) = (step for step in record.steps if step.name == "controls")
    assert step.data["session"]["run_freedom"] == 0, "nor is the noise learnt from them"


def test_without_a_test_run_the_first_run_tells_that_the_session_is_of_another_text(tmp_path: Path) -> None:
    text = ["a"]
    bench = Bench(tmp_path / "lab", telling(lambda request, key: on(text[0])))
    bench.conclude(WORSE)
    text[0] = "b"
    record = bench.conclude(BETTER, skip_test_run="exp-0001 has just shown that it runs")
    assert record.verdict == "keep" and any("these do not count" in note for note in record.notes)
    assert own(bench, record)[:5] == ["candidate/1", "control/1", "control/2", "control/3", "control/4"]
    assert [step.name for step in record.steps].count("controls") == 2


@pytest.mark.parametrize(("texts", "verdict"), [(("a", "a"), "keep"), (("a", "b"), "invalid")])
def test_another_vocabulary_makes_other_tokens_of_the_same_text(
    tmp_path: Path, texts: tuple[str, str], verdict: str
) -> None:
    def what(request: RunRequest, key: str) -> dict[str, Any]:
        assert isinstance(request.config, TrainingConfig)
        return on(texts["candidate" in key], request.config.data.vocab_size)

    record = Bench(tmp_path / "lab", telling(what), fingerprint=fingerprint).conclude(VOCABULARY)
    assert record.verdict == verdict, record.sentence
    assert len({score.on["data.key"] for score in record.scores}) == 2 or verdict == "invalid"


def test_tokens_that_differ_in_one_arm_are_not_compared(tmp_path: Path) -> None:
    """As after the cache was emptied and filled again by another tokenizer: the text is the same."""

    def what(request: RunRequest, key: str) -> dict[str, Any]:
        assert isinstance(request.config, TrainingConfig)
        return on("a", request.config.data.vocab_size + ("candidate/6" in key))

    record = Bench(tmp_path / "lab", telling(what), fingerprint=fingerprint).conclude(VOCABULARY)
    assert record.verdict == "invalid" and "data.key" in str(record.sentence)


def test_scores_of_an_older_lab_say_nothing_of_it_and_count(tmp_path: Path) -> None:
    tells = [False]
    bench = Bench(tmp_path / "lab", telling(lambda request, key: on("a") if tells[0] else {}))
    before = bench.conclude(WORSE)
    stored = before.model_dump(mode="json")
    for score in stored["scores"]:
        del score["on"]
    assert ExperimentRecord.model_validate(stored) == before
    tells[0] = True
    record = bench.conclude(BETTER)
    assert record.verdict == "keep" and "control/1" not in own(bench, record), "the session's controls are taken"


# -- devices ----------------------------------------------------------------------------------------------------------


def two_kinds(root: Path, script: Script, names: tuple[str, ...] = KINDS) -> Bench:
    return Bench(root, script, device=lambda: Device("cuda", 80 * 10**9, names))


def test_a_run_on_a_device_of_another_kind_is_made_anew_and_twice_is_invalid(tmp_path: Path) -> None:
    def placed(elsewhere: set[str]) -> Script:
        return telling(lambda request, key: on("a", device=KINDS[key.split("/", 1)[1] in elsewhere]))

    once = two_kinds(tmp_path / "once", placed({"test", "candidate/5"}))
    record = once.conclude(BETTER)
    assert record.verdict == "keep" and "candidate/5/anew" in own(once, record)
    assert {score.on["backend.device"] for score in record.scores} == {KINDS[0]}
    twice = two_kinds(tmp_path / "twice", placed({"candidate/5", "candidate/5/anew"})).conclude(BETTER)
    assert twice.verdict == "invalid" and "on different devices, twice in a row (run-" in str(twice.sentence)
    assert "exclude_devices" in str(twice.advice)


def test_the_first_scores_device_is_asked_for_where_there_are_several_kinds(tmp_path: Path) -> None:
    script = telling(lambda request, key: on("a", device=request.prefer_resource or KINDS[1]))
    bench = two_kinds(tmp_path / "several", script)
    bench.conclude(BETTER)
    wishes = [bench.runs.requests[bench.runs.keys[key]].prefer_resource for key in bench.runs.order]
    assert wishes[:2] == [None, None] and set(wishes[6:]) == {KINDS[1]}
    for names in ((KINDS[1],), (KINDS[1], KINDS[1]), (KINDS[0], "AMD Instinct MI300X")):
        bench = two_kinds(tmp_path / f"{len(list(tmp_path.iterdir()))}", script, names)
        assert bench.conclude(BETTER).verdict == "keep"
        assert {request.prefer_resource for request in bench.runs.requests.values()} == {None}


def test_a_session_on_another_device_gives_no_level(tmp_path: Path) -> None:
    device = [KINDS[0]]
    bench = two_kinds(tmp_path / "lab", telling(lambda request, key: on("a", device=device[0])))
    bench.conclude(WORSE)
    device[0] = KINDS[1]
    record = bench.conclude(BETTER)
    assert record.verdict == "keep" and "control/1" in own(bench, record)
    assert any("backend.device" in note for note in record.notes)


def test_the_canary_of_a_slower_kind_of_device_is_not_a_slowed_machine(tmp_path: Path) -> None:
    device = [0]

    def what(request: RunRequest, key: str) -> dict[str, Any]:
        canary = {"matmul_gflops": {"float32": (100.0, 50.0)[device[0]]}, "bandwidth_gb_s": 10.0}
        return on("a", device=KINDS[device[0]]) | {"canary": canary}

    bench = two_kinds(tmp_path / "lab", telling(what))
    bench.conclude(WORSE)
    device[0] = 1
    record = bench.conclude(BETTER)
    assert record.verdict == "keep" and not any("anew" in key for key in bench.runs.order)


# -- the test run's hour ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "amount", "before", "after"),
    [
        ("steps", 1_000_000, 200_000, 3600 * 1000 / 2000),
        ("tokens", 10**10, 2 * 10**9, 3600 * 1000),
        ("flops", 1e15, 2e14, 3600 * 1000 * 5000),
        ("seconds", 90_000, 3600, 3600),
        ("steps", 100, 20, 20),
    ],
)
def test_a_test_run_is_an_hour_at_most_whatever_the_budget_counts(
    tmp_path: Path, kind: str, amount: float, before: float, after: float
) -> None:
    """How fast the parent trains is known once it has been a control."""
    script = telling(lambda request, key: {"tokens_per_s": 1000.0, "flops_per_token": 5000.0})
    bench = Bench(tmp_path / "lab", script, recipe="[batch]\ntokens = 2000\nrows = 2\n[data]\ncontext = 100\n",
                  fingerprint=fingerprint)  # fmt: skip
    budget = {"kind": kind, "amount": amount}
    bench.conclude(WORSE, budget=budget)
    bench.conclude(WORSE | {"change": {"model.depth": 8}}, budget=budget)
    configs = [bench.runs.requests[bench.runs.keys[f"exp-000{n}/test"]].config for n in (1, 2)]
    assert [config.budget.amount for config in configs] == pytest.approx([before, after])  # type: ignore[union-attr]
