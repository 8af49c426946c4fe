"""Readers of files and their refusals; the synthetic problem's constants, held against numbers."""

import dataclasses
import functools
import gzip
import hashlib
import math
import shutil
import struct
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
from torch.utils.data import TensorDataset

from batchramp import Plan, ScheduledBatchSampler, Task
from batchramp.data import fashion_mini, fashion_mnist, quadratic, read_idx
from batchramp.theory import Problem

FILES = [
    f"{part}-{kind}-ubyte.gz"
    for part in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
VALUES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def idx(values=VALUES, magic=None):
    header = b"\x00\x00\x08" + bytes([values.ndim]) if magic is None else magic
    return header + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def refused(path, message, **kwargs):
    with pytest.raises(ValueError, match=message) as error:
        read_idx(path, **kwargs)
    said = str(error.value)
    assert "\n" not in said
    assert str(path) in said
    assert error.value.__suppress_context__ or error.value.__context__ is None


# IDX


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize(
    "values",
    [VALUES, VALUES.ravel(), VALUES.reshape(1, 2, 3, 4), VALUES[:0], VALUES[:, 0]],
    ids=lambda v: str(v.shape),
)
def test_idx_is_read_as_written(tmp_path, pack, values):
    path = tmp_path / "misleading.gz"
    path.write_bytes(pack(idx(values)))
    found = read_idx(str(path), sha256=hashlib.sha256(idx(values)).hexdigest())
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, values)


WHOLE = idx()
BAD = {
    "empty": (b"", "must be an IDX file"),
    "short magic": (b"\x00\x00\x08", "must be an IDX file"),
    "wrong type": (idx(magic=b"\x00\x00\x0d\x03"), "starts with 00 00 08.*got '00 00 0d 03'"),
    "wrong start": (b"PK\x03\x04" + WHOLE[4:], "must be an IDX file.*got '50 4b 03 04'"),
    "no dimension": (b"\x00\x00\x08\x00", "1 to 4 dimensions"),
    "five dimensions": (idx(magic=b"\x00\x00\x08\x05"), "1 to 4 dimensions"),
    "short header": (WHOLE[:15], "must state 3 sizes of 4 bytes, got 11 bytes"),
    "truncated": (WHOLE[:-1], r"must hold 24 bytes for its shape \(2, 3, 4\), got 23"),
    "too long": (WHOLE + b"\x00", r"must hold 24 bytes for its shape \(2, 3, 4\), got more"),
    "huge": (b"\x00\x00\x08\x04" + b"\xff" * 16, "must state at most 268435456 bytes"),
    "pickle": (b"\x80\x04cos\nsystem\n.", "must be an IDX file"),
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=[*BAD])
def test_damaged_idx_is_refused(tmp_path, pack, content, message):
    path = tmp_path / "file"
    path.write_bytes(pack(content))
    refused(path, message)


def test_damaged_gzip_is_refused(tmp_path):
    whole = gzip.compress(idx(np.arange(200, dtype=np.uint8)))
    path = tmp_path / "file.gz"
    for cut in range(2, len(whole)):
        path.write_bytes(whole[:cut])
        refused(path, "truncated or corrupt")
    path.write_bytes(whole + b"rubbish")
    refused(path, "truncated or corrupt")
    for place in range(10, len(whole)):  # a flipped bit anywhere behind gzip's own header
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused(path, "must|truncated or corrupt")


def test_a_small_file_that_unpacks_to_much_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(idx() + bytes(50_000_000), compresslevel=1))
    read = []
    real = gzip.GzipFile.read

    def counting(self, size=-1):
        read.append(size)
        return real(self, size)

    monkeypatch.setattr(gzip.GzipFile, "read", counting)
    refused(path, "got more")
    assert all(0 < size <= 25 for size in read)


def test_another_checksum_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(idx())
    wrong = "0" * 64
    refused(path, f"SHA-256 {wrong}, got {hashlib.sha256(idx()).hexdigest()}", sha256=wrong)


def test_what_cannot_be_read_is_refused(tmp_path):
    refused(tmp_path / "absent", "must be a readable IDX file, got No such file")
    refused(tmp_path, "must be a readable IDX file, got Is a directory")


# Fashion-MNIST


