"""Where the people to forget are to be: the level of people never seen, in the mean and fact by fact."""

import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from mmu_jax.data import IMAGE, Example
from mmu_jax.metrics import Items
from mmu_jax.plan import Stop
from mmu_jax.study import unlearning


class Work:
    """What is read of a workspace to find where to stop; vanilla gives two people never seen 0.2 and 0.4 in the mean."""

    model, mesh, vanilla, load = None, None, None, staticmethod(lambda path: None)
    watched = staticmethod(lambda split: [split])

    def __init__(self, **stop):
        given = ConfigDict({"unlearn": {"stop": {"every": 8, "level": 0.0, "margin": 1.0, "facts": False} | stop}})
        self.config, self.strangers = given, Items(np.array([0.1, 0.3, 0.35, 0.45]), np.array(["a", "a", "b", "b"]))
        self.benchmark = types.SimpleNamespace(unseen=["a", "b"])

    def asked_by_photo(self, split):
        """Of two strangers a name and a job; of the person to forget those in two wordings, and a hobby."""
        said = {"unseen": [(who, "", x) for who in "ab" for x in ("Ada", "welder")]}
        said["forget"] = [("p", "", x) for x in ("Ada", "welder", "Ada", "chess")]
        return [Example(who, IMAGE, question, answer) for who, question, answer in said[split]]


def test_a_run_ends_a_standard_error_below_people_never_seen(capsys):
    stop = unlearning.find_stop(Work())
    assert stop.level == pytest.approx(0.3 - 0.1) and stop.every == 8  # std([0.2, 0.4], ddof=1) / sqrt(2) = 0.1
    assert stop.whose == "the level of people never seen, 0.300, less 0.100 for chance in who they are"
    even = unlearning.find_stop(Work(margin=0.0))
    assert even.level == pytest.approx(0.3) and even.whose == "the level of people never seen"
    assert unlearning.find_stop(Work(margin=9.0)).level == pytest.approx(0.15), (
        "half of it at least is left to be reached"
    )
    assert unlearning.find_stop(Work(level=0.25)) == Stop(0.25, 8, whose="the level that is given")
    assert unlearning.find_stop(Work(every=0)) is None
    alone = Work()
    alone.strangers = Items(np.array([0.1, 0.3]), np.array(["a", "a"]))
    assert unlearning.find_stop(alone).level == pytest.approx(0.2), "of one person alone no error is known"
    assert unlearning.find_stop(Work(facts=True, level=0.3)).facts == (((0, 2), 0.3), ((1,), 0.3), ((3,), 0.3))
    alone.benchmark.unseen = []
    assert unlearning.find_stop(alone) is None and "no people whom nobody was trained on" in capsys.readouterr().out


def test_every_fact_has_a_level_of_its_own():
    """Ada: 0.1 and 0.35, 0.225 less half (its error is 0.125); welder: 0.3 and 0.45, 0.375 less 0.075; chess at that of all."""
    stop = unlearning.find_stop(Work(facts=True))
    (ada, name), (welder, job), (chess, hobby) = stop.facts
    assert (ada, welder, chess) == ((0, 2), (1,), (3,))
    assert (name, job, hobby) == pytest.approx((0.1125, 0.3, 0.2))
    assert stop.level == pytest.approx((2 * 0.1125 + 0.3 + 0.2) / 4), (
        "of all rows, were each at its own: so it can be reached"
    )
    examples = [Example("p", IMAGE, "", "ada"), Example("p", IMAGE, "", "Welder")]
    np.testing.assert_allclose(unlearning._floors(Work(facts=True), stop, examples), [0.1125, 0.3])
    assert "every fact at its own" in stop.whose
