"""Jupyter notebooks: words, code and what the code printed, as one Markdown text. Standard library only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from rag.documents.document import Details, Document, Unreadable, clean, clean_title
from rag.documents.text import decode, read_markdown

OUTPUT_LIMIT = 2_000  # characters of one output; what matters stands at its beginning or its end
CODE_LIMIT = 20_000  # characters of one cell
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def read(data: bytes, name: str) -> Document:
    """Sections are the notebook's headings; offsets count in the Markdown it becomes. Raises `Unreadable`."""
    try:
        notebook = json.loads(decode(data, name))
        sheets = notebook.get("worksheets") or [notebook]  # format 3 has its cells one level down
        cells = [cell for sheet in sheets for cell in sheet["cells"]]
        language = str((notebook.get("metadata") or {}).get("language_info", {}).get("name") or "python")
        parts = [part for cell in cells for part in _parts(cell, language)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable("it is damaged, or not a Jupyter notebook") from error
    document = read_markdown("\n\n".join(parts))
    given = clean_title(str((notebook.get("metadata") or {}).get("title") or ""))
    return Document(Details(title=given).over(document.details), document.blocks)


def _parts(cell: dict[str, Any], language: str) -> Iterator[str]:
    source = clean(_text(cell.get("source", cell.get("input", "")))).strip("\n")
    kind = cell.get("cell_type")
    if kind in ("markdown", "heading"):
        yield f"{'#' * int(cell.get('level', 1))} {source}" if kind == "heading" else source
    elif source.strip():
        yield _fenced(_shortened(source, CODE_LIMIT), language if kind == "code" else "text")
    for output in cell.get("outputs", []) if kind == "code" else []:
        text = clean(ANSI.sub("", _printed(output))).strip("\n")
        if text.strip():
            yield _fenced(_shortened(text, OUTPUT_LIMIT), "text")


def _printed(output: dict[str, Any]) -> str:
    """The text of an output; pictures, pages and widgets have none."""
    if output.get("output_type") in ("error", "pyerr"):
        return f"{output.get('ename', 'error')}: {output.get('evalue', '')}"
    if "text" in output:
        return _text(output["text"])
    return _text((output.get("data") or {}).get("text/plain", ""))


def _text(value: Any) -> str:
    return "".join(map(str, value)) if isinstance(value, list) else str(value)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n... ({len(text) - longest} characters left out)\n{text[-half:]}"


def _fenced(text: str, language: str) -> str:
    fence = "`" * max(3, max((len(run) + 1 for run in re.findall(r"`{3,}", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
