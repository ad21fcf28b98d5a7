"""Rounding schemes: a registry of small functions that round real numbers to integer codes.

A rounding function takes floats in units of one code and returns integer-valued floats of the same shape::

    @q8.register_rounding("half_down")
    def half_down(x):
        return jnp.ceil(x - 0.5)

    q8.QTensor.from_float(x, spec, rounding="half_down")

The zero point is an integer: a code is ``round(x / scale) - round(minimum / scale)``. Because the *rounded* minimum is
subtracted from the rounded value, zero is exactly a code, and no value is biased by the fraction of a step by which the
minimum misses the grid. That is the rule of TensorFlow's ``quantize_graph`` (2016). Its biased counterpart,
``round((x - minimum) / scale)``, is registered as ``"float_minimum"`` so that the bias can be shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxq8.errors import RuleError, SpecError

RoundingFunction = Callable[..., jax.Array]
Registered = TypeVar("Registered", bound=RoundingFunction)


@dataclasses.dataclass(frozen=True)
class Rounding:
    """A registered rounding scheme.

    Attributes:
      name: The name under which the scheme is registered.
      function: ``f(x) -> rounded`` or, if `keyed`, ``f(x, key) -> rounded``; elementwise on floats.
      keyed: Whether the function needs a PRNG key.
      joint: Whether value and minimum are rounded together, ``round((x - minimum) / scale)``. The zero point is then a
        fraction, and zero is not exactly representable. False for every scheme but the one that shows this mistake.
      by_range: Whether values are multiplied by ``(qmax - qmin) / (maximum - minimum)``, as in TensorFlow, rather than divided
        by the scale, which is itself rounded. In the range 0..1 the value 0.5 is then exactly the tie 127.5, not just below.
    """

    name: str
    function: RoundingFunction
    keyed: bool = False
    joint: bool = False
    by_range: bool = False

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Rounds `x`; `key` is needed by keyed schemes and ignored by the others."""
        if not self.keyed:
            return self.function(x)
        if key is None:
            raise SpecError(f"rounding {self.name!r} draws random numbers: pass key=jax.random.key(...)")
        return self.function(x, key)


_REGISTRY: dict[str, Rounding] = {}


def register_rounding(
    name: str, *, keyed: bool = False, joint: bool = False, by_range: bool = False
) -> Callable[[Registered], Registered]:
    """Registers a rounding function under `name`; use as a decorator.

    Args:
      name: What `Config.rounding` and ``QTensor.from_float(rounding=...)`` call it.
      keyed: The function takes ``(x, key)`` and draws random numbers.
      joint: Round value and minimum together, ``round((x - minimum) / scale)``. Zero is then no code any more; this is there to
        show what that costs.
      by_range: Multiply by ``(qmax - qmin) / (maximum - minimum)``, as TensorFlow does, instead of dividing by the scale, which
        is itself rounded.

    Returns:
      A decorator that returns the function unchanged.

    Raises:
      RuleError: The name is taken by another function.

    Example:
      >>> @q8.register_rounding("half_up")
      ... def half_up(x):
      ...     return jnp.floor(x + 0.5)
      >>> fast = q8.quantize(model.apply, q8.Config(rounding="half_up"))
    """

    def register(function: Registered) -> Registered:
        taken = _REGISTRY.get(name)
        if taken is not None and taken.function is not function:
            raise RuleError(
                f"rounding {name!r} is already registered by {_where(taken.function)}; "
                f"{_where(function)} needs another name"
            )
        _REGISTRY[name] = Rounding(name, function, keyed, joint, by_range)
        return function

    return register


def get_rounding(rounding: str | Rounding | RoundingFunction) -> Rounding:
    """Finds a scheme by name, or wraps a plain function ``f(x) -> rounded``; a `Rounding` is returned as it is.

    Raises:
      SpecError: No scheme has that name.
    """
    if isinstance(rounding, Rounding):
        return rounding
    if callable(rounding):
        return Rounding(getattr(rounding, "__name__", "custom"), rounding)
    if rounding not in _REGISTRY:
        raise SpecError(
            f"unknown rounding {rounding!r}; known: {', '.join(rounding_names())}, or pass a function"
        )
    return _REGISTRY[rounding]


