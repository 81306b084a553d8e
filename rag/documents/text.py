"""Plain text, Markdown (with front matter) and HTML. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

from rag.documents.document import Block, Details, Document, Unreadable, arxiv_date, clean, clean_title

HEADING = re.compile(r"(#{1,6})[^\S\n]+(\S.*)")
FENCE = re.compile(r"^\s*(`{3,}|~{3,})")
SKIPPED_TAGS = frozenset(["script", "style", "nav", "noscript", "template", "svg", "form", "button"])
# bytes that text in Windows-1252 has no use for
STRANGE = bytes([*(set(range(32)) - set(b"\n\r\t\f")), 0x81, 0x8D, 0x8F, 0x90, 0x9D])
BLOCK_TAGS = frozenset(
    "p div li ul ol dl dt dd table tr td th section article aside blockquote pre figure figcaption main br hr".split()
)


def decode(data: bytes, name: str) -> str:
    """The text in `data`: UTF-8, UTF-16 with its mark, else Windows-1252. Raises `Unreadable` for binary data."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data:
        raise Unreadable(f"binary data, although it is named {name}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    if len(data) - len(data.translate(None, STRANGE)) > len(data) * 0.02:
        raise Unreadable(f"binary data, although it is named {name}")
    return text


def read_plain(text: str) -> Document:
    """Paragraphs are separated by empty lines; a short first line is the title."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    title = clean_title(first) if len(first) <= 120 and not first.endswith((".", ",", ";")) else ""
    return Document(Details(title=title), _paragraphs(text))


def _paragraphs(text: str) -> Iterator[Block]:
    for match in re.finditer(r"\S.*?(?=\n\s*\n|\Z)", text, re.DOTALL):
        yield Block(match.group(), start=match.start())


def read_markdown(text: str) -> Document:
    """Front matter gives the details; headings give title and sections (`Method > Data`)."""
    fields, body = front_matter(text)
    return _markdown(_without_comments(text), body, details_of(fields))


def read_note(text: str) -> Document:
    """Markdown as somebody wrote it into the lab: all of it is content, also between two `---` or in a comment."""
    return _markdown(text, 0, Details())


def _markdown(text: str, body: int, details: Details) -> Document:
    if not details.title:
        heading = next((found for line in text[body:].splitlines()[:50] if (found := _heading(line))), None)
        if heading:
            details = Details(title=clean_title(heading[1])).over(details)
    return Document(details, _markdown_blocks(text, body, details.title))


def _heading(line: str) -> tuple[int, str, int] | None:
    """Level and text of a heading, and the column at which the text begins."""
    match = HEADING.match(line)
    if match is None:
        return None
    words = match.group(2).rstrip()
    bare = words.rstrip("#")
    if bare != words and bare[-1:].isspace():  # the marks that may close a heading; `C#` has none
        words = bare
    return (len(match.group(1)), words, match.start(2)) if words.strip("# ") else None


def _without_comments(text: str) -> str:
    """Each comment leaves a gap of its length, or the offsets of what follows would be wrong."""
    parts, position = [], 0
    while (start := text.find("<!--", position)) >= 0 and (end := text.find("-->", start + 4)) >= 0:
        parts += [text[position:start], re.sub(r"[^\n]", " ", text[start : end + 3])]
        position = end + 3
    return "".join([*parts, text[position:]])


def _markdown_blocks(text: str, body: int, title: str) -> Iterator[Block]:
    """Paragraphs with their sections; a heading that nothing stands under is a paragraph itself."""
    levels: dict[int, str] = {}
    lines: list[str] = []
    start = position = body
    fenced = ""  # the marks that opened a block of code
    section = ""
    bare: tuple[int, Block] | None = None  # level and text of a heading under which nothing has come yet

    def block() -> Iterator[Block]:
        nonlocal bare
        content = "".join(lines).strip("\n")
        if content.strip():
            bare = None
            yield Block(content, section=section, start=start)
        lines.clear()

    for line in text[body:].splitlines(keepends=True):
        heading = None if fenced else _heading(line)
        if mark := FENCE.match(line):
            marks = mark.group(1)
            if not fenced:
                fenced = marks
            elif marks[0] == fenced[0] and len(marks) >= len(fenced):
                fenced = ""
        if heading or (not line.strip() and not fenced):
            yield from block()
        if heading:
            level, words, column = heading
            if bare is not None and level <= bare[0]:
                yield bare[1]
            levels = {k: v for k, v in levels.items() if k < level}
            above = _section(levels, title)
            levels[level] = clean_title(words)
            section = _section(levels, title)
            bare = (level, Block(words, above, start=position + column))
        elif line.strip() or fenced:
            if not lines:
                start = position
            lines.append(line)
        position += len(line)
    yield from block()
    if bare is not None:
        yield bare[1]


def _section(levels: dict[int, str], title: str) -> str:
    return " > ".join(name for _, name in sorted(levels.items()) if name != title)


def front_matter(text: str) -> tuple[dict[str, Any], int]:
    """The `key: value` lines between two `---` at the top (lists as `[a, b]` or `- a`), and where the body begins."""
    match = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", text, re.DOTALL)
    if not match:
        return {}, 0
    fields: dict[str, Any] = {}
    key = ""
    for line in match.group(1).splitlines():
        item = re.match(r"\s+-\s+(.*)|-\s+(.*)", line)
        if item and key:
            previous = fields[key] if isinstance(fields[key], list) else []
            fields[key] = [*previous, _unquote(item.group(1) or item.group(2))]
        elif pair := re.match(r"([A-Za-z_][\w -]*):\s*(.*)", line):
            key, value = pair.group(1).strip().lower(), pair.group(2).strip()
            if value.startswith("[") and value.endswith("]"):
                fields[key] = [_unquote(part) for part in value[1:-1].split(",") if part.strip()]
            else:
                fields[key] = _unquote(value)
    return fields, match.end()


def _unquote(value: str) -> str:
    value = value.strip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


def details_of(fields: dict[str, Any]) -> Details:
    """Details from front matter or a bibliography entry."""
    if not fields:
        return Details()

    def words(name: str) -> str:
        value = fields.get(name, "")
        return clean_title(", ".join(map(str, value)) if isinstance(value, list) else str(value))

    tags = fields.get("tags") or fields.get("keywords") or []
    listed = tags if isinstance(tags, list) else re.split(r"[,;]", str(tags))
    arxiv = words("arxiv")
    date = words("date") or words("year")
    if arxiv and len(date) < 6:
        date = arxiv_date(arxiv) or date
    return Details(
        title=words("title"),
        date=date,
        tags=tuple(clean_title(str(tag)).lower() for tag in listed if str(tag).strip()),
        authors=words("authors") or words("author"),
        arxiv=arxiv,
    )


class _Page(HTMLParser):
    """Collects paragraphs with the heading they stand under."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.blocks: list[Block] = []
        self._section = ""
        self._text: list[str] = []
        self._start = 0  # of the next block, in the text that all of them are, an empty line between them
        self._skipping = 0
        self._in: str = ""

    def flush(self) -> str:
        text = " ".join("".join(self._text).split())
        self._text.clear()
        return text

    def end_block(self) -> None:
        text = self.flush()
        if text and not self._skipping:
            self.blocks.append(Block(text, section=self._section, start=self._start))
            self._start += len(text) + 2

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in SKIPPED_TAGS:
            self.end_block()
            self._skipping += 1
        elif tag == "title" or re.fullmatch(r"h[1-6]", tag):
            self.end_block()
            self._in = tag
        elif tag in BLOCK_TAGS:
            self.end_block()

    def handle_endtag(self, tag: str) -> None:
        if tag in SKIPPED_TAGS:
            self._text.clear()
            self._skipping = max(0, self._skipping - 1)
        elif tag == self._in:
            text, self._in = clean_title(self.flush()), ""
            if tag == "title" or (tag == "h1" and not self.title):
                self.title = self.title or text
            else:
                self._section = text
        elif tag in BLOCK_TAGS:
            self.end_block()

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._text.append(data)

    def parse(self, text: str) -> None:
        self.feed(text)
        self.close()
        self.end_block()


def read_html(text: str) -> Document:
    page = _Page()
    page.parse(text)
    return Document(Details(title=page.title), page.blocks)


def read(data: bytes, name: str, suffix: str) -> Document:
    """Read a text file by its suffix. Raises `Unreadable`."""
    text = clean(decode(data, name))
    if not text.strip():
        raise Unreadable("the file is empty")
    if suffix in (".md", ".markdown"):
        return read_markdown(text)
    if suffix in (".html", ".htm"):
        return read_html(text)
    return read_plain(text)
