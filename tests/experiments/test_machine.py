"""An experiment from its proposal to its row, with runs that follow a script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from experiments_bench import BETTER, TINY, WORSE, Bench
from scripted_runs import Script, fingerprint, healthy
from users_repository import git, untouchable

from experiments.ports import Device, RecipeFailure
from experiments.record import ExperimentRecord
from experiments.rule import Rule, seed_of
from training.config import TrainingConfig
from training.runs.records import GIVEN_UP, RunRequest


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "lab")


def test_a_better_change_is_kept_committed_tabled_and_told(bench: Bench) -> None:
    root = bench.workspace.root
    before = untouchable(root)
    record = bench.conclude(BETTER, conversation="chat-1")
    assert untouchable(root) == before

    assert record.verdict == "keep" and record.state == "done" and record.is_best
    assert record.numbers is not None and record.numbers.low > 0
    assert record.numbers.effect == pytest.approx(0.05, abs=0.01)
    # a fifth of the budget first; then the session's controls and one candidate; then fresh pairs, A B B A
    assert bench.runs.order == [
        f"{record.id}/{name}"
        for name in (
            "test", "control/1", "control/2", "control/3", "control/4", "candidate/1",
            "control/5", "candidate/5", "candidate/6", "control/6", "control/7", "candidate/7",
        )
    ]  # fmt: skip
    assert record.numbers.method == "pairs" and record.numbers.n_candidate == record.numbers.n_control == 3
    requests = [bench.runs.requests[bench.runs.keys[key]] for key in bench.runs.order]
    configs = [request.config for request in requests]
    assert all(isinstance(config, TrainingConfig) for config in configs)
    assert [c.budget.amount for c in configs] == [12.0] + [60.0] * 11  # type: ignore[union-attr]
    assert [c.seed for c in configs[1:]] == [seed_of(1, i) for i in (0, 1, 2, 3, 0, 4, 4, 5, 5, 6, 6)]  # type: ignore[union-attr]
    assert (requests[5].recipe_dir / "recipe.toml").read_text() == "[optimizer]\nmatrix_lr = 0.02  # tuned\n"  # type: ignore[operator]
    assert (requests[1].recipe_dir / "recipe.toml").read_text() == "[optimizer]\nmatrix_lr = 0.04  # tuned\n"  # type: ignore[operator]

    assert record.commit and git(root, "rev-parse", "lab/exp-0001", "lab/best").split() == [record.commit] * 2
    assert git(root, "rev-list", "--count", f"main..{record.commit}") == "1"
    message = git(root, "show", "-s", "--format=%B", record.commit)
    assert (
        message.startswith("exp-0001 keep: Halving") and "Lab-Verdict: keep" in message and record.sentence in message
    )  # type: ignore[operator]

    (row,) = bench.rows()
    assert list(row)[:5] == ["commit", "val_bpb", "memory_gb", "status", "description"]
    assert row["status"] == "keep" and row["commit"] == record.commit[:7] and row["memory_gb"] == "1.0"
    assert float(row["val_bpb"]) == pytest.approx(record.numbers.candidate_mean, abs=1e-6)
    assert bench.posted("experiment.proposed") == bench.posted("experiment.ended") == bench.notes(record.id) == 1
    folder = bench.workspace.experiment_dir(record.id)
    assert {f.name for f in folder.iterdir()} == {
        "experiment.json", "hypothesis.md", "results.json", "report.md", "change.patch"
    }  # fmt: skip
    assert "+matrix_lr = 0.02" in (folder / "change.patch").read_text()
    assert record.sentence in (folder / "report.md").read_text()  # type: ignore[operator]
    assert ExperimentRecord.model_validate_json((folder / "results.json").read_text()) == record


def test_a_worse_change_is_discarded_after_one_run(bench: Bench) -> None:
    record = bench.conclude(WORSE)
    assert record.verdict == "discard" and len(record.scored("candidate")) == 1
    assert git(bench.workspace.root, "for-each-ref", "refs/heads/lab/best") == ""
    assert bench.rows()[0]["status"] == "discard"


def in_order(candidates: dict[str, float]) -> Script:
    """The candidate's scores by the name of their run; controls lie around 1.0, two thousandths up and down."""

    def script(request: RunRequest, key: str) -> dict[str, Any]:
        name = key.split("/", 1)[1]
        number = int(name.rpartition("/")[2]) if "/" in name else 0
        value = 1.0 + (0.001 if number % 2 else -0.001)
        course = healthy(request, key)
        return course | {"summary": course["summary"] | {"val_bpb": candidates.get(name, value)}}

    return script


