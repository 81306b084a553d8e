"""Rules on what a run measures of itself: the records of metrics.jsonl, taken one after the other in bounded memory.

No rule asks whether something is *not* shown to be well: each fires only when the trouble itself is shown, beyond the
noise of this very run (docs/alerts.md gives the rate of false alarms on simulated healthy runs).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from training.runs.alerts.alert import Alert
from training.runs.alerts.series import BLOCKS, Folded, blocks, noise, slope, wandering
from training.runs.progress import shown
from workspace import clock

CHECK_EVERY = 32  # records between two looks at the trends
FEWEST = 64  # losses before anything is said about their course
RECENT = 256  # losses a sudden change is looked for in
# loss
SURE = 6.0  # standard deviations; a run of a day is looked at thousands of times
SURE_OF_RISE = 4.0  # of a random walk's
SURE_OF_FLAT = 3.0
RISE = 0.02  # of the loss: a smaller rise is not worth a word
RISE_AFTER_RATE_ROSE = 0.10  # a schedule that restarts throws the loss back a little
NOT_LEARNT = 0.02  # of the loss: what it fell by since its start, at most
LEARNT_AT_ONCE = 0.05  # of the loss: it fell within the very first steps
FIRST = 8
NO_LONGER_FALLING = 0.002  # of the loss, over the latest half of the run, at most
FLAT_FROM, FLAT_UNTIL = 0.25, 0.8  # part of the budget; at its end a decayed schedule may well have settled
FLAT_RECORDS = 400  # of a run whose budget is not known
T_999 = 5.2  # 99.9 % of Student's t with 6 degrees of freedom
# validation
WORSE = 0.01  # of the best validation
WORSE_IN_A_ROW = 2
VALIDATIONS = ("val_bpb", "val_loss", "eval_loss")
# speed and memory
SLOW = 0.7  # of the run's own usual rate
SLOW_S = 120.0
GROWTH = 0.5  # of the memory at the beginning
GROWTH_S = 120.0
# stalls
STALL_FACTOR = 20.0  # times the median time between two records
PAUSE_FACTOR = 3.0  # times the longest pause so far: evaluations and checkpoints are pauses
STALL_S = 300.0


class Curve:
    """The course of one run. `add` gives the alerts a record leads to."""

    def __init__(self, memory_total: int | None = None) -> None:
        self.memory_total = memory_total
        self.losses = Folded()
        self.rates = Folded()  # learning rates, folded as the losses are
        self.memory = Folded()
        self.speeds: deque[tuple[float, float]] = deque(maxlen=2048)  # elapsed seconds, tokens a second
        self.usual_speed = Folded()
        self.recent: deque[tuple[float, float]] = deque(maxlen=RECENT)  # loss, learning rate
        self.first: list[float] = []
        self.validations: dict[str, deque[tuple[int, float, float]]] = {}  # step, value, training loss then
        self.best: dict[str, tuple[int, float, float]] = {}
        self.intervals: deque[float] = deque(maxlen=RECENT)
        self.longest_pause_s = 0.0
        self.last: Mapping[str, Any] = {}
        self.last_at: float | None = None  # epoch seconds
        self.fraction: float | None = None  # of the budget
        self.elapsed_s = 0.0
        self._next_check = FEWEST

    def add(self, record: Mapping[str, Any], read_at: float) -> Iterator[Alert]:
        """Take a record; `read_at` (epoch s) stands in for a time it does not have."""
        self._take_time(record, read_at)
        self.last = record
        if (alert := self._nan(record)) is not None:
            yield alert
            return
        self._take(record)
        if (alert := self._overfitting(record)) is not None:
            yield alert
        if self.losses.count >= self._next_check:
            self._next_check = self.losses.count + max(CHECK_EVERY, self.losses.count // 50)
            for rule in (self._rising, self._flat, self._slow, self._growing):
                if (alert := rule()) is not None:
                    yield alert

    # -- taking a record -----------------------------------------------------------------------------------------------

    def _take_time(self, record: Mapping[str, Any], read_at: float) -> None:
        try:
            at = clock.parse(str(record["time"])).timestamp()
        except (KeyError, ValueError):
            at = read_at
        if self.last_at is not None and at > self.last_at:
            self.intervals.append(at - self.last_at)
            self.longest_pause_s = max(self.longest_pause_s, at - self.last_at)
        self.last_at = at

    def _take(self, record: Mapping[str, Any]) -> None:
        self.elapsed_s = _number(record, "elapsed_s") or self.elapsed_s
        self.fraction = _first(_number(record, "progress"), self.fraction)
        loss = _loss(record)
        if loss is None:
            return
        rate = _first(_number(record, "lr"), _number(record, "learning_rate"), 0.0)
        assert rate is not None
        if len(self.first) < FIRST:
            self.first.append(loss)
        self.losses.add(loss)
        self.rates.add(rate)
        self.recent.append((loss, rate))
        if (speed := _number(record, "tokens_per_s")) is not None:
            self.speeds.append((self.elapsed_s, speed))
            self.usual_speed.add(speed)
        if (memory := _number(record, "memory_bytes")) is not None:
            self.memory.add(memory)

    # -- the loss ------------------------------------------------------------------------------------------------------

    def _nan(self, record: Mapping[str, Any]) -> Alert | None:
        for name in ("loss", "train_loss", *VALIDATIONS):
            value = record.get(name)
            if isinstance(value, float) and not math.isfinite(value):
                step = record.get("step")
                before = {"loss_before": _loss(self.last)} if _loss(self.last) is not None else {}
                numbers = {"step": step, name: value, "lr": _number(record, "lr")} | before
                return Alert("nan", f"{name} is {value} at step {step}", _known(numbers), (_line(record),))
        return None

    def _rising(self) -> Alert | None:
        """Suddenly, within the latest records, or slowly, over the whole run."""
        losses, rates = zip(*self.recent, strict=True)
        return _risen(losses, rates, self.last) or _risen(self.losses.values(), self.rates.values(), self.last)

    def _flat(self) -> Alert | None:
        """It has learnt nothing since its start; or it has settled although its rate is high and there is time left."""
        if self.fraction is None:
            ready = self.losses.count >= FLAT_RECORDS
        else:
            ready = FLAT_FROM <= self.fraction <= FLAT_UNTIL
        losses = blocks(self.losses.values())
        if not ready or not losses:
            return None
        level, now = abs(losses[-1]), fmean(losses[-4:])
        spread = noise(losses)
        fall = fmean(losses[:2]) - now
        since_first = median(self.first) - now
        at_most = fall + SURE_OF_FLAT * spread * math.sqrt(1 / 2 + 1 / 4)
        if at_most < NOT_LEARNT * level and since_first < LEARNT_AT_ONCE * level:
            return self._flat_alert("the loss has not fallen since the run began", fall, at_most)
        rates = blocks(self.rates.values())
        if self.fraction is None or rates[-1] <= 0 or rates[-1] < 0.5 * max(rates):
            return None
        half = losses[BLOCKS // 2 :]
        trend, error = slope(half)
        span = len(half) - 1
        at_most, at_least = (-trend + T_999 * error) * span, (-trend - T_999 * error) * span
        if at_most < NO_LONGER_FALLING * level and at_least > -RISE * level:
            words = "the loss has stopped falling: over the latest half of the run so far"
            return self._flat_alert(words, -trend * span, at_most)
        return None

    def _flat_alert(self, words: str, fall: float, at_most: float) -> Alert:
        numbers = {"step": self.last.get("step"), "fall": fall, "fall_at_most": at_most, "loss": _loss(self.last)}
        if self.fraction is not None:
            numbers["fraction"] = self.fraction
        text = f"{words} (it fell by {shown(fall)}, at most by {shown(max(at_most, 0.0))})"
        return Alert("loss_flat", text, _known(numbers), (_line(self.last),))

    # -- validation ----------------------------------------------------------------------------------------------------

    def _overfitting(self, record: Mapping[str, Any]) -> Alert | None:
        """Validations grow worse in a row while the training loss falls. Full and quick ones are not compared."""
        name = next((n for n in VALIDATIONS if _number(record, n) is not None), None)
        losses = [loss for loss, _ in self.recent]
        if name is None or not losses:
            return None
        kind = f"{name} {record.get('val_kind', '')}".strip()
        value = _number(record, name)
        assert value is not None
        training = median(losses[-64:])
        seen = self.validations.setdefault(kind, deque(maxlen=WORSE_IN_A_ROW))
        here = (int(_number(record, "step") or 0), value, training)
        seen.append(here)
        if kind not in self.best or value < self.best[kind][1]:
            self.best[kind] = here
            return None
        best = self.best[kind]
        worse = len(seen) == WORSE_IN_A_ROW and all(v > best[1] * (1 + WORSE) and step > best[0] for step, v, _ in seen)
        growing = seen[-1][1] >= seen[0][1]
        sure = noise(losses[-64:]) * SURE / math.sqrt(min(64, len(losses)))
        if not (worse and growing and best[2] - training > sure):
            return None
        numbers = {"step": here[0], name: value, "best": best[1], "best_step": best[0]}
        numbers |= {"loss_at_best": best[2], "loss": training}
        text = (
            f"{name} has risen from {shown(best[1])} at step {best[0]} to {shown(value)} at step {here[0]}, while the "
            f"training loss fell from {shown(best[2])} to {shown(training)}"
        )
        return Alert("overfitting", text, numbers, (_line(record),))

    # -- speed and memory ----------------------------------------------------------------------------------------------

    def _slow(self) -> Alert | None:
        """For two minutes on end nearly every step was far below the run's own usual rate."""
        latest = [speed for at, speed in self.speeds if at > self.elapsed_s - SLOW_S]
        usual_values = self.usual_speed.values()
        covered = bool(self.speeds) and self.speeds[0][0] <= self.elapsed_s - SLOW_S
        if not covered or len(latest) < 16 or len(usual_values) < FEWEST:
            return None
        usual = median(usual_values)
        now, high = median(latest), sorted(latest)[len(latest) * 9 // 10]
        if now >= SLOW * usual or high >= usual:
            return None
        numbers = {"step": self.last.get("step"), "tokens_per_s": now, "usual_tokens_per_s": usual, "seconds": SLOW_S}
        text = f"{shown(now)} tokens/s over the last {SLOW_S:.0f} s, {now / usual:.0%} of its usual {shown(usual)}"
        return Alert("throughput_falling", text, numbers, (_line(self.last),))

    def _growing(self) -> Alert | None:
        """It grows all the time, and either by half already or so fast that it will not fit to the end."""
        sizes = blocks(self.memory.values())[BLOCKS // 4 :]
        if not sizes or self.elapsed_s < GROWTH_S:
            return None
        steps = [second - first for first, second in pairwise(sizes)]
        growth = sizes[-1] - sizes[0]
        third = len(steps) // 3
        levelling_off = sum(steps[-third:]) < 0.8 * sum(steps[:third])
        if sum(step > 0 for step in steps) < len(steps) - 1 or levelling_off:
            return None
        seconds = self.elapsed_s * (BLOCKS - BLOCKS // 4 - 1) / BLOCKS
        at_end = None
        if self.fraction and 0.2 < self.fraction < 1:
            at_end = sizes[-1] + growth / seconds * self.elapsed_s * (1 - self.fraction) / self.fraction
        too_much = at_end is not None and self.memory_total is not None and at_end > self.memory_total
        if growth < GROWTH * sizes[0] and not (too_much and growth > 0.05 * sizes[0]):
            return None
        numbers = {
            "step": self.last.get("step"),
            "memory_bytes": int(sizes[-1]),
            "growth_bytes": int(growth),
            "bytes_per_hour": int(growth / seconds * 3600),
            "at_end_bytes": None if at_end is None else int(at_end),
            "memory_total_bytes": self.memory_total,
        }
        text = f"memory grows all the time: by {growth / 1e9:.2f} GB in {seconds:.0f} s, now {sizes[-1] / 1e9:.2f} GB"
        if too_much and at_end is not None:
            text += f"; it would be {at_end / 1e9:.1f} GB at the end, more than there is"
        return Alert("memory_growing", text, _known(numbers), (_line(self.last),))

    # -- what does not come --------------------------------------------------------------------------------------------

    def stalled(self, now: float, watched_since: float) -> Alert | None:
        """No record for much longer than ever before in this run, while it was watched (epoch s): a machine that slept
        is no stall, nor is a long evaluation at the end.
        """
        if self.last_at is None or len(self.intervals) < 8 or (self.fraction or 0.0) >= 1:
            return None
        usual = median(self.intervals)
        limit = max(STALL_FACTOR * usual, PAUSE_FACTOR * self.longest_pause_s, STALL_S)
        silent = now - max(self.last_at, watched_since)
        if silent <= limit:
            return None
        numbers = {"step": self.last.get("step"), "silent_s": silent, "usual_s": usual, "times": silent / usual}
        numbers["longest_pause_s"] = self.longest_pause_s
        text = f"no step for {silent:.0f} s; they usually come every {shown(usual)} s, the longest pause was "
        text += f"{self.longest_pause_s:.0f} s"
        return Alert("stalled", text, _known(numbers), (_line(self.last),))


def _risen(losses: Any, rates: Any, last: Mapping[str, Any]) -> Alert | None:
    """The latest quarter of `losses` lies above the best stretch of that length before it, and does not come back."""
    levels, steps = blocks(losses), blocks(rates)
    if not levels or len(losses) < FEWEST:
        return None
    length = BLOCKS // 4
    now = median(levels[-length:])
    starts = range(len(levels) - 2 * length + 1)
    begin = min(starts, key=lambda i: median(levels[i : i + length]))
    best = median(levels[begin : begin + length])
    rise = now - best
    coming_back = fmean(levels[-length // 2 :]) < fmean(levels[-length : -length // 2])
    distance = len(levels) - length - begin  # stretches between the two
    worth = RISE if fmean(steps[-length:]) <= 1.1 * fmean(steps[begin : begin + length]) else RISE_AFTER_RATE_ROSE
    # losses that hang together wander as a random walk does, by the root of the distance; so far is no rise
    sure = SURE_OF_RISE * wandering(levels[begin // 2 : -length]) * math.sqrt(distance)
    if coming_back or rise <= max(worth * abs(best), sure):
        return None
    numbers = {"step": last.get("step"), "loss": now, "best": best, "rise": rise, "noise": sure / SURE_OF_RISE}
    text = f"the loss is rising: {shown(now)} now, {shown(best)} at its best"
    return Alert("loss_rising", text, _known(numbers), (_line(last),))


def _loss(record: Mapping[str, Any]) -> float | None:
    return _first(_number(record, "loss"), _number(record, "train_loss"))


def _number(record: Mapping[str, Any], name: str) -> float | None:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _known(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in numbers.items() if value is not None}


def _line(record: Mapping[str, Any]) -> str:
    """A record of the metrics as a line of evidence."""
    return "metrics.jsonl: " + ", ".join(f"{name} {shown(value)}" for name, value in record.items())
