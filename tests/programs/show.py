"""A failure as text: what is wrong, the command that repeats it, and the program to be pasted."""

from __future__ import annotations

import json
import random

from tests.programs.program import Program, source
from tests.programs.trial import KINDS

CALLS = {
    "simulation": "slow = jax.jit(q8.quantize(f, q8.Config(kernels='simulate', attention={attention}), ranges=ranges))(p, x)",
    "reference": "slow = jax.jit(q8.quantize(f, q8.Config(kernels='reference', attention={attention}), ranges=ranges))(p, x)",
    "nan": "(next(iter(x)) if isinstance(x, tuple) else x).ravel()[0] = np.nan  # or another element\nslow = f(p, x)",
}


def call(program: Program, law: str) -> str:
    """The lines that show the failure."""
    pick = random.Random(program["seed"])
    kind, mixed, attention = pick.choice(KINDS), pick.random() < 0.5, pick.random() < 0.35
    lines = [f"config = q8.Config(kernels='xla', attention={attention})"]
    if mixed:
        lines.insert(0, "from jaxq8.kernels import dot\ndot.mixed_dots_are_fast = lambda: True")
    if kind == "dynamic":
        lines.append("ranges = None")
    else:
        lines.append("ranges = q8.calibrate(f, p, [(x,)], config=config, progress=False)")
    if kind == "given":
        lines.append("ranges = {n: (1.5 * r.minimum, 1.5 * r.maximum) for n, r in ranges.items()}")
    lines += [
        CALLS.get(law, "slow = jax.jit(f)(p, x)").format(attention=attention),
        "fast = jax.jit(q8.quantize(f, config, ranges=ranges))(p, x)",
        "for a, b in zip(jax.tree.leaves(slow), jax.tree.leaves(fast)):",
        "    print(np.linalg.norm(a - b) / np.linalg.norm(a))",
    ]
    return "\n".join(lines)


def report(program: Program, seed: int, law: str, problems: list[str]) -> str:
    """All of it."""
    head = "\n".join(f"# {line}" for line in (f"law: {law}", *problems))
    command = f"# python -m tests.programs --cases 1 --seed {seed}"
    again = f"# python -m tests.programs --law '{law}' --program '{json.dumps(program)}'"
    return f"{head}\n{command}\n{again}\n{source(program, call(program, law))}\n"
