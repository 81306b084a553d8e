"""A night of keep-if-better looked at again: which keeps are more than noise, when every row is one run.

A comparison of one run with one run has the standard error sd * sqrt(2). Every row with a score was a chance of a
false keep, so the error of the night is divided among all of them (Bonferroni): if no change did anything and noise
is normal with this sd, the chance of any false keep is at most the error budget.

Where the noise itself comes from, best first:

    given       by whoever knows it; its own uncertainty is then not included
    repeats     rows with the same commit: the pooled spread within them
    discards    the spread of the discards between two keeps, by Rousseeuw and Croux' Q_n (1993, JASA 88:1273): the
                first quartile of the pairwise distances, which changes that really harm can widen but not ruin.
                The discards differ by their changes, so this is rather too large than too small.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from experiments.hypothesis import Direction
from experiments.imported import Imported, Row
from experiments.words import count
from workspace.errors import Refused

Call = Literal["beyond noise", "one look only", "within noise", "no gain"]
Source = Literal["given", "repeats", "discards"]
QN = 1 / (math.sqrt(2) * statistics.NormalDist().inv_cdf(0.625))  # first quartile of |X - Y| to standard deviation
QN_EFFICIENCY = 0.6  # measured on simulated nights of 80 changes that do nothing: so many fewer degrees of freedom
FEWEST_DISCARDS = 8
LONGEST_STRETCH = 200  # discards compared pair by pair; a longer stretch is cut into such pieces
MOST_PAIRS = 1_000_000  # distances looked at, of pieces spread evenly over the file
FEWEST_REPEATS = 4  # degrees of freedom, where the discards could be used instead
POWER = 0.8


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Noise(Frozen):
    """The standard deviation of one run, with the 90 % interval of that figure."""

    source: Source
    sd: float
    low: float
    high: float
    df: float | None = Field(description="degrees of freedom; None = taken as known")
    text: str


class Judged(Frozen):
    """A row the file kept, against the row it was kept over."""

    line: int
    commit: str
    description: str
    score: float
    before: float
    gain: float = Field(description="positive = better")
    p: float | None = Field(None, description="one-sided, one look")
    p_night: float | None = Field(None, description="the same, for as many tries as the night had")
    call: Call | None = Field(None, description="None: the noise is not known")


class Rejudged(Frozen):
    name: str
    metric: str
    direction: Direction
    sessions: int
    tried: int = Field(description="rows with a score, baselines not counted")
    counts: dict[str, int] = Field(description="rows by status, as the file has it")
    noise: Noise | None
    other_noise: list[Noise] = Field([], description="what other sources would have said")
    error_budget: float
    threshold: float | None = Field(description="the gain one run must show to be kept, at the error budget")
    detectable: float | None = Field(description="the true gain that is found with a probability of 80 %")
    keeps: list[Judged]
    calls: dict[str, int]
    beyond_range: list[int] | None = Field(description="keeps beyond noise, were the noise at its upper, lower limit")
    would_keep: list[Judged] = Field(description="what this rule would have kept, each against its own last keep")
    lucky_keeps: float = Field(description="keeps to expect from keep-if-better when no change does anything")
    best_gain: float | None = Field(None, description="of the best score over its baseline")
    best_gain_low: float | None = Field(None, description="its lower limit, allowing for having picked the best")
    statements: list[str] = Field(description="what this means, and how sure it is, in words")
    problems: list[str] = Field([], description="what in the file could not be read, by line and column")
    notes: list[str] = Field([], description="what was made of oddities")


def rejudge(
    found: Imported, *, noise: float | None = None, direction: Direction = "lower", error_budget: float = 0.05
) -> Rejudged:
    """Judge the keeps of a file again. Raises `Refused` for a noise or an error budget that cannot be."""
    if noise is not None and not (math.isfinite(noise) and noise > 0):
        raise Refused(f"a noise of {noise:g} is not possible", valid="a standard deviation above 0")
    if not 0 < error_budget < 0.5:
        raise Refused(f"an error budget of {error_budget:g} is not possible", valid="between 0 and 0.5")
    sign = 1.0 if direction == "higher" else -1.0
    scored = [row for row in found.rows if row.score is not None]
    tries = [row for row in scored if not row.baseline]
    given = _given(noise) if noise is not None else None
    repeats, discards = _repeats(scored), _discards(scored)
    chosen = given or _first(repeats, discards)
    share = error_budget / max(1, len(tries))
    limit = None if chosen is None else _threshold(chosen, share)
    keeps = [_judged(row, before, sign, chosen, share, len(tries)) for row, before in _kept(scored)]
    best = _best_gain(scored, sign)
    rejudged = Rejudged(
        name=found.name, metric=found.metric, direction=direction,
        sessions=len({row.session for row in found.rows}), tried=len(tries),
        counts={name: sum(row.status == name for row in found.rows) for name in ("keep", "discard", "crash", "skip")},
        noise=chosen, other_noise=[n for n in (repeats, discards) if n is not None and n is not chosen],
        error_budget=error_budget, threshold=limit,
        detectable=None if chosen is None or limit is None else limit + _quantile(POWER, chosen.df) * _error(chosen),
        keeps=keeps, calls={c: n for c in Call.__args__ if (n := sum(k.call == c for k in keeps))},  # type: ignore[attr-defined]
        beyond_range=None if chosen is None else [
            sum(k.gain > _threshold(chosen.model_copy(update={"sd": sd, "df": None}), share) for k in keeps)
            for sd in (chosen.high, chosen.low)
        ],
        would_keep=[] if chosen is None or limit is None else _replay(scored, sign, chosen, limit, share, len(tries)),
        lucky_keeps=sum(_lucky(scored, session) for session in {row.session for row in scored}),
        best_gain=best, best_gain_low=None if best is None or limit is None else best - limit, statements=[],
        problems=[str(problem) for problem in found.problems], notes=found.notes,
    )  # fmt: skip
    return rejudged.model_copy(update={"statements": _statements(rejudged)})


# -- noise ------------------------------------------------------------------------------------------------------------


def _given(sd: float) -> Noise:
    text = f"The noise of one run, {_n(sd)}, was given; how sure that figure is, is not included."
    return Noise(source="given", sd=sd, low=sd, high=sd, df=None, text=text)


def _repeats(rows: Sequence[Row]) -> Noise | None:
    """From rows of one session with the same commit."""
    groups: dict[tuple[int, str], list[float]] = defaultdict(list)
    for row in rows:
        if row.commit and row.score is not None:
            groups[row.session, row.commit].append(row.score)
    repeated = [scores for scores in groups.values() if len(scores) > 1]
    df = sum(len(scores) - 1 for scores in repeated)
    squares = sum(statistics.variance(scores) * (len(scores) - 1) for scores in repeated)
    if not df or not squares:
        return None
    runs = sum(map(len, repeated))
    text = f"from {runs} runs of {count(len(repeated), 'commit')} that the file holds several times"
    return _noise("repeats", math.sqrt(squares / df), float(df), text)


def _discards(rows: Sequence[Row]) -> Noise | None:
    """From the discards between one keep and the next: they were all compared with the same recipe."""
    stretches: list[list[float]] = [[]]
    session = None
    for row in rows:
        if row.session != session or row.status == "keep":
            session = row.session
            stretches.append([])
        if row.status == "discard" and row.score is not None:
            stretches[-1].append(row.score)
    pieces = [piece for scores in stretches for piece in _pieces(scores) if len(piece) > 1]
    pairs = sum(math.comb(len(piece), 2) for piece in pieces)
    used = pieces[:: max(1, math.ceil(pairs / MOST_PAIRS))]
    total = sum(map(len, used))
    distances = sorted(abs(a - b) for scores in used for a, b in itertools.combinations(scores, 2))
    if total < FEWEST_DISCARDS or len(used) == total:
        return None
    sd = QN * distances[(len(distances) - 1) // 4]
    if not sd:
        return None
    text = (
        f"estimated from the spread of {total} discards between keeps. The interval holds if these changes did "
        "nothing; if some did harm, the noise is smaller than this, and too little is believed rather than too much. "
        "It knows nothing of drift between days or machines"
    )
    return _noise("discards", sd, max(1.0, math.floor(QN_EFFICIENCY * (total - len(used)))), text)


def _pieces(scores: Sequence[float]) -> list[Sequence[float]]:
    """As few equal pieces of neighbours as are short enough."""
    count = math.ceil(len(scores) / LONGEST_STRETCH)
    edges = [i * len(scores) // count for i in range(count + 1)] if count else [0]
    return [scores[a:b] for a, b in itertools.pairwise(edges)]


def _noise(source: Source, sd: float, df: float, how: str) -> Noise:
    from scipy.special import chdtri  # inverse of the upper tail

    low, high = sd * math.sqrt(df / chdtri(df, 0.05)), sd * math.sqrt(df / chdtri(df, 0.95))
    text = f"The noise of one run is about {_n(sd)} (90% interval {_n(low)} to {_n(high)}), {how}."
    return Noise(source=source, sd=sd, low=low, high=high, df=df, text=text)


def _first(repeats: Noise | None, discards: Noise | None) -> Noise | None:
    if repeats is not None and (discards is None or (repeats.df or 0) >= FEWEST_REPEATS):
        return repeats
    return discards or repeats


# -- the rows ---------------------------------------------------------------------------------------------------------


def _kept(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """The file's keeps, each with the score it was kept over; baselines are kept over nothing."""
    found, incumbent = list[tuple[Row, float]](), math.nan
    for row in rows:
        assert row.score is not None
        if row.baseline:
            incumbent = row.score
        elif row.status == "keep":
            found.append((row, incumbent))
            incumbent = row.score
    return found


