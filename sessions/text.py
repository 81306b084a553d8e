"""Text as it is kept and as it is shown: cleaned, cut, and fitted into a page without breaking its structure."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

NOTE_HEADING = 3  # the highest heading inside a note; 1 is the page's title, 2 its sections
# control characters (not tab or newline), text direction overrides, halves of surrogate pairs
_CONTROL = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_BREAK = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
_MARK = "the rest of the page stands here"


def clean(text: str) -> str:
    """`text` without control characters, with plain newlines, without blank lines around it."""
    text = _CONTROL.sub("", _BREAK.sub("\n", text))
    lines = text.split("\n")
    while lines and not lines[0].strip():
        lines.pop(0)
    while lines and not lines[-1].strip():
        lines.pop()
    return "\n".join(lines)


def clean_value(value: Any, *, longest: int = 300, most: int = 40, depth: int = 6) -> Any:
    """A JSON-like value fit for the journal: strings cleaned and cut, long lists cut, anything else as text."""
    if isinstance(value, str):
        return cut(clean(value), longest)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)  # JSON has no NaN
    if depth == 0:
        return cut(clean(str(value)), longest)
    if isinstance(value, dict):
        kept = {
            cut(clean(str(k)), 80): clean_value(v, longest=longest, most=most, depth=depth - 1)
            for k, v in list(value.items())[:most]
        }
        return kept | ({"...": f"{len(value) - most} more"} if len(value) > most else {})
    if isinstance(value, (list, tuple, set, frozenset)):
        items = list(value)
        shown = [clean_value(item, longest=longest, most=most, depth=depth - 1) for item in items[:most]]
        return shown + ([f"... {len(items) - most} more"] if len(items) > most else [])
    return cut(clean(str(value)), longest)


def cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text) - longest} more characters)"


def slug(text: str, longest: int = 40) -> str:
    """A few words of `text` for a file name: ASCII, lower case, dashes; `session` when nothing is left."""
    folded = unicodedata.normalize("NFKD", text.casefold()).encode("ascii", "ignore").decode("ascii")
    result = ""
    for word in re.findall(r"[a-z0-9]+", folded):
        if len(result) + len(word) + 1 > longest:
            break
        result += f"-{word}" if result else word
    return result or "session"


def heading(text: str, longest: int = 90) -> str:
    """The first line of `text` as a title: no Markdown marks, cut at a word."""
    line = next((line for line in clean(text).split("\n") if line.strip()), "")
    line = re.sub(r"^\s*(?:(?:#+|[>*+-]|\d+[.)])\s+)*", "", line).strip(" *_`#")
    line = re.sub(r"[\[\]<>`*]", "", line).strip()
    if len(line) > longest:
        line = line[:longest].rsplit(" ", 1)[0] + " ..."
    return line


def inline(text: str) -> str:
    """`text` on one line with nothing in it that Markdown would act on: for table cells and lead lines."""
    flat = re.sub(r"([\\`*\[\]<|])", r"\\\1", " ".join(clean(text).split()))
    return re.sub(r"(?<!\w)_|_(?!\w)|~(?=~)|&(?=#|\w+;)", r"\\\g<0>", flat)


def code(text: str) -> str:
    """`text` as inline code fit for a table cell."""
    flat = " ".join(clean(text).split()).replace("|", "\\|")
    ticks = "`" * (max((len(run) for run in re.findall(r"`+", flat)), default=0) + 1)
    pad = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{ticks}{pad}{flat}{pad}{ticks}" if flat else ""


@lru_cache(maxsize=2048)
def fit(text: str) -> tuple[str, ...]:
    """The lines of `text` (cleaned Markdown) as they can stand inside a section.

    Headings are demoted below the page's own, raw HTML is escaped, an open code fence is closed. What still would
    not leave the rest of the page alone is shown verbatim in a code block.
    """
    lines = text.split("\n")
    parser = _parser()
    tokens = parser.parse(text)
    escape, drop = set[int](), set[int]()
    levels = [int(t.tag[1]) for t in tokens if t.type == "heading_open" and t.level == 0]
    shift = max(0, NOTE_HEADING - min(levels, default=NOTE_HEADING))
    for token in tokens:
        if token.map is None:
            continue
        first, end = token.map
        if token.type == "html_block" or (
            token.type == "inline" and any(child.type == "html_inline" for child in token.children or ())
        ):
            escape.update(range(first, end))
        elif token.type == "heading_open" and token.level == 0:
            marks = "#" * min(6, int(token.tag[1]) + shift)
            if token.markup in ("=", "-"):  # a heading by underlining: its last line is the underline
                lines[first] = f"{marks} {' '.join(line.strip() for line in lines[first : end - 1])}"
                drop.update(range(first + 1, end))
            else:
                lines[first] = marks + lines[first].lstrip(" ").lstrip("#")
    fitted = [_escape_html(line) if i in escape else line for i, line in enumerate(lines) if i not in drop]
    closing = closing_lines("\n".join(fitted))
    if closing is not None:
        fitted += closing
        if _is_tame("\n".join(fitted)):
            return tuple(fitted)
    return tuple(verbatim(text))


def verbatim(text: str) -> list[str]:
    """`text` in a code block whose fence is longer than any in it."""
    fence = "`" * max(3, max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    return [f"{fence}text", *text.split("\n"), fence]


@lru_cache(maxsize=512)
def closing_lines(text: str) -> tuple[str, ...] | None:
    """The lines that end what `text` left open (a code fence), () when nothing is, None when nothing helps."""
    for candidate in ((), ("```",), ("~~~",), ("````",), ("~~~~",)):
        if _leaves_the_rest_alone("\n".join([text, *candidate])):
            return candidate
    fence = max(
        (run for line in text.split("\n") for run in re.findall(r"^\s*(`{3,}|~{3,})", line)), key=len, default=""
    )
    return (fence,) if fence and _leaves_the_rest_alone(f"{text}\n{fence}") else None


def _leaves_the_rest_alone(text: str) -> bool:
    tokens = _parser().parse(f"{text}\n\n{_MARK}\n")
    return len(tokens) >= 3 and tokens[-2].content == _MARK and tokens[-2].level == 1 and tokens[-3].level == 0


def _is_tame(text: str) -> bool:
    for token in _parser().parse(text):
        if token.type == "heading_open" and token.level == 0 and int(token.tag[1]) < NOTE_HEADING:
            return False
        if token.type == "html_block" or any(child.type == "html_inline" for child in token.children or ()):
            return False
    return True


def _escape_html(line: str) -> str:
    result, at = "", 0
    for span in _CODE_SPAN.finditer(line):
        result += line[at : span.start()].replace("<", "&lt;") + span.group()
        at = span.end()
    return result + line[at:].replace("<", "&lt;")


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt  # not needed to answer a first call

    return MarkdownIt("commonmark").enable(["table", "strikethrough"])


def top_headings(text: str) -> list[int]:
    """The lines of `text` at which a heading of the page's own level (1 or 2) stands."""
    tokens = _parser().parse(text)
    return [t.map[0] for t in tokens if t.type == "heading_open" and t.level == 0 and t.tag in ("h1", "h2") and t.map]
