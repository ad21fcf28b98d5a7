"""The encoding of weights: which leaves become codes, which axes keep scales of their own, and how the codes are rounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.analysis.sites import Analysis, WeightUse, site_op
from jaxq8.config import Config
from jaxq8.errors import TensorError
from jaxq8.evaluation.float_modes import ENCODES_WEIGHTS
from jaxq8.numerics.codebook import CodeBook, as_codes
from jaxq8.numerics.qtensor import QTensor, is_concrete
from jaxq8.numerics.rounding import get_rounding, straight_through

# Smaller leaves are not worth a scale per channel (TensorFlow's quantize_weights keeps tensors below 1024 elements in float).
MINIMUM_SIZE = 256


def encode_leaves(leaves: Sequence[Any], analysis: Analysis, config: Config, consts: int) -> list[Any]:
    """The leaves, with weights as QTensors. Data, and leaves that are QTensors already, are returned as they are."""
    return [as_codes(leaf) for leaf in encoded_leaves(leaves, analysis, config, consts)]


def encoded_leaves(
    leaves: Sequence[Any], analysis: Analysis, config: Config, consts: int, names: Sequence[str] = ()
) -> list[Any]:
    """The leaves, with weights as `QTensor` or `CodeBook`.

    Args:
      leaves: All inputs of the function, constants first.
      analysis: Which of them are weights.
      config: The configuration.
      consts: How many constants come first.
      names: Names of the leaves after the constants, for errors; a leaf without one is named after its first site.
    """
    result = list(leaves)
    for i, use in analysis.weights.items():
        if i < len(leaves) and is_weight(leaves[i], use, config):
            name = names[i - consts] if consts <= i < consts + len(names) else use.sites[0]
            result[i] = _encode(leaves[i], use, config, name)
    return result


def is_weight(leaf: Any, use: WeightUse, config: Config) -> bool:
    """Whether a leaf becomes codes: it is float, large enough, and all sites that read it encode their weights."""
    if isinstance(leaf, QTensor) or not jnp.issubdtype(leaf.dtype, jnp.floating) or np.size(leaf) == 0:
        return False
    if np.size(leaf) < MINIMUM_SIZE and config.kernels == "auto":
        return False
    return all(site_config(config, site).mode in ENCODES_WEIGHTS for site in use.sites)


def site_config(config: Config, site: str) -> Config:
    """The configuration of a site of which only the name is known."""
    return config.for_site(site, site_op(site))


def _encode(leaf: Any, use: WeightUse, config: Config, name: str) -> Any:
    """One leaf as codes. A leaf that is not traced is encoded now, even while the function that uses it is being traced."""
    site = site_config(config, use.sites[0])
    if is_concrete(leaf):
        if not np.isfinite(np.asarray(leaf, np.float32)).all():
            raise TensorError(
                f"weight {name} holds NaN or infinity; repair the checkpoint or switch its site off by an override"
            )
        with jax.ensure_compile_time_eval():
            return _codes(leaf, use, site)
    return _codes(leaf, use, site)


def kept(leaf: Any, use: WeightUse, site: Config) -> tuple[int, ...]:
    """The axes of a weight that keep scales (or code books) of their own."""
    if site.weights.granularity == "tensor":
        return ()
    return tuple(axis for axis in range(leaf.ndim) if axis in use.kept)


def _codes(leaf: Any, use: WeightUse, site: Config) -> Any:
    """A leaf in the form that the site's mode computes with: codes, simulated codes with a derivative, or rounded numbers."""
    if site.simulates:
        codes = as_codes(_plain_codes(jax.lax.stop_gradient(jnp.asarray(leaf)), use, site))
        steps = leaf.astype(jnp.float32) / codes.by_element(codes.scale)
        values = straight_through(steps, codes.values.astype(jnp.float32))
        return dataclasses.replace(codes, values=values)
    codes = _plain_codes(jnp.asarray(leaf), use, site)
    return codes.dequantize() if site.mode == "weights_rounded" else codes


def _plain_codes(leaf: jax.Array, use: WeightUse, site: Config) -> QTensor | CodeBook:
    """A leaf as codes, by the site's representation and rounding."""
    keep = kept(leaf, use, site)
    if site.weights.has_book:
        return CodeBook.from_float(leaf, site.weights, axis=keep)
    scheme = get_rounding(site.rounding)
    key = jax.random.key(site.seed) if scheme.keyed else None
    encode = _compiled if is_concrete(leaf) else QTensor.from_float
    return encode(leaf, site.weights, axis=keep, rounding=scheme, key=key)


# One program for each shape instead of one for each step and shape: compiling them is most of the time of `quantize_weights`.
_compiled = jax.jit(QTensor.from_float, static_argnums=1, static_argnames=("axis", "rounding"))
