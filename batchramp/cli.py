"""The command line: parses, calls, prints. Nothing else is decided here.

Exit status: 0, or 1 if a run failed, or 2 for a wrong argument, file or folder (one line says
which), or 130 when interrupted.
"""

import importlib
import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batchramp.experiments import Outcome, Run
    from batchramp.theory import Problem

EXAMPLES = """
Examples:

  batchramp plan examples/increasing.toml --measure fashion-mini

  batchramp measure fashion-mini --out problem.toml

  batchramp run examples/increasing.toml --out runs/increasing

  batchramp reproduce figure1 --scale quick --seeds 3 --out runs/figure1

  batchramp report runs/figure1
"""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Batch size, learning rate and momentum scheduled together." + EXAMPLES,
)

# Typer exports no name for it, and where it comes from differs between versions.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_INTERRUPTED = 130

Out = Annotated[Path | None, typer.Option("--out", help="Folder for the runs and the report.")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", help="Runs at a time, one thread each. Default: the cores.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Import = Annotated[
    list[str] | None,
    typer.Option(
        "--import", metavar="MODULE", help="A module of yours that defines schedules in the file."
    ),
]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE.toml", help="The experiment's file.")]


def _version(wanted: bool) -> None:
    if wanted:
        from batchramp import __version__

        typer.echo(f"batchramp {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    file: FileArgument,
    out: Out = None,
    jobs: Jobs = None,
    as_json: Json = False,
    modules: Import = None,
) -> None:
    """Train what FILE.toml says, once for each of its seeds; continues where it was interrupted.

    Example: batchramp run examples/increasing.toml --out runs/increasing
    """
    _import(modules)
    from batchramp.experiments import from_file

    runs = from_file(file)
    _run_and_report(runs, out or Path("runs") / file.stem, jobs, as_json)


@app.command()
def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            help="figure1, figure1-tuning for its lr, or bounds: theory against measurements."
        ),
    ],
    scale: Annotated[str, typer.Option(help="How large: quick.")] = "quick",
    seeds: Annotated[
        int | None, typer.Option(help="So many seeds. Default: 3 of figure1, 200 of bounds.")
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="Of figure1: all, or main (lr constant and cosine).")
    ] = None,
    out: Out = None,
    jobs: Jobs = None,
    as_json: Json = False,
) -> None:
    """Run an experiment of the paper and write its report; continues where it was interrupted.

    Example: batchramp reproduce figure1 --scale quick --seeds 3 --out runs/figure1
    """
    from batchramp.experiments import RECIPES, bounds, choose_lr, figure1, figure1_tuning

    if name not in (*RECIPES, "bounds"):
        raise ValueError(f"NAME must be one of {', '.join(RECIPES)}, bounds, got {name!r}")
    if seeds is not None and seeds < 1:
        raise ValueError(f"seeds must be an integer >= 1, got {seeds}")
    folder = out or Path("runs") / name
    if name == "bounds":
        for option, given in (("--part", part), ("--jobs", jobs)):
            if given is not None:
                raise ValueError(f"{option} is for figure1, got {given}")
        if scale != "quick":
            raise ValueError(f"scale must be 'quick' (the only one so far), got {scale!r}")
        held = bounds(200 if seeds is None else seeds, out=folder)
        said = json.dumps(held.to_dict(), allow_nan=False) if as_json else "\n".join(held.summary())
        typer.echo(said if as_json else f"{said}\nreport: {folder / 'report.html'}")
        return
    if name == "figure1":
        runs = figure1(scale, range(seeds or 3), part=part or "all")
        _run_and_report(runs, folder, jobs, as_json)
        return
    for option, given in (("--seeds", seeds), ("--part", part)):
        if given is not None:
            raise ValueError(f"{option} is for figure1; figure1-tuning is fixed, got {given}")
    outcome = _run_all(figure1_tuning(scale), folder, jobs, as_json)
    if outcome.errors:
        raise typer.Exit(1)
    from batchramp import store

    chosen = choose_lr(store.read_all(folder))
    path = folder / "tuned.json"
    store.write(path, (json.dumps(chosen, indent=1) + "\n").encode())
    typer.echo(json.dumps(chosen) if as_json else f"lr of every cell: {path}")


