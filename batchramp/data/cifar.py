"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from their binary releases, as bytes, and normalised.

The releases are archives known by their SHA-256. A record of the files within is the class, one
byte (CIFAR-100: the coarse class before it), and 32 x 32 bytes each of red, green and blue, row by
row. Nothing is unpickled.
"""

import functools
import hashlib
import math
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from batchramp.data.fashion_mnist import ImageSet, in_short

__all__ = [
    "CIFAR10_NORMALISE",
    "CIFAR100_NORMALISE",
    "Normalise",
    "cifar10",
    "cifar100",
    "fetch_cifar",
    "read_cifar",
]

_PIXELS = 3 * 32 * 32

# Classes of the set -> the number of values of each label byte of a record, the class last.
_LABELS = {10: (10,), 100: (20, 100)}

# Records copied at a time, so that a file never lies in memory beside its images.
_CHUNK = 1000


@final
@dataclass(frozen=True)
class Normalise:
    """Bytes to floats of mean 0 and variance 1 a channel: (x/255 - mean) / std.

    Args:
        mean: of each channel, over pixels in [0, 1].
        std: of each channel, > 0.

    Raises:
        ValueError: not two tuples of as many finite numbers, or a std <= 0; when called, inputs
            that are not uint8 ``[..., c, h, w]`` of so many channels.

    >>> white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    >>> Normalise((0.5, 0.5, 0.5), (0.5, 0.25, 0.125))(white)[0, :, 0, 0]
    tensor([1., 2., 4.])
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            numbers = isinstance(values, tuple) and all(_is_finite(value) for value in values)
            if not numbers or not values or (name == "std" and min(values) <= 0):
                above = " > 0" if name == "std" else ""
                raise ValueError(f"{name} must be a tuple of finite numbers{above}, got {values!r}")
        if len(self.mean) != len(self.std):
            raise ValueError(f"std must be {len(self.mean)} numbers as mean is, got {self.std!r}")

    def __call__(self, inputs: Tensor) -> Tensor:
        """float32 of the same shape and memory format, on the same device."""
        if inputs.dtype != torch.uint8 or inputs.shape[-3:-2] != (len(self.mean),):
            raise ValueError(
                f"inputs must be uint8 of shape [..., {len(self.mean)}, h, w], got "
                f"{inputs.dtype} of shape {tuple(inputs.shape)}"
            )
        factor, offset = _factor_and_offset(self, inputs.device)
        return (inputs * factor).sub_(offset)


@functools.lru_cache(maxsize=32)
def _factor_and_offset(normalise: Normalise, device: torch.device) -> tuple[Tensor, Tensor]:
    """Kept: a copy to a GPU in every step would wait for the steps before it."""
    mean, std = torch.tensor([normalise.mean, normalise.std], dtype=torch.float64)
    numbers = (1 / (255 * std), mean / std)
    factor, offset = (x.float().view(-1, 1, 1).to(device) for x in numbers)
    return factor, offset


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


