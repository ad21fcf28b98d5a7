"""`compress`: one call that picks what is known to work until a target is met or the time is over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxq8.calibration.calibrate import each_batch
from jaxq8.config import Config
from jaxq8.display.numbers import size
from jaxq8.display.tables import Table
from jaxq8.errors import ArgumentError, TensorError
from jaxq8.learning import recipe_steps
from jaxq8.learning.recipe_codes import Net
from jaxq8.learning.recipe_measure import Data, Measure, largest_count, split, target_checks
from jaxq8.learning.recipe_state import Memory, identity
from jaxq8.learning.recipe_steps import Recipe, Targets
from jaxq8.numerics.codebook import is_encoded
from jaxq8.numerics.ranges import Range, Ranges
from jaxq8.numerics.spec import Spec
from jaxq8.transform import checked_config

WIDTHS = (8, 6, 5, 4, 3, 2)  # those that are tried, the widest first, when only the size is given


@dataclasses.dataclass(frozen=True)
class Compressed:
    """The result of `compress`; ``print`` shows what each step brought.

    Attributes:
      variables: With weights as codes, ready for `quantize`, `save` and `export`.
      config: For `quantize`, and to be saved with the variables.
      ranges: The ranges that were given; None if they are found in each run.
      met: Whether all targets are met; without a target, True.
      ended: Why no further step was taken.
      bytes: Size of the file that `save` makes of variables, ranges and config.
      float_bytes: Bytes of all variables in float32.
      steps: A `Table` with one row for each step: what was done, the size of the file, the seconds it took, whether it was
        kept, and its error on the held-out examples: ``sqnr_db``, and ``same_answer`` where results are logits.
      measured_on: What the error was measured on.

    Example:
      >>> found = q8.compress(model.apply, variables, images, bits=4, progress=False)  # no batches, so nothing is measured
      >>> found.met, found.bytes < found.float_bytes / 4
      (True, True)
    """

    variables: Any
    config: Config
    ranges: Ranges | None
    met: bool
    ended: str
    bytes: int
    float_bytes: int
    steps: Table
    measured_on: str

    def __str__(self) -> str:
        share = self.bytes / max(self.float_bytes, 1)
        return "\n".join([
            f"{size(self.float_bytes)} in float32 -> {size(self.bytes)} ({share:.1%}); {self.ended}",
            f"measured on {self.measured_on}", "", str(self.steps),
        ])  # fmt: skip


def compress(
    fn: Callable[..., Any],
    variables: Any,
    *inputs: Any,
    batches: Iterable[Any] | None = None,
    bits: int | None = None,
    target_db: float | None = None,
    target_agreement: float | None = None,
    target_bytes: int | None = None,
    seconds: float = 180.0,
    resume: str | Path | None = None,
    progress: bool = True,
    config: Config | None = None,
    ranges: Mapping[str, Range] | None = None,
    **kwargs: Any,
) -> Compressed:
    """Quantizes weights to few bits by the steps that are known to work, until a target is met or the time is over.

    The steps, the cheapest first; each is measured, and kept only if the error became smaller:

    1. Codes of `bits`, with the correction that needs no data (``quantize_weights(correct="statistics")``).
    2. Eight bits for the layers whose codes do most harm for each byte that this costs, as far as the size allows.
    3. A scale for each group of 128, 64 or 32 neighbours (the smallest groups that the size allows) with what 2 can still add.
    4. Biases that take out the mean error which the data show.
    5. Learned rounding: GPTQ in one stage, then in 4 and 16 while that helps (`learn_rounding`).
    6. For a target of accuracy that is still not met: eight bits for as many further layers as it needs, and at last float.

    The error is measured in the arithmetic of `quantize`, on examples that no step learns from: every fourth batch, or of
    fewer than four batches every fourth example. The smaller error is the larger signal-to-noise ratio; with
    `target_agreement` alone it is the larger agreement, and the ratio among equals. Batch norms are folded into scales
    (`fold_norms`).

    Args:
      fn: The float function, for example ``model.apply``.
      variables: Its first argument, in float.
      *inputs: Its other arguments, as arrays or `jax.ShapeDtypeStruct`; they may be left out if there are batches.
      batches: As for `calibrate`; a few dozen examples, without labels. Without them only steps that need no data are taken
        (codes, and the smallest groups that the size allows), and nothing is measured but the size.
      bits: Width of the codes, 2 to 8. The default is the widest that `target_bytes` allows, or else 4.
      target_db: Wanted signal to quantization noise of the results, in dB.
      target_agreement: Wanted share of answers (largest results along the last axis) that are those of float.
      target_bytes: Wanted size of the file, in bytes; no step exceeds it. Without it, steps 1 to 5 take at most 1.2 times
        `bits` for each float of 32 bits (15% at 4 bits), or more if even step 1 needs more.
      seconds: A step begins only if it will probably end in this time; the first step is always taken.
      resume: A folder. What was reached is kept there after every step, and the same call goes on from it.
      progress: Show progress bars.
      config: As for `quantize`, in mode "eightbit" or "weights"; its overrides win over the recipe's. Its weights are chosen
        by the recipe.
      ranges: As for `quantize`; the error is measured with them.
      **kwargs: Keyword arguments of `fn`.

    Returns:
      A `Compressed`: the best that was reached, whether or not it meets the target.

    Raises:
      ArgumentError: There is nothing to trace or to measure with, targets contradict each other or cannot be reached, or
        `config` chooses what the recipe chooses.
      TensorError: Variables or float results hold NaN or infinity.
      FileError: `resume` holds a run of another function, or of other variables, data or arguments.

    Example:
      >>> found = q8.compress(model.apply, variables, batches=batches, bits=4, target_db=10, progress=False)
      >>> print(found)
      138.8 kB in float32 -> ... kB (...%); the target is met
      measured on 2 held-out examples, which no step learned from
      ...
      >>> q8.save("model.q8", found.variables, ranges=found.ranges, config=found.config)
      >>> fast = jax.jit(q8.quantize(model.apply, found.config, ranges=found.ranges))
    """
    start = recipe_steps.clock()
    config, given = checked_config(fn, config), None if ranges is None else Ranges(ranges)
    has_data = batches is not None
    target_checks(target_db, target_agreement, target_bytes, seconds, has_data)
    _check_config(config, bits)
    data = list(each_batch("compress", batches)) if batches is not None else []
    inputs = inputs or (data[0] if data else ())
    _check_variables(variables)
    if not inputs and not has_data:
        raise ArgumentError(
            "compress: pass batches=[...], or the function's other arguments (arrays or jax.ShapeDtypeStruct) after the "
            "variables"
        )
    net = Net(fn, variables, inputs, kwargs, config, given)
    parts = split(data, lambda batch: _takes(net, batch)) if data else Data((), (), True)
    measure = Measure(fn, variables, parts.held, kwargs) if data else None
    if target_agreement is not None and measure is not None and not measure.has_answers:
        raise ArgumentError(
            "compress(target_agreement=...): the results are no logits (one array, its last axis at least 3); use target_db"
        )
    bits = bits or (4 if target_bytes is None else _widest(net, target_bytes))
    least = net.plain_bytes(bits)
    if target_bytes is not None and least > target_bytes:
        raise ArgumentError(
            f"compress(bits={bits}, target_bytes={target_bytes}): {bits} bits need at least {least} bytes; allow more, or "
            f"leave bits out (2 bits need {net.plain_bytes(2)})"
        )
    limit = target_bytes or max(least, int(net.float_bytes() * 1.2 * bits / 32))
    arguments = (bits, target_db, target_agreement, target_bytes, config, given and given.to_json())
    memory = Memory(
        resume, identity(fn, variables, data, inputs, kwargs, arguments) if resume else "", variables
    )
    targets = Targets(target_db, target_agreement, target_bytes)
    recipe = Recipe(net, parts, measure, memory, targets, bits, least, limit, start + seconds, progress)
    best, ended = recipe.run()
    chosen = recipe.config_of(best)
    rows = tuple({name: x for name, x in row.items() if name != "key"} for row in memory.rows)
    metrics = tuple(name for name in ("sqnr_db", "same_answer") if rows and name in rows[0])
    return Compressed(
        net.folded(best.variables, chosen), chosen, given, targets.met(best.score, best.bytes), ended, best.bytes,
        net.float_bytes(), Table(rows, metrics), _measured_on(parts, has_data),
    )  # fmt: skip


def _measured_on(parts: Data, has_data: bool) -> str:
    if not has_data:
        return "nothing but its size: there are no batches"
    count = sum(map(largest_count, parts.held))
    plural = "" if count == 1 else "s"
    if parts.apart:
        return f"{count} held-out example{plural}, which no step learned from"
    return f"the {count} example{plural} that it was learned from, since none can be held out: new ones may have larger errors"


def _check_config(config: Config, bits: int | None) -> None:
    if config.mode not in ("eightbit", "weights"):
        raise ArgumentError(
            f"compress: config has mode {config.mode!r}, which stores no codes; use 'eightbit' or 'weights'"
        )
    if config.weights != Config().weights:
        raise ArgumentError(
            "compress: config chooses weights, and so does the recipe; give bits= and leave config.weights out"
        )
    if bits is not None and bits not in (2, 3, 4, 5, 6, 7, 8):
        raise ArgumentError(f"compress(bits={bits!r}): must be 2 to 8")


def _check_variables(variables: Any) -> None:
    leaves = jax.tree_util.tree_leaves(variables, is_leaf=is_encoded)
    if any(is_encoded(leaf) for leaf in leaves):
        raise ArgumentError("compress: the variables hold codes already; pass those in float")
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        inexact = hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
        if inexact and not np.isfinite(np.asarray(leaf, np.float32)).all():
            name = jax.tree_util.keystr(path)
            raise TensorError(f"compress: variable {name} holds NaN or infinity; repair the checkpoint")


def _takes(net: Net, batch: Any) -> bool:
    """Whether the function takes a batch of this size, and gives a result for each of its examples."""
    try:
        outputs = jax.eval_shape(lambda v, x: net.fn(v, *x, **net.kwargs), net.variables, batch)
    except (TypeError, ValueError, AssertionError):
        return False
    count = {np.shape(a)[0] for a in jax.tree.leaves(batch)}
    return all(out.shape and {out.shape[0]} == count for out in jax.tree.leaves(outputs))


def _widest(net: Net, limit: int) -> int:
    for bits in WIDTHS:
        if net.plain_bytes(bits) <= limit:
            return bits
    raise ArgumentError(
        f"compress(target_bytes={limit}): the fewest bits, {Spec(bits=WIDTHS[-1]).bits}, need {net.plain_bytes(WIDTHS[-1])} "
        "bytes; allow more, or use a smaller model"
    )