@app.command()
def plan(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE.toml...", help="A file; several are compared.")
    ],
    n: Annotated[
        int | None, typer.Option("--n", help="Samples. Default: the task's, or the problem file's.")
    ] = None,
    problem: Annotated[
        Path | None,
        typer.Option("--problem", metavar="FILE", help="The problem's constants, as TOML."),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            "--measure", metavar="TASK", help="Measure the constants on the file's TASK instead."
        ),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option("--epsilon", help="How long until the bound on ||gradient||^2 is below it."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", help="Also draw it, a .png, .svg or .pdf file: the bound, else the schedules."
        ),
    ] = None,
    as_json: Json = False,
    modules: Import = None,
) -> None:
    """Show a plan, stage by stage, whether it converges, and how far its bound comes down.

    FILE.toml is an experiment's file or a plan alone.

    Example: batchramp plan examples/increasing.toml --measure fashion-mini --epsilon 0.5
    """
    _import(modules)
    from batchramp.experiments import plan_from_file
    from batchramp.theory import summary

    named = {file.stem if len(files) > 1 else "": plan_from_file(file) for file in files}
    if len(named) < len(files):
        raise ValueError(f"FILE must be files of different names, got {', '.join(map(str, files))}")
    constants, known, note = _constants(problem, measure, files)
    sizes = {size for _, size in named.values() if size is not None}
    samples = n if n is not None else min(sizes) if len(sizes) == 1 else known
    if samples is None:
        missing = "names no task" if len(files) == 1 else "do not share one task"
        raise ValueError(
            f"{', '.join(map(str, files))} {missing}: give the number of samples with --n"
        )
    said = summary(
        {name: schedule for name, (schedule, _) in named.items()},
        samples,
        problem=constants,
        epsilon=epsilon,
        note=note,
    )
    if plot is not None:
        said.figure().savefig(plot, dpi=150)
    if as_json:
        typer.echo(json.dumps(said.to_dict(), allow_nan=False))
    else:
        columns = shutil.get_terminal_size().columns
        typer.echo(said.text(colour=sys.stdout.isatty(), width=min(columns, 110)))
        if plot is not None:
            typer.echo(f"drawn to {plot}")


