"""The command line: what it prints, its exit status, and one line for whatever is refused."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import batchramp
from batchramp import cli, store
from batchramp.experiments import tasks
from batchramp.theory import Problem, best_bound, steps_to

GOOD = """
task = "quadratic"
seeds = [0, 1]
label = "mine"
[plan]
epochs = 3
lr = 0.05
beta = 0.9
gamma = 0.7
batch_size = { kind = "Exponential", start = 32, factor = 2, every = 1 }
"""


class Result(NamedTuple):
    status: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Calls `main` as the console script does, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: Any) -> Result:
        monkeypatch.setattr(sys, "argv", ["batchramp", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, *capsys.readouterr())

    return call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.toml"
    path.write_text(GOOD)
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_package_runs_as_a_module() -> None:
    given = [sys.executable, "-m", "batchramp", "--version"]
    said = subprocess.run(given, capture_output=True, text=True, check=True).stdout
    assert said == f"batchramp {batchramp.__version__}\n"


def test_help_and_version_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from batchramp import cli\n"
        "sys.argv = ['batchramp', *sys.argv[1:]]\n"
        "try:\n    cli.main()\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for given, expected in (("--help", "Examples"), ("--version", batchramp.__version__)):
        done = subprocess.run(
            [sys.executable, "-c", code, given], capture_output=True, text=True, check=True
        )
        assert expected in done.stdout


@pytest.mark.parametrize("command", ["run", "reproduce", "decide", "plan", "measure", "report"])
def test_every_command_s_help_has_an_example(command: str, run: Cli) -> None:
    status, out, err = run(command, "--help")
    assert (status, err) == (0, "")
    assert f"Example: batchramp {command} " in out
    assert f"batchramp {command} " in run("--help").out


def test_a_bare_command_shows_the_help(run: Cli) -> None:
    assert "Usage: batchramp" in run().out


def test_plan_shows_the_stages(run: Cli, file: Path) -> None:
    status, out, err = run("plan", file)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "3 epochs over 256 samples"
    assert "total: 14 steps, 768 samples" in out.splitlines()
    shown = json.loads(run("plan", file, "--json", "--n", "64").out)
    assert shown["total"] == {"steps": 2 + 1 + 1, "samples": 192}
    assert [stage["batch_size"] for stage in shown["stages"]] == [32, 64, 128]
    assert batchramp.Plan.from_dict(shown["plan"]).epochs == 3


PROBLEM = "initial_gap = 5.0\nsmoothness = 2.0\nvariance = 1.0\ngradient_bound = 3.0\n"


def test_plan_says_whether_it_converges(run: Cli, file: Path) -> None:
    out = run("plan", file).out
    assert "Theorem 2: does not tend to 0; O(1/K) + floor" in out
    assert "auxiliary, not in the paper: tends to 0; O(1/K)" in out
    said = json.loads(run("plan", file, "--json").out)
    assert said["verdict"]["auxiliary"]["vanishes"] is True
    assert said["bound"] is None  # no problem, no numbers


def test_plan_with_a_problem_shows_the_bound_by_term(run: Cli, file: Path, tmp_path: Path) -> None:
    (tmp_path / "problem.toml").write_text("n = 1000\n" + PROBLEM)
    arguments = ("plan", file, "--problem", "problem.toml", "--epsilon", 0.5)
    status, out, err = run(*arguments, "--plot", "bound.svg")
    assert (status, err) == (0, "")
    plan = batchramp.Plan.from_dict(tomllib.loads(GOOD)["plan"])
    problem = Problem(5.0, 2.0, 1.0, 3.0)
    best = best_bound(plan, problem, 256)  # n of the file's task, not of the problem's file
    assert f"min E||∇f||² <= {best.value:.4g}" in out
    for said in (
        "A           ",
        "Theorem 4, safe",
        "what would change the best bound most",
        "bound on min",
    ):
        assert said in out
    assert f"{steps_to(0.5, plan, problem, 256).steps:,} steps" in out
    assert "\x1b" not in out
    assert b"<svg" in (tmp_path / "bound.svg").read_bytes()
    said = json.loads(run(*arguments, "--json").out)
    assert said["bound"]["value"] == best.value
    assert said["answer"]["steps"] == steps_to(0.5, plan, problem, 256).steps
    assert "no momentum (gamma=0)" in said["changes"]


def test_two_plans_are_compared(run: Cli, file: Path, tmp_path: Path) -> None:
    (tmp_path / "problem.toml").write_text(PROBLEM)
    (tmp_path / "other.toml").write_text(GOOD.replace("lr = 0.05", "lr = 0.1"))
    out = run("plan", file, "other.toml", "--problem", "problem.toml").out
    assert "== file ==" in out
    assert "== other ==" in out
    assert "all cut to the least of (* the best)" in out
    assert (
        run("plan", file, "other.toml", "--problem", "problem.toml", "--plot", "a.svg").status == 0
    )
    said = json.loads(run("plan", file, "other.toml", "--problem", "problem.toml", "--json").out)
    assert set(said["comparison"]["values"]["epochs"]) == {"file", "other"}


def test_a_plan_of_the_batch_size_alone_is_shown_and_not_judged(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("epochs = 3\nbatch_size = 8\nlr = 0.1")
    out = run("plan", "plan.toml", "--n", 100).out
    assert "the plan leaves beta, gamma to the optimizer" in out


def test_what_is_measured_is_read_by_plan(run: Cli, file: Path, tmp_path: Path) -> None:
    status, out, err = run("measure", "quadratic", "--out", "problem.toml")
    assert (status, err) == (0, "")
    assert "variance of a sample's gradient   1\n" in out
    assert "Local estimates" in out
    problem, n, note = Problem.from_toml(tmp_path / "problem.toml")
    assert (problem, n) == (tasks.load("quadratic").problem, 256)
    assert json.loads(run("measure", "quadratic", "--json").out)["smoothness"] == 2.0
    assert note.startswith("constants known to hold everywhere")
    by_file = run("plan", file, "--problem", "problem.toml").out.splitlines()
    measured = run("plan", file, "--measure", "quadratic").out.splitlines()
    assert measured[1:] == by_file[1:]
    assert measured[0] == f"problem: {note}"
    assert by_file[0] == f"problem: problem.toml: {note}"


def test_bounds_are_reproduced(run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import batchramp.experiments as experiments

    real = experiments.bounds
    monkeypatch.setattr(experiments, "bounds", lambda seeds, out: real(seeds, 20, out))
    status, out, err = run("reproduce", "bounds", "--seeds", 3, "--out", "held")
    assert (status, err) == (0, "")
    assert "0 violations" in out
    assert (tmp_path / "held" / "report.html").exists()


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the recipe of figure1 by one of tiny runs. What it was called with."""
    import batchramp.experiments as experiments

    called: list[dict[str, Any]] = []

    def tiny(
        scale: str = "quick",
        seeds: Any = range(2),
        *,
        small_batch: int = 8,
        variant: str = "paper",
        tuned: Any = None,
    ) -> list[experiments.Run]:
        called.append({"scale": scale, "seeds": seeds, "small_batch": small_batch,
                       "variant": variant, "tuned": tuned})  # fmt: skip
        plan = batchramp.Plan(epochs=2, batch_size=64, lr=0.05, beta=0.9, gamma=0.7)
        return [experiments.Run("tiny", plan, "quadratic", seed) for seed in seeds]

    monkeypatch.setitem(experiments.RECIPES, "figure1", tiny)
    return called


