"""The drawings of a page, as SVG: histograms with ranges, and the whole net at a glance."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxq8.display.html.content import Histogram, Site
from jaxq8.display.html.markup import Markup, joined, tag

WIDTH, HEIGHT = 640, 150  # of a histogram, in the units of its drawing; the page scales it
COLOURS = 6  # of regions
HALF = 60  # height of each half of the overview


def histogram(found: Histogram) -> Markup:
    """The bins as an area with a logarithmic height, the range of the codes as a band with lines at its ends.

    Bins outside of the band hold values that are clipped.
    """
    low, high = found.span
    left, right = found.range if found.range is not None else found.span
    start, end = min(low, left), max(high, right)
    if not all(map(math.isfinite, (start, end))):
        return tag("p", f"{found.title}: the range is not finite, so it is not drawn.", class_="quiet")
    margin = 0.02 * (end - start) or 1.0
    start, end = start - margin, end + margin

    def at(x: float) -> float:
        return (x - start) / (end - start) * WIDTH

    parts = []
    if found.range is not None:
        parts.append(tag("rect", class_="band", x=_short(at(left)), y=0, height=HEIGHT,
                         width=_short(max(at(right) - at(left), 1))))  # fmt: skip
    parts.append(tag("path", class_="bins", d=_outline(found.counts, at(low), at(high))))
    if found.range is not None:
        ends = (_short(at(left)), _short(at(right)))
        parts += [tag("line", class_="end", x1=x, x2=x, y1=0, y2=HEIGHT) for x in ends]
    values = f"values from {low:.4g} to {high:.4g}"
    codes = f"the codes reach from {left:.4g} to {right:.4g}" if found.range is not None else ""
    drawing = tag("svg", *parts, class_="histogram", role="img", viewBox=f"0 0 {WIDTH} {HEIGHT}", preserveAspectRatio="none",
                  aria_label=f"Histogram of {found.title}: " + "; ".join(filter(None, [values, codes])))  # fmt: skip
    legend = [tag("span", values, class_="key values")]
    if codes:
        legend.append(tag("span", codes, class_="key codes"))
    return tag(
        "figure", tag("figcaption", found.title), drawing, tag("p", *legend, class_="keys"), class_="plot"
    )


def _outline(counts: Sequence[int], left: float, right: float) -> str:
    """The outline of the bins as the path of an SVG drawing."""
    if right - left < 2:  # all values are equal
        left, right = left - 1, right + 1
    most = math.log1p(max(counts, default=0)) or 1.0
    step = (right - left) / max(len(counts), 1)
    parts = [f"M{_short(left)} {HEIGHT}"]
    for i, n in enumerate(counts):
        top = HEIGHT - (HEIGHT - 8) * math.log1p(n) / most
        parts.append(f"L{_short(left + i * step)} {_short(top)}H{_short(left + (i + 1) * step)}")
    return "".join([*parts, f"V{HEIGHT}Z"])


def overview(sites: Sequence[Site], above: Sequence[float], below: Sequence[float], words: str) -> Markup:
    """All sites in program order: a bar upwards and one downwards for each, coloured as in the list.

    Args:
      sites: The sites.
      above: Lengths of the bars upwards, in any unit.
      below: Lengths of the bars downwards.
      words: What the drawing shows, for those who do not see it.
    """
    tallest, deepest = max(above, default=0) or 1, max(below, default=0) or 1
    bars = []
    for i, (site, up, down) in enumerate(zip(sites, above, below, strict=True)):
        rise, fall = HALF * up / tallest, HALF * down / deepest
        bars.append(tag(
            "a", tag("title", site.name),
            tag("rect", class_="reach", x=i, y=0, width=1, height=2 * HALF),
            tag("rect", x=i + 0.1, y=_short(HALF - rise), width=0.8, height=_short(rise)),
            tag("rect", class_="lower", x=i + 0.1, y=HALF, width=0.8, height=_short(fall)),
            href=f"#site-{i}", tabindex=-1, class_=colour(site),
        ))  # fmt: skip
    axis = tag("line", class_="axis", x1=0, x2=len(sites), y1=HALF, y2=HALF)
    return tag("svg", joined(*bars), axis, class_="overview", role="img", aria_label=words,
               viewBox=f"0 0 {max(len(sites), 1)} {2 * HALF}", preserveAspectRatio="none")  # fmt: skip


def colour(site: Site) -> str:
    """The class that colours a site: neighbouring regions differ, and a seventh has the colour of the first."""
    if site.group == "eight":
        return f"c-region{(site.region - 1) % COLOURS}" if site.region else "c-eight"
    return f"c-{site.group or 'unknown'}"


def _short(x: float) -> str:
    return f"{x:.2f}".rstrip("0").rstrip(".")
