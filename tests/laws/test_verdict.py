"""The verdict on a deletion request: what is forgotten, wording by wording, and what is kept, since the first request."""

import copy
import dataclasses
import json

import pytest

from mmu_jax.report import deletion, forgotten
from verdicts import LIMITS, asked, cells, judge, judged, model, name_at


def test_what_is_within_the_thresholds_is_met():
    found, checks, met = judged(model(0.29, kept=0.86, facts=0.95))
    assert met and all(check.met for check in checks.values()) and "before" not in checks
    assert checks["recognised"].limit == pytest.approx(0.30) and checks["faces"].limit == pytest.approx(0.85)
    told = "\n".join(deletion.told(found, "projected", list(checks.values())))
    assert (
        "95.0 % before, 29.0 % [24.0, 34.0] after, at most 30.0 %: met (6 questions; answered right 95 % -> 29 %; "
        "2 of 2 facts within their own limit)" in told
    )
    assert (
        "the forgotten by name, in words that are not trained on: 99.0 % before, 95.0 % after, at least 94.0 %: met (1 question;"
        in told
    )
    assert "People whom the model never saw, asked the same: 20.0 % [15.0, 25.0] of 40 questions" in told


@pytest.mark.parametrize(
    ("after", "name"),
    [
        (model(0.31), "recognised"),
        (model(0.25, each={"p-1": 0.15, "p-3": 0.35}), "recognised_known"),  # one of two, whom the mean would hide
        (name_at(0.31, model(0.18)), "recognised_known"),  # a name, which the mean would hide
        (model(0.2, kept=0.84), "faces"),
        (model(0.2, facts=0.93), "facts"),
    ],
)
def test_what_is_beyond_one_is_not(after, name):
    found, checks, met = judged(after)
    assert not met and checks[name].met is False
    line = next(line for line in deletion.told(found, "projected", list(checks.values())) if "NOT met" in line)
    probability = after["results"]["forget"]["vqa"]["probability"]
    assert ("(not by p-3" in line) == ("p-3" in probability["each"])
    told = "q.csv:4 of p-1 at 31.0 %, its limit 30.0 %"
    assert (told in line) == (probability["mean"] == 0.18 or probability["mean"] == 0.31)


def test_a_model_that_answers_nothing_is_never_shipped():
    assert not judged(model(0.2, flags=("collapsed",)))[2] and judged(model(0.2, flags=("over-unlearned",)))[2]


def test_what_was_not_asked_is_said_and_decides_nothing():
    found = {"vanilla": model(0.95), "projected": model(0.2)}
    for one in found.values():
        for split in ("retain", "retain_test", "test"):
            del one["results"][split]
    by_name = judge(found)
    assert by_name["faces"].met is None and by_name["recognised"].met is None and "facts_new" not in by_name
    assert deletion.met(list(by_name.values()), [])
    assert "not measured" in by_name["faces"].line()
    for one in found.values():  # where nothing was answered in words, probabilities decide all the same
        del one["results"]["forget"]["vqa"]["contains"]
    assert deletion.met(list(judge(found).values()), [])
    found["projected"]["results"]["forget"]["vqa"]["probability"]["each"]["p-1"] = 0.9
    assert not deletion.met(list(judge(found).values()), [])
    for one in found.values():  # without people never seen there is no level
        del one["results"]["unseen"]
    assert not deletion.met(list(judge(found).values()), [])


def test_a_level_above_what_was_known_decides_nothing():
    found = {"vanilla": model(0.95, unseen=0.9), "projected": model(0.94, unseen=0.9)}
    assert not deletion.met(list(judge(found).values()), [])


def test_those_of_earlier_requests_are_judged_too():
    found = {"vanilla": model(0.95), "projected": model(0.2)}
    for one, mean in zip(found.values(), (0.2, 0.5), strict=True):
        one["results"]["before"] = {"vqa": cells(mean, {"p-0": mean}, 0.0), "qa": cells(0.99, {"p-0": 0.99}, 1.0)}
    checks = judge(found)
    assert checks["before"].met is False and checks["before"].above == ("p-0",) and checks["facts_before"].met
    assert [fact.fact for fact in checks["before"].facts if fact.met is False] == ["q.csv:4", "q.csv:4"]
    found["projected"]["results"]["before"]["vqa"] = cells(0.29, {"p-0": 0.29}, 0.0)
    assert judge(found)["before"].met  # though it is above what it was


