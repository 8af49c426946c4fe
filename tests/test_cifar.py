"""CIFAR's binary releases: records, archives, refusals, the download; and normalisation."""

import copy
import dataclasses
import errno
import functools
import hashlib
import importlib
import io
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

from batchramp.data import (
    CIFAR10_NORMALISE,
    CIFAR100_NORMALISE,
    ImageSet,
    Normalise,
    cifar10,
    cifar100,
    read_cifar,
)

LABELS = {10: 1, 100: 2}
READERS = {"_CIFAR10": cifar10, "_CIFAR100": cifar100}


@pytest.fixture
def module():
    return importlib.import_module("batchramp.data.cifar")


def records(classes, n, seed=0):
    """n records as bytes, with their images and classes; as many of each class as go."""
    chance = np.random.default_rng(seed)
    images = chance.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    of = chance.permutation(np.arange(n) % classes).astype(np.uint8)
    labels = [of] if classes == 10 else [of // 5, of]
    content = b"".join(
        bytes(label[i] for label in labels)  # coarse before fine
        + b"".join(images[i, colour].tobytes() for colour in range(3))
        for i in range(n)
    )
    return content, torch.from_numpy(images), torch.from_numpy(of).long()


def refused(path, message, *args):
    with pytest.raises(ValueError, match=message) as error:
        read_cifar(path, *args)
    said = str(error.value)
    assert "\n" not in said
    assert str(path) in said


# One file


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("n", [1, 7, 1001])  # 1001: more than one chunk
def test_a_file_is_read_as_written(tmp_path, classes, n):
    path = tmp_path / "some.bin"
    content, images, of = records(classes, n)
    path.write_bytes(content)
    for count in (None, n):
        found, found_classes = read_cifar(str(path), classes, count)
        assert (found.dtype, found_classes.dtype) == (torch.uint8, torch.int64)
        assert torch.equal(found, images)
        assert torch.equal(found_classes, of)
        assert found.is_contiguous()


def test_a_pixel_lies_where_the_format_says(tmp_path):
    path = tmp_path / "some.bin"
    content = bytearray(2 * 3074)
    content[3074 : 3074 + 2] = bytes([19, 99])
    content[3074 + 2 + 1024 * 1 + 32 * 5 + 9] = 200  # the second image, green, row 5, column 9
    path.write_bytes(content)
    images, classes = read_cifar(path, 100)
    assert images[1, 1, 5, 9] == 200
    assert int(images.sum()) == 200
    assert classes.tolist() == [0, 99]


@pytest.mark.parametrize("classes", [10, 100])
def test_a_file_of_another_length_is_refused(tmp_path, classes):
    path = tmp_path / "some.bin"
    content, _, _ = records(classes, 3)
    record = LABELS[classes] + 3072
    for damaged in (content[:-1], content + b"\0", content[: 2 * record + 1], b"", b"\x80\x04"):
        path.write_bytes(damaged)
        refused(path, rf"must hold \d records of {record} bytes, .*got {len(damaged)}", classes)
        refused(path, f"must hold 3 records of {record} bytes", classes, 3)
    path.write_bytes(content)
    for count in (2, 4):
        refused(path, f"must hold {count} records of {record} bytes", classes, count)


@pytest.mark.parametrize(
    ("classes", "byte", "value", "message"),
    [
        (10, 0, 10, r"record 1203 must have a class in 0\.\.9 in byte 0, got 10"),
        (10, 0, 255, r"in 0\.\.9 in byte 0, got 255"),
        (100, 0, 20, r"record 1203 must have a class in 0\.\.19 in byte 0, got 20"),
        (100, 1, 100, r"record 1203 must have a class in 0\.\.99 in byte 1, got 100"),
    ],
)
def test_a_class_out_of_range_is_refused(tmp_path, classes, byte, value, message):
    path = tmp_path / "some.bin"
    content = bytearray(1300 * (LABELS[classes] + 3072))
    path.write_bytes(content)
    read_cifar(path, classes)
    content[1203 * (LABELS[classes] + 3072) + byte] = value
    path.write_bytes(content)
    refused(path, message, classes)


def test_what_cannot_be_read_is_refused(tmp_path):
    for count in (None, 1):
        refused(tmp_path / "absent", "must be a readable CIFAR file, got No such file", 10, count)
        refused(tmp_path, "must be a readable CIFAR file, got Is a directory", 10, count)
    for classes in (0, 20, "10", None):
        with pytest.raises(ValueError, match=f"^classes must be 10 or 100, got {classes!r}$"):
            read_cifar(tmp_path, classes)


# The releases


def small(module, monkeypatch, name):
    """A release of small files that the module takes for the published one; (it, its files)."""
    release = getattr(module, name)
    each, last = (20, 10) if release.classes == 10 else (200, 100)
    content = {
        file: records(release.classes, last if file in release.test else each, seed)[0]
        for seed, file in enumerate(release.files)
    }
    release = dataclasses.replace(
        release, train=dict.fromkeys(release.train, each), test=dict.fromkeys(release.test, last)
    )
    release = dataclasses.replace(
        release, sha256=hashlib.sha256(packed(release, content)).hexdigest()
    )
    monkeypatch.setattr(module, name, release)
    return release, content


def packed(release, content, folder=None):
    """The archive as it is published: a folder, with pages that are not data beside the data."""
    folder = folder or release.folder
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
        top = tarfile.TarInfo(folder)
        top.type = tarfile.DIRTYPE
        tar.addfile(top)
        for name, raw in {"readme.html": b"<html>", **content}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    raw = bytearray(file.getvalue())
    raw[4:8] = bytes(4)  # gzip's time stamp, for the checksum's sake
    return bytes(raw)


def put(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in content.items():
        (folder / name).write_bytes(raw)


def is_right(parts, release, content, validation=0):
    read = {
        name: torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(-1, LABELS[c] + 3072).copy())
        for c in [release.classes]
        for name, raw in content.items()
    }
    train = torch.cat([read[name] for name in release.train])
    cut = len(train) - validation
    (test,) = (read[name] for name in release.test)
    assert isinstance(parts, ImageSet)
    for (images, classes), rows in zip(parts, (train[:cut], train[cut:], test), strict=True):
        assert torch.equal(images.flatten(1), rows[:, -3072:])
        assert torch.equal(classes, rows[:, -3073].long())


either = pytest.mark.parametrize("name", [*READERS])


@either
@pytest.mark.parametrize("form", ["archive", "files", "files in the archive's folder"])
def test_a_folder_of_ones_own(module, tmp_path, monkeypatch, name, form):
    release, content = small(module, monkeypatch, name)
    monkeypatch.setattr(pooch, "retrieve", None)
    if form == "archive":
        (tmp_path / release.archive).write_bytes(packed(release, content))
    else:
        put(tmp_path if form == "files" else tmp_path / release.folder, content)
    is_right(READERS[name](tmp_path), release, content)
    is_right(READERS[name](str(tmp_path), validation=30), release, content, 30)
    if form == "archive":
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            [release.archive, release.folder]
        )
        unpacked = {path.name: path.read_bytes() for path in (tmp_path / release.folder).iterdir()}
        assert unpacked == content  # and nothing else of what is in the archive
        (tmp_path / release.archive).unlink()
        is_right(READERS[name](tmp_path), release, content)


