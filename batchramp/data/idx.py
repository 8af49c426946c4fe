"""The IDX format of the MNIST family: a magic number, the shape, then unsigned bytes."""

import gzip
import hashlib
import math
import os
import zlib
from pathlib import Path

import numpy as np

__all__ = ["read_idx"]

_MOST_BYTES = 1 << 30


def read_idx(path: str | os.PathLike[str], *, sha256: str | None = None) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzip-compressed or not.

    Args:
        path: the file.
        sha256: checksum of the *uncompressed* content, so that any packing of it is accepted.

    Returns:
        A uint8 array of the shape that the file states.

    Raises:
        ValueError: not IDX, truncated, longer than stated, corrupt, or of another checksum.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = _decompress(path, raw)
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or not 1 <= raw[3] <= 4:
        raise ValueError(
            f"{path} must be an IDX file of unsigned bytes (it starts with 00 00 08 and 1 to 4 "
            f"dimensions), got {raw[:4].hex(' ')!r}"
        )
    header = 4 + 4 * raw[3]
    shape = tuple(
        int.from_bytes(raw[i : i + 4], "big") for i in range(4, min(header, len(raw) - 3), 4)
    )
    stated = header + math.prod(shape)
    if len(shape) < raw[3] or len(raw) != stated:
        raise ValueError(f"{path} must be {stated} bytes for its shape {shape}, got {len(raw)}")
    if sha256 is not None and (found := hashlib.sha256(raw).hexdigest()) != sha256:
        raise ValueError(f"{path} must have content of SHA-256 {sha256}, got {found}")
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(shape)


def _decompress(path: Path, raw: bytes) -> bytes:
    try:
        with gzip.open(path) as file:
            content = file.read(_MOST_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is truncated or corrupt ({len(raw)} bytes of gzip): {error}"
        ) from None
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{path} must be at most {_MOST_BYTES} bytes uncompressed, got more")
    return content
