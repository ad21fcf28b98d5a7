"""``python -m benchmarks.tracing``: what `quantize` adds to the time of tracing and compiling a model of 300 layers.

Targets: tracing at most three times `jax.make_jaxpr` of the float function plus a second for every thousand equations;
compilation (lowering and XLA) at most twice that of float. Every figure is the least of several rounds.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import jaxq8 as q8
from jaxq8._compat import open_jaxpr
from jaxq8.callees import callees
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


def profile(name: str) -> None:
    """Prints where tracing spends its time."""
    module, inputs = MODELS[name]
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    profiler = cProfile.Profile()
    profiler.runcall(jax.make_jaxpr(q8.quantize(module.apply)), variables, *inputs)
    pstats.Stats(profiler).sort_stats("cumulative").print_stats("jaxq8/", 40)


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.tracing", description=__doc__)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--no-compile", action="store_true", help="measure tracing alone")
    options.add_argument("--profile", action="store_true", help="show where tracing spends its time instead")
    chosen = options.parse_args()
    for name in MODELS:
        if chosen.profile:
            profile(name)
        else:
            print(*measure(name, chosen.rounds, not chosen.no_compile), sep="\n", flush=True)


if __name__ == "__main__":
    main()
