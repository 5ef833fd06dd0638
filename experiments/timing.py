"""Ways of doing the same thing, run in turns and compared: medians, quartiles, ratios to the first, and whether they agree.

Beside the seconds of the clock stand those of all cores together, which say the same on a machine that does something else too.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mmu_jax import InputError

TOLERANCE = 1e-4  # of a norm: float32 sums of other orders differ by less, other arithmetic by more


class Way(NamedTuple):
    """One way of doing something.

    Attributes:
      label: what it is, in a table.
      work: does it once; what it returns is waited for.
      shown: what ``work`` returned as arrays by name, for comparison; None compares nothing.
      like: ways with the same word must show the same.
    """

    label: str
    work: Callable[[], Any]
    shown: Callable[[Any], dict[str, np.ndarray]] | None = None
    like: str = ""


class Contest(NamedTuple):
    """Ways under one title, ours first."""

    title: str
    ways: list[Way]


def seconds(way: Way) -> tuple[float, float]:
    """How long one run takes: by the clock, and of all cores together."""
    clock, cores = time.perf_counter(), time.process_time()
    jax.block_until_ready(way.work())
    return time.perf_counter() - clock, time.process_time() - cores


def difference(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    """The largest difference of an array, in norm and relative to ``wanted``; infinite where names or shapes are others.

    >>> difference({'a': np.array([3.0, 4.0])}, {'a': np.array([3.0, 4.5])}).__round__(3)
    0.092
    """
    if {n: x.shape for n, x in found.items()} != {n: x.shape for n, x in wanted.items()}:
        return float("inf")
    norms = [(np.linalg.norm(np.subtract(found[n], x, dtype=np.float64)), np.linalg.norm(x)) for n, x in wanted.items()]
    return float(np.max([apart / whole if whole else apart for apart, whole in norms]))  # of which NaN is the largest


def warm(ways: Sequence[Way]) -> dict[str, float]:
    """Runs every way once, which compiles it; by label, how far what it shows is from what the first of its like shows.

    Raises:
      InputError: two ways that are alike do not show the same.
    """
    first: dict[str, tuple[str, dict]] = {}
    apart = {}
    for way in ways:
        result = jax.block_until_ready(way.work())
        if way.shown is None:
            continue
        shown = way.shown(result)
        if way.like in first:
            label, wanted = first[way.like]
            apart[way.label] = difference(shown, wanted)
            if not apart[way.label] < TOLERANCE:
                raise InputError(
                    f"expected {way.label!r} to find what {label!r} finds, found a relative difference of "
                    f"{apart[way.label]:.1e}; mend one of them: what does something else is not compared in time"
                )
        first.setdefault(way.like, (way.label, shown))
    return apart


def interleaved(ways: Sequence[Way], rounds: int) -> dict[str, np.ndarray]:
    """Label -> :func:`seconds` of every round, ``[rounds, 2]``: each round runs all ways, every other one in the opposite order."""
    taken = {way.label: np.zeros((rounds, 2)) for way in ways}
    for turn in range(rounds):
        for way in ways if turn % 2 == 0 else reversed(ways):
            taken[way.label][turn] = seconds(way)
    return taken


def spread(values: np.ndarray) -> dict[str, float]:
    """Median and quartiles.

    >>> spread(np.array([1.0, 2.0, 3.0]))
    {'median': 2.0, 'low': 1.5, 'high': 2.5}
    """
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {"median": float(median), "low": float(low), "high": float(high)}


def compared(taken: dict[str, np.ndarray], apart: dict[str, float]) -> list[dict]:
    """A row a way: its seconds, and its ratios to the first, round by round, each as median and quartiles."""
    base, rows = next(iter(taken.values())), []
    for label, values in taken.items():
        row = {"way": label, "seconds": spread(values[:, 0]), "ratio": spread(values[:, 0] / base[:, 0])}
        row |= {"core_seconds": spread(values[:, 1]), "rounds": values[:, 0].tolist()}
        rows.append(row | ({"apart": apart[label]} if label in apart else {}))
    return rows


def held(contest: Contest, rounds: int, profile: str | None = None) -> dict:
    """The contest as a table, printed; with ``profile``, a trace of one more run of every way of ours is written there."""
    apart = warm(contest.ways)
    rows = compared(interleaved(contest.ways, rounds), apart)
    print(table(contest.title, rows), flush=True)
    if profile:
        with jax.profiler.trace(profile):
            for way in contest.ways:
                if way.label.startswith("ours"):
                    with jax.profiler.TraceAnnotation(f"{contest.title}: {way.label}"):
                        seconds(way)
    return {"title": contest.title, "rows": rows}


def table(title: str, rows: Sequence[dict]) -> str:
    """What a person reads: seconds, and the ratio to the first with its quartiles."""
    lines = [title, f"  {'':44s}{'seconds':>10s}{'ratio':>8s}   {'quartiles':14s}{'core seconds':>12s}"]
    for row in rows:
        ratio = row["ratio"]
        between = f"{ratio['low']:.2f} to {ratio['high']:.2f}"
        lines.append(f"  {row['way']:44s}{row['seconds']['median']:10.4f}{ratio['median']:8.2f}   "
                     f"{between:14s}{row['core_seconds']['median']:12.4f}")  # fmt: skip
    return "\n".join(lines)
