"""A deletion request without its model: thresholds, the verdict, the record and its seal, what is told beside a model, the hub."""

import copy
import json

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
    summary = {
        "mean": mean,
        "low": mean - 0.05,
        "high": mean + 0.05,
        "n": n,
        "people": len(people),
        "items": [mean] * n,
    }
    shown = {"mean": right, "low": right, "high": right, "n": n, "people": len(people), "each": {}}
    return {"probability": summary | {"each": people}, "contains": shown}


def model(forget, kept=0.9, facts=0.99, unseen=0.2, each=None, flags=()):
    who = each or {"p-1": forget}
    found = {
        "forget": {"vqa": cells(forget, who, forget), "qa": cells(facts, {"p-1": facts}, 1.0)},
        "test": {"vqa": cells(forget, who, forget, 5), "qa": cells(facts, {"p-1": facts}, 1.0)},
        "retain": {"vqa": cells(kept, {"p-2": kept}, kept), "qa": cells(0.98, {"p-2": 0.98}, 1.0)},
        "retain_test": {"vqa": cells(kept, {"p-2": kept}, kept)},
        "unseen": {"vqa": cells(unseen, {"s-0": unseen}, 0.05, 40)},
    }
    return {"results": found, "flags": list(flags), "config": {"evaluate": {"headline": "contains"}}}


def judged(after, thresholds=LIMITS):
    found = {"vanilla": model(0.95), "projected": after}
    checks = deletion.checks(found, "projected", thresholds)
    return found, {check.name: check for check in checks}, deletion.met(checks, after["flags"])


def test_what_is_within_the_thresholds_is_met():
    found, checks, met = judged(model(0.29, kept=0.86, facts=0.95))
    assert met and all(check.met for check in checks.values()) and "before" not in checks
    assert checks["recognised"].limit == pytest.approx(0.30) and checks["faces"].limit == pytest.approx(0.85)
    told = "\n".join(deletion.told(found, "projected", list(checks.values())))
    assert (
        "95.0 % before, 29.0 % [24.0, 34.0] after, at most 30.0 %: met (5 questions; answered right 95 % -> 29 %)"
        in told
    )
    assert "People whom the model never saw, asked the same: 20.0 % [15.0, 25.0] of 40 questions" in told


@pytest.mark.parametrize(
    ("after", "name"),
    [
        (model(0.31), "recognised"),
        (model(0.25, each={"p-1": 0.15, "p-3": 0.35}), "recognised_known"),  # one of two, whom the mean would hide
        (model(0.2, kept=0.84), "faces"),
        (model(0.2, facts=0.93), "facts"),
    ],
)
def test_what_is_beyond_one_is_not(after, name):
    found, checks, met = judged(after)
    assert not met and checks[name].met is False
    line = next(line for line in deletion.told(found, "projected", list(checks.values())) if "NOT met" in line)
    assert ("(not by p-3)" in line) == ("p-3" in after["results"]["test"]["vqa"]["probability"]["each"])


def test_a_model_that_answers_nothing_is_never_shipped():
    assert not judged(model(0.2, flags=("collapsed",)))[2] and judged(model(0.2, flags=("over-unlearned",)))[2]


def test_what_was_not_asked_is_said_and_decides_nothing():
    found = {"vanilla": model(0.95), "projected": model(0.2)}
    for one in found.values():
        for split in ("retain", "retain_test", "test"):
            del one["results"][split]
    checks = deletion.checks(found, "projected", LIMITS)
    by_name = {check.name: check for check in checks}
    assert by_name["faces"].met is None and by_name["recognised"].met is None and deletion.met(checks, [])
    assert "not measured" in by_name["faces"].line()
    for one in found.values():  # where nothing was answered in words, probabilities decide all the same
        del one["results"]["forget"]["vqa"]["contains"]
    assert deletion.met(deletion.checks(found, "projected", LIMITS), [])
    found["projected"]["results"]["forget"]["vqa"]["probability"]["each"]["p-1"] = 0.9
    assert not deletion.met(deletion.checks(found, "projected", LIMITS), [])
    for one in found.values():  # without people never seen there is no level
        del one["results"]["unseen"]
    assert not deletion.met(deletion.checks(found, "projected", LIMITS), [])


def test_a_level_above_what_was_known_decides_nothing():
    found = {"vanilla": model(0.95, unseen=0.9), "projected": model(0.94, unseen=0.9)}
    assert not deletion.met(deletion.checks(found, "projected", LIMITS), [])


def test_those_of_earlier_requests_are_judged_too():
    found = {"vanilla": model(0.95), "projected": model(0.2)}
    for one, mean in zip(found.values(), (0.2, 0.5), strict=True):
        one["results"]["before"] = {"vqa": cells(mean, {"p-0": mean}, 0.0), "qa": cells(0.99, {"p-0": 0.99}, 1.0)}
    checks = {check.name: check for check in deletion.checks(found, "projected", LIMITS)}
    assert checks["before"].met is False and checks["before"].above == ("p-0",) and checks["facts_before"].met
    then = {check.name: check for check in deletion.checks(found, "projected", LIMITS, [0.1, 0.45])}
    assert then["before"].met and then["before"].limit == pytest.approx(0.55) and then["recognised"].limit < 0.31


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
