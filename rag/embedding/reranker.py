"""An optional cross-encoder: reads query and passage together, which ranks better than vectors and takes longer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from workspace.errors import Unavailable

RERANKED = 30  # passages it reads for one query


class Reranker:
    """A model sentence-transformers knows as a cross-encoder, by name or from a folder. Thread-safe.

    Raises `Unavailable` when it cannot be loaded, with what to do.
    """

    def __init__(self, model: str) -> None:
        from sentence_transformers import CrossEncoder

        self._one_by_one = threading.Lock()
        try:
            self._model: Any = CrossEncoder(model, device="cpu")
        except (OSError, ValueError, RuntimeError) as error:
            raise Unavailable(
                f"the reranker {model!r} cannot be loaded ({str(error).splitlines()[0][:200]})",
                valid="a local folder, or a name on the Hugging Face hub; empty for none",
                fix="correct [rag] reranker in lab.toml; for the hub set [network] hub = true",
            ) from error

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers the query; higher is better."""
        if not texts:
            return []
        with self._one_by_one:
            found = self._model.predict([(query, text) for text in texts], show_progress_bar=False)
        return [float(value) for value in found]
