"""`python -m benchmarks`: every contender on every model, in one process, alternating."""

from __future__ import annotations

import argparse
import gc
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks import machine, measure, memory, report
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.models import DEFAULT, MODELS, ModelUnavailableError

USUAL = tuple(name for name, contender in CONTENDERS.items() if not contender.extra)


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(
                f"unknown: {', '.join(unknown)}; choose among {', '.join(known)}"
            )
        return names

    return parse


def _positive(kind: type) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return value

    return parse


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = options.add_argument
    add(
        "--models",
        type=_names(list(MODELS)),
        default=list(DEFAULT),
        help="comma-separated: " + ", ".join(MODELS),
    )
    add("--batch", type=_batches, default=[1], help="comma-separated batch sizes, such as 1,8")
    add("--contenders", type=_names(list(CONTENDERS)), default=list(USUAL), help=", ".join(CONTENDERS))
    add("--repeats", type=_positive(int), default=10, help="rounds; each runs every contender once")
    add("--seconds", type=_positive(float), default=0.3, help="time for a contender in one round")
    add(
        "--memory",
        action="store_true",
        help="also measure peak memory, each contender in a process of its own",
    )
    add("--out", type=Path, help="a folder for benchmark.md, benchmark.json and benchmark.png")
    add("--memory-child", action="store_true", help=argparse.SUPPRESS)
    return options


def _batches(text: str) -> list[int]:
    sizes = [int(size) for size in text.split(",")]
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"batch sizes must be at least 1, got {text}")
    return sizes


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison and prints it."""
    options = parser().parse_args(arguments)
    if options.memory_child:
        build = lambda: MODELS[options.models[0]](options.batch[0])  # noqa: E731
        peak = memory.measure(build, CONTENDERS[options.contenders[0]])
        print(json.dumps({"peak_bytes": peak}))
        return 0
    command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    facts, notes, rows = machine.describe(), [], []
    print(f"{facts['processor']}, {facts['cores']} cores ({facts['features']})", flush=True)

    def say(note: str) -> None:
        notes.append(note)
        tqdm.write(note)

    contenders = _with_reference(options.contenders)
    for name in options.models:
        for batch in options.batch:
            found = _run(name, batch, contenders, options, say)
            rows += found
            if found:
                print(f"\n{name}, batch {batch}\n{report.model_table(found)}", flush=True)
                _write(options.out, rows, facts, notes, command)
    return 0 if rows else 1


def _with_reference(names: Sequence[str]) -> list[Contender]:
    """The chosen contenders in the table's order, and XLA's float32, which the ratios and errors need."""
    return [contender for name, contender in CONTENDERS.items() if name in names or name == report.FLOAT]


def _run(name: str, batch: int, contenders, options, say) -> list[measure.Row]:  # type: ignore[no-untyped-def]
    try:
        model = MODELS[name](batch)
    except ModelUnavailableError as error:
        say(f"skipped: {name}: {error}")
        return []
    ready = measure.prepare_all(model, contenders, say)
    rows = measure.compare(model, batch, contenders, ready, options.repeats, options.seconds)
    ready.clear()
    gc.collect()
    if options.memory:
        for row in tqdm(rows, desc=f"{name}: memory", leave=False):
            row.peak_bytes = memory.in_child(name, batch, row.contender)
    return rows


def _write(folder: Path | None, rows, facts, notes, command: str) -> None:  # type: ignore[no-untyped-def]
    """After every model, so that an interrupted run keeps what it has."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.md").write_text(report.markdown(rows, facts, notes, command), encoding="utf-8")
    (folder / "benchmark.json").write_text(report.as_json(rows, facts, notes, command), encoding="utf-8")
    report.plot(rows, facts, folder / "benchmark.png")


if __name__ == "__main__":
    sys.exit(main())
