"""When an evaluation runs in native regions, and why it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxq8._compat import is_varying
from jaxq8.config import Config
from jaxq8.errors import NativeError
from jaxq8.native import library
from jaxq8.numerics.packed_tensor import PackedTensor
from jaxq8.numerics.ranges import Ranges
from jaxq8.plan import Recorder
from jaxq8.plan_native import NOTHING_PACKED
from jaxq8.regions.candidates import AUTOMATIC, EVERY, Limits
from jaxq8.regions.collect import Collected, in_regions
from jaxq8.regions.native_call import is_usable, may_be_usable, why_not_usable
from jaxq8.regions.notes import native_regions


def in_native_regions(
    function: Callable[[Any], Sequence[Any]], inputs: Any, config: Config, recorder: Recorder
) -> list[Any]:
    """``function(inputs)`` with native calls in place of connected eight-bit operations."""

    def record(program: Collected) -> None:
        new = [region for region in native_regions(program) if region not in recorder.native]
        recorder.native = (*recorder.native, *new)

    return in_regions(function, inputs, record, limits_of(config))


def limits_of(config: Config) -> Limits:
    """Which regions are taken: those that are worth their calls, or every one if the configuration asks for native regions."""
    return EVERY if config.kernels == "native" else AUTOMATIC


def runs_natively(config: Config, leaves: Sequence[Any]) -> bool:
    """Whether connected operations may run in native calls: some weights are packed, and programs run on CPU.

    Inside of `jax.shard_map` that is so with ``check_vma=False``, because native calls keep no account of varying axes.

    Raises:
      NativeError: The configuration asks for native regions, and there are none here.
    """
    if _setting_against(config):
        return False
    if config.kernels == "native" and not library.status().available:
        raise NativeError(f"Config(kernels='native'): {library.status().reason}")
    if not _is_packed(leaves) or any(map(is_varying, jax.tree_util.tree_leaves(list(leaves)))):
        return False
    return is_usable()


def why_not_native(config: Config, leaves: Sequence[Any], ranges: Ranges) -> str:
    """Why a function that runs now has no native regions; empty where there is nothing that a user might miss."""
    against = _setting_against(config)
    if not _is_packed(leaves):
        # Only where packing would help: what is known of it without compiling anything.
        return NOTHING_PACKED if ranges and not against and may_be_usable() else ""
    if against:
        return f"Config({against})"
    if not is_usable():
        return why_not_usable()
    return (
        "no two contractions with packed weights are connected by operations that regions have steps for, or there would be "
        f"more than {AUTOMATIC.most} regions, which is slower than XLA's forms"
    )


def _is_packed(leaves: Sequence[Any]) -> bool:
    return any(isinstance(leaf, PackedTensor) for leaf in leaves)


def _setting_against(config: Config) -> str:
    """The setting that keeps a function from running natively, as text."""
    against = [] if config.kernels in ("auto", "native") else [f"kernels={config.kernels!r}"]
    return ", ".join([*against, *([] if config.mode == "eightbit" else [f"mode={config.mode!r}"])])
