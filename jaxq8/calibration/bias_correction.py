"""`correct_bias`: moves the mean of each contraction back to its float value by changing a vector after the contraction.

Only variables change, so every mode, file and export takes the result as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.analysis.flat_function import Chains, channel_axis, moved
from jaxq8.analysis.traced_call import Call
from jaxq8.calibration.calibrate import each_batch
from jaxq8.config import Config
from jaxq8.evaluation.calls import evaluate_call
from jaxq8.evaluation.probes import Probe
from jaxq8.evaluation.values import Accumulator, decode
from jaxq8.numerics.ranges import Range, Ranges
from jaxq8.plan import Recorder
from jaxq8.transform import checked_config


def correct_bias(
    fn: Callable[..., Any],
    variables: Any,
    batches: Iterable[Any],
    *,
    config: Config | None = None,
    ranges: Mapping[str, Range] | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> Any:
    """Moves the mean of each contraction back to its value in float.

    Rounding weights and clipping activations shift the mean of a channel, and later layers amplify the shift. The mean error
    that each contraction adds by itself is measured over the batches. It goes into the vector that is added (a bias) or
    subtracted (a batch-norm mean) right after the contraction (Nagel et al. 2019, section 4.2, measured instead of derived).
    Contractions without such a vector stay as they are.

    Args:
      fn: The float function.
      variables: Its first argument, in float.
      batches: As for `calibrate`.
      config: As for `quantize`; the correction holds for this configuration only.
      ranges: As for `quantize`.
      progress: Show a progress bar.
      **kwargs: Keyword arguments of `fn`.

    Returns:
      `variables` with corrected vectors, still in float; pass them to `quantize_weights` with ``correct=None``, or use them as
      they are. They make up for weights rounded to the nearest code, so no other correction may follow.

    Raises:
      ArgumentError: There are no batches.

    Example:
      >>> better = q8.correct_bias(model.apply, variables, batches, ranges=ranges)
      >>> q_vars = q8.quantize_weights(model.apply, better, images, correct=None)
    """
    config, given = checked_config(fn, config), Ranges(ranges)
    step = jax.jit(lambda v, x: _shifts(fn, v, x, kwargs, config, given))
    sums: dict[str, np.ndarray] = {}
    count = 0
    for inputs in each_batch("correct_bias", batches, "correcting bias", progress):
        count += 1
        for name, shift in jax.device_get(step(variables, inputs)).items():
            sums[name] = sums.get(name, 0) + shift
    chains = Chains.trace(fn, (variables, *inputs), kwargs, config)
    return moved(variables, chains, {name: s / count for name, s in sums.items()})


class _Shifts(Probe):
    """Keeps, for each contraction outside of loops, the difference between its exact and its eight-bit result."""

    active = static = False

    def contracted(self, name: str, result: Accumulator, encoded: Callable[[], jax.Array]) -> None:
        if not self._inside:
            self.add({name: decode(result) - encoded()})

    @property
    def _inside(self) -> bool:
        return len(self._frames) > 1


def _shifts(
    fn: Callable[..., Any],
    variables: Any,
    inputs: tuple[Any, ...],
    kwargs: dict[str, Any],
    config: Config,
    ranges: Ranges,
) -> dict[str, jax.Array]:
    """The mean error of each contraction in one batch, by channel."""
    call = Call.trace(fn, (variables, *inputs), kwargs)
    probe = _Shifts()
    evaluate_call(call, call.arguments.leaves, config, ranges, Recorder(), probe, exact=lambda name: True)
    chains = Chains.trace(fn, (variables, *inputs), kwargs, config)
    axes = {site.name: channel_axis(node) for node, site in chains.contractions()}
    shifts = {}
    for name, difference in probe.seen.items():
        if name in axes:
            others = tuple(axis for axis in range(difference.ndim) if axis != axes[name])
            shifts[name] = jnp.mean(difference, others)
    return shifts
