"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), whole, and a small part that is bundled.

Every file is known by the SHA-256 of its uncompressed content, wherever it came from.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor

from batchramp.data.idx import read_idx

__all__ = ["ImageSet", "fashion_mini", "fashion_mnist", "fetch_fashion_mnist"]

_CONTENT_SHA256 = {
    "train-images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
# Of the published, compressed files.
_DOWNLOAD_MD5 = {
    "train-images": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels": "bb300cfdad3c16e7a12a480ee83cd310",
}
_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_BUNDLED = Path(__file__).parent / "fashion_mini"

# Of the 60,000 training images' pixels, in [0, 1].
_MEAN, _STD = 0.2860, 0.3530


@final
class ImageSet(NamedTuple):
    """Images and their classes, in three disjoint parts.

    Each part is ``(images, classes)``, classes int64 of shape ``[n]``. Fashion-MNIST's images are
    float32 of shape ``[n, 1, 28, 28]``, normalised by the training set's mean and standard
    deviation; CIFAR's are uint8 of shape ``[n, 3, 32, 32]``.
    """

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def fashion_mini() -> ImageSet:
    """The bundled set: Fashion-MNIST's 10,000 test images as 6,500 / 1,500 / 2,000.

    Split once for ever by their order in the file: train, then validation, then test. A number
    measured on it says nothing of the usual benchmark, whose test set this is.

    >>> [len(images) for images, classes in fashion_mini()]
    [6500, 1500, 2000]
    """
    images, classes = _read(_BUNDLED, "t10k")
    return ImageSet(*_split(images, classes, 6500, 8000))


def fashion_mnist(folder: str | os.PathLike[str] | None = None) -> ImageSet:
    """The whole set: 55,000 / 5,000 / 10,000. The last 5,000 training images are for validation.

    Args:
        folder: where the four files lie, compressed or not. None: Debian's
            ``/usr/share/datasets/fashion-mnist`` if it is there, else the cache folder
            (``BATCHRAMP_DATA`` or the user's own), into which missing files are downloaded and
            checked.

    Raises:
        ValueError: a file is damaged or of another checksum, or is missing and cannot be fetched;
            the message says where to put it.
    """
    if folder is None:
        folder = fetch_fashion_mnist()
    train = _read(Path(folder), "train")
    test = _read(Path(folder), "t10k")
    parts = _split(*train, 55_000, 60_000)
    return ImageSet(parts[0], parts[1], test)


def fetch_fashion_mnist() -> Path:
    """The folder of Fashion-MNIST's files: Debian's, or the cache, downloaded into if need be.

    Raises:
        ValueError: they are missing and cannot be fetched.
    """
    return _DEBIAN if _DEBIAN.is_dir() else _download()


def in_short(error: Exception) -> str:
    """Why something could not be fetched, in a few words: a network's errors hold one another."""
    text = str(error).partition("\n")[0]
    short = isinstance(error, ValueError) or len(text) <= 200
    return text if text and short else type(error).__name__


def _read(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    arrays = []
    for key in (f"{part}-images", f"{part}-labels"):
        path = folder / _file(key)
        if not path.is_file() and path.with_suffix("").is_file():
            path = path.with_suffix("")
        if not path.is_file():
            raise ValueError(
                f"{path} is missing: put Fashion-MNIST's file of that name there, as it is or "
                "uncompressed"
            )
        arrays.append(read_idx(path, sha256=_CONTENT_SHA256[key]))
    images = torch.tensor(arrays[0]).unsqueeze(1).float().div_(255).sub_(_MEAN).div_(_STD)
    return images, torch.tensor(arrays[1]).long()


def _file(key: str) -> str:
    return f"{key}-idx{3 if key.endswith('images') else 1}-ubyte.gz"


def _split(
    images: Tensor, classes: Tensor, *ends: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    first, second = ends
    cuts = (slice(0, first), slice(first, second), slice(second, None))
    a, b, c = ((images[cut], classes[cut]) for cut in cuts)
    return a, b, c


def _download(retrieve: Callable[..., str] | None = None) -> Path:
    import pooch

    retrieve = retrieve or pooch.retrieve
    cache = Path(os.environ.get("BATCHRAMP_DATA") or pooch.os_cache("batchramp")) / "fashion-mnist"
    for key, md5 in _DOWNLOAD_MD5.items():
        name = _file(key)
        if (cache / name).is_file():
            continue
        try:
            retrieve(_URL + name, f"md5:{md5}", fname=name, path=cache, progressbar=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{cache / name} is missing and {_URL + name} could not be fetched "
                f"({in_short(error)}): put the file there (MD5 {md5}), or install Debian's "
                "dataset-fashion-mnist"
            ) from None
    return cache
