"""`reconstruct`: learns the codes of all layers together, by their effect on the results of the whole function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxq8.analysis.flat_function import array_leaves
from jaxq8.analysis.traced_call import Call
from jaxq8.calibration.calibrate import each_batch
from jaxq8.config import Config
from jaxq8.errors import ArgumentError
from jaxq8.evaluation.calls import evaluate_call
from jaxq8.evaluation.probes import Probe
from jaxq8.evaluation.values import Accumulator, decode
from jaxq8.learning.layer_moments import EXACT
from jaxq8.learning.layers import correctable_vectors, learnable_layers
from jaxq8.numerics.packed_tensor import PackedTensor
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.ranges import Ranges
from jaxq8.numerics.rounding import straight_through
from jaxq8.numerics.spec import Spec
from jaxq8.plan import Recorder
from jaxq8.transform import checked_config

EDGE = 0.45  # how far from its code, in steps, a weight may start; from 0.5 on it would round to a neighbouring code
TINY = float(np.finfo(np.float32).tiny)
Parameters = dict[str, dict[str, Any]]


def reconstruct(
    fn: Callable[..., Any],
    variables: Any,
    encoded: Any,
    batches: Iterable[Any],
    *,
    config: Config | None = None,
    steps: int = 400,
    rate: float = 2e-3,
    inner: float = 1.0,
    key: jax.Array | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> Any:
    """Learns codes, scales and biases of all layers together, so that the results come close to those in float.

    Learning starts from what `learn_rounding` decided layer by layer. Each weight becomes a number that is rounded to its
    code, with the straight-through estimator as derivative; it starts next to its code, on the side of the float weight. Adam
    then reduces the squared error of the results against those of the float function on the same data (labels are not
    needed), plus the squared error of the output of every contraction, each relative to its variance. The errors of the
    outputs keep the many weights from fitting only the few results. The idea of reconstructing more than one layer is that of
    Li et al. 2021 (BRECQ). The scales are learned as logarithms, and activations are in float while learning.

    Args:
      fn: The float function: ``model.apply``.
      variables: Its first argument, in float.
      encoded: The same variables with weights as QTensors, from `learn_rounding` or `quantize_weights`.
      batches: As for `calibrate`; each step uses one of them, in an order that `key` shuffles. Each shape compiles once.
      config: The configuration that `encoded` was made with.
      steps: The number of steps of Adam; the learning rate falls to 0 along a cosine.
      rate: The learning rate, about the largest move of a weight in one step, in units of a code. The rate of logarithms of
        scales, and of vectors that are added after a layer (in units of their root mean square), is half of it.
      inner: Weight of the error of the contractions' outputs; that of the results has the weight 1.
      key: PRNG key of the order of the batches. Default ``jax.random.key(config.seed)``.
      progress: Show a progress bar.
      **kwargs: Keyword arguments of `fn`.

    Returns:
      A tree like `encoded`, or `encoded` itself where the error of the results over all batches did not become smaller.
      Weights that the layer-wise methods do not learn (read twice, or in loops) keep their codes. While learning, memory holds
      16 bytes for each weight (the number, its derivative and two moments of Adam) and twice the activations of one batch.

    Raises:
      ArgumentError: There are no batches, `steps` is below 1, `encoded` has another structure than `variables`, or `encoded`
        holds no codes that can be learned.

    Example:
      >>> start = q8.quantize_weights(model.apply, variables, images, config=four)
      >>> better = q8.reconstruct(model.apply, variables, start, batches, config=four, steps=10)
    """
    config, inputs = checked_config(fn, config), list(each_batch("reconstruct", batches))
    if steps < 1:
        raise ArgumentError(f"reconstruct: {steps} steps; take at least one")
    net = _Net.of(fn, variables, encoded, inputs[0], kwargs, config, inner)
    before = after = net.start()
    key = jax.random.key(config.seed) if key is None else key
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key), np.uint32).tolist())
    after = _descend(net, before, _order(draw, inputs, steps), steps, rate, progress)
    error = jax.jit(net.error)
    first_error = sum(float(error(None, x)[1]) for x in inputs)
    last_error = sum(float(error(after, x)[1]) for x in inputs)
    if last_error < first_error:  # false for NaN too
        return net.encoded(jax.device_get(after))
    return encoded


def _order(draw: np.random.Generator, inputs: list[Any], steps: int) -> Iterable[Any]:
    """Yields a batch for each step; all batches are used in turn, in a new random order each time."""
    turns = -(-steps // len(inputs))
    indices = np.concatenate([draw.permutation(len(inputs)) for _ in range(turns)])[:steps]
    return (inputs[i] for i in indices)


def _descend(net: _Net, p: Parameters, data: Iterable[Any], steps: int, rate: float, progress: bool) -> Any:
    """The parameters after one step of Adam for each batch of the data."""
    import optax  # imported here, since running an exported program does not need it

    fast, slow = (optax.adam(optax.cosine_decay_schedule(r, steps)) for r in (rate, rate / 2))
    labels = {name: {kind: kind for kind in part} for name, part in p.items()}
    optimizer = optax.multi_transform({"weight": fast, "log_scale": slow, "shift": slow}, labels)

    @jax.jit
    def step(p: Any, state: Any, inputs: Any) -> Any:
        slope, error = jax.grad(net.error, has_aux=True)(p, inputs)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(p, updates), state, error

    state = optimizer.init(p)
    with tqdm(data, desc="reconstructing", unit="step", total=steps, disable=not progress) as bar:
        for inputs in bar:
            p, state, error = step(p, state, inputs)
            if progress:
                bar.set_postfix(error=f"{float(error):.4g}")
    return p


class _Outputs(Probe):
    """Keeps the result of every contraction outside of loops, in float."""

    def contracted(self, name: str, result: Accumulator, encoded: Callable[[], jax.Array]) -> None:
        if len(self._frames) == 1:
            self.add({name: decode(result)})


@dataclasses.dataclass(frozen=True)
class _Net:
    """The float function, and which leaves of its variables are learned.

    Attributes:
      fn: The float function.
      kwargs: Its keyword arguments.
      exact: Its variables in float.
      leaves: All leaves of the encoded variables.
      reals: All leaves of the float variables.
      tree: Structure of the encoded variables.
      grids: The weights that are learned: the number of the leaf and the spec of its codes.
      vectors: The vectors after layers that are learned, as numbers of leaves.
      inner: Weight of the error of the contractions' outputs.
    """

    fn: Callable[..., Any]
    kwargs: Mapping[str, Any]
    exact: Any
    leaves: list[Any]
    reals: list[Any]
    tree: Any
    grids: Mapping[int, Spec]
    vectors: frozenset[int]
    inner: float

    @classmethod
    def of(
        cls, fn: Any, variables: Any, encoded: Any, inputs: Any, kwargs: Any, config: Config, inner: float
    ) -> _Net:
        (reals, arrays, _), (leaves, places, tree) = array_leaves(variables), array_leaves(encoded)
        # Codes that are learned have to be plain; what was packed can be packed again afterwards.
        leaves = [leaf.unpack() if isinstance(leaf, PackedTensor) else leaf for leaf in leaves]
        if arrays != places or len(reals) != len(leaves):
            raise ArgumentError(
                "reconstruct: encoded is no tree like variables; pass learn_rounding's result"
            )
        layers = learnable_layers(fn, variables, inputs, kwargs, config)
        grids = {arrays[layer.leaf]: layer.config.weights for layer in layers}
        grids = {i: spec for i, spec in grids.items() if isinstance(leaves[i], QTensor)}
        if not grids:
            raise ArgumentError(
                "reconstruct: encoded holds no codes that a contraction reads; encode it first"
            )
        vectors = {arrays[i] for i in correctable_vectors(fn, variables, inputs, kwargs, config).values()}
        return cls(fn, kwargs, variables, leaves, reals, tree, grids, frozenset(vectors), inner)

    def start(self) -> Parameters:
        """The parameters that stand for the codes of `encoded`."""
        found: Parameters = {}
        for i in self.grids:
            q = self.leaves[i]
            zero, codes = q.by_element(q.zero_point), jnp.asarray(q.values, jnp.float32)
            aim = jnp.asarray(self.reals[i], jnp.float32) / q.by_element(q.scale) + zero
            near = jnp.clip(aim, codes - EDGE, codes + EDGE)
            found[str(i)] = {"weight": near, "log_scale": jnp.zeros(q.scale.shape, jnp.float32)}
        for i in self.vectors:
            found[str(i)] = {"shift": jnp.zeros(np.shape(self.leaves[i]), jnp.float32)}
        return found

    def error(self, p: Parameters | None, inputs: Any) -> tuple[jax.Array, jax.Array]:
        """The error that is minimized, and the part of it that is the error of the results.

        Without parameters they are the errors of the codes that learning started from.
        """
        wanted, kept = self._run(self.exact, inputs)
        found, seen = self._run(self._real(p), inputs)
        pairs = [(a, b) for a, b in zip(wanted, found, strict=True) if jnp.issubdtype(a.dtype, jnp.floating)]
        result = sum(_off(a, b, 0.0) for a, b in pairs) / max(len(pairs), 1)
        features = sum(_off(kept[n], seen[n], jnp.mean(kept[n])) for n in kept) / max(len(kept), 1)
        return result + self.inner * features, result

    def _run(self, variables: Any, inputs: Any) -> tuple[list[Any], dict[str, Any]]:
        """The results of the float function, and the output of every contraction by site (none if `inner` is 0)."""
        call, probe = Call.trace(self.fn, (variables, *inputs), self.kwargs), _Outputs()
        leaves = call.arguments.leaves
        out = evaluate_call(call, leaves, EXACT, Ranges(), Recorder(), probe, exact=lambda name: True)
        return out, probe.seen if self.inner else {}

    def _real(self, p: Parameters | None) -> Any:
        """The variables that parameters stand for, in float."""
        return self.tree.unflatten([self._leaf(i, p, self._decoded) for i in range(len(self.leaves))])

    def encoded(self, p: Parameters) -> Any:
        """The variables that parameters stand for, with codes."""
        return self.tree.unflatten([self._leaf(i, p, self._codes) for i in range(len(self.leaves))])

    def _leaf(self, i: int, p: Parameters | None, weight: Callable[..., Any]) -> Any:
        """Leaf number `i` for these parameters, with `weight` (`_decoded` or `_codes`) to make it of those of a weight."""
        old = self.leaves[i]
        if p is not None and i in self.grids:
            return weight(old, self.grids[i], **p[str(i)])
        if p is not None and i in self.vectors:
            real = jnp.asarray(old, jnp.float32)
            return (real + p[str(i)]["shift"] * jnp.sqrt(jnp.mean(real**2) + TINY)).astype(old.dtype)
        return old.dequantize() if weight == self._decoded and hasattr(old, "dequantize") else old

    @staticmethod
    def _decoded(old: QTensor, spec: Spec, weight: Any, log_scale: Any) -> Any:
        """The float numbers of a learned weight, differentiable by the straight-through estimator."""
        steps = jnp.clip(weight, spec.qmin, spec.qmax)
        codes = straight_through(steps, jnp.round(steps)) - old.by_element(old.zero_point)
        return (codes * old.by_element(old.scale * jnp.exp(log_scale))).astype(old.dtype)

    @staticmethod
    def _codes(old: QTensor, spec: Spec, weight: Any, log_scale: Any) -> QTensor:
        """A learned weight as integer codes with its learned scale."""
        codes = jnp.round(jnp.clip(weight, spec.qmin, spec.qmax)).astype(old.values.dtype)
        return dataclasses.replace(old, values=codes, scale=old.scale * jnp.exp(log_scale))


def _off(exact: Any, found: Any, centre: Any) -> Any:
    """The squared error relative to the spread of the exact numbers about `centre`."""
    spread = jnp.sum((exact - centre) ** 2)
    return jnp.sum((found - exact) ** 2) / jnp.maximum(spread, TINY)
