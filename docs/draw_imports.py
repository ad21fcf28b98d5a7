"""Draws docs/imports.svg: the folders of jaxq8 in the order in which they may import each other (``make picture``).

The layers come from the contract in pyproject.toml, the arrows from the imports themselves. An arrow that follows from two
others is left out. The list of arrows is also written into the picture, where ``--check`` compares it with the code.
"""

from __future__ import annotations

import ast
import itertools
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import grimp

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "imports.svg"
WIDTH, HEIGHT, GAP = 3.0, 0.84, 1.3  # of a box with its margin, and from one layer to the next
FREE = 0.4  # the width of a place where an arrow passes a layer
Edge = tuple[str, str]
Point = tuple[float, float]


def layers() -> list[list[str]]:
    """The contract's layers, the highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    contract = next(c for c in settings["contracts"] if c["type"] == "layers")
    return [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]


def imports(names: set[str]) -> set[Edge]:
    """Which folder (or file beside them) imports which."""
    graph = grimp.build_graph("jaxq8", exclude_type_checking_imports=True, cache_dir=None)
    found = set()
    for importer in graph.modules - {"jaxq8"}:
        for imported in graph.find_modules_directly_imported_by(importer) - {"jaxq8"}:
            edge = importer.split(".")[1], imported.split(".")[1]
            if edge[0] != edge[1] and names.issuperset(edge):
                found.add(edge)
    return found


def without_implied(edges: set[Edge]) -> set[Edge]:
    """The edges that no chain of others implies (the transitive reduction)."""
    reached = set(edges)
    while more := {(a, d) for a, b in reached for c, d in reached if b == c} - reached:
        reached |= more
    middles = {n for edge in edges for n in edge}
    return {(a, b) for a, b in edges if not any((a, m) in reached and (m, b) in reached for m in middles)}


def purpose(name: str) -> str:
    """The first sentence of the docstring of a folder or file."""
    path = ROOT / "jaxq8" / name
    text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    return (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0].replace("\n", " ").replace("`", "")


def written(edges: set[Edge]) -> str:
    """The edges as one line of text."""
    return "; ".join(f"{a} imports {b}" for a, b in sorted(edges))


def laid_out(rows: list[list[str]], edges: set[Edge]) -> tuple[dict[Any, Point], list[list[Point]]]:
    """Places of the boxes, and for each arrow the points that it passes.

    An arrow over several layers has a free place in each layer between, so that it runs beside the boxes. Each layer is
    ordered by where its neighbours are, in a few sweeps down and up (Sugiyama, Tagawa and Toda 1981).
    """
    layer = {name: depth for depth, row in enumerate(rows) for name in row}
    chains = [[a, *((a, b, d) for d in range(layer[a] + 1, layer[b])), b] for a, b in sorted(edges)]
    order: list[list[Any]] = [list(row) for row in rows]
    for chain in chains:
        for stop in chain[1:-1]:
            order[stop[2]].append(stop)
    links = [pair for chain in chains for pair in itertools.pairwise(chain)]
    x = {}
    for sweep in range(24):
        down = sweep % 2 == 0
        for row in order if down else reversed(order):
            if sweep:
                near = {
                    n: [x[a] for a, b in links if b == n] if down else [x[b] for a, b in links if a == n]
                    for n in row
                }
                row.sort(key=lambda n: sum(near[n]) / len(near[n]) if near[n] else x[n])
            widths = [WIDTH if isinstance(n, str) else FREE for n in row]
            ends = list(itertools.accumulate(widths))
            x.update(
                {n: end - width / 2 - ends[-1] / 2 for n, end, width in zip(row, ends, widths, strict=True)}
            )
    places = {n: (x[n], -depth * GAP) for depth, row in enumerate(order) for n in row}
    return places, [[places[n] for n in chain] for chain in chains]


def draw(rows: list[list[str]], edges: set[Edge], path: Path) -> None:
    """Writes the picture."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "jaxq8"  # the same picture gives the same file
    places, arrows = laid_out(rows, edges)
    reach = max(abs(x) for x, _ in places.values()) + WIDTH / 2
    figure, axes = pyplot.subplots(figsize=(2 * reach, GAP * len(rows)), layout="constrained")
    for name, (x, y) in places.items():
        if not isinstance(name, str):
            continue
        folder = (ROOT / "jaxq8" / name).is_dir()
        width = WIDTH - 0.2
        axes.add_patch(pyplot.Rectangle((x - width / 2, y - HEIGHT / 2), width, HEIGHT, linewidth=1.2,
                                        facecolor="#e8f0fe" if folder else "#f5f5f5", edgecolor="#44546a"))  # fmt: skip
        axes.text(
            x, y + 0.24, f"{name}/" if folder else f"{name}.py", ha="center", va="center", weight="bold"
        )
        axes.text(x, y - 0.12, textwrap.fill(purpose(name), 46), ha="center", va="center", fontsize=7.5)
    for points in arrows:
        xs = [points[0][0], *(x for x, _ in points[1:-1] for _ in range(2)), points[-1][0]]
        ys = [points[0][1] - HEIGHT / 2, *(y + s * HEIGHT / 2 for _, y in points[1:-1] for s in (1, -1))]
        axes.plot(xs[:-1], ys, color="#5b7083", linewidth=1.1)
        arrow = {"arrowstyle": "-|>", "color": "#5b7083", "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (xs[-1], points[-1][1] + HEIGHT / 2), (xs[-2], ys[-1]), arrowprops=arrow)
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-(len(rows) - 0.5) * GAP, GAP / 2)
    axes.set_axis_off()
    figure.savefig(path, metadata={"Date": None, "Description": written(edges)})
    pyplot.close(figure)


def main() -> int:
    """Draws the picture, or checks it."""
    rows = layers()
    edges = without_implied(imports(set(itertools.chain(*rows))))
    if "--check" in sys.argv:
        if written(edges) in PICTURE.read_text():
            return 0
        print("docs/imports.svg does not show the present imports; run: make picture")
        return 1
    draw(rows, edges, PICTURE)
    print(f"wrote {PICTURE.relative_to(ROOT)}: {len(edges)} arrows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
