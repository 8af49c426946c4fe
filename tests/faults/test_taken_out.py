"""What keeps a promise is taken out, one thing at a time, in a copy: a test that the page of
promises names must then fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from test_promises import ROOT, rows

RUNS, FILES = "tests/faults/test_runs.py::test_", "tests/faults/test_files.py::test_"
STORE, TRAINING = "tests/test_store.py::test_", "tests/test_training.py::test_"
FALLS_BACK = FILES + "a_newest_checkpoint_that_is_damaged_falls_back_and_says_so"
KILLED = RUNS + "a_run_killed_at_any_operation_goes_on"
REFUSED = FILES + "a_finished_run_is_read_or_refused_and_never_changed"


class TakenOut(NamedTuple):
    """A piece of the package, what is put in its place, and the test that must notice.

    A test with brackets is one that has more time than the quick suite.
    """

    name: str
    file: str
    piece: str
    instead: str
    test: str


OUT = [
    TakenOut(
        "files are written in place",
        "store.py",
        'temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")',
        "temporary = path",
        STORE + "a_write_that_fails_leaves_the_old_file",
    ),
    TakenOut(
        "random state is not restored",
        "store.py",
        '        torch.set_rng_state(saved["rng"])\n',
        "",
        KILLED,
    ),
    TakenOut(
        "a torn row is refused",
        "store.py",
        "if number == len(lines) - 2 and not whole:",
        "if False:",
        TRAINING + "a_torn_last_line_is_dropped",
    ),
    TakenOut(
        "rows past the checkpoint stay",
        "store.py",
        'text = b"".join(map(_line, rows[:epochs]))',
        'text = b"".join(map(_line, rows))',
        TRAINING + "rows_past_the_checkpoint_are_cut",
    ),
    TakenOut(
        "a failing disk is passed over",
        "store.py",
        "    append_row(folder, row)\n    save_checkpoint(folder, checkpoint)\n",
        "    with suppress(OSError):\n        append_row(folder, row)\n"
        "        save_checkpoint(folder, checkpoint)\n",
        RUNS + "what_the_system_refuses_stops_a_run_that_goes_on_later[150]",
    ),
    TakenOut(
        "lack of memory is no line",
        "cli.py",
        "    except MemoryError:\n",
        "    except ZeroDivisionError:\n",
        "tests/test_cli.py::test_out_of_memory_is_one_line",
    ),
    TakenOut(
        "half-written files are not cleared",
        "store.py",
        "            path.unlink()\n        yield",
        "            pass\n        yield",
        RUNS + "a_run_killed_again_and_again_goes_on[10]",
    ),
    TakenOut(
        "a page is written in place",
        "store.py",
        'temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")',
        "temporary = path",
        RUNS + "a_report_killed_leaves_the_old_page_or_the_new_one[10]",
    ),
    TakenOut(
        "seconds are of a clock that jumps",
        "training.py",
        "time.perf_counter()",
        "time.time()",
        RUNS + "a_clock_that_jumps_changes_nothing",
    ),
    TakenOut(
        "a dead worker is not noticed",
        "experiments/runner.py",
        "    except (EOFError, OSError):  # OSError: killed in the middle of a word\n",
        "    except ZeroDivisionError:\n",
        RUNS + "workers_that_die_take_their_run_alone",
    ),
    TakenOut(
        "there is no lock",
        "store.py",
        "        held.acquire(timeout=0)\n",
        "        pass\n",
        RUNS + "two_writers_on_one_folder_are_one_and_a_refusal",
    ),
    TakenOut(
        "a checkpoint's checksum is not compared",
        "store.py",
        'if seal[len(_SEAL) :] != b"%08x" % zlib.crc32(content):',
        "if False:",
        FALLS_BACK,
    ),
    TakenOut(
        "one checkpoint is kept",
        "store.py",
        "write(newest, buffer.getbuffer(), before=before)",
        "write(newest, buffer.getbuffer())",
        FILES + "the_last_two_checkpoints_are_kept_and_disk_use_is_bounded",
    ),
    TakenOut(
        "the checkpoint fallen back to is not put first",
        "store.py",
        "        os.replace(folder / file, folder / CHECKPOINTS[0])\n",
        "        pass\n",
        FALLS_BACK,
    ),
    TakenOut(
        "there is no warning of damage",
        "store.py",
        "            warnings.warn(went_on, DamageWarning, stacklevel=2)\n",
        "            pass\n",
        FALLS_BACK,
    ),
    TakenOut(
        "a worker's warning of damage is its last word",
        "experiments/runner.py",
        'elif kind == "damage":',
        "elif False:",
        "tests/test_runner.py::test_a_damaged_checkpoint_is_told_of_and_the_run_goes_on",
    ),
    TakenOut(
        "an error of the disk is no damage",
        "store.py",
        "if error.errno != errno.EIO:",
        "if True:",
        FILES + "a_checkpoint_that_the_disk_does_not_give_falls_back",
    ),
    TakenOut(
        "checksums of rows and run file are not compared",
        "store.py",
        'return content["crc32"] == _crc32(rest)',
        "return True",
        STORE + "what_was_changed_in_silence_is_seen",
    ),
    TakenOut(
        "an ended run's number of rows is not compared",
        "store.py",
        "if epochs not in (None, len(rows)):",
        "if False:",
        FILES + "the_last_row_of_a_finished_run_is_missed",
    ),
    TakenOut(
        "a torn row of an ended run is dropped",
        "store.py",
        'rows = _read_rows(folder, whole=run["status"] in ENDED)',
        "rows = _read_rows(folder); epochs = None",
        FILES + "the_last_row_of_a_finished_run_is_missed",
    ),
    TakenOut(
        "an ended run falls back",
        "store.py",
        "            if ended:\n",
        "            if False:\n",
        REFUSED + "[100]",
    ),
    TakenOut(
        "data are not compared",
        "store.py",
        "if None not in (here, there) and here != there:",
        "if False:",
        FILES + "data_that_change_under_way_are_noticed",
    ),
    TakenOut(
        "losses that are none pass",
        "progress.py",
        '    if None in (rows[-1]["train_loss"], rows[-1]["full_gradient_norm"]):\n'
        '        return "diverged"\n',
        "",
        RUNS + "numbers_that_are_none_end_a_run_as_diverged",
    ),
    TakenOut(
        "the first format is refused",
        "store.py",
        "if not sealed and not _is(found, FORMAT):",
        "if not sealed:",
        FILES + "a_run_of_the_first_format_goes_on_bit_for_bit",
    ),
    TakenOut(
        "a later format is read",
        "store.py",
        "if sealed and not _is(found, CHECKPOINT_FORMAT):",
        "if False:",
        FILES + "a_checkpoint_of_a_later_version_is_refused_and_kept",
    ),
    TakenOut(
        "checkpoints are unpickled",
        "store.py",
        "weights_only=True, map",
        "weights_only=False, map",
        "tests/faults/test_unpickling.py",
    ),
    TakenOut(
        "nesting without an end is no damage",
        "store.py",
        "    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON",
        "    except ValueError as error:",
        STORE + "a_run_file_that_is_no_object_is_refused",
    ),
    TakenOut(
        "an image file may state any size",
        "data/idx.py",
        "    if stated > _MOST_BYTES:\n",
        "    if False:\n",
        "tests/faults/test_fuzz.py",
    ),
    TakenOut(
        "nothing is escaped",
        "report/page.py",
        "autoescape=True",
        "autoescape=False",
        "tests/test_report.py::test_a_hostile_folder_of_runs_makes_a_page_that_runs_nothing_of_it",
    ),
    TakenOut(
        "the scale is that of constant beta and gamma at once",
        "optim/qhm.py",
        "new = math.sqrt(scale * settled)",
        "new = settled",
        "tests/faults/test_numbers.py::test_qhm_is_algorithm_1_under_random_schedules_and_shapes",
    ),
    TakenOut(
        "the kernel is not tried",
        "optim/qhm.py",
        "        and _kernel_works()\n",
        "",
        "tests/test_qhm_fused.py::test_without_a_kernel_that_works_fused_falls_back",
    ),
    TakenOut(
        "the seed is not set",
        "training.py",
        "            torch.manual_seed(seed)\n",
        "",
        "tests/faults/test_determinism.py",
    ),
]


@pytest.mark.parametrize("out", OUT, ids=lambda out: out.name)
def test_the_piece_is_there(out: TakenOut) -> None:
    assert (ROOT / "batchramp" / out.file).read_text(encoding="utf-8").count(out.piece) > 0


def test_every_promise_has_been_tried() -> None:
    """Of the tests that each row names, one at least fails when something is taken out."""
    noticed = {out.test.rsplit("/", 1)[-1].split("[")[0] for out in OUT}
    above = ""
    for promise, _, tests in rows():
        named = f"{above}; {tests}" if tests.startswith("the same") else tests
        above = named
        assert any(test in named for test in noticed), promise


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("out", [None, *OUT], ids=lambda out: out.name if out else "nothing")
def test_its_test_fails_without_it(out: TakenOut | None, tmp_path: Path) -> None:
    for name in ("batchramp", "tests", "examples", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    if out is None:  # the copy itself fails nothing
        code, said = _tests(tmp_path, sorted({out.test for out in OUT}))
        assert code == 0, said
        return
    source = tmp_path / "batchramp" / out.file
    changed = source.read_text(encoding="utf-8").replace(out.piece, out.instead)
    source.write_text(changed, encoding="utf-8")
    code, said = _tests(tmp_path, [out.test])
    assert code == pytest.ExitCode.TESTS_FAILED, said


def _tests(copy: Path, tests: list[str]) -> tuple[int, str]:
    """Runs tests of a copy on the copy's package."""
    environ = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    python = [sys.executable, "-c"]
    where = subprocess.run(
        [*python, "import batchramp; print(batchramp.__file__)"],
        cwd=copy, env=environ, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert where.startswith(str(copy)), where
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider"]
    if any("[" in test for test in tests):
        command += ["-m", "not soak"]
    found = subprocess.run(
        [*command, *tests],
        cwd=copy, env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.returncode, found.stdout[-3000:]
