"""`selfcheck`: compares every fast form, compiled on this machine, with plain arithmetic; it takes seconds.

XLA runs only few integer forms fast, different ones on different processors, and it has miscompiled some of them. A form that
is wrong on this machine is barred: functions that are traced afterwards use the next form of the table, or float.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxq8.display.text_table import table
from jaxq8.kernels import barred, epilogue, pooling, select
from jaxq8.kernels.forms import ConvForm, DotForm, Form
from jaxq8.kernels.processor import capability
from jaxq8.kernels.reference import plain
from jaxq8.kernels.registry import weight_sum
from jaxq8.machine import region_checks
from jaxq8.regions.native_call import is_there


@dataclasses.dataclass(frozen=True)
class Check:
    """One form in one case.

    Attributes:
      form: Name in the table of forms, or "max_pool", "sum_pool", "weight_sum", "encode", or "region" for native regions.
      case: Description of what was computed.
      ok: Whether every integer was equal.
      used: Whether the planner takes this form for this case on this machine.
      detail: How many results differed, or the error that was raised.
    """

    form: str
    case: str
    ok: bool
    used: bool
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class SelfCheck:
    """What `selfcheck` returns; ``print`` shows it as a table.

    Attributes:
      checks: All checks.
      processor: The capability of the processor that was detected ("avx512_vnni", "amx", ...).
      barred: Forms that are barred now.

    Example:
      >>> found = q8.selfcheck()
      >>> found.failed
      ()
      >>> found.summary().endswith("all forms are exact")
      True
    """

    checks: tuple[Check, ...]
    processor: str
    barred: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every form was correct in every case."""
        return not self.failed

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the forms that were wrong in any case."""
        return tuple(dict.fromkeys(c.form for c in self.checks if not c.ok))

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the forms that the planner takes on this machine in any of the cases."""
        return tuple(dict.fromkeys(c.form for c in self.checks if c.used))

    def summary(self) -> str:
        """One line: the number of checks, the machine, and the forms that were wrong."""
        verdict = "all forms are exact" if self.ok else f"WRONG: {', '.join(self.failed)}"
        machine = f"{self.processor}, {jax.default_backend()}, jax {jax.__version__}"
        return f"{len(self.checks)} checks on {machine}: {verdict}"

    def __str__(self) -> str:
        rows = [
            (c.form, c.case, "used" if c.used else "", "equal" if c.ok else "WRONG", c.detail)
            for c in self.checks
        ]
        lines = [
            self.summary(), f"barred: {', '.join(self.barred) or 'none'}", "",
            *table(("form", "case", "here", "result", "detail"), rows),
        ]  # fmt: skip
        return "\n".join(lines)


def _conv(
    size: int, c_in: int, kernel: int, c_out: int, stride: int = 1, pad: int = 0, **more: Any
) -> ConvForm:
    fields: dict[str, Any] = {
        "batch": 1, "spatial": (size, size), "c_in": c_in, "kernel": (kernel, kernel), "c_out": c_out,
        "strides": (stride, stride), "padding": ((pad, pad),) * 2, "lhs_dilation": (1, 1), "rhs_dilation": (1, 1),
    }  # fmt: skip
    return ConvForm(**{**fields, **more})


