"""``python -m tests.programs --cases 500 --seed 1 --jobs 2``: exit status 1 if a program breaks a law."""

from __future__ import annotations

import argparse
import gc
import itertools
import multiprocessing
import os
import sys
import time
from concurrent import futures
from typing import Any

from tests.programs.laws import LAWS
from tests.programs.program import from_json
from tests.programs.search import Found, broken, search
from tests.programs.settings import FLAGS
from tests.programs.trial import Trial

CHUNK = 50
# Garbage collection, as in tests: tracing makes millions of objects, and most are kept.
SELDOM = (100_000, 20, 50)


def apart(count: int, seed: int, **settings: Any) -> Found:
    """`search` in a process of its own: XLA's memory for compiled programs is given back only with the process."""
    context = multiprocessing.get_context("spawn")
    with futures.ProcessPoolExecutor(1, context, gc.set_threshold, SELDOM) as pool:
        try:
            return pool.submit(search, count, seed, **settings).result()
        except futures.process.BrokenProcessPool as error:
            return Found(reports=[f"# seeds {seed} to {seed + count - 1}: {error}\n"])


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m tests.programs", description=__doc__)
    options.add_argument("--cases", type=int, default=200)
    options.add_argument(
        "--seed", type=int, default=0, help="of the first program; each is the seed of its number"
    )
    options.add_argument("--jobs", type=int, default=1, help="processes")
    options.add_argument("--stop-after", type=int, help="end after that many failures")
    options.add_argument("--law", choices=LAWS, action="append", help="check these laws only")
    options.add_argument(
        "--as-drawn", action="store_true", help="print programs as they were drawn, not made small"
    )
    options.add_argument("--program", type=from_json, help="one program, as printed; with --law")
    chosen = options.parse_args(arguments)
    if chosen.program:
        trial = Trial(chosen.program)
        found = [f"{law}: {line}" for law in chosen.law or LAWS for line in broken(trial, law) or ()]
        print("\n".join(found) or "all laws hold")
        return int(bool(found))
    start, total = time.monotonic(), Found()
    settings = {"small": not chosen.as_drawn, "stop_after": chosen.stop_after, "only": chosen.law}
    chunks = [(min(CHUNK, chosen.seed + chosen.cases - s), s)
              for s in range(chosen.seed, chosen.seed + chosen.cases, CHUNK)]  # fmt: skip
    if len(chunks) == 1:
        total = search(*chunks[0], **settings)
        print(*total.reports, sep="\n", end="", flush=True)
    else:
        left, running = iter(chunks), set[futures.Future[Found]]()
        with futures.ThreadPoolExecutor(chosen.jobs) as pool:
            while True:
                enough = chosen.stop_after is not None and len(total.reports) >= chosen.stop_after
                more = [] if enough else itertools.islice(left, chosen.jobs - len(running))
                running |= {pool.submit(apart, *chunk, **settings) for chunk in more}
                if not running:
                    break
                done, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
                for task in done:
                    print(*task.result().reports, sep="\n", end="", flush=True)
                    total.add(task.result())
                text = f"{total.programs} programs of {chosen.cases}, {len(total.reports)} failed"
                print(f"{text}, {time.monotonic() - start:.0f} seconds", file=sys.stderr, flush=True)
    print(f"seeds {chosen.seed} to {chosen.seed + chosen.cases - 1}: {total.summary()}")
    print(f"{time.monotonic() - start:.0f} seconds")
    return int(bool(total.reports))


if __name__ == "__main__":
    # What is not compiled for the laws themselves (calibration, encoding) need not be fast either.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
    gc.set_threshold(*SELDOM)
    sys.exit(main())
