"""`error_sources`: how much of a net's error comes from weights, from activations, and from joins and residual sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxq8._compat import primitives
from jaxq8.analysis.flat_function import Chains, Node, Ref
from jaxq8.analysis.inner_functions import callees
from jaxq8.analysis.sites import CARRIES_CODES, CONTRACTIONS, site_name, site_op
from jaxq8.analysis.traced_call import Call
from jaxq8.calibration.calibrate import each_batch
from jaxq8.calibration.example_errors import example_sums
from jaxq8.config import Config
from jaxq8.display.intervals import bootstrap, sqnr_interval
from jaxq8.display.tables import Table
from jaxq8.errors import ArgumentError
from jaxq8.evaluation.calls import evaluate_call
from jaxq8.numerics.codebook import is_encoded
from jaxq8.numerics.ranges import Range, Ranges
from jaxq8.numerics.sizes import certainly_less
from jaxq8.plan import Recorder
from jaxq8.transform import checked_config, quantize
from jaxq8.weights import quantize_weights

SOURCES = ("weights", "activations", "joins and sums")
# A map keeps its codes, or the codes of its ends, through these: what is encoded after them is still the join or the sum.
CLIPS = {
    primitives.max_p,
    primitives.min_p,
    primitives.clamp_p,
    primitives.convert_element_type_p,
    primitives.copy_p,
}
SUMS = {primitives.add_p, primitives.sub_p}
Sums = tuple[np.ndarray, np.ndarray]  # signal and noise of each example


def error_sources(
    fn: Callable[..., Any],
    variables: Any,
    batches: Iterable[Any],
    *,
    config: Config | None = None,
    ranges: Mapping[str, Range] | None = None,
    fast_variables: Any = None,
    progress: bool = True,
    **kwargs: Any,
) -> Table:
    """Measures the error that weights, activations, and joins and sums make, each alone while all else is exact.

    - "weights": every activation stays a float, and the weights are the numbers that their codes stand for.
    - "activations": what contractions and poolings read becomes codes, except for joins and sums; the weights are `variables`.
    - "joins and sums": only these become codes: concatenated maps, sums of two maps (residual connections), and maps that
      such a sum or concatenation reads and a contraction reads too.
    - "all": the function as `quantize` runs it, in integers.

    The results are compared with those of ``fn(variables, ...)``. Errors of independent sources add up as powers, so the
    shares of the three sources have the sum 1, and the "share" of "all" says how nearly they explain the whole: near 1 if they
    are independent, less if they cancel.

    A join or sum is known as such through relu, clips, pooling and layout operations, not through norms, and not inside `scan`
    and other control flow, where all values that are no concatenations count as activations.

    Args:
      fn: The float function: ``model.apply``.
      variables: Its first argument, in float.
      batches: Iterable of inputs, as for `calibrate`. Ranges that are found in the run cover a batch: give batches of the size
        that will be used. A few dozen examples are enough.
      config: As for `quantize`.
      ranges: As for `quantize`.
      fast_variables: The first argument in eight bits: what `quantize_weights` returned for `config`, with corrections if there
        are any, or `variables` with changed biases. By default ``quantize_weights(fn, variables, ..., config=config)``.
      progress: Show a progress bar.
      **kwargs: Keyword arguments of `fn`.

    Returns:
      A `Table` with the rows "weights", "activations", "joins and sums" and "all" (column "source"), and for each the SQNR of
      the results in dB ("sqnr_db") and its part of the noise of the three sources ("share"), with 95% bootstrap intervals over
      examples.

    Raises:
      ArgumentError: There are no batches, or `fn` has no result.
      SpecError: `config` is not a `Config`.
      RangesError: `ranges` names sites that `fn` does not have.

    Example:
      >>> q_vars = q8.quantize_weights(model.apply, variables, images)
      >>> print(q8.error_sources(model.apply, variables, [images], fast_variables=q_vars))
      source...sqnr_db...share
      ...
    """
    config, given = checked_config(fn, config), Ranges(ranges)
    data = list(each_batch("error_sources", batches))
    if fast_variables is None:
        fast_variables = quantize_weights(fn, variables, *data[0], config=config, **kwargs)
    decoded = jax.tree.map(
        lambda x: x.dequantize() if is_encoded(x) else x, fast_variables, is_leaf=is_encoded
    )
    sites = _Sites(fn, fast_variables, data[0], kwargs, config)

    @jax.jit
    def run(variables: Any, inputs: tuple[Any, ...], exact: jax.Array) -> list[jax.Array]:
        call = Call.trace(fn, (variables, *inputs), kwargs)
        return evaluate_call(
            call, call.arguments.leaves, config, given, Recorder(), exact=lambda name: sites.flag(name, exact)
        )

    outputs = jax.jit(lambda v, x: jax.tree.leaves(fn(v, *x, **kwargs)))
    fast = jax.jit(quantize(fn, config, ranges=given))
    flags = {source: jnp.asarray([source != other for other in SOURCES]) for source in SOURCES}
    found: dict[str, list[Sums]] = {source: [] for source in (*SOURCES, "all")}
    with tqdm(total=len(data), desc="error sources", unit="batch", disable=not progress) as bar:
        for inputs in data:
            expected = outputs(variables, inputs)
            if not expected:
                raise ArgumentError("error_sources: the function returns nothing that could be compared")
            for source in SOURCES:
                results = run(decoded if source == "weights" else variables, inputs, flags[source])
                found[source].append(example_sums(inputs, expected, results))
            results = jax.tree.leaves(fast(fast_variables, *inputs, **kwargs))
            found["all"].append(example_sums(inputs, expected, results))
            bar.update()
    return _table({source: _joined(sums) for source, sums in found.items()})


def _joined(sums: Sequence[Sums]) -> Sums:
    """Signal and noise of the examples of all batches."""
    signal, noise = (np.concatenate(part) for part in zip(*sums, strict=True))
    return signal, noise


def _table(found: Mapping[str, Sums]) -> Table:
    """The rows of all sources."""
    together = np.sum([found[source][1] for source in SOURCES], axis=0)
    rows = []
    for source, (signal, noise) in found.items():
        ratio = bootstrap(signal, over=noise)[0]
        db = 10 * float(np.log10(ratio)) if ratio > 0 else -np.inf
        low, high = sqnr_interval(signal, noise) or (db, db)
        share = bootstrap(noise, over=together) if together.sum() > 0 else (0.0, 0.0, 0.0)
        rows.append({
            "source": source, "sqnr_db": db, "sqnr_db_low": low, "sqnr_db_high": high,
            "share": share[0], "share_low": share[1], "share_high": share[2],
        })  # fmt: skip
    return Table(tuple(rows), ("sqnr_db", "share"))


class _Sites:
    """Tells for the name of an encoded value which source of error it belongs to.

    Args:
      fn: The function.
      variables: Its first argument, with weights that are codes already.
      inputs: Its other arguments.
      kwargs: Its keyword arguments.
      config: The configuration.
    """

    def __init__(
        self, fn: Callable[..., Any], variables: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any], config: Config
    ):  # fmt: skip
        call = Call.trace(fn, (variables, *inputs), kwargs)
        analysis = call.analyse(config)
        leaves = [*call.consts, *call.arguments.leaves]
        # Of these sites the weight becomes codes in the run: constants of the function, and leaves too small for the tree.
        loose = [use.sites for leaf, use in analysis.weights.items() if not is_encoded(leaves[leaf])]
        self._weights = {site.name for site in analysis.sites.values() if site.weight is not None}
        self._loose = {name for names in loose for name in names}
        chains = Chains.trace(fn, (variables, *inputs), kwargs, config)
        mixing, origins = _mixing(chains)
        self._joins = _joins_and_sums(chains, mixing)
        # Weights that are computed from others before they are read become codes in the run too.
        for node in chains.nodes:
            site = analysis.sites.get(node.path)
            if site is not None and site.weight is None and node.primitive in CONTRACTIONS:
                ref = node.inputs[1]
                if ref is not None and not origins.get(ref, frozenset({ref})):
                    self._weights.add(site.name)
                    self._loose.add(site.name)

    def flag(self, name: str, exact: jax.Array) -> Any:
        """Whether the value under a name stays exact; `exact` says that of weights, of activations, of joins and sums."""
        site = site_name(name)
        if name.endswith(".rhs") and site in self._weights:
            return exact[0] if site in self._loose else True
        is_join = site in self._joins and not name.endswith(".rhs")
        return exact[2] if is_join or site_op(name) == "concatenate" else exact[1]


def _joins_and_sums(chains: Chains, mixing: set[Ref]) -> set[str]:
    """The sites whose codes are those of a join or a sum, or of a map that one reads beside the site."""
    found = set()
    for node in chains.nodes:
        site = chains.analysis.sites.get(node.path)
        if site is None:
            continue
        ref = node.inputs[1 if site.weight == 0 else 0]
        if ref is not None and (_comes_from(chains, ref, mixing) or _goes_to(chains, ref, mixing)):
            found.add(site.name)
    return found


def _comes_from(chains: Chains, ref: Ref, mixing: set[Ref]) -> bool:
    """Whether a variable is a join or sum, perhaps after clips, pooling and moves."""
    while ref not in mixing:
        maker = chains.makers.get(ref)
        if maker is None or maker.primitive not in CLIPS | CARRIES_CODES:
            return False
        refs = [r for r in maker.inputs if r is not None and r not in chains.trails]
        if len(refs) != 1:
            return False
        ref = refs[0]
    return True


def _goes_to(chains: Chains, ref: Ref, mixing: set[Ref]) -> bool:
    """Whether a join or sum reads a variable as it is or after moves."""
    for reader in chains.readers.get(ref, []):
        if any(output in mixing for output in reader.outputs):
            return True
        if reader.primitive in CARRIES_CODES and _goes_to(chains, reader.outputs[0], mixing):
            return True
    return False


def _mixing(chains: Chains) -> tuple[set[Ref], dict[Ref, frozenset[Ref]]]:
    """The results of all joins and sums of maps of different origin, and the origins of all results.

    The origins of a variable are the nearest contractions, joins, sums and inputs before it. ``x + x**3`` in a gelu adds
    numbers of the same origin, and a bias, which is spread over a map, has none: neither is a sum of two maps.
    """
    origins: dict[Ref, frozenset[Ref]] = {}
    found: set[Ref] = set()

    def of(ref: Ref | None) -> frozenset[Ref]:
        if ref is None or ref in chains.trails:
            return frozenset()
        return origins.get(ref, frozenset({ref}))

    for node in chains.nodes:
        operands = [] if _spreads(node) else [of(ref) for ref in node.inputs]
        mixes = _mixes(node, operands)
        if mixes:
            found.update(node.outputs)
        begins = mixes or node.primitive in CONTRACTIONS or (any(operands) and bool(callees(node.eqn)))
        for output in node.outputs:
            origins[output] = frozenset({output}) if begins else frozenset().union(*operands)
    return found, origins


def _spreads(node: Node) -> bool:
    """Whether an equation repeats a scalar or vector over a map."""
    if node.primitive is not primitives.broadcast_in_dim_p:
        return False
    return certainly_less(math.prod(node.eqn.invars[0].aval.shape), math.prod(node.eqn.outvars[0].aval.shape))


def _mixes(node: Node, operands: Sequence[frozenset[Ref]]) -> bool:
    """Whether an equation joins or adds maps of different origin."""
    origins = [operand for operand in operands if operand]
    if node.primitive is primitives.concatenate_p:
        return len(origins) > 1
    return node.primitive in SUMS and len(origins) == 2 and origins[0] != origins[1]
