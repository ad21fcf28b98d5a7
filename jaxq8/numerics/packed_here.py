"""Whether a packed weight suits this process: a native backend says so, if there is one."""

from __future__ import annotations

from collections.abc import Callable

from jaxq8.numerics.packed_layout import PackedLayout

# (isa, problem, layout) -> whether the kernel for this problem, on this processor, reads exactly this layout.
Accepts = Callable[[str, tuple[int, ...], PackedLayout], bool]


def _nobody(isa: str, problem: tuple[int, ...], layout: PackedLayout) -> bool:
    return False


_accepts: Accepts = _nobody


def set_acceptance(accepts: Accepts | None) -> Accepts:
    """Lets a backend say which packed weights it can read; None: no backend.

    Args:
      accepts: A function of instruction set, problem and layout. What it is asked about may come from a file that anybody
        wrote, so it says yes only if its own library, asked for the layout of the problem, names this one. It raises nothing.

    Returns:
      The function that was there before.
    """
    global _accepts
    before, _accepts = _accepts, accepts or _nobody
    return before


def suits(isa: str, problem: tuple[int, ...], layout: PackedLayout) -> bool:
    """Whether a weight that was packed for this instruction set and problem, into this layout, can be read here as it is."""
    return _accepts(isa, problem, layout)
