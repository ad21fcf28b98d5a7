"""How docstrings become pages: an extension of griffe, which reads them for the site.

In the sources a docstring says ``Example:`` and names other functions in backquotes, which reads well in an editor and in
`help`. For the site an example becomes the section that griffe knows, with colours, and each public name a link.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

NAME = re.compile(r"(?<![`\w])`(\w+)(\.\w+)?`(?!`)")


class Docstrings(griffe.Extension):
    """Prepares the docstrings of a package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Changes every docstring of the package in place."""
        public = {str(name) for name in pkg.exports or ()}
        self._visit(pkg, public)

    def _visit(self, thing: Any, public: set[str]) -> None:
        if thing.docstring:
            thing.docstring.value = prepared(thing.docstring.value, public - {thing.name})
        for member in thing.members.values():
            if not member.is_alias:
                self._visit(member, public)


def prepared(text: str, public: set[str]) -> str:
    """A docstring with links in its prose and the section ``Examples:``."""

    def linked(found: re.Match[str]) -> str:
        name, attribute = found[1], found[2] or ""
        return f"[`{name}{attribute}`][jaxq8.{name}]" if name in public else found[0]

    # Two colons announce a block of code, as in reStructuredText; Markdown needs the block's indent alone.
    text = text.replace("::\n\n    ", ":\n\n    ")
    prose, heading, example = text.partition("\nExample:\n")
    return NAME.sub(linked, prose) + heading.replace("Example", "Examples") + example
