"""A program as data: weights, steps and outputs; and the Python source that is both what runs and what is printed.

A value is named as the source names it: ``x`` (or ``x[0]``), ``p[3]``, ``v5``. A step is ``{"name", "op", "in", ...}``: the
other entries are plain numbers and strings, which `operations.line` puts into the line of source of that operation. In these
lines ``E(...)`` and ``S(...)`` mark values inside an expression that eight bits would round: `noise` gives them a meaning, and
the printed source leaves them out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.programs.operations import TABLE, line

Program = dict[str, Any]
Step = dict[str, Any]

MARK = re.compile(r"\b(E2?|S|[KL]\d)\(")
HEADER = """\
import jax, jax.numpy as jnp, numpy as np
from jax import lax
import jaxq8 as q8

def normal(i, *shape):
    return np.random.default_rng([{seed}, i]).standard_normal(shape).astype(np.float32)

def uniform(i, *shape):
    return np.random.default_rng([{seed}, i]).uniform(0, 1, shape).astype(np.float32)

def late(i, *shape):  # weights that read the second half of the channels
    w = normal(i, *shape)
    w[..., : shape[-2] // 2, :] = 0
    return w

"""


def array_source(entry: dict[str, Any]) -> str:
    """The expression of a weight or an input."""
    shape = ", ".join(map(str, [entry["id"], *entry["shape"]]))
    drawn = f"{entry['kind']}({shape})"
    return drawn if entry["factor"] == 1 else f"{drawn} * np.float32({entry['factor']:.4g})"


def data_source(program: Program) -> str:
    """The lines that make p and x."""
    weights = "".join(f"    {array_source(w)},\n" for w in program["weights"])
    inputs = [array_source(x) for x in program["inputs"]]
    x = inputs[0] if len(inputs) == 1 else f"({', '.join(inputs)})"
    return HEADER.format(seed=program["seed"]) + f"p = [\n{weights}]\nx = {x}\n"


def function_source(program: Program, noisy: bool = False) -> str:
    """``def f(p, x)``: a line for each step; `noisy`: every value that eight bits would round is marked."""
    lines = ["def f(p, x):"]
    if noisy:
        lines += ["    p = [S(w) for w in p]", "    x = jax.tree.map(E, x)"]
    for step in program["steps"]:
        expression = line(step, noisy)
        if not noisy:
            expression = MARK.sub("(", expression)
        elif not TABLE[step["op"]].moves and not TABLE[step["op"]].noisy:
            expression = f"E({expression})"
        lines.append(f"    {step['name']} = {expression}")
    lines.append(f"    return {', '.join(program['outputs'])},")
    return "\n".join(lines) + "\n"


def source(program: Program, call: str = "") -> str:
    """The whole program, to be pasted."""
    return f"{data_source(program)}\n{function_source(program)}\n{call}"


def names() -> dict[str, Any]:
    """What the source may refer to."""
    return {"jax": jax, "jnp": jnp, "np": np, "lax": lax}


def build(program: Program) -> tuple[Callable[..., Any], list[Any], Any]:
    """(f, p, x), by running the source."""
    scope = names()
    text = source(program).replace("import jaxq8 as q8\n", "")
    exec(compile(text, f"<program {program['seed']}>", "exec"), scope)
    return scope["f"], scope["p"], scope["x"]


def build_noisy(program: Program) -> Callable[..., Any]:
    """``noisy(p, x, marks)``: f with the marks in place, `noise.marks` giving them a meaning."""
    text = function_source(program, noisy=True)
    code = compile(text, f"<program {program['seed']}>", "exec")

    def noisy(p: Any, x: Any, marks: dict[str, Any]) -> Any:
        scope = {**names(), **marks}
        exec(code, scope)
        return scope["f"](p, x)

    return noisy


def pruned(program: Program) -> Program:
    """Without the steps, weights and inputs that no output needs; what is left keeps its numbers and so its data."""
    needed = set(program["outputs"])
    steps = []
    for step in reversed(program["steps"]):
        if step["name"] in needed:
            steps.append(step)
            needed.update(step["in"])
    weights = [w for i, w in enumerate(program["weights"]) if f"p[{i}]" in needed]
    renamed = {f"p[{program['weights'].index(w)}]": f"p[{i}]" for i, w in enumerate(weights)}
    used = [{**s, "in": [renamed.get(n, n) for n in s["in"]]} for s in reversed(steps)]
    outputs = [renamed.get(n, n) for n in program["outputs"]]
    return {**program, "steps": used, "weights": weights, "outputs": outputs}


def from_json(text: str) -> Program:
    """A program as `to_json` wrote it."""
    found: Program = json.loads(text)
    return found


def to_json(program: Program) -> str:
    """One line that `from_json` reads."""
    return json.dumps(program)
