"""Builds HTML so that text cannot become markup: whatever is no `Markup` is escaped where it is put in."""

from __future__ import annotations

import html
from typing import Any

VOID = {"img", "input"}  # elements of HTML that have no end; those of SVG have one


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escaped(content: Any) -> Markup:
    """The content as HTML: `Markup` as it is, anything else as text that shows exactly these characters."""
    return content if isinstance(content, Markup) else Markup(html.escape(str(content)))


def joined(*parts: Any) -> Markup:
    """Several contents one after the other."""
    return Markup("".join(map(escaped, parts)))


def tag(name: str, *content: Any, **attributes: Any) -> Markup:
    """One element.

    Args:
      name: Its name, such as "td".
      *content: Text or `Markup`.
      **attributes: Its attributes; ``class_`` is class, and other underscores are hyphens. True gives an attribute without
        a value; None and False leave it out.

    Example:
      >>> tag("td", "<script>", class_="name")
      '<td class="name">&lt;script&gt;</td>'
    """
    parts = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        written = key.rstrip("_").replace("_", "-")
        parts.append(f" {written}" if value is True else f' {written}="{html.escape(str(value))}"')
    opening = f"<{name}{''.join(parts)}>"
    return Markup(opening if name in VOID else f"{opening}{joined(*content)}</{name}>")
