"""Inputs that nobody meant: refused in one line, soon, and with little memory; never a traceback.

Each target takes what a valid file becomes under random changes, or a value drawn at random, and
either serves it or raises what its caller prints as one line. A second of processor time and half a
gibibyte are the most that any input may take.
"""

import dataclasses
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from injected import counted, many, mutated, one_line, train
from test_cli import GOOD
from test_training import Stop, noisy_net, small, stop_after

import batchramp
from batchramp import QHM, Plan, ScheduledBatchSampler, cli, data, experiments, schedules, store
from batchramp.experiments import from_file, plan_from_file, task_from_file
from batchramp.schedules import Schedule
from batchramp.theory import Problem

EXAMPLES = Path(batchramp.__file__).parent.parent / "examples"
MOST_SECONDS, MOST_BYTES = 1.0, 512 << 20

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers of processor time"),
    pytest.mark.filterwarnings("ignore::batchramp.store.DamageWarning"),
]


class TooLong(BaseException):
    pass


def _too_long(*_: object) -> None:
    raise TooLong


@contextmanager
def within_limits() -> Iterator[Callable[[Callable[[], Any], Any], None]]:
    """Gives ``try_it(call, shown)``, which fails with what was shown to it."""
    before = signal.signal(signal.SIGPROF, _too_long)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def try_it(call: Callable[[], Any], shown: Any) -> None:
        counted["fuzzed input"] += 1
        try:
            signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
            try:
                call()
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except (ValueError, OSError) as error:
            one_line(error)
        except TooLong:
            pytest.fail(f"took more than {MOST_SECONDS} s: {shown!r}")
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}: {shown!r}")

    try:
        yield try_it
    finally:
        signal.signal(signal.SIGPROF, before)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown * (1 if sys.platform == "darwin" else 1024) < MOST_BYTES


# ------------------------------------------------------------------------- files, byte by byte


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("begun") / "run"
    with pytest.raises(Stop):
        train(folder, on_epoch=stop_after(1))
    return folder


def fuzz_files(
    count: int, seeds: list[bytes], path: Path, read: Callable[[Path], Any], salt: str
) -> None:
    generator = random.Random(f"{count} {salt}")
    with within_limits() as try_it:
        for _ in range(count):
            content = mutated(generator.choice(seeds), generator)
            path.unlink(missing_ok=True)  # written over, some file systems sync it each time
            path.write_bytes(content)
            try_it(lambda: read(path), content)


TOML: dict[str, Callable[[Path], Any]] = {
    "experiment": from_file,
    "plan": plan_from_file,
    "task": task_from_file,
    "problem": Problem.from_toml,
    "plan alone": Plan.from_toml,
}
PROBLEM = b"n = 9\ninitial_gap = 5\nsmoothness = 2\nvariance = 1\ngradient_bound = 3.0\nnote='x'\n"


@many(100, 1_000, 40_000)
@pytest.mark.parametrize("kind", TOML)
def test_toml(kind: str, count: int, tmp_path: Path) -> None:
    seeds = [path.read_bytes() for path in sorted(EXAMPLES.glob("*.toml"))] + [GOOD.encode()]
    if kind == "problem":
        seeds = [PROBLEM]
    elif kind == "plan alone":
        seeds = [seed[seed.index(b"[plan]") + 6 :] for seed in seeds]
    fuzz_files(count, seeds, tmp_path / "file.toml", TOML[kind], kind)


@pytest.mark.parametrize("kind", TOML)
def test_toml_nested_without_an_end(kind: str, tmp_path: Path) -> None:
    (path := tmp_path / "file.toml").write_text("epochs = " + "[" * 100_000)
    with pytest.raises(ValueError, match="recursion"):
        TOML[kind](path)


@many(150, 2_000, 100_000)
@pytest.mark.parametrize("name", ["run.json", "epochs.jsonl"])
def test_a_run_s_files(name: str, count: int, begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "run")
    content = (begun / name).read_bytes()
    # Without its checksum it gets further in.
    plain = [
        json.loads(part)
        for part in ([content] if name == "run.json" else content.split(b"\n")[:-1])
    ]
    for each in plain:
        del each["crc32"]
    seeds = [content, b"".join(json.dumps(each).encode() + b"\n" for each in plain)]
    read = lambda path: store.read(path.parent)  # noqa: E731
    fuzz_files(count, seeds, tmp_path / "run" / name, read, name)


