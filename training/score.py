"""A score: bits per byte with what it was made of. No torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

LONGEST_EXPONENT = 700.0  # of e: beyond, a float overflows


@dataclass(frozen=True)
class Evaluation:
    """Loss in nats a token, perplexity a token, bits a byte, over so many tokens and bytes.

    bpb = sum of nats over the scored tokens / (ln 2 x raw bytes of those tokens)
    """

    val_loss: float
    perplexity: float
    val_bpb: float
    tokens: int
    bytes: int

    @classmethod
    def of(cls, nats: float, tokens: int, size: int) -> Evaluation:
        """From the sum of nats over `tokens` tokens of `size` raw bytes. Raises ValueError when there is no byte."""
        if size == 0:
            raise ValueError("the rows hold no byte to score")
        mean = nats / tokens
        perplexity = math.exp(mean) if mean < LONGEST_EXPONENT else math.inf
        return cls(mean, perplexity, nats / (math.log(2) * size), tokens, size)

    def as_json(self) -> dict[str, float | None]:
        """JSON has no infinity: a perplexity beyond the numbers is None."""
        return asdict(self) | {"perplexity": self.perplexity if math.isfinite(self.perplexity) else None}
