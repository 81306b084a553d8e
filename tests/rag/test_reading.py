"""Documents of every kind become paragraphs with section, page and offsets; what cannot be read says why."""

from __future__ import annotations

from pathlib import Path

import pytest
from rag_support import encrypted, pdf

from rag.documents import bibliography, chunks, files, text
from rag.documents.document import Block, Document, Unreadable


def read(tmp_path: Path, name: str, content: bytes | str) -> Document:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return files.read(path)


def test_a_pdf_gives_title_pages_and_sections_without_running_heads(tmp_path: Path) -> None:
    first = ["Warm-up Matters for Small Models", "J. Doe", "Abstract", "We study warm-up of the learn-", "ing rate."]
    pages = [[f"Doe et al. page {n + 1}", "text of the body goes here and on"] for n in range(5)]
    pages[0] = first
    pages[2] += ["3 Results", "A warm-up of 200 steps was best."]
    pages[4] += ["References", "[1] Somebody. Something else. 1999."]
    document = read(tmp_path, "a.pdf", pdf(pages))
    blocks = list(document.blocks)
    assert document.details.title == "Warm-up Matters for Small Models"
    assert [b.section for b in blocks if b.page == 1] == ["", "Abstract"]
    assert "learning rate" in next(b.text for b in blocks if b.section == "Abstract")
    result = next(b for b in blocks if "200 steps" in b.text)
    assert (result.page, result.section) == (3, "Results")
    everything = " ".join(b.text for b in blocks)
    assert "Doe et al." not in everything
    assert "Somebody" not in everything


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("broken.pdf", b"%PDF-1.4\nnonsense", "damaged"),
        ("cut.pdf", pdf([["Some text"] * 5])[:200], "damaged"),
        ("secret.pdf", encrypted(), "encrypted"),
        ("scan.pdf", pdf([[], [], []]), "no text layer"),
        ("empty.md", b"", "empty"),
        ("blank.txt", b" \n\n ", "empty"),
        ("picture.md", bytes(range(256)) * 8, "binary data"),
        ("noise.txt", bytes([1, 2, 3, 200, 4, 5]) * 50, "binary data"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        read(tmp_path, name, content)


def test_a_huge_text_file_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.txt"
    with path.open("wb") as file:
        file.truncate(2 << 30)  # sparse: takes no room
    with pytest.raises(Unreadable, match="too large"):
        files.read(path)


def test_markdown_front_matter_sections_and_offsets(tmp_path: Path) -> None:
    source = (
        "---\ntitle: Warm-up\nyear: 2020\ntags: [lr, schedule]\n---\n# Warm-up\n\nFirst words.\n\n"
        "## Method\n\nHow.\n\n### Data\n\nWhich data.\n\n```\n# no heading\n```\n\n## Results\n\nGood."
    )
    document = read(tmp_path, "note.md", source)
    blocks = list(document.blocks)
    assert (document.details.title, document.details.date) == ("Warm-up", "2020")
    assert document.details.tags == ("lr", "schedule")
    assert [b.section for b in blocks] == ["", "Method", "Method > Data", "Method > Data", "Results"]
    for block in blocks:
        assert source[block.start :].startswith(block.text.splitlines()[0])


def test_html_keeps_the_text_and_drops_the_machinery(tmp_path: Path) -> None:
    page = (
        "<html><head><title>On scaling</title><script>evil()</script></head><body><nav>Home</nav>"
        "<h2>Findings</h2><p>Loss falls &amp; falls.</p><p>Twice<br>over</p></body></html>"
    )
    document = read(tmp_path, "a.html", page)
    assert document.details.title == "On scaling"
    assert [(b.section, b.text) for b in document.blocks] == [
        ("Findings", "Loss falls & falls."),
        ("Findings", "Twice"),
        ("Findings", "over"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_text_in_several_encodings(tmp_path: Path, encoding: str) -> None:
    document = read(tmp_path, "a.txt", "Über Größe\n\nEin Satz über Größe.".encode(encoding))
    assert [block.text for block in document.blocks] == ["Über Größe", "Ein Satz über Größe."]


def test_control_and_direction_characters_are_removed(tmp_path: Path) -> None:
    document = read(tmp_path, "a.txt", "A word\x1b[31m in red \u202eesrever\u202c, zero\u200bwidth.")
    assert next(iter(document.blocks)).text == "A word[31m in red esrever, zerowidth."


def test_bibtex_describes_files_by_key_by_name_and_by_arxiv_id() -> None:
    source = r"""
    @comment{ignored}
    @article{vaswani2017, title={{Attention} Is {All} You Need}, author="Vaswani, Ashish and Shazeer, Noam",
      year = 2017, month = jun, eprint={1706.03762}, archivePrefix={arXiv}, keywords={attention; transformer},
      file = {:files/att.pdf:PDF}}
    @misc{broken, title={never closed
    """
    entry = bibliography.parse(source)[0]
    assert entry.details.title == "Attention Is All You Need"
    assert entry.details.authors == "Ashish Vaswani, Noam Shazeer"
    assert (entry.details.date, entry.details.arxiv) == ("2017-06", "1706.03762")
    assert entry.details.tags == ("attention", "transformer")
    assert entry.describes(Path("papers/att.pdf"))
    assert entry.describes(Path("papers/Vaswani2017.pdf"))
    assert entry.describes(Path("papers/1706.03762v5.pdf"))
    assert not entry.describes(Path("papers/other.pdf"))


def test_passages_are_whole_sentences_of_one_section() -> None:
    words = "The rate was raised slowly, e.g. over 200 steps, as in Fig. 3 of Smith et al. Nothing broke. "
    blocks = [Block(words * 30, section="Method", page=n) for n in (1, 2)] + [Block("Short end.", section="End")]
    made = list(chunks.cut(blocks))
    assert {chunk.section for chunk in made} == {"Method", "End"}
    assert all(len(chunk.text) <= chunks.LONGEST for chunk in made)
    assert all(chunk.text.startswith("The rate") or chunk.text.startswith("Nothing") for chunk in made[:-1])
    assert all(chunk.text.endswith(".") and not chunk.text.endswith(("Fig.", "e.g.", "al.")) for chunk in made)
    assert made[-1].text == "Short end."
    assert {page for chunk in made if chunk.pages for page in chunk.pages} == {1, 2}


def test_text_without_any_sentence_is_cut_all_the_same() -> None:
    made = list(chunks.cut([Block("x" * 5000), Block("word " * 1000)]))
    assert all(0 < len(chunk.text) <= chunks.LONGEST for chunk in made)
    assert sum(chunk.text.count("x") for chunk in made) == 5000
    assert sum(chunk.text.count("word") for chunk in made) == 1000


def test_hidden_files_and_links_out_of_the_workspace_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / "lab"
    (root / "papers" / ".git").mkdir(parents=True)
    (tmp_path / "outside.md").write_text("secret")
    (root / "papers" / "a.md").write_text("a")
    (root / "papers" / ".hidden.md").write_text("h")
    (root / "papers" / ".git" / "b.md").write_text("b")
    (root / "papers" / "link.md").symlink_to(tmp_path / "outside.md")
    assert [path.name for path in files.find(root / "papers", root)] == ["a.md"]


def test_front_matter_with_a_list_below_its_key() -> None:
    fields, end = text.front_matter("---\ntags:\n  - a\n  - 'b c'\nauthor: X\n---\nbody")
    assert fields == {"tags": ["a", "b c"], "author": "X"}
    assert end == len("---\ntags:\n  - a\n  - 'b c'\nauthor: X\n---\n")
