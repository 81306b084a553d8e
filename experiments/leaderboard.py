"""The kept experiments, best first: those whose scores can be compared, and how many cannot."""

from __future__ import annotations

from typing import NamedTuple

from experiments.ledger import Ledger
from experiments.record import ExperimentRecord
from experiments.words import count


class Leaderboard(NamedTuple):
    experiments: list[ExperimentRecord]  # best first
    left_out: str | None  # in words, which kept ones are not among them


def leaderboard(ledger: Ledger, limit: int, metric: str | None = None) -> Leaderboard:
    """The kept experiments judged by `metric`, measured as the newest of them was, by the mean of their runs.

    Default: the metric of the newest kept one.
    """
    rows = ledger.database.query(
        "SELECT metric, yardstick, count(*) AS kept, json_extract(document, '$.hypothesis.direction') AS direction,"
        " max(number) AS newest FROM experiments WHERE verdict = 'keep' AND state IN ('record', 'done')"
        " GROUP BY metric, yardstick ORDER BY newest DESC"
    )
    chosen = next((row for row in rows if metric in (None, row["metric"])), None)
    if chosen is None:
        return Leaderboard([], None)
    higher = chosen["direction"] == "higher"
    found = ledger.leaders(chosen["metric"], higher, max(1, min(limit, 100)), chosen["yardstick"])
    alike = [row["kept"] for row in rows if row["metric"] == chosen["metric"]]
    reasons = {
        "measured with another budget, text or evaluation": sum(alike) - chosen["kept"],
        f"not judged by {chosen['metric']}": sum(row["kept"] for row in rows) - sum(alike),
    }
    words = [f"{count(n, 'kept experiment')} {why}" for why, n in reasons.items() if n]
    left_out = f"Left out, as their scores cannot be compared with these: {'; '.join(words)}." if words else None
    return Leaderboard(found, left_out)