def _replay(rows: Sequence[Row], sign: float, noise: Noise, limit: float, share: float, tries: int) -> list[Judged]:
    """Keep only what passes the threshold over the last row kept so.

    A row stands for the recipe as it was then, with everything the file had kept before it.
    """
    found, incumbent = list[Judged](), math.nan
    for row in rows:
        assert row.score is not None
        if row.baseline:
            incumbent = row.score
        elif sign * (row.score - incumbent) > limit:
            found.append(_judged(row, incumbent, sign, noise, share, tries))
            incumbent = row.score
    return found


def _judged(row: Row, before: float, sign: float, noise: Noise | None, share: float, tries: int) -> Judged:
    assert row.score is not None
    gain = sign * (row.score - before)
    judged = Judged(
        line=row.line, commit=row.commit, description=row.description, score=row.score, before=before, gain=gain
    )
    if noise is None:
        return judged
    p = _tail(gain / _error(noise), noise.df)
    call: Call = "within noise"
    if gain <= 0:
        call = "no gain"
    elif p < share:
        call = "beyond noise"
    elif p < share * tries:
        call = "one look only"
    return judged.model_copy(update={"p": p, "p_night": min(1.0, p * tries), "call": call})


def _best_gain(rows: Sequence[Row], sign: float) -> float | None:
    """The largest gain of a session's best score over the session's own baseline."""
    start = {row.session: row.score for row in rows if row.baseline}
    gains = [sign * (row.score - start[row.session]) for row in rows if not row.baseline]  # type: ignore[operator]
    return max(gains, default=None)


