"""`corrected`: better codes, and vectors that take out the mean error that is left; both from statistics, without data."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxq8._compat import Literal, bind, primitives
from jaxq8.analysis.channel_factors import activation_axis, weight_axis
from jaxq8.analysis.flat_function import Chains, Node, Ref
from jaxq8.analysis.sites import Site
from jaxq8.data_free.balanced_codes import balanced
from jaxq8.data_free.batch_norms import BatchNorm, batch_norms
from jaxq8.data_free.expected_inputs import Moments, expected_inputs
from jaxq8.data_free.fitted_scales import fitted
from jaxq8.data_free.mean_shift import explaining_mean, explains, mean_shift
from jaxq8.data_free.signs import never_negative
from jaxq8.numerics.codebook import is_encoded
from jaxq8.numerics.qtensor import QTensor, is_concrete

# Codes of so few bits get scales of least squared error, where statistics tell what an error costs, or where inputs have either
# sign. Not where they are only known to be positive: the large weights of SqueezeNet carry the signal, and to clip them costs
# it 4 dB. With eight bits the scales of the extremes are as good.
FITTED_BITS = 4


def corrected(
    chains: Chains, leaves: Sequence[Any], encoded: Sequence[Any], kept: Mapping[int, tuple[int, ...]]
) -> list[Any]:
    """The leaves with their codes balanced and with shifted vectors.

    Args:
      chains: The function, traced with the float leaves.
      leaves: The array leaves of all arguments, in float, or encoded already, which stay as they are. Those of which only the
        shape is given are not known.
      encoded: The leaves of the variables, which come first, those that are weights as `QTensor`.
      kept: For each weight the axes that are not summed over.

    Returns:
      Leaves like `encoded`.
    """
    result = list(encoded)
    floats = {
        i: leaf.dequantize() if is_encoded(leaf) else leaf
        for i, leaf in enumerate(leaves)
        if is_encoded(leaf) or is_concrete(leaf)
    }
    norms = batch_norms(chains, floats)
    after = {norm.source: norm for norm in norms}
    known = _trusted(chains, floats, after, expected_inputs(chains, floats, norms))
    known.update(_explained(chains, floats, after, known))
    sources = _weights(chains)
    rounded = [
        i for i in kept if i < len(result) and isinstance(result[i], QTensor) and not is_encoded(leaves[i])
    ]
    positive = never_negative(chains)
    for leaf in rounded:
        moments = _along_leaf(chains, leaf, np.ndim(leaves[leaf]), sources.get(leaf, []), known, positive)
        if result[leaf].bits <= FITTED_BITS and (moments is None or np.ndim(moments[1])):
            result[leaf] = fitted(leaves[leaf], result[leaf], 1.0 if moments is None else moments[1])
        if moments is None:
            continue
        result[leaf] = balanced(leaves[leaf], result[leaf], kept[leaf], *moments)

    def error(leaf: int) -> np.ndarray | None:
        """What rounding added to a leaf; made when it is asked for, since all together are as large as the float weights."""
        if leaf not in rounded:
            return None
        return np.asarray(result[leaf].dequantize(np.float32)) - np.asarray(leaves[leaf], np.float32)

    for leaf, shift in _shifts(chains, error, after, known).items():
        old = result[leaf] if leaf < len(result) else None
        if old is None or is_encoded(old) or np.size(old) != shift.size:
            continue
        result[leaf] = (jnp.asarray(old, jnp.float32) + shift.reshape(np.shape(old))).astype(old.dtype)
    return result


def _trusted(
    chains: Chains, leaves: Mapping[int, Any], after: Mapping[Ref, BatchNorm], known: Mapping[Node, Moments]
) -> dict[Node, Moments]:
    """The expected inputs that agree with the running means after their contractions.

    Statistics that were never updated, or are those of other weights, tell nothing. What they say of an input is held against
    the running mean of the result: where it does not explain that, it is dropped, and all are dropped if that is the rule.
    """
    agrees: dict[Node, bool] = {}
    for node, site in chains.contractions():
        norm, weight = after.get(node.outputs[0]), site.weight or 0
        if node not in known or norm is None:
            continue
        operand = _operand(chains, node.inputs[weight], leaves.get)
        found = None if operand is None else mean_shift(node, weight, operand, known[node].mean)
        if found is not None:
            agrees[node] = explains(found, norm.mean)
    if 2 * sum(agrees.values()) < len(agrees):
        return {}
    return {node: moments for node, moments in known.items() if agrees.get(node, True)}


def _explained(
    chains: Chains, leaves: Mapping[int, Any], after: Mapping[Ref, BatchNorm], known: Mapping[Node, Moments]
) -> dict[Node, Moments]:
    """The means of unknown inputs, such as the image, that explain the running mean after their contraction."""
    found: dict[Node, Moments] = {}
    for node, site in chains.contractions():
        norm = after.get(node.outputs[0])
        if norm is None or node in known:
            continue
        operand = _operand(chains, node.inputs[site.weight], leaves.get)  # type: ignore[index]
        mean = None if operand is None else explaining_mean(node, site.weight or 0, operand, norm.mean)
        if mean is not None:
            found[node] = Moments(mean, None)
    return found


def _operand(chains: Chains, ref: Ref | None, leaf_value: Callable[[int], Any]) -> np.ndarray | None:
    """An operand that is made from leaves by layout operations, with these values of the leaves; None if one has none."""
    if ref is None or ref not in chains.trails:
        return None
    node = chains.makers.get(ref)
    if node is None:
        leaf = leaf_value(chains.trails[ref].sources[0][0])
        return None if leaf is None else np.asarray(leaf, np.float32)
    operands = []
    for operand, variable in zip(node.inputs, node.eqn.invars, strict=True):
        value = variable.val if isinstance(variable, Literal) else _operand(chains, operand, leaf_value)
        if value is None:
            return None
        operands.append(jnp.asarray(value, variable.aval.dtype))
    return np.asarray(bind(node.eqn, operands)[0], np.float32)


def _weights(chains: Chains) -> dict[int, list[tuple[Node, Site]]]:
    """For each leaf the contractions that read it as their weight."""
    found: dict[int, list[tuple[Node, Site]]] = {}
    for node, site in chains.contractions():
        ref = node.inputs[site.weight or 0]
        for leaf, _ in chains.trails[ref].sources if ref in chains.trails else ():
            found.setdefault(leaf, []).append((node, site))
    return found


def _along_leaf(
    chains: Chains,
    leaf: int,
    rank: int,
    readers: Sequence[tuple[Node, Site]],
    known: Mapping[Node, Moments],
    positive: Set[Ref],
) -> tuple[Any, Any] | None:
    """Mean and variance of what each element of a weight is multiplied with; None if there is no reason for any mean.

    Where the statistics do not tell them, they are one for values that are never negative, and for the neighbours that a
    convolution of several taps reads, which are alike. What may have either sign has the mean zero: to balance codes for it
    would only make each of them worse.
    """
    found = [_of_reader(chains, rank, node, site, known) for node, site in readers]
    if len(found) == 1 and found[0] is not None:
        return found[0]
    alike = [
        _taps(node, site) > 1 or node.inputs[1 - (site.weight or 0)] in positive for node, site in readers
    ]
    return (1.0, 1.0) if readers and all(alike) else None


def _taps(node: Node, site: Site) -> int:
    """How many neighbours in space a contraction sums over."""
    if node.primitive is not primitives.conv_general_dilated_p:
        return 1
    shape = node.eqn.invars[site.weight or 0].aval.shape
    return int(np.prod([shape[d] for d in node.eqn.params["dimension_numbers"].rhs_spec[2:]], dtype=int))


def _of_reader(
    chains: Chains, rank: int, node: Node, site: Site, known: Mapping[Node, Moments]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and variance along the axis of a leaf that a contraction sums over; None where they are not known."""
    weight = site.weight or 0
    moments, axis = known.get(node), activation_axis(node, site.weight)
    if moments is None or axis is None or moments.variance is None:
        return None
    place = weight_axis(node, weight, axis, out=False)
    sources = chains.trails[node.inputs[weight]].sources  # type: ignore[index]
    if place is None or len(sources) != 1 or len(sources[0][1][place]) != 1:
        return None
    shape = [1] * rank
    shape[sources[0][1][place][0]] = -1
    return moments.mean.reshape(shape), moments.variance.reshape(shape)


def _shifts(
    chains: Chains,
    error: Callable[[int], Any],
    after: Mapping[Ref, BatchNorm],
    known: Mapping[Node, Moments],
) -> dict[int, np.ndarray]:
    """For each vector after a contraction what must be added to it, so that the errors of the weight leave the mean as it is.

    A vector that follows several contractions stays as it is.
    """
    found: dict[int, np.ndarray] = {}
    users: collections.Counter[int] = collections.Counter()
    for node, site in chains.contractions():
        norm, weight = after.get(node.outputs[0]), site.weight or 0
        place = (norm.leaf, -1.0) if norm is not None else chains.shift_after(node)
        if place is None:
            continue
        leaf, sign = place
        users[leaf] += 1
        difference = _operand(chains, node.inputs[weight], error) if node in known else None
        if difference is None:
            continue
        shift = mean_shift(node, weight, difference, known[node].mean)
        if shift is not None and np.isfinite(shift).all():
            found[leaf] = -sign * shift
    return {leaf: shift for leaf, shift in found.items() if users[leaf] == 1}
