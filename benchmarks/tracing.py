"""``python -m benchmarks.tracing``: what `quantize` adds to the time of tracing and compiling a model of 300 layers.

Targets: tracing at most three times `jax.make_jaxpr` of the float function plus a second for every thousand equations;
compilation (lowering and XLA) at most twice that of float. Every figure is the least of several rounds.

``python -m benchmarks.tracing resnet50 bert_base``: the steps of compiling models of the zoo, in float and in eight bits.
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import itertools
import pstats
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import jaxq8 as q8
from jaxq8._compat import open_jaxpr
from jaxq8.analysis.inner_functions import callees
from tests.zoo import ZOO
from tests.zoo.cnn import ResNet
from tests.zoo.transformer import Encoder

CONVOLUTIONS = ResNet(stages=(4, 40, 52, 4))  # a hundred blocks of three
ATTENTION = Encoder(
    vocabulary=1000, positions=64, width=128, layers=50, heads=4, hidden=512
)  # six dots a layer
IMAGE, TOKENS = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32), jax.ShapeDtypeStruct((1, 32), jnp.int32)
MODELS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "residual network, 304 convolutions": (CONVOLUTIONS, (IMAGE,)),
    "encoder, 50 layers of 6 dots": (ATTENTION, (TOKENS, TOKENS)),
}


def equations(jaxpr: Any) -> int:
    """How many equations a jaxpr has, those of the functions inside it included."""
    return sum(1 + sum(equations(open_jaxpr(c.jaxpr)[0]) for c in callees(eqn)) for eqn in jaxpr.eqns)


def least(rounds: int, function: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds of the fastest of several calls, what the last one returned)."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def compilation(rounds: int, function: Callable[..., Any], arguments: Any) -> float:
    """Seconds to lower and compile a trace, the least of several; each trace is of a function that is new to JAX."""
    traces = iter([jax.jit(lambda *args: function(*args)).trace(*arguments) for _ in range(rounds)])
    return least(rounds, lambda: next(traces).lower().compile())[0]


def measure(name: str, rounds: int, compile_too: bool) -> list[str]:
    """The lines of one model."""
    module, inputs = MODELS[name]
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    fast, arguments = q8.quantize(module.apply), (variables, *inputs)
    plain, jaxpr = least(rounds, lambda: jax.make_jaxpr(lambda *a: module.apply(*a))(*arguments))
    ours, _ = least(rounds, lambda: jax.make_jaxpr(lambda *a: fast(*a))(*arguments))
    count = equations(jaxpr.jaxpr)
    lines = [
        f"{name}: {count} equations",
        f"  tracing      float {plain:6.2f} s   eight bits {ours:6.2f} s   allowed {3 * plain + count / 1000:6.2f} s",
    ]
    if compile_too:
        both = [compilation(rounds, f, arguments) for f in (module.apply, fast)]
        lines.append(
            f"  compilation  float {both[0]:6.2f} s   eight bits {both[1]:6.2f} s   allowed {2 * both[0]:6.2f} s"
        )
    return lines


@dataclasses.dataclass(frozen=True)
class Steps:
    """Seconds of processor time (of all cores together) for each step of a compilation, and by the clock for all of them."""

    trace: float
    lower: float
    compile: float
    clock: float

    @property
    def processor(self) -> float:
        """All steps together."""
        return self.trace + self.lower + self.compile


def steps(rounds: int, function: Callable[..., Any], arguments: Any, options: Any = None) -> Steps:
    """The steps of compiling a function, of the round that took the least processor time; JAX remembers none of them."""
    found = []
    for _ in range(rounds):
        jax.clear_caches()
        jitted, clock = jax.jit(lambda *a: function(*a), compiler_options=options), time.perf_counter()
        times = [time.process_time()]
        traced = jitted.trace(*arguments)
        times.append(time.process_time())
        lowered = traced.lower()
        times.append(time.process_time())
        lowered.compile()
        times.append(time.process_time())
        trace, lower, optimise = (later - earlier for earlier, later in itertools.pairwise(times))
        found.append(Steps(trace, lower, optimise, time.perf_counter() - clock))
    return min(found, key=lambda s: s.processor)


def compare(name: str, rounds: int) -> list[str]:
    """The lines of one model of the zoo."""
    apply, variables, inputs = ZOO[name].build(jax.random.key(0), 1)
    arguments, fast = (variables, *inputs), q8.compiler_options()
    ranges = q8.calibrate(apply, variables, [inputs if len(inputs) > 1 else inputs[0]])
    static = q8.quantize(apply, ranges=ranges)
    forms = {
        "float": steps(rounds, apply, arguments),
        "dynamic": steps(rounds, q8.quantize(apply), arguments, fast),
        "static": steps(rounds, static, arguments, fast),
    }
    status = q8.native_status()
    if status.available:
        packed = q8.pack(
            apply, q8.quantize_weights(apply, variables, *inputs, correct=None), *inputs, ranges=ranges
        )
        forms["native"] = steps(rounds, static, (packed, *inputs), fast)
    lines = [f"{name}: seconds of processor time  trace   lower compile   all (times float)   by the clock"]
    for form, found in forms.items():
        lines.append(
            f"  {form:10s}{found.trace:26.2f} {found.lower:7.2f} {found.compile:7.2f} {found.processor:6.2f}"
            f" ({found.processor / forms['float'].processor:5.1f}x) {found.clock:15.2f}"
        )
    if not status.available:
        lines.append(f"  native: none: {status.reason}")
    return lines


def profile(name: str) -> None:
    """Prints where tracing spends its time."""
    module, inputs = MODELS[name]
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    profiler = cProfile.Profile()
    profiler.runcall(jax.make_jaxpr(q8.quantize(module.apply)), variables, *inputs)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats("jaxq8/", 40)


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.tracing", description=__doc__)
    options.add_argument(
        "models", nargs="*", metavar="MODEL",
        help="models of tests/zoo: processor time to trace, lower and compile each in float, with dynamic and with static "
        "ranges; without a name, the two deep nets",
    )  # fmt: skip
    options.add_argument(
        "--rounds", type=int, default=2, help="the fastest of so many is printed (default 2)"
    )
    options.add_argument(
        "--no-compile", action="store_true", help="measure tracing alone (the two deep nets)"
    )
    options.add_argument(
        "--profile", action="store_true", help="show where tracing the two deep nets spends its time instead"
    )
    chosen = options.parse_args(arguments)
    unknown = [name for name in chosen.models if name not in ZOO]
    if unknown:
        options.error(f"no model is named {', '.join(unknown)}; there are {', '.join(ZOO)}")
    for name in chosen.models:
        print(*compare(name, chosen.rounds), sep="\n", flush=True)
    for name in () if chosen.models else MODELS:
        if chosen.profile:
            profile(name)
        else:
            print(*measure(name, chosen.rounds, not chosen.no_compile), sep="\n", flush=True)


if __name__ == "__main__":
    main()
