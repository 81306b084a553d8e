"""What a score was measured on: which text, cut into which tokens, scored by which code, on which device.

Every run prepares its data anew, so a corpus that grows or is edited between two runs moves both of them, and no
setting tells. It is read off the runs' summaries; what a summary does not say (scripted runs, older records) is not
compared. Pure, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.record import ExperimentRecord, Score
from experiments.rule import Role

# where a summary says it. TEXT is the same for every vocabulary: a change of data.vocab_size leaves it alone
TEXT = ("data.identity", "data.bytes.train", "data.bytes.validation", "evaluated.code")
TOKENS = ("data.key", "data.sha256.train.bin", "data.sha256.validation.bin", "data.sha256.tokenizer.json")
DEVICE = "backend.device"
SHORT = 16  # characters of a hash
LONGEST_NAME = 80  # of a device


def measured_on(summary: Mapping[str, Any] | None) -> dict[str, str]:
    """What the summary of a run tells of it, by its place there; hashes are shortened."""
    found: dict[str, str] = {}
    for name in (*TEXT, *TOKENS, DEVICE):
        node: Any = summary
        for part in _path(name):
            node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(node, str | int) and node != "":
            found[name] = str(node)[: LONGEST_NAME if name == DEVICE else SHORT]
    return found


def _path(name: str) -> list[str]:
    """The last part of a place may be a file's name, with a dot in it."""
    return name.split(".", 2)


def differing(one: Mapping[str, str], other: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """The places of which both know something, and not the same."""
    return [name for name in names if name in one and name in other and one[name] != other[name]]


def of_experiment(record: ExperimentRecord) -> dict[str, str]:
    """What its runs so far were measured on, as far as it is known and the parent's runs can be compared with it.

    The test run tells of the text; its device binds nothing, since it gives no score.
    """
    found: dict[str, str] = {}
    _, tested = _test_run(record)
    tested.pop(DEVICE, None)
    for role, on in [*((score.role, score.on) for score in record.scores), ("candidate", tested)]:
        tokens = TOKENS if role == "control" or _same_vocabulary(record) else ()
        for name in (*TEXT, DEVICE, *tokens):
            if name in on:
                found.setdefault(name, on[name])
    return found


def alike(
    earlier: Sequence[tuple[str, str, Score]], recipe: str, on: Mapping[str, str]
) -> tuple[list[tuple[str, str, Score]], dict[str, str]]:
    """Of (recipe, experiment, score), oldest first, those that can be compared with runs measured on `on`, and with
    each other; and what they were all measured on. What `on` leaves open the newest decide. `recipe`: the parent's,
    whose tokens have to be the same as well."""
    found: list[tuple[str, str, Score]] = []
    wanted = dict(on)
    for one in reversed(earlier):
        names = (*TEXT, DEVICE, *(TOKENS if one[0] == recipe else ()))
        if not differing(wanted, one[2].on, names):
            found.append(one)
            wanted |= {name: one[2].on[name] for name in names if name in one[2].on}
    return found[::-1], wanted


def other_text(record: ExperimentRecord, earlier: Sequence[Score], new: Score) -> tuple[str, str, str | None] | None:
    """(sentence, advice, failure class) where a run's text, tokens or evaluation is not that of the experiment's test
    run, or of the scores before it."""
    test, tested = _test_run(record)
    before: list[tuple[str, Role, Mapping[str, str]]] = [(f"test run {test}", "candidate", tested)]
    before += [(score.run, score.role, score.on) for score in earlier]
    for where, role, on in before:
        tokens = TOKENS if role == new.role or _same_vocabulary(record) else ()
        if names := differing(on, new.on, (*TEXT, *tokens)):
            name = names[0]
            code = names == ["evaluated.code"]
            what = "the code that scores" if code else "the text"
            sentence = (
                f"Invalid: {what} changed within the experiment, so its runs cannot be compared ({name} is "
                f"{new.on[name]} in {new.run} and {on[name]} in {where})."
            )
            if code:
                return sentence, "propose it again: the lab was another version in between", None
            still = "let data.files name files that nobody writes to meanwhile (a copy of what grows)"
            return sentence, f"{still}, then propose it again", "data"
    return None


def other_device(earlier: Sequence[Score], new: Score) -> str | None:
    """In words, on which other device a run was made than the scores before it."""
    for score in earlier:
        if differing(score.on, new.on, [DEVICE]):
            return f"{new.run} was made on {new.on[DEVICE]}, {score.run} on {score.on[DEVICE]}"
    return None


def other_session(record: ExperimentRecord) -> str | None:
    """In words, that the runs the session is known by were not measured on what the experiment's own are."""
    places = differing(_session(record), of_experiment(record), (*TEXT, DEVICE, *TOKENS))
    if not places:
        return None
    return f"Its runs were not measured on what the session's were ({', '.join(places)}): these do not count."


def device_of(record: ExperimentRecord) -> str | None:
    """The name of the device its scores come from; before the first, that of the session's."""
    return (_session(record) | of_experiment(record)).get(DEVICE)


def _session(record: ExperimentRecord) -> dict[str, str]:
    """What the runs the session is known by were measured on, from the step that looked at it."""
    return next((dict(s.data.get("on", {})) for s in reversed(record.steps) if s.name == "controls"), {})


def _test_run(record: ExperimentRecord) -> tuple[str, dict[str, str]]:
    """(run, what it was measured on) of the test run that passed the gate."""
    run = next((step.data["run"] for step in reversed(record.steps) if step.name == "test run"), "")
    gate = next((step.data for step in reversed(record.steps) if step.name == "gate"), {})
    return run, dict(gate.get("on", {}))


def _same_vocabulary(record: ExperimentRecord) -> bool:
    """Do both arms cut the text into the same tokens?"""
    sizes = [arm.settings.get("data", {}).get("vocab_size") for arm in (record.control, record.candidate) if arm]
    return len(set(sizes)) == 1
