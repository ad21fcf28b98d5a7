"""`python -m tests.sweep`: runs every case and writes docs/API_SWEEP.md; exits with 1 if one fails."""

import math
import sys
import warnings
from pathlib import Path

import jax
from tqdm import tqdm

from tests.sweep.check import Outcome, check
from tests.sweep.table import CASES, MODULES, excluded

TARGET = Path(__file__).resolve().parents[2] / "docs" / "API_SWEEP.md"
HEAD = """# Every public function

Written by `python -m tests.sweep` with JAX {version}; `tests/test_sweep.py` runs the same checks. Each function is compared
with its float result twice: alone, and applied to a product of eight-bit factors that is exact, so that it meets codes. Where
nothing beside that product is quantized, the result must be the same (every bit where the function has no site at all, else
within float32's rounding); functions with sites of their own must keep 30 dB. Structure, shapes and dtypes must agree.

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
            lines = [line for line in str(error).splitlines() if line.strip()]
            found[str(case)] = f"{type(error).__name__}: {' / '.join(lines[:4])[:300]}"
        if index % 50 == 49:
            jax.clear_caches()
    return found


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
    lines += ["", "## Excluded"]
    for module in MODULES:
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