def test_a_fact_is_held_against_people_never_seen_who_were_asked_for_it():
    found = {"vanilla": model(0.95), "projected": name_at(0.29, model(0.15))}
    cell = found["vanilla"]["results"]["unseen"]["vqa"]["probability"]
    cell["items"] = [0.04 if i % 2 == 0 else 0.36 for i in range(40)]  # a name is hardly guessed, a job often
    check = judge(found)["recognised_known"]
    name, job = check.facts
    assert (name.fact, name.never, name.limit, name.after, name.met) == (
        "q.csv:4",
        0.04,
        pytest.approx(0.14),
        0.29,
        False,
    )
    assert (job.never, job.limit, job.after, job.met) == (0.36, pytest.approx(0.46), pytest.approx(0.01), True)
    assert not check.met and not check.above and check.limit == pytest.approx(0.3)
    found["vanilla"]["results"]["forget"]["vqa"]["probability"]["items"] = [0.12, 0.9] * 5
    found["projected"] = name_at(0.13, model(0.15))
    name, _ = judge(found)["recognised_known"].facts
    assert name.met is None, "what was not known above its limit says nothing"
    found["projected"] = name_at(0.29, model(0.15))
    name, _ = judge(found)["recognised_known"].facts
    assert name.met is False, "unless it is now"


def test_one_fact_that_was_known_is_judged_where_the_mean_was_below_its_limit():
    """The name alone was known, 90 % of the time: the mean of 48 % would say nothing against a level of 60 %."""
    found = {"vanilla": name_at(0.9, model(0.48, unseen=0.6)), "projected": name_at(0.9, model(0.48, unseen=0.6))}
    check = judge(found)["recognised_known"]
    assert check.met is False and [fact.met for fact in check.facts] == [False, None]
    found["projected"] = name_at(0.5, model(0.48, unseen=0.6))
    assert judge(found)["recognised_known"].met is True


def test_a_person_is_held_against_what_that_person_was_asked():
    """Of two people, one was asked for a name alone and one for a job, which is guessed more often."""
    found = {
        "vanilla": model(0.95, each={"p-1": 0.95, "p-3": 0.95}),
        "projected": model(0.25, each={"p-1": 0.15, "p-3": 0.35}),
    }
    put = asked(found["projected"]["results"])
    put = put._replace(of=put.of | {"forget": [("p-1", "who?", "ada")] * 5 + [("p-3", "job?", "welder")] * 5})
    cell = found["vanilla"]["results"]["unseen"]["vqa"]["probability"]
    cell["items"] = [0.04 if i % 2 == 0 else 0.36 for i in range(40)]
    check = next(c for c in deletion.checks(found, "projected", LIMITS, put) if c.name == "recognised_known")
    assert check.above == ("p-1",) and [fact.met for fact in check.facts] == [False, True]


def test_what_is_kept_is_held_against_the_first_request():
    """Two requests lost four points each: the second is judged by what there was before the first."""
    first, second = (
        {"vanilla": model(0.95, kept=0.9), "projected": model(0.2, kept=0.86)},
        {"vanilla": model(0.95, kept=0.86)},
    )
    second["projected"] = model(0.2, kept=0.82, facts=0.95)
    told = {"results": json.loads(json.dumps([dataclasses.asdict(check) for check in judge(first).values()]))}
    assert judge(second)["faces"].met and judge(second)["faces"].start == pytest.approx(0.86)
    faces = judge(second, earlier=[told])["faces"]
    assert not faces.met and faces.start == pytest.approx(0.9) and faces.limit == pytest.approx(0.85)
    assert "90.0 % before the first request" in faces.line()
    again = {"results": json.loads(json.dumps([dataclasses.asdict(check) for check in judge(second).values()]))}
    assert judge(second, earlier=[told, again])["faces"].start == pytest.approx(0.9), "the first that has them"
    others = {"results": [check | {"before": None} for check in told["results"]]}
    assert judge(second, earlier=[others])["faces"].start == pytest.approx(0.86)
    second["projected"]["results"]["before"] = {
        "vqa": cells(0.2, {"p-1": 0.2}, 0.0),
        "qa": cells(0.96, {"p-1": 0.96}, 1.0),
    }
    second["vanilla"]["results"]["before"] = {
        "vqa": cells(0.2, {"p-1": 0.2}, 0.0),
        "qa": cells(0.96, {"p-1": 0.96}, 1.0),
    }
    assert judge(second, earlier=[told])["facts_before"].start == pytest.approx(0.99), "of who was to be forgotten then"


