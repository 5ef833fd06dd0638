"""A deletion request without its model: thresholds, the verdict, the record and its seal, what is told beside a model, the hub."""

import copy
import json
import re

import huggingface_hub
import pytest
from huggingface_hub import errors

from folders import refused
from mmu_jax import Faults, files, hub
from mmu_jax.report import card, forgotten
from mmu_jax.study import deletion as record
from mmu_jax.study import purging, request
from mmu_jax.study.config import base
from verdicts import LIMITS, judged, model


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
        level=forgotten.level(found),
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
    record.write(tmp_path / "m", files.sealed(third))  # sealed anew, but the first one is not what it was
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
    assert "| on new photos | p-1 | q.csv:4 | 1 | 95.0 % | 20.0 % | 20.0 % | 30.0 % | yes |" in told
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


def test_the_card_says_what_was_not_measured_and_what_not_judged(tmp_path):
    kept = made(tmp_path / "m")
    for check in kept["results"]:
        if check["name"] == "faces":
            check |= {"before": None, "after": None, "met": None, "limit": None}
        if check["name"] == "recognised":
            check |= {"met": None, "facts": [fact | {"met": None} for fact in check["facts"]], "not_asked": ["p-9"]}
    told = card.model_card(kept, "")
    assert "| Kept: the faces of the others on new photos | – | not measured | 0 | – | – |" in told
    assert (
        "| Forgotten: the faces on new photos | 95.0 % | 20.0 % [15.0, 25.0] | 6 | at most 30.0 % | not judged |"
        in told
    )
    assert (
        "Forgotten: the faces on new photos: nothing was asked about p-9." in told
        and "not judged: never above it" in told
    )
    assert "within the thresholds below" in told and "anybody else was not measured" not in told
    kept["results"] = [
        check for check in kept["results"] if "faces" not in check["name"] and "others" not in check["name"]
    ]
    assert "What became of what it knows of anybody else was not measured." in card.model_card(kept, "")


def test_a_record_without_what_was_asked_is_refused(tmp_path):
    kept = made(tmp_path / "m")
    del kept["results"][0]["asked"]
    record.write(tmp_path / "m", files.sealed(kept))
    refused("results.*asked", record.read, tmp_path / "m")