def _lucky(rows: Sequence[Row], session: int) -> float:
    """Records among n exchangeable scores after the first: 1/2 + 1/3 + ... + 1/n."""
    return sum(1 / k for k in range(2, sum(row.session == session for row in rows) + 1))


# -- words ------------------------------------------------------------------------------------------------------------


def _statements(r: Rejudged) -> list[str]:
    said = [
        f"{count(r.tried, 'change')} with a score in {count(r.sessions, 'session')}: {len(r.keeps)} kept by the "
        f"file's own rule; {count(r.counts['crash'], 'crash', 'crashes')}.",
        f"If none of them did anything, keep-if-{r.direction} would still keep about {r.lucky_keeps:.1f}.",
    ]
    if r.noise is None:
        said.append(
            "How large the noise of one run is cannot be told from this file: no commit is in it twice, and there are "
            f"fewer than {FEWEST_DISCARDS} discards to compare. Nothing is re-judged. Run the baseline three times or "
            "more and give the standard deviation with --noise."
        )
        return said
    said.append(r.noise.text)
    said += [f"Another estimate would be {_n(n.sd)} ({n.source}, {_n(n.low)} to {_n(n.high)})." for n in r.other_noise]
    assert r.threshold is not None and r.detectable is not None and r.beyond_range is not None
    beyond = r.calls.get("beyond noise", 0)
    line = (
        f"Of {count(len(r.keeps), 'keep')}, {beyond} {'is' if beyond == 1 else 'are'} beyond noise at an error budget "
        f"of {r.error_budget:.0%} for the whole night: a single run must gain more than {_n(r.threshold)}"
    )
    if r.beyond_range[0] != r.beyond_range[1]:
        line += f"; with the noise at the ends of its interval it would be {r.beyond_range[0]} to {r.beyond_range[1]}"
    said.append(line + ".")
    lines = ", ".join(str(kept.line) for kept in r.would_keep)
    said.append(
        f"Kept step by step, each over the last one kept so: {count(len(r.would_keep), 'row')}"
        + (f" (line {lines}); a row stands for the recipe as it was then, with all that was in it." if lines else ".")
    )
    for call, meaning in (
        ("one look only", "would pass as a single question, but not among so many"),
        ("within noise", "cannot be told from chance"),
        ("no gain", "scored no better than what they replaced (kept for another reason)"),
    ):
        if number := r.calls.get(call, 0):
            said.append(f"{count(number, 'keep')} {meaning}.")
    said.append(
        f"Within noise does not mean without effect: with one run a change, a true gain must be about "
        f"{_n(r.detectable)} to be found four times out of five."
    )
    if r.best_gain is not None and r.best_gain_low is not None:
        said.append(
            f"The best score lies {_n(r.best_gain)} from its baseline; allowing for having been picked among "
            f"{r.tried}, the recipe behind it is better by "
            + (f"at least {_n(r.best_gain_low)}." if r.best_gain_low > 0 else "an amount this file cannot show.")
        )
    said.append(
        "All this holds for normal noise of one size and rows of one session that are comparable; drift during the "
        "night would make the noise larger than estimated from neighbours."
    )
    if r.problems:
        said.append(f"{count(len(r.problems), 'row')} could not be read in full; see the problems.")
    return said


def _n(value: float) -> str:
    return f"{value:.3g}"


def _error(noise: Noise) -> float:
    return noise.sd * math.sqrt(2)


def _threshold(noise: Noise, share: float) -> float:
    return _quantile(1 - share, noise.df) * _error(noise)


def _quantile(probability: float, df: float | None) -> float:
    if df is None:
        return statistics.NormalDist().inv_cdf(probability)
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))


def _tail(t: float, df: float | None) -> float:
    """P(T > t)."""
    if df is None:
        return statistics.NormalDist().cdf(-t)
    from scipy.special import stdtr

    return float(stdtr(df, -t))
