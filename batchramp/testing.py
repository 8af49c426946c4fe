"""Contract tests for schedules of your own, to be called from your own test suite."""

import copy
import json
import math
import pickle
import tomllib
from collections.abc import Callable
from typing import Any

import tomli_w

from batchramp.schedules import Schedule, as_count, as_schedule

__all__ = ["check_schedule"]


def check_schedule(schedule: Schedule, horizon: int = 100) -> None:
    """Check that a schedule keeps every promise that Plans, drivers and files rely on.

    It is a frozen, hashable dataclass, equal to its copies; it pickles and comes back from a dict,
    from JSON and from TOML; called ``schedule(tick, horizon)`` it is a pure function that gives
    finite Python numbers; it bears a Plan one tick long (or refuses it with a ValueError); its
    ``next_change``, ``next_turn`` and ``extremes`` tell the truth. That ``repr`` evaluates to an
    equal schedule is good style and not checked; that it is the same for equal schedules is.

    Args:
        schedule: an instance, best with values that no argument has by default.
        horizon: the length of the Plan that it is tried in, in ticks. The time is linear in it.

    Raises:
        AssertionError: a promise is broken; one line names the schedule and the promise.

    >>> from dataclasses import dataclass
    >>> from batchramp.schedules import Cosine
    >>> check_schedule(Cosine(0.1))

    >>> @dataclass(frozen=True)
    ... class Countdown(Schedule):
    ...     start: float
    ...     def __call__(self, tick, horizon, /):
    ...         return self.start * (horizon - 1 - tick) / (horizon - 1)
    >>> check_schedule(Countdown(0.1))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    AssertionError: Countdown(start=0.1): fails in a Plan of 1 tick: ZeroDivisionError: ...
    """
    horizon = as_count(horizon, "horizon")
    _require(isinstance(schedule, Schedule), schedule, "is not a batchramp Schedule")
    _check_value(schedule)
    values = _check_values(schedule, horizon)
    _check_changes(schedule, horizon, values)
    _check_files(schedule, horizon, values)


def _check_value(schedule: Schedule) -> None:
    try:
        as_schedule(schedule, "schedule")
    except ValueError as error:
        _require(False, schedule, str(error))
    _require_equal(schedule, copy.deepcopy(schedule), "its deep copy")


def _check_values(schedule: Schedule, horizon: int) -> list[float]:
    def call(tick: int, of: Schedule = schedule) -> float:
        what = f"schedule({tick}, {horizon}) fails"
        return _attempt(schedule, what, lambda: of(tick, horizon))

    values = [call(tick) for tick in range(horizon)]
    for tick, value in enumerate(values):
        got = f"schedule({tick}, {horizon}) gives {value!r}"
        kind = type(value)
        _require(kind in (int, float), schedule, f"{got}, a {kind.__name__}, not a Python number")
        _require(math.isfinite(value), schedule, f"{got}, which is not finite")
    _attempt(schedule, "fails in a Plan of 1 tick", lambda: _one_tick(schedule))
    for of in (schedule, copy.deepcopy(schedule)):
        for tick in reversed(range(horizon)):
            value = call(tick, of)
            _require(
                value == values[tick],
                schedule,
                f"is not pure: schedule({tick}, {horizon}) gives {values[tick]!r}, and later, in "
                f"another order, {value!r}",
            )
    return values


def _one_tick(schedule: Schedule) -> None:
    try:
        value = schedule(0, 1)
    except ValueError:  # refused, as by a warm-up that is as long as the Plan
        return
    if not math.isfinite(value):
        raise ArithmeticError(f"gives {value!r}")


def _check_changes(schedule: Schedule, horizon: int, values: list[float]) -> None:
    same_until = horizon
    for tick in reversed(range(horizon)):
        if tick + 1 < horizon and values[tick + 1] != values[tick]:
            same_until = tick + 1
        what = f"next_change({tick}, {horizon})"
        change = _attempt(
            schedule, f"{what} fails", lambda tick=tick: schedule.next_change(tick, horizon)
        )
        _require(
            type(change) is int and change > tick,
            schedule,
            f"{what} must be an integer > {tick}, got {change!r}",
        )
        _require(
            change <= same_until or same_until == horizon,
            schedule,
            f"{what} gives {change}, but the value changes at {same_until}",
        )
    ticks = _attempt(schedule, "extremes fails", lambda: list(schedule.extremes(horizon)))
    _require(
        all(type(tick) is int and 0 <= tick < horizon for tick in ticks) and bool(ticks),
        schedule,
        f"extremes({horizon}) must be ticks in 0..{horizon - 1}, got {ticks!r}",
    )
    for name, most in (("least", min), ("greatest", max)):
        _require(
            most(values[tick] for tick in ticks) == most(values),
            schedule,
            f"extremes({horizon}) miss the {name} value, {most(values)!r}, at tick "
            f"{values.index(most(values))}: is it monotone?",
        )
    _check_turns(schedule, horizon, values)


def _check_turns(schedule: Schedule, horizon: int, values: list[float]) -> None:
    tick = 0
    while tick < horizon - 1:
        what = f"next_turn({tick}, {horizon})"
        turn = _attempt(
            schedule, f"{what} fails", lambda tick=tick: schedule.next_turn(tick, horizon)
        )
        _require(
            type(turn) is int and turn > tick,
            schedule,
            f"{what} must be an integer > {tick}, got {turn!r}",
        )
        until = min(turn, horizon - 1)
        part = values[tick : until + 1]
        _require(
            part == sorted(part) or part == sorted(part, reverse=True),
            schedule,
            f"{what} gives {turn}, but the value turns around before: is it monotone?",
        )
        tick = until


def _check_files(schedule: Schedule, horizon: int, values: list[float]) -> None:
    plain = _attempt(schedule, "to_dict fails", schedule.to_dict)
    ways: dict[str, Callable[[], Schedule]] = {
        "pickle": lambda: pickle.loads(pickle.dumps(schedule)),
        "a dict": lambda: Schedule.from_dict(plain),
        "JSON": lambda: Schedule.from_dict(json.loads(json.dumps(plain))),
        "TOML": lambda: Schedule.from_dict(tomllib.loads(tomli_w.dumps(plain))),
    }
    for name, way in ways.items():
        found = _attempt(schedule, f"does not come back from {name}", way)
        _require_equal(schedule, found, f"what comes back from {name}")
        _require(
            [found(tick, horizon) for tick in range(horizon)] == values,
            schedule,
            f"has not the values of what comes back from {name}",
        )


def _require_equal(schedule: Schedule, other: object, name: str) -> None:
    _require(other == schedule, schedule, f"is not equal to {name}, {other!r}")
    _require(hash(other) == hash(schedule), schedule, f"has not the hash of {name}")
    _require(repr(other) == repr(schedule), schedule, f"prints otherwise than {name}, {other!r}")


def _attempt(schedule: Schedule, failure: str, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise AssertionError(f"{schedule!r}: {failure}: {said}") from error


def _require(kept: bool, schedule: object, broken: str) -> None:
    if not kept:
        raise AssertionError(f"{schedule!r}: {broken}")