def test_a_figure_s_options_reach_its_recipe_and_its_runs(
    run: Cli, recipes: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHRAMP_DATA", "")  # put back afterwards
    (tmp_path / "tuned.json").write_text('{"rule": "mine"}')
    status, _, err = run(
        "reproduce", "figure1", "--scale", "small", "--seeds", 3, "--small-batch", 256,
        "--variant", "released", "--tuned", "tuned.json", "--data", tmp_path, "--autocast",
        "--jobs", 1,
    )  # fmt: skip
    assert (status, err) == (0, "")
    assert recipes == [{"scale": "small", "seeds": range(3), "small_batch": 256,
                        "variant": "released", "tuned": {"rule": "mine"}}]  # fmt: skip
    records = store.read_all(tmp_path / "runs" / "figure1")
    assert [(r.seed, r.status, dict(r.options)) for r in records] == [
        (seed, "finished", {"autocast": True}) for seed in range(3)
    ]
    assert os.environ["BATCHRAMP_DATA"] == str(tmp_path)


def test_runs_that_train_together_are_said_to(
    run: Cli, recipes: list[dict[str, Any]], tmp_path: Path
) -> None:
    status, out, err = run("reproduce", "figure1", "--vectorise", "--jobs", 1)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == "tiny / 2 seeds: 2 runs train together"
    assert recipes == [{"scale": "quick", "seeds": range(2), "small_batch": 8, "variant": "paper",
                        "tuned": None}]  # fmt: skip
    assert [r.status for r in store.read_all(tmp_path / "runs" / "figure1")] == ["finished"] * 2


@pytest.mark.parametrize("members", [1, 80])
def test_the_progress_of_a_terminal_is_one_bar_a_group(
    members: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from batchramp.experiments import Run

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    plan = batchramp.Plan(epochs=2, batch_size=64, lr=0.05, beta=0.9, gamma=0.7)
    runs = [Run("x", plan, "quadratic", seed) for seed in range(members)]
    row = {"train_loss": 0.5, "test_accuracy": None, "min_full_gradient_norm": None,
           "steps": 4, "seconds": 1.0}  # fmt: skip
    with cli._progress(runs) as calls:
        calls["on_start"](runs)
        for epoch in range(2):
            for one in runs:
                calls["on_row"](one, {**row, "epoch": epoch})
        calls["on_start"](runs[:1])  # repeated alone
        calls["on_row"](runs[0], {**row, "epoch": 1})
        for one in runs:
            calls["on_end"](one, "finished")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out).splitlines()
    last = next(line for line in reversed(lines) if line.startswith("all runs"))
    assert f"{members}/{members} runs" in last
    together = [line for line in lines if line.startswith(f"x / {members} seeds: {members} runs ")]
    assert bool(together) == (members > 1)
    assert sum(": finished" in line for line in lines) == members


def test_decisions_are_run_concluded_and_repeated(
    run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchramp.experiments import Run, decisions
    from batchramp.report import decisions as conclusions

    plan = batchramp.Plan(epochs=2, batch_size=64, lr=0.05, beta=0.9, gamma=0.7)

    def decide(scale: str, seeds: Any) -> list[Run]:
        return [Run("x", plan, "quadratic", seed, experiment=scale) for seed in seeds]

    class Conclusion:
        def __init__(self, folder: Path, repeated: Path | None) -> None:
            folders = [folder] if repeated is None else [folder, repeated]
            self.seeds = [[record.seed for record in store.read_all(path)] for path in folders]

        def to_dict(self) -> dict[str, Any]:
            return {"seeds": self.seeds}

        def __str__(self) -> str:
            return f"seeds {self.seeds}"

    monkeypatch.setattr(decisions, "decide", decide)
    monkeypatch.setattr(conclusions, "conclude", Conclusion)
    status, out, err = run("decide", "--seeds", 2, "--out", "d", "--jobs", 1)
    assert (status, err) == (0, "")
    assert "\nseeds [[0, 1]]\n" in out
    assert json.loads((tmp_path / "d" / "decisions.json").read_text()) == {"seeds": [[0, 1]]}
    said = json.loads(run("decide", "--seeds", 2, "--out", "d", "--repeat", "--json").out)
    assert said["decisions"] == {"seeds": [[0, 1], [2, 3]]}
    assert [r.seed for r in store.read_all(tmp_path / "d-repeat")] == [2, 3]


def test_plan_draws(run: Cli, file: Path, tmp_path: Path) -> None:
    assert run("plan", file, "--plot", tmp_path / "plan.png").status == 0
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_run_trains_and_reports_and_a_second_time_only_reports(
    run: Cli, file: Path, tmp_path: Path
) -> None:
    status, out, err = run("run", file, "--jobs", 1)
    assert (status, err) == (0, "")
    lines = out.splitlines()  # plain lines, as this is no terminal
    assert sorted(line.split("] ")[1].split(": minimum")[0] for line in lines[:2]) == [
        "mine / seed 0: finished", "mine / seed 1: finished",
    ]  # fmt: skip
    assert lines[2] == f"report: {Path('runs') / 'file' / 'report.html'}"
    assert "\x1b" not in out
    records = store.read_all(tmp_path / "runs" / "file")
    assert [(r.seed, r.status, len(r.rows)) for r in records] == [
        (0, "finished", 3), (1, "finished", 3),
    ]  # fmt: skip
    assert "<html" in (tmp_path / "runs" / "file" / "report.html").read_text()

    out = run("run", file, "--json").out
    assert json.loads(out)["runs"] == [
        {"run": "mine/seed-0", "status": "finished"}, {"run": "mine/seed-1", "status": "finished"},
    ]  # fmt: skip
    assert "finished before" in run("run", file).out
    assert json.loads(run("report", tmp_path / "runs", "--csv", "a.csv", "--json").out) == {
        "report": str(tmp_path / "runs" / "report.html"), "csv": "a.csv",
    }  # fmt: skip
    assert len((tmp_path / "a.csv").read_text().splitlines()) > 1


def test_a_failed_run_is_one_line_and_exit_status_1(run: Cli, file: Path, tmp_path: Path) -> None:
    assert run("run", file, "--out", "out").status == 0
    folder = tmp_path / "out" / "mine" / "seed-0"
    store.finish(folder, "running")
    newest, before = (folder / name for name in store.CHECKPOINTS)
    newest.write_bytes(b"")
    status, out, err = run("run", file, "--out", "out")
    assert (status, err.count("\n")) == (0, 1)  # it goes on from the one before, and says so
    assert err.startswith("batchramp: mine / seed 0: checkpoint")
    assert "goes on from checkpoint.previous.pt" in err
    store.finish(folder, "running")
    newest.write_bytes(b"")
    before.unlink()
    status, out, err = run("run", file, "--out", "out")
    assert status == 1
    assert "mine / seed 0: failed\n" in out
    assert err.startswith("batchramp: mine / seed 0 failed: ValueError: checkpoint")
    assert err.count("\n") == 1
    status, out, _ = run("run", file, "--out", "out", "--json")
    assert status == 1
    assert json.loads(out)["runs"][0] == {"run": "mine/seed-0", "status": "failed"}


def test_out_of_memory_is_one_line(
    run: Cli, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(path: Path) -> None:
        raise MemoryError

    monkeypatch.setattr("batchramp.experiments.from_file", full)
    before = snapshot(tmp_path)
    said = "batchramp: out of memory; what is on disk is whole\n"
    assert run("run", file) == Result(2, "", said)
    assert snapshot(tmp_path) == before


def replaced(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("arguments", "text", "said"),
    [
        ((), replaced("start = 32", "start = -1"), "batch_size: start must be"),
        ((), replaced("factor = 2", "factor = 0.5"), "factor must be"),
        ((), replaced("beta = 0.9", "beta = 1"), "beta must be in [0, 1), got 1"),
        ((), replaced("gamma = 0.7", "gamma = 1.2"), "gamma must be in [0, 1], got 1.2"),
        ((), replaced("lr = 0.05", "lr = nan"), "lr must be"),
        ((), replaced("epochs = 3", "epochs = 3\nsteps = 3"), "exactly one of epochs, steps"),
        ((), replaced("quadratic", "cubic"), "task must be one of"),
        ((), GOOD + '[optimizer]\nkind = "Lion"', "optimizer must be one of"),
        ((), GOOD + "[optimizer]\nnu = 0.7", "optimizer.nu is not an option of QHM: allowed are"),
        ((), GOOD + "[optimizer]\nlr = 0.7", "lr is scheduled by the plan"),
        ((), "task =", "is not TOML"),
        (("--jobs", 0), GOOD, "jobs must be an integer >= 1, got 0"),
        (("--jobs", "many"), GOOD, "--jobs"),
        (("--job", 1), GOOD, "No such option: --job"),
        (("--out", "file.toml"), GOOD, "file.toml"),
        (("--out", "file.toml/below"), GOOD, "file.toml/below"),
        (("--import", "no_such_module"), GOOD, "--import no_such_module: ModuleNotFoundError"),
        (("--import", "broken"), GOOD, "--import broken: SyntaxError"),
    ],
    ids=str,
)
def test_what_run_refuses_is_one_line_and_exit_status_2(
    arguments: tuple[Any, ...], text: str, said: str, run: Cli, file: Path, tmp_path: Path
) -> None:
    file.write_text(text)
    (tmp_path / "broken.py").write_text("def")
    before = snapshot(tmp_path)
    status, out, err = run("run", file, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("batchramp: ")
    assert err.count("\n") == 1
    assert said in err
    after = {path: content for path, content in snapshot(tmp_path).items() if ".pyc" not in path}
    assert after == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("frobnicate",), "No such command 'frobnicate'"),
        (("run",), "Missing argument 'FILE.toml'"),
        (("run", "none.toml"), "none.toml: No such file or directory"),
        (("plan", "."), "Is a directory"),
        (("plan", "file.toml", "--n", 0), "n must be"),
        (("plan", "plan.toml"), "plan.toml names no task: give the number of samples with --n"),
        (("plan", "file.toml", "--plot", "a.xyz"), "xyz"),
        (("plan", "file.toml", "--plot", "nowhere/a.png"), "nowhere/a.png: No such file"),
        (("plan", "file.toml", "file.toml"), "FILE must be files of different names"),
        (("plan", "file.toml", "--epsilon", 1), "epsilon 1.0 is of a bound, which needs a problem"),
        (("plan", "file.toml", "--problem", "none.toml"), "none.toml: No such file"),
        (("plan", "file.toml", "--problem", "plan.toml"), "plan.toml: epochs is not a constant"),
        (("plan", "file.toml", "--problem", "bad.toml"), "bad.toml: gradient_bound is missing"),
        (
            ("plan", "file.toml", "plan.toml", "--n", 9, "--plot", "a.svg"),
            "plans must be 1 to be drawn",
        ),
        (
            ("plan", "file.toml", "--measure", "fashion-mini"),
            "must be the task of the files, quadratic",
        ),
        (
            ("measure", "quadratic", "--out", "none/x.toml"),
            "--out must be a file in a folder that exists",
        ),
        (("reproduce", "bounds", "--scale", "full"), "scale must be 'quick'"),
        (("reproduce", "bounds", "--jobs", 2), "--jobs is not an option of bounds: its own are"),
        (("reproduce", "bounds", "--compile"), "--compile is not an option of bounds"),
        (("plan", "file.toml", "--problem", "a", "--measure", "b"), "exclude each other"),
        (("plan", "plan.toml", "--measure", "mnist"), "task must be one of"),
        (("plan", "file.toml", "--problem", "n.toml", "--epsilon", 0), "epsilon must be"),
        (("measure", "mnist"), "task must be one of fashion-mini"),
        (("measure", "quadratic", "--model", "mlp"), "model of task quadratic must be one of"),
        (("measure", "quadratic", "--seed", -1), "seed must be an integer >= 0"),
        (("measure", "quadratic", "--samples", 1), "samples must be an integer >= 2"),
        (("reproduce", "bounds", "--seeds", 1), "seeds must be an integer >= 2, got 1"),
        (("reproduce", "bounds", "--part", "all"), "--part is not an option of bounds"),
        (
            ("reproduce", "figure99"),
            "baselines-tuning, decide-tuning, trade-decay-tuning, bounds, got 'figure99'",
        ),
        (("reproduce", "figure1", "--data", "nowhere"), "--data must be a folder, got nowhere"),
        (("reproduce", "figure1", "--tuned", "bad.toml"), "bad.toml is not JSON"),
        (
            ("reproduce", "figure1", "--tuned", "list.json"),
            "list.json must be a JSON object, got a list",
        ),
        (("reproduce", "figure1", "--device", "tpu"), "device must be cpu or cuda"),
        (
            ("reproduce", "figure1", "--track", "paper"),
            "tracker must be one of tensorboard, mlflow",
        ),
        (
            ("reproduce", "figure3", "--part", "main"),
            "--part is not an option of figure3: its own are --scale, --seeds, --variant, --tuned",
        ),
        (
            ("reproduce", "figure8", "--tuned", "list.json"),
            "--tuned is not an option of figure8: its own are --scale, --seeds, --variant",
        ),
        (
            ("reproduce", "a11", "--small-batch", 8),
            "--small-batch is not an option of a11: its own are --scale, --seeds, --variant, --tun",
        ),
        (("run", "file.toml", "--data", "nowhere"), "--data must be a folder, got nowhere"),
        (("decide", "--seeds", 0), "seeds must be an integer >= 1, got 0"),
        (("decide", "--scale", "full"), "scale must be"),
        (("reproduce", "figure1", "--seeds", 0), "seeds must be an integer >= 1, got 0"),
        (("reproduce", "figure1", "--seeds", -3), "seeds must be an integer >= 1, got -3"),
        (("reproduce", "figure1", "--scale", "full"), "scale must be"),
        (("reproduce", "figure1", "--part", "half"), "part must be 'all' or 'main', got 'half'"),
        (
            ("reproduce", "figure1-tuning", "--seeds", 2),
            "--seeds is not an option of figure1-tuning",
        ),
        (("reproduce", "figure1-tuning", "--part", "all"), "its own are --scale"),
        (("report", "nowhere"), "folder nowhere does not exist"),
        (("report", "empty"), "folder empty holds no run"),
        (("report", "half"), "half/run.json is damaged"),
    ],
    ids=str,
)
def test_what_is_refused_is_one_line_and_exit_status_2(
    arguments: tuple[Any, ...], said: str, run: Cli, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "plan.toml").write_text("epochs = 3\nbatch_size = 8")
    (tmp_path / "n.toml").write_text("n = 100\n" + PROBLEM)
    (tmp_path / "bad.toml").write_text(PROBLEM.replace("gradient_bound = 3.0", ""))
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "run.json").write_text('{"format": 1, "status"')
    before = snapshot(tmp_path)
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("batchramp: ")
    assert err.count("\n") == 1
    assert said in err
    assert snapshot(tmp_path) == before


