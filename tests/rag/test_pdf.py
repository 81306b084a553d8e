"""PDFs as real writers make them: reading order, running heads, hyphens, authors, references, and what is no text."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pdf_files
import pytest

from rag.documents import chunks, files, pdf
from rag.documents.document import Document, Unreadable

WORDS = [
    "Warm-up raises the learning rate linearly before it decays, which keeps early updates small.",
    "Internationalization of hyperparameter recommendations notwithstanding, characteristically long words are broken.",
    "We measured that a warm-up of two hundred steps was best for networks of this size and this depth.",
    "Without it the loss diverged in three of five replicates, whatever optimizer had been configured.",
]


def named(number: int) -> str:
    """A number as a word: lines that differ in their digits only look like running heads."""
    return "".join("abcdefghij"[int(digit)] for digit in f"{number:04d}")


def read(folder: Path, content: bytes, name: str = "paper.pdf") -> Document:
    path = folder / name
    path.write_bytes(content)
    return files.read(path)


def paper(columns: int = 2) -> bytes:
    text = [" ".join(f"Sentence {n} of part {part}. {WORDS[n % 4]}" for n in range(12)) for part in range(3)]
    sections = [
        ("Abstract", ["We study warm-up in very small networks. " + WORDS[0]]),
        ("1 Introduction", text),
        ("2 Method", [*text, "The marker sentence of the method stands here."]),
        ("References", ["[1] A. Vaswani et al. Attention is all you need. 2017.", "[2] B. Smith. Nothing. 1999."]),
        ("A Details of training", ["The appendix tells of the seeds."]),
    ]
    return pdf_files.article(
        "Warm-up Schedules for Small Networks", "Ada Lovelace, Alan M. Turing and Grace Hopper", sections,
        columns=columns, head="Warm-up Schedules - Preprint under review",
    )  # fmt: skip


@pytest.mark.parametrize("columns", [1, 2])
def test_a_paper_is_read_as_a_person_reads_it(tmp_path: Path, columns: int) -> None:
    document = read(tmp_path, paper(columns))
    blocks = list(document.blocks)
    text = " ".join(" ".join(block.text.split()) for block in blocks)
    assert document.details.title == "Warm-up Schedules for Small Networks"
    assert document.details.authors == "Ada Lovelace, Alan M. Turing, Grace Hopper"
    sections = list(dict.fromkeys(block.section for block in blocks if block.section))
    assert sections == ["Abstract", "Introduction", "Method", "Details of training"]
    order = [text.index(f"Sentence {n} of part {part}.") for part in range(3) for n in range(12)]
    assert order == sorted(order)
    assert all(sentence in text for sentence in WORDS)
    assert "Preprint under review" not in text  # the running head
    assert "Vaswani" not in text and "1999" not in text
    assert "tells of the seeds" in text
    marker = next(block for block in blocks if "marker sentence" in block.text)
    assert marker.page is not None and marker.page > 1


def test_words_broken_at_the_end_of_a_line_are_whole_again(tmp_path: Path) -> None:
    def draw(canvas: pdf_files.Canvas) -> None:
        for row, line in enumerate(["The optimi-", "zer needs a well-", "known rate, not a self-", "Made one."]):
            canvas.drawString(72, 700 - 14 * row, line)

    text = " ".join(block.text for block in read(tmp_path, pdf_files.drawn(draw)).blocks)
    assert "optimizer needs" in text
    assert "self-Made" in text.replace(" ", "") and "selfMade" not in text


def test_columns_that_were_drawn_across_are_read_down(tmp_path: Path) -> None:
    left = [f"left line {n} says what the first column of this page has to say" for n in range(20)]
    right = [f"right line {n} goes on where the left column of the page ended" for n in range(20)]
    document = read(tmp_path, pdf_files.across(left, right, over="One line spans the whole width of the page " * 2))
    text = " ".join(block.text for block in document.blocks)
    found = [text.index(line) for line in [*left, *right]]
    assert found == sorted(found)
    assert text.startswith("One line spans")


def test_a_table_is_read_row_by_row(tmp_path: Path) -> None:
    rows = [(f"model {n}", f"{n}.5 bits") for n in range(12)]
    document = read(tmp_path, pdf_files.across([a for a, _ in rows], [b for _, b in rows]))
    text = " ".join(block.text for block in document.blocks)
    assert all(f"{name} {value}" in text for name, value in rows)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pdf_files.encrypted("The secret result is 42.", "swordfish"), "encrypted"),
        (pdf_files.scanned(), "no text layer"),
        (paper()[:4000], "damaged"),
        (b"%PDF-1.7\n" + bytes(range(256)) * 40, "damaged"),
        (b"", "empty"),
    ],
)
def test_a_pdf_without_text_says_why(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        read(tmp_path, content)


def test_a_damaged_page_costs_no_other(tmp_path: Path) -> None:
    content = pdf_files.book(6, lambda n: f"Page {named(n)} has words of its own here.")
    broken = content.replace(b"/Contents", b"/Contentz", 1)  # of the first page
    text = " ".join(block.text for block in read(tmp_path, broken).blocks)
    assert f"Page {named(1)} has" not in text and all(f"Page {named(n)} has" in text for n in range(2, 7))


def test_five_thousand_pages_are_read_in_bounded_time_with_room_for_others(tmp_path: Path) -> None:
    path = tmp_path / "book.pdf"
    path.write_bytes(pdf_files.book(5000, lambda n: f"The page called {named(n)} tells of its own matter."))
    pauses = [time.monotonic()]
    document = files.read(path, breathe=lambda: pauses.append(time.monotonic()))
    cut = list(chunks.cut(document.blocks))
    assert len(pauses) > 100
    found = next(chunk for chunk in cut if f"called {named(4321)} tells" in chunk.text)
    assert found.pages is not None and found.pages[0] <= 4321 <= found.pages[1] < found.pages[0] + 40
    assert len(cut) > 100 and cut[-1].pages is not None and cut[-1].pages[1] == 5000


def test_more_pages_than_are_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rag.documents.pdf.PAGE_LIMIT", 3)
    with pytest.raises(Unreadable, match="4 pages; at most 3"):
        read(tmp_path, pdf_files.book(4, str))


def test_real_articles_have_their_titles_authors_and_pages() -> None:
    folder = os.environ.get("LAB_BENCH_DATA")
    if not folder:
        pytest.skip("LAB_BENCH_DATA is not set: real PDF files are not there")
    document = files.read(Path(folder) / "jose" / "10.21105.jose.00021.pdf")
    assert document.details.title == "CFD Python: the 12 steps to Navier-Stokes equations"
    assert document.details.authors.startswith("Lorena A. Barba")
    made = list(chunks.cut(document.blocks))
    assert {"Summary", "Statement of need"} <= {chunk.section for chunk in made}
    assert any(chunk.pages and chunk.pages[0] == 2 for chunk in made)
    for path in sorted((Path(folder) / "jose").glob("*.pdf")):
        assert files.read(path).details.title, path.name


REFERENCES = [f"[{n}] A. Author and B. Other. A title of theirs. In Proceedings, {1990 + n}." for n in range(9)]
PROSE = ["We used a rate of 0.02 and a batch of 64 for all of them,", "on four cards, as is told in the main part."]


@pytest.mark.parametrize(
    "heading", ["A Hyperparameters", "B Proof of Theorem One", "A IMPLEMENTATION DETAILS", "Appendix"]
)
def test_what_follows_the_references_is_read_however_long_it_is(heading: str) -> None:
    pages = [["Introduction", *PROSE], ["References", *REFERENCES, "", heading, *PROSE], *[[*PROSE, "More of it."]] * 9]
    found = " ".join(text for _, _, text in pdf._paragraphs(pages))
    assert "A. Author" not in found and found.count("We used a rate") == 11


def test_a_reference_that_looks_like_a_heading_ends_no_references() -> None:
    named = [
        "A Vaswani and N Shazeer",
        "Attention is all you need. In NeurIPS, 2017.",
        "B Zoph and Q Le",
        "Searching. 2016.",
    ]
    found = " ".join(text for _, _, text in pdf._paragraphs([[*PROSE], ["References", *named * 4]]))
    assert "Zoph" not in found and "Searching" not in found
