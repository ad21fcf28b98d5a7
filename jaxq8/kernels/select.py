"""The choice of form: one function decides what runs and says why, for execution and explanation alike.

The table, in the order in which it is read (the first form that accepts wins):

=============  ===================================================  ======================================================
form           accepts                                              source
=============  ===================================================  ======================================================
dot            any dot of enough terms, rows and columns            measured on AVX-512 VNNI: 2-4x over float
pointwise      1x1 convolution without borders                      measured on AVX-512 VNNI: 4-5x over float
multiply-adds  depthwise                                            measured: 20-30x over XLA's own depthwise
native         grouped                                              measured on AVX-512 VNNI: 1.5x over float
patches        up to `PATCH_BYTES` of patches                       measured on AVX-512 VNNI: 2-4x over float
blocks         several images that are small enough one by one      measured on AVX-512 VNNI, batch 8: 3-4x over float
rows           larger images                                        measured on AVX-512 VNNI, batch 8: 3-4x over float
=============  ===================================================  ======================================================

On AMX, plain AVX2 and Arm the same table is used; only the sign of the activation in dots differs (`kernels.processor`).
On a Xeon with AMX whole models were measured with it (`python -m benchmarks`, static ranges, batch 1, against XLA's float32):
ResNet-50 4.9x, MobileNetV2 17x, SqueezeNet 3.1x, Inception-v3 3.8x, MiniLM 2.0x, BERT-base 3.0x. Which form is fastest for one
layer was not measured there (`jaxq8.tune` does it). AVX2 ran the tests, file by file, and was not timed; Arm was never run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxq8.kernels import conv, dot, tuned
from jaxq8.kernels.barred import BARRED, is_barred
from jaxq8.kernels.forms import MAXIMUM_TERMS, ConvForm, DotForm, Form
from jaxq8.kernels.processor import capability
from jaxq8.numerics.sizes import certainly_less

# A contraction with fewer multiply-adds takes a few microseconds in any type: encoding costs more than it saves. Counted for
# one image, so that it does not depend on the size of a batch.
SMALL_MACS = 1 << 14
# A matrix with fewer elements gains nothing either (TensorFlow's quantize_weights leaves those in float). It decides alone for
# products with a weight, however many rows: single steps of a decoder compute what the whole sequence does.
SMALL_WEIGHT = 1 << 10
PARTS = 256  # a batch of more images is not timed in blocks of them


@dataclasses.dataclass(frozen=True)
class Choice:
    """What runs a contraction.

    Attributes:
      kernel: "xla", "reference", "simulate" or "float".
      form: Name of the form within the kernel.
      reason: Why this one.
      refused: ((form, why not), ...) of the forms that were looked at before.
    """

    kernel: str
    form: str = ""
    reason: str = ""
    refused: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One form: `obstacle(form)` says why it cannot run (None: it can), `run` runs it."""

    name: str
    obstacle: Callable[[Form], str | None]
    run: Callable[..., Any]


def _is_dot(form: Form) -> str | None:
    return None if isinstance(form, DotForm) else "not a dot"


def _is_pointwise(form: Form) -> str | None:
    return (
        None
        if isinstance(form, ConvForm) and form.pointwise
        else "kernel, borders or groups are not those of a 1x1"
    )


def _is_depthwise(form: Form) -> str | None:
    return None if isinstance(form, ConvForm) and form.depthwise else "not depthwise"


def _suits_native(form: Form) -> str | None:
    if not isinstance(form, ConvForm) or len(form.kernel) > 2:
        return "XLA's integer convolution has two dimensions"
    if max(form.c_in, form.c_out) <= 16:
        return "XLA widens convolutions of at most 16 channels"
    return None if form.groups > 1 else "patches are faster"


def _suits_patches(form: Form) -> str | None:
    if not isinstance(form, ConvForm) or form.groups > 1:
        return "grouped"
    if len(form.kernel) > 1 and conv.many_patches(form):
        return f"{conv.patch_bytes(form) // 2**20} MB of patches"
    return None


def _suits_blocks(form: Form) -> str | None:
    if not isinstance(form, ConvForm) or form.groups > 1:
        return "grouped"
    one = dataclasses.replace(form, batch=1)
    if certainly_less(1, form.batch) and not conv.many_patches(one):
        return None
    return f"{conv.patch_bytes(one) // 2**20} MB of patches for one image"


def _suits_rows(form: Form) -> str | None:
    return None if isinstance(form, ConvForm) and form.groups == 1 else "grouped"


