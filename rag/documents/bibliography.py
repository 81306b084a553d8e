"""BibTeX: titles, authors and years for the files beside it, and entries of their own. Standard library only.

An entry is about a file that it names, that is called after its key or arXiv id, or that bears its title.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from rag.documents import latex
from rag.documents.document import ARXIV, Details, clean
from rag.documents.text import details_of

LEAST_TITLE = 12  # letters and digits; "Introduction" tells no paper from another
QUOTE_OR_BRACE = re.compile(r'["{]')
MONTHS = {name: f"{n:02d}" for n, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}


@dataclass(frozen=True)
class Entry:
    key: str
    details: Details
    abstract: str
    files: tuple[str, ...]  # base names of the files it names

    def describes(self, path: PurePath) -> bool:
        """Whether this entry is about the file: named in `file`, or the file is called after key or arXiv id."""
        stem = path.stem.lower()
        named = {self.key.lower(), self.details.arxiv} - {""}
        return path.name in self.files or stem in named or re.sub(r"v\d+$", "", stem) in named

    @property
    def identity(self) -> str:
        """The id of the document that its abstract is while no file is there."""
        return "paper-" + (re.sub(r"[^a-z0-9.]+", "-", self.key.lower()).strip("-.")[:48] or "entry")


class Library:
    """Every entry of the .bib files last given to `read`. May be asked while it is read anew."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._parsed: dict[Path, tuple[tuple[int, int], list[Entry]]] = {}
        self._titled: dict[str, Entry] = {}

    def read(self, paths: Iterable[Path], parse_file: Callable[[Path], list[Entry]]) -> None:
        """Take in these files and no others; one that has not changed is not parsed again."""
        parsed = {}
        for path in paths:
            stat = path.stat() if path.exists() else None
            state = (stat.st_size, stat.st_mtime_ns) if stat else (0, 0)
            known = self._parsed.get(path)
            parsed[path] = known if known and known[0] == state else (state, parse_file(path))
        self._parsed = parsed
        self.entries = [entry for _, found in parsed.values() for entry in found]
        names = [(key, entry) for entry in self.entries for key in _names(entry.details.title, entry.details.arxiv)]
        self._titled = dict(reversed(names))

    def about(self, path: PurePath) -> Entry | None:
        return next((entry for entry in self.entries if entry.describes(path)), None)

    def titled(self, title: str, arxiv: str = "") -> Entry | None:
        """The entry with this title (letters and digits count) or arXiv id."""
        return next((self._titled[key] for key in _names(title, arxiv) if key in self._titled), None)


def _names(title: str, arxiv: str) -> list[str]:
    folded = "".join(character for character in title.casefold() if character.isalnum())
    return ([arxiv] if arxiv else []) + ([folded] if len(folded) >= LEAST_TITLE else [])


def parse(text: str) -> list[Entry]:
    """The entries of a .bib file; what is malformed is passed over up to the next `@`."""
    entries, closing = [], _closing(text)
    for match in re.finditer(r"@(\w+)\s*\{\s*([^\s,{}]+)\s*,", text):
        if match.group(1).lower() in ("comment", "string", "preamble"):
            continue
        fields = _fields(text, match.end(), closing)
        if fields.get("title"):
            entries.append(_entry(match.group(2), fields))
    return entries


def _entry(key: str, fields: dict[str, str]) -> Entry:
    source = " ".join(fields.get(name, "") for name in ("eprint", "arxiv", "journal", "url", "note"))
    found = ARXIV.search(source) if "arxiv" in source.lower() or fields.get("eprint") else None
    month = MONTHS.get(fields.get("month", "")[:3].lower(), "")
    year = fields.get("year", "") or fields.get("date", "")
    authors = ", ".join(_name(author) for author in re.split(r"\s+and\s+", fields.get("author", "")) if author)
    details = details_of(
        {
            "title": fields["title"],
            "authors": authors,
            "year": f"{year}-{month}" if month and re.fullmatch(r"\d{4}", year) else year,
            "arxiv": found.group(1) if found else "",
            "keywords": fields.get("keywords", ""),
        }
    )
    files = tuple(PurePath(part).name for part in re.split(r"[:;]", fields.get("file", "")) if "." in part)
    return Entry(key, details, fields.get("abstract", ""), files)


def _name(author: str) -> str:
    """`Ashish Vaswani` for `Vaswani, Ashish`."""
    last, comma, first = author.partition(",")
    return f"{first.strip()} {last.strip()}" if comma else author.strip()


def _fields(text: str, position: int, closing: Mapping[int, int]) -> dict[str, str]:
    fields: dict[str, str] = {}
    pattern = re.compile(r"\s*([A-Za-z_-]+)\s*=\s*")
    while match := pattern.match(text, position):
        value, position = _value(text, match.end(), closing)
        fields[match.group(1).lower()] = " ".join(clean(_readable(value)).split())
        comma = re.compile(r"\s*,").match(text, position)
        if not comma:
            break
        position = comma.end()
    return fields


def _readable(value: str) -> str:
    """Without braces; accents, letters and signs of LaTeX as they are printed."""
    if "\\" in value:
        value = latex.readable(re.sub(r"(?<!\\)%", r"\\%", value))
    return re.sub(r"[{}]", "", value)


def _value(text: str, position: int, closing: Mapping[int, int]) -> tuple[str, int]:
    """A `{...}`, `"..."` or bare value from `position`, and where it ends; one never closed ends at the next `@`."""
    if text.startswith("{", position):
        end = closing.get(position)
    elif text.startswith('"', position):
        end = _quote_end(text, position, closing)
    else:
        match = re.compile(r"[^,}\n]*").match(text, position)
        assert match is not None
        return match.group().strip(), match.end()
    if end is None:
        end = text.find("@", position)
        return (text[position + 1 : end], end) if end >= 0 else (text[position + 1 :], len(text))
    return text[position + 1 : end], end + 1


def _quote_end(text: str, position: int, closing: Mapping[int, int]) -> int | None:
    """The closing quotation mark, those in braces passed over."""
    while found := QUOTE_OR_BRACE.search(text, position + 1):
        position = found.start()
        if text[position] == '"':
            return position
        inner = closing.get(position)
        if inner is None:
            return None
        position = inner
    return None


def _closing(text: str) -> dict[int, int]:
    """Of every brace that is closed, where; found in one go, since entries that are never closed may be many."""
    opened: list[int] = []
    found: dict[int, int] = {}
    for brace in re.finditer(r"[{}]", text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif opened:
            found[opened.pop()] = brace.start()
    return found
