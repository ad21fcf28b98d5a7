"""The list of sites on a page: one row for each, which a click opens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxq8.display.html.charts import colour, histogram
from jaxq8.display.html.content import Site
from jaxq8.display.html.markup import Markup, joined, tag
from jaxq8.display.numbers import count, decibels, error_share, share

STATES = {
    "eight": "eight bits",
    "mixed": "weights only",
    "float": "float",
    "plain": "float, no products",
    "": "not known",
}


def site_list(sites: Sequence[Site]) -> Markup:
    """The table of all sites; columns of which nothing is known are left out."""
    columns = [("order", "#"), ("name", "Site"), ("state", "Runs in")]
    shown = {
        "error": ("Error of what it reads", any(s.measured for s in sites)),
        "arithmetic": ("Share of arithmetic", any(s.arithmetic for s in sites)),
        "bytes": ("Share of weight bytes", any(s.bytes for s in sites)),
    }
    columns += [(key, title) for key, (title, known) in shown.items() if known]
    keys = [key for key, _ in columns]
    heads = [
        tag("th", tag("button", title, type="button", data_sort=key), role="columnheader", scope="col",
            class_=f"k-{key}", aria_sort="ascending" if key == "order" else "none")
        for key, title in columns
    ]  # fmt: skip
    scale = _Scale(sites)
    bodies = [_site(index, site, keys, scale) for index, site in enumerate(sites)]
    head = tag("thead", tag("tr", *heads, role="row"), role="rowgroup")
    return tag(
        "table",
        tag("caption", "Sites, in the order in which they run"),
        head,
        *bodies,
        id="sites",
        role="table",
    )


def state(site: Site) -> str:
    """What a site runs in, as text."""
    return STATES[site.group] + (f", region {site.region}" if site.region else "")


class _Scale:
    """The sums and the largest values of all sites, by which bars are drawn."""

    def __init__(self, sites: Sequence[Site]):
        self.arithmetic = [s.arithmetic or 0 for s in sites]
        self.bytes = [s.bytes or 0 for s in sites]
        self.error = max((s.relative_error or 0.0 for s in sites), default=0.0)


def _site(index: int, site: Site, keys: Sequence[str], scale: _Scale) -> Markup:
    """One site: its row, and the row of its details, which the page hides until the site is opened."""
    details = f"details-{index}"
    opener = tag(
        "button", site.name, type="button", class_="open", aria_expanded="true", aria_controls=details
    )
    why = tag("span", site.how, class_="why") if site.group in ("float", "mixed", "plain") else ""
    cells = {
        "order": (index + 1,),
        "name": (opener, "" if site.name.endswith(f":{site.op}") else tag("span", site.op, class_="op")),
        "state": (tag("span", state(site), class_="state"), why),
        "error": _error(site, scale),
        "arithmetic": _part(site.arithmetic, scale.arithmetic),
        "bytes": _part(site.bytes, scale.bytes),
    }
    names = {"error": "error", "arithmetic": "arithmetic", "bytes": "bytes"}
    row = [tag("td", *cells[key], role="cell", class_=f"k-{key}", data_label=names.get(key)) for key in keys]
    known = site.relative_error
    return tag(
        "tbody",
        tag("tr", *row, role="row", class_="site"),
        tag("tr", tag("td", _details(site), role="cell", colspan=len(keys)), role="row", class_="details", id=details),
        id=f"site-{index}", role="rowgroup", class_=colour(site), data_group=site.group, data_region=site.region,
        data_order=index, data_name=site.name, data_state=state(site), data_error=-1 if known is None else f"{known:.9g}",
        data_arithmetic=site.arithmetic or 0, data_bytes=site.bytes or 0,
    )  # fmt: skip


def _error(site: Site, scale: _Scale) -> tuple[Any, ...]:
    if site.measured is None:
        return (tag("span", "not measured", class_="number quiet"),)
    return _bar(site.relative_error or 0.0, scale.error, decibels(site.measured.sqnr_db))


def _part(value: int | None, all_values: Sequence[int]) -> tuple[Any, ...]:
    if not value:
        return (tag("span", "none", class_="number quiet"),)
    return _bar(value, max(all_values), share(value, sum(all_values)))


def _bar(value: float, most: float, text: str) -> tuple[Any, ...]:
    length = 100 * value / most if most else 0
    return tag("span", tag("span", style=f"width:{length:.2f}%"), class_="bar"), tag(
        "span", text, class_="number"
    )


def _details(site: Site) -> Markup:
    """What the opened row of a site says, without what is empty."""
    facts = [("operation", site.op), *((k, v) for k, v in site.facts if v)]
    if site.arithmetic:
        facts.append(("multiply-adds", count(site.arithmetic)))
    plots: tuple[Any, ...] = ()
    if site.measured is not None:
        error = decibels(site.measured.sqnr_db)
        if site.relative_error:
            error += f": {error_share(site.measured.sqnr_db)}"
        facts += [("error of what it reads", error), *site.measured.facts]
        plots = tuple(map(histogram, site.measured.histograms))
    listed = joined(*(tag("div", tag("dt", what), tag("dd", value)) for what, value in facts))
    return tag("div", tag("div", *plots, class_="plots") if plots else "", tag("dl", listed), class_="inside")
