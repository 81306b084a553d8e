"""Preflight: what can be known before a second of training is spent.

The parent is committed, the change applied to its recipe.toml, the candidate committed and laid out; then settings,
memory, earlier experiments and the effective fingerprint are looked at. Running it again gives the same commits.
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import hypothesis as hypothesis_module
from experiments import recipe
from experiments.hypothesis import Hypothesis
from experiments.ledger import Ledger
from experiments.lineage import Lineage
from experiments.plumbing import GitFailed
from experiments.ports import Device, Fingerprinter, MemoryPort, RecipeFailure
from experiments.record import Arm, Duplicate, Evidence, ExperimentRecord, ParentRef, VerdictName
from experiments.similar import question
from training.config import RECIPE_NAME, TrainingConfig, apply, knobs, load_config, load_recipe, value_of
from training.size import parameter_counts, predict_memory
from workspace.errors import LabError, Refused, Unavailable

SETTLED = ("keep", "discard", "no_effect")  # verdicts after which a repetition needs to be meant
NEAR = 0.75  # cosine similarity from which an earlier experiment is named
QUALITY = ("val_bpb", "val_loss", "perplexity", "train_loss")  # metrics that follow from the mathematics
SPEED = ("batch.rows", "compile")  # settings that change how fast the same mathematics is done
BYTES_PER_WEIGHT = 12  # weight, gradient and one moment in float32: less than this no optimizer of ours needs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """A verdict reached without a run."""

    verdict: VerdictName
    sentence: str
    advice: str | None = None
    failure_class: str | None = None


@dataclass
class Preflight:
    """Looks at one experiment after the other; everything it needs is given to it."""

    lineage: Lineage
    ledger: Ledger
    fingerprint: Fingerprinter
    memory: MemoryPort | None
    device: Callable[[], Device | None]

    def examine(self, record: ExperimentRecord) -> tuple[ExperimentRecord, Refusal | None]:
        """The experiment with its parent, both arms and notes; and why it ends here, if it does.

        Raises `Unavailable` when git or the fingerprint cannot be had now: try again.
        """
        try:
            return self._examine(record)
        except Unavailable:
            raise
        except LabError as error:
            return record, Refusal("invalid", f"Invalid: {error}", error.fix)

    def current(self, record: ExperimentRecord) -> bool:
        """Is the recipe chosen at preflight still what a new experiment would start from? A commit of the user's that
        leaves recipe/ alone does not change that."""
        assert record.parent is not None
        now = self.lineage.parent(self.ledger.best())
        return now.recipe == self.lineage.recipe_tree(record.parent.commit) and now.base == record.parent.base

    def _examine(self, record: ExperimentRecord) -> tuple[ExperimentRecord, Refusal | None]:
        best = self.ledger.best()
        parent = self.lineage.parent(best)
        control_dir = self.lineage.materialise(parent.commit)
        plain = load_recipe(control_dir)
        control = with_budget(plain, record.budget)
        files, changed = self.changed_files(parent.commit, record.hypothesis)
        candidate = apply(with_budget(changed, record.budget), record.hypothesis.change)
        commit = self.lineage.commit(parent.commit, files, proposal_message(record), record.created_at)
        try:
            self.lineage.point(record.id, commit)
        except GitFailed as error:  # it keeps the commit from being pruned; the last step tries again, and tells
            log.warning("%s has no ref yet: %s", record.id, error)
        candidate_dir = self.lineage.materialise(commit)
        if load_recipe(candidate_dir) != apply(changed, record.hypothesis.change):
            raise Refused("the committed recipe does not say what was proposed", fix=f"mend {RECIPE_NAME}")
        made_by = best.experiment if best and best.commit == parent.commit else None
        maker = self.ledger.get(made_by) if made_by else None
        generation = maker.parent.generation + 1 if maker and maker.parent else 0
        record = record.model_copy(
            update={
                "parent": ParentRef(commit=parent.commit, base=parent.base, experiment=made_by, generation=generation),
                "best_before": best.experiment if best else None,
                "control": _arm(parent.commit, control, control_dir),
                "candidate": _arm(commit, candidate, candidate_dir),
                "yardstick": recipe.yardstick(control),
                "notes": _add(record.notes, *parent.notes),
            }
        )
        return self._look(record, control, candidate, control_dir, candidate_dir)

    def changed_files(self, parent: str, hypothesis: Hypothesis) -> tuple[dict[str, bytes | None], TrainingConfig]:
        """The files of recipe/ that differ from the parent's, and the settings after the patch, before the change.

        Raises `Refused` for a patch that does not apply, does not parse, or moves the yardstick.
        """
        control_dir = self.lineage.materialise(parent)
        files = self.lineage.patched(parent, hypothesis.patch) if hypothesis.patch else {}
        plain = load_recipe(control_dir)
        present = control_dir / RECIPE_NAME
        text = present.read_text(encoding="utf-8") if present.exists() else ""
        if RECIPE_NAME in files:
            text = (files[RECIPE_NAME] or b"").decode("utf-8")
            changed = load_config({k: v for k, v in tomllib.loads(text).items() if k != "search_space"}, source="patch")
            hypothesis_module.check_yardstick(
                {key for key, _ in knobs() if value_of(plain, key) != value_of(changed, key)}, hypothesis.kind
            )
            plain = changed
        apply(plain, hypothesis.change, source="change")
        if hypothesis.change:
            files[RECIPE_NAME] = recipe.edit(text, hypothesis.change).encode("utf-8")
        return files, plain

    def _look(
        self,
        record: ExperimentRecord,
        control: TrainingConfig,
        candidate: TrainingConfig,
        control_dir: Path,
        candidate_dir: Path,
    ) -> tuple[ExperimentRecord, Refusal | None]:
        assert record.control is not None and record.candidate is not None
        if record.control.digest == record.candidate.digest:
            already = ", ".join(f"{key} is {value_of(control, key)!r}" for key in record.hypothesis.change)
            already = already or record.hypothesis.describe_change()
            return record, Refusal("no_effect", f"No effect: the parent already has it ({already}).")
        record, refusal = self._repeats(record)
        if refusal:
            return record, refusal
        record, refusal = self._fits(record, candidate, candidate_dir)
        if refusal:
            return record, refusal
        try:
            before = self.fingerprint(control, control_dir)
        except RecipeFailure as error:
            sentence = f"Invalid: the parent itself fails: its recipe cannot be built: {error.problem.rstrip('.')}."
            return record, Refusal("invalid", sentence, error.fix or "mend recipe/ and propose again", error.kind)
        try:
            same = before == self.fingerprint(candidate, candidate_dir)
        except RecipeFailure as error:
            sentence = f"Crash: the recipe cannot be built: {error.problem.rstrip('.')}."
            return record, Refusal("crash", sentence, error.fix or "mend the recipe and propose again", error.kind)
        if same and not self._speed_counts(record, control):
            sentence = (
                f"No effect: {record.hypothesis.describe_change()} builds the same model, optimizer and schedule and "
                "takes the same first steps as the parent."
            )
            return record, Refusal("no_effect", sentence, "change something the recipe reads")
        if same:
            note = "The mathematics is the parent's, to the digit: only speed or memory can differ."
            record = record.model_copy(update={"notes": _add(record.notes, note)})
        if record.hypothesis.parts > 1:
            note = f"{record.hypothesis.parts} things change at once: which of them did it, the verdict will not tell."
            record = record.model_copy(update={"notes": _add(record.notes, note)})
        return self._alike(record), None

    def _speed_counts(self, record: ExperimentRecord, control: TrainingConfig) -> bool:
        """Can a change that leaves the mathematics alone still matter? In a budget of seconds, speed buys steps."""
        if record.hypothesis.kind != "superiority" or record.hypothesis.metric not in QUALITY:
            return True
        # code that computes the same may do it faster
        faster = record.hypothesis.patch is not None or any(key in SPEED for key in record.hypothesis.change)
        return control.budget.kind == "seconds" and faster

    def _repeats(self, record: ExperimentRecord) -> tuple[ExperimentRecord, Refusal | None]:
        assert record.control is not None and record.candidate is not None
        earlier = self.ledger.same(record.control.digest, record.candidate.digest, record.id)
        earlier = [r for r in earlier if r.hypothesis.metric == record.hypothesis.metric]
        found = [Duplicate(experiment=r.id, verdict=r.verdict, sentence=r.sentence, exact=True) for r in earlier]
        record = record.model_copy(update={"duplicates": found})
        settled = [r for r in earlier if r.verdict in SETTLED]
        if settled and record.hypothesis.repeat_of not in {r.id for r in earlier}:
            last = settled[0]
            advice = f"if something it rests on has changed, propose it again with repeat_of = {last.id!r} and say what"
            return record, Refusal("invalid", f"Invalid: {last.id} tried exactly this ({last.sentence})", advice)
        return record, None

    def _fits(
        self, record: ExperimentRecord, candidate: TrainingConfig, recipe_dir: Path
    ) -> tuple[ExperimentRecord, Refusal | None]:
        device = self.device()
        if device is None or device.memory_bytes is None or (recipe_dir / "model.py").exists():
            return record, None
        least = BYTES_PER_WEIGHT * parameter_counts(candidate)["total"]
        if least > device.memory_bytes:
            sentence = (
                f"Crash: the weights and their optimizer alone need {_gb(least)} of the {_gb(device.memory_bytes)} "
                "there are; nothing was run."
            )
            return record, Refusal("crash", sentence, "take a smaller model", "oom")
        estimate = predict_memory(candidate, device.backend).total
        if estimate > 0.9 * device.memory_bytes:
            note = f"Memory is estimated at {_gb(estimate)} of {_gb(device.memory_bytes)}: the test run will tell."
            record = record.model_copy(update={"notes": _add(record.notes, note)})
        return record, None

    def _alike(self, record: ExperimentRecord) -> ExperimentRecord:
        """Name what memory finds near; memory may be away, an experiment does not wait for it."""
        if self.memory is None:
            return record
        query = f"{record.hypothesis.statement} {record.hypothesis.describe_change()}"
        try:
            hits = self.memory.search(query[:500], kinds=["experiment", "paper"], limit=8).hits
        except LabError as error:
            note = f"Earlier experiments were not searched for similar ones: {error.problem}."
            return record.model_copy(update={"notes": _add(record.notes, note)})
        named = {duplicate.experiment for duplicate in record.duplicates} | {record.id}
        found = list(record.duplicates)
        cited = set(record.hypothesis.citations)
        evidence = [
            Evidence(id=hit.id, kind=hit.kind, title=hit.title, quote=hit.quote, cited=hit.id in cited)
            for hit in hits
            if hit.id != record.id
        ]
        for hit in hits:
            earlier = None if hit.id in named else self.ledger.get(hit.id)
            if earlier is not None and (hit.similarity or 0.0) >= NEAR:
                named.add(hit.id)
                found.append(
                    Duplicate(experiment=hit.id, verdict=earlier.verdict, sentence=earlier.sentence, exact=False)
                )
        record = record.model_copy(update={"duplicates": found, "evidence": evidence})
        asked = question(found, record.hypothesis)
        return record.model_copy(update={"notes": _add(record.notes, asked)}) if asked else record


def with_budget(config: TrainingConfig, budget: Mapping[str, Any] | None) -> TrainingConfig:
    """`config` with another budget, {"kind": "seconds"|"steps"|"tokens"|"flops", "amount": number}."""
    if budget is None:
        return config
    return apply(config, {f"budget.{key}": value for key, value in budget.items()}, source="budget")


def configuration(arm: Arm, seed: int) -> TrainingConfig:
    """The settings of one run of an arm."""
    return load_config({**arm.settings, "seed": seed}, source="experiment")


def proposal_message(record: ExperimentRecord) -> str:
    """The commit message before anything has run; the final one replaces it with the results."""
    return f"{record.id}: {record.hypothesis.statement}\n\nUnder way.\n\n{trailers(record)}"


def trailers(record: ExperimentRecord) -> str:
    lines = [
        f"Lab-Experiment: {record.id}",
        f"Lab-Change: {record.hypothesis.describe_change()}",
        f"Lab-Hypothesis: {record.hypothesis_hash}",
    ]
    return "\n".join(line.replace("\n", " ") for line in lines) + "\n"


def _arm(commit: str, config: TrainingConfig, folder: Path) -> Arm:
    return Arm(commit=commit, digest=recipe.digest(config, folder), settings=config.model_dump(mode="json"))


def _add(notes: list[str], *more: str) -> list[str]:
    return [*notes, *(note for note in more if note not in notes)]


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