FORMS = (
    Candidate("dot", _is_dot, lambda form, x, w, x_zero: dot.dot(x, w, form.transposed)),
    Candidate("pointwise", _is_pointwise, conv.pointwise),
    Candidate("multiply-adds", _is_depthwise, conv.or_native(conv.multiply_adds)),
    Candidate("native", _suits_native, conv.native),
    Candidate("patches", _suits_patches, conv.or_native(conv.patches)),
    Candidate("blocks", _suits_blocks, conv.or_native(conv.blocks)),
    Candidate("rows", _suits_rows, conv.or_native(conv.rows)),
)


def possible(form: Form) -> list[Candidate]:
    """Every form that can run these shapes here, whether the table prefers it or not: what `jaxq8.tune` times."""
    if isinstance(form, DotForm):
        names = {"dot"}
    elif form.depthwise:
        names = {"multiply-adds", "native"}
    elif form.groups > 1:
        names = {"native"}
    else:
        many = not certainly_less(form.batch, 2) and not certainly_less(PARTS, form.batch)
        names = {"native", "patches", "rows"} | ({"pointwise"} if form.pointwise else set())
        names |= {"blocks"} if many else set()
    if isinstance(form, ConvForm) and (len(form.kernel) > 2 or max(form.c_in, form.c_out) <= 16):
        names -= {"native"}
    return [entry for entry in FORMS if entry.name in names and not is_barred(entry.name)]


def measured(form: Form) -> tuple[Candidate | None, str] | None:
    """What `jaxq8.tune` found fastest for these shapes (None: float) and the times as text; None if it did not measure them."""
    found = tuned.times(form)
    entries = {entry.name: entry for entry in FORMS if not is_barred(entry.name)}
    usable = {name: t for name, t in (found or {}).items() if name == "float" or name in entries}
    if not usable:
        return None
    best = min(usable, key=usable.__getitem__)
    text = ", ".join(f"{name} {t:.0f}" for name, t in sorted(usable.items(), key=lambda pair: pair[1]))
    return entries.get(best), f"measured, in microseconds: {text}"


def candidate(form: Form) -> tuple[Candidate | None, tuple[tuple[str, str], ...]]:
    """The form that was measured to be fastest, or the first of the table that accepts, and those refused before it."""
    best = measured(form)
    if best is not None and best[0] is not None:
        return best[0], ()
    refused: list[tuple[str, str]] = []
    for entry in FORMS:
        obstacle = BARRED if is_barred(entry.name) else entry.obstacle(form)
        if obstacle is None:
            return entry, tuple(refused)
        refused.append((entry.name, obstacle))
    return None, tuple(refused)


def unprofitable(form: Form) -> str | None:
    """Why eight bits do not beat float at this site, or None if they do."""
    if isinstance(form, DotForm) and form.weight:
        if certainly_less(max(form.batch, 1) * form.k * form.n, SMALL_WEIGHT):
            return f"a weight of only {form.k} x {form.n}"
    else:
        one = dataclasses.replace(form, batch=1) if isinstance(form, ConvForm) else form
        if certainly_less(one.macs, SMALL_MACS):
            return f"only {one.macs} multiply-adds"
    if isinstance(form, DotForm):
        if form.n == 1:
            return "one column: no fast integer kernel"
        if all(certainly_less(n, 8) for n in (form.m, form.k, form.n)):
            return "all sides below 8: no fast integer kernel"
    elif not form.depthwise and form.terms * form.c_out < 64:
        return "too few channels for a fast integer kernel"
    return None


def select(form: Form, policy: str) -> Choice:
    """Chooses for a policy: "auto" (float where eight bits do not pay), "xla" (eight bits), "reference", "simulate"."""
    if policy == "simulate":
        return Choice("simulate", "float32", "asked for")
    if form.terms > MAXIMUM_TERMS:
        return Choice("float", reason=f"{form.terms} terms can overflow an int32 accumulator")
    if policy == "reference":
        return Choice("reference", "int32", "asked for")
    best = measured(form)
    if policy == "auto" and best is not None and best[0] is None:
        return Choice("float", reason=best[1])
    if policy == "auto" and best is None and (obstacle := unprofitable(form)):
        return Choice("float", reason=obstacle)
    entry, refused = candidate(form)
    if entry is None:
        if policy == "xla":
            return Choice("reference", "int32", "no fast form accepts it", refused)
        return Choice("float", reason="no fast form accepts it", refused=refused)
    told = best[1] if best is not None and best[0] is entry else f"first of the table for {capability()}"
    return Choice("xla", entry.name, told, refused)