def test_what_noise_hides_is_undecided_after_the_last_pair(tmp_path: Path) -> None:
    script = in_order({"candidate/1": 0.99, "candidate/5": 0.997, "candidate/6": 0.9999, "candidate/7": 0.997})
    bench = Bench(tmp_path / "lab", script, rule=Rule(max_pairs=3))
    record = bench.conclude(TINY)
    assert record.verdict == "inconclusive" and "pairs would be needed" in (record.sentence or "")
    assert list(record.scored("control")) == [0, 1, 2, 3, 4, 5, 6] and list(record.scored("candidate")) == [0, 4, 5, 6]
    looks = [step.name for step in record.steps if step.name.startswith("look")]
    assert looks == [f"look {n}" for n in range(1, 6)]  # one look per stage: no more chances than paid for
    assert record.mean() == pytest.approx((0.997 + 0.9999 + 0.997) / 3), "the run it was selected by is not quoted"
    assert bench.rows()[0]["verdict"] == "inconclusive" and bench.rows()[0]["status"] == "discard"


def test_a_gain_finer_than_the_rule_looks_for_is_given_up_undecided(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "lab", in_order({"candidate/1": 1.0}), rule=Rule(first_confidence=0.95))
    record = bench.conclude(TINY | {"smallest_effect": 0.0001})
    assert record.verdict == "inconclusive" and "2.9 times the noise of one run, is ruled" in (record.sentence or "")
    assert len(record.scored("candidate")) == 1


def with_canaries(slow: set[str]) -> Script:
    """Every run tells how fast the machine was; those named had half of it."""

    def script(request: RunRequest, key: str) -> dict[str, Any]:
        course = healthy(request, key)
        rate = 50.0 if key.split("/", 1)[1] in slow else 100.0
        canary = {"matmul_gflops": {"float32": rate}, "bandwidth_gb_s": 10.0, "seconds": 2.0}
        return course | {"summary": course["summary"] | {"canary": canary}}

    return script


def test_a_run_on_a_slowed_machine_is_made_anew_and_twice_is_invalid(tmp_path: Path) -> None:
    once = Bench(tmp_path / "once", with_canaries({"candidate/5"}))
    assert once.conclude(BETTER).verdict == "keep" and "exp-0001/candidate/5/anew" in once.runs.order
    twice = Bench(tmp_path / "twice", with_canaries({"candidate/5", "candidate/5/anew"})).conclude(BETTER)
    assert twice.verdict == "invalid" and "slowed, twice in a row" in (twice.sentence or "")
    assert "50% less" in (twice.sentence or "")
    steps = {"kind": "steps", "amount": 40}
    bench = Bench(tmp_path / "steps", with_canaries({"candidate/5"}))
    assert bench.conclude(BETTER, budget=steps).verdict == "keep" and not any("anew" in k for k in bench.runs.order)


def failing(purpose: str, **course: Any) -> Script:
    return lambda request, key: course if request.purpose == purpose else healthy(request, key)


@pytest.mark.parametrize(
    ("failure", "advice"),
    [
        ("oom", "halve batch.rows"),
        ("nan", "grad_clip"),
        ("import", "own code"),
        ("signal", "killed"),
        ("stalled", "load"),
    ],
)
def test_a_failed_test_run_is_a_crash_and_no_full_run_starts(tmp_path: Path, failure: str, advice: str) -> None:
    log = "step 3\nTraceback\nRuntimeError: \x1b[31mbad\x1b[0m hf_" + "a1" * 20
    course = {"state": "failed", "failure_class": failure, "reason": "it broke", "log": log}
    bench = Bench(tmp_path / "lab", failing("test", **course))
    record = bench.conclude(BETTER)
    assert record.verdict == "crash" and record.failure_class == failure
    assert advice in (record.advice or "") and "RuntimeError" in (record.advice or "")
    assert (record.advice or "").endswith("\n```"), "a log is shown as it is, not as Markdown"
    assert "\x1b" not in (record.advice or "") and "a1a1a1" not in (record.advice or "")
    assert bench.runs.order == ["exp-0001/test"]
    (row,) = bench.rows()
    assert row["status"] == "crash" and float(row["val_bpb"]) == 0 and row["commit"]


def test_a_flat_loss_does_not_pass_the_gate(tmp_path: Path) -> None:
    flat = {"state": "succeeded", "summary": {"val_bpb": 3.0}, "losses": [8.3 + 0.001 * (i % 3) for i in range(40)]}
    record = Bench(tmp_path / "lab", failing("test", **flat)).conclude(BETTER)
    assert (record.verdict, record.failure_class) == ("crash", "loss_flat")


