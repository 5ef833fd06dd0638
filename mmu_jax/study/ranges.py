"""What each key of a config may be: a rule is a pattern of dotted keys, what holds, and what was expected.

Every key is judged by every rule whose pattern matches it.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from mmu_jax.data import builders
from mmu_jax.data.general.benchmarks import GENERAL
from mmu_jax.metrics import METRICS
from mmu_jax.objectives import LOSSES
from mmu_jax.study.trackers import TRACKERS

DTYPES = ("float32", "bfloat16", "float16")
SCHEDULES = ("constant", "linear", "cosine")


def whole(value: Any, least: int, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _number(value: Any) -> bool:
    """Whether it is a number that float32, in which all is computed, holds as a finite one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2.0**128


def _compiles(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value)) and value != ""
    except re.error:
        return False


def _lengths(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(whole(v, 1, MOST) for v in value)


def _one_of(values: tuple[str, ...]) -> tuple[Callable[[Any], bool], str]:
    return lambda v: isinstance(v, str) and v in values, f"one of {', '.join(values)}"


MOST = 2**24  # of anything that is counted: more is a slip of the hand, and an array that no machine holds
COUNT = (lambda v: whole(v, 1, MOST), "a whole number from 1 to 2**24")
COUNT_OR_NONE = (lambda v: whole(v, 0, MOST), "a whole number from 0 to 2**24")
SAMPLES = (lambda v: whole(v, 1, 10**5), "a whole number from 1 to 100,000")
HEADLINE = (  # by the table as it is then
    lambda v: isinstance(v, str) and v in METRICS and METRICS[v].leads,
    f"one of {', '.join(name for name, metric in METRICS.items() if metric.leads)}",
)
TRACK = (
    lambda v: isinstance(v, str) and (not v or v in TRACKERS),
    f"one of {', '.join(TRACKERS)}, or nothing",
)
RANK = (lambda v: whole(v, 0, 2**14), "a whole number from 0 to 2**14")
PASSES = (lambda v: _number(v) and 0 < v <= 10**6, "a number above 0 and up to a million")
POSITIVE = (lambda v: _number(v) and v >= 2.0**-126, "a finite number above 0")
NOT_NEGATIVE = (lambda v: _number(v) and v >= 0, "a finite number of at least 0")
SHARE = (lambda v: _number(v) and 0 <= v <= 1, "a number from 0 to 1")
PART = (lambda v: _number(v) and 0 <= v < 1, "a number of at least 0 and below 1")
SWITCH = (lambda v: isinstance(v, bool), "True or False")
TEXT = (lambda v: isinstance(v, str), "a text")
NAME = (lambda v: isinstance(v, str) and v.strip() != "", "a text that is not empty")
PATTERN = (_compiles, "a regular expression that compiles and is not empty")
PATTERN_OR_NONE = (lambda v: v == "" or _compiles(v), "a regular expression that compiles, or nothing")
LENGTHS = (_lengths, "lengths from 1 to 2**24, as in (64, 128)")

RULES: tuple[tuple[str, tuple[Callable[[Any], bool], str]], ...] = (
    (r"seed", (lambda v: whole(v, 0, 2**32 - 1), "a whole number from 0 to 2**32 - 1")),
    (r"track", TRACK),
    (r"mesh\.data", (lambda v: v == -1 or whole(v, 1), "a whole number of at least 1, or -1 for every device")),
    (r"mesh\.model", COUNT),
    (r"mesh\.kernels|data\.others|model\.system", SWITCH),
    (r"data\.(source|path|before)|(model|vanilla|factors)\.path|model\.language", TEXT),
    (r".*lora\.whole", PATTERN_OR_NONE),
    (rf"general\.({'|'.join(GENERAL)})", TEXT),
    (r"data\.(forget|retain)|evaluate\.prompts\.blank", NAME),
    (r"data\.name", _one_of(tuple(sorted(builders.DATASETS)))),
    (r"data\.(tokens|patches)", LENGTHS),
    (r"vanilla\.rows\..*", COUNT_OR_NONE),
    (r"data\.max_pixels", (lambda v: whole(v, 0, 2**40), "a whole number from 0 to 2**40")),
    (r".*lora\.rank", RANK),
    (r"model\.(dtype|param_dtype)", _one_of(DTYPES)),
    (r"memory\.limit_gib|saliency\.(eps|noise)|unlearn\.stop\.margin|save_minutes", NOT_NEGATIVE),
    (
        r"memory\.allow_too_large|gold|show_people|saliency\.keep_scores|evaluate\.(letters|memorisation|clear_compat)",
        SWITCH,
    ),
    (r".*\.epochs", PASSES),
    (
        r".*\.learning_rate(\..*)?|.*\.retain_rate\..*|.*\.clip|.*lora\.alpha|saliency\.tau|unlearn\.strength\..*",
        POSITIVE,
    ),
    (r".*\.schedule", _one_of(SCHEDULES)),
    (r"vanilla\.warmup|evaluate\.memorised", SHARE),
    (r".*lora\.targets", PATTERN),
    (r"(?!unlearn\.stop).*\.rows|saliency\.chunk|evaluate\.new_tokens|save_every|attack\.steps", COUNT),
    (r"evaluate\.samples", SAMPLES),
    (r"factors\.batches|factors\.blocks", COUNT),
    (r"factors\.(text|unseen)|unlearn\.replay|unlearn\.stop\.level", SHARE),
    (r"factors\.(share|fraction)", PART),
    (r"factors\.everyone", SWITCH),
    (r"factors\.alpha", NOT_NEGATIVE),
    (r"factors\.loss", _one_of(tuple(n for n, loss in LOSSES.items() if not loss.needs))),
    (r"unlearn\.stop\.(every|rows)|data\.group|general\.drawn|evaluate\.shots", COUNT_OR_NONE),
    (r"evaluate\.headline", HEADLINE),
    (r"evaluate\.prompts\..*", TEXT),
)