def rounding_names() -> tuple[str, ...]:
    """The names of all registered schemes, sorted.

    Example:
      >>> q8.rounding_names()
      ('ceil', 'float_minimum', 'floor', 'half_away', 'half_even', 'rounded_minimum', 'stochastic', 'toward_zero')
    """
    return tuple(sorted(_REGISTRY))


def straight_through(x: jax.Array, rounded: jax.Array) -> jax.Array:
    """Returns `rounded`, with the derivative of `x` (straight-through estimator, Bengio et al. 2013)."""
    # Not x + (rounded - x), whose own rounding error can make it miss the integer.
    return jax.lax.stop_gradient(rounded) + (x - jax.lax.stop_gradient(x))


def bucket_centers(x: jax.Array, buckets: int) -> jax.Array:
    """Replaces every element by the centre of its bucket, as ``quantize_array`` did in 2016 for files that compress well.

    The range of `x` is cut into `buckets` equal parts, and an element becomes
    ``minimum + width * (floor((x - minimum) / width) + 0.5)``. An array whose elements are all equal is returned as it is. Zero
    is kept only if it happens to be a centre; the mode "weights_rounded" uses the codes of a `Spec` instead, which represent
    zero exactly.

    Args:
      x: Float array, not empty.
      buckets: The largest number of distinct values that remain, at least 1.

    Returns:
      An array of the same shape and dtype.

    Raises:
      SpecError: `buckets` is below 1, or `x` is empty.

    Example:
      >>> bucket_centers(jnp.array([0.0, 0.3, 0.6, 1.0]), 2)
      Array([0.25, 0.25, 0.75, 0.75], dtype=float32)
    """
    if buckets < 1 or x.size == 0:
        raise SpecError(f"bucket_centers: needs at least 1 bucket and 1 element, got {buckets} and {x.size}")
    low, high = jnp.min(x), jnp.max(x)
    width = (high - low) / buckets
    bucket = jnp.clip(jnp.floor((x - low) / jnp.where(width > 0, width, 1)), 0, buckets - 1)
    return jnp.where(width > 0, low + width * (bucket + 0.5), x)


def _where(function: Any) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', function)}"


@register_rounding("half_even")
def half_even(x: jax.Array) -> jax.Array:
    """To nearest, ties to the even integer, as in IEEE 754, ONNX and XLA; unbiased on ties. The default."""
    return jnp.round(x)


@register_rounding("half_away")
def half_away(x: jax.Array) -> jax.Array:
    """To nearest, ties away from zero, as in C's ``round``, TensorFlow and TFLite."""
    # Not trunc(x + 0.5): the sum is itself rounded, so the largest float below one half would become 1.
    whole = jnp.trunc(x)
    return whole + jnp.where(jnp.abs(x - whole) >= 0.5, jnp.sign(x), 0)


@register_rounding("floor")
def floor(x: jax.Array) -> jax.Array:
    """Rounds down, which biases results by half a step."""
    return jnp.floor(x)


@register_rounding("ceil")
def ceil(x: jax.Array) -> jax.Array:
    """Rounds up, which biases results by half a step."""
    return jnp.ceil(x)


@register_rounding("toward_zero")
def toward_zero(x: jax.Array) -> jax.Array:
    """Truncates, which shrinks magnitudes by half a step on average."""
    return jnp.trunc(x)


@register_rounding("stochastic", keyed=True)
def stochastic(x: jax.Array, key: jax.Array) -> jax.Array:
    """Rounds up with a probability equal to the fraction, so that the expected result is `x` (Gupta et al. 2015)."""
    below = jnp.floor(x)
    return below + jax.random.bernoulli(key, x - below).astype(x.dtype)


@register_rounding("rounded_minimum", by_range=True)
def rounded_minimum(x: jax.Array) -> jax.Array:
    """The 2016 rule of ``quantize_graph``: rounds value and minimum separately, ties away from zero, and subtracts them."""
    return half_away(x)


@register_rounding("float_minimum", joint=True, by_range=True)
def float_minimum(x: jax.Array) -> jax.Array:
    """The biased counterpart of `rounded_minimum`: rounds the distance from the unrounded minimum."""
    return half_away(x)
