"""The operations that programs are made of: for each the line of source, and how it is drawn given the values so far.

``{0}``, ``{1}`` are the names of a step's inputs; other fields are its numbers. ``E(...)`` marks a value inside the line that
eight bits would round, ``E2(...)`` one that they round several times or with the range of a whole loop, ``S(...)`` one with
symmetric codes: a right operand, ``K6(...)`` one whose range construction tells, 6 wide, whatever the data. A joined value is
written with ``J`` in a line of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.programs.draft import Draft

Drawn = tuple[list[str], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One row of the table.

    Attributes:
      template: The line of source, or a field of the step that holds it.
      draw: ``draft -> (inputs, numbers)``, or None where no value suits.
      often: How often, relative to the others.
      moves: Nothing is computed: the result has no rounding of its own.
      masks: NaN in an operand may be left out of the result.
      noisy: The line with marks that the plain one cannot hold.
      right: The second input is a right operand: where it is no plain weight, its codes are symmetric.
    """

    template: str
    draw: Callable[[Draft], Drawn | None]
    often: float
    moves: bool = False
    masks: bool = False
    noisy: str = ""
    right: bool = False


TABLE: dict[str, Operation] = {}


def line(step: dict[str, Any], noisy: bool = False) -> str:
    """The expression of a step."""
    entry, inputs = TABLE[step["op"]], list(step["in"])
    if noisy and entry.right and not inputs[1].startswith("p["):
        inputs[1] = f"S({inputs[1]})"
    if noisy and _crops(step):
        inputs[0], step = _cropped(inputs[0], step)
    return ((noisy and entry.noisy) or entry.template).format(*inputs, **step, every=", ".join(inputs))


def _crops(step: dict[str, Any]) -> bool:
    """Whether the borders of a convolution crop its input. XLA:CPU 0.10.2 reads beside the array then, in float."""
    padding = step.get("padding")
    return (
        "lhs_dilation" in step and padding not in ("SAME", "VALID") and any(min(pair) < 0 for pair in padding)
    )


