"""BERT's uncased WordPiece tokenizer.

Devlin et al., "BERT", 2019; the steps follow google-research/bert `tokenization.py`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.models.checks import ModelFileError

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
LONGEST_WORD = 100
# Blocks of Chinese characters: each character is a word of its own.
IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class Tokenizer:
    """Splits text into the pieces of a vocabulary.

    Args:
        vocabulary: the pieces; a piece's id is its index, `##` marks one that continues a word.
        limit: the most ids of a text, [CLS] and [SEP] included; the rest of a longer text is dropped.

    Example:
        >>> Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "happy", "dog", "##s"]).ids("Happy dogs")
        [2, 4, 5, 6, 3]
    """

    def __init__(self, vocabulary: Sequence[str], limit: int = 256) -> None:
        self._ids = {piece: index for index, piece in enumerate(vocabulary)}
        missing = [piece for piece in (PAD, UNKNOWN, START, END) if piece not in self._ids]
        if missing:
            raise ModelFileError(
                f"The vocabulary lacks {', '.join(missing)}. Give the vocab.txt of a BERT model."
            )
        self.limit = limit

    @classmethod
    def from_file(cls, path: Path, limit: int = 256) -> Tokenizer:
        """Read a `vocab.txt` of one piece a line.

        Raises:
            ModelFileError: the file is missing, not UTF-8, or no BERT vocabulary.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelFileError(f"Cannot read the vocabulary {path} ({error}). Give a vocab.txt.") from error
        return cls([line.rstrip("\r") for line in lines], limit)

    def ids(self, text: str) -> list[int]:
        """The ids of `[CLS] pieces [SEP]`, at most `limit`."""
        pieces = [piece for word in split_words(text) for piece in self._pieces(word)]
        return [self._ids[START], *pieces[: self.limit - 2], self._ids[END]]

    def batch(self, texts: Sequence[str], length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The ids of several texts, padded to a common length.

        Args:
            texts: b texts.
            length: the length t to pad to; by default the next multiple of 8: few shapes to compile.

        Returns:
            ids, int32 (b, t), and mask, bool (b, t), true where there is a token.
        """
        rows = [self.ids(text) for text in texts]
        longest = max((len(row) for row in rows), default=0)
        length = -(-longest // 8) * 8 if length is None else length
        if longest > length:
            raise ValueError(
                f"A text of {longest} ids does not fit into {length}. Leave out `length`, or raise it."
            )
        ids = np.full((len(rows), length), self._ids[PAD], np.int32)
        mask = np.zeros(ids.shape, bool)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = True
        return ids, mask

    def _pieces(self, word: str) -> list[int]:
        """Greedy longest match from the left; the whole word is unknown if any part of it is."""
        if len(word) > LONGEST_WORD:
            return [self._ids[UNKNOWN]]
        found: list[int] = []
        start = 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in self._ids:
                    break
            else:
                return [self._ids[UNKNOWN]]
            found.append(self._ids[piece])
            start = end
        return found


def split_words(text: str) -> list[str]:
    """Lower-cased words without accents; punctuation and ideographs stand alone."""
    spaced = "".join(_clean(character) for character in text)
    plain = unicodedata.normalize("NFD", spaced.lower())
    kept = (character for character in plain if unicodedata.category(character) != "Mn")
    return "".join(f" {c} " if _is_punctuation(c) else c for c in kept).split()


def _clean(character: str) -> str:
    if character in "\t\n\r" or unicodedata.category(character) == "Zs":
        return " "
    if character in "\0\ufffd" or unicodedata.category(character).startswith("C"):
        return ""
    is_ideograph = any(low <= ord(character) <= high for low, high in IDEOGRAPHS)
    return f" {character} " if is_ideograph else character


def _is_punctuation(character: str) -> bool:
    # BERT counts every printable ASCII sign that is neither letter nor digit, `$` and `^` too.
    is_ascii_sign = "!" <= character <= "~" and not character.isalnum()
    return is_ascii_sign or unicodedata.category(character).startswith("P")
