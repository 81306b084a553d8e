"""Which files are documents, and reading one of any kind."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from rag.documents import pdf, text
from rag.documents.document import Document, Unreadable

TEXT_SUFFIXES = (".md", ".markdown", ".txt", ".text", ".rst", ".html", ".htm")
SUFFIXES = (".pdf", *TEXT_SUFFIXES)
BIBLIOGRAPHY = ".bib"
TEXT_LIMIT = 32 << 20  # bytes; read whole
PDF_LIMIT = 1 << 30


def is_document(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def find(folder: Path, root: Path) -> Iterator[Path]:
    """Documents and bibliographies under `folder`, in order; hidden ones and links out of `root` are left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place) / name
            if name.startswith(".") or path.suffix.lower() not in (*SUFFIXES, BIBLIOGRAPHY):
                continue
            if path.is_symlink() and root not in path.resolve().parents:
                continue
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


def content_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> Document:
    """Raises `Unreadable` with the reason, OSError when the file is gone."""
    check_size(path)
    suffix = path.suffix.lower()
    if suffix == ".pdf":
        return pdf.read(path)
    with path.open("rb") as file:
        data = file.read(TEXT_LIMIT + 1)  # it may have grown since it was measured
    if len(data) > TEXT_LIMIT:
        raise Unreadable(f"too large (at most {TEXT_LIMIT >> 20} MB are read): split it")
    return text.read(data, path.name, suffix)
