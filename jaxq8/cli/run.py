"""``jaxq8 run``: runs a model on many photos, arrays or texts; a run that was stopped can be continued where it was."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import resource
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from jaxq8.cli import native
from jaxq8.cli import options as shared
from jaxq8.cli.inputs import InputError, Item, Read, batches, read_ahead, stacked
from jaxq8.cli.models import Model, fitted
from jaxq8.cli.problems import FAILED, Failure, Misuse
from jaxq8.cli.results import Results, line
from jaxq8.cli.text import note, plain, print_json, show_progress
from jaxq8.replacement import replacement

EPILOG = """\
examples:
  jaxq8 run net.q8x --image photos/ --mean 127 --std 128 --top 5 --labels names.txt --output results.jsonl
  jaxq8 run net.py:Net --params net.q8 --input x.npy --batch 8 --output y.npy
  jaxq8 run bert.q8x --text lines.txt --preprocess bert.py:tokens

Programs are compiled on each start; JAX_COMPILATION_CACHE_DIR=DIR keeps them. The weights of a .q8 with static ranges are
packed for native regions where there are some; --kernels xla or JAXQ8_NATIVE=off switches that off.
"""


def add(commands: Any) -> argparse.ArgumentParser:
    """Declares the command."""
    command: argparse.ArgumentParser = commands.add_parser(
        "run", help="run a model on photos, arrays or texts",
        description="Prints one line of JSON for each input, or writes them to --output: a .jsonl, which a stopped run goes on "
        "with when the same command is given again, or an .npy of all results. Unreadable inputs are skipped, listed at the "
        "end, and make the exit status 1; they are tried again by the next run.",
        epilog=EPILOG,
    )  # fmt: skip
    shared.add_model(command, "FILE.q8x, or MODULE:FUNCTION (with --params, which may be a .q8)")
    shared.add_inputs(command)
    native.add_kernels(command)
    command.add_argument(
        "--output", metavar="OUT", help="results.jsonl or results.npy; default: lines on stdout"
    )
    command.add_argument(
        "--restart", action="store_true", help="begin --output anew instead of going on with it"
    )
    command.add_argument(
        "--top", type=shared.positive, metavar="N", help="only the N largest results, with their indices"
    )
    command.add_argument(
        "--labels", metavar="FILE", help="names of the classes for --top: one a line, or a JSON list"
    )
    shared.add_output_form(command)
    return command


def execute(options: argparse.Namespace) -> int:
    """Runs the command."""
    started = time.monotonic()
    form = _form(options)
    model = native.with_kernels(shared.model_of(options), options.kernels)
    expected = model.exported.inputs if model.exported is not None else ()
    items = shared.reader_of(options, expected).items(shared.files_of(options))
    if not items:
        raise Misuse("no inputs; give --image, --input or --text")
    job = Job(model, expected, _batch(options, expected), form, quiet=options.quiet)
    run = _run_id(options, model, job.batch)
    done: set[str] = set()
    with contextlib.ExitStack() as stack:
        keep = _sink(options, stack, run, done)
        before = len(done & {item.name for item in items})
        with tqdm(
            total=len(items), initial=before, unit="input", disable=not show_progress(options.quiet)
        ) as bar:
            job.process(items, done, lambda entries: (keep(entries), bar.update(len(entries))))
        if options.output and options.output.endswith(".npy"):
            _write_npy(Path(options.output), job)
    _summary(options, job, len(items), before, time.monotonic() - started, started)
    return FAILED if job.failed else 0


Keep = Callable[[list[dict[str, Any]]], Any]


@dataclasses.dataclass
class Job:
    """The work of one run.

    Attributes:
      model: The model.
      expected: Shapes and dtypes of its inputs, if they are known.
      batch: The number of examples in a call; a shorter batch is filled up to it.
      form: A function from the result of one example to the fields of its line.
      failed: (input, reason) for the inputs that were left out.
      kept: The results of all examples so far.
      first: The time of the first result; None before it.
      quiet: Whether to leave out the line about native regions.
      native: That line; "" where there is none.
    """

    model: Model
    expected: Sequence[Any]
    batch: int
    form: Callable[[Any], dict[str, Any]]
    failed: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    kept: list[Any] = dataclasses.field(default_factory=list)
    first: float | None = None
    quiet: bool = False
    native: str = ""
    _call: Callable[..., Any] | None = None

    def process(self, items: Sequence[Item], done: set[str], keep: Keep) -> None:
        """Runs what is not done, batch by batch.

        A batch has the same inputs whether or not the run was stopped before: ranges that are found in the run depend on all
        inputs of a batch, and so do the results.
        """
        unfinished = []
        for group in batches(items, self.batch):
            names = {item.name for item in group}
            if not names <= done:
                unfinished.append(group)
        for read in read_ahead(unfinished):
            good = self._usable(read)
            if good:
                results = self._results(good)
                keep([e for e in results if e["input"] not in done])

    def _usable(self, read: Read) -> list[tuple[Item, Any]]:
        """The inputs that could be read and fit the model; the others are noted in `failed`."""
        good = []
        for item, example in read:
            if isinstance(example, InputError):
                self.failed.append((item.name, str(example)))
                continue
            try:
                stacked([(item.name, example)], self.expected, item.ragged)
            except InputError as error:
                self.failed.append((item.name, str(error)))
                continue
            good.append((item, example))
        return good

    def _results(self, good: list[tuple[Item, Any]]) -> list[dict[str, Any]]:
        named = [(item.name, example) for item, example in good]
        # A short batch is filled up with copies of its first input: this keeps one compiled shape and changes no range.
        padded = [*named, *[named[0]] * (self.batch - len(named))]
        inputs = stacked(padded, self.expected, good[0][0].ragged)
        if self._call is None:
            self._call = self._compiled(inputs)
        outputs = jax.device_get(self._call(*inputs))
        self.first = self.first or time.monotonic()
        _check_rows(outputs, self.batch, self.model.name)
        rows = [jax.tree_util.tree_map(lambda x, i=i: x[i], outputs) for i in range(len(named))]
        self.kept += rows
        return [{"input": name, **self.form(row)} for (name, _), row in zip(named, rows, strict=True)]

    def _compiled(self, inputs: Sequence[Any]) -> Callable[..., Any]:
        """The model's function for inputs like these; the job keeps no weights beside those that it has."""
        model, self.native = native.packed(fitted(self.model, inputs), inputs)
        self.model = dataclasses.replace(self.model, variables=None)
        if self.native and not self.quiet:
            note(f"jaxq8 run: {self.native}")
        return model.runner()


