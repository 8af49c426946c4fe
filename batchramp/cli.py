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
    from collections.abc import Iterator, Mapping, Sequence

    from batchramp.experiments import Outcome, Run
    from batchramp.theory import Problem

EXAMPLES = """
Examples:

  batchramp plan examples/increasing.toml --measure fashion-mini

  batchramp measure fashion-mini --out problem.toml

  batchramp run examples/increasing.toml --out runs/increasing

  batchramp reproduce figure1 --scale quick --seeds 3 --out runs/figure1

  batchramp decide --scale quick --seeds 10 --out runs/decide

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
    int | None,
    typer.Option("--jobs", help="Processes at a time, one thread each. Default: 1; of Ray, all."),
]
Vectorise = Annotated[
    bool, typer.Option("--vectorise", help="Train runs of one shape together, as one program.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray", metavar="ADDRESS", help="Train on a Ray cluster; its machines must share --out."
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", help="tensorboard, mlflow or wandb, kept in --out; repeatable."),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="FOLDER", help="Of the data sets. Default: BATCHRAMP_DATA."),
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
    vectorise: Vectorise = False,
    ray: Ray = None,
    track: Track = None,
    data: Data = None,
    modules: Import = None,
) -> None:
    """Train what FILE.toml says, once for each of its seeds; continues where it was interrupted.

    Example: batchramp run examples/increasing.toml --out runs/increasing
    """
    _import(modules)
    from batchramp.experiments import from_file

    how = _how(jobs, vectorise, ray, track, data)
    _run_and_report(from_file(file), out or Path("runs") / file.stem, how, as_json)


@app.command()
def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            help="figure1 ... figure12, a11, baselines, all, one of them with -tuning for its lr, "
            "or bounds: theory against measurements."
        ),
    ],
    scale: Annotated[
        str | None, typer.Option(help="How large: paper, small or quick. Default: quick.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="So many seeds. Default: the figure's; 200 of bounds.")
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="Of figure1: all, or main (lr constant and cosine).")
    ] = None,
    small_batch: Annotated[
        int | None, typer.Option("--small-batch", help="The batch called small: 8 or 256.")
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="paper, or released: as the published code has it.")
    ] = None,
    tuned: Annotated[
        Path | None,
        typer.Option("--tuned", metavar="FILE", help="A tuned.json. Default: the one kept here."),
    ] = None,
    out: Out = None,
    jobs: Jobs = None,
    vectorise: Vectorise = False,
    ray: Ray = None,
    track: Track = None,
    data: Data = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1. Default: cpu.")] = None,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Images in that memory format.")
    ] = False,
    autocast: Annotated[
        bool, typer.Option("--autocast", help="Train in bfloat16 where torch allows it.")
    ] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Train through torch.compile.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run an experiment of the paper and write its report; continues where it was interrupted.

    Example: batchramp reproduce figure1 --scale quick --seeds 3 --out runs/figure1
    """
    import inspect
    from dataclasses import replace

    from batchramp.experiments import RECIPES, TUNINGS, bounds, choose_lr

    known = {**RECIPES, **TUNINGS}
    if name not in (*known, "bounds"):
        raise ValueError(f"NAME must be one of {', '.join(known)}, bounds, got {name!r}")
    if seeds is not None and seeds < 1:
        raise ValueError(f"seeds must be an integer >= 1, got {seeds}")
    folder = out or Path("runs") / name
    given = {
        "scale": scale,
        "seeds": None if seeds is None else range(seeds),
        "part": part,
        "small_batch": small_batch,
        "variant": variant,
        "tuned": tuned,
    }
    given = {option: value for option, value in given.items() if value is not None}
    changes = {
        "device": device,
        "channels_last": channels_last,
        "autocast": autocast,
        "compiled": compiled,
    }
    changes = {option: value for option, value in changes.items() if value}
    if name == "bounds":
        used = {"jobs": jobs, "vectorise": vectorise, "ray": ray, "track": track, "data": data}
        used = {option: value for option, value in used.items() if value not in (None, False)}
        _refuse("bounds", {**given, **changes, **used}, ("scale", "seeds"))
        if scale not in (None, "quick"):
            raise ValueError(f"scale must be 'quick' (the only one of bounds), got {scale!r}")
        held = bounds(200 if seeds is None else seeds, out=folder)
        said = json.dumps(held.to_dict(), allow_nan=False) if as_json else "\n".join(held.summary())
        typer.echo(said if as_json else f"{said}\nreport: {folder / 'report.html'}")
        return
    recipe = known[name]
    own = list(inspect.signature(recipe).parameters)
    if name in TUNINGS:
        own.remove("seeds")  # the rule by which lr is chosen fixes them
    _refuse(name, given, own)
    if tuned is not None:
        given["tuned"] = _json_object(tuned)
    how = _how(jobs, vectorise, ray, track, data)
    runs = [replace(run, **changes) for run in recipe(**given)]
    if name not in TUNINGS:
        _run_and_report(runs, folder, how, as_json)
        return
    outcome = _run_all(runs, folder, how, as_json)
    if outcome.errors:
        raise typer.Exit(1)
    from batchramp import store

    chosen = choose_lr(store.read_all(folder))
    path = folder / "tuned.json"
    store.write(path, (json.dumps(chosen, indent=1) + "\n").encode())
    typer.echo(json.dumps(chosen) if as_json else f"lr of every cell: {path}")


