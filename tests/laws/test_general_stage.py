"""General benchmarks asked of a tiny random model, kept as stages, and told as differences to vanilla."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from folders import refused
from mmu_jax import InputError
from mmu_jax.data import loader
from mmu_jax.data.general import everyday
from mmu_jax.data.general.benchmarks import GENERAL
from mmu_jax.report import general as told
from mmu_jax.report import page
from mmu_jax.study import checks, general, settings
from mmu_jax.study.study import Study
from published import LAYOUTS, photo, put
from runs import small_config


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Benchmark -> a copy of it."""
    root = tmp_path_factory.mktemp("copies")
    return {name: str(writes[0](root / name)) for name, writes in LAYOUTS.items()}


def config_of(copies, model="", names=tuple(LAYOUTS)):
    config = small_config()
    config.unlearn.methods, config.attack.names, config.gold = ("ga",), (), False
    config.vanilla.path, config.evaluate.rows = str(model), 4
    config.general.update({name: copies[name] for name in names})
    return config


@pytest.fixture(scope="module")
def ran(copies, whole, tmp_path_factory):
    """A workdir in which every benchmark was asked of vanilla and of a method, and the study."""
    study = Study(config_of(copies, whole["llava"]), tmp_path_factory.mktemp("study"))
    study.work.planned = True  # which takes its time, and is made below
    study.run(["data", "unlearn/ga", "general"])
    return study


def value(study, model, name):
    return json.loads((study.work.workdir / "general" / model / f"{name}.json").read_text())


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_model_is_asked_every_question_about_its_image(ran, name):
    """What is on disk is what the Examiner says of the prompts, and what the row makes of it."""
    work, row = ran.work, GENERAL[name]
    items, made = work.general[name], general.sheet(work, name)
    params = work.load(work.folder("ga"))
    album = loader.Album(loader.shown(work.processor, made.encoded), {})
    said = iter(work.examiner.answers(params, made.prompts, made.photos, album))
    expected = [[next(said) for _ in item.questions] for item in items]
    found = value(ran, "ga", name)
    assert [a["answer"] for a in found["answers"]] == expected
    assert [a["truth"] for a in found["answers"]] == [[q.answer for q in item.questions] for item in items]
    right = [row.right(item, part) for item, part in zip(items, expected, strict=True)]
    assert found["right"] == " ".join(map(str, right))
    assert made.prompts == [row.ask(question) for item in items for question in item.questions]
    for title, measure in row.measures.items():
        mean = measure(np.array(right), np.array([len(item.questions) for item in items])).mean()
        assert found["results"][title]["mean"] == pytest.approx(mean) and found["results"][title]["n"] == len(items)
    shown = [work.general[name][i].image for i in range(len(items))]
    assert found["image"] == " ".join(str(list(dict.fromkeys(shown)).index(image)) for image in shown)


def test_images_of_any_size_and_mode_are_shown_to_a_model_that_keeps_their_size(copies, whole, tmp_path):
    local = {"gqa": str(shutil.copytree(copies["gqa"], tmp_path / "gqa"))}
    buffer = io.BytesIO()
    Image.new("L", (130, 61), 90).save(buffer, "JPEG")
    put(tmp_path / "gqa" / "images" / "n235859.jpg", buffer.getvalue())
    study = Study(config_of(local, whole["qwen2_vl"], ("gqa",)), tmp_path / "w")
    study.work.planned = True
    study.run(["data", "general/vanilla/gqa"])
    sizes = [size.patches for size in general.sheet(study.work, "gqa").sizes]
    assert len(set(sizes)) == 2 and len(value(study, "vanilla", "gqa")["answers"]) == 3


def test_questions_without_an_image_are_asked_as_text(ran, whole, tmp_path):
    config = config_of({"everyday": everyday.EMBEDDED}, whole["llava"], ("everyday",))
    config.general.drawn, config.evaluate.rows, config.evaluate.new_tokens = 20, 16, 3
    study = Study(config, tmp_path / "w")
    study.work.__dict__["data"], study.work.planned = ran.work.data, True
    study.run(["data", "general/vanilla/everyday"])
    found, made = value(study, "vanilla", "everyday"), general.sheet(study.work, "everyday")
    params = study.work.load(study.work.folder("vanilla"))
    said = study.work.examiner.answers(params, made.prompts, None, None)
    assert [answer["answer"] for answer in found["answers"]] == [[words] for words in said]
    assert found["image"] == " ".join(map(str, range(20))) and not made.shows and len(made.prompts) == 20
    rights = general.rights(study.work, params, "everyday")
    assert list(rights.values()) == list(map(float, found["right"].split()))
    (longest,) = general.longest(study.work)
    assert longest["patches"] == 0 < longest["tokens"]


