"""Random contractions, every form against the reference: ``python -m tests.differential --cases 5000 --seed 1``.

A case is a line of JSON. One that fails is made as small as it goes on failing, and printed with the command that repeats it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxq8.evaluation.rules.contraction import accumulate
from jaxq8.kernels.canonical import ConvLayout, DotLayout, conv_layout, dot_layout
from jaxq8.kernels.forms import ConvForm, Form
from jaxq8.kernels.reference import plain
from jaxq8.kernels.select import FORMS
from jaxq8.numerics.qtensor import QTensor

Case = dict[str, Any]
# Forms that can run more than the planner gives them.
CAN_RUN: dict[str, Callable[[Form], bool]] = {
    "native": lambda f: isinstance(f, ConvForm) and len(f.kernel) <= 2,
    "patches": lambda f: isinstance(f, ConvForm) and f.groups == 1,
    "blocks": lambda f: isinstance(f, ConvForm) and f.groups == 1,
    "rows": lambda f: isinstance(f, ConvForm) and f.groups == 1,
}
CLEAR_EVERY = 200  # compiled programs exhaust the memory maps of a process


def draw(seed: int) -> Case:
    """The random case of a seed."""
    pick = random.Random(seed)
    return _draw_dot(pick, seed) if pick.random() < 0.4 else _draw_conv(pick, seed)


def _side(pick: random.Random) -> int:
    """Sides of contractions: often 1 or near a multiple of a vector's width, where kernels change their ways."""
    return max(
        1, pick.choice([1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 64, 100]) + pick.choice([0, 0, 0, -1, 1])
    )


def _draw_dot(pick: random.Random, seed: int) -> Case:
    def axes(most: int, start: int = 0) -> list[int]:
        sides = [_side(pick) for _ in range(pick.randint(start, most))]
        return sides[: next((i for i in range(len(sides)) if math.prod(sides[: i + 1]) > 600), len(sides))]

    batch = [min(n, 4) for n in axes(2)] if pick.random() < 0.4 else []
    m, k, n = axes(2), axes(2, 1), axes(2)
    case = {"op": "dot", "b": batch, "m": m, "k": k, "n": n}
    for operand, free in (("lhs", m), ("rhs", n)):
        order = list(range(len(batch) + len(free) + len(k)))
        pick.shuffle(order)
        case[operand] = order
    return {**case, "swapped": pick.random() < 0.3, "signed": pick.random() < 0.3, "w_zero": 0, "seed": seed}


def _draw_conv(pick: random.Random, seed: int) -> Case:
    rank = pick.choice([1, 2, 2, 2, 2, 3])
    groups = pick.choice([1, 1, 1, 2, 3, 4])

    def each(values: list[int]) -> list[int]:
        return [pick.choice(values) for _ in range(rank)]

    depthwise = pick.random() < 0.2
    c_in = pick.choice([2, 8, 17, 32]) if depthwise else groups * pick.choice([1, 2, 3, 4, 8, 16, 20])
    groups = c_in if depthwise else groups
    c_out = groups * (pick.choice([1, 1, 2]) if depthwise else pick.choice([1, 2, 3, 8, 16, 20]))
    kernel, dilation = each([1, 1, 2, 3, 3, 4, 5]), each([1, 1, 1, 2])
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    room = [0, 1, 2, 5, 8] if rank < 3 else [0, 1, 2]
    return {
        "op": "conv", "batch": pick.choice([1, 1, 2, 3]), "spatial": [r + pick.choice(room) for r in reach], "c_in": c_in,
        "kernel": kernel, "c_out": c_out, "strides": each([1, 1, 2, 3]),
        "padding": [[pick.choice([0, 0, 1, 2, 4]), pick.choice([0, 0, 1, 3])] for _ in range(rank)],
        "lhs_dilation": each([1, 1, 1, 2]), "rhs_dilation": dilation, "groups": groups,
        "layout": [_shuffled(pick, rank + 2) for _ in range(3)], "signed": pick.random() < 0.3,
        "w_zero": pick.choice([0, 0, 0, 5]), "seed": seed,
    }  # fmt: skip


def _shuffled(pick: random.Random, count: int) -> list[int]:
    order = list(range(count))
    if pick.random() < 0.5:
        pick.shuffle(order)
    return order


