"""A report as one HTML file that opens without a network, prints well, and is read on a desk or a telephone."""

from __future__ import annotations

from experiments.report.blocks import Document, Heading, anchor, escaped, html_body
from experiments.report.style import STYLE


def page(document: Document, figure: str = "") -> str:
    """The whole file. `figure`: the progress figure as an SVG element of our own making."""
    if figure:
        label = f'<svg role="img" aria-label="Progress of {escaped(document.title)}" '
        figure = figure.replace("<svg ", label, 1)
    headings = [b.text for b in document.blocks if isinstance(b, Heading) and b.level == 2]
    links = "".join(f'<a href="#{anchor(text)}">{escaped(text)}</a>' for text in headings)
    title = escaped(document.title)
    # whatever slips through the escaping may run nothing and load nothing
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
        f'<p class="subtitle">{escaped(document.subtitle)}</p>\n<nav aria-label="Contents">{links}</nav>\n'
        f"{html_body(document, figure)}\n</main>\n</body>\n</html>\n"
    )
