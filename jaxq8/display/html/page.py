"""Writes a `Page` as one file for a browser."""

from __future__ import annotations

import base64
import collections
import hashlib
import os
import string
from importlib import resources
from pathlib import Path

from jaxq8.display.html.charts import COLOURS, colour, overview
from jaxq8.display.html.content import Figure, Page, Photo, Site
from jaxq8.display.html.markup import Markup, escaped, joined, tag
from jaxq8.display.html.origin import origin
from jaxq8.display.html.site_list import STATES, site_list, state
from jaxq8.errors import ArgumentError
from jaxq8.replacement import replacement


def write_page(who: str, path: str | os.PathLike[str], page: Page) -> None:
    """Writes the page in one step; an existing file is replaced.

    Args:
      who: The function that was called, for errors.
      path: A file in an existing folder.
      page: What the page shows.

    Raises:
      ArgumentError: The file cannot be written.
    """
    target = Path(path)
    data = render(page).encode("utf-8", "replace")  # names of files may hold what is no text
    try:
        if target.is_dir():
            raise IsADirectoryError("it is a folder")
        with replacement(target) as temporary:
            Path(temporary).write_bytes(data)
    except OSError as error:
        raise ArgumentError(
            f"{who}: cannot write {target} ({error.strerror or error}); name a file, such as report.html, in a folder "
            "that exists and is writable"
        ) from error


def render(page: Page) -> str:
    """The text of a page. It names no other file; a policy in its head forbids any script but its own, and the network."""
    files = resources.files("jaxq8.display.html")
    script = files.joinpath("page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = string.Template(files.joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        title=escaped(page.title),
        style=files.joinpath("page.css").read_text(encoding="utf-8"),
        script=script,
        origin=escaped(origin()),
        figures=joined(*map(_figure, page.figures)),
        remarks=joined(*(tag("p", text) for text in page.remarks)),
        photos=_photos(page.photos, page.unshown),
        sites=_sites(page.sites),
    )


def _figure(figure: Figure) -> Markup:
    note = tag("p", figure.note) if figure.note else ""
    return tag("div", tag("strong", figure.value), tag("span", figure.what), note, class_="figure")


def _sites(sites: tuple[Site, ...]) -> Markup:
    if not sites:
        return tag(
            "p", "No sites were measured: only the results of both functions were compared.", class_="quiet"
        )
    return joined(
        tag("h2", "The net at a glance"),
        _at_a_glance(sites),
        tag("h2", "Sites"),
        _tools(sites),
        site_list(sites),
    )


def _at_a_glance(sites: tuple[Site, ...]) -> Markup:
    """The drawing of the whole net, with what it shows and what its colours mean."""
    arithmetic = [float(s.arithmetic or 0) for s in sites]
    held = [float(s.bytes or 0) for s in sites]
    if any(s.measured for s in sites):
        up, above = [s.relative_error or 0.0 for s in sites], "error of what the site reads"
        down, below = (
            (arithmetic, "share of arithmetic") if any(arithmetic) else (held, "share of weight bytes")
        )
    else:
        up, above, down, below = arithmetic, "share of arithmetic", held, "share of weight bytes"
    words = f"A bar for each site in the order in which they run. Upwards: {above}."
    words += f" Downwards: {below}." if any(down) else ""
    return tag(
        "figure", tag("figcaption", words), overview(sites, up, down, words), _legend(sites), class_="glance"
    )


def _legend(sites: tuple[Site, ...]) -> Markup:
    """What the colours mean: an entry for each region if there are few of them, else one for all."""
    regions = max(s.region for s in sites)
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    for site in sites:
        if site.region and regions > COLOURS:
            counts[f"eight bits in {regions} regions, neighbours in other colours", "c-region0"] += 1
        else:
            counts[state(site), colour(site)] += 1
    entries = [
        tag("li", f"{name} ({count} site{'s' if count > 1 else ''})", class_=f"key {shade}")
        for (name, shade), count in counts.items()
    ]
    return tag("ul", *entries, class_="keys")


def _tools(sites: tuple[Site, ...]) -> Markup:
    """The controls above the list. They need the script, so the page shows them only where scripts run."""
    groups = dict.fromkeys(s.group for s in sites)
    regions = dict.fromkeys(s.region for s in sites if s.region)
    options = [tag("option", "all", value="")]
    options += [tag("option", STATES[g], value=f"group:{g}") for g in groups]
    if len(regions) > 1:
        options += [tag("option", f"region {r}", value=f"region:{r}") for r in sorted(regions)]
    orders = [
        ("order", "running order"), ("name", "name"), ("state", "what they run in"), ("error", "error"),
        ("arithmetic", "arithmetic"), ("bytes", "weight bytes"),
    ]  # fmt: skip
    known = {"error": any(s.measured for s in sites), "arithmetic": any(s.arithmetic for s in sites),
             "bytes": any(s.bytes for s in sites)}  # fmt: skip
    sorts = [tag("option", text, value=key) for key, text in orders if known.get(key, True)]
    return tag(
        "form",
        tag("label", "Filter", tag("input", type="search", id="filter", placeholder="name or reason")),
        tag("label", "Group", tag("select", *options, id="group")),
        tag("label", "Sort by", tag("select", *sorts, id="sort")),
        tag("button", "Reverse", type="button", id="reverse"),
        tag("button", "Open all", type="button", id="all", aria_expanded="false"),
        tag("output", f"{len(sites)} sites", id="count", aria_live="polite"),
        class_="tools",
    )  # fmt: skip


def _photos(photos: tuple[Photo, ...], unshown: int) -> Markup:
    if not photos:
        return Markup("")
    shown = []
    for photo in photos:
        said = joined(*(tag("div", tag("dt", who), tag("dd", text)) for who, text in photo.labels))
        verdict = {True: "same answer", False: "another answer", None: ""}[photo.same]
        badge = tag("span", verdict, class_="same" if photo.same else "other") if verdict else ""
        caption = tag("figcaption", tag("span", photo.name, class_="file"), tag("dl", said), badge)
        shown.append(
            tag(
                "figure",
                tag("img", src=photo.source, alt=photo.name),
                caption,
                class_="photo",
            )
        )
    rest = tag("p", f"{unshown} more photos are not shown.", class_="quiet") if unshown else ""
    return joined(tag("h2", "Photos"), tag("div", *shown, class_="photos"), rest)
