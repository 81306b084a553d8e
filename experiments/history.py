"""What was tried, by category: how often, and with what success."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from experiments.ledger import Ledger
from experiments.words import count


class Category(BaseModel):
    """The experiments of one category that have a verdict."""

    model_config = ConfigDict(frozen=True)

    name: str
    tried: int
    kept: int
    crashed: int
    best_effect: float | None = Field(None, description="largest gain that was kept, in its metric's units")
    last: str = Field(description="the newest of them")

    def __str__(self) -> str:
        best = "" if self.best_effect is None else f" (largest gain {self.best_effect:.3g})"
        crashed = f", {self.crashed} crashed" if self.crashed else ""
        return f"{self.name}: {count(self.tried, 'experiment')}, {self.kept} kept{best}{crashed}, last {self.last}"


def categories(ledger: Ledger, limit: int = 50) -> list[Category]:
    """Most tried first; experiments without a category are left out."""
    rows = ledger.database.query(
        "SELECT category AS name, count(*) AS tried, sum(verdict = 'keep') AS kept, sum(verdict = 'crash') AS crashed,"
        " max(CASE WHEN verdict = 'keep' THEN effect END) AS best_effect, 'exp-' || printf('%04d', max(number)) AS last"
        " FROM experiments WHERE category IS NOT NULL AND state IN ('record', 'done')"
        " GROUP BY category ORDER BY tried DESC, category LIMIT ?",
        (limit,),
    )
    return [Category.model_validate(dict(row)) for row in rows]
