"""A small language model writes, in float and in eight bits, with its cache of keys and values in float or in eight bits.

    python examples/generate.py                       # learns Python's own manual (one to two minutes), then writes
    python examples/generate.py --text my_book.txt --prompt "Once upon a time"
    python examples/generate.py --speed               # only time per token, at width 1024 with random weights

The text is what `help()` prints, which comes with every Python; a character is a token. Prefill and all steps are one compiled
function, quantized as it stands: `jax.jit(q8.quantize(generate))`. Where native regions can be used, the packed weights are
read by one call for the prompt and one for each step, inside of the scan; the caches are updated in place.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from tqdm import tqdm

# Run as a program, Python looks for modules in this folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jaxq8 as q8
from examples.models.decoder import Decoder, empty_caches
from examples.side_by_side import weight_bytes

WINDOW = 256  # tokens that training and perplexity look at together
BATCH = 8
HELD_OUT = 0.05
WIDE = Decoder(vocabulary=4096, width=1024, layers=4, heads=16, hidden=2816)


class Variant(NamedTuple):
    """One way to run the model: which variables, whether quantized, and what the cache holds."""

    name: str
    variables: Any
    eight_bit: bool
    eight_bit_cache: bool

    def compiled(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn` under `jit`, quantized or not."""
        return jax.jit(q8.quantize(fn) if self.eight_bit else fn)


def manual() -> str:
    """The text behind Python's `help()`: language reference and more, about 700,000 characters."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def encoded(text: str) -> np.ndarray:
    """Tokens of a text: its ASCII characters; others are left out."""
    return np.frombuffer(text.encode("ascii", "ignore"), np.uint8).astype(np.int32)


def decoded(tokens: Any) -> str:
    """The text of tokens."""
    return bytes(np.asarray(tokens, np.uint8)).decode("ascii", "replace")


def generator(module: Decoder, eight_bit_cache: bool = False) -> Callable[..., jax.Array]:
    """A function that writes: prefill of the prompt, then one step per token in `jax.lax.scan`.

    Args:
        module: the model.
        eight_bit_cache: keep keys and values as eight-bit codes.

    Returns:
        ``f(variables, prompt, noise) -> tokens``: prompt int32 (b, t); noise (steps, b, vocabulary), which is added to the
        logits before the largest is taken (zeros: the likeliest token; Gumbel noise: a draw); tokens int32 (b, steps).
    """
    apply: Any = module.apply

    def generate(variables: Any, prompt: jax.Array, noise: jax.Array) -> jax.Array:
        batch, length = prompt.shape
        empty = empty_caches(module, batch, length + noise.shape[0], eight_bit_cache)
        logits, caches = apply(variables, prompt, empty)
        first = jnp.argmax(logits[:, -1] + noise[0], axis=-1)

        def step(carry: Any, drawn: jax.Array) -> Any:
            token, caches, position = carry
            logits, caches = apply(variables, token[:, None], caches, position)
            chosen = jnp.argmax(logits[:, 0] + drawn, axis=-1)
            return (chosen, caches, position + 1), chosen

        _, rest = lax.scan(step, (first, caches, jnp.int32(length)), noise[1:])
        return jnp.concatenate([first[None], rest]).T

    return generate


def reader(module: Decoder, eight_bit_cache: bool = False) -> Callable[..., jax.Array]:
    """``f(variables, tokens (b, t)) -> logits (b, t, vocabulary)``, keys and values through the cache that is asked for."""

    def read(variables: Any, tokens: jax.Array) -> jax.Array:
        batch, length = tokens.shape
        caches = empty_caches(module, batch, length, eight_bit_cache) if eight_bit_cache else None
        return jnp.asarray(module.apply(variables, tokens, caches)[0])

    return read


def train(module: Decoder, tokens: np.ndarray, steps: int, key: jax.Array) -> tuple[Any, float]:
    """Variables after `steps` batches of random windows, and the mean loss of the last tenth (nats per token)."""
    variables = module.init(key, jnp.zeros((1, 2), jnp.int32))
    schedule = optax.warmup_cosine_decay_schedule(0, 3e-3, max(steps // 20, 1), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))

    @jax.jit
    def update(variables: Any, moments: Any, windows: jax.Array) -> Any:
        loss, slope = jax.value_and_grad(lambda v: mean_loss(reader(module)(v, windows[:, :-1]), windows))(
            variables
        )
        changes, moments = optimizer.update(slope, moments, variables)
        return optax.apply_updates(variables, changes), moments, loss

    moments, losses = optimizer.init(variables), []
    numbers = np.random.default_rng(0)
    for _ in (bar := tqdm(range(steps), desc="training", unit="batch", leave=False)):
        starts = numbers.integers(0, len(tokens) - WINDOW, BATCH)
        windows = np.stack([tokens[s : s + WINDOW + 1] for s in starts])
        variables, moments, loss = update(variables, moments, windows)
        losses.append(float(loss))
        bar.set_postfix(loss=f"{losses[-1]:.2f}")
    return variables, float(np.mean(losses[-max(steps // 10, 1) :]))


def mean_loss(logits: jax.Array, windows: Any) -> jax.Array:
    """Nats per token of windows (b, t + 1) under the logits (b, t, vocabulary) of their first t tokens."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]).mean()