def test_the_bundled_set_is_the_test_images_in_their_order():
    parts = fashion_mini()
    assert [tuple(x.shape) for x, _ in parts] == [(n, 1, 28, 28) for n in (6500, 1500, 2000)]
    x, y = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert torch.bincount(y).tolist() == [1000] * 10
    raw = x * 0.3530 + 0.2860
    assert abs(float(raw.min())) < 1e-6
    assert abs(float(raw.max()) - 1) < 1e-6
    assert abs(float(x.mean())) < 0.01
    assert abs(float(x.std()) - 1) < 0.01
    again = fashion_mini()
    again.train[0].zero_()  # a set of one's own
    assert torch.equal(fashion_mini().train[0], parts.train[0])


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Fashion-MNIST is not installed here")
def test_the_whole_set_where_it_is_installed(monkeypatch):
    def no_download(*args, **kwargs):
        raise AssertionError("nothing is to be downloaded")

    monkeypatch.setattr(pooch, "retrieve", no_download)
    parts = fashion_mnist()
    assert [len(x) for x, _ in parts] == [55_000, 5_000, 10_000]
    assert [len(y) for _, y in parts] == [55_000, 5_000, 10_000]
    (a, _), (b, _), _ = parts
    assert abs(float(a.mean() * 55 + b.mean() * 5) / 60) < 1e-3
    labels = torch.cat([parts.train[1], parts.validation[1]])
    assert torch.bincount(labels).tolist() == [6000] * 10
    mini = fashion_mini()
    assert torch.equal(parts.test[0][8000:], mini.test[0])
    assert torch.equal(parts.test[1][:6500], mini.train[1])


@pytest.fixture
def module():
    import importlib

    return importlib.import_module("batchramp.data.fashion_mnist")


def small(module, monkeypatch):
    """The four files, small, by name; known to the module by their checksums."""
    content = {}
    for part, n in (("train", 60), ("t10k", 10)):
        images = np.arange(n * 784, dtype=np.uint32).astype(np.uint8).reshape(n, 28, 28)
        content[f"{part}-images"] = idx(images)
        content[f"{part}-labels"] = idx(np.arange(n, dtype=np.uint8) % 10)
    packed = {key: gzip.compress(raw, mtime=0) for key, raw in content.items()}
    for name, of, digest in (
        ("_CONTENT_SHA256", content, hashlib.sha256),
        ("_DOWNLOAD_MD5", packed, functools.partial(hashlib.md5, usedforsecurity=False)),
    ):
        sums = {key: digest(raw).hexdigest() for key, raw in of.items()}
        monkeypatch.setattr(module, name, sums)
    monkeypatch.setattr(module, "_DEBIAN", Path("/nowhere"))
    return {module._file(key): raw for key, raw in packed.items()}