def _cropped(x: str, step: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The input of such a convolution with its borders, and the convolution without."""
    letters = step["numbers"][0]
    config: list[tuple[int, int, int]] = [(0, 0, 0)] * len(letters)
    places = [i for i, letter in enumerate(letters) if letter not in "NC"]
    for place, (low, high), dilation in zip(places, step["padding"], step["lhs_dilation"], strict=True):
        config[place] = (low, high, dilation - 1)
    whole = {"padding": [(0, 0)] * len(places), "lhs_dilation": [1] * len(places)}
    # Behind a barrier, since XLA would make borders of the convolution of it again.
    return f"lax.optimization_barrier(lax.pad({x}, np.float32(0), {config}))", {**step, **whole}


def operation(name: str, template: str, often: float = 1, **settings: Any) -> Callable[[Any], Any]:
    """Adds a row; decorates how it is drawn."""

    def add(draw: Callable[[Draft], Drawn | None]) -> Any:
        TABLE[name] = Operation(template, draw, often, **settings)
        return draw

    return add


def unary(name: str, template: str, often: float = 1, **settings: Any) -> None:
    """A row for a function of one value of any shape."""
    operation(name, template, often, **settings)(lambda d: ([d.any()], {}))


CENTRED = "({0} - jnp.mean({0}, -1, keepdims=True))"
SMALL = "1e-3 * jnp.mean({0} ** 2) + 1e-20"
for _name, _template in {
    "relu": "jax.nn.relu({0})", "relu6": "K6(jax.nn.relu6({0}))", "sigmoid": "K1(jax.nn.sigmoid({0}))",
    "tanh": "K2(jnp.tanh({0}))",
    "gelu": "jax.nn.gelu({0})", "swish": "jax.nn.swish({0})", "hard_swish": "jax.nn.hard_swish({0})",
    "softmax": "jax.nn.softmax({0}, axis=-1)", "abs": "jnp.abs({0})", "square": "({0}) ** 2",
    "exp": "jnp.exp(-jnp.abs({0}))", "clip": "K3(jnp.clip({0}, -1.0, 1.5))", "negative": "-{0}", "half": "0.5 * {0}",
    "large": "500 * {0}", "softplus": "jax.nn.softplus({0})", "unit": "{0} / (1e-6 + jnp.max(jnp.abs({0})))",
    "layer_norm": CENTRED + " / jnp.sqrt(jnp.var({0}, -1, keepdims=True) + " + SMALL + ")",
    "rms_norm": "{0} / jnp.sqrt(jnp.mean({0} ** 2, -1, keepdims=True) + " + SMALL + ")",
}.items():  # fmt: skip
    unary(
        _name, _template, {"relu": 4, "relu6": 2, "sigmoid": 2, "large": 0.4, "square": 0.4}.get(_name, 0.8)
    )
unary("leaky_relu", "jax.nn.leaky_relu({0}, 0.1)", 0.8)
unary("copy_checkpoint", "jax.checkpoint(lambda a: E(jax.nn.relu(a)) * 0.7)({0})", 0.4)


# Convolutions. Fields: strides, padding, lhs_dilation, rhs_dilation, numbers, groups.
CONV = (
    "lax.conv_general_dilated({0}, {1}, {strides}, {padding!r}, {lhs_dilation}, {rhs_dilation}, {numbers!r}, "
    "feature_group_count={groups})"
)
LAYOUTS = {
    3: [("NWC", "WIO", "NWC")], 4: [("NHWC", "HWIO", "NHWC")] * 5 + [("NCHW", "OIHW", "NCHW"), ("NHWC", "HWIO", "NCHW")],
    5: [("NDHWC", "DHWIO", "NDHWC")],
}  # fmt: skip


def _conv(d: Draft, kind: str) -> Drawn | None:
    x = d.any(lambda s: 3 <= len(s) <= 5 and min(s) >= 1)
    if x is None:
        return None
    shape = d.shapes[x]
    rank = len(shape) - 2
    numbers = d.pick.choice(LAYOUTS[len(shape)])
    c_in = shape[numbers[0].index("C")]
    spatial = [n for n, letter in zip(shape, numbers[0], strict=True) if letter not in "NC"]
    if c_in > 96 or c_in < 2:
        return None
    groups, c_out = 1, d.pick.choice([4, 8, 12, 16, 17, 24])
    if kind == "depthwise":
        groups, c_out = c_in, c_in * d.pick.choice([1, 1, 2])
    elif kind == "grouped":
        groups = d.pick.choice([g for g in (1, 2, 3, 4) if c_in % g == 0])
        c_out = groups * d.pick.choice([2, 4, 8])
    kernel = [1 if kind == "pointwise" else min(d.pick.choice([1, 2, 3, 3, 3, 5]), n) for n in spatial]
    if rank == 3:
        kernel = [min(k, 2) for k in kernel]
    plain = kind in ("pointwise", "same")
    lhs_dilation = [2] * rank if kind == "transposed" else [1] * rank
    rhs_dilation = [1] * rank if plain or d.pick.random() < 0.8 else [2] * rank
    strides = [1] * rank if kind != "strided" else [d.pick.choice([1, 2]) for _ in spatial]
    reach = [(k - 1) * r + 1 for k, r in zip(kernel, rhs_dilation, strict=True)]
    size = [(n - 1) * e + 1 for n, e in zip(spatial, lhs_dilation, strict=True)]
    choices: list[Any] = ["SAME", "VALID"] if kind != "transposed" else []
    padding: Any = d.pick.choice(
        [*choices, [(d.pick.choice([0, 1, 2, -1]), d.pick.choice([0, 1, 1, 2])) for _ in spatial]]
    )
    padding = "SAME" if plain else padding
    if padding != "SAME":
        space = [n + (0 if padding == "VALID" else sum(padding[i])) for i, n in enumerate(size)]
        if any(s < r for s, r in zip(space, reach, strict=True)):
            return None
    letters = dict(zip([c for c in numbers[0] if c not in "NC"], kernel, strict=True)) | {
        "I": c_in // groups,
        "O": c_out,
    }
    w_shape = tuple(letters[c] for c in numbers[1])
    w = d.weight(w_shape, max(1, c_in // groups) * max(1, product(kernel)))
    return [x, w], {
        "strides": strides, "padding": padding, "lhs_dilation": lhs_dilation, "rhs_dilation": rhs_dilation,
        "numbers": numbers, "groups": groups,
    }  # fmt: skip


def product(numbers: Any) -> int:
    result = 1
    for n in numbers:
        result *= n
    return result


for _kind, _often in {
    "same": 8, "pointwise": 4, "strided": 3, "depthwise": 3, "grouped": 2, "transposed": 2, "general": 3,
}.items():  # fmt: skip
    operation(f"conv_{_kind}", CONV, _often, right=True)(lambda d, kind=_kind: _conv(d, kind))


# Products of a weight and a value.
def _dense(d: Draft) -> Drawn | None:
    x = d.any(lambda s: len(s) >= 1 and 2 <= s[-1] <= 128)
    n = d.pick.choice([1, 4, 8, 16, 17, 24, 32])
    return x and ([x, d.weight((d.shapes[x][-1], n), d.shapes[x][-1])], {})


operation("dense", "{0} @ {1}", 8, right=True)(_dense)


@operation("weight_left", "{1} @ {0}", 4, right=True)
def _weight_left(d: Draft) -> Drawn | None:
    x = d.any(lambda s: len(s) in (2, 3) and 2 <= s[-2] <= 128)
    return x and ([x, d.weight((d.pick.choice([1, 4, 8, 16, 24]), d.shapes[x][-2]), d.shapes[x][-2])], {})


@operation("weight_transposed", "{1}.T @ {0}", 2, right=True)
def _weight_transposed(d: Draft) -> Drawn | None:
    x = d.any(lambda s: len(s) == 2 and 2 <= s[0] <= 128)
    return x and ([x, d.weight((d.shapes[x][0], d.pick.choice([4, 8, 16, 24])), d.shapes[x][0])], {})


@operation("value_transposed", "{0}.T @ {1}", 2, right=True)
def _value_transposed(d: Draft) -> Drawn | None:
    x = d.any(lambda s: len(s) == 2 and 2 <= s[0] <= 128)
    return x and ([x, d.weight((d.shapes[x][0], d.pick.choice([4, 8, 16, 24])), d.shapes[x][0])], {})


EINSUMS = {  # lengths of the letters that only the weight has are drawn
    2: ["bk,kmn->bmn", "bk,nk->bn", "bk,nk->nb", "bk,bn->kn", "kb,knm->bnm"],
    3: [
        "bmk,mkn->bn",
        "bmk,kn->bnm",
        "bmk,knj->bmnj",
        "bmk,bkn->bmn",
        "bmk,nm->bnk",
        "bmk,nmk->nb",
        "kbm,kn->nbm",
    ],
    4: ["bhwc,hwcn->bn", "bhwc,cn->bnhw", "bhwc,wn->bhnc", "bhwc,hcn->bwn", "bhwc,chn->nbw"],
}


@operation("einsum", "jnp.einsum({spec!r}, {0}, {1})", 4, right=True)
def _einsum(d: Draft) -> Drawn | None:
    x = d.any(lambda s: len(s) in EINSUMS)
    if x is None:
        return None
    spec = d.pick.choice(EINSUMS[len(d.shapes[x])])
    left, right = spec.split("->")[0].split(",")
    sizes = dict(zip(left, d.shapes[x], strict=True))
    shape = tuple(sizes.get(c) or d.pick.choice([2, 4, 8]) for c in right)
    fan_in = product(sizes[c] for c in right if c in sizes and c not in spec.split("->")[1])
    return ([x, d.weight(shape, fan_in)], {"spec": spec}) if product(shape) < 30_000 else None


PRODUCTS = {
    (2, 2): ["mk,kn->mn", "mk,nk->mn", "km,kn->mn", "km,nk->nm"],
    (3, 3): ["bmk,bnk->bmn", "bmk,bkn->bmn", "bkm,bkn->bmn", "bmk,bml->lk", "bmk,cmk->bc"],
    (3, 2): ["bmk,nk->bmn", "bmk,kn->bmn", "bmk,mn->bnk"], (2, 3): ["nk,bmk->bmn", "mk,bkn->bmn"],
    (4, 4): ["bhwc,bhwd->bcd", "bhwc,bhvc->bhwv", "bhwc,ahwc->ba"],
}  # fmt: skip


@operation("product", "jnp.einsum({spec!r}, {0}, S({1}))", 5)
def _product_of_values(d: Draft) -> Drawn | None:
    """Of two activations, which may be one."""
    fitting = []
    for _ in range(12):
        a, b = d.any(), d.any()
        for spec in PRODUCTS.get((len(d.shapes[a]), len(d.shapes[b])), ()):
            sizes: dict[str, int] = {}
            pairs = list(zip(spec.split("->")[0].replace(",", ""), (*d.shapes[a], *d.shapes[b]), strict=True))
            if all(sizes.setdefault(c, n) == n for c, n in pairs):
                fitting.append((a, b, spec, sizes))
    if not fitting:
        return None
    a, b, spec, _ = d.pick.choice(fitting)
    return [a, b], {"spec": spec}


@operation(
    "attention",
    "jnp.einsum('bmn,bnk->bmk', E(jax.nn.softmax(jnp.einsum('bmk,bnk->bmn', {0}, S({1})))), S({2}))",
    1,
)
def _attention(d: Draft) -> Drawn | None:
    x = d.any(lambda s: len(s) == 3)
    other = x and d.any(lambda s: len(s) == 3 and s == d.shapes[x])
    return x and ([x, other, other], {})


# A weight's side that is computed, with a range that is known or nonnegative.
for _name, _template in {
    "relu_of_weight": "jax.nn.relu({0})", "sigmoid_of_weight": "K1(jax.nn.sigmoid({0}))", "abs_of_weight": "jnp.abs({0})",
    "clip_of_weight": "K6(jnp.clip({0}, 0.0, 6.0))", "exp_of_weight": "jnp.exp({0})", "turned_weight": "jnp.flip({0}, 0)",
}.items():  # fmt: skip
    operation(_name, _template, 0, moves=_name == "turned_weight")(lambda d: None)
