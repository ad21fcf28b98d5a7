"""Hooks of `mkdocs build`: pages that lie beside docs/, links to them, and notebooks.

The sources read well on a git host as they are: links are relative, and CHANGELOG.md lies at the top of the repository. The
site is made of docs/ alone, so these hooks take the top's pages in and let links to them lead there.
"""

from __future__ import annotations

import base64
import mimetypes
import posixpath
import re
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
SHIM = "https://unpkg.com/iframe-worker/shim"
REMOTE = re.compile(
    r"""<(?:script|img|iframe|source|video|link rel="stylesheet")\b[^>]*?(?:src|href)="?(https?://[^\s">]+)"""
)
LINK = re.compile(r"\[([^\[\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")  # text, file and heading


class Notebook(File):
    """A notebook that is a page of the site, with the results that it holds."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of the repository's top folder, and makes pages of notebooks."""
    for path in sorted(ROOT.glob("*.md")):
        if path.name != "README.md":  # docs/index.md is the first page of the site
            text = _with_links(path.read_text("utf-8"), "")
            files.append(File.generated(config, path.name, content=text))
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            files.append(Notebook(file.src_uri, config.docs_dir, config.site_dir, config.use_directory_urls))
    return files


def on_page_read_source(page: Any, config: Any) -> str | None:
    """Turns a notebook into Markdown; other pages are read as they are."""
    if not isinstance(page.file, Notebook):
        return None
    notebook = nbformat.read(page.file.abs_src_path, as_version=4)
    settings = Config({"MarkdownExporter": {"exclude_input_prompt": True, "exclude_output_prompt": True}})
    markdown, resources = MarkdownExporter(config=settings).from_notebook_node(notebook)
    for name, data in resources.get("outputs", {}).items():
        kind = mimetypes.guess_type(name)[0]
        markdown = markdown.replace(f"({name})", f"(data:{kind};base64,{base64.b64encode(data).decode()})")
    return str(markdown)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lets links to the repository's top folder lead to the pages of the site. The first page needs no list of pages."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]
    if page.file.generated_by is None:  # the top's pages have their links already
        markdown = _with_links(markdown, posixpath.join("docs", posixpath.dirname(page.file.src_uri)))
    return _with_entries(markdown) if page.file.src_uri == "api/index.md" else markdown


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Takes the one script that the theme would load from the network from the site instead, and refuses any other."""
    folder = posixpath.dirname(page.url) or "."
    output = output.replace(SHIM, posixpath.relpath("vendor/iframe-worker.js", folder))
    if found := REMOTE.search(output):
        raise PluginError(
            f"{page.file.src_uri}: the page would load {found[1]} from the network; keep a copy in docs/"
        )
    return output


def on_post_template(output: str, **_: Any) -> str:
    """The page for addresses that do not exist loads its script from the top of the site."""
    return output.replace(SHIM, "/vendor/iframe-worker.js")


def _with_entries(markdown: str) -> str:
    """The overview of the reference, in which each name of a table leads to its entry."""
    entries = {
        name
        for path in (ROOT / "docs" / "api").glob("*.md")
        for name in re.findall(r"^::: jaxq8\.(\w+)$", path.read_text("utf-8"), re.MULTILINE)
    }

    def linked(found: re.Match[str]) -> str:
        return f"[{found[0]}][jaxq8.{found[1]}]" if found[1] in entries else found[0]

    rows = [re.sub(r"`(\w+)`", linked, row) if row.startswith("|") else row for row in markdown.splitlines()]
    return "\n".join(rows)


def _with_links(markdown: str, folder: str) -> str:
    """Links between files of the repository as links between pages of the site; of links to code only the text stays.

    Args:
      markdown: The page.
      folder: Where it lies, relative to the top of the repository: "", "docs/howto".
    """

    def moved(found: re.Match[str]) -> str:
        text, link, heading = found[1], found[2], found[3] or ""
        target = posixpath.normpath(posixpath.join(folder, link))
        if target.startswith("docs/"):
            target = target.removeprefix("docs/")
        elif target == "README.md":
            target = "index.md"  # the first page of the site
        elif not (ROOT / target).exists():
            return found[0]  # mkdocs will name it
        elif "/" in target or not target.endswith(".md"):
            return text
        here = folder.removeprefix("docs").strip("/")
        return f"[{text}]({posixpath.relpath(target, here or '.')}{heading})"

    return LINK.sub(moved, markdown)
