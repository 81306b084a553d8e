"""Earlier experiments that changed the same settings: what somebody should know before trying once more."""

from __future__ import annotations

import math
from typing import Any

from experiments.hypothesis import Hypothesis
from experiments.ledger import Ledger
from experiments.record import Duplicate

LOOKED_AT = 100
NAMED = 3


def similar(ledger: Ledger, claim: Hypothesis) -> list[Duplicate]:
    """Ended experiments with the same metric and the very same settings changed, the nearest values first."""
    if not claim.change:
        return []
    found = []
    for record in ledger.find(limit=LOOKED_AT, text=" ".join(claim.change)):
        other = record.hypothesis
        same = other.change.keys() == claim.change.keys() and other.metric == claim.metric
        if same and other.patch == claim.patch and record.state in ("record", "done"):
            found.append((sum(_apart(claim.change[key], other.change[key]) for key in claim.change), record))
    found.sort(key=lambda pair: pair[0])
    return [
        Duplicate(experiment=r.id, verdict=r.verdict, sentence=r.sentence, exact=apart == 0)
        for apart, r in found[:NAMED]
    ]


def question(found: list[Duplicate], claim: Hypothesis) -> str | None:
    """What to ask whoever proposes it; None when there is nothing to ask."""
    tried = [d for d in found if d.verdict in ("discard", "inconclusive", "crash", "no_effect")]
    if not tried or claim.changed_assumption or claim.repeat_of:
        return None
    names = ", ".join(f"{d.experiment} ({d.verdict})" for d in tried)
    return f"Much like {names}: which assumption has changed since? Say it in changed_assumption."


def _apart(a: Any, b: Any) -> float:
    """0 for equal values; numbers of one sign by their ratio, anything else simply different."""
    if a == b:
        return 0.0
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (a, b))
    return abs(math.log(a / b)) if numbers and a * b > 0 else 1.0
