"""A plan and a report that are made by hand, for tests of what a page shows of them; nothing is compiled."""

from __future__ import annotations

import math

import jaxq8 as q8
from jaxq8.calibration.error_measures import OutputErrors, SiteErrors

SCRIPT = "<script>alert('site')</script>"
LONG = "params/" + "a" * 300 + "/kernel:conv"  # no place to break a line
SITES = 30


def record(name: str, index: int, **changes) -> q8.SiteRecord:
    facts = {
        "op": "conv", "eight_bit": True, "kernel": "xla: patches", "shapes": "1x8x8x4, 3x3x4x4 -> ...",
        "weights": "s8, 4 scales",
        "macs": 1000 * (index + 1), "reads": "float: an argument" if index in (0, 20) else "codes",
        "weight_bytes": 100 * (SITES - index), "float_bytes": 400 * (SITES - index),
    }  # fmt: skip
    return q8.SiteRecord(name, **{**facts, **changes})


def plan() -> q8.Plan:
    """Thirty sites in two regions.

    The fourth is in float, the fifth has its weights alone in eight bits, the seventh is a sum and the last a pooling.
    """
    sites = [record(f"params/layer_{i}/kernel:conv", i) for i in range(SITES)]
    sites[1] = record(SCRIPT, 1)
    sites[2] = record(LONG, 2)
    held = 400 * (SITES - 3)
    sites[3] = record(
        "params/gate/kernel:conv", 3, eight_bit=False, reason=q8.Reason.OFF, kernel="", weight_bytes=held
    )
    sites[4] = record(
        "params/head/kernel:dot", 4, op="dot", eight_bit=False, reason=q8.Reason.MODE, detail="a & b < c"
    )
    sites[6] = record(
        "block:add",
        6,
        op="add",
        eight_bit=False,
        reason=q8.Reason.NO_RULE,
        kernel="",
        macs=0,
        weight_bytes=0,
        float_bytes=0,
    )
    sites[-1] = record("max_pool", 29, op="max_pool", macs=0, weight_bytes=0, float_bytes=0)
    return q8.Plan(tuple(sites), ("no/such/*",))


def errors(name: str, index: int) -> SiteErrors:
    """The error grows with the index; values reach to 4 on both sides and codes to 3."""
    counts = tuple(max(0, 64 - 2 * abs(i - 32)) ** 2 for i in range(64))
    return SiteErrors(
        60 - index, 0.99, 0.5, 0.1, name, "conv", 0.01, -3.0, 3.0, histogram=counts, span=(-4.0, 4.0)
    )


def report() -> q8.Report:
    """Errors at each site of `plan`, and one at a part of a site that the plan does not list."""
    sites = [errors(site.name, i) for i, site in enumerate(plan().sites)]
    sites.append(errors("params/layer_7/kernel:conv.part0", 40))
    sites[0] = SiteErrors(math.inf, 1.0, 0.0, 0.0, "params/layer_0/kernel:conv", "conv")
    answers = ((1, 1), (2, 0), (0, 0))
    output = OutputErrors(20.0, 0.99, 0.7, 0.1, top1=2 / 3, top5=1.0, examples=3)
    return q8.Report(output, tuple(sites), {}, plan(), answers)
