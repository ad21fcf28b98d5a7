"""`learn_rounding`: learns layer by layer, from what each layer reads, which way to round each weight."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxq8.analysis.flat_function import Chains, array_leaves
from jaxq8.calibration.bias_correction import moved
from jaxq8.calibration.calibrate import each_batch
from jaxq8.config import Config
from jaxq8.errors import TensorError
from jaxq8.learning import rounding_methods as _methods
from jaxq8.learning.layer_moments import Moments, moments
from jaxq8.learning.layers import Layer, correctable_vectors, learnable_layers
from jaxq8.learning.rounding_problems import Method, RoundingProblem, get_method
from jaxq8.numerics.qtensor import QTensor, extremes, joined_groups, split_groups
from jaxq8.numerics.rounding import get_rounding
from jaxq8.numerics.scales import affine
from jaxq8.transform import checked_config
from jaxq8.weights import quantize_weights

assert _methods  # importing this module registers its methods

SHRINKS = np.linspace(1.0, 0.5, 21)  # the parts of a range that are tried as ranges


def learn_rounding(
    fn: Callable[..., Any],
    variables: Any,
    batches: Iterable[Any],
    *,
    method: str | Method = "gptq",
    config: Config | None = None,
    key: jax.Array | None = None,
    search: bool = True,
    correct: bool = True,
    stages: int | None = None,
    memory: int = 1 << 28,
    progress: bool = True,
    **kwargs: Any,
) -> Any:
    """Quantizes weights like `quantize_weights`, but rounds each weight by its effect on the layer, measured on data.

    The squared error that a layer's rounding adds depends on the data only through the second moments of what the layer
    reads (its *Hessian*). They are measured on the float function, for as many layers at a time as `memory` allows. Each
    layer is then rounded separately: by GPTQ's error feedback (Frantar et al. 2022), by AdaRound (Nagel et al. 2020), or by
    a method of your own (`register_learned_rounding`). The codes lie on the grid that `config` gives, so the result works in
    every mode, file and export that takes the result of `quantize_weights`.

    Args:
      fn: The float function: ``model.apply``.
      variables: Its first argument, in float.
      batches: As for `calibrate`. The data are passed over once for each stage of each group of layers (see `stages` and
        `memory`), so all batches are kept in a list.
      method: "gptq", "adaround", "nearest", "stochastic", another registered name, or a function like a registered one.
      config: As for `quantize_weights`; ``config.weights`` is the grid. ``config.rounding`` applies to weights that are not
        learned.
      key: PRNG key; each site gets its own. Default ``jax.random.key(config.seed)``.
      search: Also choose for each scale how much of the range is worth keeping: of 21 ranges, shrunk to between 100% and
        50%, the one that loses least when weights are rounded to nearest.
      correct: Move the mean error into the vector that is added after the layer, where there is one (as `correct_bias`
        does); only the part of the error that varies is then left to the method.
      stages: How often the data are passed over for each group of layers. The layers of a group are taken in the order in
        which they run, in that many stages. Each stage is measured with the weights that were rounded before it, and the
        first layer of a stage is aimed, by least squares, at the float result from what it now reads, which makes up for the
        errors of earlier layers. The default is a stage for each layer, which is best and slowest; 1 rounds each layer as if
        it were alone, in one pass.
      memory: How many bytes the Hessians of one group of layers may take together; a group has at least one layer.
      progress: Show progress bars.
      **kwargs: Keyword arguments of `fn`.

    Returns:
      `variables` with weights as QTensors. Weights that several contractions read, or that are read in loops or after a
      computation, are rounded as `quantize_weights` does.

    Raises:
      ArgumentError: There are no batches.
      SpecError: No method has that name.
      TensorError: A method returned codes of another shape or outside of the grid; the message names the site.

    Example:
      >>> four = q8.Config(weights=q8.Spec(bits=4, symmetric=True, granularity="channel"))
      >>> encoded = q8.learn_rounding(model.apply, variables, batches, method="gptq", config=four, stages=1)
      >>> logits = jax.jit(q8.quantize(model.apply, four))(encoded, images)
    """
    config, choose_codes = checked_config(fn, config), get_method(method)
    inputs = list(each_batch("learn_rounding", batches))
    key = jax.random.key(config.seed) if key is None else key
    flat, arrays, tree = array_leaves(variables)
    layers = learnable_layers(fn, variables, inputs[0], kwargs, config)
    vectors = correctable_vectors(fn, variables, inputs[0], kwargs, config) if correct else {}
    rounder = _Rounder(choose_codes, key, search, frozenset(vectors))
    current = variables  # with the weights that are rounded so far
    chains = Chains.trace(fn, (variables, *inputs[0]), kwargs, config)
    bar = tqdm(total=len(layers), desc="rounding", unit="layer", disable=not progress)
    for group in _groups(layers, memory):
        names = {layer.site for layer in group}
        measure = jax.jit(lambda v, x, names=names: moments(fn, v, x, kwargs, names))
        for stage in _stages(group, stages):
            found = _measured(measure, (variables, current), inputs)
            leaves, mean_errors = array_leaves(current)[0], {}
            for layer in stage:
                moment, place = found.pop(layer.site), arrays[layer.leaf]
                # The first layer of a stage has made up for all earlier errors already.
                if layer is not stage[0]:
                    moment = moment.without_drift()
                leaves[place], mean_errors[layer.site] = rounder.rounded(layer, flat[place], moment)
                bar.update()
            shifts = {site: error for site, error in mean_errors.items() if site in vectors}
            current = moved(tree.unflatten(leaves), chains, shifts)
    bar.close()
    # These codes are chosen, and biases corrected by what was measured: nothing is left to statistics.
    return quantize_weights(fn, current, *inputs[0], config=config, correct=None, **kwargs)


def _groups(layers: list[Layer], memory: int) -> Iterator[list[Layer]]:
    """Yields groups of layers whose Hessians fit into `memory` together; a layer that does not fit is a group by itself."""
    group: list[Layer] = []
    for layer in layers:
        if group and sum(item.hessian_bytes for item in [*group, layer]) > memory:
            yield group
            group = []
        group.append(layer)
    if group:
        yield group


def _stages(layers: list[Layer], count: int | None) -> list[list[Layer]]:
    """The layers, in order, as at most `count` lists of nearly equal length."""
    count = len(layers) if count is None else min(max(count, 1), len(layers))
    ends = np.linspace(0, len(layers), count + 1).astype(int)
    return [layers[a:b] for a, b in itertools.pairwise(ends)]


def _measured(step: Callable[..., Any], variables: Any, batches: list[tuple[Any, ...]]) -> dict[str, Moments]:
    """The mean of the moments of all batches, in which every batch counts the same."""
    sums: Any = None
    for inputs in batches:
        new = jax.device_get(step(variables, inputs))
        sums = jax.tree.map(np.add, sums, new) if sums else new
    return jax.tree.map(lambda a: a / np.float32(len(batches)), sums)


@dataclasses.dataclass(frozen=True)
class _Rounder:
    """Rounds one layer after the other.

    Attributes:
      choose_codes: The method of learned rounding.
      key: PRNG key from which each layer gets its own.
      search: Whether to search for the part of each range that loses least.
      corrected: Sites whose mean error goes into a vector after them, so that only the varying error counts.
    """

    choose_codes: Method
    key: jax.Array
    search: bool
    corrected: frozenset[str]

    def rounded(self, layer: Layer, weight: Any, found: Moments) -> tuple[Any, Any]:
        """A layer's leaf as codes (or what they stand for, if the mode stores that), and the mean error of each output."""
        real = np.asarray(weight, np.float32)
        if not np.isfinite(real).all():
            raise TensorError(f"weight of {layer.site} holds NaN or infinity; repair the checkpoint")
        exact = real.ravel()[layer.places]
        used = found.centred() if layer.site in self.corrected else found
        aimed = np.empty(real.size, np.float32)
        aimed[layer.places] = used.aimed(exact)
        tensor, problem, codes = self._encoded(layer, aimed.reshape(real.shape), used.second)
        mean_error = found.exact[:, None] @ exact - found.found[:, None] @ problem.real(codes)
        tensor = dataclasses.replace(tensor, dtype=np.dtype(weight.dtype))
        leaf = tensor.dequantize() if layer.config.mode == "weights_rounded" else tensor
        return leaf, mean_error.reshape(-1)

    def _encoded(self, layer: Layer, real: Any, hessian: Any) -> tuple[QTensor, RoundingProblem, Any]:
        """The codes that the method chooses on the grid of the weight: as a QTensor, and as the method returned them."""
        spec = layer.config.weights
        scale, zero = _grid(real, layer, hessian if self.search else None)
        problem = _problem(real, layer, hessian, scale, zero)
        key = jax.random.fold_in(self.key, zlib.crc32(layer.site.encode()))
        codes = np.asarray(self.choose_codes(problem, key))
        _check(codes, problem)
        values = np.empty(real.size, np.float32)
        values[layer.places] = codes
        stored = jnp.asarray(values.reshape(real.shape), spec.storage)
        small = joined_groups(scale.shape, real.shape, split_groups(real.shape, layer.keep, spec)[0])
        tensor = QTensor(stored, scale.reshape(small), zero.reshape(small), spec.bits, spec.is_symmetric)
        return tensor, problem, codes