@many(40, 400, 20_000)
def test_checkpoints(count: int, begun: Path, tmp_path: Path) -> None:
    content = (begun / "checkpoint.pt").read_bytes()
    plan = Plan.from_dict(json.loads((begun / "run.json").read_text())["plan"])

    def resume(path: Path) -> Any:
        model = noisy_net()
        optimizer = QHM(model.parameters(), lr=0.1, beta=0.9, gamma=0.7)
        sampler = ScheduledBatchSampler(plan, small().n, seed=0)
        with torch.random.fork_rng():
            return store.restore(store._load(path), sampler, model, optimizer, "cpu")

    seeds = [content[: -store._SEALED], content]  # without its checksum it gets further in
    fuzz_files(count, seeds, tmp_path / "checkpoint.pt", resume, "checkpoint")


@many(150, 2_000, 70_000)
@pytest.mark.parametrize("packed", [False, True])
def test_idx(packed: bool, count: int, tmp_path: Path) -> None:
    import gzip

    seeds = [
        b"\x00\x00\x08\x01\x00\x00\x00\x05\x01\x02\x03\x04\x05",
        b"\x00\x00\x08\x03\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00\x02" + bytes(range(12)),
    ]
    if packed:
        seeds = [gzip.compress(seed, mtime=0) for seed in seeds]
    fuzz_files(count, seeds, tmp_path / "file", data.read_idx, str(packed))


@many(100, 1_000, 40_000)
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar(classes: int, count: int, tmp_path: Path) -> None:
    generator = random.Random(0)
    labels = 1 if classes == 10 else 2
    seeds = [(b"\x05" * labels + generator.randbytes(3072)) * n for n in (1, 2)]
    read = lambda path: data.read_cifar(path, classes, generator.choice((None, 1, 2)))  # noqa: E731
    fuzz_files(count, seeds, tmp_path / "file", read, str(classes))


# ------------------------------------------------------------------------------ values of Python

ODD = [
    0, 1, -1, 2, 3, 7, 30, 0.0, -0.0, 0.5, 0.1, 0.9, 1.0, 1.5, -0.5, 1e-12, 1e-320, 5e-324,
    1e308, -1e308, math.inf, -math.inf, math.nan, 2**31, 2**31 - 1, 2**53, 2**63, 10**9, 10**12,
    10**30, 10**400, True, False, None, "", "8", "x", "10k", "1e9", "10%", [], {}, (), [1, 2], b"8",
    1j, Ellipsis,
    float, torch.tensor(3.0), torch.tensor([1.0, 2.0]),
]  # fmt: skip
KINDS = sorted(set(schedules.__all__) - {"Schedule"})
NAMES = [
    "start", "value", "end", "low", "high", "factor", "every", "maximum", "span", "power", "by",
    "steps", "schedule", "pieces", "a", "b", "rate", "offset", "first", "then",
]  # fmt: skip


def fields_of(kind: str) -> dict[str, bool]:
    """The arguments of a schedule, and whether each must be given."""
    found = [field for field in dataclasses.fields(getattr(schedules, kind)) if field.init]
    return {field.name: field.default is dataclasses.MISSING for field in found}


def plain_schedule(generator: random.Random, depth: int = 0) -> Any:
    """What a file may have in a schedule's place, most of it nearly right."""
    if depth > 3 or generator.random() < 0.25:
        return generator.choice(ODD)
    kind = generator.choice(KINDS)
    names = fields_of(kind)
    plain: dict[Any, Any] = {"kind": kind}
    for name in names:
        if generator.random() < 0.85:
            plain[name] = value_for(name, generator, depth)
    if generator.random() < 0.1:
        plain[generator.choice(NAMES)] = generator.choice(ODD)
    return plain


