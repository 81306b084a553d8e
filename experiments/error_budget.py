"""The error budget: how much false belief a campaign may buy, handed out to its experiments. Pure, no I/O.

A campaign may keep a change without effect with probability at most `total`. Each experiment is given an `alpha` of
that before it starts; by the union bound the campaign's error is at most the sum of what was spent.

What counts as spent (`charge`):

- the alpha of an experiment whose deciding runs were looked at and that was not kept;
- the alpha of an experiment still under way, as if it were spent: it may yet be;
- nothing for an experiment that ended before (screened out, crash, no effect, invalid): its deciding runs are fresh
  ones that never were made, so it had no chance of a keep (see `experiments.verdict`);
- nothing for one that was kept: until the first false keep every keep is a true one, and a true one spends no error
  (the fallback principle; Wiens 2003, Pharm. Stat. 2:211; online: Tian & Ramdas 2021, Stat. Methods Med. Res. 30:976).

The shares form a series that converges to `total`, so a campaign may be extended for ever and stays valid: it only
gets harder to convince. Shares depend on nothing but how many were charged before and on `planned`, which is fixed
with the campaign and not changed by an extension. The lab takes `LONE_PLANNED` for a campaign that is meant for fewer:
otherwise a campaign for each idea would start the budget anew with a larger share each time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# of the proposals without effect, the share that gets past the first look at most (measured: `lab-mcp simulate`)
PASSES = 0.25
FIRST_BLOCK = 0.9  # of the total, for the planned proposals; each block of as many after that halves the rest
SMALLEST = 1e-12  # what is given where nothing is left: no keep is possible
LONE_PLANNED = 80  # experiments outside a campaign: as many a week before it gets harder


@dataclass(frozen=True)
class ErrorBudget:
    """`total`: probability of a false keep in the whole campaign; `planned`: proposals it is meant for, None: unknown.

    Experiments outside any campaign belong to the standing campaign of the workspace's calendar week (`week_of`):
    each week has one budget of `total` for all of them together.
    """

    total: float = 0.05
    planned: int | None = 80

    def __post_init__(self) -> None:
        if not 0 < self.total < 1:
            raise ValueError(f"an error budget lies between 0 and 1, not at {self.total:g}")
        if self.planned is not None and self.planned < 1:
            raise ValueError("a campaign is planned for at least one proposal")

    def allot(self, spent: Sequence[float]) -> float:
        """The alpha of the next experiment, given what `charge` said of each earlier one (zeros may be left out).

        Together with all that was spent it never exceeds `total`, whatever was charged before, as long as that was no
        more than was given.
        """
        charged = [alpha for alpha in spent if alpha > 0]
        size = max(1, math.ceil((LONE_PLANNED if self.planned is None else self.planned) * PASSES))
        block = len(charged) // size
        share = FIRST_BLOCK if block == 0 else (1 - FIRST_BLOCK) / 2**block
        left = self.total - math.fsum(charged)
        # a campaign whose budget came from elsewhere (an import, an older rule) may have less left than the series has
        return max(min(self.total * share / size, left / 2), SMALLEST)


def campaign_budget(planned: int | None, total: float = 0.05) -> ErrorBudget:
    """The budget of a campaign planned for so many proposals; None: unknown, or experiments outside any campaign.

    Many small campaigns, one for each idea, must not buy keeps more cheaply than one large campaign does.
    """
    return ErrorBudget(total=total, planned=max(planned or LONE_PLANNED, LONE_PLANNED))


def charge(alpha: float, *, ended: bool, confirmed: bool, kept: bool) -> float:
    """What one experiment takes from the budget. `confirmed`: its deciding (fresh) runs were looked at."""
    if not ended:
        return alpha
    return alpha if confirmed and not kept else 0.0


def confirmed(method: str | None) -> bool:
    """Were an experiment's deciding, fresh runs looked at? `method`: of its verdict's numbers, None without any. One
    in which nothing varied is taken to have come that far."""
    return method not in (None, "screen")


def week_of(at: str) -> str:
    """The standing campaign a lone experiment belongs to, from its ISO 8601 time of proposal: `2026-W47`."""
    from datetime import datetime

    year, week, _ = datetime.fromisoformat(at).isocalendar()
    return f"{year}-W{week:02d}"