@app.command()
def measure(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task, such as fashion-mini.")],
    model: Annotated[str, typer.Option(help="Of the task. Default: its usual one.")] = "",
    seed: Annotated[int, typer.Option(help="Of the initial weights.")] = 0,
    samples: Annotated[
        int | None,
        typer.Option("--samples", help="Measure the noise on so many samples. Default: all."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="A file for `plan --problem` to read.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the theorems' constants on TASK where training starts: local estimates.

    Example: batchramp measure fashion-mini --out problem.toml
    """
    from dataclasses import asdict

    from batchramp import store
    from batchramp.experiments import measure_constants, tasks

    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise ValueError(f"--out must be a file in a folder that exists, got {out}")
    found = measure_constants(tasks.load(task, model), seed=seed, samples=samples)
    if out is not None:
        store.write(out, found.to_toml().encode())
    if as_json:
        typer.echo(json.dumps({"note": found.note, "n": found.n, **asdict(found.problem)}))
    else:
        typer.echo(str(found))
        if out is not None:
            typer.echo(f"written to {out}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder of runs.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The page. Default: FOLDER/report.html.")
    ] = None,
    as_json: Json = False,
    modules: Import = None,
) -> None:
    """Write one HTML page of figures, numbers and claims from the runs in FOLDER.

    Example: batchramp report runs/figure1
    """
    _import(modules)
    from batchramp import report as pages

    path = pages.write(folder, out)
    typer.echo(json.dumps({"report": str(path)}) if as_json else str(path))


def main() -> None:
    """The entry point: what is refused is one line on stderr and exit status 2."""
    try:
        status = app(standalone_mode=False)
    except _UsageError as error:
        message = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
        if len(sys.argv) > 1:
            _die(f"{message.rstrip('.')}; see batchramp --help")
        typer.echo(message)  # a bare command: the message is the help
        status = 2
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _die(where + (error.strerror or str(error)))
    except ValueError as error:
        _die(str(error))
    except KeyboardInterrupt:
        status = _INTERRUPTED
    if status == _INTERRUPTED:  # so typer answers an interrupt
        typer.echo("batchramp: interrupted; the same command continues", err=True)
    sys.exit(status or 0)


def _die(message: str) -> NoReturn:
    typer.echo(f"batchramp: {' '.join(message.split())}", err=True)
    sys.exit(2)


def _import(modules: "Sequence[str] | None") -> None:
    if modules:
        sys.path.insert(0, str(Path.cwd()))  # a console script does not look there by itself
    for module in modules or ():
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever that module does
            raise ValueError(f"--import {module}: {type(error).__name__}: {error}") from None


def _constants(
    file: Path | None, task: str | None, plans: "Sequence[Path]"
) -> "tuple[Problem | None, int | None, str]":
    """The problem, its samples and where it comes from, as far as they are given."""
    if file is not None and task is not None:
        raise ValueError(f"--problem and --measure exclude each other, got {file} and {task}")
    if file is not None:
        from batchramp.theory import Problem

        found, n, note = Problem.from_toml(file)
        return found, n, f"problem: {file}{f': {note}' if note else ''}"
    if task is not None:
        from batchramp.experiments import measure_constants, task_from_file, tasks

        trained = {named for path in plans if (named := task_from_file(path)) is not None}
        if any(name != task for name, _ in trained) or len(trained) > 1:
            shown = ", ".join(sorted(f"{name} ({model})" for name, model in trained))
            raise ValueError(f"--measure must be the task of the files, {shown}, got {task!r}")
        measured = measure_constants(tasks.load(task, *(model for _, model in trained)))
        return measured.problem, measured.n, f"problem: {measured.note}"
    return None, None, ""


def _run_and_report(runs: "Sequence[Run]", out: Path, jobs: int | None, as_json: bool) -> None:
    outcome = _run_all(runs, out, jobs, as_json)
    from batchramp import report as pages

    path = pages.write(out)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "report": str(path),
                    "runs": [
                        {"run": str(run.folder), "status": status}
                        for run, status in zip(runs, outcome.statuses, strict=True)
                    ],
                }
            )
        )
    else:
        typer.echo(f"report: {path}")
    if outcome.errors:
        raise typer.Exit(1)


def _run_all(runs: "Sequence[Run]", out: Path, jobs: int | None, quiet: bool) -> "Outcome":
    from batchramp.experiments import run_all

    if quiet:
        outcome = run_all(runs, out, jobs=jobs)
    else:
        with _progress(runs) as (on_row, on_end):
            outcome = run_all(runs, out, jobs=jobs, on_row=on_row, on_end=on_end)
    for run, error in outcome.errors:
        typer.echo(f"batchramp: {run.title} failed: {' '.join(error.split())}", err=True)
    return outcome


@contextmanager
def _progress(runs: "Sequence[Run]") -> "Iterator[tuple[Any, Any]]":
    """Bars on a terminal: all runs, each active run, its epoch and loss, time left. Else lines."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console()
    ended = 0
    last: dict[Run, dict[str, Any]] = {}

    def say(run: "Run", status: str) -> None:
        nonlocal ended
        ended += 1
        console.print(
            f"[{ended}/{len(runs)}] {run.title}: {status}{_summary(status, last.get(run))}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    if not console.is_terminal:

        def remember(run: "Run", row: dict[str, Any]) -> None:
            last[run] = row

        yield remember, say
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[state]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        total = sum(_epochs(run) for run in runs)
        overall = bars.add_task("all runs", total=total, state=f"0/{len(runs)} runs")
        active: dict[Run, Any] = {}

        def on_row(run: "Run", row: dict[str, Any]) -> None:
            last[run] = row
            if run not in active:
                active[run] = bars.add_task(run.title, total=_epochs(run), state="")
                bars.advance(overall, row["epoch"])  # epochs of an earlier start
            loss = row["train_loss"]
            shown = "not finite" if loss is None else f"{loss:.4g}"
            state = f"epoch {row['epoch'] + 1}/{_epochs(run)}  loss {shown}"
            bars.update(active[run], completed=row["epoch"] + 1, state=state)
            bars.advance(overall)

        def on_end(run: "Run", status: str) -> None:
            say(run, status)
            done = last[run]["epoch"] + 1 if run in last else 0
            bars.advance(overall, _epochs(run) - done)
            bars.update(overall, state=f"{ended}/{len(runs)} runs")
            if run in active:
                bars.remove_task(active.pop(run))

        yield on_row, on_end


def _epochs(run: "Run") -> int:
    from batchramp.experiments.tasks import training_samples

    return run.plan.total_epochs(training_samples(run.task))


def _summary(status: str, row: dict[str, Any] | None) -> str:
    if row is None:  # no epoch was trained here
        return "" if status == "failed" else " before"
    parts = []
    if row["test_accuracy"] is not None:
        parts.append(f"test accuracy {row['test_accuracy']:.2f} %")
    if row["min_full_gradient_norm"] is not None:
        loss = row["loss_at_min_norm"]
        beside = "" if loss is None else f" at train loss {loss:.3g}"
        parts.append(f"minimum norm {row['min_full_gradient_norm']:.3g}{beside}")
    parts.append(f"{row['steps']:,} steps, {row['seconds']:.1f} s")
    return ": " + ", ".join(parts)


if __name__ == "__main__":
    main()