@either
def test_validation_images_are_the_last_and_share_the_memory(module, tmp_path, monkeypatch, name):
    release, content = small(module, monkeypatch, name)
    put(tmp_path, content)
    parts = READERS[name](tmp_path, validation=1)
    (train, _), (validation, _), _ = parts
    assert train.untyped_storage().data_ptr() == validation.untyped_storage().data_ptr()
    n = sum(release.train.values())
    assert len(READERS[name](tmp_path).validation[0]) == 0
    for wrong in (-1, n, 1.0, True, None):
        message = rf"^validation must be an integer in 0\.\.{n - 1}, got {wrong!r}$"
        with pytest.raises(ValueError, match=message):
            READERS[name](tmp_path, validation=wrong)


def fails(reader, message, *args):
    with pytest.raises(ValueError, match=message) as error:
        reader(*args)
    assert "\n" not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return str(error.value)


@either
def test_what_is_missing_is_named_with_its_place_and_checksum(module, tmp_path, monkeypatch, name):
    release, content = small(module, monkeypatch, name)
    put(tmp_path, content)
    (tmp_path / [*content][-1]).unlink()
    said = fails(READERS[name], "is missing: put CIFAR-100?'s archive", tmp_path)
    for part in (str(tmp_path / release.archive), release.url, release.sha256, [*content][-1]):
        assert part in said