def _check(codes: Any, problem: RoundingProblem) -> None:
    """Refuses what a method returned unless it is integers of the right shape inside the grid."""
    if codes.shape != problem.weight.shape or not np.array_equal(np.rint(codes), codes):
        raise TensorError(
            f"learn_rounding: at {problem.name} the method returned {codes.dtype}{list(codes.shape)}; expected integers of "
            f"shape {list(problem.weight.shape)}"
        )
    if codes.size and not (problem.qmin <= codes.min() and codes.max() <= problem.qmax):
        raise TensorError(
            f"learn_rounding: at {problem.name} the method returned codes {codes.min():g}..{codes.max():g}; the grid has "
            f"{problem.qmin}..{problem.qmax}: clip them"
        )


def _problem(real: Any, layer: Layer, hessian: Any, scale: Any, zero: Any) -> RoundingProblem:
    """What the method is given: the weight in canonical form, with a step and a zero point for each element."""
    spec = layer.config.weights
    shape, _ = split_groups(real.shape, layer.keep, spec)
    step, zero_point = (
        np.broadcast_to(np.asarray(a, np.float32), shape).ravel()[layer.places] for a in (scale, zero)
    )
    weight = real.ravel()[layer.places]
    return RoundingProblem(layer.site, weight, hessian, step, zero_point, spec.qmin, spec.qmax)