@pytest.mark.parametrize("unpack", [False, True])
def test_a_folder_of_ones_own_packed_or_not(module, tmp_path, monkeypatch, unpack):
    for name, raw in small(module, monkeypatch).items():
        path = tmp_path / (name.removesuffix(".gz") if unpack else name)
        path.write_bytes(gzip.decompress(raw) if unpack else raw)
    parts = fashion_mnist(tmp_path)
    assert len(parts.test[0]) == 10
    assert parts.train[0].shape == (60, 1, 28, 28)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_wrong_file_is_named(module, tmp_path, monkeypatch, name):
    files = small(module, monkeypatch)
    for each, raw in files.items():
        (tmp_path / each).write_bytes(raw)
    (tmp_path / name).write_bytes(gzip.compress(idx()))
    with pytest.raises(ValueError, match=f"{name} must have content of SHA-256"):
        fashion_mnist(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{tmp_path / name} is missing: put .* there") as error:
        fashion_mnist(str(tmp_path))
    assert "\n" not in str(error.value)


def test_the_download_is_checked_and_made_once(module, tmp_path, monkeypatch):
    files = small(module, monkeypatch)
    monkeypatch.setenv("BATCHRAMP_DATA", str(tmp_path))
    fetched = []

    def serve(url, output_file, _):
        fetched.append(url)
        Path(output_file).write_bytes(files[url.rsplit("/", 1)[1]])

    retrieve = functools.partial(pooch.retrieve, downloader=serve)
    folder = module._download(retrieve)
    assert folder == tmp_path / "fashion-mnist"
    assert fetched == [module._URL + name for name in FILES]
    module._download(retrieve)
    assert len(fetched) == 4
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert len(fashion_mnist().test[0]) == 10


def test_a_corrupt_download_is_refused_and_not_kept(module, tmp_path, monkeypatch):
    files = small(module, monkeypatch)
    monkeypatch.setenv("BATCHRAMP_DATA", str(tmp_path))

    def serve(url, output_file, _):
        raw = files[url.rsplit("/", 1)[1]]
        Path(output_file).write_bytes(raw[:-1] if "labels" in url else raw)

    monkeypatch.setattr(pooch, "retrieve", functools.partial(pooch.retrieve, downloader=serve))
    with pytest.raises(ValueError, match=r"train-labels.* could not be fetched .*hash") as error:
        fashion_mnist()
    said = str(error.value)
    assert "\n" not in said
    assert f"put the file there (MD5 {module._DOWNLOAD_MD5['train-labels']})" in said
    kept = [path.name for path in (tmp_path / "fashion-mnist").iterdir()]
    assert kept == ["train-images-idx3-ubyte.gz"]


@pytest.mark.parametrize("failure", [OSError("no route\nto host"), ValueError(), TimeoutError()])
def test_without_a_network_it_says_where_to_put_what(module, tmp_path, monkeypatch, failure):
    small(module, monkeypatch)
    monkeypatch.setenv("BATCHRAMP_DATA", str(tmp_path))

    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr(pooch, "retrieve", fail)
    with pytest.raises(ValueError, match="could not be fetched") as error:
        fashion_mnist()
    assert "\n" not in str(error.value)
    assert str(tmp_path / "fashion-mnist" / FILES[0]) in str(error.value)


def test_the_bundled_files_are_the_published_ones(module, tmp_path):
    for path in module._BUNDLED.glob("*.gz"):
        key = path.name.removesuffix("-idx3-ubyte.gz").removesuffix("-idx1-ubyte.gz")
        assert read_idx(path, sha256=module._CONTENT_SHA256[key]).shape[0] == 10_000
    shutil.copytree(module._BUNDLED, tmp_path / "mini")
    assert (tmp_path / "mini" / "LICENSE").is_file()


# The synthetic problem


CASES = [(2, 1, 0.5), (6, 3, 1.0), (256, 10, 2.5)]
cases = pytest.mark.parametrize(("n", "d", "r"), CASES, ids=str)


def gradients(z, x):
    """∇f_i for all i, by autograd on the module."""
    from batchramp.models import Quadratic

    rows = []
    for row in z:
        model = Quadratic(x)
        model(row[None]).sum().backward()
        rows.append(model.x.grad)
    return torch.stack(rows)


def points(d, count=400, spread=3.0):
    generator = torch.Generator().manual_seed(d)
    x = torch.randn(count, d, generator=generator, dtype=torch.float64)
    return x * spread * torch.rand(count, 1, generator=generator, dtype=torch.float64)


def slope(x):
    return 2 * x / (1 + x * x) ** 2


@cases
def test_the_directions_have_length_r_and_sum_to_zero(n, d, r):
    z, x0, _ = quadratic(n, d, r, seed=4)
    assert z.shape == (n, d)
    assert z.dtype == x0.dtype == torch.float64
    torch.testing.assert_close(z.norm(dim=1), torch.full((n,), r, dtype=torch.float64))
    assert torch.equal(z[: n // 2], -z[n // 2 :])
    assert float(z.sum(0).abs().max()) <= 1e-13 * n * r


@cases
def test_variance_is_exact_and_g_is_never_exceeded(n, d, r):
    z, x0, problem = quadratic(n, d, r)
    worst = torch.full((d,), 1 / math.sqrt(3), dtype=torch.float64)  # where φ' is greatest
    for x in (x0, torch.zeros_like(x0), worst, *points(d, 4)):
        found = gradients(z, x)
        torch.testing.assert_close(found.mean(0), slope(x), rtol=1e-12, atol=1e-13)
        variance = (found - found.mean(0)).square().sum(1).mean()
        assert float(variance) == pytest.approx(problem.variance, rel=1e-12)
        assert float(found.norm(dim=1).max()) <= problem.gradient_bound * (1 + 1e-12)
    at_points = (slope(points(d))[:, None] + z).norm(dim=2)
    assert float(at_points.max()) <= problem.gradient_bound
    full = gradients(z, worst).mean(0).norm()
    assert float(full) == pytest.approx(problem.gradient_bound - r, rel=1e-12)  # it is attained


@cases
def test_smoothness_is_attained_at_0_and_never_exceeded(n, d, r):
    _, _, problem = quadratic(n, d, r)
    x, y = points(d, 3000), points(d, 3000).flip(0)
    ratio = (slope(x) - slope(y)).norm(dim=1) / (x - y).norm(dim=1)
    assert float(ratio.max()) <= problem.smoothness
    near = 1e-5 * points(d, 50)
    ratio = (slope(near) - slope(-near)).norm(dim=1) / (2 * near).norm(dim=1)
    assert float(ratio.min()) == pytest.approx(problem.smoothness, rel=1e-6)


@cases
def test_the_minimum_is_0_at_0_and_the_gap_is_d0(n, d, r):
    from batchramp.models import Quadratic

    z, x0, problem = quadratic(n, d, r)

    def f(x):
        return Quadratic(x)(z).mean().item()

    assert f(torch.zeros_like(x0)) == pytest.approx(0.0, abs=1e-15)
    assert min(f(x) for x in points(d, 50)) > 0
    assert f(x0) == pytest.approx(problem.initial_gap, rel=1e-12)
    assert float(slope(x0).norm()) == pytest.approx(problem.initial_gradient_norm, rel=1e-12)


def test_quadratic_is_a_function_of_its_seed():
    a, b, c = (quadratic(8, 3, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n", (0, 1, 3, -2, 4.0, "4", True, None)),
        ("dimension", (0, -1, 2.5, True, None)),
        ("radius", (0, -1.0, math.inf, math.nan, "1", True, None)),
        ("seed", (-1, 0.5, None, True)),
    ],
)
def test_quadratic_refuses(field, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{field} must be .*, got {value!r}$"):
            quadratic(**{field: value})


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Problem)])
def test_problem_refuses(field):
    good = {
        "initial_gap": 5,
        "smoothness": 2.0,
        "variance": np.float64(1.0),
        "gradient_bound": 3.0,
        "initial_gradient_norm": 0.0,
    }
    assert Problem(**good) == Problem(**good)
    for value in (-1e-9, math.nan, math.inf, "1", True, [1.0]):
        with pytest.raises(ValueError, match=f"^{field} must be a finite number >=? 0, got"):
            Problem(**good | {field: value})
    may_be_zero = field in ("variance", "initial_gradient_norm")
    if may_be_zero:
        Problem(**good | {field: 0})
    else:
        with pytest.raises(ValueError, match="> 0, got 0"):
            Problem(**good | {field: 0})
    if field != "initial_gradient_norm":
        with pytest.raises(ValueError, match="got None"):
            Problem(**good | {field: None})


# Task: what is trained on what


X, Y = torch.arange(2500.0).reshape(-1, 1), torch.arange(2500)


def task(**given):
    parts = {"model": list, "train": (X, Y), "test": None, "loss_fn": max}
    return Task(**parts | given)


@pytest.mark.parametrize("train", [(X, Y), TensorDataset(X, Y)], ids=["tensors", "dataset"])
def test_a_task_gives_the_samplers_batches_and_all_in_order(train):
    made = task(train=train, validation=train)
    assert made.n == 2500
    plan = Plan(epochs=1, batch_size=400)
    sampler, other = (ScheduledBatchSampler(plan, made.n, seed=2) for _ in range(2))
    for (_, y), indices in zip(made.batches(sampler), other, strict=True):
        assert y.tolist() == indices
    before = torch.get_rng_state()
    for part in ("train", "validation"):
        batches = list(made.in_order(part))
        assert torch.equal(torch.cat([x for x, _ in batches]), X)
        assert torch.equal(torch.cat([y for _, y in batches]), Y)
    assert made.in_order("test") is None
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": 3}, "model must be callable, got int"),
        ({"loss_fn": None}, "loss_fn must be callable, got NoneType"),
        ({"train": None}, "train must be two tensors"),
        ({"train": (X, Y[:-1])}, r"train must be two tensors of the same length.*\(2499,\)"),
        ({"train": (X[:0], Y[:0])}, "train must be two tensors of the same length >= 1"),
        ({"train": (X,)}, "train must be two tensors"),
        ({"train": (X, [1, 2])}, "train must be two tensors.*'list'"),
        ({"train": [X, Y]}, "train must be a tuple of two tensors or a Dataset, got a list"),
        ({"train": X}, "train must be two tensors.*got Tensor"),
        ({"train": iter([(X, Y)])}, "train must be .* map-style"),
        ({"test": []}, "test must be two tensors .* at least 1 sample, got list"),
        ({"validation": (X, Y, Y)}, "validation must be two tensors"),
        ({"train": TensorDataset(X, Y), "augment": max}, "augment goes with a pair of tensors"),
        ({"device": torch.device("cpu")}, "device must be a string"),
    ],
)
def test_a_task_refuses(given, message):
    with pytest.raises(ValueError, match=message) as error:
        task(**given)
    assert "\n" not in str(error.value)


def test_a_part_that_is_none_is_refused():
    with pytest.raises(ValueError, match="part must be train, validation or test, got 'name'"):
        task().in_order("name")