# "Grown" is the shape of a miscompilation seen on AMX: borders wider than the kernel needs, so that the result is larger
# than the unpadded input.
CASES: dict[str, dict[str, Form]] = {
    "dot": {
        "128x384x256": DotForm(0, 128, 384, 256), "49x147x63": DotForm(0, 49, 147, 63), "one row": DotForm(0, 1, 256, 256),
        "one row, tied weights": DotForm(0, 1, 256, 512, transposed=True),
        "two rows": DotForm(0, 2, 256, 256), "one column": DotForm(0, 64, 128, 1), "batched": DotForm(4, 32, 64, 32),
        "batched, one row": DotForm(4, 1, 64, 32), "longest sum": DotForm(0, 8, 66_000, 8),
    },
    "pointwise": {"1x1": _conv(14, 96, 1, 64), "1x1 stride 2": _conv(14, 64, 1, 96, 2)},
    "multiply-adds": {
        "depthwise 3x3": _conv(14, 96, 3, 96, 1, 1, groups=96), "depthwise 5x5 stride 2": _conv(14, 48, 5, 48, 2, 2, groups=48),
        "two outputs a channel": _conv(14, 32, 3, 64, 1, 1, groups=32),
    },
    "native": {
        "grouped 3x3": _conv(14, 64, 3, 64, 1, 1, groups=4), "grouped, grown": _conv(14, 64, 3, 64, 1, 3, groups=2),
        "stem 7x7 stride 2": _conv(56, 3, 7, 32, 2, 3), "stem 7x7 of 300x300": _conv(300, 4, 7, 24, 2, 3),
        "grown": _conv(14, 32, 3, 32, 1, 3),
        "grouped 1-D": ConvForm(2, (20,), 32, (5,), 64, (1,), ((2, 2),), (1,), (1,), 2),
        "dilated": _conv(14, 32, 3, 32, 1, 2, rhs_dilation=(2, 2), groups=2),
    },
    "patches": {
        "3x3": _conv(14, 64, 3, 64, 1, 1), "3x3 stride 2": _conv(28, 32, 3, 64, 2, 1), "grown": _conv(14, 32, 3, 32, 1, 3),
        "transposed": _conv(7, 32, 4, 16, 1, 2, lhs_dilation=(2, 2)), "stem 3x3": _conv(32, 3, 3, 32, 2, 1),
        "1-D": ConvForm(2, (40,), 16, (9,), 32, (1,), ((4, 4),), (1,), (1,)),
        "3-D": ConvForm(1, (6, 6, 6), 8, (3, 3, 3), 16, (1,) * 3, ((1, 1),) * 3, (1,) * 3, (1,) * 3),
    },
    "blocks": {
        "3x3 of 4 images": dataclasses.replace(_conv(14, 64, 3, 64, 1, 1), batch=4),
        "3x3 of 3 large images": dataclasses.replace(_conv(56, 256, 3, 8, 1, 1), batch=3),
    },
    "rows": {
        "3x3": _conv(14, 64, 3, 64, 1, 1), "3x3 of 128x128": _conv(128, 128, 3, 8, 1, 1),
        "grown": _conv(14, 32, 3, 32, 1, 3),
    },
}  # fmt: skip


def selfcheck(*, bar: bool = True, quick: bool = False) -> SelfCheck:
    """Compares every fast form with plain arithmetic on this machine, native regions included where there are any.

    Args:
      bar: Bar the forms that fail (`bar_forms`), so that functions traced afterwards in this process avoid them. Forms that
        were barred before stay barred. With the names in the environment variable JAXQ8_BARRED_FORMS, the next process avoids
        the forms without a check.
      quick: Check only the first case of each form, a third of all cases. `jaxq8 doctor` does so.

    Returns:
      A `SelfCheck`; print it, or read its `.ok` and `.failed`.

    Example:
      >>> assert q8.selfcheck().ok
    """
    most = 1 if quick else None
    checks = (*_contractions(most), *_others(), *_regions(most))
    report = SelfCheck(checks, capability())
    if bar:
        barred.bar_forms(*dict.fromkeys((*barred.barred_forms(), *report.failed)))
    return dataclasses.replace(report, barred=barred.barred_forms())


def _contractions(most: int | None = None) -> Iterator[Check]:
    for entry in select.FORMS:
        for case, form in itertools.islice(CASES[entry.name].items(), most):
            chosen, _refused = select.candidate(form)
            used = chosen is not None and chosen.name == entry.name
            yield _check(entry.name, case, used, lambda e=entry, f=form: _contraction(e, f))  # type: ignore[misc]


def _contraction(entry: select.Candidate, form: Form) -> tuple[Any, Any]:
    x, w = codes(form)
    zero = jnp.int32(77)
    found = jax.jit(lambda x, w, zero: entry.run(form, x, w, zero))(x, w, zero)
    return found, jax.jit(lambda x, w, zero: plain(form, x, w, zero, jnp.int32))(x, w, zero)


