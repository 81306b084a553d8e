"""From a corpus to token files, once: `.lab/cache/data/<key>/`, where the key says what went in.

Documents are split by a hash of their text into train, validation (what a search may look at) and audit (what nothing
but the final audit sees; sealed, and never handed to a training process).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training import corpus, tokens
from training.config import DataConfig
from training.corpus import DataProblem
from training.sealed import vault
from training.tokenizer import ByteTokenizer
from workspace import durable
from workspace.layout import Workspace

FORMAT = 2  # raise when the same corpus would give other files
SPLITS = ("train", "validation", "audit")
META = "meta.json"


@dataclass(frozen=True)
class PreparedData:
    """Token files of one corpus and one vocabulary, ready to be read."""

    folder: Path
    meta: dict[str, Any]
    tokenizer: ByteTokenizer

    def ids(self, split: str) -> NDArray[np.integer]:
        """(N,) ids of `train` or `validation`: BOS, document, BOS, document, ..."""
        return tokens.read(self.folder / f"{split}.bin")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What a later reader compares: the corpus, the settings and the resulting files."""
        return {key: self.meta[key] for key in ("key", "corpus", "identity", "sha256", "documents", "bytes", "tokens")}


def prepare(data: DataConfig, workspace: Workspace, *, allow_network: bool = False) -> PreparedData:
    """The token files for `data`, made now if the cache has none, or not the audit's. Raises `DataProblem`.

    Two processes may prepare the same data at once, and either may be killed: a folder appears complete or not at all.
    """
    found = corpus.find(data, workspace, allow_network=allow_network)
    key = data_key(data, found.identity)
    cache = workspace.cache_dir / "data"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / key
    if not _is_whole(folder, workspace.cache_dir):
        with _one_at_a_time(cache / f"{key}.lock"):
            if not _is_whole(folder, workspace.cache_dir):
                _build(data, found, key, folder, workspace.cache_dir)
    return load(folder)


def _is_whole(folder: Path, cache_dir: Path) -> bool:
    return (folder / META).exists() and vault.holds(cache_dir, folder.name)


def load(folder: Path) -> PreparedData:
    """What `prepare` left in `folder`. Raises `DataProblem`."""
    meta = durable.read_json(folder / META)
    if meta is None:
        raise DataProblem(f"there is no prepared data {folder.name}", fix="start a run that prepares it")
    return PreparedData(folder, meta, ByteTokenizer.load(folder / "tokenizer.json", meta["vocab_size"]))


def data_key(data: DataConfig, identity: str) -> str:
    """Names the token files: equal exactly when corpus and settings are. The context is no part of it."""
    settings = corpus.settings_that_matter(data)
    settings.pop("context")
    return hashlib.sha256(json.dumps([FORMAT, identity, settings], sort_keys=True).encode()).hexdigest()[:24]


def split_of(document: str, data: DataConfig) -> str:
    """Which split a document belongs to: decided by its text alone, so adding others never moves it."""
    bucket = int.from_bytes(_digest(document)[:4], "big") / 2**32 * 100
    if bucket < data.validation_percent:
        return "validation"
    return "audit" if bucket < data.validation_percent + data.audit_percent else "train"


def _digest(document: str) -> bytes:
    return hashlib.sha256(document.encode("utf-8")).digest()


def _build(data: DataConfig, found: corpus.Corpus, key: str, folder: Path, cache_dir: Path) -> None:
    # by hash, not by name: neighbours in the file are then unrelated, and the first ones are a fair sample
    documents = sorted(corpus.documents(found, data.max_bytes), key=_digest)
    parts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for document in documents:
        parts[split_of(document, data)].append(document)
    empty = [split for split, members in parts.items() if not members]
    if empty:
        raise DataProblem(
            f"corpus {found.name} is too small: {len(documents)} documents leave none for {', '.join(empty)}",
            fix="add text, or raise data.validation_percent and data.audit_percent",
        )
    tokenizer = ByteTokenizer.train(parts["train"], data.vocab_size)
    work = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".tmp", dir=folder.parent))
    try:
        tokenizer.save(work / "tokenizer.json")
        counts = {split: write_ids(work / f"{split}.bin", members, tokenizer) for split, members in parts.items()}
        hashes = {f"{split}.bin": file_hash(work / f"{split}.bin") for split in SPLITS}
        hashes["tokenizer.json"] = file_hash(work / "tokenizer.json")
        there = durable.read_json(folder / META)
        if there is not None and there["sha256"] != hashes:  # whose audit text alone is to be made anew
            raise DataProblem("the prepared data could not be made again as they were", fix="delete .lab/cache/data")
        vault.store(cache_dir, key, (work / "audit.bin").read_bytes())
        (work / "audit.bin").unlink()
        meta = {
            "key": key,
            "corpus": found.name,
            "identity": found.identity,
            "sources": found.sources,
            "vocab_size": tokenizer.vocab_size,
            "documents": {split: len(members) for split, members in parts.items()},
            "bytes": {split: sum(len(d.encode("utf-8")) for d in members) for split, members in parts.items()},
            "tokens": counts,
            "sha256": hashes,
        }
        durable.write_json(work / META, meta)
        with contextlib.suppress(OSError):  # only the audit text was missing; or, without a lock, another was first
            work.replace(folder)
        if not (folder / META).exists():
            raise DataProblem(f"the prepared data could not be moved into the cache ({key})")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_ids(path: Path, documents: list[str], tokenizer: ByteTokenizer) -> int:
    """A token file of `documents`, each behind a BOS; how many tokens."""
    pieces: list[NDArray[np.integer]] = []
    bos = np.array([tokenizer.bos], dtype=np.uint32)
    for ids in tokenizer.encode_all(documents):
        pieces += [bos, np.array(ids, dtype=np.uint32)]
    stream = np.concatenate(pieces)
    tokens.write(path, stream, tokenizer.vocab_size)
    return len(stream)


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """Let one process of this machine prepare at a time; what a killed one left behind is cleared by the next."""
    try:
        import fcntl
    except ImportError:  # not on this platform: the atomic rename alone keeps the cache whole
        yield
        return
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left in lock.parent.glob(f"{lock.stem}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    with contextlib.suppress(OSError):
        os.utime(lock)
