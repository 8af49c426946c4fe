"""Runs the comparisons, each in a process of its own, and writes what they found.

    python -m benchmarks [--quick] [--anyway] [--only NAME] [--out FOLDER]

A comparison is a module with a TITLE, a NOTE, and ``cases(size)``, which yields `timing.Case`s; its
sides take turns in its process, or in processes that it starts. What was measured before and is
not measured now stays as it was, with its own date.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine, results
from benchmarks.timing import measure

COMPARISONS = (
    "optimizer_step",
    "input",
    "augmentation",
    "training_step",
    "large_batch",
    "experiment",
    "vectorised",
    "distributed",
    "theory",
    "start",
)
_HERE = Path(__file__).parent
_SECONDS_OF_LOOKING = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="smaller and noisier; a few minutes")
    parser.add_argument(
        "--anyway", action="store_true", help="measure on a busy machine, and say so"
    )
    parser.add_argument("--only", action="append", choices=COMPARISONS, help="repeatable")
    parser.add_argument("--out", type=Path, help="default: benchmarks/, with --quick runs/bench/")
    parser.add_argument(
        "--child", nargs=3, metavar=("NAME", "SIZE", "FILE"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.child:
        name, size, file = arguments.child
        Path(file).write_text(json.dumps(run(name, size)), encoding="utf-8")
        return
    out = arguments.out or (_HERE.parent / "runs" / "bench" if arguments.quick else _HERE)
    out.mkdir(parents=True, exist_ok=True)
    machine.adopt_orphans()
    failed = []
    for name in arguments.only or COMPARISONS:
        busy = look()
        if busy is not None and busy > machine.LIMIT and not arguments.anyway:
            print(
                f"others use {busy:.1f} of {machine.cores()} cores, and {name} would be measured "
                "with them: try again on a quiet machine, or --anyway, which marks the results",
                file=sys.stderr,
            )
            raise SystemExit(2)
        section = in_process(name, "quick" if arguments.quick else "full")
        if section is None:
            failed.append(name)
            continue
        before = results.load(out).get(name)
        results.keep(out, name, section)
        print(results.as_text(section, before), flush=True)
    results.write(out, COMPARISONS)
    print(f"\n{out / 'RESULTS.md'}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def look() -> float | None:
    """Cores that others use, over the next seconds."""
    others = machine.Others()
    time.sleep(_SECONDS_OF_LOOKING)
    return others.cores()


def in_process(name: str, size: str) -> dict[str, Any] | None:
    """A comparison in a process of its own; None if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "section.json"
        others, started = machine.Others(), time.perf_counter()
        command = [sys.executable, "-m", "benchmarks", "--child", name, size, str(file)]
        code = subprocess.run(command, cwd=_HERE.parent, check=False).returncode
        seconds = time.perf_counter() - started
        machine.wait_for_all()
        taken = others.cores()
        if code:
            return None
        section = json.loads(file.read_text(encoding="utf-8"))
    about = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": round(seconds),
        "others": taken,
        "busy": taken is not None and taken > machine.LIMIT,
    }
    return {**section, **about}


def run(name: str, size: str) -> dict[str, Any]:
    """What a comparison finds, in this process."""
    comparison = importlib.import_module(f"benchmarks.{name}")
    cases = [measure(case) for case in comparison.cases(size)]
    return {
        "title": comparison.TITLE,
        "note": " ".join(comparison.NOTE.split()),
        "size": size,
        "wait policy": os.environ.get("OMP_WAIT_POLICY", "the default"),
        "machine": machine.describe(),
        "cases": cases,
    }


if __name__ == "__main__":
    main()
