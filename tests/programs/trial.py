"""One program with its data, ready to be held against laws: its float results, and what rounding may do to them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import jaxq8 as q8
from jaxq8.evaluation import calls
from jaxq8.kernels import dot
from jaxq8.plan import Recorder
from tests.programs import noise
from tests.programs.program import Program, build, build_noisy, pruned
from tests.programs.settings import SURE, Settings

MOST = 0.2  # an output that noise moves by more of its own size has no answer to be near to
WORST = 0.02  # likewise by what float32 rounds


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


@contextlib.contextmanager
def recorders() -> Iterator[list[Recorder]]:
    """What quantized functions that are traced meanwhile record for a plan: it costs no second tracing."""
    made: list[Recorder] = []

    def make() -> Recorder:
        made.append(Recorder())
        return made[-1]

    calls.Recorder = make  # type: ignore[assignment,misc]
    try:
        yield made
    finally:
        calls.Recorder = Recorder  # type: ignore[misc]


def flat(results: Any) -> list[np.ndarray]:
    """The leaves of a tree in NumPy."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(results)]


class Trial:
    """A program, its data, and the settings of its seed.

    Attributes:
      program: Without the outputs that were dropped.
      settings: Of its seed.
      quick: Options of the compiler for what need not be fast.
      options: Those for the fast kernels.
      contractions: How many of the program run in eight bits, once `fast` is known.
      p: All weights.
      x: The input, or a tuple.
      exact: Results in float.
      noise: For each output the largest deviation that rounding to eight bits made in several draws.
      floor: Likewise by rounding to float32.

    Raises:
      Useless: (when made) No output has a float value that rounding leaves recognizable.
    """

    def __init__(self, program: Program, quick: dict[str, Any] = SURE):
        self.program, self.settings = program, Settings.of(program["seed"])
        self.quick, self.options = quick, self.settings.options(quick)
        self.contractions = 0
        self._compiled: dict[str, Any] = {}
        self._whole, self.p, self.x = build(program)
        noisy = build_noisy(program)
        self.noisy = lambda p, x, steps, own: noisy(p, x, noise.marks(steps, own))
        self._good = list(range(len(program["outputs"])))
        self._disturbed = jax.jit(self.noisy, compiler_options=quick)
        self._drop()

    def _drop(self) -> None:
        """Drops outputs that are degenerate: not finite, zero, or lost in noise."""
        results = list(zip(*self.deviations(self.x), strict=True))
        norms = [noise.norm(exact) for exact, _, _ in results]
        self._good = [
            i for i, ((exact, moved, floor), norm) in enumerate(zip(results, norms, strict=True))
            if exact.size and np.isfinite(exact).all() and norm > 1e-30 and moved <= MOST * norm and floor <= WORST * norm
        ]  # fmt: skip
        if not self._good:
            raise Useless
        self.exact, self.noise, self.floor = ([results[i][part] for i in self._good] for part in range(3))
        if len(self._good) < len(results):
            outputs = [self.program["outputs"][i] for i in self._good]
            self.program = pruned({**self.program, "outputs": outputs})

    def chosen(self, results: Any) -> list[Any]:
        """The outputs of the noisy function that were not dropped."""
        return [jax.tree.leaves(results)[i] for i in self._good]

    @functools.cached_property
    def f(self) -> Any:
        """The function in float: of all the weights, with the outputs that are held against the laws."""
        whole, good = self._whole, self._good
        return lambda p, x: tuple(whole(p, x)[i] for i in good)

    def steps(self) -> list[np.ndarray]:
        """The noise of rounding to eight bits, for each draw."""
        return [noise.numbers(d, self.settings.wider) for d in range(noise.DRAWS)]

    def disturbed(self, x: Any, steps: Any = noise.NOTHING) -> list[np.ndarray]:
        """The float results, with the noise of one draw."""
        return flat(self.chosen(self._disturbed(self.p, x, steps, np.float32(self.settings.static))))

    def deviations(self, x: Any) -> tuple[list[np.ndarray], list[float], list[float]]:
        """(exact results, largest deviation of each by eight bits, by float32)."""
        return noise.deviations(lambda steps: self.disturbed(x, steps), self.steps())

    @functools.cached_property
    def ranges(self) -> Any:
        """Static ranges of this trial; None where each run finds its own."""
        if not self.settings.static:
            return None
        try:
            found = q8.calibrate(self.f, self.p, [(self.x,)], config=self.settings.config(), progress=False)
        except q8.RangesError:  # nothing runs in eight bits, or it is all zeros
            return None
        times = self.settings.wider
        return q8.Ranges({n: (r.minimum * times, r.maximum * times) for n, r in found.items()})

    def quantized(self, kernels: str = "xla") -> Any:
        """The function in eight bits."""
        return q8.quantize(self.f, self.settings.config(kernels), ranges=self.ranges)

    def compiled(self, kernels: str = "xla") -> Any:
        """It, compiled with one of the kernels; compiled once."""
        if kernels not in self._compiled:
            options = self.options if kernels == "xla" else self.quick
            self._compiled[kernels] = jax.jit(self.quantized(kernels), compiler_options=options)
        return self._compiled[kernels]

    @functools.cached_property
    def fast(self) -> list[np.ndarray]:
        """What the fast kernels compute."""
        with recorders() as made:
            results = flat(self.compiled()(self.p, self.x))
        plans = (recorder.plan() for recorder in made)
        counts = (sum(site.eight_bit and site.macs > 0 for site in plan.sites) for plan in plans)
        self.contractions = max(counts, default=0)
        return results

    def differences(self, a: Any, b: Any, times: float = 1.0) -> list[str]:
        """A line for each output in which two results differ by more than `times` the noise."""
        return noise.differences(flat(a), flat(b), noise.limits(self.noise, self.floor, times))