def _check_rows(outputs: Any, batch: int, name: str) -> None:
    for x in jax.tree_util.tree_leaves(outputs):
        if np.ndim(x) == 0 or np.shape(x)[0] != batch:
            raise Failure(
                f"{name}: a result of shape {list(np.shape(x))} has no axis of {batch} examples; `jaxq8 run` needs models that "
                "map examples to results"
            )


def _batch(options: argparse.Namespace, expected: Sequence[Any]) -> int:
    """The number of examples in a call: that of --batch, or the one size that a program was exported for."""
    sizes = {e.shape[0] for e in expected if e.shape and isinstance(e.shape[0], int)}
    if not sizes:
        return int(options.batch)
    fixed = int(sizes.pop())
    if options.batch not in (1, fixed):
        raise Misuse(f"{options.model} was exported for batches of {fixed}; leave out --batch")
    return fixed


def _run_id(options: argparse.Namespace, model: Model, batch: int) -> str:
    """A checksum of everything except the inputs that results depend on."""
    names = ("preprocess", "size", "mean", "std", "channels", "top", "labels", "keyword")
    chosen = [model.identity(), batch, *(getattr(options, name) for name in names)]
    if native.backend(model) != "xla":
        chosen.append(native.backend(model))
    return f"{zlib.crc32(json.dumps(chosen).encode()):08x}"


def _sink(options: argparse.Namespace, stack: contextlib.ExitStack, run: str, done: set[str]) -> Keep:
    """A function that takes the results of a batch; `done` gets the names of the inputs whose results a file has already."""
    if options.output is None:
        return _print_lines
    if options.output.endswith(".npy"):
        return lambda entries: None
    results = Results(Path(options.output), run, options.restart)
    stack.callback(results.close)
    done.update(results.done)
    return results.add


