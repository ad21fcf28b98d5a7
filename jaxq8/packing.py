"""`pack`: lays quantized weights out for native regions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxq8.analysis.traced_call import Call
from jaxq8.config import Config
from jaxq8.errors import NativeError, TensorError
from jaxq8.evaluation.calls import evaluate_leaves
from jaxq8.evaluation.interpreter import Run
from jaxq8.evaluation.native_evaluation import limits_of
from jaxq8.native import calls, library
from jaxq8.numerics.codebook import is_encoded
from jaxq8.numerics.packed_here import set_acceptance
from jaxq8.numerics.packed_layout import PackedLayout
from jaxq8.numerics.packed_tensor import PackedTensor
from jaxq8.numerics.qtensor import QTensor
from jaxq8.numerics.ranges import Range, Ranges
from jaxq8.plan import Recorder
from jaxq8.regions.collect import traced
from jaxq8.regions.packable import packable
from jaxq8.regions.weights import Packable


def pack(
    fn: Callable[..., Any], variables: Any, *inputs: Any, config: Config | None = None,
    ranges: Mapping[str, Range] | None = None, **kwargs: Any,
) -> Any:  # fmt: skip
    """Returns `variables` with the weights of native regions as `PackedTensor`.

    A native region is a part of a function that one call into oneDNN computes: connected contractions, and the operations
    between them, such as residual sums, norms, activation functions, attention, and the measuring of ranges that are found in
    the run. The library reads weights fastest in a layout of its own, which depends on the processor. This function makes
    that layout once. What is packed runs natively in ``quantize(fn, config, ranges=ranges)``; everything else about the
    variables stays as it is.

    Args:
      fn: The float function, for example ``model.apply``; it is traced, not run.
      variables: Its first argument, with weights from `quantize_weights`.
      *inputs: Its other arguments, of the shapes that it will be called with: arrays or `jax.ShapeDtypeStruct`. Other batch
        sizes are computed correctly, too, but the layout is chosen for these.
      config: As for `quantize`.
      ranges: As for `quantize`; without them, ranges are found in the run.
      **kwargs: Keyword arguments of `fn`.

    Returns:
      A tree of the same structure.

    Raises:
      NativeError: Native regions cannot be used here; the message says why (see `native_status`).

    Example:
      >>> if q8.native_status().available:
      ...     q_vars = q8.pack(model.apply, q_vars, images, ranges=ranges)
      >>> fast = jax.jit(q8.quantize(model.apply, ranges=ranges))
      >>> fast(q_vars, images).shape
      (4, 10)
    """
    status = library.status()
    if not status.available:
        raise NativeError(f"pack: native regions cannot be used here: {status.reason}")
    config = config or Config()
    given = ranges if isinstance(ranges, Ranges) else Ranges(ranges)
    call = Call.trace(fn, (variables, *inputs), kwargs)
    found = _found(call, config, given)
    flat, tree = jax.tree_util.tree_flatten(variables, is_leaf=is_encoded)
    # The leaves of the first argument come first; those that are no arrays are not among the leaves of the call.
    arrays = [i for i, leaf in enumerate(flat) if hasattr(leaf, "dtype")]
    for place, index in enumerate(arrays):
        if place in found:
            flat[index] = _packed(flat[index], found[place], status.isa)
    return jax.tree_util.tree_unflatten(tree, flat)


def _found(call: Call, config: Config, ranges: Ranges) -> dict[int, Packable]:
    """Which leaves of a call can be packed, and for what."""
    flat, tree = jax.tree_util.tree_flatten(list(call.arguments.given))
    places = [i for i, leaf in enumerate(flat) if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)]
    run = Run(config, ranges, call.analyse(config), Recorder())

    def evaluated(*arrays: Any) -> Any:
        full = list(flat)
        for i, array in zip(places, arrays, strict=True):
            full[i] = array
        return evaluate_leaves(call, call.consts, jax.tree_util.tree_unflatten(tree, full), run)

    jaxpr, _ = traced(evaluated, *(flat[i] for i in places))
    codes: dict[int, int] = {}  # position of the codes of a weight -> number of the leaf
    position = 0
    for number, leaf in enumerate(call.arguments.given):
        if isinstance(leaf, QTensor):
            codes[position] = number  # codes are the first part of a QTensor
        position += len(jax.tree_util.tree_leaves(leaf))
    found = packable(jaxpr, limits_of(config))
    pairs = zip(jaxpr.invars, places, strict=True)
    return {codes[i]: found[v] for v, i in pairs if v in found and i in codes}


def accepts(isa: str, problem: tuple[int, ...], layout: PackedLayout) -> bool:
    """Whether this machine reads weights that were packed for an instruction set and a problem in this layout."""
    status = library.status()
    if not status.available or status.isa != isa:
        return False
    try:
        return PackedLayout.from_words(calls.layout(problem)) == layout
    except (NativeError, TensorError):  # the problem may come from a damaged file
        return False


set_acceptance(accepts)


def _packed(leaf: QTensor, how: Packable, isa: str) -> Any:
    return PackedTensor.pack(
        leaf, moves=how.moves, problem=how.problem, layout=calls.layout(how.problem), isa=isa
    )
