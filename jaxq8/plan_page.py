"""What the page of a plan shows: its figures and its list of sites, for `Plan.html` and `Report.html`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxq8.display.html.content import Facts, Figure, Measured, Site
from jaxq8.display.numbers import count, share, size

if TYPE_CHECKING:
    from jaxq8.plan import Plan, SiteRecord


def plan_figures(plan: Plan) -> tuple[Figure, ...]:
    """The large figures about a plan: the shares of arithmetic and of weights in eight bits, and the regions."""
    contractions = [site for site in plan.sites if site.macs]
    eight = sum(site.eight_bit for site in contractions)
    arithmetic = (
        f"{count(plan.macs)} multiply-adds in all; {eight} of {len(contractions)} contractions in eight bits"
    )
    found = (
        [Figure(share(plan.eight_bit_share, 1), "of the arithmetic in eight bits", arithmetic)]
        if plan.macs
        else []
    )
    if plan.float_bytes:
        sizes = f"{size(plan.weight_bytes)} in memory instead of {size(plan.float_bytes)}"
        found.append(Figure(share(plan.encoded_share, 1), "of the weights in eight bits", sizes))
    regions = len(plan.regions)
    if regions:
        note = "between the sites of a region no activation is float"
        found.append(Figure(str(regions), f"eight-bit region{'s' if regions > 1 else ''}", note))
    return tuple(found)


def plan_sites(plan: Plan, measured: Sequence[Measured] = ()) -> tuple[Site, ...]:
    """The rows of the list of sites in program order, each with what was measured at it.

    What was measured under names that the plan does not have, such as the parts of a joined value, follows the site to which
    it belongs, or stands at the end.
    """
    left = {each.name: each for each in measured}
    regions = {name: number for number, names in enumerate(plan.regions, 1) for name in names}
    rows: list[Site] = []
    region = 0
    for record in plan.sites:
        region = regions.get(record.name, region if record.eight_bit else 0)
        rows.append(_row(record, region if record.eight_bit else 0, left.pop(record.name, None)))
        parts = [name for name in left if name.startswith((f"{record.name}.part", f"{record.name}.rhs"))]
        rows += [measured_row(left.pop(name), rows[-1].group, rows[-1].region) for name in parts]
    return (*rows, *map(measured_row, left.values()))


def measured_row(measured: Measured, group: str = "", region: int = 0) -> Site:
    """A row of which nothing is known but what was measured."""
    return Site(measured.name, measured.op, group, region, measured=measured)


def _row(record: SiteRecord, region: int, measured: Measured | None) -> Site:
    in_float = "mixed" if record.encoded else "float" if record.macs else "plain"
    group = "eight" if record.eight_bit else in_float
    held = record.weight_bytes if record.float_bytes else None
    how = record.kernel if record.eight_bit else record.why
    return Site(record.name, record.op, group, region, how, record.macs, held, _facts(record), measured)


def _facts(record: SiteRecord) -> Facts:
    """What the opened row says; rows without a text are left out by the page."""
    held = size(record.weight_bytes) if record.weight_bytes else ""
    held += f" instead of {size(record.float_bytes)} in float" if record.encoded else ""
    facts = [
        ("shapes", record.shapes), ("weights", record.weights), ("activations", record.activations),
        ("range", record.range), ("reads", record.reads), ("joined parts", record.joined),
        ("kernel", record.kernel if record.eight_bit else ""), ("why float", "" if record.eight_bit else record.why),
        ("why this kernel", record.detail if record.eight_bit else ""),
        ("kernels not taken", "; ".join(f"{kernel}: {reason}" for kernel, reason in record.refused)),
        ("source", record.source), ("weight in memory", held),
    ]  # fmt: skip
    return tuple(facts)
