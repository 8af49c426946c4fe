"""Every run and epoch as a line of a CSV file, for whoever wants to count for themselves."""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from batchramp import store
from batchramp.store import COLUMNS, CONSTANTS, Record

__all__ = ["write_csv"]

_IDENTITY = ("experiment", "panel", "label", "task", "model", "optimizer", "seed", "status")


def write_csv(folder: str | Path, path: str | Path) -> Path:
    """Writes every run in ``folder`` and below as a CSV table: one line a run and epoch.

    The point before the first step is a line as well, with the epoch -1. Numbers are written so
    that reading them gives the same float; what was not measured is empty.

    Args:
        folder: where the runs lie, each in a folder of its own.
        path: the table; it appears whole or not at all.

    Returns:
        ``path``.

    Raises:
        ValueError: the folder does not exist, holds no run or is damaged, or ``path`` cannot be
            written; one line.

    >>> write_csv("no such folder", "runs.csv")
    Traceback (most recent call last):
        ...
    ValueError: folder no such folder does not exist
    """
    folder, path = Path(folder), Path(path)
    records = store.read_all(folder)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"path must be a file in a folder that exists, got {path}")
    store.write(path, csv_text(records, folder).encode())
    return path


def csv_text(records: Sequence[Record], folder: Path) -> str:
    """The table as text; run folders as seen from ``folder``."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    further = dict.fromkeys(key for r in records for row in r.rows[-1:] for key in row)
    columns = [*COLUMNS, *CONSTANTS, *(k for k in further if k not in (*COLUMNS, *CONSTANTS))]
    writer.writerow([*_IDENTITY, "folder", *columns])
    for record in records:
        names = [getattr(record, name) for name in _IDENTITY]
        names.append(Path(os.path.relpath(record.folder, folder)).as_posix())
        for row in _rows(record):
            writer.writerow([*names, *(row.get(column) for column in columns)])
    return out.getvalue()


def _rows(record: Record) -> Iterator[Mapping[str, Any]]:
    """The initial point, then the epochs."""
    norm, loss = (record.initial.get(key) for key in ("full_gradient_norm", "train_loss"))
    least = {} if norm is None else {"min_full_gradient_norm": norm, "loss_at_min_norm": loss}
    yield {"steps": 0, "samples": 0, "seconds": 0.0, **least, **record.initial, "epoch": -1}
    yield from record.rows
