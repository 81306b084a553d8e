"""A report as blocks of text, tables and commands, as Markdown or HTML. Whatever a text holds, it stays text."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from sessions.text import clean, code, inline


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Span(Frozen):
    """Words that look otherwise: code, a verdict, strong."""

    text: str
    style: Literal["code", "verdict", "strong"] = "code"


Piece = str | Span
Pieces = Sequence[Piece]


class Heading(Frozen):
    kind: Literal["heading"] = "heading"
    text: str
    level: Literal[2, 3] = 2


class Paragraph(Frozen):
    kind: Literal["paragraph"] = "paragraph"
    pieces: list[Piece]


class Bullets(Frozen):
    kind: Literal["bullets"] = "bullets"
    items: list[list[Piece]]


class Table(Frozen):
    """`right`: numbers of the columns that hold figures, from 0. `wide`: many columns, small print."""

    kind: Literal["table"] = "table"
    caption: str
    columns: list[str]
    rows: list[list[Piece]]
    right: list[int] = []
    wide: bool = False


class Commands(Frozen):
    kind: Literal["commands"] = "commands"
    lines: list[str]


class Figure(Frozen):
    """The progress figure; `caption` stands below it."""

    kind: Literal["figure"] = "figure"
    caption: str


Block = Annotated[Heading | Paragraph | Bullets | Table | Commands | Figure, Field(discriminator="kind")]


class Document(Frozen):
    title: str
    subtitle: str
    blocks: list[Block]


def paragraph(*pieces: Piece) -> Paragraph:
    return Paragraph(pieces=list(pieces))


# -- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(document: Document, figure: str | None = None) -> str:
    """`figure`: the picture's file, relative to the document; without one its place stays empty."""
    parts = [f"# {inline(document.title)}", inline(document.subtitle)]
    for block in document.blocks:
        parts.append(_markdown_block(block, figure))
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_block(block: Block, figure: str | None) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {inline(block.text)}"
    if isinstance(block, Paragraph):
        return _markdown_pieces(block.pieces)
    if isinstance(block, Bullets):
        return "\n".join(f"- {_markdown_pieces(item)}" for item in block.items)
    if isinstance(block, Commands):
        fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", "\n".join(block.lines))), 3)
        return "\n".join([f"{fence}sh", *(" ".join(clean(line).split("\n")) for line in block.lines), fence])
    if isinstance(block, Figure):
        return f"![{inline(block.caption)}]({figure})\n\n*{inline(block.caption)}*" if figure else ""
    head = "| " + " | ".join(map(inline, block.columns)) + " |"
    rule = "|" + "|".join("---:" if i in block.right else "---" for i in range(len(block.columns))) + "|"
    rows = ["| " + " | ".join(_markdown_pieces([cell]) for cell in row) + " |" for row in block.rows]
    return f"**{inline(block.caption)}**\n\n" + "\n".join([head, rule, *rows])


def _markdown_pieces(pieces: Pieces) -> str:
    return "".join(_markdown_piece(piece) for piece in pieces)


def _markdown_piece(piece: Piece) -> str:
    if isinstance(piece, str):
        edge = re.match(r"^(\s?)(.*?)(\s?)$", piece, re.DOTALL)  # a space beside the next piece is kept
        assert edge is not None
        return f"{edge[1] and ' '}{inline(edge[2])}{edge[3] and ' '}"
    if piece.style == "code":
        return code(piece.text)
    after = " " if piece.text.endswith(" ") else ""  # within the stars it would be no emphasis
    return f"**{inline(piece.text)}**{after}" if piece.text.strip() else ""


# -- HTML -------------------------------------------------------------------------------------------------------------


def html_body(document: Document, figure: str = "") -> str:
    """The blocks as HTML elements. `figure`: the picture as HTML of our own making (an SVG element)."""
    parts = []
    for block in document.blocks:
        parts.append(_html_block(block, figure))
    return "\n".join(parts)


def anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.casefold()).strip("-") or "part"


def _html_block(block: Block, figure: str) -> str:
    if isinstance(block, Heading):
        name = f' id="{anchor(block.text)}"' if block.level == 2 else ""
        return f"<h{block.level}{name}>{escaped(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{_html_pieces(block.pieces)}</p>"
    if isinstance(block, Bullets):
        return "<ul>" + "".join(f"<li>{_html_pieces(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, Commands):
        return f"<pre><code>{escaped(chr(10).join(block.lines))}</code></pre>"
    if isinstance(block, Figure):
        return (
            f'<figure><div class="picture">{figure}</div><figcaption>{escaped(block.caption)}</figcaption></figure>'
            if figure
            else ""
        )
    head = "".join(_cell("th", column, i in block.right) for i, column in enumerate(block.columns))
    head = f"<thead><tr>{head}</tr></thead>" if any(block.columns) else ""
    rows = "".join(
        "<tr>" + "".join(_cell("td", cell, i in block.right) for i, cell in enumerate(row)) + "</tr>\n"
        for row in block.rows
    )
    name = ' class="wide"' if block.wide else ""
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{escaped(block.caption)}"><table{name}>'
        f"<caption>{escaped(block.caption)}</caption>{head}<tbody>\n{rows}</tbody></table></div>"
    )


def _cell(element: str, piece: Piece, right: bool) -> str:
    return f"<{element}{' class=number' if right else ''}>{_html_pieces([piece])}</{element}>"


def _html_pieces(pieces: Pieces) -> str:
    return "".join(_html_piece(piece) for piece in pieces)


def _html_piece(piece: Piece) -> str:
    if isinstance(piece, str):
        return escaped(piece)
    if piece.style == "code":
        return f"<code>{escaped(piece.text)}</code>"
    if piece.style == "verdict":
        return f'<span class="verdict {anchor(piece.text)}">{escaped(piece.text)}</span>' if piece.text else ""
    return f"<strong>{escaped(piece.text)}</strong>"


def escaped(text: str) -> str:
    """Without control characters and text direction overrides, too."""
    edges = text[: len(text) - len(text.lstrip(" "))], text[len(text.rstrip(" ")) :] if text.strip() else ""
    return html.escape(f"{edges[0]}{clean(text.strip(' '))}{edges[1]}")
