"""What ``experiments.protocol`` compares: pairs of seed and group, settings, methods, rates, axes. docs/protocol.md says why."""

import dataclasses

from mmu_jax.data import IMAGE, TEXT

CHOOSING = [(3, 0), (3, 1)]  # pairs of seed and group on which rates are chosen, and which are not reported
REPORTED = [(seed, group) for seed in (0, 1, 2) for group in (2, 3, 4, 5, 6)]


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is replayed of the people to keep, and which methods are compared at which rates.

    Attributes:
      replay: share of the questions about the people to keep.
      retained: rates of the steps that only descend, of methods that have such steps.
      primary: ``(axis, metric)`` by which the rate of each method is chosen.
      iterations: the most; a run ends before where its stop rule says.
    """

    replay: float
    methods: tuple[str, ...]
    rates: tuple[float, ...]
    iterations: int
    retained: tuple[float, ...] = (2e-4,)
    primary: tuple[str, str] = ("retain_test", "probability")


COMPARED = {
    "none": Setting(
        0.0,
        ("ga", "npo", "linear_only", "mmunlearner", "mask_random", "projected"),
        (1e-5, 3e-5, 1e-4),
        600,
    ),
    "little": Setting(
        0.01,
        ("grad_diff_alternate", "mmunlearner", "mask_random", "projected_retain"),
        (3e-5, 1e-4),
        600,
    ),
    "all": Setting(
        1.0,
        (
            "grad_diff",
            "grad_diff_alternate",
            "mmunlearner",
            "mask_random",
            "projected_retain",
            "projected_deep",
        ),
        (5e-5, 1e-4, 2e-4, 4e-4),
        1350,
        (5e-5, 2e-4),
    ),
    "text": Setting(
        0.0,
        ("text_random", "text_pooled", "text_ranks", "text_own"),
        (8e-4,),
        600,
        primary=("forget_qa", "exact"),
    ),
}
GUARDS = (("forget_qa", "exact"), ("retain_qa", "exact"))
DEEP = ("none", "all")  # settings whose models are relearned too
# Axis -> split, kind of question.
AXES = {
    "forget": ("forget", IMAGE),
    "forget_test": ("test", IMAGE),
    "forget_qa": ("forget", TEXT),
    "retain": ("retain", IMAGE),
    "retain_test": ("retain_test", IMAGE),
    "retain_qa": ("retain", TEXT),
}