def test_a_random_model_says_yes_to_pope_by_its_rule(ran):
    """It says neither yes nor no, which the rule reads as yes: right where that is the label."""
    found = value(ran, "vanilla", "pope")
    assert found["right"].split() == [str(int(answer["truth"] == ["yes"])) for answer in found["answers"]]
    assert {"1", "0"} == set(found["right"].split())


def test_stages_stand_after_evaluation_and_are_known_by_what_is_drawn(copies, whole, tmp_path):
    def prints(**changes):
        config = config_of(local, whole["llava"], ("pope", "mme"))
        config.update_from_flattened_dict(changes)
        found = Study(config, tmp_path / "w").stages
        return {name: found.fingerprint(name) for name in found.table}

    local = {name: str(shutil.copytree(copies[name], tmp_path / name)) for name in ("pope", "mme")}
    before, made = prints(), [f"general/{model}/{name}" for model in ("vanilla", "ga") for name in ("pope", "mme")]
    assert list(before)[-5:] == [*made, "report"] and list(before).index("evaluate/ga") < list(before).index(made[0])
    one = {f"general/{model}/pope" for model in ("vanilla", "ga")}

    def changed(**changes):
        return {name for name, value in prints(**changes).items() if value != before[name]}

    assert changed(**{"general.drawn": 1}) == {*made, "report"}
    assert changed(**{"evaluate.new_tokens": 5}) == {*made, "evaluate/vanilla", "evaluate/ga", "report"}
    assert changed(**{"unlearn.rows": 32}) == {"unlearn/ga", "evaluate/ga", *(m for m in made if "/ga/" in m), "report"}
    put(tmp_path / "pope" / "val2014" / "another.jpg", b"not asked about")
    assert changed() == set()
    put(tmp_path / "pope" / "val2014" / "COCO_val2014_000000000001.jpg", photo(50))
    assert changed() == {*one, "report"}


def test_nothing_is_read_where_nothing_is_given(tmp_path):
    study = Study(small_config(), tmp_path / "w")
    assert study.work.general == {} and not any(name.startswith("general") for name in study.stages.table)
    (line,) = settings.unused(small_config(), {"general.drawn": 9})
    assert line == "config.general.drawn is not read: no general benchmark is given"


def test_another_benchmark_may_be_added_and_what_is_gone_is_made_again(ran, copies, whole):
    config = config_of(copies, whole["llava"], ("pope", "gqa"))
    assert Study(config, ran.work.workdir).stages.wanted(["general"]) == []  # of fewer, none is made again
    path = ran.work.ability("ga", "gqa")
    before = json.loads(path.read_text())
    path.unlink()
    study = Study(config, ran.work.workdir)
    study.work.planned = True
    assert study.stages.wanted(["general"]) == ["general/ga/gqa"]
    study.run(["general"])
    again = json.loads(path.read_text())
    assert {k: again[k] for k in ("right", "answers", "results")} == {
        k: before[k] for k in ("right", "answers", "results")
    }


@pytest.mark.parametrize("trained", [False, True])
def test_a_damaged_image_is_found_before_anything_is_trained(trained, copies, whole, tmp_path):
    local = {"gqa": str(shutil.copytree(copies["gqa"], tmp_path / "gqa"))}
    put(tmp_path / "gqa" / "images" / "n235859.jpg", photo(1)[:-40])
    study = Study(config_of(local, "" if trained else whole["llava"], ("gqa",)), tmp_path / "w")
    refused("image that decodes.*the image of question 202225914 of .*balanced_questions.json", study.run, ["data"])


def test_a_copy_that_is_not_there_is_named_with_its_key(tmp_path):
    config = small_config()
    config.general.mme = str(tmp_path / "none")
    refused(r"config\.general\.mme: expected a copy.*found nothing at", Study, config, tmp_path / "w")


def test_a_question_that_no_length_holds_is_found_first(copies, whole, tmp_path):
    config = config_of(copies, whole["llava"], ("scienceqa",))
    config.data.tokens = (18, 26, 38, 64)
    refused(r"rows of at most 64 tokens, found one of .*problem 12 of", Study(config, tmp_path / "w").run, ["data"])


def test_the_plan_holds_the_longest_question(ran, copies, whole, tmp_path):
    (longest,) = [max(found["tokens"] for found in general.longest(ran.work))] and [general.longest(ran.work)]
    assert len(longest) == len(LAYOUTS)
    most = max(found["tokens"] for found in longest)
    assert checks._asked(ran.work)["tokens"] >= most
    without = Study(config_of(copies, whole["llava"], ()), tmp_path / "w").work
    without.__dict__["data"] = ran.work.data
    assert checks._asked(without)["tokens"] < most


# ---- the report