def value_for(name: str, generator: random.Random, depth: int) -> Any:
    draw = generator.random()
    if draw < 0.2:
        return generator.choice(ODD)
    if name in ("schedule", "lr", "batch_size", "first", "second", "then", "schedules"):
        if name == "schedules":
            return [plain_schedule(generator, depth + 1) for _ in range(generator.randrange(4))]
        return plain_schedule(generator, depth + 1)
    if name == "pieces":
        return [[generator.choice([0, 3, 10, 10**6, "2k", -1]), generator.choice(ODD[:16])]
                for _ in range(generator.randrange(4))]  # fmt: skip
    if name in ("every", "by", "span", "steps"):
        return generator.choice([1, 2, 3, 10, 1000, 10**6, 10**9])
    return generator.choice([generator.uniform(0, 1), generator.uniform(0, 100), 1, 2, 8, 64])


def plain_plan(generator: random.Random) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    unit = generator.choice(["epochs", "steps", "samples"])
    plain[unit] = generator.choice([1, 3, 30, 1000, 10**6, 10**9, generator.choice(ODD)])
    for name in ("batch_size", "lr", "beta", "gamma"):
        if generator.random() < 0.8:
            plain[name] = plain_schedule(generator)
    if generator.random() < 0.1:
        plain[generator.choice(["epochs", "steps", "kind", "nu"])] = generator.choice(ODD)
    return plain


def used(plan: Plan) -> None:
    """What is allowed must serve: finite, in its range, or refused."""
    last = plan.length - 1
    for tick in {0, min(1, last), last // 2, last}:
        values = plan.at(tick)
        assert values.batch_size >= 1
        for value in values.hyperparameters.values():
            assert math.isfinite(value)
        assert values.beta is None or 0 <= values.beta < 1
        assert values.gamma is None or 0 <= values.gamma <= 1
        assert values.lr is None or values.lr >= 0
    if all(type(v) in (int, float, str) for v in plan.to_dict().values()):
        assert Plan.from_dict(plan.to_dict()) == plan
    repr(plan)


@many(400, 6_000, 250_000)
def test_plans_from_dicts(count: int) -> None:
    generator = random.Random(count)
    with within_limits() as try_it:
        for _ in range(count):
            plain = plain_plan(generator)
            try_it(lambda plain=plain: used(Plan.from_dict(plain)), plain)


@many(400, 6_000, 200_000)
def test_constructors_of_schedules(count: int) -> None:
    generator = random.Random(count)
    with within_limits() as try_it:
        for _ in range(count):
            kind = generator.choice(KINDS)
            given: dict[str, Any] = {}
            for name, needed in fields_of(kind).items():
                if needed or generator.random() < 0.8:
                    given[name] = value_for(name, generator, 3)
                    if isinstance(given[name], dict):
                        given[name] = generator.choice(ODD)
            make: Any = getattr(schedules, kind)
            try_it(lambda m=make, g=given: called(m(**g)), (kind, given))


def called(schedule: Schedule) -> None:
    for horizon in (1, 30, 10**9):
        for tick in {0, horizon // 2, horizon - 1}:
            assert isinstance(float(schedule(tick, horizon)), float)
            assert schedule.next_change(tick, horizon) > tick


NUMBERS = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=5),
    st.integers(min_value=-(10**20), max_value=10**20), st.complex_numbers(),
)  # fmt: skip
TABLES = st.dictionaries(
    st.sampled_from(["kind", *NAMES]), NUMBERS | st.sampled_from(KINDS), max_size=5
)


@settings(max_examples=60)
@given(
    length=NUMBERS,
    unit=st.sampled_from(["epochs", "steps", "samples"]),
    values=st.dictionaries(
        st.sampled_from(["batch_size", "lr", "beta", "gamma"]), NUMBERS | TABLES, max_size=4
    ),
)
def test_plans_that_hypothesis_thinks_of(length: Any, unit: str, values: Any) -> None:
    with within_limits() as try_it:
        try_it(lambda: used(Plan.from_dict({unit: length, **values})), (unit, length, values))


RUN_KEYS = st.sampled_from([*store._KINDS, "n", "format", "crc32"])


