"""Text generation: the cache, the loop, the quantized loop, and the program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxq8 as q8
from examples import generate
from examples.models.decoder import CACHE_SPEC, Decoder, empty_caches, extended, real
from tests.small import ALWAYS, assert_equal, normal, sqnr_db
from tests.test_native_regions import needs_native

TINY = Decoder(vocabulary=64, width=32, layers=2, heads=2, hidden=48)
VARIABLES = TINY.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
PROMPT = jnp.asarray([[1, 5, 9, 2, 60]])
STEPS = 6
GREEDY = jnp.zeros((STEPS, 1, 64))


def test_steps_with_a_cache_see_what_one_pass_sees():
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 9)))
    whole = generate.reader(TINY)(VARIABLES, tokens)
    first, caches = TINY.apply(VARIABLES, tokens[:, :4], empty_caches(TINY, 2, 9))
    parts = [first]
    for position in range(4, 9):
        logits, caches = TINY.apply(VARIABLES, tokens[:, position : position + 1], caches, position)
        parts.append(logits)
    # float32 rounds at 144 dB; sums of up to 48 terms in another order, in two layers, lose less than 40 of them.
    assert sqnr_db(whole, jnp.concatenate(parts, axis=1)) > 100


def test_an_eight_bit_cache_is_half_a_step_off_and_leaves_other_tokens_alone():
    cache = empty_caches(TINY, 1, 8, eight_bit=True)[0]["keys"]
    earlier = extended(cache, normal(1, 2, 2, 16), 0)
    new = 100 * normal(1, 3, 2, 16)
    later = jax.jit(extended)(earlier, new, 2)
    half = later.scale[:, 2:5] / 2
    assert later.scale.shape == (1, 8, 2, 1)
    # Half a step, and the rounding of the division by the step and of the product with it: at most 127 steps each.
    assert bool((abs(real(later)[:, 2:5] - new) <= half * (1 + 4 * 127 * 2.0**-23)).all())
    np.testing.assert_array_equal(real(later)[:, :2], real(earlier)[:, :2])
    np.testing.assert_array_equal(real(later)[:, 5:], 0)


def test_the_bytes_of_a_cache():
    numbers = 2 * TINY.layers * 100 * TINY.width
    assert generate.cache_bytes(TINY, 100, False) == 4 * numbers
    assert (
        generate.cache_bytes(TINY, 100, True) == numbers + 8 * numbers // 16
    )  # a scale and a zero point a head of 16
    held = empty_caches(TINY, 1, 100, eight_bit=True)
    assert sum(q.nbytes for layer in held for q in layer.values()) == generate.cache_bytes(TINY, 100, True)


@pytest.mark.parametrize("eight_bit", [False, True])
def test_the_loop_equals_steps_one_by_one(eight_bit):
    caches = empty_caches(TINY, 1, PROMPT.shape[1] + STEPS, eight_bit)
    logits, caches = TINY.apply(VARIABLES, PROMPT, caches)
    expected = [int(jnp.argmax(logits[0, -1]))]
    for position in range(PROMPT.shape[1], PROMPT.shape[1] + STEPS - 1):
        logits, caches = TINY.apply(VARIABLES, jnp.asarray([expected[-1:]]), caches, position)
        expected.append(int(jnp.argmax(logits[0, 0])))
    found = jax.jit(generate.generator(TINY, eight_bit))(VARIABLES, PROMPT, GREEDY)
    assert found.tolist() == [expected]


@pytest.mark.parametrize("eight_bit", [False, True])
def test_encoded_weights_write_the_same_text(eight_bit):
    write = generate.generator(TINY, eight_bit)
    fast = jax.jit(q8.quantize(write, ALWAYS))
    codes = q8.quantize_weights(write, VARIABLES, PROMPT, GREEDY, config=ALWAYS)
    assert_equal(fast(VARIABLES, PROMPT, GREEDY), fast(codes, PROMPT, GREEDY))


def test_every_weight_is_read_as_codes_in_prefill_and_in_the_loop():
    plan = q8.explain(generate.generator(TINY), VARIABLES, PROMPT, GREEDY, config=ALWAYS)
    dots = [site for site in plan.sites if site.op == "dot" and site.name.startswith("params/")]
    assert all(site.eight_bit for site in dots)
    assert len(dots) == 2 * (7 * TINY.layers + 1)


def test_what_an_eight_bit_cache_costs_in_accuracy():
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 64, (1, 12)))
    exact, found = (generate.reader(TINY, cache)(VARIABLES, tokens) for cache in (False, True))
    # Codes of 127 steps: noise at half a step over the root of 3 is 47 dB or more below the largest number of a head, which is
    # at most 12 dB above its root mean square (16 numbers).
    assert 30 < sqnr_db(exact, found) < 100


def test_perplexity_of_knowing_nothing_is_the_size_of_the_vocabulary():
    windows = np.zeros((2, 5), np.int32)
    assert float(jnp.exp(generate.mean_loss(jnp.zeros((2, 4, 64)), windows))) == pytest.approx(64, rel=1e-5)


def test_equal_tokens_counts_up_to_the_first_difference():
    assert generate.equal_tokens(np.array([1, 2, 3, 4]), np.array([1, 2, 9, 4])) == 2
    assert generate.equal_tokens(np.array([1, 2]), np.array([1, 2])) == 2


def test_text_becomes_tokens_and_text_again():
    assert generate.decoded(generate.encoded("def f(x): \u20acreturn")) == "def f(x): return"
    assert len(generate.encoded(generate.manual())) > 100_000


def test_training_learns_what_repeats():
    tokens = np.tile(np.arange(4), 300).astype(np.int32)
    _, loss = generate.train(TINY, tokens, 30, jax.random.key(0))
    assert loss < np.log(4)  # knowing which four tokens there are is not enough: their order was learned too


def test_a_text_that_is_missing_or_too_short_is_refused(tmp_path, capsys):
    assert generate.main(["--text", str(tmp_path / "none.txt")]) == 1
    assert "none.txt" in capsys.readouterr().err
    (tmp_path / "short.txt").write_text("word " * 10)
    assert generate.main(["--text", str(tmp_path / "short.txt")]) == 1
    assert "50 characters" in capsys.readouterr().err


def test_a_cache_spec_has_no_zero_point_to_find():
    assert CACHE_SPEC.is_symmetric


@pytest.mark.slow
def test_the_program_writes_and_measures(capsys):
    options = ["--steps", "20", "--tokens", "8", "--windows", "2", "--rounds", "1"]
    assert generate.main(options) == 0
    out = capsys.readouterr().out
    for text in ("--- float", "perplexity", "8 bits, 8-bit cache", "ms/token"):
        assert text in out


@needs_native
@pytest.mark.parametrize("eight_bit", [False, True])
def test_the_loop_runs_natively_with_packed_weights(eight_bit):
    native = q8.Config(kernels="native")  # a net as small as this one is float otherwise
    write = generate.generator(TINY, eight_bit)
    codes = q8.quantize_weights(write, VARIABLES, PROMPT, GREEDY, config=native)
    packed = q8.pack(write, codes, PROMPT, GREEDY, config=native)
    plan = q8.explain(write, packed, PROMPT, GREEDY, config=native)
    assert len(plan.native) == 2  # the prompt, and the step that the scan repeats
    assert len({region.contractions for region in plan.native}) == 1
    own = jax.jit(q8.quantize(write, native))(packed, PROMPT, GREEDY)
    other = jax.jit(q8.quantize(write, q8.Config(kernels="xla")))(codes, PROMPT, GREEDY)
    np.testing.assert_array_equal(own, other)
