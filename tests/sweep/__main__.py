"""`python -m tests.sweep`: runs every case and writes docs/API_SWEEP.md; exits with 1 if one fails."""

import math
import re
import sys
import warnings
from pathlib import Path

import jax
from tqdm import tqdm

from tests.sweep import primitives
from tests.sweep.check import Outcome, check
from tests.sweep.table import CASES, MODULES, excluded

TARGET = Path(__file__).resolve().parents[2] / "docs" / "API_SWEEP.md"
HEAD = """# Every public function

Written by `python -m tests.sweep` with JAX {version}; `tests/test_sweep.py` runs the same checks. Each function is compared
with its float result twice: alone, and applied to a product of eight-bit factors that is exact, so that it meets codes. Where
nothing beside that product is quantized, the result must be the same (every bit where the function has no site at all, else
within float32's rounding); functions with sites or eight-bit weights of their own ("eight bits") must keep 30 dB. Structure,
shapes and dtypes must agree. `jax.scipy` stands for its small submodules: ndimage, integrate, fft, interpolate,
spatial.transform, cluster.vq, optimize and sparse.linalg.

| module | functions | alone: unchanged | eight bits | after a product: kept | eight bits | failed | excluded |
|---|---:|---:|---:|---:|---:|---:|---:|
"""


def run() -> dict[str, Outcome | str]:
    """Outcome, or the text of the failure, of every case."""
    found: dict[str, Outcome | str] = {}
    for index, case in enumerate(tqdm(CASES)):
        try:
            found[str(case)] = check(case)
        except Exception as error:
            found[str(case)] = f"{type(error).__name__}: {_told(error)}"
        if index % 50 == 49:
            jax.clear_caches()
    return found


def _told(error: Exception) -> str:
    """The first lines of an error's text, without places on this machine's disk."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"(/[^\s/:]+){2,}", "...", " / ".join(lines[:3]))[:160]


def summary(found: dict[str, Outcome | str]) -> list[str]:
    """The rows of the table."""
    rows = []
    for module in MODULES:
        mine = [found[str(c)] for c in CASES if c.module == module]
        good = [o for o in mine if isinstance(o, Outcome)]
        counts = [len(mine), sum(o.alone <= 0 for o in good), sum(o.alone > 0 for o in good),
                  sum(o.after <= 0 for o in good), sum(o.after > 0 for o in good),
                  len(mine) - len(good), len(excluded(module))]  # fmt: skip
        rows.append(f"| `{module}` | " + " | ".join(map(str, counts)) + " |")
    return rows


def details(found: dict[str, Outcome | str]) -> list[str]:
    """Functions with sites of their own, failures, and exclusions by reason."""
    cell = lambda db: "-" if math.isinf(db) else f"{db:.1f}"  # noqa: E731
    lines = [
        "",
        "## Functions that run in eight bits themselves",
        "",
        "| function | dB alone | dB after a product |",
        "|---|---:|---:|",
    ]
    lines += [f"| `{n}` | {cell(o.sqnr_alone)} | {cell(o.sqnr_after)} |" for n, o in found.items()
              if isinstance(o, Outcome) and (o.alone > 0 or o.after > 0)]  # fmt: skip
    bad = {n: o for n, o in found.items() if isinstance(o, str)}
    lines += (
        ["", "## Failed", "", *(f"- `{n}`: {text}" for n, text in bad.items())]
        if bad
        else ["", "Nothing failed."]
    )
    lines += [*_primitives(), "", "## Excluded"]
    for module in filter(excluded, MODULES):
        reasons: dict[str, list[str]] = {}
        for name, reason in sorted(excluded(module).items()):
            reasons.setdefault(reason, []).append(name)
        lines += [
            "",
            f"`{module}`",
            "",
            *(f"- {reason}: {', '.join(names)}" for reason, names in reasons.items()),
        ]
    return lines


def _primitives() -> list[str]:
    """What the evaluator does with every primitive of JAX, and which of them the functions above are made of."""
    known, run = primitives.public(), primitives.run_by(CASES)
    lines = [
        "",
        "## Primitives",
        "",
        f"JAX gives out {len(known)} primitives. The functions above, traced, hold {len(run & known)} of them and "
        f"{len(run - known)} others. A primitive has a rule, or is entered (its function is evaluated by the same rules), or "
        "falls back: its equation is evaluated in float with all its parameters, whatever it is, and the Plan records it where "
        "codes are decoded for it.",
        "",
    ]
    for kind in ("rule", "entered", "fallback"):
        names = sorted(n for n in known | run if primitives.treatment(n) == kind)
        lines.append(f"- {kind} ({len(names)}): {', '.join(names)}")
    lines += ["", "Not in any of these functions:", ""]
    lines += [f"- {reason}: {', '.join(names.split())}" for reason, names in primitives.NOT_RUN.items()]
    return lines


def main() -> int:
    warnings.simplefilter("ignore")
    found = run()
    TARGET.write_text(
        HEAD.format(version=jax.__version__) + "\n".join([*summary(found), *details(found)]) + "\n"
    )
    failed = {n: o for n, o in found.items() if isinstance(o, str)}
    print(*summary(found), *(f"{n}: {text}" for n, text in failed.items()), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
