"""The parts that `compress` is put together from: codes, measured biases, the order of layers, and the size of a file."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.analysis.flat_function import Chains, array_leaves, moved
from jaxq8.analysis.traced_call import Call
from jaxq8.calibration.batch_norm_folding import fold_norms
from jaxq8.config import Config, literal
from jaxq8.evaluation.calls import evaluate_call
from jaxq8.evaluation.weight_encoding import is_weight, site_config
from jaxq8.files.weights_file import save
from jaxq8.learning.layer_moments import EXACT, Reading, read_rows
from jaxq8.learning.layers import correctable_vectors, learnable_layers
from jaxq8.learning.recipe_measure import largest_count
from jaxq8.numerics.codebook import is_encoded
from jaxq8.numerics.qtensor import split_groups
from jaxq8.numerics.ranges import Ranges
from jaxq8.numerics.spec import Spec
from jaxq8.plan import Recorder
from jaxq8.transform import quantize
from jaxq8.weights import quantize_weights

EXAMPLES = 8  # the order of the layers is measured on about so many; it needs no precise figures


def spec(bits: int, group: int = 0) -> Spec:
    """Symmetric codes with a scale for each channel, or for each group of neighbours in a channel."""
    if group:
        return Spec(bits=bits, symmetric=True, granularity="group", group=group)
    return Spec(bits=bits, symmetric=True, granularity="channel")


@dataclasses.dataclass(frozen=True)
class Weight:
    """A leaf that becomes codes.

    Attributes:
      sites: The sites that read it.
      shape: Its shape.
      keep: The axes that no site sums over.
    """

    sites: tuple[str, ...]
    shape: tuple[int, ...]
    keep: tuple[int, ...]

    def bytes(self, bits: int, group: int = 0) -> int:
        """What its codes and scales take in a file."""
        split, kept = split_groups(self.shape, self.keep, spec(bits, group))
        return math.ceil(math.prod(self.shape) * bits / 8) + 4 * math.prod(split[axis] for axis in kept)


@dataclasses.dataclass(frozen=True)
class Net:
    """A function with its float variables, and which of their leaves are weights.

    Attributes:
      fn: The float function.
      variables: Its first argument.
      inputs: Arrays, or shapes, of its other arguments.
      kwargs: Its keyword arguments.
      config: The user's configuration, without a choice of weights.
      ranges: The user's ranges.
    """

    fn: Callable[..., Any]
    variables: Any
    inputs: tuple[Any, ...]
    kwargs: dict[str, Any]
    config: Config
    ranges: Ranges | None

    def with_weights(self, bits: int, group: int = 0, raised: Iterable[str] = ()) -> Config:
        """The user's configuration with this representation of weights, and eight bits at the `raised` sites.

        The user's own overrides come last and win.
        """
        ours = tuple((literal(site), {"weights": spec(8)}) for site in raised)
        overrides = (*ours, *self.config.overrides)
        return dataclasses.replace(self.config, weights=spec(bits, group), overrides=overrides)

    def without(self, sites: Iterable[str]) -> Config:
        """The user's configuration with these sites in float."""
        ours = tuple((literal(site), {"mode": "off"}) for site in sites)
        return dataclasses.replace(self.config, overrides=(*ours, *self.config.overrides))

    def weights(self) -> dict[int, Weight]:
        """The leaves that are weights, and that no override of the user speaks of."""
        call = Call.trace(self.fn, (self.variables, *self.inputs), self.kwargs)
        count = len(array_leaves(self.variables)[1])
        analysis = call.analyse_first(count, self.config)
        plain = dataclasses.replace(self.config, overrides=())
        found = {}
        for i, use in sorted(analysis.weights.items()):
            leaf = i - len(call.consts)
            free = all(site_config(self.config, site) == plain for site in use.sites)
            if 0 <= leaf < count and free and is_weight(call.arguments.leaves[leaf], use, self.config):
                shape = np.shape(call.arguments.leaves[leaf])
                found[leaf] = Weight(
                    tuple(use.sites), shape, tuple(a for a in range(len(shape)) if a in use.kept)
                )
        return found

    def encoded(self, config: Config, correct: bool = True) -> Any:
        """The variables as codes, by default with the correction that needs no data."""
        how: Any = "statistics" if correct else None
        return quantize_weights(
            self.fn, self.variables, *self.inputs, config=config, correct=how, **self.kwargs
        )

    def folded(self, variables: Any, config: Config) -> Any:
        """The variables with batch norms folded into scales: the same results, and a smaller file."""
        return fold_norms(self.fn, variables, *self.inputs, config=config, **self.kwargs)

    def file_bytes(self, variables: Any, config: Config) -> int:
        """The size of the file that `save` makes."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "size.q8"
            save(path, variables, ranges=self.ranges, config=config)
            return path.stat().st_size

    def plain_bytes(self, bits: int) -> int:
        """The size of a file of codes with one scale a channel."""
        codes = self.encoded(self.with_weights(bits), correct=False)
        return self.file_bytes(self.folded(codes, self.config), self.config)

    def float_bytes(self) -> int:
        """The bytes of all array leaves in float32."""
        flat, arrays, _ = array_leaves(self.variables)
        return sum(4 * int(np.size(flat[i])) for i in arrays)


class BiasMeans:
    """The means of what each layer reads in float, which tell the mean error that codes of its weight make."""

    def __init__(self, net: Net, batches: Sequence[tuple[Any, ...]]):
        self._net = net
        config = net.with_weights(8)
        first = batches[0]
        self._layers = learnable_layers(net.fn, net.variables, first, net.kwargs, config)
        self.vectors = correctable_vectors(net.fn, net.variables, first, net.kwargs, config)
        self._chains = Chains.trace(net.fn, (net.variables, *first), net.kwargs, config)
        run = jax.jit(lambda v, x: _means(net, v, x, frozenset(self.vectors)))
        found = [jax.device_get(run(net.variables, batch)) for batch in batches]
        self._means = {name: np.mean([f[name] for f in found], axis=0) for name in found[0]}

    def corrected(self, encoded: Any) -> Any:
        """The codes of `encoded` with the float vectors, from which the mean error of each layer's codes is taken out."""
        flat, arrays, _ = array_leaves(self._net.variables)
        codes, _, tree = array_leaves(encoded)
        leaves = [c if is_encoded(c) else f for c, f in zip(codes, flat, strict=True)]
        shifts = {}
        for layer in self._layers:
            code = leaves[arrays[layer.leaf]]
            if layer.site not in self._means or not is_encoded(code):
                continue
            exact = np.asarray(flat[arrays[layer.leaf]], np.float32).ravel()
            off = (exact - np.asarray(code.dequantize(np.float32)).ravel())[layer.places]
            shifts[layer.site] = np.einsum("gk,gkn->gn", self._means[layer.site], off).reshape(-1)
        return moved(tree.unflatten(leaves), self._chains, shifts)


