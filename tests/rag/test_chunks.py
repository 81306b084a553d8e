"""Passages: whole sentences of one section, with offsets that lead back to where they stand."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pdf_files
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.documents import chunks, files, text
from rag.documents.chunks import Chunk
from rag.documents.document import Block
from rag.index.store import Passage
from rag.quote import LONGEST, quote

WORD = st.text(alphabet="abcdefghijklmnopqrstuvwxyzABCéß中.!?,;:()[]\"'*-_`0123456789", min_size=1, max_size=12)
SPACE = st.sampled_from([" ", " ", " ", "  ", "\n", "\n\n", "\t", ". ", ".\n"])
TEXT = st.lists(st.tuples(WORD, SPACE), max_size=400).map(lambda parts: "".join(a + b for a, b in parts))


def squeezed(text: str) -> str:
    return "".join(text.split())


def laid_out(blocks: Iterable[Block]) -> dict[int | None, str]:
    """The text of each page (None: of the whole file) with every block where it says it stands."""
    pages: dict[int | None, list[str]] = defaultdict(list)
    for block in blocks:
        letters = pages[block.page]
        letters += [" "] * (block.start + len(block.text) - len(letters))
        assert "".join(letters[block.start : block.start + len(block.text)]).strip() == "", "blocks overlap"
        letters[block.start : block.start + len(block.text)] = block.text
    return {page: "".join(letters) for page, letters in pages.items()}


def shown(chunk: Chunk, pages: dict[int | None, str]) -> str:
    """What stands at a passage's offsets."""
    first, last = chunk.pages or (None, None)
    if first == last:
        return pages[first][chunk.start : chunk.end]
    assert first is not None and last is not None
    between = [pages.get(page, "") for page in range(first + 1, last)]
    return "".join([pages[first][chunk.start :], *between, pages[last][: chunk.end]])


def check(blocks: list[Block]) -> list[Chunk]:
    made = list(chunks.cut(blocks))
    pages = laid_out(blocks)
    for chunk in made:
        passage = Passage("d", 0, "paper", "T", "s", "", chunk.text, "", marks=chunk.marks)
        for offset in range(0, len(chunk.text), 5):
            place, page = passage.place(offset)
            assert chunk.text[offset].isspace() or pages[page][place] == chunk.text[offset]
        assert 0 < len(chunk.text) <= chunks.LONGEST + 2
        assert squeezed(shown(chunk, pages)) == squeezed(chunk.text)
    assert "".join(squeezed(chunk.text) for chunk in made) == "".join(squeezed(block.text) for block in blocks)
    return made


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TEXT, st.integers(0, 2)), max_size=5))
def test_offsets_lead_back_to_the_passage_and_nothing_is_lost(parts: list[tuple[str, int]]) -> None:
    blocks, position, page = [], 0, 1
    for number, (content, step) in enumerate(parts):
        page, position = page + step, 0 if step else position
        if content.strip():
            blocks.append(Block(content, f"section {number // 2}", page, position))
            position += len(content) + 2
    check(blocks)


@settings(max_examples=150, deadline=None)
@given(TEXT, st.booleans())
def test_offsets_in_text_files_count_in_the_file_itself(content: str, markdown: bool) -> None:
    blocks = list((text.read_markdown(content) if markdown else text.read_plain(content)).blocks)
    for block in blocks:
        assert content[block.start : block.start + len(block.text)] == block.text
    for chunk in check(blocks):
        assert squeezed(content[chunk.start : chunk.end]) == squeezed(chunk.text)
    if not markdown:
        assert "".join(squeezed(block.text) for block in blocks) == squeezed(content)


def test_a_comment_in_markdown_moves_nothing() -> None:
    source = "# T\n\nBefore <!-- secret\n\nnotes --> after.\n\n## S\n\nLast words."
    blocks = list(text.read_markdown(source).blocks)
    assert "secret" not in " ".join(block.text for block in blocks)
    assert all(squeezed(block.text) in squeezed(source[block.start :]) for block in blocks)
    assert blocks[-1].start == source.index("Last words.") and blocks[-1].section == "S"


@pytest.mark.parametrize("columns", [1, 2])
def test_a_passage_of_a_pdf_names_the_pages_it_stands_on(tmp_path: Path, columns: int) -> None:
    text = [
        " ".join(f"Claim {part}.{n} has its own evidence and is stated once." for n in range(40)) for part in range(9)
    ]
    (tmp_path / "a.pdf").write_bytes(
        pdf_files.article("A Long List of Claims", "N. N.", [("1 Claims", text)], columns=columns)
    )
    blocks = list(files.read(tmp_path / "a.pdf").blocks)
    made = check(blocks)
    pages = laid_out(blocks)
    for part in range(9):
        for n in range(40):
            claim = squeezed(f"Claim {part}.{n} has")
            holders = [chunk for chunk in made if claim in squeezed(chunk.text)]
            on = {page for page, content in pages.items() if page is not None and claim in squeezed(content)}
            assert all(chunk.pages and chunk.pages[0] <= page <= chunk.pages[1] for chunk in holders for page in on)
    assert {page for chunk in made if chunk.pages for page in chunk.pages} == set(pages)


def test_sentences_end_where_sentences_end() -> None:
    source = (
        "It rose by 3.5 percent, e.g. in Fig. 2 of Smith et al. and by J. Doe. Then it fell! Why? (No one knows.) Next."
    )
    spans = [source[start:end] for start, end in chunks.sentence_spans(source)]
    assert spans == [
        "It rose by 3.5 percent, e.g. in Fig. 2 of Smith et al. and by J. Doe.", "Then it fell!", "Why?",
        "(No one knows.)", "Next.",
    ]  # fmt: skip
    assert re.sub(r"\s", "", source) == re.sub(r"\s", "", "".join(spans))


def test_a_quote_names_the_page_it_stands_on_and_where() -> None:
    blocks = [
        Block("The first page ends with a marmot. " * 9, "S", 1, 0),
        Block("An ibex comes on the next page.", "S", 2, 0),
    ]
    (chunk,) = chunks.cut(blocks)
    passage = Passage("d", 0, "paper", "T", "s", "S", chunk.text, "", page=1, page_end=2, marks=chunk.marks)
    again = Passage.from_payload(json.loads(json.dumps(passage.payload())))
    start = chunk.text.index("An ibex")
    assert again.place(start) == (0, 2) and again.place(start + 3) == (3, 2)
    assert again.place(chunk.text.index("marmot", 40)) == (blocks[0].text.index("marmot", 40), 1)


def test_a_passage_comes_back_from_the_store_as_it_went_in() -> None:
    """What is as by default is not kept there."""
    few = Passage("d", 0, "note", "", "s", "", "text", "")
    assert few.payload().keys() == {"document", "number", "kind", "title", "source", "section", "text", "hash"}
    where = replace(few, page=1, page_end=2, start=3, end=4, marks=((0, 1, None), (2, 3, 4)))
    many = replace(where, date="1970", time=0.0, tags=("a",), campaign="c", metrics={"loss": 0.0})
    for passage in (few, many):
        assert Passage.from_payload(json.loads(json.dumps(passage.payload()))) == passage


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXT, max_size=4), st.sets(st.integers(0, 50)))
def test_a_quote_stands_where_it_says(parts: list[str], wanted: set[int]) -> None:
    passage = "\n\n".join(parts)
    made = quote(passage, frozenset(wanted), lambda words: [len(word) for word in words.split()])
    assert len(made.text) <= LONGEST
    shown = squeezed(made.text.removeprefix("… ").removesuffix(" …"))
    assert squeezed(passage[made.start : made.end]).startswith(shown)
