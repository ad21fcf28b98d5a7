"""`learn_rounding`: which way to round each weight, learned layer by layer from what the layer reads."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
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

assert _methods  # importing them is what registers them

SHRINKS = np.linspace(1.0, 0.5, 21)  # parts of a channel's range that are tried


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
    """`quantize_weights` with the rounding of each weight decided by its effect on the layer, measured on data.

    The squared error that a layer's rounding adds depends on the data only through the second moments of what the layer
    reads (its *Hessian*). They are measured on the float function, for as many layers at a time as `memory` allows, and each
    layer is then rounded for itself: by GPTQ's error feedback (Frantar et al. 2022), by AdaRound (Nagel et al. 2020), or by
    a method of your own (`register_learned_rounding`). The codes use the grid that `config` gives, so the result runs in
    every mode, file and export like that of `quantize_weights`.

    Args:
      fn: The float function: ``model.apply``.
      variables: Its first argument, in float.
      batches: As for `calibrate`. They are passed over once for each group of layers; a generator is kept in a list.
      method: "gptq", "adaround", "nearest", "stochastic", another registered name, or a function like one.
      config: As for `quantize_weights`; ``config.weights`` is the grid. ``config.rounding`` is for what is not learned.
      key: PRNG key; each site gets its own. Default ``jax.random.key(config.seed)``.
      search: Also choose for each scale how much of the range is worth keeping: of 21 shrunken ranges from 100% to 50% the
        one that loses least when rounded to nearest.
      correct: Let the mean error go into the vector that is added after the layer, where there is one (as `correct_bias`
        does); what is learned is then the part of the error that varies.
      stages: How often the data are passed over. The layers are taken in the order in which they run, in that many stages;
        each stage is measured with what was rounded before it, and its first layer is aimed at the float result from what it
        now reads (least squares), which makes up for the errors of earlier layers. Default: a stage for each layer, the best
        and slowest; 1 rounds each layer as if it were alone, in one pass.
      memory: Bytes of Hessians that are held at a time, at least one layer's.
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
      >>> q_vars = q8.learn_rounding(model.apply, variables, batches, method="gptq", config=four)
    """
    config, choose = checked_config(fn, config), get_method(method)
    inputs = list(each_batch("learn_rounding", batches))
    key = jax.random.key(config.seed) if key is None else key
    flat, arrays, tree = array_leaves(variables)
    layers = learnable_layers(fn, variables, inputs[0], kwargs, config)
    vectors = correctable_vectors(fn, variables, inputs[0], kwargs, config) if correct else {}
    round_layer = partial(_rounded, choose=choose, key=key, search=search)
    current = variables
    chains = Chains.trace(fn, (variables, *inputs[0]), kwargs, config)
    bar = tqdm(total=len(layers), desc="rounding", unit="layer", disable=not progress)
    for group in _groups(layers, memory):
        names = {layer.site for layer in group}
        measure = jax.jit(lambda v, x, names=names: moments(fn, v, x, kwargs, names))
        for stage in _stages(group, stages):
            found = _measured(measure, (variables, current), inputs)
            leaves = array_leaves(current)[0]
            shifts = {}
            for index, layer in enumerate(stage):
                weight, place = flat[arrays[layer.leaf]], arrays[layer.leaf]
                moment = found.pop(layer.site)
                if index:  # what its stage's first layer makes up for must not be made up for twice
                    moment = moment._replace(drift=np.zeros_like(moment.drift), exact=moment.found)
                leaves[place], shift = round_layer(layer, weight, moment, layer.site in vectors)
                if layer.site in vectors:
                    shifts[layer.site] = shift
                bar.update()
            current = moved(tree.unflatten(leaves), chains, shifts)
    bar.close()
    return quantize_weights(fn, current, *inputs[0], config=config, **kwargs)


def _groups(layers: list[Layer], memory: int) -> Iterator[list[Layer]]:
    """Layers whose Hessians fit into `memory` together; one that does not fit is alone."""
    group: list[Layer] = []
    for layer in layers:
        if group and sum(item.hessian_bytes for item in [*group, layer]) > memory:
            yield group
            group = []
        group.append(layer)
    if group:
        yield group


def _stages(layers: list[Layer], count: int | None) -> list[list[Layer]]:
    """The layers in at most `count` runs of like length."""
    count = len(layers) if count is None else min(max(count, 1), len(layers))
    ends = np.linspace(0, len(layers), count + 1).astype(int)
    return [layers[a:b] for a, b in itertools.pairwise(ends)]


def _measured(step: Callable[..., Any], variables: Any, batches: list[tuple[Any, ...]]) -> dict[str, Moments]:
    """Moments over all batches, each batch counting the same."""
    sums: Any = None
    for inputs in batches:
        new = jax.device_get(step(variables, inputs))
        sums = jax.tree.map(np.add, sums, new) if sums else new
    return jax.tree.map(lambda a: a / np.float32(len(batches)), sums)


def _rounded(
    layer: Layer, weight: Any, found: Moments, corrected: bool, choose: Method, key: jax.Array, search: bool
) -> tuple[Any, Any]:
    """One leaf as codes, and the mean error that is left in each output."""
    real = np.asarray(weight, np.float32)
    if not np.isfinite(real).all():
        raise TensorError(f"weight of {layer.site} holds NaN or infinity; repair the checkpoint")
    exact = real.ravel()[layer.places]
    used = found.centred() if corrected else found
    aimed = np.empty(real.size, np.float32)
    aimed[layer.places] = used.aimed(exact)
    tensor, problem, codes = _encoded(layer, aimed.reshape(real.shape), used.second, choose, key, search)
    off = found.exact[:, None] @ exact - found.found[:, None] @ problem.real(codes)
    tensor = dataclasses.replace(tensor, dtype=np.dtype(weight.dtype))
    return (tensor.dequantize() if layer.config.mode == "weights_rounded" else tensor), off.reshape(-1)


def _encoded(
    layer: Layer, real: Any, hessian: Any, choose: Method, key: jax.Array, search: bool
) -> tuple[QTensor, RoundingProblem, Any]:
    """The codes that the method chooses on the grid of the weight."""
    spec = layer.config.weights
    scale, zero = _grid(real, layer, hessian if search else None)
    problem = _problem(real, layer, hessian, scale, zero)
    codes = np.asarray(choose(problem, jax.random.fold_in(key, zlib.crc32(layer.site.encode()))))
    _check(codes, problem)
    values = np.empty(real.size, np.float32)
    values[layer.places] = codes
    stored = jnp.asarray(values.reshape(real.shape), spec.storage)
    small = joined_groups(scale.shape, real.shape, split_groups(real.shape, layer.keep, spec)[0])
    tensor = QTensor(stored, scale.reshape(small), zero.reshape(small), spec.bits, spec.is_symmetric)
    return tensor, problem, codes


def _check(codes: Any, problem: RoundingProblem) -> None:
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
    """The layer in canonical form, with a step and a zero point for each element."""
    spec = layer.config.weights
    shape, _ = split_groups(real.shape, layer.keep, spec)
    step, zero_point = (
        np.broadcast_to(np.asarray(a, np.float32), shape).ravel()[layer.places] for a in (scale, zero)
    )
    weight = real.ravel()[layer.places]
    return RoundingProblem(layer.site, weight, hessian, step, zero_point, spec.qmin, spec.qmax)


def _grid(real: Any, layer: Layer, hessian: Any) -> tuple[Any, Any]:
    """Scale and zero point in the rank of `split_groups`; with a Hessian those of the part of the range that loses least."""
    spec, scheme = layer.config.weights, get_rounding(layer.config.rounding)
    shape, keep = split_groups(real.shape, layer.keep, spec)
    low, high = extremes(jnp.asarray(real.reshape(shape)), keep, spec.range)
    grids = [affine(low * f, high * f, spec, scheme) for f in (SHRINKS if hessian is not None else [1.0])]
    if len(grids) == 1:
        return grids[0]
    axes = tuple(a for a in range(len(shape)) if a not in keep)
    losses = np.stack([_loss(_problem(real, layer, hessian, *grid), layer, shape, axes) for grid in grids])
    best = np.argmin(losses, axis=0)[None]
    scale, zero = (np.take_along_axis(np.stack(parts), best, 0)[0] for parts in zip(*grids, strict=True))
    return jnp.asarray(scale), jnp.asarray(zero)


def _loss(problem: RoundingProblem, layer: Layer, shape: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    """The error by scale: each element's share ``d (H d)``, summed over the elements that share a scale."""
    off = problem.weight - problem.real(problem.nearest())
    shares = np.empty(np.prod(shape, dtype=int), np.float32)
    shares[layer.places] = off * (problem.hessian @ off)
    return shares.reshape(shape).sum(axis=axes, keepdims=True)
