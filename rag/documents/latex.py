"""LaTeX source: its parts joined, comments left out, sections, title and abstract found, text made readable.

pylatexenc turns one paragraph after the other into text: what it cannot read in one of them costs no other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from rag.documents.document import TITLE_LIMIT, Block, Details, Document, Unreadable, arxiv_date, clean, clean_title
from rag.documents.text import decode

if TYPE_CHECKING:
    from pylatexenc.latex2text import LatexNodes2Text

DEPTH = 8  # of files that name files
PARTS = 300  # files of one document
SOURCE_LIMIT = 32 << 20  # bytes of all of them
PARAGRAPH_LIMIT = 20_000  # characters converted at once; more is a table of data, taken as it is
MACROS = 200  # of the author's own that are kept
SHOWN = {"S": "§", "gets": "←", "State": "\n"}  # what pylatexenc does not know
BARE = re.compile(
    r"\\(?:caption|boldsymbol|bm|texorpdfstring)\*?\s*(?:\[[^\]]*\])?\s*(?=\{)"
)  # only its braces are shown
COMMENT = re.compile(r"(?<!\\)(?P<before>(?:\\\\)*)%[^\n]*(?:\n[ \t]*)?")
IGNORED = re.compile(r"\\begin\{comment\}.*?\\end\{comment\}|\\iffalse\b.*?\\fi\b", re.DOTALL)
INPUT = re.compile(r"\\(?:input|include|subfile)\s*\{([^{}]+)\}|\\input\s+([^\s{}\\]+)")
BEGIN, END = r"\begin{document}", r"\end{document}"
LEVELS = ("part", "chapter", "section", "subsection", "subsubsection", "paragraph")
MARKS = re.compile(
    rf"\\(?P<level>{'|'.join(LEVELS)})\*?\s*(?:\[[^\]]*\])?\s*(?=\{{)"
    r"|\\(?P<edge>begin|end)\s*\{(?P<name>abstract|thebibliography)\}|(?P<appendix>\\appendix\b)|(?P<gap>\n[ \t]*\n\s*)"
)
PICTURES = re.compile(r"\\begin\{(tikzpicture|pgfpicture|picture|filecontents\*?)\}.*?\\end\{\1\}", re.DOTALL)
NEW_COMMAND = re.compile(r"\\(?:re)?newcommand\*?\s*\{?\\([A-Za-z]+)\}?\s*(?=\{)|\\def\s*\\([A-Za-z]+)\s*(?=\{)")
KEYED = "cite citep citet citealp citealt citeauthor citeyear citeyearpar parencite textcite autocite footcite Citet"
KEYS = re.compile(rf"\\(?:{KEYED.replace(' ', '|')})\*?\s*(?:\[[^\]]*\]\s*){{0,2}}\{{([^{{}}]*)\}}")
REFERENCES = re.compile(r"\\(?:ref|eqref|autoref|[cC]ref|pageref|nameref)\*?\s*\{([^{}]*)\}")
LAYOUT = re.compile(
    r"\\(?:label|thanks|bibliography|bibliographystyle|vspace\*?|hspace\*?|includegraphics(?:\[[^\]]*\])?|input|usepackage"
    r"(?:\[[^\]]*\])?|setlength|setcounter|pagestyle|thispagestyle|graphicspath)\s*\{[^{}]*\}(?:\s*\{[^{}]*\})?"
    r"|\\(?:maketitle|centering|noindent|tableofcontents|newpage|clearpage|small|footnotesize|smallskip|medskip"
    r"|bigskip|hline|toprule|midrule|bottomrule|appendix)\b"
)


def join(path: Path, root: Path) -> tuple[str, list[Path]]:
    """The source of a document with everything it inputs in its place, and the files it was found in.

    Files outside `root`, missing ones and circles are left out. Raises `Unreadable`, OSError when `path` is gone.
    """
    files: list[Path] = []
    left = [SOURCE_LIMIT]

    def source(file: Path, depth: int, open_files: tuple[Path, ...]) -> str:
        left[0] -= file.stat().st_size
        if left[0] < 0:
            raise Unreadable(f"too large (at most {SOURCE_LIMIT >> 20} MB are read): split it")
        data = file.read_bytes()
        files.append(file)
        text = _without_comments(clean(decode(data, file.name)))

        def included(match: re.Match[str]) -> str:
            name = (match.group(1) or match.group(2)).strip()
            part = _part(path.parent, file.parent, name, root)
            if part is None or part in open_files or depth >= DEPTH or len(files) >= PARTS:
                return ""
            try:
                inner = source(part, depth + 1, (*open_files, part))
            except OSError:
                return ""
            return inner.partition(BEGIN)[2].partition(END)[0] if BEGIN in inner else inner

        return INPUT.sub(included, text)

    return source(path, 1, (path.resolve(),)), files


def _part(main: Path, beside: Path, name: str, root: Path) -> Path | None:
    """The file an \\input names, looked for beside the main file first, as LaTeX does; None outside `root`."""
    if "\0" in name or "#" in name:
        return None
    for folder in (main, beside):
        for candidate in (folder / name, folder / f"{name}.tex"):
            found = candidate.resolve()
            if root in found.parents and found.suffix.lower() == ".tex" and found.is_file():
                return found
    return None


def _without_comments(text: str) -> str:
    """A comment takes the end of its line with it, but not the empty line after it, which ends the paragraph."""
    without = COMMENT.sub(lambda m: m["before"] + ("\n" if m.string[m.end() : m.end() + 1] == "\n" else ""), text)
    return IGNORED.sub("", without)


def read(path: Path, root: Path) -> Document:
    """Raises `Unreadable` with the reason, OSError when the file is gone."""
    source, _ = join(path, root)
    if not source.strip():
        raise Unreadable("the file is empty")
    head, begun, body = source.partition(BEGIN)
    body = body.partition(END)[0] if begun else source
    convert = _converter(source[: len(head)] if begun else "")
    details = _details(source, convert)
    return Document(details, _blocks(PICTURES.sub("", body), convert))


def _details(source: str, convert: Callable[[str], str]) -> Details:
    title = clean_title(convert(_argument(source, r"\title")))
    authors = ", ".join(convert(part) for part in re.split(r"\\and\b|\\AND\b", _argument(source, r"\author")))
    authors = clean_title(re.sub(r"\s*(?:\\\\|\n)\s*", ", ", authors))[:TITLE_LIMIT]
    found = re.search(r"\b(?:19|20)\d{2}(?:-\d{2}){0,2}\b", _argument(source, r"\date"))
    arxiv = re.search(r"arXiv:\s*(\d{4}\.\d{4,5})", source[:20_000], re.IGNORECASE)
    number = arxiv.group(1) if arxiv else ""
    return Details(title, arxiv_date(number) or (found.group() if found else ""), (), authors, number)


def _argument(source: str, macro: str) -> str:
    match = re.search(rf"{re.escape(macro)}\s*(?:\[[^\]]*\])?\s*(?=\{{)", source)
    return "" if match is None else _braced(source, match.end())[0]


def _braced(text: str, position: int) -> tuple[str, int]:
    """What stands in the braces that open at `position`, and where it ends; nothing when they never close."""
    depth = 0
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, position):
        if match.group() in "{}":
            depth += 1 if match.group() == "{" else -1
            if depth == 0:
                return text[position + 1 : match.start()], match.end()
        if match.start() - position > PARAGRAPH_LIMIT:
            break
    return "", position


def _blocks(body: str, convert: Callable[[str], str]) -> Iterator[Block]:
    """The paragraphs, with offsets in the text that they are together, an empty line between them."""
    levels: dict[int, str] = {}
    position = begin = 0
    abstract = references = False

    def section() -> str:
        return "Abstract" if abstract else " > ".join(name for _, name in sorted(levels.items()))

    def paragraph(end: int) -> Iterator[Block]:
        nonlocal position
        text = "" if references else convert(body[begin:end])
        if text:
            yield Block(text, section(), start=position)
            position += len(text) + 2

    for match in MARKS.finditer(body):
        if match.start() < begin:
            continue  # inside a heading
        yield from paragraph(match.start())
        begin = match.end()
        if match["level"]:
            content, begin = _braced(body, match.end())
            level = LEVELS.index(match["level"])
            levels = {number: name for number, name in levels.items() if number < level}
            levels[level] = clean_title(convert(content))
        elif match["name"] == "abstract":
            abstract = match["edge"] == "begin"
        elif match["name"] == "thebibliography":
            references = match["edge"] == "begin"
    yield from paragraph(len(body))


def _converter(preamble: str) -> Callable[[str], str]:
    """`convert(latex)`: readable text; what cannot be parsed is shown with its commands taken out."""
    own: dict[str, str] = {}
    for match in NEW_COMMAND.finditer(preamble):
        body = _braced(preamble, match.end())[0]
        if body and "#" not in body and len(own) < MACROS:
            own[match.group(1) or match.group(2)] = body
    parser = _parser(tuple(own.items()))

    def convert(latex: str) -> str:
        latex = KEYS.sub(lambda m: f"[{' '.join(m.group(1).split())}]", latex)
        latex = BARE.sub("", LAYOUT.sub(" ", REFERENCES.sub(lambda m: f"[{m.group(1)}]", latex)))
        if not latex.strip():
            return ""
        if len(latex) > PARAGRAPH_LIMIT:
            return _plain(latex)
        try:
            text = str(parser.latex_to_text(latex))
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError):
            return _plain(latex)  # no LaTeX that pylatexenc knows: a lone brace, braces by the thousand
        return "\n".join(" ".join(line.split()) for line in text.split("\n") if line.strip())

    return convert


def readable(latex: str) -> str:
    """A short piece of LaTeX, such as a title, as text."""
    return _converter("")(latex)


def _plain(latex: str) -> str:
    return " ".join(re.sub(r"\\[A-Za-z]+\*?|[{}]", " ", latex).split())


@lru_cache(maxsize=8)
def _parser(own: tuple[tuple[str, str], ...]) -> LatexNodes2Text:
    from pylatexenc import latex2text

    def kept(node: object) -> str:
        return f"\\{getattr(node, 'macroname', '')} "

    context = latex2text.get_default_latex_context_db()
    context.set_unknown_macro_spec(latex2text.MacroTextSpec("", simplify_repl=kept))
    plain = latex2text.LatexNodes2Text(latex_context=context)
    mine = []
    for name, body in own:
        try:
            mine.append(latex2text.MacroTextSpec(name, plain.latex_to_text(body).strip().replace("%", "%%")))
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    known = [latex2text.MacroTextSpec(name, shown) for name, shown in SHOWN.items()]
    context.add_context_category("author", macros=[*mine, *known], prepend=True)
    return latex2text.LatexNodes2Text(latex_context=context, math_mode="text", strict_latex_spaces=False)
