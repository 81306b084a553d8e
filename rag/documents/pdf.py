"""PDF text page by page, with what makes it readable: no running heads, no line-end hyphens, sections, no references.

pdfium is not thread-safe: one thread reads PDFs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.documents import columns
from rag.documents.document import (
    ARXIV,
    TITLE_LIMIT,
    Block,
    Details,
    Document,
    Unreadable,
    arxiv_date,
    clean,
    clean_title,
)

if TYPE_CHECKING:
    import pypdfium2

PAGE_LIMIT = 10_000
PAGE_TEXT_LIMIT = 200_000  # characters read of one page; a full one has 10,000
BREATHS = 25  # pages read between two calls of `breathe`: some 0.05 s
TITLE_SCAN = 1500  # characters of the first page among which the title is looked for
AUTHOR_LINES = 12  # below the title
KNOWN_HEADINGS = (
    "abstract|introduction|background|related works?|methods?|methodology|materials and methods|approach|model|data|"
    "experiments?|experimental setup|setup|results?|evaluation|analysis|ablations?|discussion|limitations|"
    "conclusions?|future work|acknowledge?ments?|references|bibliography|appendix|supplementary material|summary|"
    "statement of need"
)
HEADING = re.compile(
    rf"(?:(?:\d{{1,2}}|[A-Z])(?:\.\d{{1,2}}){{0,3}}\.?\s+(?=[A-Z])(?P<numbered>[^.?!;:=]{{3,70}})"
    rf"|(?:\d{{1,2}}\.?\s+)?(?P<known>{KNOWN_HEADINGS})\.?)",
    re.IGNORECASE,
)
REFERENCES = re.compile(r"references|bibliography", re.IGNORECASE)
REFERENCE = re.compile(r"^\[[\w+.-]{1,12}\]|\b(?:19|20)\d{2}[a-z]?\b")
LOOK_AHEAD = 12  # lines after a heading
APPENDIX = re.compile(r"[A-Z](?:\.\d{1,2})*\.?\s+[A-Z]")
AFTER_REFERENCES = re.compile(r"append|supplement|acknowledge?ment", re.IGNORECASE)
RUN_IN = re.compile(r"(Abstract|ABSTRACT|Summary)\s*[.:–—-]\s*(?=\S)")  # a heading with its text behind it
STAMP = re.compile(r"arXiv:\S+\s+\[[\w.-]+\]\s+\d.*")  # what arXiv prints up the side of the first page
NAME = re.compile(r"[^\W\d_][\w.'’-]*(?: [^\W\d_][\w.'’-]*){1,4}")
NO_NAME = re.compile(
    r"universi|institut|department|laborator|school|research|google|inc\.|@|https?:|\bthe\b|\bof\b|\bfor\b",
    re.IGNORECASE,
)


def read(path: Path, breathe: Callable[[], None] = lambda: None) -> Document:
    """Raises `Unreadable` with the reason: not a PDF, damaged, needs a password, no text layer.

    `breathe` is called now and then: thousands of pages take seconds, for which something else may not want to wait.
    """
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        text = str(error).lower()
        if "password" in text or "security" in text:
            raise Unreadable("it is encrypted: save a copy without a password") from error
        raise Unreadable("it is damaged, or not a PDF") from error
    try:
        count = len(pdf)
        if count == 0:
            raise Unreadable("it is damaged: no page can be read")
        if count > PAGE_LIMIT:
            raise Unreadable(f"it has {count:,} pages; at most {PAGE_LIMIT:,} are read: split it")
        pages = []
        for number in range(count):
            pages.append(_page_lines(pdf, number))
            if number % BREATHS == BREATHS - 1:
                breathe()
        if sum(len(line) for lines in pages for line in lines) < 20 * min(count, 50):
            raise Unreadable("no text layer (a scan): run OCR over it, for example with ocrmypdf")
        details = _details(pdf, pages)
    finally:
        pdf.close()
    _drop_running_heads(pages)
    return Document(details, _blocks(pages))


def _page_lines(pdf: pypdfium2.PdfDocument, number: int) -> list[str]:
    import pypdfium2

    try:
        page = pdf[number]
        textpage = page.get_textpage()
    except pypdfium2.PdfiumError:
        return []  # one damaged page does not cost the others
    try:
        raw = _across(textpage, page.get_width()) or textpage.get_text_range(
            0, min(PAGE_TEXT_LIMIT, textpage.count_chars())
        )
    finally:
        textpage.close()
        page.close()
    # pdfium marks a line-end hyphen with U+FFFE or U+0002; the halves are joined, unless the second is a name
    raw = re.sub(r"[\ufffe\x02](?:\r?\n)?(?P<capital>(?=[A-Z\d]))?", lambda m: "" if m["capital"] is None else "-", raw)
    return [line.strip() for line in clean(raw).split("\n")]


def _across(textpage: pypdfium2.PdfTextPage, width: float) -> str:
    """The text of a page whose two columns were drawn line by line across it; empty for any other page."""
    count = textpage.count_rects()
    if count > PAGE_TEXT_LIMIT // 10:
        return ""
    pieces = [columns.Piece(*textpage.get_rect(n)) for n in range(count)]
    gap = columns.drawn_across(pieces, width)
    if gap is None:
        return ""
    lines = columns.in_order(pieces, gap)
    texts = (
        " ".join(textpage.get_text_bounded(p.left, p.bottom, p.right, p.top).strip() for p in line) for line in lines
    )
    return "\n".join(texts)


def _details(pdf: pypdfium2.PdfDocument, pages: list[list[str]]) -> Details:
    metadata = pdf.get_metadata_dict()
    first = "\n".join(pages[0])
    found = re.search(r"arxiv:\s*(\S+)", first, re.IGNORECASE)
    arxiv_match = ARXIV.search(found.group(1)) if found else None
    arxiv = arxiv_match.group(1) if arxiv_match else ""
    title = clean_title(metadata.get("Title", ""))
    if len(title) < 8 or re.search(r"\.(docx?|tex|dvi|pdf|indd)$|^untitled|^microsoft word", title, re.IGNORECASE):
        title = _largest_text(pdf) or title
    created = re.match(r"D:(\d{4})(\d{2})?", metadata.get("CreationDate", ""))
    date = arxiv_date(arxiv) or ("-".join(part for part in created.groups() if part) if created else "")
    authors = clean_title(metadata.get("Author", ""))
    if not NAME.match(authors) or "@" in authors:
        authors = _authors(pages[0], title)
    return Details(title, date, (), authors, arxiv)


def _authors(lines: list[str], title: str) -> str:
    """The names between title and abstract; empty when nothing there looks like names."""
    words = set(title.lower().split())
    filled = [line for line in lines if line]
    start = max((n for n, line in enumerate(filled[:20], 1) if words and set(line.lower().split()) <= words), default=0)
    names: list[str] = []
    rest = ""  # of a list of names that goes on in the next line
    for line in filled[start : start + AUTHOR_LINES] if start else []:
        if _heading(line) or RUN_IN.match(line) or NO_NAME.search(line):
            break
        parts = re.split(r"\s*(?:[,;&]|\band\b)\s*", re.sub(r"[\d*†‡§¶∗]+", ",", f"{rest} {line}".strip()))
        rest = parts.pop() if len(parts) > 1 else ""
        found = [part for part in parts if NAME.fullmatch(part) and part[0].isupper()]
        if not found and not rest and any(character.isalpha() for character in line):
            break
        names += found
    names += [rest] if NAME.fullmatch(rest) and rest[0].isupper() else []
    return clean_title(", ".join(dict.fromkeys(names)))


def _largest_text(pdf: pypdfium2.PdfDocument) -> str:
    """The text in the largest type near the top of the first page: nearly always the title."""
    import pypdfium2.raw as raw

    page = pdf[0]
    textpage = page.get_textpage()
    try:
        count = min(TITLE_SCAN, textpage.count_chars())
        sizes = [round(float(raw.FPDFText_GetFontSize(textpage, n)), 1) for n in range(count)]
        text = textpage.get_text_range(0, count) if count else ""
        if not sizes or len(text) != count:
            return ""
        shown = Counter(size for size, character in zip(sizes, text, strict=True) if character.isalpha())
        largest = max((size for size, seen in shown.items() if seen >= 8), default=0.0)
        if not largest or (len(shown) == 1 and count > TITLE_LIMIT):
            return ""
        start = sizes.index(largest)
        end = start
        while end < count and (sizes[end] == largest or not text[end].isalnum()):
            end += 1
        title = clean_title(re.sub(r"[\ufffe\x02]\s*", "", text[start:end]))
        return title if 8 <= len(title) <= 250 else ""
    finally:
        textpage.close()
        page.close()


def _drop_running_heads(pages: list[list[str]]) -> None:
    """Remove page numbers, and lines that come back at the top or bottom of many pages, in place."""

    def shape(line: str) -> str:
        return re.sub(r"\d+", "#", line.lower())

    edges: Counter[str] = Counter()
    for lines in pages:
        filled = [line for line in lines if line]
        edges.update({shape(line) for line in (*filled[:2], *filled[-2:])})
    often = max(2, len(pages) * 0.3)
    for lines in pages:
        places = [n for n, line in enumerate(lines) if line]
        for n in {*places[:2], *places[-2:]}:
            if edges[shape(lines[n])] >= often or re.fullmatch(r"[-–—\s]*\d{1,4}[-–—\s]*", lines[n]):
                lines[n] = ""


def _blocks(pages: list[list[str]]) -> Iterator[Block]:
    position = last = 0
    for page, section, text in _paragraphs(pages):
        position = position if page == last else 0
        yield Block(text, section, page, position)
        position, last = position + len(text) + 2, page


def _paragraphs(pages: list[list[str]]) -> Iterator[tuple[int, str, str]]:
    """(page, section, text) of each, the list of references left out."""
    section = ""
    in_references = False
    filled = [line for lines in pages for line in lines if line]
    at = 0  # lines of `filled` before the one after this
    for number, lines in enumerate(pages, 1):
        paragraph = ""
        widest = max((len(line) for line in lines), default=0)
        for line in lines:
            at += bool(line)
            heading, rest = _heading(line), ""
            if run_in := RUN_IN.match(line):
                heading, rest = run_in.group(1).capitalize(), line[run_in.end() :]
            if heading and not (in_references and not _ends_references(line, filled[at : at + LOOK_AHEAD])):
                if paragraph and not in_references:
                    yield number, section, paragraph
                paragraph, section = rest, heading
                in_references = bool(REFERENCES.fullmatch(heading)) and _are_references(filled[at : at + LOOK_AHEAD])
            elif line and not in_references and not STAMP.fullmatch(line):
                paragraph = _join(paragraph, line)
                if line.endswith((".", "?", "!")) and len(line) < widest * 0.7:
                    yield number, section, paragraph
                    paragraph = ""
        if paragraph and not in_references:
            yield number, section, paragraph


def _ends_references(line: str, after: list[str]) -> bool:
    """A reference that begins with an initial looks like the heading of an appendix; what comes after it tells."""
    return bool(AFTER_REFERENCES.search(line) or (APPENDIX.match(line) and not _are_references(after)))


def _are_references(lines: list[str]) -> bool:
    """Every second or third line of a list of references has a number in brackets or a year; prose has not."""
    return 4 * sum(bool(REFERENCE.search(line)) for line in lines) >= len(lines) > 0


def _heading(line: str) -> str:
    """The heading a line is, without its number; empty when it is not one."""
    match = HEADING.fullmatch(line) if 3 <= len(line) <= 80 else None
    if not match:
        return ""
    groups: dict[str, Any] = match.groupdict()
    if groups["known"]:
        return str(groups["known"]).capitalize() if line[:1].isupper() or line[:1].isdigit() else ""
    text = str(groups["numbered"]).strip()
    letters = sum(character.isalpha() or character == " " for character in text)
    return (
        text
        if text[:1].isupper() and "," not in text and letters >= 0.85 * len(text) and len(text.split()) <= 10
        else ""
    )


def _join(text: str, line: str) -> str:
    if not text:
        return line
    if re.search(r"[a-z]-$", text) and line[:1].islower():
        return text[:-1] + line
    return f"{text} {line}"