def test_what_was_asked_otherwise_then_is_held_against_today():
    first, second = {"vanilla": model(0.95, kept=0.5), "projected": model(0.2, kept=0.5)}, {"vanilla": model(0.95)}
    second["projected"] = model(0.2, kept=0.88)
    told = {
        "results": json.loads(
            json.dumps([dataclasses.asdict(check) for check in judge(first, hashed="other").values()])
        )
    }
    faces = judge(second, earlier=[told])["faces"]
    assert faces.start == pytest.approx(0.9) and faces.met, (
        "an earlier 50 % of other questions says nothing of 90 % now"
    )
    assert "1 of 1 people were not asked the same by an earlier request" in faces.line()
    assert judge(second)["faces"].anew == 0 and "earlier" not in judge(second)["faces"].line()


def wordings(values, before=0.95, unseen=0.03):
    """A model that was asked one fact in as many wordings, each as likely as it says; each is 3 % for people never seen."""
    put = [("p-1", f"who {i}?", "ada") for i in range(len(values))]
    found = {"vanilla": model(before, unseen=unseen), "projected": model(0.1)}
    for name, numbers in (("vanilla", [before] * len(values)), ("projected", values)):
        for split in ("forget", "test"):
            probability = found[name]["results"][split]["vqa"]["probability"]
            probability |= {"items": numbers, "each": {"p-1": sum(numbers) / len(numbers)}, "n": len(numbers)}
    found["vanilla"]["results"]["unseen"]["vqa"]["probability"]["items"] = [unseen] * len(values)
    of = {"forget": put, "test": put, "before": [], "unseen": [("s-0", *one[1:]) for one in put]}
    who = {"forget": ["p-1"], "test": ["p-1"], "before": []}
    return found, forgotten.Asked(
        of, {one: f"q.csv:{i}" for i, one in enumerate(put)}, who, {}, {split: [] for split in of}
    )


def test_one_wording_is_not_hidden_by_the_others():
    found, put = wordings([0.01] * 9 + [0.99])
    check = deletion.checks(found, "projected", LIMITS, put)[0]
    (fact,) = check.facts
    assert not check.met and not check.above and (fact.fact, fact.wordings, fact.after) == ("q.csv:9", 10, 0.99)
    assert "(not by q.csv:9 of p-1 at 99.0 %, its limit 13.0 %)" in check.line()


def test_right_answers_are_no_forgetting_however_unlikely_they_are():
    """Teacher-forced the right words may be unlikely in a model that says them in a sentence of its own.

    The name is said on all of four photos, each of the other facts never: in the mean over all that is one in five.
    """
    found, put = wordings([0.05] * 5)
    name, *others = put.of["test"] = [("p-1", f"{fact}?", fact) for fact in ("ada", "welder", "oslo", "chess", "soup")]
    put.where.update({one: f"q.csv:{i}" for i, one in enumerate(put.of["test"])})
    put.of["forget"][:] = put.of["test"]
    put.of["unseen"][:] = [("s-0", *one[1:]) for one in put.of["test"]]
    put.said["test"] = [(name, True)] * 4 + [(other, False) for other in others for _ in range(4)]
    put.said["unseen"] = [(("s-0", *one[1:]), False) for one in put.of["test"] for _ in range(10)]
    checks = {check.name: check for check in deletion.checks(found, "projected", LIMITS, put)}
    fact, *rest = checks["recognised"].facts
    assert checks["recognised"].met is False and checks["recognised_known"].met
    assert (fact.right, fact.often, fact.met) == (1.0, True, False) and all(one.right == 0 and one.met for one in rest)
    assert "(not by q.csv:0 of p-1 answered right 100 % of the time)" in checks["recognised"].line()
    put.said["test"] = [(name, i == 0) for i in range(4)]  # one of four may be a guess
    assert deletion.checks(found, "projected", LIMITS, put)[0].met
    put.said["unseen"] = [
        (("s-0", *one[1:]), True) for one in put.of["test"]
    ]  # as may all be of what everybody guesses
    put.said["test"] = [(name, True)] * 4
    assert deletion.checks(found, "projected", LIMITS, put)[0].met
    put.of["forget"][0] = ("p-1", "ada again?", "ada")  # they were asked another question of this answer, not this one
    put.of["unseen"].append(("s-0", "ada again?", "ada"))
    put.where["p-1", "ada again?", "ada"] = "q.csv:9"
    found["vanilla"]["results"]["unseen"]["vqa"]["probability"]["items"] = [0.03] * 6
    put.said["unseen"].append((("s-0", "ada again?", "ada"), False))
    assert deletion.checks(found, "projected", LIMITS, put)[0].facts[0].often


