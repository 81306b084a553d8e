"""An experiment from its proposal to its row, with runs that follow a script."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from experiments_bench import BETTER, TINY, WORSE, Bench
from scripted_runs import Script, fingerprint, healthy
from users_repository import git, untouchable

from experiments.controls import SESSION_HOURS
from experiments.ports import Device, Fingerprint, RecipeFailure
from experiments.record import ExperimentRecord, Score
from experiments.rule import Rule, seed_of
from training.config import TrainingConfig
from training.runs.records import GIVEN_UP, RunRequest
from workspace import clock
from workspace.errors import NotFound, Refused, Unavailable


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


def test_a_recipe_that_cannot_be_built_crashes_without_a_run(tmp_path: Path) -> None:
    def broken(config: TrainingConfig, folder: Path) -> Any:
        raise RecipeFailure("model.py: SyntaxError", kind="import")

    bench = Bench(tmp_path / "lab", fingerprint=broken)
    record = bench.conclude(BETTER)
    assert (record.verdict, record.failure_class) == ("crash", "import") and bench.runs.order == []


def test_a_model_that_cannot_fit_crashes_without_a_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "lab", device=lambda: Device("cuda", 10**9))
    record = bench.conclude(WORSE | {"change": {"model.depth": 100, "model.width": 4096}})
    assert (record.verdict, record.failure_class) == ("crash", "oom") and bench.runs.order == []


def test_a_repetition_names_what_came_of_it_and_must_be_meant(bench: Bench) -> None:
    first = bench.conclude(WORSE)
    again = bench.conclude(WORSE)
    assert again.verdict == "invalid" and first.id in (again.sentence or "") and "repeat_of" in (again.advice or "")
    meant = bench.conclude(WORSE | {"repeat_of": first.id})
    assert meant.verdict == "discard" and meant.duplicates[0].experiment in (first.id, again.id)
    with pytest.raises(NotFound):
        bench.lab.propose(WORSE | {"repeat_of": "exp-9999"})


def test_controls_of_the_same_session_are_shared_and_its_winners_are_not(bench: Bench) -> None:
    bench.conclude(WORSE)
    second = bench.conclude(WORSE | {"change": {"model.depth": 8}})
    assert [key for key in bench.runs.order if key.startswith("exp-0002/")] == ["exp-0002/test", "exp-0002/candidate/1"]
    assert second.numbers is not None and second.numbers.n_control == 4 and second.scored("control") == {}
    kept = bench.conclude(BETTER)
    assert kept.verdict == "keep"
    after = bench.conclude(WORSE | {"change": {"model.depth": 5}})
    assert after.parent is not None and after.parent.experiment == kept.id
    assert list(after.scored("control")) == [0, 1, 2, 3]  # the new parent is measured anew
    seeds = [score.seed for score in (*kept.scores, *after.scores)]
    pairs = len(kept.scored("candidate")) - 1
    assert len(set(seeds)) == len(seeds) - pairs - 1, "runs repeat to the bit: with old seeds nothing would be measured"
    assert after.numbers is not None and after.numbers.df > 3  # how much earlier controls scattered counts


def age(bench: Bench, hours: float) -> None:
    """Every run so far was made so many hours earlier."""
    with bench.database.transaction() as tx:
        for row in tx.execute("SELECT rowid, document FROM scores").fetchall():
            score = Score.model_validate_json(row["document"])
            earlier = clock.stamp(clock.parse(score.at) - timedelta(hours=hours))
            older = score.model_copy(update={"at": earlier, "started_at": None})
            tx.execute(
                "UPDATE scores SET at = ?, document = ? WHERE rowid = ?",
                (earlier, older.model_dump_json(), row["rowid"]),
            )


def test_an_earlier_session_tells_of_the_noise_and_not_of_the_level(bench: Bench) -> None:
    bench.conclude(WORSE)
    age(bench, SESSION_HOURS + 1)
    after = bench.conclude(WORSE | {"change": {"model.depth": 5}})
    assert list(after.scored("control")) == [0, 1, 2, 3], "the level is of today"
    assert after.numbers is not None and (after.numbers.n_control, after.numbers.df) == (4, 6.0), "3 df of each session"


def test_controls_of_before_a_pause_are_stale(bench: Bench) -> None:
    bench.conclude(WORSE)
    age(bench, 1.5)
    after = bench.conclude(WORSE | {"change": {"model.depth": 5}})
    assert list(after.scored("control")) == [0] and after.numbers is not None
    assert (after.numbers.n_control, after.numbers.df) == (5, 3.0), "the new one is no neighbour of those"


def test_one_experiment_measures_at_a_time_and_the_next_starts_from_the_new_best(bench: Bench) -> None:
    first, second = bench.lab.propose(BETTER), bench.lab.propose(WORSE)
    for _ in range(6):
        bench.lab.tick()
    assert bench.lab.get(second.id).state == "ready" and bench.lab.get(first.id).state in ("test_run", "gate")
    bench.finish()
    kept, other = bench.lab.get(first.id), bench.lab.get(second.id)
    assert kept.verdict == "keep" and other.parent is not None and other.parent.commit == kept.commit
    assert "parent moved" in [step.name for step in other.steps]
    assert any("parent has changed" in note for note in other.notes)


def test_the_users_edit_of_the_recipe_makes_a_new_parent(bench: Bench) -> None:
    kept = bench.conclude(BETTER)
    (bench.workspace.recipe_dir / "recipe.toml").write_text("[optimizer]\nmatrix_lr = 0.03\n")
    record = bench.conclude(WORSE)
    assert record.parent is not None and record.parent.commit != kept.commit and record.parent.experiment is None
    assert record.control is not None and record.control.settings["optimizer"]["matrix_lr"] == 0.03


def test_skipping_the_test_run_needs_a_reason_and_is_recorded(bench: Bench) -> None:
    with pytest.raises(Refused, match="reason"):
        bench.lab.propose(BETTER, skip_test_run="yes")
    record = bench.conclude(BETTER, skip_test_run="exp-0000 ran the same yesterday")
    assert record.verdict == "keep" and "exp-0001/test" not in bench.runs.order
    assert "No test run: exp-0000 ran the same yesterday" in record.notes


def test_a_budget_of_its_own_holds_for_both_arms(bench: Bench) -> None:
    record = bench.conclude(BETTER, budget={"kind": "steps", "amount": 40})
    budgets = {k: r.config.budget for k, r in bench.runs.requests.items()}  # type: ignore[union-attr]
    assert [b.amount for b in budgets.values()] == [8.0] + [40.0] * (len(budgets) - 1) and record.verdict == "keep"
    with pytest.raises(Refused, match="budget"):
        bench.lab.propose(BETTER, budget={"kind": "steps", "amount": -1})
    with pytest.raises(Refused, match="kind and amount"):
        bench.lab.propose(BETTER, budget={"seconds": 10})


def test_the_same_quality_in_half_the_time(bench: Bench) -> None:
    claim = BETTER | {
        "statement": "Half the budget.amount gives the same val_bpb within 0.01",
        "change": {"budget.amount": 30},
        "kind": "non_inferiority",
        "smallest_saving": 0.3,
    }
    record = bench.conclude(claim)
    assert record.verdict == "keep" and record.saving is not None and record.saving.effect == pytest.approx(0.5)


def test_what_an_experiment_waits_for_is_told(tmp_path: Path) -> None:
    away = [True]

    def sometimes(config: TrainingConfig, recipe_dir: Path) -> Fingerprint:
        if away[0]:
            raise Unavailable("the fingerprint could not be taken")
        return fingerprint(config, recipe_dir)

    bench = Bench(tmp_path / "lab", fingerprint=sometimes)
    bench.lab.propose(BETTER)
    for _ in range(3):
        bench.lab.tick()
    assert bench.lab.overview().queue[0].progress == "waits: the fingerprint could not be taken."
    assert bench.again().overview().queue[0].progress == "waits: the fingerprint could not be taken."
    away[0] = False
    bench.lab._pauses.clear()
    bench.lab.tick()
    assert bench.lab.overview().queue[0].progress is None


def test_what_is_missing_for_too_long_ends_an_experiment_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(config: TrainingConfig, recipe_dir: Path) -> Fingerprint:
        raise Unavailable("the fingerprint could not be taken")

    monkeypatch.setattr("experiments.lab.LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr("experiments.lab.FIRST_PAUSE_S", 0.01)
    bench = Bench(tmp_path / "lab", fingerprint=never)
    bench.lab.propose(BETTER)
    while bench.lab.busy():
        bench.again().tick()  # a restart does not begin to wait anew
        time.sleep(0.01)
    record = bench.lab.get("exp-0001")
    assert record.verdict == "invalid" and "it could not go on: the fingerprint" in str(record.sentence)


def test_a_later_wording_is_a_version_of_its_own_and_is_not_judged(bench: Bench) -> None:
    proposed = bench.lab.propose(BETTER)
    with pytest.raises(Refused, match="needs a reason"):
        bench.lab.amend(proposed.id, {"smallest_effect": 0.04}, "")
    bench.lab.amend(proposed.id, {"smallest_effect": 0.9}, "it was asked for too little")
    bench.finish()
    with pytest.raises(Refused, match="too vague"):
        bench.lab.amend(proposed.id, {"statement": "It got better"}, "hindsight knows")
    record = bench.lab.get(proposed.id)
    assert record.verdict == "keep" and record.hypothesis.smallest_effect == 0.01
    assert [(v.hypothesis.smallest_effect, v.state) for v in record.versions] == [(0.9, "proposed")]
    page = (bench.workspace.experiment_dir(record.id) / "report.md").read_text()
    assert "version 2" in page and "it was asked for too little" in page


def test_predictions_are_compared_with_what_was_measured(bench: Bench) -> None:
    bench.conclude(BETTER | {"predicted_effect": 0.05})
    bench.conclude(WORSE | {"predicted_effect": 0.02})
    (one,) = bench.lab.overview().calibration
    assert (one.proposer, one.predictions, one.right_direction) == ("assistant", 2, 0.5)
    assert one.mean_predicted == 0.035 and one.typical_error == pytest.approx(0.04, abs=0.02)


def test_what_was_tried_with_the_same_settings_is_named_at_once(bench: Bench) -> None:
    bench.conclude(WORSE)
    found, asked = bench.lab.similar(WORSE | {"change": {"model.depth": 5}})
    assert [(d.experiment, d.verdict, d.exact) for d in found] == [("exp-0001", "discard", False)]
    assert asked is not None and "exp-0001 (discard)" in asked
    assert bench.lab.similar(BETTER) == ([], None)


def test_cancelling(bench: Bench) -> None:
    record = bench.lab.propose(BETTER)
    for _ in range(4):
        bench.lab.tick()
    assert bench.lab.cancel(record.id, "ada").cancelled_by == "ada"
    bench.finish()
    record = bench.lab.get(record.id)
    assert record.verdict == "invalid" and "cancelled by ada" in (record.sentence or "")
    assert [run.state for run in bench.runs.records.values()] == ["cancelled"]
    assert bench.lab.cancel(record.id).verdict == "invalid"  # too late, and harmless


def test_wrong_settings_are_refused_at_once(bench: Bench) -> None:
    with pytest.raises(Refused, match=r"optimizer\.matrix_lr"):
        bench.lab.propose(BETTER | {"change": {"optimizer.matrix_rl": 0.02}})
    with pytest.raises(Refused, match="at most 128"):
        bench.lab.propose(WORSE | {"change": {"model.depth": 1000}})
    with pytest.raises(Refused, match="multiple"):
        bench.lab.propose(WORSE | {"change": {"model.width": 250}})
    assert bench.lab.list() == []


def test_the_same_key_is_the_same_experiment(bench: Bench) -> None:
    assert bench.lab.propose(BETTER, key="k").id == bench.lab.propose(BETTER, key="k").id == "exp-0001"
    assert bench.posted("experiment.proposed") == 1


def test_looking_back(bench: Bench) -> None:
    bench.conclude(WORSE)
    bench.conclude(BETTER)
    bench.conclude(TINY)
    lab = bench.lab
    assert [r.id for r in lab.list()] == ["exp-0003", "exp-0002", "exp-0001"]
    assert [r.id for r in lab.list(before="exp-0002")] == ["exp-0001"]
    assert [r.id for r in lab.list(verdict="keep")] == [r.id for r in lab.leaderboard()] == ["exp-0002"]
    assert [r.id for r in lab.list(text="DEEPER depth")] == ["exp-0001"] and lab.list(text="100%") == []
    with pytest.raises(Refused, match="keep"):
        lab.list(verdict="kept")
    with pytest.raises(NotFound, match="exp-0003"):
        lab.get("exp-003")
    survey = lab.overview()
    assert survey.best is not None and survey.best.experiment == "exp-0002" and survey.best.score is not None
    assert [line.experiment for line in survey.last_learnt] == ["exp-0003", "exp-0002", "exp-0001"]
    assert survey.running == survey.queue == [] and survey.next and survey.counts["keep"] == 1
    proposed = lab.propose(WORSE | {"change": {"model.depth": 7}})
    assert [line.experiment for line in lab.overview().queue] == [proposed.id]


def test_memory_names_similar_experiments_and_its_absence_holds_nothing_up(tmp_path: Path) -> None:
    class Hit:
        id, similarity, kind, title, quote = "exp-0001", 0.9, "experiment", "Deeper", "A deeper model lowers it"

    class Memory:
        away = False

        def search(self, text: str, /, kinds: Any = None, limit: int = 8) -> Any:
            if self.away:
                raise Unavailable("memory is starting")
            return type("Page", (), {"hits": [Hit()]})()

    memory = Memory()
    bench = Bench(tmp_path / "lab", memory=memory)
    bench.conclude(WORSE)
    near = bench.conclude(WORSE | {"change": {"model.depth": 5}})
    assert [(d.experiment, d.verdict, d.exact) for d in near.duplicates] == [("exp-0001", "discard", False)]
    assert [(e.id, e.kind, e.cited) for e in near.evidence] == [("exp-0001", "experiment", False)]
    assert any("which assumption has changed since?" in note for note in near.notes)
    new = {"change": {"model.depth": 9}, "changed_assumption": "the schedule is longer now", "citations": ["exp-0001"]}
    told = bench.conclude(WORSE | new)
    assert told.evidence[0].cited and not any("which assumption" in note for note in told.notes)
    memory.away = True
    record = bench.conclude(WORSE | {"change": {"model.depth": 7}})
    assert record.verdict == "discard" and any("memory is starting" in note for note in record.notes)


def test_tabs_and_lines_do_not_break_the_table(bench: Bench) -> None:
    bench.conclude(WORSE | {"statement": "A deeper\tmodel.depth of 6\nlowers val_bpb"})
    assert len(bench.workspace.results_file.read_text().splitlines()) == 2
    assert bench.rows()[0]["description"] == "A deeper model.depth of 6 lowers val_bpb"


def test_the_ledger_is_rebuilt_from_the_folders(bench: Bench) -> None:
    kept, worse = bench.conclude(BETTER), bench.conclude(WORSE)
    bench.lab.propose(TINY)
    for _ in range(8):
        bench.lab.tick()
        bench.runs.step()
    table = bench.workspace.results_file.read_text()
    bench.database.close()
    for file in bench.workspace.state_dir.glob("lab.db*"):
        file.unlink()
    lab = bench.again()
    assert lab.get(kept.id) == kept and lab.get(worse.id) == worse
    assert lab.ledger.best() is not None and lab.overview().best.experiment == kept.id  # type: ignore[union-attr]
    bench.finish()  # and the open one goes on
    assert lab.get("exp-0003").verdict in ("discard", "inconclusive")
    assert bench.workspace.results_file.read_text().startswith(table)
    assert lab.propose(WORSE | {"change": {"model.depth": 8}}).id == "exp-0004"


def test_an_error_of_the_labs_own_ends_one_experiment_only(tmp_path: Path) -> None:
    def odd(config: TrainingConfig, folder: Path) -> Any:
        if config.model.depth == 6:
            raise ZeroDivisionError
        return fingerprint(config, folder)

    bench = Bench(tmp_path / "lab", fingerprint=odd)
    bad, good = bench.lab.propose(WORSE), bench.lab.propose(BETTER)
    bench.finish()
    assert bench.lab.get(bad.id).verdict == "invalid" and "ZeroDivisionError" in (bench.lab.get(bad.id).sentence or "")
    assert bench.lab.get(good.id).verdict == "keep"
