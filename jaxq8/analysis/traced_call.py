"""One traced call of a function: its jaxpr with constants as inputs, and its arguments taken apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxq8._compat import open_jaxpr
from jaxq8.analysis.arguments import Arguments, stand_in, take_apart, take_results_apart
from jaxq8.analysis.batch_axis import block_size
from jaxq8.analysis.sites import Analysis, analyse
from jaxq8.config import Config
from jaxq8.numerics.codebook import is_encoded


@dataclasses.dataclass(frozen=True)
class Call:
    """One traced call of a function.

    Attributes:
      arguments: The arguments, taken apart.
      jaxpr: The function, open.
      consts: The values of its constants.
      out_tree: The structure of its results.
    """

    arguments: Arguments
    jaxpr: Any
    consts: tuple[Any, ...]
    out_tree: Any
    _analyses: dict[Config, Analysis] = dataclasses.field(default_factory=dict, init=False, compare=False)

    @classmethod
    def trace(cls, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Traces `fn` on the float arrays that the arguments stand for."""
        arguments = take_apart(args, kwargs)
        rebuild, trees = arguments.rebuild, []

        def flat(*leaves: Any) -> list[Any]:
            new_args, new_kwargs = rebuild(leaves)
            results, tree = take_results_apart(fn(*new_args, **new_kwargs))
            trees.append(tree)
            return results

        closed = jax.make_jaxpr(flat)(*map(stand_in, arguments.given))
        jaxpr, consts = open_jaxpr(closed)
        return cls(arguments, jaxpr, tuple(consts), trees[-1])

    def analyse(self, config: Config) -> Analysis:
        """Sites and weights of the traced function; constants that reach a contraction are weights."""
        if config not in self._analyses:
            self._analyses[config] = self._analyse(config)
        return self._analyses[config]

    def with_first(self, count: int) -> Call:
        """The same call, in which weights are the first `count` leaves, whatever container holds them, and nothing else."""
        weights = tuple(i < count for i in range(len(self.arguments.given)))
        return dataclasses.replace(self, arguments=dataclasses.replace(self.arguments, weights=weights))

    def analyse_first(self, count: int, config: Config) -> Analysis:
        """`analyse` of `with_first`."""
        return self.with_first(count).analyse(config)

    def _analyse(self, config: Config) -> Analysis:
        names = [p if w else None for p, w in zip(self.arguments.paths, self.arguments.weights, strict=True)]
        consts = [f"constant/{i}" if np.ndim(c) > 0 else None for i, c in enumerate(self.consts)]

        def accepts(name: str, op: str) -> bool:
            return config.for_site(name, op).mode in ("eightbit", "simulate")

        return analyse(self.as_inputs, [*consts, *names], accepts)

    def plain(self, fn: Callable[..., Any]) -> Any:
        """The results of the function as the user wrote it, for a function that has no site."""
        leaves = [x.dequantize() if is_encoded(x) else x for x in self.arguments.given]
        args, kwargs = self.arguments.rebuild(leaves)
        return fn(*args, **kwargs)

    @property
    def as_inputs(self) -> Any:
        """The jaxpr with its constants as first inputs, so that weights are found among constants and arguments alike."""
        return _InputsJaxpr(self.jaxpr)

    @property
    def examples(self) -> list[int]:
        """Positions of the argument leaves that hold data rather than weights."""
        arguments = self.arguments
        if not any(arguments.weights):
            return []
        pairs = enumerate(zip(arguments.given, arguments.weights, strict=True))
        return [i for i, (leaf, is_weight) in pairs if not is_weight and np.ndim(leaf) > 0]

    def block_size(self, config: Config) -> int | None:
        """The number of examples in a block; None if all examples run at once."""
        if not config.batch_blocks or config.mode != "eightbit":
            return None
        return block_size(self.as_inputs, [len(self.consts) + i for i in self.examples])

    def replaced(self, leaves: Sequence[Any]) -> Call:
        """The same call with other leaves."""
        return dataclasses.replace(self, arguments=dataclasses.replace(self.arguments, given=tuple(leaves)))


class _InputsJaxpr:
    """A view of a jaxpr in which constants are inputs."""

    def __init__(self, jaxpr: Any):
        self.constvars: tuple[Any, ...] = ()
        self.invars = (*jaxpr.constvars, *jaxpr.invars)
        self.eqns, self.outvars = jaxpr.eqns, jaxpr.outvars