def windows_of(tokens: np.ndarray, count: int) -> np.ndarray:
    """The first `count` whole windows, (count, WINDOW + 1), each with the token after it."""
    count = min(count, (len(tokens) - 1) // WINDOW)
    return np.stack([tokens[i * WINDOW : (i + 1) * WINDOW + 1] for i in range(count)])


def assess(module: Decoder, variant: Variant, windows: np.ndarray) -> tuple[float, np.ndarray]:
    """Perplexity per token, and the likeliest token at each place."""
    read = variant.compiled(reader(module, variant.eight_bit_cache))
    parts = [windows[i : i + BATCH] for i in range(0, len(windows) - len(windows) % BATCH, BATCH)] or [
        windows
    ]
    logits = [read(variant.variables, part[:, :-1]) for part in parts]
    losses = [float(mean_loss(found, part)) for found, part in zip(logits, parts, strict=True)]
    return float(np.exp(np.mean(losses))), np.concatenate(
        [np.argmax(found, axis=-1).ravel() for found in logits]
    )


def write(module: Decoder, variant: Variant, prompt: np.ndarray, noise: jax.Array) -> np.ndarray:
    """The tokens (steps,) that follow one prompt (t,)."""
    function = variant.compiled(generator(module, variant.eight_bit_cache))
    return np.asarray(function(variant.variables, prompt[None], noise))[0]


def cache_bytes(module: Decoder, length: int, eight_bit: bool) -> int:
    """Bytes of the caches for `length` tokens: codes, scales and zero points together where they are eight-bit."""
    shapes = jax.eval_shape(lambda: empty_caches(module, 1, length, eight_bit))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def milliseconds_per_token(
    module: Decoder, variants: Sequence[Variant], prompt: np.ndarray, steps: int, rounds: int
) -> list[float]:
    """Median time of one step for each variant, all taking turns; what prefill takes is measured and taken off."""
    calls = []
    for variant in variants:
        function = variant.compiled(generator(module, variant.eight_bit_cache))
        for count in (steps + 1, 1):
            noise = jnp.zeros((count, 1, module.vocabulary))
            calls.append(lambda f=function, v=variant.variables, n=noise: f(v, prompt[None], n))
    times: list[list[float]] = [[] for _ in calls]
    for turn in tqdm(range(rounds + 1), desc="timing", unit="round", leave=False):
        for call, series in zip(calls, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn:  # the first round compiles
                series.append(1e3 * (time.perf_counter() - start))
    medians = np.median(times, axis=1).reshape(-1, 2)
    return [float((whole - prefill) / steps) for whole, prefill in medians]


def variants_of(module: Decoder, variables: Any, length: int, steps: int) -> list[Variant]:
    """Float, eight bits, and eight bits with an eight-bit cache; native too, for `length` tokens of prompt and `steps` more."""
    codes = q8.quantize_weights(reader(module), variables, np.zeros((1, 2), np.int32))
    variants = [
        Variant("float", variables, False, False),
        Variant("float, 8-bit cache", variables, False, True),
        Variant("8 bits", codes, True, False),
        Variant("8 bits, 8-bit cache", codes, True, True),
    ]
    if q8.native_status().available:
        prompt = jax.ShapeDtypeStruct((1, length), np.int32)
        noise = jax.ShapeDtypeStruct((steps, 1, module.vocabulary), np.float32)
        for name, eight_bit_cache in (("native", False), ("native, 8-bit cache", True)):
            packed = q8.pack(generator(module, eight_bit_cache), codes, prompt, noise)
            variants.append(Variant(name, packed, True, eight_bit_cache))
    return variants


def equal_tokens(exact: np.ndarray, found: np.ndarray) -> int:
    """How many tokens are equal before the first that is not."""
    differs = np.flatnonzero(exact != found)
    return int(differs[0]) if len(differs) else len(exact)


def speed(module: Decoder, variants: Sequence[Variant], prompt: np.ndarray, steps: int, rounds: int) -> None:
    """Prints time per token, its ratio to float's, and bytes of weights and cache."""
    times = milliseconds_per_token(module, variants, prompt, steps, rounds)
    print(f"\n{'':<20}  {'ms/token':>8}  {'ratio':>6}  {'weights':>9}  {'cache':>9}")
    for variant, spent in zip(variants, times, strict=True):
        weights = weight_bytes(variant.variables) / 2**20
        cache = cache_bytes(module, len(prompt) + steps, variant.eight_bit_cache) / 2**20
        print(
            f"{variant.name:<20}  {spent:>8.3f}  {times[0] / spent:>5.2f}x  {weights:>6.1f} MB  {cache:>6.2f} MB"
        )


def show(
    module: Decoder, variants: Sequence[Variant], held_out: np.ndarray, prompt: str, options: Any
) -> None:
    """Prints what each variant writes, and how well each knows the text that was held out."""
    gumbel = jax.random.gumbel(jax.random.key(options.seed), (options.tokens, 1, module.vocabulary))
    noise = options.temperature * gumbel
    start = encoded(prompt)
    texts = [write(module, variant, start, noise) for variant in variants]
    shown = [0, *[i for i, text in enumerate(texts) if i and not any((text == t).all() for t in texts[:i])]]
    for index in shown:
        print(f"\n--- {variants[index].name}\n{prompt}{decoded(texts[index])}")
    windows = windows_of(held_out, options.windows)
    results = [assess(module, variant, windows) for variant in variants]
    print(f"\n{'':<20}  {'perplexity':>10}  {'likeliest token as float':>24}  {'equal tokens written':>20}")
    for variant, text, (perplexity, likeliest) in zip(variants, texts, results, strict=True):
        same = 100 * np.mean(likeliest == results[0][1])
        equal = f"{equal_tokens(texts[0], text)} of {len(text)}"
        print(f"{variant.name:<20}  {perplexity:>10.3f}  {same:>23.1f}%  {equal:>20}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description="Text generation in float and in eight bits.")
    parser.add_argument("--text", type=Path, help="a text file to learn; default: Python's manual")
    parser.add_argument("--prompt", default="The statement ", help="what the model continues")
    parser.add_argument("--steps", type=int, default=250, help="batches of training")
    parser.add_argument("--tokens", type=int, default=200, help="how many to write")
    parser.add_argument("--temperature", type=float, default=0.5, help="0 takes the likeliest token")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--windows", type=int, default=64, help="of held-out text for perplexity")
    parser.add_argument("--rounds", type=int, default=9, help="of timing")
    parser.add_argument("--speed", action="store_true", help="no training: only time, at width 1024")
    options = parser.parse_args(arguments)
    if options.speed:
        wide = WIDE.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
        speed(WIDE, variants_of(WIDE, wide, 16, 33), np.zeros(16, np.int32), 32, options.rounds)
        return 0
    module = Decoder()
    try:
        tokens = encoded(options.text.read_text(errors="ignore") if options.text else manual())
    except OSError as error:
        print(f"--text {options.text}: {error}", file=sys.stderr)
        return 1
    split = int(len(tokens) * (1 - HELD_OUT))
    if len(tokens) - split <= WINDOW:
        need = int((WINDOW + 1) / HELD_OUT)
        print(
            f"--text {options.text}: {len(tokens)} characters; it takes {need} to learn and test",
            file=sys.stderr,
        )
        return 1
    start = time.perf_counter()
    variables, loss = train(module, tokens[:split], options.steps, jax.random.key(0))
    print(
        f"{len(tokens):,} characters; {loss:.2f} nats a character after {time.perf_counter() - start:.0f} s"
    )
    variants = variants_of(module, variables, len(encoded(options.prompt)), options.tokens)
    show(module, variants, tokens[split:], options.prompt, options)
    speed(module, variants, encoded(options.prompt), 64, options.rounds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