def _print_lines(entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        sys.stdout.write(line(entry))
    if entries:
        sys.stdout.flush()


def _form(options: argparse.Namespace) -> Callable[[Any], dict[str, Any]]:
    """A function from the result of one example to the fields of its line; refuses options that contradict each other."""
    if options.output and not options.output.endswith((".jsonl", ".npy")):
        raise Misuse(f"--output {options.output}: end it in .jsonl (can be resumed) or .npy (one array)")
    if options.json and not options.output:
        raise Misuse("--json summarizes a run with --output; lines on stdout are JSON already")
    if options.labels and not options.top:
        raise Misuse("--labels names the classes of --top; give both")
    if options.top is None:
        return lambda row: {"output": plain(row)}
    labels = shared.class_names(options.labels) if options.labels else None
    return lambda row: {"top": _top(row, options.top, labels)}


def _top(row: Any, count: int, labels: Sequence[str] | None) -> list[dict[str, Any]]:
    """The largest values of a result with their classes and, if given, the names of the classes."""
    leaves = jax.tree_util.tree_leaves(row)
    if len(leaves) != 1 or np.ndim(leaves[0]) != 1:
        raise Misuse("--top needs one vector an input as result; leave it out")
    values = np.asarray(leaves[0])
    if labels is not None and len(labels) != values.size:
        raise Failure(
            f"--labels holds {len(labels)} names, the model has {values.size} classes; one a class is needed"
        )
    order = np.argsort(-values, kind="stable")[:count]
    named = {} if labels is None else {int(i): {"label": labels[i]} for i in order}
    return [{"class": int(i), **named.get(int(i), {}), "value": plain(values[i])} for i in order]


def _write_npy(path: Path, job: Job) -> None:
    """Writes all results as one array, in one step; not if an input failed, since rows would then belong to other inputs."""
    if job.failed:
        return
    if len(jax.tree_util.tree_leaves(job.kept[0])) != 1:
        raise Misuse(f"{path}: the model has several results an input; write a .jsonl")
    data = io.BytesIO()
    np.save(data, np.stack([jax.tree_util.tree_leaves(row)[0] for row in job.kept]))
    try:
        with replacement(path) as temporary:
            Path(temporary).write_bytes(data.getbuffer())
    except OSError as error:
        raise Failure(
            f"{path}: cannot be written ({error}); check that the folder exists and has space"
        ) from error


def peak_memory() -> int:
    """The largest number of bytes that this process had in memory.

    On Linux `getrusage` may give the number of the process that started this one, so it is not used there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _summary(
    options: argparse.Namespace, job: Job, count: int, before: int, seconds: float, started: float
) -> None:
    """Says on stderr what was done, and which inputs were left out for which reasons; prints JSON if that is wanted."""
    for _, reason in job.failed:
        note(f"jaxq8 run: skipped: {reason}")
    found: dict[str, Any] = {
        "output": options.output, "inputs": count, "done_before": before, "done_now": count - before - len(job.failed),
        "failed": [{"input": name, "error": reason} for name, reason in job.failed],
        "seconds": round(seconds, 3), "first_result_seconds": None if job.first is None else round(job.first - started, 3),
        "peak_memory_bytes": peak_memory(), "cores": os.cpu_count(), "native": job.native or None,
    }  # fmt: skip
    if options.json:
        print_json(found)
    if job.failed and options.output and options.output.endswith(".npy"):
        note(
            f"jaxq8 run: {options.output} is not written, as rows would be missing; repair the inputs or write a .jsonl"
        )
    if not options.quiet:
        earlier = f", {before} were done before" if before else ""
        first = "" if job.first is None else f" (first result after {job.first - started:.1f} s)"
        note(f"{found['done_now']} of {count} inputs in {seconds:.1f} s{first}{earlier}, {len(job.failed)} skipped; "
             f"peak memory {found['peak_memory_bytes'] / 1e6:.0f} MB")  # fmt: skip
