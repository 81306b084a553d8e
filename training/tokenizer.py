"""Byte-level BPE. Every token stands for a fixed run of raw bytes, which is what makes bits per byte exact.

The beginning-of-sequence token is not known to the tokenizer itself: no text can produce it, whatever it contains.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from workspace import durable

# GPT-4's pattern with numbers of one or two digits (karpathy/nanochat): words, numbers, punctuation, white space
PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"""
)
SAMPLE_BYTES = 8_000_000  # text a vocabulary is learned from; more changes it little and costs seconds
BATCH = 256  # documents handed to the encoder at once


class ByteTokenizer:
    """Text to ids and back. `vocab_size` counts the 256 bytes, the merges and BOS, which is the last id."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.bos = vocab_size - 1

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int) -> ByteTokenizer:
        """Learn a vocabulary; deterministic. A small corpus may give fewer tokens: the ids between stay unused."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=[],
            show_progress=False,
        )
        tokenizer.train_from_iterator(_sample(documents), trainer)
        return cls(tokenizer, vocab_size)

    @classmethod
    def load(cls, path: Path, vocab_size: int) -> ByteTokenizer:
        return cls(Tokenizer.from_file(str(path)), vocab_size)

    def save(self, path: Path) -> None:
        durable.write_text(path, self._tokenizer.to_str())

    def encode(self, text: str) -> list[int]:
        """Ids without BOS. A lone surrogate, which has no bytes, becomes a question mark."""
        return list(self._tokenizer.encode(_sayable(text)).ids)

    def encode_all(self, texts: list[str]) -> Iterable[list[int]]:
        """`encode` of many texts, on all cores."""
        for start in range(0, len(texts), BATCH):
            batch = [_sayable(text) for text in texts[start : start + BATCH]]
            yield from (encoding.ids for encoding in self._tokenizer.encode_batch_fast(batch))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; BOS is left out, bytes that are not UTF-8 become U+FFFD."""
        table = self.token_bytes()
        return b"".join(table[i] for i in ids).decode("utf-8", "replace")

    def token_bytes(self) -> list[bytes]:
        """The raw bytes of every id; empty for BOS and for ids the vocabulary did not fill."""
        byte_of = _byte_of_character()
        table = [b""] * self.vocab_size
        for token, number in self._tokenizer.get_vocab().items():
            table[number] = bytes(byte_of[character] for character in token)
        return table

    def byte_lengths(self) -> NDArray[np.int32]:
        """(vocab_size,) number of raw bytes of every id."""
        return np.array([len(raw) for raw in self.token_bytes()], dtype=np.int32)


def _sample(documents: Iterable[str]) -> Iterable[str]:
    taken = 0
    for document in documents:
        if taken >= SAMPLE_BYTES:
            return
        taken += len(document)
        yield document


def _sayable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _byte_of_character() -> dict[str, int]:
    """The inverse of GPT-2's table that gives every byte a printable character (openai/gpt-2, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