@settings(max_examples=60)
@given(
    plain=st.recursive(
        NUMBERS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(RUN_KEYS, inner),
        max_leaves=12,
    )
)
def test_run_files_that_hypothesis_thinks_of(plain: Any, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("run")
    if isinstance(plain, dict):
        plain = {"format": 1, "status": "running", **plain}
    text = json.dumps(plain, default=str)
    (folder / "run.json").write_text(text)
    with within_limits() as try_it:
        try_it(lambda: store.read(folder), text)


# ------------------------------------------------------------------------------ the command line

WORDS = [
    "run", "reproduce", "decide", "plan", "measure", "report", "figure1", "figure4", "figure12",
    "a11", "baselines", "bounds", "figure1-tuning", "all", "quick", "small", "paper", "main",
    "file.toml", "plan.toml", "problem.toml", "bad.toml", "runs", "nowhere", "a.png", "a.csv", "",
    "fashion-mini", "quadratic", "mlp", "cpu", "cuda", "tpu", "tensorboard", "0", "1", "2", "8",
    "-1", "256", "1e-3", "nan", "inf", "1e999", "9" * 30, "released", "\x00", "\n", "é", "\udcff",
    "--out", "--jobs", "--json", "--vectorise", "--ray", "--track", "--data", "--import", "--scale",
    "--seeds", "--part", "--small-batch", "--variant", "--tuned", "--device", "--channels-last",
    "--autocast", "--compile", "--n", "--problem", "--measure", "--epsilon", "--csv", "--model",
    "--samples", "--seed", "--repeat", "--help", "--version", "-h", "--", "-", "--nosuch",
    "--jobs=2", "--n=100", "--n=1", "--out=out", "--epsilon=0.1", "--problem=problem.toml",
]  # fmt: skip
COMMANDS = [
    ["run", "file.toml"], ["plan", "file.toml"], ["plan", "plan.toml", "--n", "100"],
    ["plan", "file.toml", "--problem", "problem.toml"], ["report", "runs"],
    ["reproduce", "figure1"],
    ["plan", "file.toml", "plan.toml", "--n", "64"], ["measure", "quadratic"], ["decide"], [],
]  # fmt: skip


@many(60, 700, 20_000)
def test_the_command_line(
    count: int, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BATCHRAMP_DATA", str(tmp_path))
    (tmp_path / "file.toml").write_text(GOOD)
    (tmp_path / "plan.toml").write_text("epochs = 3\nbatch_size = 8\nlr = 0.1\n")
    (tmp_path / "problem.toml").write_bytes(PROBLEM)
    (tmp_path / "bad.toml").write_bytes(b"\xff[")
    shutil.copytree(whole[1], tmp_path / "runs" / "a")

    # What trains for long is left out; all that comes before it is not.
    def trained(runs: Any, out: Path, how: Any, quiet: bool) -> Any:
        return experiments.Outcome((), ())

    def measured(*given: Any, **more: Any) -> Any:
        raise ValueError("nothing is measured here")

    monkeypatch.setattr(cli, "_run_all", trained)
    monkeypatch.setattr(experiments, "measure_constants", measured)
    monkeypatch.setattr(experiments, "bounds", measured)
    generator = random.Random(count)
    with within_limits() as try_it:
        for _ in range(count):
            words = list(generator.choice(COMMANDS))
            for _ in range(generator.choice((0, 1, 1, 2, 2, 3))):
                words.insert(generator.randrange(len(words) + 1), generator.choice(WORDS))
            if generator.random() < 0.1 and words:
                words.pop(generator.randrange(len(words)))
            monkeypatch.setattr(sys, "argv", ["batchramp", *words])
            try_it(lambda words=words: ended(words, capsys), words)
            os.environ["BATCHRAMP_DATA"] = str(tmp_path)


def ended(words: list[str], capsys: Any) -> None:
    try:
        cli.main()
    except SystemExit as stopped:
        status = stopped.code
    else:
        raise AssertionError("main ends the process")
    _, err = capsys.readouterr()
    assert status in (0, 1, 2), (words, status)
    if status == 2 and words:
        assert err.startswith("batchramp: "), (words, err)
        assert err.count("\n") == 1, (words, err)
    else:
        assert "Traceback" not in err
