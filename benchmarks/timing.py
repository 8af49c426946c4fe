"""Sides that take turns: what is compared, how it is timed, and what comes out.

The sides of a case run in rounds whose order is shuffled. A ratio is the median, over the rounds,
of a side's time divided by the base's in the same round, so that what else the machine does hits
both; the quartiles stand beside it. Nothing here knows torch.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, final

__all__ = ["Aim", "Case", "Size", "Turn", "measure", "repeated"]

# tiny is for tests: it runs everything once, and its times mean nothing.
Size = Literal["tiny", "quick", "full"]
# Runs one turn; returns seconds for one of what the case counts.
Turn = Callable[[], float]


@final
@dataclass(frozen=True)
class Aim:
    """A limit to the ratio of one side's time to another's, or to its seconds.

    Args:
        side: whose time is divided.
        over: by whose time; "" for a limit in seconds.
        most, least: the limit; exactly one of them.
        cause: why it is missed, where it is known to be.
    """

    side: str
    over: str = ""
    most: float | None = None
    least: float | None = None
    cause: str = ""

    def __post_init__(self) -> None:
        if (self.most is None) == (self.least is None):
            raise ValueError(f"exactly one of most and least must be given, for {self.side}")

    def reached(self, value: float) -> bool:
        """Whether a ratio, or seconds, are within the limit."""
        return value <= self.most if self.most is not None else value >= (self.least or 0.0)


@final
@dataclass(frozen=True)
class Case:
    """What is timed side by side.

    Args:
        name: of the case, such as "ViT-Tiny, 118 tensors, 1 thread".
        per: what the seconds are for: "step", "image", "run".
        base: the side to which the ratios refer.
        sides: by name.
        peers: other people's packages: makers, so that one that cannot be imported, made or run is
            named in the results and stops nothing.
        rounds: how many turns each side has.
        aims: what the ratios should be.
        warm_up: whether every side has one turn that is not counted.
    """

    name: str
    per: str
    base: str
    sides: Mapping[str, Turn]
    rounds: int
    peers: Mapping[str, Callable[[], Turn]] = field(default_factory=dict)
    aims: Sequence[Aim] = ()
    warm_up: bool = True


def measure(case: Case) -> dict[str, Any]:
    """The figures of a case, ready for JSON: medians, quartiles, ratios, aims, who is missing."""
    sides = dict(case.sides)
    missing = {}
    for name, make in case.peers.items():
        try:
            sides[name] = make()
            sides[name]()
        except Exception as error:  # whatever it is, it is the peer's, and is reported
            sides.pop(name, None)
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"[:200]
    if case.warm_up:
        for name in case.sides:
            sides[name]()
    times: dict[str, list[float]] = {name: [] for name in sides}
    order, shuffle = list(sides), random.Random(0).shuffle
    for _ in range(case.rounds):
        shuffle(order)
        for name in order:
            times[name].append(sides[name]())
    rows = []
    for name, own in times.items():
        low, middle, high = quartiles(own)
        row = {"side": name, "seconds": middle, "low": low, "high": high}
        low, middle, high = quartiles(_over(own, times[case.base]))
        rows.append({**row, "ratio": middle, "ratio_low": low, "ratio_high": high})
    aims = []
    for aim in case.aims:
        if aim.side in times and aim.over in ("", *times):
            own = times[aim.side]
            values = _over(own, times[aim.over]) if aim.over else own
            low, value, high = quartiles(values)
            found = {"value": value, "low": low, "high": high, "reached": aim.reached(value)}
            aims.append({**asdict(aim), **found})
    return {
        "name": case.name,
        "per": case.per,
        "base": case.base,
        "rounds": case.rounds,
        "rows": rows,
        "aims": aims,
        "missing": missing,
    }


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; of one value, three times that.

    >>> quartiles([4.0, 1.0, 3.0, 2.0, 5.0])
    (2.0, 3.0, 4.0)
    """
    values = list(values)
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def repeated(
    work: Callable[[], object],
    seconds: float,
    *,
    count: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Turn:
    """A turn that repeats ``work`` for about so many seconds, and at least once.

    Args:
        work: one call.
        seconds: the length of a turn; 0 for one call.
        count: how many of what the case counts, such as images, one call does.
        clock: `time.thread_time` counts the processor's time of this thread alone.
    """
    calls = 0

    def turn() -> float:
        nonlocal calls
        if calls == 0:  # the first turn warms up and finds out how long a call takes
            work()
            begin = clock()
            work()
            calls = max(1, round(seconds / max(clock() - begin, 1e-9)))
        begin = clock()
        for _ in range(calls):
            work()
        return (clock() - begin) / (calls * count)

    return turn


def _over(some: Sequence[float], others: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(some, others, strict=True)]
