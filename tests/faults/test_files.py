"""What a disk, a copy or a hand does to files: noticed, said in one line, and nothing else lost."""

import gzip
import json
import os
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from injected import (
    PLAN,
    boundaries,
    counted,
    flipped,
    goes_on,
    goes_on_or_refuses,
    many,
    one_line,
    train,
)
from test_training import Stop, blobs, left_by, noisy, noisy_net, same, small, snapshot, stop_after

from batchramp import data, store
from batchramp.experiments.vectorised import Member, train_together
from batchramp.training import fit

FILES = ("checkpoint.pt", "checkpoint.previous.pt", "epochs.jsonl", "run.json")
# What may become of a run that was interrupted when one of its files is damaged.
OWED = {
    "checkpoint.pt": {"fell back"},
    "checkpoint.previous.pt": {"went on"},
    "epochs.jsonl": {"refused", "went on"},  # a newline that is another white space is no damage
    "run.json": {"refused", "went on"},
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """A run that was interrupted after three of its four epochs."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    with pytest.raises(Stop):
        train(folder, on_epoch=stop_after(2))
    return folder


def damages(count: int, folder: Path) -> list[tuple[str, str, bytes]]:
    """(file, what happened to it, its content): cuts at every kind of place, and bits flipped."""
    generator = random.Random(0)
    contents = {name: (folder / name).read_bytes() for name in FILES}
    cuts = [
        (name, f"cut to {length}", content[:length])
        for name, content in contents.items()
        for length in boundaries(content, name)
    ]
    generator.shuffle(cuts)
    found = cuts[: count // 2]
    while len(found) < count:
        name = FILES[len(found) % len(FILES)]
        bits = generator.choice((1, 1, 1, 2, 3, 50))
        found.append((name, f"{bits} bits", flipped(contents[name], generator, bits)))
    return found


@many(8, 300, 1500)
def test_a_run_with_a_damaged_file_goes_on_or_refuses(
    count: int, whole: Any, begun: Path, tmp_path: Path
) -> None:
    left, _, names = whole
    seen: dict[str, set[str]] = {name: set() for name in FILES}
    for number, (name, how, content) in enumerate(damages(count, begun)):
        counted[f"damaged {name}"] += 1
        folder = tmp_path / str(number)
        shutil.copytree(begun, folder)
        (folder / name).write_bytes(content)
        outcome = goes_on_or_refuses(folder, left, names)
        assert outcome in OWED[name], (name, how, outcome)
        seen[name].add(outcome)
        shutil.rmtree(folder)
    assert "refused" in seen["run.json"]
    assert "refused" in seen["epochs.jsonl"]


@many(8, 100, 400)
def test_a_finished_run_is_read_or_refused_and_never_changed(
    count: int, whole: Any, tmp_path: Path
) -> None:
    _, finished, _ = whole
    record = store.read(finished)
    for number, (name, how, content) in enumerate(damages(count, finished)):
        counted[f"damaged {name}"] += 1
        folder = tmp_path / str(number)
        shutil.copytree(finished, folder)
        (folder / name).write_bytes(content)
        before = snapshot(folder)
        try:
            found = store.read(folder)
            assert (found.rows, found.plan, found.label) == (record.rows, record.plan, record.label)
            result = train(folder, on_epoch=stop_after(0))  # stops if anything is trained
            assert result.rows == record.rows
        except (ValueError, OSError) as error:
            one_line(error)
        assert snapshot(folder) == before, (name, how)
        shutil.rmtree(folder)


@pytest.mark.parametrize("torn", [True, False], ids=["torn", "missing"])
def test_the_last_row_of_a_finished_run_is_missed(torn: bool, whole: Any, tmp_path: Path) -> None:
    _, finished, _ = whole
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    rows = (folder / "epochs.jsonl").read_bytes()
    cut = rows[:-5] if torn else b"".join(rows.splitlines(keepends=True)[:-1])
    (folder / "epochs.jsonl").write_bytes(cut)
    with pytest.raises(ValueError, match=r"epochs\.jsonl is damaged"):
        store.read(folder)


def test_a_newest_checkpoint_that_is_damaged_falls_back_and_says_so(
    whole: Any, begun: Path, tmp_path: Path
) -> None:
    left, _, names = whole
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    content = bytearray((folder / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "checkpoint.pt").write_bytes(content)
    before = (folder / "checkpoint.previous.pt").read_bytes()
    epochs = []

    def on_epoch(row: dict[str, Any]) -> None:
        epochs.append(row["epoch"])
        raise Stop

    with pytest.warns(store.DamageWarning, match=r"checkpoint\.pt is damaged.* goes on from chec"):  # noqa: SIM117
        with pytest.raises(Stop):
            train(folder, on_epoch=on_epoch)
    assert epochs == [2]  # the one that the damaged one had
    # The damaged one has not taken the place of the one that was used.
    assert (folder / "checkpoint.previous.pt").read_bytes() == before
    assert [row["epoch"] for row in store.read(folder).rows] == [0, 1, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        goes_on(folder, left, names)


def test_a_run_killed_between_the_two_names_goes_on(
    whole: Any, begun: Path, tmp_path: Path
) -> None:
    left, _, names = whole
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    os.replace(folder / "checkpoint.pt", folder / "checkpoint.previous.pt")
    assert goes_on_or_refuses(folder, left, names) == "went on"  # nothing is damaged


def test_a_run_with_both_checkpoints_damaged_is_refused(begun: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    for name in store.CHECKPOINTS:
        (folder / name).write_bytes((folder / name).read_bytes()[:-200])
    before = snapshot(folder)
    with pytest.raises(
        ValueError, match=r"checkpoint\.pt is damaged.*previous\.pt is damaged"
    ) as e:
        train(folder)
    one_line(e.value)
    assert snapshot(folder) == before


def test_a_checkpoint_that_the_disk_does_not_give_falls_back(
    whole: Any, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, _, names = whole
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    real = Path.read_bytes

    def broken(path: Path) -> bytes:
        if path.name == "checkpoint.pt":
            raise OSError(5, "Input/output error")
        return real(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", broken)
        with pytest.warns(store.DamageWarning, match="Input/output error"):
            train(folder)
    goes_on(folder, left, names)


def test_a_checkpoint_of_a_later_version_is_refused_and_kept(begun: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    state, _ = store.load_checkpoint(store.read(folder)) or ({}, "")
    path = folder / "checkpoint.pt"
    path.write_bytes(sealed({**state, "format": 99}, tmp_path / "later.pt"))
    before = snapshot(folder)
    with pytest.raises(ValueError, match="is of format 99, of another version: known are 1 and 2"):
        train(folder)
    assert snapshot(folder) == before


def sealed(state: Any, path: Path) -> bytes:
    """``state`` as a checkpoint's bytes, with a checksum that is right."""
    import zlib

    torch.save(state, path)
    content = path.read_bytes()
    return content + store._SEAL + b"%08x" % zlib.crc32(content)


def test_a_run_of_the_first_format_goes_on_bit_for_bit(
    whole: Any, begun: Path, tmp_path: Path
) -> None:
    left, _, names = whole
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    # As it was written: one checkpoint, no checksums.
    (folder / "checkpoint.previous.pt").unlink()
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save({**saved, "format": 1}, folder / "checkpoint.pt")
    run = json.loads((folder / "run.json").read_text())
    del run["crc32"], run["data"]
    (folder / "run.json").write_text(json.dumps(run, indent=2) + "\n")
    rows = "".join(json.dumps(row) + "\n" for row in store.read(begun).rows)
    (folder / "epochs.jsonl").write_text(rows)
    goes_on(folder, left, names)
    assert b"crc32" in (folder / "epochs.jsonl").read_bytes().splitlines()[0]


def test_the_last_two_checkpoints_are_kept_and_disk_use_is_bounded(tmp_path: Path) -> None:
    epochs, sizes = [], []

    def on_epoch(row: dict[str, Any]) -> None:
        found = []
        for name in store.CHECKPOINTS:
            if (tmp_path / "run" / name).exists():
                saved = torch.load(tmp_path / "run" / name, weights_only=True)
                found.append(saved["progress"]["epoch"])
        epochs.append(found)
        sizes.append({p.name: p.stat().st_size for p in (tmp_path / "run").iterdir()})

    result = train(tmp_path / "run", on_epoch=on_epoch)
    assert epochs == [[1], [2, 1], [3, 2], [4, 3]]
    held = result.model.state_dict()
    most = 8 * sum(tensor.numel() for tensor in held.values()) + 2000 * len(held) + 10_000
    for number, size in enumerate(sizes, start=1):
        assert set(size) <= {*FILES, "lock"}
        assert max(size[name] for name in size if name.endswith(".pt")) < most
        assert size["epochs.jsonl"] < 1000 * number
        assert size["run.json"] < 5000


# --------------------------------------------------------------------------------------- data


@many(3, 20, 100)
def test_data_that_change_under_way_are_noticed(count: int, begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "run")
    before = snapshot(tmp_path)
    generator = random.Random(count)
    for _ in range(count):
        part = generator.choice(("train", "validation", "test"))
        inputs, targets = getattr(small(), part)
        inputs = inputs.clone()
        bits = inputs.view(torch.int32).flatten()
        bits[generator.randrange(len(bits))] ^= 1 << generator.randrange(31)
        counted["data"] += 1
        task = small(noisy_net, **{part: (inputs, targets)})
        with pytest.raises(ValueError, match=f"^{part} data differ from those of the run in") as e:
            fit(task, PLAN, seed=0, out=tmp_path / "run")
        one_line(e.value)
        assert snapshot(tmp_path) == before


def test_data_are_known_again_by_runs_trained_together_too(tmp_path: Path) -> None:
    member = Member(PLAN, 0, tmp_path / "run")
    with pytest.raises(Stop):
        fit(small(), PLAN, seed=0, out=tmp_path / "run", on_epoch=stop_after(1))
    with pytest.raises(ValueError, match=r"^train data differ"):
        train_together(small(train=blobs(96, 9)), [member])
    assert train_together(small(), [member]) == ("finished",)


def test_a_fingerprint_is_of_every_bit_shape_and_type_and_of_no_layout() -> None:
    x, y = torch.arange(24.0).reshape(2, 3, 2, 2), torch.tensor([0, 1])

    def of(inputs: torch.Tensor) -> Any:
        return small(train=(inputs, y)).fingerprint()["train"]

    others = [x.reshape(2, 12), x.double(), x + 1e-6, x.flip(0)]
    assert len({of(x), *map(of, others)}) == 5
    assert of(x) == of(x.contiguous(memory_format=torch.channels_last)) == of(x.clone())
    assert noisy().fingerprint() == {"train": None, "validation": None, "test": None}


@many(3, 12, 60)
def test_damaged_images_are_refused(count: int, tmp_path: Path) -> None:
    bundled = Path(data.__file__).parent / "fashion_mini" / "t10k-labels-idx1-ubyte.gz"
    content = bundled.read_bytes()
    known = "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    generator = random.Random(count)
    path = tmp_path / "labels"
    path.write_bytes(content)
    labels = data.read_idx(path, sha256=known)
    for _ in range(count):
        plain = generator.random() < 0.5
        changed = flipped(gzip.decompress(content) if plain else content, generator)
        path.write_bytes(changed)
        counted["data"] += 1
        try:  # a bit of gzip's header, such as its time, is not of the content
            assert (data.read_idx(path, sha256=known) == labels).all()
            assert not plain
        except ValueError as error:
            one_line(error)


def test_a_folder_of_many_kinds_of_damage_leaves_the_other_runs(whole: Any, tmp_path: Path) -> None:
    """Finished results are intact, whatever happens to another run's folder."""
    for name in ("a", "b"):
        shutil.copytree(whole[1], tmp_path / name)
    before = snapshot(tmp_path / "a")
    for name in FILES:
        (tmp_path / "b" / name).write_bytes(os.urandom(100))
    with pytest.raises(ValueError, match=r"b/run\.json"):
        store.read_all(tmp_path)
    assert snapshot(tmp_path / "a") == before
    assert same(left_by(tmp_path / "a"), whole[0])