@app.command()
def decide(
    scale: Annotated[str, typer.Option(help="How large: paper, small or quick.")] = "quick",
    seeds: Annotated[int, typer.Option(help="So many seeds.")] = 10,
    repeat: Annotated[
        bool, typer.Option("--repeat", help="Once more with as many fresh seeds.")
    ] = False,
    out: Out = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", help="Processes at a time. Default: the cores.")
    ] = None,
    ray: Ray = None,
    track: Track = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Decide the paper's claims by paired runs; with --repeat once more, in the folder OUT-repeat.

    Example: batchramp decide --scale quick --seeds 10 --out runs/decide
    """
    from batchramp import store
    from batchramp.experiments import decisions
    from batchramp.experiments.runner import default_jobs

    if seeds < 1:
        raise ValueError(f"seeds must be an integer >= 1, got {seeds}")
    first = out or Path("runs") / "decide"
    second = first.with_name(f"{first.name}-repeat") if repeat else None
    how = _how(default_jobs() if jobs is None and ray is None else jobs, True, ray, track, data)
    failed = _run_all(decisions.decide(scale, seeds=range(seeds)), first, how, as_json).errors
    if second is not None:
        fresh = decisions.decide(scale, seeds=range(seeds, 2 * seeds))
        failed += _run_all(fresh, second, how, as_json).errors
    from batchramp import report as pages
    from batchramp.report.decisions import conclude

    page = pages.write(first)
    if failed:  # what is missing could decide otherwise
        raise typer.Exit(1)
    conclusion = conclude(first, second)
    said = conclusion.to_dict()
    path = first / "decisions.json"
    store.write(path, (json.dumps(said, indent=1, allow_nan=False) + "\n").encode())
    if as_json:
        typer.echo(json.dumps({"report": str(page), "decisions": said}, allow_nan=False))
    else:
        typer.echo(f"{conclusion}\ndecisions: {path}\nreport: {page}")


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
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also its numbers, as CSV.")
    ] = None,
    as_json: Json = False,
    modules: Import = None,
) -> None:
    """Write one HTML page of figures, numbers and claims from the runs in FOLDER.

    Example: batchramp report runs/figure1
    """
    _import(modules)
    from batchramp import report as pages

    paths = {"report": str(pages.write(folder, out))}
    if csv is not None:
        pages.write_csv(folder, csv)
        paths["csv"] = str(csv)
    typer.echo(json.dumps(paths) if as_json else "\n".join(paths.values()))


def main() -> None:
    """The entry point: what is refused is one line on stderr and exit status 2."""
    try:
        status = app(prog_name="batchramp", standalone_mode=False)
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
    except MemoryError:
        _die("out of memory; what is on disk is whole")
    except KeyboardInterrupt:
        status = _INTERRUPTED
    if status == _INTERRUPTED:  # so typer answers an interrupt
        typer.echo("batchramp: interrupted; the same command continues", err=True)
    sys.exit(status or 0)


def _die(message: str) -> NoReturn:
    _warn(message)
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


def _refuse(name: str, given: "Mapping[str, Any]", allowed: "Sequence[str]") -> None:
    for option in given:
        if option not in allowed:
            dashed = ", ".join(f"--{known.replace('_', '-')}" for known in allowed)
            flag = {"compiled": "compile"}.get(option, option).replace("_", "-")
            raise ValueError(f"--{flag} is not an option of {name}: its own are {dashed}")


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a JSON object, got a {type(content).__name__}")
    return content


def _how(
    jobs: int | None,
    vectorise: bool,
    ray: str | None,
    track: "Sequence[str] | None",
    data: Path | None,
) -> dict[str, Any]:
    """The arguments of `run_all`, the folder of data sets made known to it and its children."""
    if data is not None:
        if not data.is_dir():
            raise ValueError(f"--data must be a folder, got {data}")
        os.environ["BATCHRAMP_DATA"] = str(data.resolve())
    return {"jobs": jobs, "vectorise": vectorise, "ray": ray, "trackers": tuple(track or ())}


def _run_and_report(
    runs: "Sequence[Run]", out: Path, how: "Mapping[str, Any]", as_json: bool
) -> None:
    outcome = _run_all(runs, out, how, as_json)
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


def _run_all(runs: "Sequence[Run]", out: Path, how: "Mapping[str, Any]", quiet: bool) -> "Outcome":
    from batchramp.experiments import run_all
    from batchramp.experiments.runner import joined, keep_freed_for

    keep_freed_for(runs)  # torchrun has this very process train
    first = joined(runs).rank == 0
    if quiet or not first:
        outcome = run_all(runs, out, **how, on_warning=_warn)
    else:
        with _progress(runs) as calls:
            outcome = run_all(runs, out, **how, **calls, on_warning=_warn)
    if not first:  # the first process of torchrun reports for all
        raise typer.Exit(1 if outcome.errors else 0)
    for run, error in outcome.errors:
        _warn(f"{run.title} failed: {error}")
    return outcome


def _warn(message: str) -> None:
    typer.echo(f"batchramp: {' '.join(message.split())}", err=True)


@contextmanager
def _progress(runs: "Sequence[Run]") -> "Iterator[dict[str, Any]]":
    """Bars on a terminal: all runs, each group with its epoch and loss, time left. Else lines."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from batchramp.experiments.runner import title

    console = Console()
    ended = 0
    last: dict[Run, dict[str, Any]] = {}

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    def say(run: "Run", status: str) -> None:
        nonlocal ended
        ended += 1
        summary = _summary(status, last.get(run))
        line(f"[{ended}/{len(runs)}] {run.title}: {status}{summary}")

    def announce(group: "Sequence[Run]") -> None:
        if len(group) > 1:
            line(f"{title(group)} train together")

    if not console.is_terminal:

        def remember(run: "Run", row: dict[str, Any]) -> None:
            last[run] = row

        yield {"on_row": remember, "on_end": say, "on_start": announce}
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
        bar_of: dict[Run, Any] = {}
        left: dict[Any, set[Run]] = {}

        def on_start(group: "Sequence[Run]") -> None:
            for run in group:  # of a group that failed, repeated run by run
                leave(run)
            bar = bars.add_task(title(group), total=sum(map(_epochs, group)), state="")
            left[bar] = set(group)
            bar_of.update(dict.fromkeys(group, bar))

        def leave(run: "Run") -> None:
            bar = bar_of.pop(run, None)
            if bar is not None:
                left[bar].discard(run)
                if not left[bar]:
                    del left[bar]
                    bars.remove_task(bar)

        def on_row(run: "Run", row: dict[str, Any]) -> None:
            new = row["epoch"] - (last[run]["epoch"] if run in last else -1)
            last[run] = row
            bars.advance(overall, new)  # those of an earlier start with the first
            loss = row["train_loss"]
            shown = "not finite" if loss is None else f"{loss:.4g}"
            done = sum(last[other]["epoch"] + 1 for other in left[bar_of[run]] if other in last)
            state = f"epoch {row['epoch'] + 1}/{_epochs(run)}  loss {shown}"
            bars.update(bar_of[run], completed=done, state=state)

        def on_end(run: "Run", status: str) -> None:
            say(run, status)
            done = last[run]["epoch"] + 1 if run in last else 0
            bars.advance(overall, _epochs(run) - done)
            bars.update(overall, state=f"{ended}/{len(runs)} runs")
            leave(run)

        yield {"on_row": on_row, "on_end": on_end, "on_start": on_start}


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
