"""The choice of the form that runs a contraction. One function, `select`, decides and gives the reason, also for the plan.

The first form of this table that accepts a contraction runs it:

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

AMX, plain AVX2 and Arm use the same table; only the sign of the activation in dots differs (`kernels.processor`). On a Xeon
with AMX, whole models were measured with this table (`python -m benchmarks`, static ranges, batch 1, against XLA's float32):
ResNet-50 4.9x, MobileNetV2 17x, SqueezeNet 3.1x, Inception-v3 3.8x, MiniLM 2.0x, BERT-base 3.0x. Which form is fastest for a
single layer was not measured on AMX (`jaxq8.tune` measures it on any machine). On AVX2 the tests were run, file by file, but
nothing was timed. On Arm nothing was ever run.
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

# A contraction with fewer multiply-adds takes a few microseconds in any type, so that encoding costs more than it saves. The
# multiply-adds are those of one image, so that the choice does not depend on the batch size.
SMALL_MACS = 1 << 14
# A weight with fewer elements gains nothing either (TensorFlow's quantize_weights leaves such weights in float). For products
# with a weight this limit alone decides, for any number of rows, so that a single step of a decoder computes the same as the
# whole sequence.
SMALL_WEIGHT = 1 << 10
PARTS = 256  # for a batch of more images, "blocks" is not timed


@dataclasses.dataclass(frozen=True)
class Choice:
    """The kernel and the form that run a contraction.

    Attributes:
      kernel: "xla", "reference", "simulate" or "float".
      form: Name of the form within the kernel.
      reason: Why this form was chosen.
      refused: ((form, why not), ...) of the forms that come before it in the table.
    """

    kernel: str
    form: str = ""
    reason: str = ""
    refused: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One form of the table.

    Attributes:
      name: Its name.
      obstacle: ``(form) -> reason`` why it does not accept a contraction; None if it does.
      run: ``(form, x, w, x_zero) -> int32 result``.
    """

    name: str
    obstacle: Callable[[Form], str | None]
    run: Callable[..., Any]


def _is_dot(form: Form) -> str | None:
    return None if isinstance(form, DotForm) else "not a dot"


def _is_pointwise(form: Form) -> str | None:
    if isinstance(form, ConvForm) and form.pointwise:
        return None
    return "kernel, borders or groups are not those of a 1x1"


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
    """Every form that can run these shapes on this machine, whatever the table prefers: `jaxq8.tune` times these."""
    if isinstance(form, DotForm):
        names = {"dot"}
    elif form.depthwise:
        names = {"multiply-adds", "native"}
    elif form.groups > 1:
        names = {"native"}
    else:
        names = {"native", "patches", "rows"}
        if form.pointwise:
            names.add("pointwise")
        if not certainly_less(form.batch, 2) and not certainly_less(PARTS, form.batch):
            names.add("blocks")
    if isinstance(form, ConvForm) and (len(form.kernel) > 2 or max(form.c_in, form.c_out) <= 16):
        names -= {"native"}
    return [entry for entry in FORMS if entry.name in names and not is_barred(entry.name)]


def measured(form: Form) -> tuple[Candidate | None, str] | None:
    """The fastest form for these shapes as measured by `jaxq8.tune`, and the times as text; None if nothing was measured.

    The form is None if float was fastest.
    """
    times = tuned.times(form) or {}
    entries = {entry.name: entry for entry in FORMS if not is_barred(entry.name)}
    usable = {name: t for name, t in times.items() if name == "float" or name in entries}
    if not usable:
        return None
    best = min(usable, key=usable.__getitem__)
    text = ", ".join(f"{name} {t:.0f}" for name, t in sorted(usable.items(), key=lambda pair: pair[1]))
    return entries.get(best), f"measured, in microseconds: {text}"


def candidate(form: Form) -> tuple[Candidate | None, tuple[tuple[str, str], ...]]:
    """The form that was measured to be fastest, else the first of the table that accepts; and the forms that refused."""
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
    """The reason why eight bits are not faster than float for this contraction; None if they are."""
    if isinstance(form, DotForm) and form.weight:
        if certainly_less(max(form.batch, 1) * form.k * form.n, SMALL_WEIGHT):
            return f"a weight of only {form.k} x {form.n}"
    else:
        one_image = dataclasses.replace(form, batch=1) if isinstance(form, ConvForm) else form
        if certainly_less(one_image.macs, SMALL_MACS):
            return f"only {one_image.macs} multiply-adds"
    if isinstance(form, DotForm):
        if form.n == 1:
            return "one column: no fast integer kernel"
        if all(certainly_less(n, 8) for n in (form.m, form.k, form.n)):
            return "all sides below 8: no fast integer kernel"
    elif not form.depthwise and form.terms * form.c_out < 64:
        return "too few channels for a fast integer kernel"
    return None


def select(form: Form, policy: str) -> Choice:
    """Chooses kernel and form by a policy: "auto" (float if that is faster), "xla", "native", "reference", "simulate"."""
    if policy == "simulate":
        return Choice("simulate", "float32", "asked for")
    policy = "xla" if policy == "native" else policy  # what is in no native region runs in these forms
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
    reason = best[1] if best is not None and best[0] is entry else f"first of the table for {capability()}"
    return Choice("xla", entry.name, reason, refused)
