"""A failure as text: what is wrong, the command that repeats it, and the program to be pasted."""

from __future__ import annotations

import json

from tests.programs.program import Program, build, source
from tests.programs.settings import SURE, WIDER, Settings

COMPILED = "jax.jit(q8.quantize(f, config, ranges=ranges), compiler_options={options})"
LOSS = (
    "def derivative(g):\n"
    "    sizes = [float(jnp.sum(o ** 2)) for o in f(p, x)]\n"
    "    loss = lambda a: sum(jnp.sum(o ** 2) / s for o, s in zip(g(*a), sizes))\n"
    "    return jax.jit(jax.grad(loss))((p, x))\n"
)
# Lines that make `slow` and `fast`, by law; of the others `slow` is the float result.
CALLS = {
    "simulation": "slow = jax.jit(q8.quantize(f, q8.Config(kernels='simulate', attention={attention}), ranges=ranges))(p, x)",
    "reference": "slow = jax.jit(q8.quantize(f, q8.Config(kernels='reference', attention={attention}), ranges=ranges))(p, x)",
    "nan": "jax.tree.leaves(x)[{which}].ravel()[{element}] = np.nan\nslow = f(p, x)",
    "encoded": "slow = {compiled}(p, x)\np = q8.quantize_weights(f, p, x, config=config, correct=None)",
    "export": "q = q8.quantize_weights(f, p, x, config=config, correct=None) if p else p\n"
    "q8.export('program.q8x', f, q, x, ranges=ranges, config=config, platforms=('cpu',), symbolic_batch={symbolic})\n"
    "slow = q8.load_exported('program.q8x')(x)",
    "sign of dots": "slow = {compiled}(p, x)\nfrom jaxq8.kernels import dot\ndot.mixed_dots_are_fast = lambda: {other}",
    "vmap": "both = jax.tree.map(lambda a: np.stack([a, np.float32(0.7) * a]), x)\n"
    "slow = [o[0] for o in jax.jit(jax.vmap(q8.quantize(f, config, ranges=ranges), (None, 0)))(p, both)]",
    "blocks": "slow = {compiled}(p, x)\nfrom jaxq8.analysis import batch_axis as axis\naxis.LARGE_BYTES = axis.BLOCK_BYTES = 0",
    "gradient": LOSS + "slow = derivative(f)\n"
    "simulated = derivative(q8.quantize(f, q8.Config(kernels='simulate', attention={attention}), ranges=ranges))\n"
    "fast = derivative(q8.quantize(f, config, ranges=ranges))",
    "eager": "slow = q8.quantize(f, q8.Config(kernels='reference', attention={attention}), ranges=ranges)(p, x)\n"
    "fast = q8.quantize(f, config, ranges=ranges)(p, x)",
}  # fmt: skip


def call(program: Program, law: str) -> str:
    """The lines that show the failure."""
    chosen = Settings.of(program["seed"])
    _, _, x = build(program)
    which, element = chosen.position([a.size for a in (x if isinstance(x, tuple) else (x,))])
    compiled = COMPILED.format(options=chosen.options(SURE))
    lines = ["from jaxq8.kernels import dot", f"dot.mixed_dots_are_fast = lambda: {chosen.mixed}"]
    lines.append(f"config = q8.Config(kernels='xla', attention={chosen.attention})")
    given = "q8.calibrate(f, p, [(x,)], config=config, progress=False)"
    lines.append(f"ranges = {given if chosen.static else None}")
    if chosen.kind == "given":
        lines.append(f"ranges = {{n: ({WIDER} * r.minimum, {WIDER} * r.maximum) for n, r in ranges.items()}}")
    text = CALLS.get(law, "slow = jax.jit(f)(p, x)").format(
        attention=chosen.attention, compiled=compiled, which=which, element=element, other=not chosen.mixed,
        symbolic=None if chosen.symbolic else False,
    )  # fmt: skip
    lines.append(text)
    if "fast = " not in text:
        lines.append(f"fast = {compiled}(p, x)")
    lines.append("for a, b in zip(jax.tree.leaves(slow), jax.tree.leaves(fast)):")
    lines.append(
        "    print(np.linalg.norm(np.subtract(a, b)) / np.linalg.norm(a), np.isnan(a).sum(), np.isnan(b).sum())"
    )
    return "\n".join(lines)


def report(program: Program, seed: int, law: str, problems: list[str]) -> str:
    """All of it."""
    head = "\n".join(f"# {line}" for line in (f"law: {law}", *problems))
    command = f"# python -m tests.programs --cases 1 --seed {seed}"
    again = f"# python -m tests.programs --law '{law}' --program '{json.dumps(program)}'"
    return f"{head}\n{command}\n{again}\n{source(program, call(program, law))}\n"
