"""Byte-level BPE: every token stands for known raw bytes, whatever the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.tokenizer import ByteTokenizer

TEXT = ["the cat sat on the mat, the dog did not. " * 20, "Größe und Äther; naïve café — 1984 日本語 🙂 " * 20]
VOCABULARY = 400


@pytest.fixture(scope="module")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer.train(TEXT, VOCABULARY)


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=()), max_size=200))  # lone surrogates included
def test_bytes_of_the_tokens_are_the_bytes_of_the_text(tokenizer: ByteTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    expected = text.encode("utf-8", "replace")
    table = tokenizer.token_bytes()
    assert b"".join(table[i] for i in ids) == expected
    assert int(tokenizer.byte_lengths()[ids].sum()) == len(expected) if ids else expected == b""
    assert tokenizer.bos not in ids


@pytest.mark.parametrize("text", ["<|bos|>", "<|endoftext|>", "</s>", "\0", "\ud800", "e\u0301", "\u202e", "🏳️‍🌈" * 3])
def test_odd_text(tokenizer: ByteTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text.encode("utf-8", "replace").decode()
    assert tokenizer.bos not in ids


def test_an_isolated_byte_counts_one(tokenizer: ByteTokenizer) -> None:
    """It decodes to U+FFFD, three bytes: counting those would understate bits per byte."""
    table = tokenizer.token_bytes()
    number = table.index(b"\xe6")
    assert tokenizer.byte_lengths()[number] == 1
    assert tokenizer.decode([number]) == "\ufffd"


def test_every_byte_has_a_token_and_bos_has_no_bytes(tokenizer: ByteTokenizer) -> None:
    table = tokenizer.token_bytes()
    assert {bytes([byte]) for byte in range(256)} <= set(table)
    assert len(table) == tokenizer.vocab_size == VOCABULARY
    assert table[tokenizer.bos] == b""


def test_training_is_deterministic_and_survives_a_file(tokenizer: ByteTokenizer, tmp_path: Path) -> None:
    again = ByteTokenizer.train(TEXT, VOCABULARY)
    again.save(tmp_path / "tokenizer.json")
    loaded = ByteTokenizer.load(tmp_path / "tokenizer.json", VOCABULARY)
    assert loaded.token_bytes() == tokenizer.token_bytes()
    assert loaded.encode(TEXT[1]) == tokenizer.encode(TEXT[1])


def test_many_texts_encode_as_one_by_one(tokenizer: ByteTokenizer) -> None:
    assert list(tokenizer.encode_all(TEXT)) == [tokenizer.encode(text) for text in TEXT]


def test_a_small_text_leaves_ids_unused() -> None:
    tokenizer = ByteTokenizer.train(["ab"], 1000)
    assert max(tokenizer.encode("abab"), default=0) < 300
    assert tokenizer.bos == 999
