"""How a step is shared out: every device takes equally many parts of `batch.rows` rows. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workspace.errors import Refused

if TYPE_CHECKING:
    from training.config import TrainingConfig


def fitting(tokens: int, rows: int, context: int, devices: int) -> tuple[int, int]:
    """The `batch.tokens` nearest to these that `devices` can share, and their `batch.rows`: at most these and, as long
    as a step has so many for each, at least half of them.
    """
    each = context * devices
    most = max(1, min(rows, tokens // each))

    def step(part: int) -> int:
        return part * each * max(1, round(tokens / (part * each)))

    best = min(range((most + 1) // 2, most + 1), key=lambda part: (abs(step(part) - tokens), -part))
    return step(best), best


def check(config: TrainingConfig, devices: int, *, source: str = "configuration", by: str | None = None) -> None:
    """Raises `Refused`, with what would do, when `devices` cannot share a step. `by`: what they are called."""
    tokens, rows, context = config.batch.tokens, config.batch.rows, config.data.context
    if tokens % (rows * context * devices) == 0:
        return
    other_tokens, other_rows = fitting(tokens, rows, context, devices)
    changes = [f"batch.tokens = {other_tokens}"] if other_tokens != tokens else []
    changes += [f"batch.rows = {other_rows}"] if other_rows != rows else []
    raise Refused(
        f"{source}: batch.tokens = {tokens} cannot be shared by {by or f'{devices} devices'}",
        valid=f"a multiple of batch.rows x data.context x {devices} = {rows} x {context} x {devices}",
        fix=" and ".join(changes),
    )
