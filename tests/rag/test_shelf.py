"""The starter shelf, and whether search finds the right note for a question asked in other words."""

import pytest

from rag.documents import files
from rag.documents.document import ARXIV
from rag.engine import Engine
from rag.query import check
from rag.scan import SHELF

QUESTIONS = {
    "how many words of text per weight should I train on for a given amount of compute": "chinchilla",
    "tune a tiny network and reuse its settings on a huge one": "mup-tensor-programs-v",
    "outcomes differ between random initialisations, how many repetitions are needed": "deep-rl-that-matters",
    "my float16 run becomes NaN": "mixed-precision-training",
    "how much room does the optimizer state take when spread over several cards": "zero-optimizer-sharding",
    "adapt a big pretrained model by training only thin matrices": "lora",
    "tell the network where each token stands by turning vectors": "roformer-rotary-positions",
    "attention that avoids writing the score matrix to slow memory": "flash-attention",
    "cut unusual words into smaller pieces": "byte-pair-encoding",
    "held-out error goes up and then down again when the network grows": "deep-double-descent",
    "cheaper normalisation without subtracting the average": "rmsnorm",
    "is keyword search still competitive with neural retrieval on new domains": "beir",
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_in_other_words_finds_its_paper_among_three(library: Engine, question: str) -> None:
    page = library.search(check(question, limit=3))
    assert f"shelf:{QUESTIONS[question]}" in [hit.id for hit in page.hits]


@pytest.mark.parametrize(
    "question",
    [
        "best pizza in Naples",
        "how to repair a bicycle tyre",
        "weather tomorrow",
        "sourdough bread recipe",
        "tax return",
    ],
)
def test_a_question_about_something_else_finds_nothing_and_says_so(library: Engine, question: str) -> None:
    page = library.search(check(question))
    assert page.hits == []
    assert page.note == "nothing relevant"
    assert page.nearest


def test_every_note_is_complete() -> None:
    notes = sorted(SHELF.glob("*.md"))
    assert len(notes) >= 14
    for note in notes:
        document = files.read(note)
        assert document.details.title and document.details.authors and document.details.tags, note.name
        assert ARXIV.fullmatch(document.details.arxiv), note.name
        assert {block.section for block in document.blocks} == {"What it found", "What it means for a small lab"}


def test_a_hit_names_paper_section_and_date(library: Engine) -> None:
    hit = library.search(check("compute-optimal training of large language models", limit=1)).hits[0]
    assert (hit.id, hit.kind, hit.source, hit.date) == ("shelf:chinchilla", "paper", "shelf:chinchilla", "2022-03")
    assert hit.section == "What it found"
    assert 0 < len(hit.quote) <= 400
    assert "similarity" in hit.why and "compute" in hit.why