# Of the training images' pixels; the digits are those of the experiments they are compared with.
CIFAR100_NORMALISE = Normalise(
    mean=(0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
    std=(0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
)
CIFAR10_NORMALISE = Normalise(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))


@final
@dataclass(frozen=True)
class _Release:
    """An archive, and the records of the files in it."""

    name: str
    classes: int
    archive: str
    sha256: str
    folder: str
    train: dict[str, int]
    test: dict[str, int]

    @property
    def url(self) -> str:
        return f"https://www.cs.toronto.edu/~kriz/{self.archive}"

    @property
    def files(self) -> dict[str, int]:
        return self.train | self.test


# Published MD5: c32a1d4ab5d03f1284b67883e8d87530.
_CIFAR10 = _Release(
    name="CIFAR-10",
    classes=10,
    archive="cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder="cifar-10-batches-bin",
    train={f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
    test={"test_batch.bin": 10_000},
)
# Published MD5: 03b5dce01913d631647c71ecec9e9cb8.
_CIFAR100 = _Release(
    name="CIFAR-100",
    classes=100,
    archive="cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    folder="cifar-100-binary",
    train={"train.bin": 50_000},
    test={"test.bin": 10_000},
)


def fetch_cifar(classes: int) -> Path:
    """The folder of the files of CIFAR-10 or CIFAR-100, downloaded into the cache if need be.

    Args:
        classes: 10 or 100.

    Raises:
        ValueError: they are missing and cannot be fetched, or cannot be unpacked.
    """
    return _fetched({10: _CIFAR10, 100: _CIFAR100}[classes])


def cifar10(folder: str | os.PathLike[str] | None = None, *, validation: int = 0) -> ImageSet:
    """CIFAR-10: 50,000 - validation / validation / 10,000 images; see `cifar100`."""
    return _load(_CIFAR10, folder, validation)


def cifar100(folder: str | os.PathLike[str] | None = None, *, validation: int = 0) -> ImageSet:
    """CIFAR-100: 50,000 - validation / validation / 10,000 images of 100 (fine) classes.

    Images are uint8 ``[n, 3, 32, 32]``, in the files' order and not normalised; classes are int64
    ``[n]``. All parts of the training images share memory.

    Args:
        folder: where the archive of the binary release lies, or its files, unpacked, directly or
            in the archive's own folder. An archive is unpacked beside itself. None: the cache
            folder (``BATCHRAMP_DATA`` or the user's own), into which the archive is downloaded
            and checked if it is missing.
        validation: the number of training images, the last ones, that are for validation.

    Raises:
        ValueError: validation not in 0..49,999; files that are damaged, incomplete or of another
            checksum, or missing and cannot be fetched, or cannot be unpacked for want of space or
            permission.
    """
    return _load(_CIFAR100, folder, validation)


def read_cifar(
    path: str | os.PathLike[str], classes: int, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """Reads one file of CIFAR's binary format.

    Args:
        path: the file.
        classes: 10 or 100: CIFAR-10's records of 3,073 bytes or CIFAR-100's of 3,074.
        count: the number of records it must hold; None: as many as there are, at least one.

    Returns:
        The images, uint8 ``[n, 3, 32, 32]``, and their (fine) classes, int64 ``[n]``.

    Raises:
        ValueError: another number of classes; a file that is missing or unreadable, truncated or
            too long, or with a class out of range; one line that names the file.
    """
    if classes not in _LABELS:
        raise ValueError(f"classes must be 10 or 100, got {classes!r}")
    path, record = Path(path), len(_LABELS[classes]) + _PIXELS
    if count is None:
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _unreadable(path, error) from None
        count = max(1, size // record)
    images, found = _room(count)
    _read_into(path, classes, images, found)
    return images, found


def _room(n: int) -> tuple[Tensor, Tensor]:
    return torch.empty(n, 3, 32, 32, dtype=torch.uint8), torch.empty(n, dtype=torch.int64)


def _read_into(path: Path, classes: int, images: Tensor, found: Tensor) -> None:
    limits = np.array(_LABELS[classes])
    n, record = len(images), len(limits) + _PIXELS
    rows, labels = images.view(n, _PIXELS).numpy(), found.numpy()
    chunk = np.empty((min(n, _CHUNK), record), dtype=np.uint8)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != n * record:
                raise ValueError(
                    f"{path} must hold {n} records of {record} bytes, {n * record} bytes in all, "
                    f"got {size}"
                )
            for start in range(0, n, _CHUNK):
                part = chunk[: n - start]
                if file.readinto(part.data) != part.nbytes:
                    raise ValueError(f"{path} has become shorter while it was read")
                wrong = np.argwhere(part[:, :-_PIXELS] >= limits)
                if len(wrong):
                    row, column = wrong[0]
                    raise ValueError(
                        f"{path} record {start + row} must have a class in "
                        f"0..{limits[column] - 1} in byte {column}, got {part[row, column]}"
                    )
                labels[start : start + len(part)] = part[:, len(limits) - 1]
                rows[start : start + len(part)] = part[:, -_PIXELS:]
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"{path} must be a readable CIFAR file, got {error.strerror or error}")


def _load(release: _Release, folder: str | os.PathLike[str] | None, validation: int) -> ImageSet:
    n = sum(release.train.values())
    whole = isinstance(validation, Integral) and not isinstance(validation, bool)
    if not whole or not 0 <= validation < n:
        raise ValueError(f"validation must be an integer in 0..{n - 1}, got {validation!r}")
    place = _fetched(release) if folder is None else _unpacked(release, Path(folder))
    images, classes = _read_all(release, place, release.train)
    cut = n - int(validation)
    return ImageSet(
        train=(images[:cut], classes[:cut]),
        validation=(images[cut:], classes[cut:]),
        test=_read_all(release, place, release.test),
    )


def _read_all(release: _Release, place: Path, files: dict[str, int]) -> tuple[Tensor, Tensor]:
    images, classes = _room(sum(files.values()))
    start = 0
    for name, count in files.items():
        stop = start + count
        _read_into(place / name, release.classes, images[start:stop], classes[start:stop])
        start = stop
    of_each = torch.bincount(classes, minlength=release.classes)
    if int(of_each.min()) != int(of_each.max()):
        raise ValueError(
            f"{place} is damaged: {release.name} has {start // release.classes} images of each "
            f"class in {', '.join(files)}, got {int(of_each.min())} to {int(of_each.max())}"
        )
    return images, classes


def _unpacked(release: _Release, folder: Path) -> Path:
    """Where in a folder the files lie; the archive is unpacked if it has to be."""
    place = _place(release, folder)
    if place is not None:
        return place
    archive = folder / release.archive
    if not archive.is_file():
        raise ValueError(
            f"{archive} is missing: put {release.name}'s archive of that name there (from "
            f"{release.url}, SHA-256 {release.sha256}), or its files {', '.join(release.files)}"
        )
    return _unpack(release, archive)


def _place(release: _Release, folder: Path) -> Path | None:
    for place in (folder / release.folder, folder):
        if all((place / name).is_file() for name in release.files):
            return place
    return None


def _unpack(release: _Release, archive: Path) -> Path:
    """Each file appears whole or not at all, also for others who unpack or read here."""
    place = archive.parent / release.folder
    try:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != release.sha256:
            raise ValueError(
                f"{archive} must have SHA-256 {release.sha256}, got {digest}: it is damaged or "
                f"another file, fetch it again from {release.url}"
            )
        with tempfile.TemporaryDirectory(dir=archive.parent) as temporary:
            for name, content in _members(release, archive):
                with (Path(temporary) / name).open("wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
                    file.flush()
                    os.fsync(file.fileno())
            place.mkdir(exist_ok=True)
            for name in release.files:
                (Path(temporary) / name).replace(place / name)
    except OSError as error:
        size = sum(release.files.values()) * (_PIXELS + len(_LABELS[release.classes])) / 1e6
        raise ValueError(
            f"{archive} could not be unpacked into {place} ({error.strerror or error}): it needs "
            f"{size:.0f} MB there, or unpack it elsewhere and name that folder"
        ) from None
    return place


def _members(release: _Release, archive: Path) -> Iterator[tuple[str, Any]]:
    """The files that are expected, and no other, under our own names: no path of the archive's."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            if folder == release.folder and name in release.files and member.isfile():
                yield name, tar.extractfile(member)


def _fetched(release: _Release) -> Path:
    """The place in the cache folder; one process downloads and unpacks while others wait."""
    import pooch
    from filelock import FileLock

    cache = Path(os.environ.get("BATCHRAMP_DATA") or pooch.os_cache("batchramp"))
    place = _place(release, cache)
    if place is not None:
        return place
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{release.archive}.lock"):
            if _place(release, cache) is None:
                _download(release, cache)
            return _unpacked(release, cache)
    except OSError as error:
        raise ValueError(
            f"{cache} must be a folder to write to ({error.strerror or error}): name another in "
            f"BATCHRAMP_DATA, or put {release.name}'s archive {release.archive} anywhere (from "
            f"{release.url}, SHA-256 {release.sha256}) and name its folder"
        ) from None


def _download(release: _Release, cache: Path) -> None:
    import pooch

    archive, known = cache / release.archive, f"sha256:{release.sha256}"
    try:
        with _bar(release.archive) as bar:
            pooch.retrieve(release.url, known, archive.name, cache, progressbar=bar)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{archive} is missing or damaged and {release.url} could not be fetched "
            f"({in_short(error)}): put the file there (SHA-256 {release.sha256})"
        ) from None


@final
class _Bar:
    """A rich progress bar of bytes with the methods that pooch calls on one of tqdm's."""

    total = 0

    def __init__(self, progress: Any, task: Any) -> None:
        self._progress, self._task = progress, task

    def update(self, n: int) -> None:
        self._progress.update(self._task, total=self.total, advance=n)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        self._progress.refresh()


@contextmanager
def _bar(description: str) -> Iterator[Any]:
    """A bar on stderr if that is a terminal, else False."""
    if not sys.stderr.isatty():
        yield False
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as shown:
        yield _Bar(shown, shown.add_task(description, total=None))
