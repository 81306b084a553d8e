"""PDF files as real writers make them, for the tests of reading: columns, running heads, hyphens, scans, passwords."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from reportlab.lib.pagesizes import A4
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Flowable, Frame, PageTemplate, Paragraph

WIDTH, HEIGHT = A4
MARGIN, GAP = 60.0, 20.0
TITLE = ParagraphStyle("title", fontName="Times-Bold", fontSize=20, leading=24, alignment=1, spaceAfter=8)
NAMES = ParagraphStyle("names", fontName="Times-Roman", fontSize=12, leading=14, alignment=1, spaceAfter=12)
HEADING = ParagraphStyle("heading", fontName="Times-Bold", fontSize=12, leading=15, spaceBefore=8, spaceAfter=4)
BODY = ParagraphStyle("body", fontName="Times-Roman", fontSize=10, leading=12, spaceAfter=6, alignment=4)


def article(
    title: str, authors: str, sections: Sequence[tuple[str, Sequence[str]]], *, columns: int = 2, head: str = ""
) -> bytes:
    """A paper: title and authors, then headings with paragraphs, in columns; each page with running head and number."""
    target = io.BytesIO()
    width = (WIDTH - 2 * MARGIN - GAP * (columns - 1)) / columns
    frames = [Frame(MARGIN + n * (width + GAP), MARGIN, width, HEIGHT - 2 * MARGIN, 0, 0, 0, 0) for n in range(columns)]

    def edges(canvas: Canvas, document: Any) -> None:
        canvas.setFont("Times-Italic", 9)
        canvas.drawCentredString(WIDTH / 2, HEIGHT - 40, head)
        canvas.drawCentredString(WIDTH / 2, 30, str(canvas.getPageNumber()))

    story: list[Flowable] = [Paragraph(title, TITLE), Paragraph(authors, NAMES)]
    for heading, paragraphs in sections:
        story.append(Paragraph(heading, HEADING))
        story += [Paragraph(text, BODY) for text in paragraphs]
    template = PageTemplate(frames=frames, onPage=edges)
    BaseDocTemplate(target, pagesize=A4, pageTemplates=[template], title="", author="").build(story)
    return target.getvalue()


def drawn(draw: Callable[[Canvas], None], **options: Any) -> bytes:
    """What `draw` puts on a canvas; pages end with `showPage`."""
    target = io.BytesIO()
    canvas = Canvas(target, pagesize=A4, **options)
    draw(canvas)
    canvas.save()
    return target.getvalue()


def across(left: Sequence[str], right: Sequence[str], over: str = "") -> bytes:
    """A page of two columns whose lines are drawn in turn, left, right, left, right; `over` spans both."""

    def draw(canvas: Canvas) -> None:
        canvas.setFont("Times-Roman", 10)
        canvas.drawString(MARGIN, HEIGHT - 80, over)
        for number, lines in enumerate(zip(left, right, strict=True)):
            for column, line in enumerate(lines):
                canvas.drawString(MARGIN + column * (WIDTH / 2 - MARGIN + GAP), HEIGHT - 110 - 12 * number, line)

    return drawn(draw)


def encrypted(text: str, password: str) -> bytes:
    """A page that opens with the password only."""
    return drawn(lambda canvas: canvas.drawString(72, 700, text), encrypt=StandardEncryption(password))


def scanned(pages: int = 2) -> bytes:
    """Pages that are pictures, as a scanner without OCR leaves them."""
    picture = ImageReader(Image.effect_noise((200, 280), 60))

    def draw(canvas: Canvas) -> None:
        for _ in range(pages):
            canvas.drawImage(picture, 0, 0, WIDTH, HEIGHT)
            canvas.showPage()

    return drawn(draw)


def book(pages: int, line: Callable[[int], str]) -> bytes:
    """`line(n)` on page n, from 1; quick to make for thousands of pages."""

    def draw(canvas: Canvas) -> None:
        for number in range(1, pages + 1):
            for row in range(4):
                canvas.drawString(72, 700 - 14 * row, line(number) if row == 0 else f"Filling text of row {row}.")
            canvas.showPage()

    return drawn(draw)