def test_answers_to_what_nobody_was_asked_in_words_are_held_against_what_is_likely():
    """People forgotten before are not taught again, so strangers are asked their questions by options alone."""
    found, put = wordings([0.3] * 2, unseen=0.4)
    for name in found:
        found[name]["results"]["before"] = copy.deepcopy(found[name]["results"]["test"])
    put.of["before"], put.of["forget"] = (
        [("p-0", *one[1:]) for one in put.of["test"]],
        [("p-1", "who 0?", "ada"), ("p-1", "x?", "bo")],
    )
    put.of["unseen"].append(("s-0", "x?", "bo"))
    found["vanilla"]["results"]["unseen"]["vqa"]["probability"]["items"] = [0.4] * 3
    put.where.update({one: "q.csv:0" for one in [*put.of["before"], *put.of["forget"]]})
    for one in found.values():
        one["results"]["before"]["vqa"]["probability"]["each"] = {"p-0": 0.3}
    put.said["before"] = [(put.of["before"][0], True)]  # one of one: from 21 %, and 50 % is likely for a stranger
    check = {
        c.name: c for c in deletion.checks(found, "projected", LIMITS, put._replace(who=put.who | {"before": ["p-0"]}))
    }["before"]
    assert check.met and check.facts[0].right == 1.0
    put.said["before"] = [(put.of["before"][0], True)] * 8  # eight of eight: from 68 %
    assert {c.name: c for c in deletion.checks(found, "projected", LIMITS, put)}["before"].met is False


def test_a_fact_that_can_not_be_judged_is_not_counted_as_held():
    found, put = wordings([0.99] * 2, before=0.99, unseen=0.92)
    put.of["forget"][0] = put.of["test"][0] = ("p-1", "job?", "welder")
    put.of["unseen"][0], put.where["p-1", "job?", "welder"] = ("s-0", "job?", "welder"), "q.csv:7"
    found["vanilla"]["results"]["unseen"]["vqa"]["probability"]["items"] = [0.03, 0.92]
    found["projected"]["results"]["test"]["vqa"]["probability"] |= {"items": [0.05, 0.99], "each": {"p-1": 0.52}}
    check = deletion.checks(found, "projected", LIMITS, put)[0]
    assert check.met and not check.whole
    assert "1 of 1 facts within their own limit; not above their limit before: q.csv:1" in check.line()


def test_who_was_not_asked_is_told():
    found, put = wordings([0.05] * 2)
    check = deletion.checks(found, "projected", LIMITS, put._replace(who=put.who | {"test": ["p-1", "p-9"]}))[0]
    assert check.met and not check.whole and "nothing was asked about p-9" in check.line()


def test_who_lost_the_most_is_told():
    found = {"vanilla": model(0.95), "projected": model(0.2)}
    for one, each in zip(found.values(), ({"p-2": 0.9, "p-4": 0.9}, {"p-2": 0.95, "p-4": 0.8}), strict=True):
        one["results"]["retain_test"]["vqa"]["probability"]["each"] = each
    faces = judge(found)["faces"]
    assert faces.most_lost == ("p-4", 0.9, 0.8) and "most lost: p-4 90.0 % -> 80.0 %" in faces.line()
    assert judge(found)["facts"].most_lost is None, "of one person there is no most"
    one["results"]["retain_test"]["vqa"]["probability"]["each"] = {"p-2": 0.95, "p-4": 0.896}
    assert judge(found)["faces"].most_lost is None
