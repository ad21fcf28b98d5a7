"""Finds the weights of a function that can be learned, and the vectors after them that can take up a mean error."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxq8.analysis.flat_function import Chains, array_leaves
from jaxq8.analysis.traced_call import Call
from jaxq8.config import Config
from jaxq8.evaluation.float_modes import ENCODES_WEIGHTS
from jaxq8.evaluation.weight_encoding import is_weight, kept, site_config
from jaxq8.learning.layer_moments import places


@dataclasses.dataclass(frozen=True)
class Layer:
    """A weight leaf that exactly one contraction reads.

    Attributes:
      leaf: Number of the leaf among the variables' array leaves.
      site: Name of the contraction.
      config: Configuration of the site; its `weights` are the grid.
      keep: Axes that keep scales of their own.
      places: Where in the leaf each element of the weight in canonical form is, ``(g, k, n)``.
    """

    leaf: int
    site: str
    config: Config
    keep: tuple[int, ...]
    places: np.ndarray[Any, Any]

    @property
    def hessian_bytes(self) -> int:
        """Bytes of the two second-moment matrices of the layer, in float32."""
        groups, terms, _ = self.places.shape
        return 2 * 4 * groups * terms * terms


def learnable_layers(
    fn: Callable[..., Any], variables: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any], config: Config
) -> list[Layer]:
    """The weights that can be learned, in the order in which their sites run."""
    call = Call.trace(fn, (variables, *inputs), kwargs)
    analysis, count = call.analyse(config), len(call.consts)
    marked = [i for i, w in enumerate(call.arguments.weights) if w]
    candidates: list[tuple[int, str, Config, tuple[int, ...]]] = []
    for i, use in sorted(analysis.weights.items()):
        site = use.sites[0]
        settings = site_config(config, site)
        leaf = call.arguments.leaves[i - count] if i - count in marked else None
        if leaf is None or len(use.sites) != 1 or settings.mode not in ENCODES_WEIGHTS:
            continue
        if is_weight(leaf, use, config) and site.split("#")[0].endswith((":dot", ":conv")):
            candidates.append((i - count, site, settings, kept(leaf, use, settings)))
    found = places(call, [i for i, *_ in candidates])
    layers = []
    for i, site, settings, keep in candidates:
        is_whole_leaf = site in found and found[site].size == np.size(call.arguments.leaves[i])
        if is_whole_leaf:
            layers.append(Layer(i, site, settings, keep, found[site]))
    order = {site.name: number for number, site in enumerate(analysis.sites.values())}
    return sorted(layers, key=lambda layer: order[layer.site])


def correctable_vectors(
    fn: Callable[..., Any], variables: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any], config: Config
) -> dict[str, int]:
    """The sites whose mean error a vector after them can take up, and for each the leaf that holds the vector."""
    chains = Chains.trace(fn, (variables, *inputs), kwargs, config)
    flat, arrays, _ = array_leaves(variables)
    after = {site.name: (node, chains.shift_after(node)) for node, site in chains.contractions()}
    users = collections.Counter(place[0] for _, place in after.values() if place)
    result = {}
    for name, (node, place) in after.items():
        if place is None:
            continue
        leaf, _ = place
        outputs = node.outputs[0][1].aval.shape
        if users[leaf] == 1 and np.size(flat[arrays[leaf]]) in outputs:
            result[name] = leaf
    return result
