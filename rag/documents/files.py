"""Which files are documents, whether they changed, and reading one of any kind."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rag.documents import jupyter, latex, pdf, text
from rag.documents.document import Document, Unreadable

TEXT_SUFFIXES = (".md", ".markdown", ".txt", ".text", ".rst", ".html", ".htm")
SUFFIXES = (".pdf", ".tex", ".ipynb", *TEXT_SUFFIXES)
BIBLIOGRAPHY = ".bib"
TEXT_LIMIT = 32 << 20  # bytes; read whole
PDF_LIMIT = 1 << 30
ATTEMPTS = 3  # at reading a file that changes meanwhile
PAUSE_S = 0.2  # between them


def is_document(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def find(folder: Path, root: Path, suffixes: tuple[str, ...] = (*SUFFIXES, BIBLIOGRAPHY)) -> Iterator[Path]:
    """Documents and bibliographies under `folder`, in order; hidden ones and links out of `root` are left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith(".") or not name.lower().endswith(suffixes):
                continue
            path = Path(place) / name
            if path.is_symlink() and root not in Path(os.path.realpath(path)).parents:
                continue  # a link that leads to itself is left out below
            if path.is_file():
                yield path


def check_size(path: Path) -> None:
    """Raises `Unreadable` for an empty file or one over the limit of its kind."""
    size = path.stat().st_size
    limit = PDF_LIMIT if path.suffix.lower() == ".pdf" else TEXT_LIMIT
    if size == 0:
        raise Unreadable("the file is empty")
    if size > limit:
        raise Unreadable(f"too large ({size >> 20:,} MB; at most {limit >> 20} MB are read): split it")


@dataclass(frozen=True)
class Content:
    """What tells one state of a document's files from another without reading them: cheap, and nearly always right."""

    size: int  # bytes
    modified_ns: int


def parts(path: Path, root: Path) -> list[Path]:
    """The files a document is made of: itself, and what a LaTeX document inputs. Raises `Unreadable`, OSError."""
    return latex.join(path, root)[1] if path.suffix.lower() == ".tex" else [path]


def content(files: list[Path]) -> Content:
    """Raises OSError."""
    stats = [file.stat() for file in files]
    if len(files) == 1:
        return Content(stats[0].st_size, stats[0].st_mtime_ns)
    times = repr([(str(file), stat.st_mtime_ns) for file, stat in zip(files, stats, strict=True)])
    number = int.from_bytes(hashlib.sha256(times.encode()).digest()[:7], "big")
    return Content(sum(stat.st_size for stat in stats), number)


def content_hash(files: list[Path]) -> str:
    """Of one file that of its bytes; of several that of their hashes. Raises OSError."""
    hashes = []
    for path in files:
        with path.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def read(path: Path, root: Path | None = None, breathe: Callable[[], None] = lambda: None) -> Document:
    """The document in a file as it was at one moment; a LaTeX document may input files under `root`.

    `breathe` as in `pdf.read`. Raises `Unreadable` with the reason, OSError when the file is gone.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S)
        before = path.stat()
        try:
            document = _read(path, root or path.parent, breathe)
        except Unreadable:
            if _same(before, path.stat()):
                raise
            continue
        if _same(before, path.stat()):
            return document
    raise Unreadable("it changes while it is being read: index it again when it is complete")


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    return (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns)


def _read(path: Path, root: Path, breathe: Callable[[], None]) -> Document:
    check_size(path)
    suffix = path.suffix.lower()
    if suffix == ".pdf":
        return pdf.read(path, breathe)
    if suffix == ".tex":
        return latex.read(path, root)
    with path.open("rb") as file:
        data = file.read(TEXT_LIMIT + 1)  # it may have grown since it was measured
    if len(data) > TEXT_LIMIT:
        raise Unreadable(f"too large (at most {TEXT_LIMIT >> 20} MB are read): split it")
    return jupyter.read(data, path.name) if suffix == ".ipynb" else text.read(data, path.name, suffix)