def _grid(real: Any, layer: Layer, hessian: Any) -> tuple[Any, Any]:
    """Scale and zero point in the rank of `split_groups`' shape.

    With a Hessian they are those of the shrunken range that loses least, chosen for each scale separately; with None those of
    the whole range.
    """
    spec, scheme = layer.config.weights, get_rounding(layer.config.rounding)
    shape, keep = split_groups(real.shape, layer.keep, spec)
    low, high = extremes(jnp.asarray(real.reshape(shape)), keep, spec.range)
    if hessian is None:
        return affine(low, high, spec, scheme)
    grids = [affine(low * part, high * part, spec, scheme) for part in SHRINKS]
    axes = tuple(a for a in range(len(shape)) if a not in keep)
    losses = np.stack([_loss(_problem(real, layer, hessian, *grid), layer, shape, axes) for grid in grids])
    best = np.argmin(losses, axis=0)[None]
    scale, zero = (np.take_along_axis(np.stack(parts), best, 0)[0] for parts in zip(*grids, strict=True))
    return jnp.asarray(scale), jnp.asarray(zero)


def _loss(problem: RoundingProblem, layer: Layer, shape: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    """The error that belongs to each scale: the share ``d (H d)`` of each element, summed over those that share the scale."""
    off = problem.weight - problem.real(problem.nearest())
    shares = np.empty(np.prod(shape, dtype=int), np.float32)
    shares[layer.places] = off * (problem.hessian @ off)
    return shares.reshape(shape).sum(axis=axes, keepdims=True)