@either
def test_damaged_files_are_refused(module, tmp_path, monkeypatch, name):
    release, content = small(module, monkeypatch, name)
    put(tmp_path, content)
    for file, raw in content.items():
        (tmp_path / file).write_bytes(raw[:-1])
        fails(READERS[name], rf"{file} must hold \d+ records of .* got {len(raw) - 1}", tmp_path)
        other = bytearray(raw)
        at = LABELS[release.classes] - 1
        other[at] = (other[at] + 1) % release.classes  # a class, and another one
        (tmp_path / file).write_bytes(other)
        fails(READERS[name], "is damaged: .* images of each class in .*, got", tmp_path)
        (tmp_path / file).write_bytes(raw)
    is_right(READERS[name](tmp_path), release, content)


@either
def test_a_damaged_archive_is_refused_and_leaves_nothing(module, tmp_path, monkeypatch, name):
    release, content = small(module, monkeypatch, name)
    whole = packed(release, content)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    archive = tmp_path / release.archive
    for damaged in (whole[:-1], whole[:50], b"", bytes(flipped), whole + b"\0", b"not gzip"):
        archive.write_bytes(damaged)
        said = fails(READERS[name], "must have SHA-256 .*: it is damaged or another", tmp_path)
        assert release.sha256 in said
        assert hashlib.sha256(damaged).hexdigest() in said
        assert [*tmp_path.iterdir()] == [archive]


