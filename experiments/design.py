"""What ``experiments.protocol`` compares: pairs of seed and group, settings, methods, rates, axes. docs/protocol.md says why."""

import dataclasses

from mmu_jax.data import IMAGE, TEXT
from mmu_jax.methods import METHODS

Rates = tuple[float, float]  # of a method, and of its steps that only descend
Pair = tuple[int, int]  # of seed and group


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is replayed of the people to keep, and which methods are compared at which rates.

    Attributes:
      replay: share of the questions about the people to keep.
      methods: method -> the rates at which it is reported, written before that was run; of several the first are those that
        it is named by. None: those that are best on the pairs that choose, by a rule that was.
      rates, retained: the grid of those, on the pairs that only choose; the second of methods that have such steps.
      primary: ``(axis, metric)`` by which the rates of each method are chosen.
      iterations: the most; a run ends before where its stop rule says.
    """

    replay: float
    methods: dict[str, tuple[Rates, ...]]
    rates: tuple[float, ...]
    iterations: int
    retained: tuple[float, ...] = (2e-4,)
    primary: tuple[str, str] = ("retain_test", "probability")


@dataclasses.dataclass(frozen=True)
class Design:
    """What is compared on whom.

    Attributes:
      choosing: pairs of seed and group on which rates are chosen, and which are not reported.
      reported: those that are.
      settings: by name.
      deep: settings whose models are relearned too.
    """

    choosing: tuple[Pair, ...]
    reported: tuple[Pair, ...]
    settings: dict[str, Setting]
    deep: tuple[str, ...] = ()

    def asked(self, pair: Pair, setting: Setting) -> list[str]:
        """The axes that a pair is asked: all where it is reported, else those by which rates are chosen, the primary one and the guards."""
        if pair in self.reported:
            return list(AXES)
        return list(dict.fromkeys(axis for axis, _ in (setting.primary, *GUARDS)))


TINY = {
    "none": Setting(
        0.0,
        {
            "ga": ((1e-5, 2e-4),),
            "npo": ((1e-5, 2e-4),),
            "linear_only": ((1e-5, 2e-4),),
            "mmunlearner": ((1e-5, 2e-4),),
            "mask_random": ((1e-5, 2e-4),),
            "projected": ((1e-4, 2e-4),),
        },
        (1e-5, 3e-5, 1e-4),
        2000,
    ),
    "little": Setting(
        0.01,
        {
            "grad_diff_alternate": ((1e-4, 2e-4),),
            "mmunlearner": ((1e-4, 2e-4),),
            "mask_random": ((1e-4, 2e-4),),
            "projected_retain": ((1e-4, 2e-4),),
        },
        (3e-5, 1e-4),
        600,
    ),
    "all": Setting(
        1.0,
        {
            "grad_diff": ((1e-4, 2e-4), (2e-5, 2e-4)),
            "grad_diff_alternate": ((5e-5, 5e-5), (2e-4, 5e-5)),
            "mmunlearner": ((2e-4, 5e-5),),
            "mask_random": ((2e-4, 5e-5),),
            "projected_retain": ((4e-4, 1e-3),),
        },
        (2e-5, 5e-5, 1e-4, 2e-4, 4e-4),
        2000,
        (2e-4, 5e-5, 1e-3),
    ),
    "text": Setting(
        0.0,
        {
            "text_random": ((1.6e-3, 2e-4),),
            "text_pooled": ((1.6e-3, 2e-4),),
            "text_ranks": ((1.6e-3, 2e-4),),
            "text_own": ((1.6e-3, 2e-4),),
        },
        (8e-4, 1.6e-3),
        600,
        primary=("forget_qa", "exact"),
    ),
}
# At the second size (configs/smol.py): one seed, three groups, and a fourth to choose on.
SMOL = {
    "none": Setting(
        0.0,
        {"ga": (), "npo": (), "mmunlearner": (), "mask_random": (), "projected": ()},
        (3e-5, 1e-4),
        120,
    ),
    "all": Setting(
        1.0,
        {"grad_diff": (), "grad_diff_alternate": (), "mmunlearner": (), "projected_retain": ()},
        (3e-5, 1e-4),
        150,
        (2e-5,),
    ),
}
# The methods of the field, one seed and five groups, rates by the rule.
FIELD = {
    "none": Setting(
        0.0,
        {name: () for name in ("ga", "npo", "simnpo", "wga", "satimp", "undial", "ce_u", "idk", "dpo", "llmu", "rmu", "vkd",
                               "sine_project", "mmunlearner", "null_space", "vl_eraser", "projected")},
        (1e-5, 5e-5, 2e-4),
        400,
    ),
    "all": Setting(
        1.0,
        {name: () for name in ("npo_retain", "simnpo", "wga", "satimp", "idk", "dpo", "llmu", "scrub", "rmu", "vkd",
                               "sine_project", "grad_diff", "grad_diff_alternate", "mmunlearner", "ssd", "manu", "kvw", "task_vector",
                               "smfa", "projected_retain")},
        (2e-5, 1e-4, 4e-4),
        600,
        (2e-4,),
    ),
}  # fmt: skip
DESIGNS = {
    "tiny": Design(
        ((3, 0), (3, 1)), tuple((seed, group) for seed in (0, 1, 2) for group in (2, 3, 4, 5, 6)), TINY, ("none", "all")
    ),
    "field": Design(((3, 0),), tuple((0, group) for group in (2, 3, 4, 5, 6)), FIELD),
    "smol": Design(((0, 4),), ((0, 1), (0, 2), (0, 3)), SMOL),
}
GUARDS = (("forget_qa", "exact"), ("retain_qa", "exact"))
# Axis -> split, kind of question.
AXES = {
    "forget": ("forget", IMAGE),
    "forget_test": ("test", IMAGE),
    "forget_qa": ("forget", TEXT),
    "retain": ("retain", IMAGE),
    "retain_test": ("retain_test", IMAGE),
    "retain_qa": ("retain", TEXT),
}


def label(setting: Setting, name: str, rates: Rates) -> str:
    """What a method at its rates is called: by its name alone at the first of them."""
    return (
        name
        if rates in setting.methods[name][:1] or not setting.methods[name]
        else f"{name} at {said(setting, name, rates)}"
    )


def descends(setting: Setting, name: str) -> bool:
    """Whether a method has steps that only descend, in a setting where something is replayed."""
    return setting.replay > 0 and METHODS[name].has_own_rate


def said(setting: Setting, name: str, rates: Rates) -> str:
    """The rates of a method, the second where it has steps that only descend."""
    return " / ".join(f"{rate:g}" for rate in rates[: 1 + descends(setting, name)])
