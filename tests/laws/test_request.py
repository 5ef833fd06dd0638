"""A deletion request without its model: thresholds, the verdict, the record and its seal, what is told beside a model, the hub."""

import copy
import dataclasses
import json
import re

import huggingface_hub
import pytest
from huggingface_hub import errors

from folders import refused
from mmu_jax import Faults, hub
from mmu_jax.report import card, deletion
from mmu_jax.report.deletion import Thresholds
from mmu_jax.study import deletion as record
from mmu_jax.study import purging, request
from mmu_jax.study.config import base

LIMITS = Thresholds(recognised=0.10, faces=0.05, facts=0.05)


def cells(mean, people, right, n=10):
    """Everybody is asked as much, ``n`` questions in all, and each of them is as likely as their mean."""
    of_one = n // len(people)
    summary = {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": n, "people": len(people)}
    shown = {"mean": right, "low": right, "high": right, "n": n, "people": len(people), "each": {}}
    items = [value for value in people.values() for _ in range(of_one)]
    return {"probability": summary | {"each": people, "items": items}, "contains": shown}


def asked(results):
    """A name and a job by turns, of everybody."""
    of = {"forget": [], "test": [], "before": [], "unseen": []}
    for split in of.keys() & results.keys():
        cell = results[split]["vqa"]["probability"]
        for person in cell["each"]:
            of[split] += [(person, ("name", "job")[i % 2]) for i in range(cell["n"] // len(cell["each"]))]
    people = {person for split in of.values() for person, _ in split}
    return deletion.Asked(of, {(who, fact): f"q.csv:{len(fact)}" for who in people for fact in ("name", "job")})


def model(forget, kept=0.9, facts=0.99, unseen=0.2, each=None, flags=()):
    who = each or {"p-1": forget}
    found = {
        "forget": {"vqa": cells(forget, who, forget), "qa": cells(facts, {"p-1": facts}, 1.0)},
        "test": {"vqa": cells(forget, who, forget, 6), "qa": cells(facts, {"p-1": facts}, 1.0, 1)},
        "retain": {"vqa": cells(kept, {"p-2": kept}, kept), "qa": cells(0.98, {"p-2": 0.98}, 1.0)},
        "retain_test": {"vqa": cells(kept, {"p-2": kept}, kept)},
        "unseen": {"vqa": cells(unseen, {"s-0": unseen}, 0.05, 40)},
    }
    return {"results": found, "flags": list(flags), "config": {"evaluate": {"headline": "contains"}}}


def judge(found, thresholds=LIMITS, earlier=()):
    checks = deletion.checks(found, "projected", thresholds, asked(found["projected"]["results"]), earlier)
    return {check.name: check for check in checks}


def judged(after, thresholds=LIMITS):
    found = {"vanilla": model(0.95, each=dict.fromkeys(after["results"]["forget"]["vqa"]["probability"]["each"], 0.95))}
    found["projected"] = after
    checks = judge(found, thresholds)
    return found, checks, deletion.met(list(checks.values()), after["flags"])


def name_at(value, result, split="forget"):
    """Of what is asked by photo in a split, the name alone is at ``value``; the mean stays what it was."""
    cell = result["results"][split]["vqa"]["probability"]
    cell["items"] = [value if i % 2 == 0 else 2 * cell["mean"] - value for i in range(cell["n"])]
    return result


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
    assert [fact.fact for fact in checks["before"].facts if fact.met is False] == ["q.csv:4", "q.csv:3"]
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
    put = put._replace(of=put.of | {"forget": [("p-1", "name")] * 5 + [("p-3", "job")] * 5})
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


def test_who_lost_the_most_is_told():
    found = {"vanilla": model(0.95), "projected": model(0.2)}
    for one, each in zip(found.values(), ({"p-2": 0.9, "p-4": 0.9}, {"p-2": 0.95, "p-4": 0.8}), strict=True):
        one["results"]["retain_test"]["vqa"]["probability"]["each"] = each
    faces = judge(found)["faces"]
    assert faces.most_lost == ("p-4", 0.9, 0.8) and "most lost: p-4 90.0 % -> 80.0 %" in faces.line()
    assert judge(found)["facts"].most_lost is None, "of one person there is no most"
    one["results"]["retain_test"]["vqa"]["probability"]["each"] = {"p-2": 0.95, "p-4": 0.896}
    assert judge(found)["faces"].most_lost is None


def made(folder, met=True, before=(), people=({"id": "p-1", "photos": ["a" * 64], "questions": "b" * 64},)):
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    found, checks, _ = judged(model(0.2))
    return record.make(
        people=people,
        source={"name": "given", "files": {"model.safetensors": "c" * 64}},
        output={"files": record.of_model(folder), "adapter": {"none": "why"}},
        method="projected",
        config=base().to_dict() | {"data": {"forget": "p-1", "source": "/home/somebody/ada", "path": ""}},
        thresholds=LIMITS,
        checks=list(checks.values()),
        level=deletion.level(found),
        flags=[],
        met=met,
        before=before,
        not_tested=[],
    )


def test_a_record_is_sealed_and_knows_no_place(tmp_path):
    kept = made(tmp_path / "m")
    record.write(tmp_path / "m", kept)
    assert record.read(tmp_path / "m") == json.loads(json.dumps(kept)) and "somebody" not in json.dumps(kept)
    sums = dict(reversed(line.split("  ")) for line in (tmp_path / "m" / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == {"model.safetensors", "deletion.json"}
    (tmp_path / "m" / "model.safetensors").write_bytes(b"others")
    refused("found others beside it", record.read, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"weights")
    altered = copy.deepcopy(kept) | {"met": False}
    (tmp_path / "m" / "deletion.json").write_text(json.dumps(altered))
    refused("found it altered", record.read, tmp_path / "m")
    (tmp_path / "m" / "deletion.json").write_text("{}")
    refused("without", record.read, tmp_path / "m")
    assert record.read(tmp_path) is None


def test_a_model_is_named_by_its_content_and_not_by_the_words_of_its_folder(tmp_path):
    given, start = tmp_path / "without-ada-berg", tmp_path / "merged"
    for folder, held in ((given, b"adapter"), (start, b"whole")):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(held)
    plain, merged = record.source(str(given), given, given), record.source(str(given), given, start)
    assert re.fullmatch("model-[0-9a-f]{12}", plain["name"]) and "ada" not in json.dumps([plain, merged])
    assert list(plain["files"]) == ["model.safetensors"] and plain["name"] != merged["name"]
    assert merged["files"] == plain["files"] | {
        f"merged/{name}": found for name, found in record.of_model(start).items()
    }
    assert record.source("llava-hf/llava-1.5-7b-hf", given, given)["name"] == "llava-hf/llava-1.5-7b-hf"


@pytest.mark.parametrize(("verdict", "stays"), [(None, False), (False, False), (True, True)])
def test_a_model_that_no_verdict_says_has_forgotten_is_purged(tmp_path, verdict, stays):
    for folder in ("stages", "unlearned/projected", "adapters/projected", "vanilla"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.safetensors").write_bytes(b"weights")
    if verdict is not None:
        (tmp_path / "deletion.json").write_text(json.dumps({"met": verdict}))
    purging.purge(tmp_path)
    assert [(tmp_path / name).exists() for name in ("unlearned", "adapters", "vanilla")] == [stays, stays, False]


def test_a_chain_holds_every_record_and_none_can_be_altered(tmp_path):
    first = made(tmp_path / "m")
    second = made(tmp_path / "m", before=record.chain(first))
    third = made(tmp_path / "m", before=record.chain(second))
    assert [one["sha256"] for one in record.chain(third)] == [first["sha256"], second["sha256"], third["sha256"]]
    record.write(tmp_path / "m", third)
    assert record.read(tmp_path / "m") is not None
    third = copy.deepcopy(third)
    third["earlier"][0]["people"][0]["id"] = "p-2"
    record.write(tmp_path / "m", record.seal(third))  # sealed anew, but the first one is not what it was
    refused("found it altered", record.read, tmp_path / "m")


def test_the_card_and_the_page_say_what_the_record_does(tmp_path):
    kept = made(tmp_path / "m")
    told = card.model_card(kept, "---\nlicense: llama2\n---\n\n# LLaVA\n\nIt sees.\n")
    assert told.startswith("---\nlicense: llama2\n---\n") and told.rstrip().endswith("# LLaVA\n\nIt sees.")
    assert "forget the face of one person (p-1)" in told and "95 % before and of 20 % now" in told
    assert (
        "| Kept: the faces of the others on new photos | 90.0 % | 90.0 % [85.0, 95.0] | 10 | at least 85.0 % | yes |"
        in told
    )
    assert "| on new photos | p-1 | q.csv:4 | 95.0 % | 20.0 % | 20.0 % | 30.0 % | yes |" in told
    page = card.page(kept)
    assert kept["sha256"] in page and "a" * 64 in page and 'src="http' not in page
    assert "not all thresholds are met" in card.page(made(tmp_path / "m", met=False))
    assert card.model_card(kept, "").startswith("# A model that forgot a face")
    again = card.model_card(made(tmp_path / "m", before=record.chain(kept)), told)
    assert again.count("# A model that forgot") == 1 and again.count("It sees.") == 1 and "license: llama2" in again
    assert "Forgotten by 1 earlier request: p-1." in again


def test_a_request_without_a_name_is_a_fault(tmp_path):
    with pytest.raises(Faults) as caught:
        request.read("model", str(tmp_path / "none"), " ")
    assert len(caught.value.faults) == 2 and "--who" in caught.value.faults[1]


def test_pushing_makes_a_private_repository_and_keeps_the_folder(tmp_path, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, name, **how):
            calls.append((name, how))
            return f"https://huggingface.co/{name}"

        def upload_folder(self, **what):
            calls.append(what)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert hub.push(tmp_path, "org/name") == "https://huggingface.co/org/name"
    assert calls[0] == ("org/name", {"private": True, "exist_ok": True})
    assert calls[1] == {"repo_id": "org/name", "folder_path": tmp_path}
    refused("hub id .org/name. to push to, found 'name'", hub.push, tmp_path, "name")

    def gone(self, name, **how):
        raise errors.LocalTokenNotFoundError("no token")

    monkeypatch.setattr(Api, "create_repo", gone)
    refused("hf auth login.*hf upload org/name", hub.push, tmp_path, "org/name")


def test_what_is_no_workdir_is_not_purged(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"mine")
    refused("expected a workdir", purging.purge, tmp_path)
    assert (tmp_path / "photo.png").exists()
