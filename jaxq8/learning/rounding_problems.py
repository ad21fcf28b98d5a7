"""`RoundingProblem`, the input of a method of learned rounding, and the registry of methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from jaxq8.errors import RuleError, SpecError

FloatArray = np.ndarray[Any, np.dtype[np.float32]]


@dataclasses.dataclass(frozen=True, eq=False)
class RoundingProblem:
    """One contraction as ``g`` independent products ``x (rows, k) . weight (k, n)``, and the grid of its weight.

    A dot has g = 1, or the size of its batch axes. A convolution reads patches and has as many products as groups; a depthwise
    3x3 convolution has k = 9.

    Attributes:
      name: Name of the site.
      weight: Float32, (g, k, n).
      hessian: Float32, (g, k, k): the mean of ``x x^T`` over the calibration data, or the covariance of x where the mean error
        is corrected in a vector after the contraction.
      scale: Float32, (g, k, n): the step of each element.
      zero_point: Float32, (g, k, n).
      qmin: Smallest code.
      qmax: Largest code.

    Example:
      >>> one = np.ones((1, 2, 1), np.float32)
      >>> alike = np.ones((1, 2, 2), np.float32)  # both inputs are always the same number
      >>> problem = q8.RoundingProblem("site", 0.4 * one, alike, one, 0 * one, qmin=-7, qmax=7)
      >>> float(problem.error(problem.nearest())[0, 0])  # both weights become 0: the output is off by 0.8
      0.64...
      >>> float(problem.error(np.float32([[[1], [0]]]))[0, 0])  # one goes up, and the errors nearly cancel
      0.04...
    """

    name: str
    weight: FloatArray
    hessian: FloatArray
    scale: FloatArray
    zero_point: FloatArray
    qmin: int
    qmax: int

    @property
    def steps(self) -> FloatArray:
        """The weight in units of a code, not rounded yet."""
        return self.weight / self.scale + self.zero_point

    def nearest(self) -> FloatArray:
        """Codes by rounding to the nearest, as floats."""
        return np.clip(np.rint(self.steps), self.qmin, self.qmax)

    def real(self, codes: FloatArray) -> FloatArray:
        """The weights that codes stand for."""
        return (codes - self.zero_point) * self.scale

    def error(self, codes: FloatArray) -> FloatArray:
        """The mean squared error of each output that comes from rounding, (g, n): ``d^T H d``."""
        off = self.weight - self.real(codes)
        return np.einsum("gkn,gkn->gn", off, self.hessian @ off)


# ``method(problem, key) -> codes``: integer-valued floats (g, k, n) between qmin and qmax.
Method = Callable[..., Any]
Registered = TypeVar("Registered", bound=Method)
_METHODS: dict[str, Method] = {}


def register_learned_rounding(name: str) -> Callable[[Registered], Registered]:
    """Registers a method for `learn_rounding`; use as a decorator.

    The method is called as ``method(problem, key)`` with a `RoundingProblem` and a PRNG key of its own, and returns codes of
    the shape of ``problem.weight``.

    Args:
      name: What ``learn_rounding(method=...)`` calls it.

    Returns:
      A decorator that returns the function unchanged.

    Raises:
      RuleError: The name is taken by another function.

    Example:
      >>> @q8.register_learned_rounding("upwards")
      ... def upwards(problem, key):
      ...     return np.clip(np.ceil(problem.steps), problem.qmin, problem.qmax)
      >>> encoded = q8.learn_rounding(model.apply, variables, batches, method="upwards", config=four, stages=1)
    """

    def register(function: Registered) -> Registered:
        if _METHODS.get(name, function) is not function:
            raise RuleError(f"learned rounding {name!r} is already registered; choose another name")
        _METHODS[name] = function
        return function

    return register


def learned_rounding_names() -> tuple[str, ...]:
    """The names of all registered methods, sorted.

    Example:
      >>> q8.learned_rounding_names()
      ('adaround', 'gptq', 'nearest', 'stochastic')
    """
    return tuple(sorted(_METHODS))


def get_method(method: str | Method) -> Method:
    """Finds a method by name; a function is returned as it is.

    Raises:
      SpecError: No method has that name.
    """
    if callable(method):
        return method
    if method not in _METHODS:
        raise SpecError(
            f"learn_rounding: unknown method {method!r}; known: {', '.join(learned_rounding_names())}, or pass a function"
        )
    return _METHODS[method]