def codes(form: Form, dtype: str = "uint8", seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Random operands of a form, an activation of `dtype` and a weight of int8, over the whole range of codes."""
    numbers = np.random.default_rng(seed)
    x_shape: tuple[int, ...]
    w_shape: tuple[int, ...]
    if isinstance(form, DotForm):
        lead = (form.batch,) if form.batch else ()
        x_shape = (*lead, form.m, form.k)
        w_shape = (*lead, form.n, form.k) if form.transposed else (*lead, form.k, form.n)
    else:
        x_shape = (form.batch, *form.spatial, form.c_in)
        w_shape = (*form.kernel, form.c_in // form.groups, form.c_out)
    info = np.iinfo(dtype)
    x = numbers.integers(info.min, info.max + 1, x_shape).astype(dtype)
    return jnp.asarray(x), jnp.asarray(numbers.integers(-127, 128, w_shape), jnp.int8)


def _others() -> Iterator[Check]:
    for name, case, computed in (
        ("max_pool", "3x3 stride 2, padded", lambda: _pooled(pooling.max_pool, jax.lax.max, 0)),
        ("sum_pool", "3x3 stride 2, padded", lambda: _pooled(pooling.sum_pool, jax.lax.add, 9)),
        ("weight_sum", "384x256", _summed),
        ("encode", "one offset for all", lambda: _encoded(np.float32(100.375))),
        ("encode", "an offset a channel", lambda: _encoded(np.arange(64, dtype=np.float32) / 8)),
    ):
        yield _check(name, case, not barred.is_barred(name), computed)


def _regions(most: int | None = None) -> Iterator[Check]:
    """The primitives of native regions, each in a small region; none where native regions are not available."""
    if is_there():
        for case, computed in itertools.islice(region_checks.CASES.items(), most):
            yield _check("region", case, not barred.is_barred("region"), computed)


def _pooled(pool: Any, combine: Any, border: int) -> tuple[Any, Any]:
    x, _ = codes(_conv(14, 32, 1, 1))
    sizes = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    window = dict(zip(("window", "strides", "padding"), sizes, strict=True))
    ones = {"base_dilation": (1,) * 4, "window_dilation": (1,) * 4}
    if pool is pooling.max_pool:
        found = jax.jit(lambda x: pool(x, lowest=border, **window, **ones))(x)
    else:
        found = jax.jit(lambda x: pool(x, jnp.uint8(border), **window, **ones))(x)
    wide = jnp.pad(x.astype(jnp.int32), sizes[2], constant_values=border)
    return found, jax.lax.reduce_window(wide, np.int32(0), combine, sizes[0], sizes[1], "VALID")


def _summed() -> tuple[Any, Any]:
    form = DotForm(0, 1, 384, 256)
    _, w = codes(form)
    return jax.jit(lambda w: weight_sum(form, w))(w), np.sum(np.asarray(w), axis=0, dtype=np.int64)


def _encoded(offset: Any) -> tuple[Any, Any]:
    """Encodes numbers, among them ties, that float32 holds exactly, so that the codes do not depend on what XLA fuses."""
    values = np.arange(-40_000, 24_000, dtype=np.int32).reshape(-1, 64)
    found = jax.jit(
        lambda v: epilogue.encode(v, jnp.float32(1 / 128), jnp.asarray(offset), 0.0, 255.0, jnp.uint8)
    )(values)
    return found, np.clip(np.round(values / 128 + offset), 0, 255)


def _check(form: str, case: str, used: bool, computed: Callable[[], tuple[Any, Any]]) -> Check:
    try:
        found, expected = map(np.asarray, computed())
    except Exception as error:  # a form that XLA does not compile must not be used either
        return Check(form, case, False, used, f"{type(error).__name__}: {str(error).splitlines()[0][:80]}")
    if found.shape != expected.shape:
        return Check(form, case, False, used, f"shape {found.shape}, not {expected.shape}")
    wrong = int(np.sum(found != expected))
    return Check(form, case, not wrong, used, f"{wrong} of {found.size} differ" if wrong else "")