FILES = {  # four items, the first two about one image; of MME two, each of two questions
    "pope": {"vanilla": "1 1 1 0", "ga": "0 1 0 0", "mmunlearner": "1 1 1 1"},
    "mme": {"vanilla": "2 1", "ga": "1 1"},
}


@pytest.fixture
def workdir(tmp_path):
    for name, models in FILES.items():
        for model, right in models.items():
            count, asked = len(right.split()), {"pope": 1, "mme": 2}[name]
            image = "0 0 1 2" if name == "pope" else "0 1"
            found = {"right": right, "asked": " ".join([str(asked)] * count), "image": image, "items": "a1"}
            mean = {"pope": {"POPE": 0.75}, "mme": {"MME": 0.75, "MME acc+": 0.5}}[name]
            found["results"] = {title: {"low": low, "one_answer": 0.5} for title, low in mean.items()}
            found["config"] = {"seed": 0, "evaluate": {"samples": 4000}}
            put(tmp_path / "general" / model / f"{name}.json", json.dumps(found))
    return tmp_path


MODELS = ["vanilla", "ga", "mmunlearner"]


def test_the_difference_is_paired_by_item_and_its_interval_is_over_images(workdir):
    """By hand: ga loses the first and the third of four items; images hold -1 of two, -1 of one and 0 of one.

    Of the 27 draws of three images, the mean is least (-1) where only the second image is drawn, in one of 27 (3.7 %), and
    most (0) where only the third is, in as many: the 2.5 % quantiles are these.
    """
    found = told.differences(told.read(workdir, MODELS, ["pope", "mme"]))
    ga = found["POPE"]["ga"]
    assert (ga["mean"], ga["low"], ga["high"], ga["n"]) == (-50.0, -100.0, 0.0, 4)
    assert found["POPE"]["mmunlearner"]["mean"] == 25.0 and "vanilla" not in found["POPE"]
    assert found["MME"]["ga"]["mean"] == -25.0 and found["MME acc+"]["ga"]["mean"] == -50.0
    assert list(found) == ["POPE", "MME", "MME acc+"] and "mmunlearner" not in found["MME"]


def test_the_section_shows_differences_and_says_why(workdir):
    (section,) = page._general(workdir, MODELS, ["pope", "mme"])
    text = "\n".join(page._markdown(block) for block in section.blocks)
    assert section.title == "General ability"
    assert "| Model | POPE ↑ | MME ↑ | MME acc+ ↑ |" in text
    assert "| ga | -50.0 [-100.0, +0.0], n 4 | -25.0 [-50.0, +0.0], n 2 | -50.0 [-100.0, +0.0], n 2 |" in text
    assert "| mmunlearner | +25.0 [+0.0, +100.0], n 4 | – | – |" in text and "| vanilla" not in text
    assert "prompts and parsers differ from paper to paper, and differences do not" in text
    assert "arXiv 2305.10355" in text and "arXiv 2209.09513" not in text
    assert "do not hold 0: POPE none; MME none; MME acc+ none." in text
    assert "than one answer to every question on MME acc+: it has nothing to lose there" in text


def test_what_lies_below_vanilla_is_named(workdir):
    put(workdir / "general" / "ga" / "pope.json", (workdir / "general" / "ga" / "pope.json").read_text().replace("0 1 0 0", "0 0 0 -"))  # fmt: skip
    with pytest.raises(InputError, match="expected a whole number an item in right, asked, image"):
        told.read(workdir, MODELS, ["pope"])
    for model, right in (("vanilla", "1 1 1 1"), ("ga", "0 0 0 0")):
        path = workdir / "general" / model / "pope.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"right": right}))
    asked = told.read(workdir, MODELS, ["pope"])
    (*_, last) = told.notes(told.differences(asked), asked)
    assert last.endswith("POPE ga.") and "nothing to lose" not in last


def test_where_nothing_was_asked_nothing_is_told(workdir, tmp_path):
    assert page._general(workdir, MODELS, []) == []
    assert page._general(tmp_path / "none", MODELS, ["pope"]) == []
    (workdir / "general" / "vanilla" / "pope.json").unlink()
    assert list(told.read(workdir, MODELS, ["pope", "mme"])) == ["mme"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"items": "b2"}, r"same items of pope asked of every model, found others than of vanilla in .*ga/pope.json"),
        ({"asked": "2 1 1 1"}, "same items of pope"),
        ({"right": "1 1 1"}, "as many in each, found otherwise in .*ga/pope.json; delete it"),
        ({"right": 5}, "right = 5 where text is expected"),
    ],
)
def test_a_file_that_is_damaged_or_of_other_items_is_named(workdir, change, words):
    path = workdir / "general" / "ga" / "pope.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(words, told.read, workdir, MODELS, ["pope"])
