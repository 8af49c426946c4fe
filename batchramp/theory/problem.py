"""The constants of an optimisation problem that the convergence theorems speak of."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

from batchramp.schedules import as_number

__all__ = ["Problem"]


@final
@dataclass(frozen=True)
class Problem:
    """The constants of conditions (C1)-(C3) and Assumption 1 of Imaizumi and Iiduka (ACML 2025).

    Args:
        initial_gap: D0 = f(x_0) - f*, > 0.
        smoothness: L > 0, a Lipschitz constant of ∇f.
        variance: σ² >= 0, a bound on E||∇f_i - ∇f||² of a single sample's gradient.
        gradient_bound: G > 0, a bound on ||∇f_i||.
        initial_gradient_norm: ||∇f(x_0)||, where it is known.

    Raises:
        ValueError: a constant out of its range.

    >>> Problem(initial_gap=5.0, smoothness=2.0, variance=1.0, gradient_bound=3.0).smoothness
    2.0
    """

    initial_gap: float
    smoothness: float
    variance: float
    gradient_bound: float
    initial_gradient_norm: float | None = None

    def __post_init__(self) -> None:
        may_be_zero = ("variance", "initial_gradient_norm")
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if value is None and name == "initial_gradient_norm":
                continue
            zero = name in may_be_zero
            allowed = f"a finite number {'>= 0' if zero else '> 0'}"
            number = as_number(
                value, name, allowed, lambda x, zero=zero: x > 0 or (zero and x == 0)
            )
            # A float of Python's own: integers of numpy would wrap, its float32 lose digits.
            object.__setattr__(self, name, float(number))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Problem":
        """From a mapping of the fields.

        Raises:
            ValueError: a constant is missing or unknown, or out of its range.
        """
        names = [f.name for f in fields(cls)]
        allowed = f"{', '.join(names[:-1])} and perhaps {names[-1]}"
        for key in plain:
            if key not in names:
                raise ValueError(f"{key} is not a constant of a problem: it has {allowed}")
        for name in names[:-1]:
            if name not in plain:
                raise ValueError(f"{name} is missing: a problem has {allowed}")
        return cls(**plain)

    @classmethod
    def from_toml(cls, source: str | os.PathLike[str]) -> tuple["Problem", int | None, str]:
        """From TOML text, or from a file if ``source`` is a Path.

        Returns:
            The problem, the file's n, if it has one, and its note of where the constants come from.

        Raises:
            ValueError: not TOML, or not a problem.

        >>> Problem.from_toml("n = 9\\ninitial_gap = 5\\nsmoothness = 2\\nvariance = 1\\n"
        ...                   "gradient_bound = 3")[1]
        9
        """
        where = "problem" if isinstance(source, str) else str(source)
        try:
            text = source if isinstance(source, str) else Path(source).read_text(encoding="utf-8")
            plain = dict(tomllib.loads(text))
            n = plain.pop("n", None)
            if n is not None and (type(n) is not int or n < 1):
                raise ValueError(f"n must be an integer >= 1, got {n!r}")
            note = plain.pop("note", "")
            if not isinstance(note, str):
                raise ValueError(f"note must be a text, got {note!r}")
            return cls.from_dict(plain), n, note
        except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of a field
            raise ValueError(f"{where}: {error}") from None

    def to_toml(self) -> str:
        """As TOML text, the inverse of `from_toml`.

        >>> print(Problem(5.0, 2.0, 1.0, 3.0).to_toml())
        initial_gap = 5.0
        smoothness = 2.0
        variance = 1.0
        gradient_bound = 3.0
        <BLANKLINE>
        """
        import tomli_w

        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return tomli_w.dumps({name: float(v) for name, v in given.items() if v is not None})
