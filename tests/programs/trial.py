"""One program with its data, ready to be held against laws: its float results, and what rounding may do to them."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import jaxq8 as q8
from jaxq8.kernels import dot
from tests.programs import noise
from tests.programs.program import Program, build, build_noisy, pruned

KINDS = ("dynamic", "static", "given")
WIDER = 1.5  # given ranges are calibrated ones, that many times as wide
QUICK = {"xla_backend_optimization_level": 0}  # the same HLO, a third of the time in LLVM
MOST = 0.5  # an output that noise moves by more of its own size has no answer to be near to


class Useless(Exception):
    """No output of a program can be held against a law."""


@contextlib.contextmanager
def dots(mixed: bool) -> Iterator[None]:
    """Dots of unsigned and signed codes, or of signed ones, whatever this processor prefers."""
    before = dot.mixed_dots_are_fast
    dot.mixed_dots_are_fast = lambda: mixed  # type: ignore[assignment]
    try:
        yield
    finally:
        dot.mixed_dots_are_fast = before


def flat(results: Any) -> list[np.ndarray]:
    """The leaves of a tree in NumPy."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(results)]


class Trial:
    """A program, its data, and the settings that its seed chooses.

    Attributes:
      kind: Where ranges come from, one of `KINDS`.
      mixed: Whether dots are those of unsigned and signed codes.
      options: Of the compiler, for the fast kernels.
      exact: Results in float.
      noise: For each output the largest deviation that rounding to eight bits made in several draws.
      floor: Likewise by rounding to float32.

    Raises:
      Useless: (when made) No output has a float value that rounding leaves recognizable.
    """

    def __init__(self, program: Program):
        pick = random.Random(program["seed"])
        self.kind = pick.choice(KINDS)
        self.mixed = pick.random() < 0.5
        attention = pick.random() < 0.35
        self.config = q8.Config(kernels="xla", attention=attention)
        self.options = None if pick.random() < 0.25 else QUICK
        self.with_reference = pick.random() < 0.3
        self.pick = pick
        self.program = program
        self._results: dict[Any, Any] = {}
        self._whole, self.p, self.x = build(program)
        noisy = build_noisy(program)
        self.noisy = lambda p, x, steps, own: noisy(p, x, noise.marks(steps, own))
        self.good = list(range(len(program["outputs"])))
        self._disturbed = jax.jit(self.noisy, compiler_options=QUICK)
        self._keep()

    def _keep(self) -> None:
        """Drops outputs that are degenerate: not finite, zero, or lost in noise."""
        results = list(zip(*self.deviations(self.x), strict=True))
        norms = [float(np.linalg.norm(e.astype(np.float64))) for e, _, _ in results]
        self.good = [
            i for i, ((exact, moved, floor), norm) in enumerate(zip(results, norms, strict=True))
            if exact.size and np.isfinite(exact).all() and norm > 1e-30 and moved <= MOST * norm and floor <= 0.02 * norm
        ]  # fmt: skip
        if not self.good:
            raise Useless
        self.exact, self.noise, self.floor = ([results[i][part] for i in self.good] for part in range(3))
        if len(self.good) < len(results):
            outputs = [self.program["outputs"][i] for i in self.good]
            self.program = pruned({**self.program, "outputs": outputs})

    def chosen(self, results: Any) -> list[Any]:
        """The outputs of the noisy function that were not dropped."""
        return [jax.tree.leaves(results)[i] for i in self.good]

    @functools.cached_property
    def f(self) -> Any:
        """The function in float: of all the weights, with the outputs that are held against the laws."""
        whole, good = self._whole, list(self.good)
        return lambda p, x: tuple(whole(p, x)[i] for i in good)

    @functools.cached_property
    def static(self) -> bool:
        """Whether ranges are not found in the run."""
        return self.kind != "dynamic"

    def steps(self) -> list[np.ndarray]:
        """The noise of rounding to eight bits, for each draw."""
        return [noise.numbers(d, WIDER if self.kind == "given" else 1.0) for d in range(noise.DRAWS)]

    def disturbed(self, x: Any, steps: Any = noise.NOTHING) -> list[np.ndarray]:
        """The float results, with the noise of one draw."""
        return flat(self.chosen(self._disturbed(self.p, x, steps, np.float32(self.static))))

    def deviations(self, x: Any) -> tuple[list[np.ndarray], list[float], list[float]]:
        """(exact results, largest deviation of each by eight bits, by float32)."""
        exact = self.disturbed(x)
        moved = noise.largest(exact, [self.disturbed(x, s) for s in self.steps()])
        floor = noise.largest(exact, [self.disturbed(x, s) for s in noise.FLOATS])
        return (
            exact,
            moved,
            [
                f + 2e-6 * float(np.linalg.norm(e.astype(np.float64)))
                for f, e in zip(floor, exact, strict=True)
            ],
        )

    @functools.cached_property
    def plan(self) -> q8.Plan:
        """What runs in eight bits."""
        return q8.explain(self.f, self.p, self.x, config=self.config, ranges=self.ranges)

    @functools.cached_property
    def ranges(self) -> Any:
        """Static ranges of this trial; None where each run finds its own."""
        if self.kind == "dynamic":
            return None
        try:
            found = q8.calibrate(self.f, self.p, [(self.x,)], config=self.config, progress=False)
        except q8.RangesError:  # nothing runs in eight bits, or it is all zeros
            return None
        if self.kind == "static":
            return found
        return q8.Ranges({n: q8_range(r, WIDER) for n, r in found.items()})

    def quantized(self, config: q8.Config | None = None) -> Any:
        """The function in eight bits."""
        return q8.quantize(self.f, config or self.config, ranges=self.ranges)

    def compiled(self, kernels: str = "xla") -> Any:
        """It, compiled with one of the kernels; compiled once."""
        if kernels not in self._results:
            config = q8.Config(kernels=kernels, attention=self.config.attention)
            options = self.options if kernels == "xla" else QUICK
            self._results[kernels] = jax.jit(self.quantized(config), compiler_options=options)
        return self._results[kernels]

    @functools.cached_property
    def fast(self) -> list[np.ndarray]:
        """What the fast kernels compute."""
        return flat(self.compiled()(self.p, self.x))

    def differences(self, a: Any, b: Any, times: float = 1.0, what: str = "") -> list[str]:
        """A line for each output in which two results differ by more than `times` the noise."""
        limits = [times * n + f for n, f in zip(self.noise, self.floor, strict=True)]
        return differences(flat(a), flat(b), limits, what)


def differences(a: list[Any], b: list[Any], limits: list[float], what: str = "") -> list[str]:
    """A line for each pair that is further apart than its limit."""
    found = []
    for i, (one, other, limit) in enumerate(zip(a, b, limits, strict=True)):
        if one.shape != other.shape:
            found.append(f"{what}output {i} has shape {other.shape}, not {one.shape}")
            continue
        apart, size = noise.distance(one, other), float(np.linalg.norm(one.astype(np.float64))) or 1.0
        if not apart <= limit:
            found.append(
                f"{what}output {i}: {apart / size:.3g} of its size apart, allowed {limit / size:.3g}"
            )
    return found


def q8_range(r: Any, times: float) -> tuple[float, float]:
    """A range some times as wide."""
    return r.minimum * times, r.maximum * times