def _means(net: Net, variables: Any, inputs: Any, wanted: frozenset[str]) -> dict[str, jax.Array]:
    call = Call.trace(net.fn, (variables, *inputs), net.kwargs)
    probe = Reading(lambda layout, x, w: jnp.mean(read_rows(layout, x.values).astype(jnp.float32), 0), wanted)
    evaluate_call(call, call.arguments.leaves, EXACT, Ranges(), Recorder(), probe, exact=lambda name: True)
    return dict(probe.seen)


def harm(
    net: Net, encoded: Any, leaves: Iterable[int], batches: Sequence[tuple[Any, ...]]
) -> dict[int, float]:
    """For each leaf the squared error of the results that its codes alone make, the others being in float."""
    flat, arrays, tree = array_leaves(net.variables)
    codes = array_leaves(encoded)[0]
    some, count = [], 0
    for batch in batches:
        some.append(batch)
        count += largest_count(batch)
        if count >= EXAMPLES:
            break
    exact_config = Config(mode="off")  # float arithmetic, by the fastest kernels
    fast = quantize(net.fn, exact_config)
    run = jax.jit(lambda v, x: jax.tree.leaves(fast(v, *x, **net.kwargs)))
    expected = [run(net.variables, batch) for batch in some]
    found = {}
    for leaf in leaves:
        place = arrays[leaf]
        if not is_encoded(codes[place]):
            continue
        changed = list(flat)
        changed[place] = codes[place].dequantize().astype(flat[place].dtype)
        results = [run(tree.unflatten(changed), batch) for batch in some]
        found[leaf] = float(sum(
            np.sum((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
            for x, y in zip(expected, results, strict=True) for a, b in zip(x, y, strict=True)
        ))  # fmt: skip
    return found


def spliced(base: Any, other: Any, leaves: Iterable[int]) -> Any:
    """The tree `base` with these array leaves taken from `other`."""
    flat, arrays, tree = array_leaves(base)
    others = array_leaves(other)[0]
    for leaf in leaves:
        flat[arrays[leaf]] = others[arrays[leaf]]
    return tree.unflatten(flat)