def problem(case: Case) -> tuple[Any, Any, Any, Any]:
    """(layout, lhs shape, rhs shape, function ``(lhs, rhs) -> the contraction in int32 by JAX's own general form``)."""
    if case["op"] == "dot":
        return _dot_problem(case)
    rank = len(case["kernel"])
    numbers = lax.ConvDimensionNumbers(*map(tuple, case["layout"]))
    x, w = [0] * (rank + 2), [0] * (rank + 2)
    for spec, shape, sizes in (
        (numbers.lhs_spec, x, [case["batch"], case["c_in"], *case["spatial"]]),
        (numbers.rhs_spec, w, [case["c_out"], case["c_in"] // case["groups"], *case["kernel"]]),
    ):
        for axis, size in zip(spec, sizes, strict=True):
            shape[axis] = size
    params = {
        "window_strides": tuple(case["strides"]), "padding": tuple(map(tuple, case["padding"])),
        "lhs_dilation": tuple(case["lhs_dilation"]), "rhs_dilation": tuple(case["rhs_dilation"]),
        "dimension_numbers": numbers, "feature_group_count": case["groups"],
    }  # fmt: skip

    def general(lhs: Any, rhs: Any) -> Any:
        return lax.conv_general_dilated(lhs, rhs, preferred_element_type=jnp.int32, **params)

    return conv_layout(params, tuple(x), tuple(w)), tuple(x), tuple(w), general


def _dot_problem(case: Case) -> tuple[Any, Any, Any, Any]:
    b, k = case["b"], case["k"]
    shapes, numbers = [], []
    for operand, free in (("lhs", case["m"]), ("rhs", case["n"])):
        plain_order = [*b, *free, *k]
        order = case[operand]
        shapes.append(tuple(plain_order[a] for a in order))
        where = [order.index(a) for a in range(len(order))]
        numbers.append((tuple(where[len(b) + len(free) :]), tuple(where[: len(b)])))
    (lc, lb), (rc, rb) = numbers
    dimensions = ((lc, rc), (lb, rb))
    layout = dot_layout(dimensions, *shapes, case["swapped"], True)
    return layout, *shapes, lambda x, y: lax.dot_general(x, y, dimensions, preferred_element_type=jnp.int32)


def check(case: Case) -> list[str]:
    """What is wrong: nothing, or a line for each form that differs."""
    layout, lhs, rhs, general = problem(case)
    if 0 in layout.form.__dict__.values() or getattr(layout.form, "macs", 1) == 0:
        return []
    pick = np.random.default_rng(case["seed"])
    swapped = case.get("swapped", False)
    dtype = np.int8 if case["signed"] else np.uint8
    zero, w_zero = int(pick.integers(-100, 28) if case["signed"] else pick.integers(0, 256)), case["w_zero"]
    x = pick.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, rhs if swapped else lhs).astype(dtype)
    w = pick.integers(-127, 128, lhs if swapped else rhs).astype(np.int8)
    return [*_forms(layout, x, w, zero), *_whole(layout, x, w, zero, w_zero, general, swapped)]


def _forms(layout: DotLayout | ConvLayout, x: Any, w: Any, zero: int) -> Iterator[str]:
    """Every form that can run, on the canonical operands."""
    form = layout.form
    codes, weights = layout.activation(x), layout.weight(w)
    expected = np.asarray(jax.jit(lambda x, w: plain(form, x, w, jnp.int32(zero), jnp.int32))(codes, weights))
    for entry in FORMS:
        able = CAN_RUN.get(entry.name, lambda f, e=entry: e.obstacle(f) is None)
        if able(form):
            found = jax.jit(lambda x, w, z, e=entry: e.run(form, x, w, z))(codes, weights, jnp.int32(zero))
            yield from _difference(f"form {entry.name}", found, expected)


def _whole(
    layout: DotLayout | ConvLayout, x: Any, w: Any, zero: int, w_zero: int, general: Any, swapped: bool
) -> Iterator[str]:
    """The layout, the kernel that is chosen, and the algebra of zero points, against JAX on centred integers."""
    centred = x.astype(np.int32) - zero, w.astype(np.int32) - w_zero
    expected = np.asarray(jax.jit(general)(*(centred[::-1] if swapped else centred)))
    if np.abs(expected).max(initial=0) >= 2**24:  # float32 would round the offset
        return
    one = jnp.ones((1,) * x.ndim, jnp.float32), jnp.ones((1,) * w.ndim, jnp.float32)
    zeros = jnp.full((1,) * x.ndim, zero, jnp.int32), jnp.full((1,) * w.ndim, w_zero, jnp.int32)

    def run(x: Any, w: Any) -> Any:
        acc = accumulate(
            layout, QTensor(x, one[0], zeros[0]), QTensor(w, one[1], zeros[1], 8, w_zero == 0), "xla"
        )
        return acc.values + acc.offset.astype(jnp.int32)

    yield from _difference("accumulate", jax.jit(run)(x, w), expected)


def _difference(what: str, found: Any, expected: Any) -> Iterator[str]:
    found = np.asarray(found)
    if found.shape != expected.shape:
        yield f"{what}: shape {found.shape}, not {expected.shape}"
    elif not np.array_equal(found, expected):
        yield f"{what}: {np.sum(found != expected)} of {found.size} differ"


def shrink(case: Case, fails: Callable[[Case], bool]) -> Case:
    """The smallest case found that still fails, by one change at a time."""
    while True:
        smaller = next((c for c in _smaller(case) if fails(c)), None)
        if smaller is None:
            return case
        case = smaller


def _smaller(case: Case) -> Iterator[Case]:
    """Cases that are simpler than this one in one place."""
    simplest = {
        "batch": 1, "strides": 1, "lhs_dilation": 1, "rhs_dilation": 1, "kernel": 1, "padding": 0, "b": 1, "m": 1, "k": 1,
        "n": 1, "spatial": 1, "w_zero": 0, "signed": False, "swapped": False,
    }  # fmt: skip
    for field, least in simplest.items():
        if field in case:
            yield from ({**case, field: value} for value in _steps(case[field], least))
    for multiple in (1, 2, 4, 8):
        if case["op"] == "conv" and case["groups"] * multiple < case["c_in"]:
            yield {**case, "c_in": case["groups"] * multiple}
        if case["op"] == "conv" and case["groups"] * multiple < case["c_out"]:
            yield {**case, "c_out": case["groups"] * multiple}
    if case["op"] == "conv" and case["groups"] > 1:
        yield {**case, "groups": 1}
    orders = [("layout", i) for i in range(3)] if case["op"] == "conv" else [("lhs", None), ("rhs", None)]
    for field, i in orders:
        straight = sorted(case[field] if i is None else case[field][i])
        new = straight if i is None else [straight if j == i else o for j, o in enumerate(case[field])]
        if new != case[field]:
            yield {**case, field: new}


def _steps(value: Any, least: Any) -> Iterator[Any]:
    """Simpler values: the least, half, one less; of a list, in one place."""
    if isinstance(value, list):
        for i, v in enumerate(value):
            yield from ([*value[:i], new, *value[i + 1 :]] for new in _steps(v, least))
    elif value != least:
        yield least
        if not isinstance(value, bool) and value > least + 1:
            yield from (least + (value - least) // 2, value - 1)


def failing(case: Case) -> list[str]:
    """`check`, with an exception as a failure."""
    try:
        return check(case)
    except Exception as error:
        return [f"{type(error).__name__}: {str(error).splitlines()[0]}"]


def search(cases: int, seed: int, seconds: float = math.inf) -> tuple[int, list[str]]:
    """Runs cases until they or the seconds are spent: (how many ran, reports of failures)."""
    start, reports, count = time.monotonic(), [], 0
    for number in range(seed, seed + cases):
        if time.monotonic() - start > seconds:
            break
        count += 1
        case = draw(number)
        if failing(case):
            small = shrink(case, lambda c: bool(failing(c)))
            reports.append(
                f"{'; '.join(failing(small))}: python -m tests.differential --case '{json.dumps(small)}'"
            )
        if count % CLEAR_EVERY == 0:
            jax.clear_caches()
    return count, reports


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    options.add_argument("--cases", type=int, default=1000)
    options.add_argument(
        "--seed", type=int, default=0, help="of the first case; each case is the seed of its number"
    )
    options.add_argument("--seconds", type=float, default=math.inf, help="stop after this time")
    options.add_argument("--case", type=json.loads, help="run one case, as printed")
    chosen = options.parse_args(arguments)
    if chosen.case:
        found = failing(chosen.case)
        print("\n".join(found) or "equal")
        return int(bool(found))
    count, reports = search(chosen.cases, chosen.seed, chosen.seconds)
    print(*reports, sep="\n", end="\n" if reports else "")
    print(f"seeds {chosen.seed} to {chosen.seed + count - 1}: {count} cases, {len(reports)} failed")
    return int(bool(reports))


if __name__ == "__main__":
    sys.exit(main())
