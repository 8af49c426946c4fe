"""Files of a run: atomic, versioned, and refused in one line when damaged."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from batchramp import Plan, store
from batchramp import schedules as s

PLAN = Plan(epochs=3, batch_size=s.Exponential(8, factor=2, every=1), lr=0.1)


def identity(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "task": "t", "model": "m", "optimizer": dict, "plan": PLAN, "seed": 0,
        "label": "increasing", "panel": "cosine", "experiment": "figure1",
    }  # fmt: skip
    return store.identity(**{**values, **changes})


def row(epoch: int, /, **changes: Any) -> dict[str, Any]:
    return {**dict.fromkeys(store.COLUMNS, 0.5), "epoch": epoch, "at_chance": False, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    store.create(folder, identity(), {"train_loss": 2.0, "train_accuracy": float("nan")})
    for epoch in range(3):
        store.append_row(folder, row(epoch))
    return folder


def test_what_is_written_is_read(folder: Path) -> None:
    record = store.read(folder)
    assert (record.label, record.panel, record.experiment) == ("increasing", "cosine", "figure1")
    assert (record.task, record.model, record.optimizer, record.seed) == ("t", "m", "dict", 0)
    assert (record.plan, record.status, record.error) == (PLAN, "running", None)
    assert record.initial == {"train_loss": 2.0, "train_accuracy": None}
    assert record.rows == [row(0), row(1), row(2)]
    assert record.environment["threads"] >= 1
    assert {"torch", "python", "batchramp"} <= set(record.environment["versions"])
    store.finish(folder, "failed", "out of memory")
    assert (store.read(folder).status, store.read(folder).error) == ("failed", "out of memory")


def test_run_json_holds_what_a_record_has(folder: Path) -> None:
    held = set(json.loads((folder / "run.json").read_text())) - {"format", "crc32"}
    assert held | {"folder", "rows"} == {field.name for field in fields(store.Record)}


def test_numbers_that_are_not_finite_become_null(folder: Path) -> None:
    store.append_row(folder, row(3, train_loss=float("nan"), test_loss=float("-inf")))
    last = store.read(folder).rows[-1]
    assert (last["train_loss"], last["test_loss"], last["train_accuracy"]) == (None, None, 0.5)


def test_optimizers_are_named_with_all_they_were_given() -> None:
    assert store.name_of(dict) == "dict"
    assert store.name_of(functools.partial(dict, 1, lr=0.1)) == "dict(1, lr=0.1)"
    nested = functools.partial(functools.partial(dict, a=1), b=2)
    assert store.name_of(nested) == "dict(a=1, b=2)"


def test_a_new_start_has_no_row_of_an_old_one(folder: Path) -> None:
    store.create(folder, identity(), {})
    assert store.read(folder).rows == []


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_rows_are_cut(keep: int, folder: Path) -> None:
    rows = [row(epoch) for epoch in range(keep)]
    assert store.cut_rows(folder, keep) == rows
    store.append_row(folder, row(keep))
    assert store.read(folder).rows == [*rows, row(keep)]


def test_rows_that_are_whole_are_not_written_again(folder: Path) -> None:
    before = (folder / "epochs.jsonl").stat()
    store.cut_rows(folder, 3)
    after = (folder / "epochs.jsonl").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_torn_line_can_be_written_after(folder: Path) -> None:
    with open(folder / "epochs.jsonl", "ab") as file:
        file.write(b'{"epoch": 3, ')
    store.cut_rows(folder, 3)
    store.append_row(folder, row(3))
    assert len(store.read(folder).rows) == 4


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"3", b"\xff", b'{"epoch": 1}', b"[" * 100_000]
    + [json.dumps(row(1, **change)).encode() for change in (
        {"epoch": 0}, {"epoch": 2}, {"epoch": "1"}, {"train_loss": "low"},
        {"train_loss": float("nan")}, {"train_loss": float("inf")}, {"lr": [0.1]},
    )],
    ids=lambda line: line[:24].decode(errors="replace"),
)  # fmt: skip
def test_a_damaged_line_in_the_middle_is_refused(line: bytes, folder: Path) -> None:
    path = folder / "epochs.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(ValueError, match=r"epochs\.jsonl is damaged at line 2$"):
        store.read(folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": 2}, "must be of format 1, got 2"),
        ({"status": "fine"}, "status 'fine'"),
        ({"status": ["running"]}, r"status \['running'\]"),
        ({"seed": "0"}, "seed is '0'"),
        ({"seed": True}, "seed is True"),
        ({"label": None}, "label is None"),
        ({"error": 3}, "error is 3"),
        ({"plan": "8"}, "plan is '8'"),
        ({"plan": {}}, "plan: batch_size is missing"),
        ({"plan": {"epochs": 3, "batch_size": 0}}, "plan: batch_size"),
        ({"plan": {"epochs": 3, "batch_size": {"kind": "Mine"}}}, "got 'Mine'; --import names a"),
        ({"initial": []}, r"initial is \[\]"),
        ({"initial": {"train_loss": "low"}}, "initial is"),
        ({"environment": None}, "environment is None"),
    ],
    ids=str,
)
def test_a_damaged_run_file_is_refused(change: dict[str, Any], match: str, folder: Path) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=match) as raised:
        store.read(folder)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_run_file_that_is_no_object_is_refused(content: bytes, folder: Path) -> None:
    (folder / "run.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.json"):
        store.read(folder)


@pytest.mark.parametrize("key", ["seed", "plan", "initial", "error", "environment"])
def test_a_key_that_is_missing_is_named(key: str, folder: Path) -> None:
    path = folder / "run.json"
    run = json.loads(path.read_text())
    del run[key]
    path.write_text(json.dumps(run))
    with pytest.raises(ValueError, match=f"{key} is missing"):
        store.read(folder)


def test_all_runs_below_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b/seed-1", "a/seed-0", "b/seed-0"):
        store.create(tmp_path / name, identity(), {})
    found = [str(record.folder.relative_to(tmp_path)) for record in store.read_all(tmp_path)]
    assert found == ["a/seed-0", "b/seed-0", "b/seed-1"]


def test_no_folder_and_no_run_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        store.read_all(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no run"):
        store.read_all(tmp_path)
    with pytest.raises(ValueError, match="holds no run"):
        store.read(tmp_path)


def test_what_a_killed_start_leaves_does_not_lock_a_run_out(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    (tmp_path / ".run.json.4242.tmp").write_text("{")
    assert store.existing(tmp_path, identity(), resume=True) is None
    with store.lock(tmp_path):
        assert os.listdir(tmp_path) == ["lock"]
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="other files"):
        store.existing(tmp_path, identity(), resume=True)


def test_a_write_that_fails_leaves_the_old_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (folder / "run.json").read_bytes()
    names = sorted(os.listdir(folder))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            store.finish(folder, "finished")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            store.finish(folder, "finished")
    assert (folder / "run.json").read_bytes() == before
    assert sorted(os.listdir(folder)) == names


def test_the_lock_is_let_go_with_the_process_that_held_it(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib, batchramp.store as store\n"
        "with store.lock(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder, holder.stdin, holder.stdout:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match="in use"), store.lock(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with store.lock(tmp_path):
        pass


def test_reading_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys, pathlib, batchramp.store as store\n"
        "assert len(store.read(pathlib.Path(sys.argv[1])).rows) == 3\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_a_folder_from_before_n_and_problem_were_kept_is_read(tmp_path: Path) -> None:
    store.create(tmp_path, identity(), {}, n=7, problem={"smoothness": 2.0})
    assert (store.read(tmp_path).n, store.read(tmp_path).problem) == (7, {"smoothness": 2.0})
    path = tmp_path / "run.json"
    run = json.loads(path.read_text())
    del run["crc32"]
    path.write_text(json.dumps({k: v for k, v in run.items() if k not in ("n", "problem")}))
    assert (store.read(tmp_path).n, store.read(tmp_path).problem) == (None, None)
    for key, value in (("n", 0), ("n", True), ("problem", []), ("problem", {"smoothness": "2"})):
        path.write_text(json.dumps({**run, key: value}))
        with pytest.raises(ValueError, match=f"damaged: {key} is"):
            store.read(tmp_path)


def test_what_was_changed_in_silence_is_seen(folder: Path) -> None:
    for name, old, new in (
        ("epochs.jsonl", b'"steps": 0.5', b'"steps": 0.6'),
        ("epochs.jsonl", b'"crc32"', b'"crc33"'),
        ("run.json", b'"seed": 0', b'"seed": 1'),
        ("run.json", b'"label": "increasing"', b'"label": "decreasing"'),
        ("run.json", b'"crc32"', b'"crc33"'),
    ):
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content.replace(old, new, 1))
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            store.read(folder)
        path.write_bytes(content)
    assert len(store.read(folder).rows) == 3


def test_files_from_before_they_had_checksums_are_read(folder: Path) -> None:
    whole = store.read(folder)
    path = folder / "run.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in run.items() if k not in ("crc32", "data")}))
    path = folder / "epochs.jsonl"
    rows = [json.dumps(row) + "\n" for row in whole.rows]
    path.write_text("".join(rows))
    assert store.read(folder) == whole
    store.cut_rows(folder, 3)  # a run that goes on gives its rows their checksums
    assert path.read_bytes().count(b"crc32") == 3
    assert store.read(folder) == whole
