"""The other half of a network: norms, joins, pools, and everything that moves data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.programs.operations import Drawn, operation, product

if TYPE_CHECKING:
    from tests.programs.draft import Draft


@operation("batch_norm", "({0} - {1}) * ({2} / jnp.sqrt(jnp.abs({3}) + 1e-3)) + {1}", 3)
def _batch_norm(d: Draft) -> Drawn | None:
    x = d.any(lambda s: len(s) >= 2 and s[-1] <= 128)
    return x and ([x, *(d.vector(d.shapes[x][-1:]) for _ in range(3))], {})


@operation("bias", "{0} + {1}", 2)
def _bias(d: Draft) -> Drawn | None:
    x = d.any(lambda s: len(s) >= 1 and s[-1] <= 128)
    return x and ([x, d.vector(d.shapes[x][-1:])], {})


def _pair(d: Draft) -> tuple[str, str] | None:
    """Two values of one shape, different ones where there are."""
    a = d.any()
    others = [b for b in d.data() if d.shapes[b] == d.shapes[a] and b != a]
    return (a, d.pick.choice(others)) if others else None


for _name, _template, _often in (
    ("residual", "{0} + {1}", 4), ("difference", "{0} - {1}", 1), ("gate", "{0} * jax.nn.sigmoid({1})", 2),
    ("times", "{0} * {1}", 1), ("maximum", "jnp.maximum({0}, {1})", 0.7), ("stack", "jnp.stack([{0}, {1}], 1)", 0.7),
):  # fmt: skip
    operation(_name, _template, _often, moves=False)(lambda d: (pair := _pair(d)) and (list(pair), {}))
for _name, _template in {
    "where": "jnp.where({0} > 0, {0}, {1})",
    "masked": "jnp.where(np.arange({n}) % 3 > 0, {0}, {1})",
}.items():
    operation(_name, _template, 0.7, masks=True)(
        lambda d: (
            (pair := _pair(d)) and (list(pair), {"n": d.shapes[pair[0]][-1] if d.shapes[pair[0]] else 1})
        )
    )


def _parts(d: Draft) -> Drawn | None:
    a = d.any(lambda s: len(s) >= 1)
    if a is None:
        return None
    axis = d.pick.choice([-1, -1, -1, 0, min(1, len(d.shapes[a]) - 1)]) % len(d.shapes[a])

    def fits(s: tuple[int, ...]) -> bool:
        mine = d.shapes[a]
        return len(s) == len(mine) and all(
            m == n for i, (m, n) in enumerate(zip(mine, s, strict=True)) if i != axis
        )

    return [a, *(d.any(fits) for _ in range(d.pick.choice([1, 1, 2])))], {"axis": axis}


@operation("join", "jnp.concatenate([{every}], {axis})", 5, noisy="J([{every}], {axis})")
def _join(d: Draft) -> Drawn | None:
    return _parts(d)


operation("join_unlike", "jnp.concatenate([500 * jax.nn.relu({0}), jax.nn.sigmoid({1})], {axis})", 1,
          noisy="J([500 * E(jax.nn.relu({0})), E(jax.nn.sigmoid({1}))], {axis})")(
    lambda d: (drawn := _parts(d)) and (drawn[0][:2], drawn[1])
)  # fmt: skip


@operation(
    "product_of_unlike", "jnp.concatenate([500 * jax.nn.relu({0}), jax.nn.sigmoid({1})], -1) @ {2}", 1,
    noisy="E(J([500 * E(jax.nn.relu({0})), E(jax.nn.sigmoid({1}))], -1) @ {2})",
)  # fmt: skip
def _product_of_unlike(d: Draft) -> Drawn | None:
    """The weights read only what is small."""
    a = d.any(lambda s: len(s) >= 2 and s[-1] <= 48)
    b = a and d.any(lambda s: s == d.shapes[a])
    return a and ([a, b, d.weight((2 * d.shapes[a][-1], 8), d.shapes[a][-1], "late")], {})


def _image(d: Draft) -> str | None:
    return d.any(lambda s: len(s) == 4 and min(s[1:3]) >= 2)


POOL = "lax.reduce_window({0}, {start}, lax.{how}, (1, {window}, {window}, 1), (1, {stride}, {stride}, 1), {padding!r})"
for _name, _how, _start, _scale in (
    ("max_pool", "max", "-jnp.inf", ""), ("avg_pool", "add", "0.0", " / {window} ** 2"), ("sum_pool", "add", "0.0", ""),
):  # fmt: skip
    operation(_name, POOL.replace("{how}", _how).replace("{start}", _start) + _scale, 2, moves=_name == "max_pool")(
        lambda d: (x := _image(d)) and ([x], {
            "window": d.pick.choice([2, 2, 3]) if min(d.shapes[x][1:3]) > 2 else 2, "stride": d.pick.choice([1, 2]),
            "padding": d.pick.choice(["SAME", "VALID"]),
        })
    )  # fmt: skip
operation("global_pool", "jnp.mean({0}, (1, 2))", 1)(lambda d: (x := _image(d)) and ([x], {}))
operation("resize", "E2(jax.image.resize({0}, {shape}, {method!r}))", 1.5)(
    lambda d: (x := _image(d)) and ([x], {
        "shape": (d.shapes[x][0], d.pick.choice([3, 6, 8]), d.pick.choice([4, 8, 9]), d.shapes[x][3]),
        "method": d.pick.choice(["bilinear", "bilinear", "nearest"]),
    })
)  # fmt: skip


@operation("reduce", "jnp.{how}({0}, {axis})", 1)
def _reduce(d: Draft) -> Drawn | None:
    x = d.any(lambda s: len(s) >= 2)
    how = d.pick.choice(["sum", "mean", "max", "min"])
    return x and ([x], {"how": how, "axis": d.pick.randrange(len(d.shapes[x]))})


@operation("slice", "{0}[{window}]", 3, moves=True)
def _slice(d: Draft) -> Drawn | None:
    x = d.any(lambda s: len(s) >= 1 and max(s) > 1)
    if x is None:
        return None
    axis = d.pick.choice([i for i, n in enumerate(d.shapes[x]) if n > 1])
    n = d.shapes[x][axis]
    start = d.pick.randrange(n)
    stop = d.pick.randint(start + 1, n)
    part = d.pick.choice(
        [f"{start}:{stop}", f"::{d.pick.choice([1, 2])}", f":{n // 2}", f"{n // 2}:", str(start)]
    )
    return [x], {"window": ", ".join([*[":"] * axis, part])}


@operation("pad", "jnp.pad({0}, {widths}, constant_values={value})", 1.5)
def _pad(d: Draft) -> Drawn | None:
    x = d.any(lambda s: len(s) >= 1)
    return x and ([x], {
        "widths": [(d.pick.choice([0, 1]), d.pick.choice([0, 0, 1, 2])) for _ in d.shapes[x]],
        "value": d.pick.choice([0.0, 0.0, 0.0, 1.0, -0.5]),
    })  # fmt: skip


@operation("transpose", "jnp.transpose({0}, {order})", 2, moves=True)
def _transpose(d: Draft) -> Drawn | None:
    x = d.any(lambda s: len(s) >= 2)
    return x and ([x], {"order": d.pick.sample(range(len(d.shapes[x])), len(d.shapes[x]))})


@operation("reshape", "jnp.reshape({0}, {shape})", 3, moves=True)
def _reshape(d: Draft) -> Drawn | None:
    x = d.any(lambda s: len(s) >= 1)
    if x is None:
        return None
    s = d.shapes[x]
    forms: list[tuple[int, ...]] = []
    forms.extend((*s[:i], s[i] * s[i + 1], *s[i + 2 :]) for i in range(len(s) - 1))
    for i, n in enumerate(s):
        if n % 2 == 0 and n > 2 and len(s) < 5:
            forms.append((*s[:i], n // 2, 2, *s[i + 1 :]))
    forms.append((1, *s) if len(s) < 4 else (s[0], product(s[1:])))
    return [x], {"shape": d.pick.choice(forms)}


operation("rev", "jnp.flip({0}, {axis})", 0.7, moves=True)(
    lambda d: (x := d.any(lambda s: len(s) >= 1)) and ([x], {"axis": d.pick.randrange(len(d.shapes[x]))})
)
operation("broadcast", "jnp.broadcast_to({0}[:, None], {shape})", 0.7, moves=True)(
    lambda d: (
        (x := d.any(lambda s: 1 <= len(s) <= 3)) and ([x], {"shape": (d.shapes[x][0], 3, *d.shapes[x][1:])})
    )
)
operation("gather_rows", "{0}[np.arange({n}) % {rows}]", 0.5, moves=True)(
    lambda d: (
        (x := d.any(lambda s: len(s) >= 2)) and ([x], {"n": d.pick.choice([3, 6]), "rows": d.shapes[x][0]})
    )
)


@operation("embed", "{0} + jnp.take({1}, np.arange({n}) * 7 % {rows}, axis=0)", 1)
def _embed(d: Draft) -> Drawn | None:
    x = d.any(lambda s: len(s) >= 2 and s[-1] <= 128 and s[-2] <= 64)
    return x and ([x, d.vector((11, d.shapes[x][-1]))], {"n": d.shapes[x][-2], "rows": 11})


def known() -> tuple[object, ...]:
    """Importing this module is what adds its rows."""
    return (_reshape, _embed, _product_of_unlike)
