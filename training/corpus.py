"""Where the text comes from: the library sources of this Python, files of the workspace, or a Hugging Face data set.

A corpus is found first (`find`: which sources, and a hash of their content) and read later (`documents`), so that an
unchanged corpus costs only the hashing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import DataConfig
from workspace.errors import LabError, Refused, Unavailable
from workspace.layout import Workspace

SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".parquet")
# parts of the library that are not prose of the language: tests, vendored wheels, generated tables
SKIPPED_FOLDERS = frozenset(
    ["site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "idlelib", "lib2to3", "ensurepip",
     "turtledemo", "pydoc_data", "encodings", "lib-dynload"]
)  # fmt: skip
LARGEST_DOCUMENT = 16 * 1024  # characters; a longer text is cut at a line, so that it can be split and shuffled
SMALLEST_PIECE = 2 * 1024


class DataProblem(LabError):
    """The corpus cannot be used: unknown, empty, too small, unreadable, or changed. The trainer exits with code 12."""


@dataclass(frozen=True)
class Corpus:
    """A corpus that was found: `identity` changes when, and only when, its text or the way of reading it changes."""

    name: str
    identity: str
    sources: int
    read: Callable[[], Iterator[str]]


def find(data: DataConfig, workspace: Workspace, *, allow_network: bool = False) -> Corpus:
    """The corpus `data` names. Raises `DataProblem` or `Refused` (a file outside the workspace, no network)."""
    if data.corpus == "python-stdlib":
        return _standard_library(data)
    if data.corpus == "files":
        return _files(data, workspace)
    return _hub(data, allow_network)


def documents(corpus: Corpus, max_bytes: int) -> list[str]:
    """The documents of `corpus`: valid Unicode, no duplicates, long ones cut, about `max_bytes` of UTF-8 at most."""
    texts, total = [], 0
    for text in corpus.read():
        clean = text.encode("utf-8", "replace").decode("utf-8")  # JSON can carry lone surrogates, which no byte can
        size = len(clean.encode("utf-8"))
        if total + size > max_bytes:
            clean = clean.encode("utf-8")[: max_bytes - total].decode("utf-8", "ignore")
        if clean.strip():
            texts.append(clean)
        total += size
        if total >= max_bytes:
            break
    if not texts:
        raise DataProblem(f"corpus {corpus.name} holds no text", fix="name other files, or another data.corpus")
    limit = min(LARGEST_DOCUMENT, max(SMALLEST_PIECE, sum(map(len, texts)) // 100))
    return list(dict.fromkeys(piece for text in texts for piece in cut(text, limit)))


def cut(text: str, limit: int) -> Iterator[str]:
    """Pieces of at most `limit` characters that together are `text`, cut at blank lines, else lines, else anywhere."""
    start = 0
    while len(text) - start > limit:
        end = start + limit
        half = start + limit // 2
        for mark in ("\n\n", "\n"):
            found = text.rfind(mark, half, end)
            if found >= 0:
                end = found + len(mark)
                break
        yield text[start:end]
        start = end
    yield text[start:]


def settings_that_matter(data: DataConfig) -> dict[str, Any]:
    """The data settings without those the chosen corpus does not look at."""
    kept = data.model_dump(mode="json")
    if data.corpus == "python-stdlib":
        del kept["files"], kept["text_field"]
    elif data.corpus != "files":
        del kept["files"]
    elif all(Path(name).suffix.lower() in (".txt", ".md", ".py") for name in data.files):
        del kept["text_field"]
    return kept


# -- the three kinds --------------------------------------------------------------------------------------------------


def _standard_library(data: DataConfig) -> Corpus:
    root = Path(sysconfig.get_path("stdlib"))
    found: list[tuple[str, Path]] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith("config-")]
        found += [
            ((Path(folder) / n).relative_to(root).as_posix(), Path(folder) / n) for n in names if n.endswith(".py")
        ]
    # in an order that has nothing to do with names, so that a cap takes a fair part of everything
    found.sort(key=lambda entry: hashlib.sha256(entry[0].encode()).digest())
    digest, contents, total = hashlib.sha256(b"python-stdlib"), [], 0
    for name, path in found:
        content = path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
        contents.append(content)
        total += len(content)
        if total >= data.max_bytes:
            break
    if not contents:
        raise DataProblem(
            "this Python has no library sources on disk", fix="data.corpus = 'files' with data.files of your own"
        )
    return Corpus(
        "python-stdlib", digest.hexdigest(), len(contents), lambda: (c.decode("utf-8", "replace") for c in contents)
    )


def _files(data: DataConfig, workspace: Workspace) -> Corpus:
    paths: list[Path] = []
    for name in data.files:
        path = workspace.confine(name, what="data.files")
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
            paths += [workspace.confine(p, what="data.files") for p in inside]
        elif path.is_file():
            if path.suffix.lower() not in SUFFIXES:
                raise DataProblem(f"data.files: {name!r} has no known suffix", valid=" ".join(SUFFIXES))
            paths.append(path)
        else:
            raise DataProblem(f"data.files: there is no file {name!r} in the workspace", fix="correct data.files")
    paths = list(dict.fromkeys(paths))
    if not paths:
        raise DataProblem("data.files holds no file to read", valid="files ending in " + " ".join(SUFFIXES))
    digest = hashlib.sha256(f"files\0{data.text_field}\0".encode())
    for path in paths:
        with path.open("rb") as file:
            digest.update(path.suffix.lower().encode() + hashlib.file_digest(file, "sha256").digest())

    def read() -> Iterator[str]:
        for path in paths:
            yield from _read_file(path, data.text_field, workspace.relative(path))

    return Corpus("files", digest.hexdigest(), len(paths), read)


def _read_file(path: Path, text_field: str, shown: str) -> Iterator[str]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _read_parquet(path, text_field, shown)
    elif suffix == ".jsonl":
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _text_of_line(line, text_field, f"{shown} line {number}")
    else:
        yield path.read_bytes().decode("utf-8", "replace")


def _text_of_line(line: str, text_field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataProblem(f"{where} is not valid JSON", fix="one JSON object a line") from error
    value = record if isinstance(record, str) else record.get(text_field) if isinstance(record, dict) else None
    if not isinstance(value, str):
        fields = ", ".join(list(record)[:8]) if isinstance(record, dict) else "no object"
        raise DataProblem(f"{where} has no text in field {text_field!r}", valid=fields, fix="set data.text_field")
    return value


def _read_parquet(path: Path, text_field: str, shown: str) -> Iterator[str]:
    if importlib.util.find_spec("pyarrow") is None:
        raise DataProblem(f"{shown} needs pyarrow", fix="pip install 'lab-mcp[parquet]'")
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise DataProblem(f"{shown} is not a parquet file") from error
    if text_field not in file.schema_arrow.names:
        raise DataProblem(
            f"{shown} has no column {text_field!r}", valid=", ".join(file.schema_arrow.names), fix="set data.text_field"
        )
    for batch in file.iter_batches(columns=[text_field]):
        yield from (value for value in batch.column(0).to_pylist() if isinstance(value, str))


def _hub(data: DataConfig, allow_network: bool) -> Corpus:
    name, _, revision = data.corpus.removeprefix("hub:").partition("@")
    if not allow_network:
        raise Refused(
            f"data.corpus = {data.corpus!r} would be fetched from the network, which this workspace does not allow",
            fix="set [network] hub = true in lab.toml, or use data.corpus = 'files' or 'python-stdlib'",
        )
    if importlib.util.find_spec("datasets") is None:
        raise Unavailable(f"data.corpus = {data.corpus!r} needs the package datasets", fix="pip install 'lab-mcp[hub]'")
    import datasets
    import huggingface_hub

    try:
        # a branch moves: its commit now is what is read and what the cache is keyed by
        commit = huggingface_hub.HfApi().dataset_info(name, revision=revision or None).sha
        stream = datasets.load_dataset(name, revision=commit, split="train", streaming=True)
    except Exception as error:
        raise DataProblem(
            f"data set {name!r} could not be opened: {type(error).__name__}", fix="check name, network"
        ) from error

    def read() -> Iterator[str]:
        for number, row in enumerate(stream):
            if not isinstance(row.get(data.text_field), str):
                raise DataProblem(
                    f"data set {name!r} row {number} has no text in {data.text_field!r}", valid=", ".join(list(row)[:8])
                )
            yield row[data.text_field]

    what = json.dumps([name, data.text_field, commit])
    return Corpus(data.corpus, hashlib.sha256(what.encode()).hexdigest(), 1, read)