def test_a_metric_no_run_reports_is_invalid_before_the_full_runs(bench: Bench) -> None:
    record = bench.conclude(BETTER | {"metric": "accuracy"})
    assert record.verdict == "invalid" and "did not report accuracy; it reported" in (record.sentence or "")
    assert "depth" not in (record.sentence or "")  # True is not a number
    assert bench.runs.order == ["exp-0001/test"]


def test_a_candidate_that_diverges_in_the_full_run_is_a_crash_and_the_rest_is_stopped(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "lab", failing("candidate", state="failed", failure_class="nan"))
    record = bench.lab.propose(BETTER)
    for _ in range(200):
        bench.lab.tick()
        bench.runs.step(1 if len(bench.runs.records) < 3 else 2)  # the later controls are still waiting
        if not bench.lab.busy():
            break
    record = bench.lab.get(record.id)
    assert (record.verdict, record.failure_class) == ("crash", "nan")
    assert all(run.ended for run in bench.runs.records.values())


def test_a_parent_that_fails_makes_the_experiment_invalid(tmp_path: Path) -> None:
    record = Bench(tmp_path / "lab", failing("control", state="failed", failure_class="oom")).conclude(BETTER)
    assert record.verdict == "invalid" and "parent itself" in (record.sentence or "")


def test_a_lost_run_is_made_again_and_a_stopped_one_is_not(tmp_path: Path) -> None:
    def script(request: RunRequest, key: str) -> dict[str, Any]:
        return {"state": "lost"} if key == "exp-0001/candidate/1" else healthy(request, key)

    bench = Bench(tmp_path / "lab", script)
    assert bench.conclude(BETTER).verdict == "keep"
    assert "exp-0001/candidate/1/again-1" in bench.runs.order

    stopped = Bench(tmp_path / "other", failing("candidate", state="cancelled", reason="by hand")).conclude(BETTER)
    assert stopped.verdict == "invalid" and "by hand" in (stopped.sentence or "")


def test_a_run_that_somebody_gave_up_is_not_made_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "lab", failing("candidate", state="lost", reason=f"enough (by user); {GIVEN_UP}"))
    record = bench.conclude(BETTER)
    assert record.verdict == "invalid" and "gave it up (enough (by user)" in (record.sentence or "")
    assert not [key for key in bench.runs.order if "again" in key]


def test_no_effect_by_settings_and_by_fingerprint(bench: Bench) -> None:
    already = bench.conclude(BETTER | {"change": {"optimizer.matrix_lr": 0.04}})
    assert already.verdict == "no_effect" and "already" in (already.sentence or "")
    unread = bench.conclude(BETTER | {"change": {"model.softcap": 20.0}})
    assert unread.verdict == "no_effect" and "same model" in (unread.sentence or "")
    assert bench.runs.order == [] and unread.commit is not None
    assert [row["verdict"] for row in bench.rows()] == ["no_effect", "no_effect"]


def test_speed_counts_where_the_budget_is_in_seconds(bench: Bench) -> None:
    bench.options["fingerprint"] = lambda config, folder: fingerprint(config.model_copy(update={"batch": None}), folder)
    bench.again()
    claim = BETTER | {"statement": "Fewer batch.rows lower val_bpb", "change": {"batch.rows": 4}}
    assert bench.conclude(claim).verdict in ("discard", "inconclusive")
    assert bench.conclude(claim, budget={"kind": "steps", "amount": 50}).verdict == "no_effect"


@pytest.mark.parametrize(("rate", "verdict"), [(0.02, "crash"), (0.04, "invalid")])
def test_a_recipe_that_cannot_be_built_ends_it_without_a_run(tmp_path: Path, rate: float, verdict: str) -> None:
    """Where it is the parent's, the candidate is not to blame."""

    def broken(config: TrainingConfig, folder: Path) -> Any:
        if config.optimizer.matrix_lr == rate:
            raise RecipeFailure("model.py: SyntaxError", kind="import")
        return fingerprint(config, folder)

    bench = Bench(tmp_path / "lab", fingerprint=broken)
    record = bench.conclude(BETTER)
    assert (record.verdict, record.failure_class) == (verdict, "import") and bench.runs.order == []
    assert ("the parent itself fails" in str(record.sentence)) == (verdict == "invalid")


def test_a_model_that_cannot_fit_crashes_without_a_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "lab", device=lambda: Device("cuda", 10**9))
    record = bench.conclude(WORSE | {"change": {"model.depth": 100, "model.width": 4096}})
    assert (record.verdict, record.failure_class) == ("crash", "oom") and bench.runs.order == []