def test_no_path_of_an_archive_is_followed(module, tmp_path, monkeypatch):
    release, content = small(module, monkeypatch, "_CIFAR100")
    folder = tmp_path / "in"
    folder.mkdir()
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for path in ("../outside", str(outside), "train.bin", f"{release.folder}/../train.bin"):
            member = tarfile.TarInfo(path)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
        link = tarfile.TarInfo(f"{release.folder}/test.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        tar.addfile(link)
        member = tarfile.TarInfo(f"{release.folder}/train.bin")
        member.size = len(content["train.bin"])
        tar.addfile(member, io.BytesIO(content["train.bin"]))
    (folder / release.archive).write_bytes(file.getvalue())
    sha256 = hashlib.sha256(file.getvalue()).hexdigest()
    monkeypatch.setattr(module, "_CIFAR100", dataclasses.replace(release, sha256=sha256))
    said = fails(cifar100, "could not be unpacked .*No such file", folder)  # there is no test.bin
    assert str(folder / release.archive) in said
    assert outside.read_bytes() == b"precious"
    assert not (folder / release.folder / "test.bin").exists()


@either
def test_a_full_disk_is_one_line_and_leaves_nothing(module, tmp_path, monkeypatch, name):
    release, content = small(module, monkeypatch, name)
    archive = tmp_path / release.archive
    archive.write_bytes(packed(release, content))

    def full(source, target, length):
        target.write(source.read(100))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    said = fails(READERS[name], r"could not be unpacked .*\(No space left on device\)", tmp_path)
    assert str(archive) in said
    assert [*tmp_path.iterdir()] == [archive]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_written_is_one_line(module, tmp_path, monkeypatch):
    release, content = small(module, monkeypatch, "_CIFAR100")
    (tmp_path / release.archive).write_bytes(packed(release, content))
    tmp_path.chmod(0o500)
    try:
        fails(cifar100, "could not be unpacked .*Permission denied", tmp_path)
    finally:
        tmp_path.chmod(0o700)


# The cache


@either
def test_the_download_is_checked_and_made_once(module, tmp_path, monkeypatch, name):
    release, content = small(module, monkeypatch, name)
    monkeypatch.setenv("BATCHRAMP_DATA", str(tmp_path / "deep" / "cache"))
    raw = packed(release, content)
    fetched = []

    def serve(url, output_file, _):
        fetched.append(url)
        Path(output_file).write_bytes(raw)

    retrieve = functools.partial(pooch.retrieve, downloader=serve)
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    is_right(READERS[name](), release, content)
    assert fetched == [f"https://www.cs.toronto.edu/~kriz/{release.archive}"]
    monkeypatch.setattr(pooch, "retrieve", None)
    is_right(READERS[name](validation=5), release, content, 5)
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    cache = tmp_path / "deep" / "cache"
    shutil.rmtree(cache / release.folder)  # what is downloaded is unpacked again
    is_right(READERS[name](), release, content)
    assert len(fetched) == 1
    shutil.rmtree(cache / release.folder)
    (cache / release.archive).write_bytes(raw[:-5])  # what is damaged is fetched again
    is_right(READERS[name](), release, content)
    assert len(fetched) == 2


@either
def test_a_corrupt_download_is_refused_and_not_kept(module, tmp_path, monkeypatch, name):
    release, content = small(module, monkeypatch, name)
    monkeypatch.setenv("BATCHRAMP_DATA", str(tmp_path))

    def serve(url, output_file, _):
        Path(output_file).write_bytes(packed(release, content)[:-1])

    monkeypatch.setattr(pooch, "retrieve", functools.partial(pooch.retrieve, downloader=serve))
    said = fails(READERS[name], "could not be fetched .*hash")
    assert f"put the file there (SHA-256 {release.sha256})" in said
    assert {path.name for path in tmp_path.iterdir()} <= {f"{release.archive}.lock"}


@pytest.mark.parametrize(
    "failure",
    [OSError("no route\nto host"), ValueError(), TimeoutError(), OSError(28, "No space left")],
)
def test_without_a_network_it_says_where_to_put_what(module, tmp_path, monkeypatch, failure):
    release, _ = small(module, monkeypatch, "_CIFAR100")
    monkeypatch.setenv("BATCHRAMP_DATA", str(tmp_path))

    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr(pooch, "retrieve", fail)
    said = fails(cifar100, "could not be fetched")
    assert str(tmp_path / release.archive) in said
    assert release.sha256 in said


def test_a_cache_that_is_no_folder_is_one_line(module, tmp_path, monkeypatch):
    release, _ = small(module, monkeypatch, "_CIFAR10")
    (tmp_path / "file").write_bytes(b"")
    for cache in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("BATCHRAMP_DATA", str(cache))
        said = fails(cifar10, f"{cache} must be a folder to write to .*BATCHRAMP_DATA")
        assert release.sha256 in said


class Response:
    """As much of requests' as pooch's own downloader uses."""

    def __init__(self, raw):
        self.raw = raw
        self.headers = {"content-length": str(len(raw))}

    def raise_for_status(self):
        pass

    def iter_content(self, chunk_size):
        for start in range(0, len(self.raw), chunk_size):
            yield self.raw[start : start + chunk_size]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_bar_goes_to_a_terminal_only(module, tmp_path, monkeypatch, terminal):
    import requests

    release, content = small(module, monkeypatch, "_CIFAR10")
    monkeypatch.setenv("BATCHRAMP_DATA", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    raw = packed(release, content)
    monkeypatch.setattr(requests, "get", lambda *args, **kwargs: Response(raw))

    class Stderr(io.StringIO):
        def isatty(self):
            return terminal

    stderr = Stderr()
    pooch.get_logger().setLevel("WARNING")  # it would say what is fetched
    try:
        monkeypatch.setattr(sys, "stderr", stderr)
        is_right(cifar10(), release, content)
    finally:
        monkeypatch.undo()
        pooch.get_logger().setLevel("INFO")
    said = stderr.getvalue()
    if terminal:
        size = f"{len(raw) / 1e3:.1f}"
        assert f"{size}/{size} kB" in said
        assert "cifar-10-binary.tar.gz" in said
    else:
        assert said == ""


# The published ones


def test_the_published_releases(module):
    ten, hundred = module._CIFAR10, module._CIFAR100
    assert sum(ten.train.values()) == sum(hundred.train.values()) == 50_000
    assert sum(ten.test.values()) == sum(hundred.test.values()) == 10_000
    assert [*ten.files] == [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    assert [*hundred.files] == ["train.bin", "test.bin"]
    assert len(ten.sha256) == len(hundred.sha256) == 64


@pytest.mark.slow
def test_memory_of_the_whole_set_is_little_more_than_its_images(tmp_path):
    for name, n in (("train.bin", 50_000), ("test.bin", 10_000)):
        rows = np.zeros((n, 3074), dtype=np.uint8)
        rows[:, 2:] = np.arange(3072).astype(np.uint8)
        rows[:, 1] = np.arange(n) % 100
        rows.tofile(tmp_path / name)
    # VmHWM, since a child's getrusage starts with what its parent had when it was forked.
    code = (
        "import re, sys, torch\n"
        "from batchramp.data import cifar100\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)',"
        " open('/proc/self/status').read())[1])\n"
        "before = peak()\n"
        "parts = cifar100(sys.argv[1], validation=5000)\n"
        "assert [len(x) for x, _ in parts] == [45000, 5000, 10000]\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    )
    images = 60_000 * (3072 + 8) / 1024
    assert images * 0.9 < int(done.stdout) < images * 1.15  # in KiB


# Normalisation


@pytest.mark.parametrize("normalise", [CIFAR10_NORMALISE, CIFAR100_NORMALISE])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalise_is_its_formula(normalise, layout):
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    inputs = values.contiguous(memory_format=layout)
    found = normalise(inputs)
    mean, std = torch.tensor([normalise.mean, normalise.std], dtype=torch.float64)
    exact = (inputs.double() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=layout)
    # Three roundings of numbers below 4.
    assert float((found.double() - exact).abs().max()) < 3 * 4 * 2.0**-24
    assert torch.equal(normalise(inputs[0]), found[0])
    together = normalise(torch.stack([inputs, inputs]))
    assert torch.equal(together[1], found)


def test_normalise_is_a_value():
    assert copy.deepcopy(CIFAR10_NORMALISE) == CIFAR10_NORMALISE != CIFAR100_NORMALISE
    assert pickle.loads(pickle.dumps(CIFAR10_NORMALISE)) == CIFAR10_NORMALISE
    assert repr(CIFAR10_NORMALISE).startswith("Normalise(mean=(0.4914, 0.4822, 0.4465)")


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (0.0,), "std must be a tuple of finite numbers > 0"),
        ((0.5,), (-1.0,), "std must be a tuple of finite numbers > 0"),
        ((float("nan"),), (1.0,), "mean must be a tuple of finite numbers, got"),
        ((0.5,), (float("inf"),), "std must be a tuple of finite numbers > 0"),
        ([0.5], (1.0,), r"mean must be a tuple of finite numbers, got \[0.5\]"),
        ((), (), r"mean must be a tuple of finite numbers, got \(\)"),
        ((True,), (1.0,), "mean must be a tuple"),
        (0.5, (1.0,), "mean must be a tuple"),
        ((0.5, 0.5), (1.0,), r"std must be 2 numbers as mean is, got \(1.0,\)"),
    ],
)
def test_normalise_refuses(mean, std, message):
    with pytest.raises(ValueError, match=message):
        Normalise(mean, std)


@pytest.mark.parametrize(
    "inputs",
    [
        torch.zeros(1, 3, 4, 4),
        torch.zeros(1, 1, 4, 4, dtype=torch.uint8),
        torch.zeros(3, 4, dtype=torch.uint8),
    ],
    ids=lambda x: str(tuple(x.shape)),
)
def test_normalise_refuses_other_inputs(inputs):
    with pytest.raises(ValueError, match=r"inputs must be uint8 of shape \[..., 3, h, w\], got"):
        CIFAR10_NORMALISE(inputs)
