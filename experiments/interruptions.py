"""A pause in the middle of an experiment: the machine was asleep, the service away, somebody else's run came between.

Scores drift over a pause by far more than runs scatter. So what was measured before it is void where it would be
compared with what is measured after it: the older run of a pair; before the pairs, every run of this experiment from
before it, and what the session was taken to know. Pure, no I/O.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from experiments.controls import longest_pause
from experiments.record import ExperimentRecord, Score, Step
from experiments.rule import Role
from workspace.clock import seconds_between

MOST = 2  # times the same run is made anew for a pause, and the session looked at anew; then the experiment ends


@dataclass(frozen=True)
class Interruption:
    """`void`: the scores that no longer count. `session`: nor does what the session was taken to know."""

    void: tuple[Score, ...]
    session: bool
    why: str  # in words


def in_a_pair(scores: Sequence[Score], made_now: Collection[tuple[Role, int]], first_pair: int) -> Interruption | None:
    """Of the pairs (replicates from `first_pair` on) that the runs `made_now` complete: one whose two runs have a long
    pause between them."""
    longest = longest_pause(_length(scores))
    by_name = {(score.role, score.index): score for score in scores}
    for role, index in made_now:
        other = by_name.get(("candidate" if role == "control" else "control", index))
        if index < first_pair or other is None:
            continue
        older, younger = sorted((by_name[role, index], other), key=_start)
        idle = seconds_between(older.at, _start(younger))
        if idle > longest:
            return Interruption((older,), False, _words(idle, f"between {older.run} and {younger.run}, a pair"))
    return None


def before_the_pairs(scores: Sequence[Score], session_at: str, now: str) -> Interruption | None:
    """A long pause among the runs of the first looks, or since the session was looked at."""
    longest = longest_pause(_length(scores))
    made = [*((_start(score), score.at) for score in scores), (session_at, session_at)]
    if _last_break(made, longest) is None:
        return None
    # what is made anew is made now: what lies a pause back from here is as old as what lies before that pause
    idle, after = _last_break([*made, (now, now)], longest) or (0.0, now)
    void = tuple(score for score in scores if _start(score) < after)
    return Interruption(void, True, _words(idle, "before the pairs"))


def times_anew(steps: Sequence[Step], name: str) -> int:
    """How often the run of this name ("control/5") was voided, for whatever reason."""
    return sum(step.name == f"void {name}" or name in step.data.get("void", ()) for step in steps)


def slowed_before(steps: Sequence[Step], name: str) -> bool:
    """Was the machine slowed in the last run of this name? One that a pause made void was not slowed."""
    why = [s.name for s in steps if s.name == f"void {name}" or name in s.data.get("void", ())]
    return why[-1:] == [f"void {name}"]


def too_often(record: ExperimentRecord, found: Interruption) -> bool:
    """Whether to give up: a machine that is interrupted again and again measures nothing."""
    paused = [step for step in record.steps if step.name in ("pause", "controls")]
    anew = sum(step.name == "controls" and "void" in step.data for step in paused)
    again = any(times_anew(paused, name_of(score)) >= MOST for score in found.void)
    return again or (found.session and anew >= MOST)


def name_of(score: Score) -> str:
    return f"{score.role}/{score.index + 1}"


def _last_break(spans: Sequence[tuple[str, str]], longest: float) -> tuple[float, str] | None:
    """(seconds, start of what came after it) of the last pause longer than `longest`; spans are (start, end)."""
    found, last = None, ""
    for start, end in sorted(spans):
        idle = seconds_between(last, start) if last else 0.0
        if idle > longest:
            found = idle, start
        last = max(last, end)
    return found


def _start(score: Score) -> str:
    return score.started_at or score.at


def _length(scores: Sequence[Score]) -> float | None:
    lengths = [seconds_between(score.started_at, score.at) for score in scores if score.started_at]
    return max(statistics.median(lengths), 1.0) if lengths else None


def _words(idle_s: float, where: str) -> str:
    length = f"{idle_s / 3600:.1f} hours" if idle_s >= 5400 else f"{idle_s / 60:.0f} minutes"
    return f"the machine did something else for {length} {where}"
