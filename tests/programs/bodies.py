"""Operations with functions inside: scans, loops, branches, compiled and checkpointed bodies, mapped ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.programs.operations import Drawn, operation

if TYPE_CHECKING:
    from tests.programs.draft import Draft


def _square(d: Draft, count: int = 1, stacked: int = 0) -> Drawn | None:
    """A value whose last axis is mapped to itself by `count` weights, or by a stack of them."""
    x = d.any(lambda s: 2 <= len(s) <= 4 and 4 <= s[-1] <= 40)
    if x is None:
        return None
    k = d.shapes[x][-1]
    shape = (stacked, k, k) if stacked else (k, k)
    return [x, *(d.weight(shape, k) for _ in range(count))], {}


def _body(name: str, template: str, often: float = 0.6, count: int = 1, stacked: int = 0) -> None:
    operation(name, template, often)(lambda d: _square(d, count, stacked))


_body(
    "scan_layers",
    "lax.scan(lambda c, w: (L2(jnp.tanh(c @ w)), None), K2(jnp.tanh({0})), {1})[0]",
    1.5,
    stacked=3,
)
_body(
    "scan_residual",
    "lax.scan(lambda c, w: (E2(c + 0.5 * jax.nn.relu(c @ w)), None), {0}, {1})[0]",
    1,
    stacked=2,
)
_body(
    "scan_outputs",
    "lax.scan(lambda c, w: (L2(jnp.tanh(c @ w)), E2(jax.nn.relu(c @ w))), K2(jnp.tanh({0})), {1})[1]",
    1,
    stacked=2,
)
_body("scan_steps", "lax.scan(lambda c, a: (c + 1.0, E2(jax.nn.relu(E2(a @ {1}))) @ {2}), 0.0, {0})[1]", 1, 2)
_body(
    "scan_recurrent", "lax.scan(lambda c, a: (L2(jnp.tanh(a @ {1} + c @ {2})),) * 2, jnp.zeros_like({0}[0]), {0})[1]", 1.5, 2
)  # fmt: skip
_body("fori", "lax.fori_loop(0, 3, lambda i, c: L2(jnp.tanh(c @ {1})), K2(jnp.tanh({0})))", 1)
_body(
    "while",
    "lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, E2(jax.nn.relu(c[1] @ {1})) + 0.1 * c[1]), (0, {0}))[1]", 1,
)  # fmt: skip
_body(
    "cond", "lax.cond(jnp.sum(jnp.abs({0})) > -1.0, lambda a: jax.nn.relu(a @ {1}), lambda a: K2(jnp.tanh(a)) @ {2}, {0})", 1, 2
)  # fmt: skip
_body(
    "switch",
    "lax.switch(jnp.int32(jnp.sum(jnp.abs({0})) > -1), [lambda a: a @ {1}, lambda a: E(jax.nn.relu(a @ {1})) @ {2}], {0})",
    0.6,
    2,
)
_body("jit", "jax.jit(lambda a, w, v: E(jax.nn.relu(a @ w)) @ v)({0}, {1}, {2})", 1.5, 2)
_body("checkpoint", "jax.checkpoint(lambda a, w, v: E(jax.nn.gelu(a @ w)) @ v + a)({0}, {1}, {2})", 1.5, 2)
_body("vmap", "jax.vmap(lambda a: E2(E2(jax.nn.relu(E2(a) @ {1})) @ {2}))({0})", 1.5, 2)
_body("vmap_last", "jax.vmap(lambda a: E2(a.T @ K1(jax.nn.sigmoid({1}))), 0, 1)({0})", 0.7)
_body("jit_twice", "jax.jit(jax.checkpoint(lambda a, w: jnp.concatenate([a @ w, a], -1)))({0}, {1})", 1)
_body(
    "scan_weights_left",
    "lax.scan(lambda c, w: (L2(jnp.tanh(w @ jnp.moveaxis(c, -1, -2))).swapaxes(-1, -2), None), K2(jnp.tanh({0})), {1})[0]",
    0.6,
    stacked=2,
)


@operation("conv_in_jit", "jax.jit(lambda a, w: K6(jax.nn.relu6(lax.conv_general_dilated(a, w, (1, 1), 'SAME', "
           "dimension_numbers=('NHWC', 'HWIO', 'NHWC')))))({0}, {1})", 2)  # fmt: skip
def _conv_in_jit(d: Draft) -> Drawn | None:
    x = d.any(lambda s: len(s) == 4 and 2 <= s[-1] <= 48)
    return x and ([x, d.weight((3, 3, d.shapes[x][-1], d.pick.choice([8, 16])), 9 * d.shapes[x][-1])], {})


@operation("conv_scan", "lax.scan(lambda c, w: (E2(jax.nn.relu(lax.conv_general_dilated(c, w, (1, 1), 'SAME', "
           "dimension_numbers=('NHWC', 'HWIO', 'NHWC')))), None), {0}, {1})[0]", 0.8)  # fmt: skip
def _conv_scan(d: Draft) -> Drawn | None:
    x = d.any(lambda s: len(s) == 4 and 4 <= s[-1] <= 24)
    k = x and d.shapes[x][-1]
    return x and ([x, d.weight((2, 3, 3, k, k), 9 * k)], {})


@operation("conv_of_values", "lax.conv_general_dilated({0}, S({1}[:2, :2].swapaxes(2, 3)), (1, 1), 'SAME', "
           "dimension_numbers=('NHWC', 'HWIO', 'NHWC'))", 0.7)  # fmt: skip
def _conv_of_values(d: Draft) -> Drawn | None:
    """The kernel of a convolution is a computed value."""
    x = d.any(lambda s: len(s) == 4)
    w = x and d.any(lambda s: len(s) == 4 and s[3] == d.shapes[x][3])
    return (x and w and ([x, w], {})) or None


def known() -> tuple[Any, ...]:
    """Importing this module is what adds its rows."""
    return (_conv_in_jit, _conv_scan, _conv_of_values)