def test_another_plan_or_seed_in_the_folder_of_a_run_is_refused(
    run: Cli, file: Path, tmp_path: Path
) -> None:
    assert run("run", file, "--out", "out").status == 0
    before = snapshot(tmp_path / "out")
    file.write_text(replaced("epochs = 3", "epochs = 4"))
    status, out, err = run("run", file, "--out", "out")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "plan differs from that of the run in out/mine/seed-0" in err
    assert snapshot(tmp_path / "out") == before


SAWTOOTH = """
from dataclasses import dataclass
from batchramp.schedules import Schedule

@dataclass(frozen=True)
class SawtoothOfTheTest(Schedule):
    low: int
    high: int

    def __call__(self, tick, horizon, /):
        return self.high if tick % 2 else self.low
"""


def test_a_schedule_of_one_s_own_is_trained_and_reported(
    run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(SAWTOOTH)
    (tmp_path / "file.toml").write_text(
        replaced('"Exponential", start = 32, factor = 2, every = 1', '"SawtoothOfTheTest", '
                 "low = 16, high = 64")
    )  # fmt: skip
    status, _, err = run("run", "file.toml", "--json", "--import", "mine")
    assert (status, err) == (0, "")
    for path in (tmp_path / "runs").rglob("epochs.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["batch_size"] for row in rows] == [16, 64, 16]
    done = subprocess.run(  # where nobody has imported it
        [sys.executable, "-m", "batchramp.cli", "report", "runs"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(batchramp.__file__).parent.parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "'SawtoothOfTheTest'; --import names a module of yours" in done.stderr


@pytest.mark.slow
def test_an_interrupt_says_that_the_same_command_continues(file: Path, tmp_path: Path) -> None:
    file.write_text(replaced("epochs = 3", "epochs = 3000").replace("every = 1", "every = 1000"))
    command = [sys.executable, "-m", "batchramp.cli", "run", str(file), "--out", "out"]
    child = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        # A shell's background job ignores interrupts, and what it starts does too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip
    with child:
        while not list((tmp_path / "out").rglob("epochs.jsonl")):
            assert child.poll() is None
        os.killpg(child.pid, signal.SIGINT)  # as Ctrl-C does: to the children as well
        out, err = child.communicate()
    assert (child.returncode, out) == (130, "")
    assert err == "batchramp: interrupted; the same command continues\n"
