"""The IDX format of the MNIST family: a magic number, the shape, then unsigned bytes."""

import gzip
import hashlib
import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

__all__ = ["read_idx"]

# What a few kilobytes of gzip may unpack to; the largest files read here state 47 million.
_MOST_BYTES = 1 << 28


def read_idx(path: str | os.PathLike[str], *, sha256: str | None = None) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzip-compressed or not.

    Args:
        path: the file.
        sha256: checksum of the *uncompressed* content, so that any packing of it is accepted.

    Returns:
        A uint8 array of the shape that the file states.

    Raises:
        ValueError: missing or unreadable, not IDX, truncated, longer than stated, corrupt, or of
            another checksum; one line that names the file.
    """
    path = Path(path)
    try:
        with path.open("rb") as packed:
            compressed = packed.read(2) == b"\x1f\x8b"
        with gzip.open(path) if compressed else path.open("rb") as file:
            return _read(path, file, sha256)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or corrupt as gzip: {error}") from None
    except OSError as error:
        raise ValueError(
            f"{path} must be a readable IDX file, got {error.strerror or error}"
        ) from None


def _read(path: Path, file: gzip.GzipFile | io.BufferedReader, sha256: str | None) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != b"\x00\x00\x08" or not 1 <= magic[3] <= 4:
        raise ValueError(
            f"{path} must be an IDX file of unsigned bytes (it starts with 00 00 08 and 1 to 4 "
            f"dimensions), got {magic.hex(' ')!r}"
        )
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise ValueError(f"{path} must state {magic[3]} sizes of 4 bytes, got {len(sizes)} bytes")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    stated = math.prod(shape)
    if stated > _MOST_BYTES:
        raise ValueError(f"{path} must state at most {_MOST_BYTES} bytes, got shape {shape}")
    content = file.read(stated + 1)  # not more than the header allows, whatever it unpacks to
    if len(content) != stated:
        found = "more" if len(content) > stated else len(content)
        raise ValueError(f"{path} must hold {stated} bytes for its shape {shape}, got {found}")
    if sha256 is not None:
        digest = hashlib.sha256(magic + sizes)
        digest.update(content)
        if digest.hexdigest() != sha256:
            raise ValueError(
                f"{path} must have content of SHA-256 {sha256}, got {digest.hexdigest()}"
            )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
