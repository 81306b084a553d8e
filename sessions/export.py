"""Several sessions as one document: Markdown, or an HTML page that needs nothing from outside."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from typing import Any

from sessions.index import Session
from workspace.errors import LabError, NotFound

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c; }
h1 { border-bottom: 2px solid #ccc; padding-bottom: .3rem; margin-top: 3rem; } h2 { margin-top: 2rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0; }
th, td { border: 1px solid #ccc; padding: .25rem .6rem; text-align: left; vertical-align: top; }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; } code { font-size: .9em; background: #f4f4f4; }
blockquote { border-left: 3px solid #ccc; margin-left: 0; padding-left: 1rem; color: #555; }
@media (prefers-color-scheme: dark) { body { background: #16181b; color: #e4e4e4; } a { color: #8ab4f8; }
  pre, code { background: #24272b; } h1, th, td { border-color: #444; } }
@media print { body { max-width: none; } h1 { break-before: page; } h1:first-of-type { break-before: auto; } }
"""


def compact(value: Any) -> str:
    """JSON on one line, for words about a call's outcome."""
    return json.dumps(value, ensure_ascii=False)


def select(sessions: Sequence[Session], range_: str) -> list[Session]:
    """The sessions meant by `all`, a session, a day, or `FROM..TO`; `LabError` when that says nothing."""
    text = range_.strip()
    first, dots, last = text.partition("..")
    pattern = r"(\d{4}-\d{2}(-\d{2})?(-\d{2,})?)?"
    if text.lower() in ("", "all"):
        return list(sessions)
    if not re.fullmatch(pattern, first) or not re.fullmatch(pattern, last) or not (first or last):
        raise LabError(
            f"{range_[:80]!r} names no sessions",
            valid="all, a session (2026-11-21-01), a day (2026-11-21), or FROM..TO of either",
        )
    if not dots:
        last = first
    chosen = [s for s in sessions if s.id >= first and (not last or s.id <= last or s.id.startswith(last + "-"))]
    if not chosen:
        raise NotFound(f"there are no sessions in {range_[:80]!r}", valid=_extent(sessions))
    return chosen


def _extent(sessions: Sequence[Session]) -> str:
    return f"{sessions[0].id} to {sessions[-1].id}" if sessions else "there is no session yet"


def document(pages: Sequence[tuple[Session, str]], fmt: str) -> str:
    """One document of these pages, with a list of them at the front when there are several."""
    parts = [text.strip() for _, text in pages]
    head = f"# Lab notebook, {pages[0][0].id} to {pages[-1][0].id}\n\n"
    if fmt == "md":
        listed = [f"- {session.id}: {_plain(session.title)}" for session, _ in pages]
        front = [head + "\n".join(listed)] if len(pages) > 1 else []
        return "\n\n---\n\n".join([*front, *parts]) + "\n"
    linked = [f"- [{session.id}](#s-{session.id}) {_plain(session.title)}" for session, _ in pages]
    articles = [f"<nav>\n{rendered(head + chr(10).join(linked))}</nav>"] if len(pages) > 1 else []
    for (session, _), part in zip(pages, parts, strict=True):
        articles.append(f'<article id="s-{session.id}">\n{rendered(part)}</article>')
    return html_page(pages[0][0].title if len(pages) == 1 else "Lab notebook", "\n<hr>\n".join(articles))


def rendered(markdown: str) -> str:
    """Markdown as HTML; HTML inside it stays text."""
    from markdown_it import MarkdownIt  # only an export to HTML needs it

    parsed: str = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).render(markdown)
    return parsed


def html_page(title: str, body: str) -> str:
    """A whole page that needs nothing from outside."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _plain(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>])", r"\\\1", text)
