"""Prepared directories and benchmarks that are damaged, or whose people do not belong together, are refused in one line."""

import dataclasses
import json
import shutil

import pytest

from folders import POINTER, column, folder_of, questions, refused
from mmu_jax.data import builders, schema
from mmu_jax.data.sets import faces


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    return builders.prepare("mllmu_bench", folder, str(folder_of(folder / "in")))


def text_of(name, change):
    return lambda d: (d / name).write_text(change((d / name).read_text()))


def info_of(**values):
    return text_of("dataset_info.json", lambda said: json.dumps(json.loads(said) | values))


def records_of(change):
    return lambda d: change(next(d.glob("*-full.array_record*")))


DAMAGE = {
    "no info": (lambda d: (d / "dataset_info.json").unlink(), "expected a prepared TFDS directory, found no dataset_info.json"),
    "info empty": (text_of("dataset_info.json", lambda said: ""), "dataset_info.json which is not JSON"),
    "info half": (text_of("dataset_info.json", lambda said: said[:200]), "dataset_info.json which is not JSON"),
    "info a list": (text_of("dataset_info.json", lambda said: "[]"), "found list in .*dataset_info.json"),
    "info a folder": (lambda d: ((d / "dataset_info.json").unlink(), (d / "dataset_info.json").mkdir()), "cannot be read"),
    "info a pointer": (text_of("dataset_info.json", lambda said: POINTER), "git lfs pull"),
    "info of something": (info_of(nope=3), "tfds does not read"),
    "no version": (info_of(version="abc"), "tfds does not read .Invalid version 'abc'"),
    "no splits": (info_of(splits=[]), "expected one of the splits"),
    "splits a number": (info_of(splits=3), "tfds does not read"),
    "another format": (info_of(fileFormat="tfrecord"), "TFRECORD is not supported"),
    "unknown format": (info_of(fileFormat="nope"), "tfds does not read"),
    "another name": (info_of(name="nope"), "cannot be read .open.. failed"),
    "no features": (lambda d: (d / "features.json").unlink(), "features.json which cannot be read"),
    "features half": (text_of("features.json", lambda said: said[:300]), "features.json which is not JSON"),
    "features of nothing": (text_of("features.json", lambda said: "{}"), "tfds does not read"),
    "features without fields": (
        text_of("features.json", lambda said: json.dumps({"pythonClassName": json.loads(said)["pythonClassName"]})),
        "tfds does not read",
    ),
    "a file gone": (records_of(lambda f: f.unlink()), "files of split 'full' .*No such file"),
    "a file empty": (records_of(lambda f: f.write_bytes(b"")), "files of split 'full' .*cannot be read"),
    "a file a pointer": (records_of(lambda f: f.write_text(POINTER)), "full.array_record-00000-of-00001 is a pointer of git-lfs"),
    "a file cut": (records_of(lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2])), "files of split 'full'"),
    "a file overwritten": (records_of(lambda f: f.write_bytes(b"?" * f.stat().st_size)), "files of split 'full'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", DAMAGE)
def test_a_damaged_prepared_directory_is_one_line(fault, prepared, tmp_path):
    change, words = DAMAGE[fault]
    shutil.copytree(prepared, tmp_path / "d")
    change(tmp_path / "d")
    refused(words, builders.read, tmp_path / "d", forget="forget_5", retain="retain_95")


SLICES = ["full[5", "full[:200%]", "full[:999]", "full[a:b]", "full[]", "full[3]", "full[::2]", "", "+", "full[:1]+",
          "full [:1]", "all[:5]", "full[4:2]", "nope", "full[:1]+nope"]  # fmt: skip


@pytest.mark.parametrize("said", SLICES)
def test_a_part_of_a_split_that_there_is_not_is_one_line(said, prepared):
    refused(
        "expected (one of the splits .*|a part of a split .*)found", builders.read, prepared, forget=said, retain="full"
    )
    refused(
        "expected (one of the splits .*|a part of a split .*)found",
        builders.read,
        prepared,
        forget="full[:1]",
        retain=said,
    )


def test_people_of_two_slices_are_told_apart(prepared):
    refused("once in forget, found 0000 twice", builders.read, prepared, forget="forget_5+full[:6]", retain="retain_95")


def test_no_room_for_the_data_is_one_line(tmp_path):
    (tmp_path / "data").write_text("a file")
    refused(
        "room and permission to prepare the data set in .*data", builders.prepare, "embedded_faces", tmp_path / "data"
    )


# ---- one row, one benchmark


@pytest.fixture(scope="module")
def whole(prepared):
    return builders.read(prepared, forget="forget_5", retain="retain_95")


@pytest.fixture(scope="module")
def face():
    return next(iter(faces.rows("forget_10")))


ROWS = {
    "misspelt type": (column("Mask_Task", lambda t: [i | {"Type": "Image"} for i in t]), "Type .* person 0002, found 'Image'"),
    "no type": (column("Mask_Task", lambda t: [{k: v for k, v in i.items() if k != "Type"} for i in t]), "person 0002, found ''"),
    "letter without an option": (questions(lambda q: {"Correct_Answer": "F"}), "person 0002, found 'F'"),
    "no answer": (column("Generation_Task", lambda t: [i | {"Ground_Truth": ""} for i in t]), "a Question and a Ground_Truth .* 0002"),
    "no right option": (questions(lambda q: {"Correct_Answer": None}), "a Question and a right option .* person 0002"),
    "no photo": (lambda row: row | {"image": None}, "expected a photo in column 'image' .* person 0002"),
    "no name": (lambda row: row | {"biography": "{}"}, "expected a Name in column 'biography' .* person 0002"),
    "a photo in words": (column("Mask_Task", lambda t: [i | {"Photo": "first"} for i in t]), "person 0002, found 'first'"),
    "no ID": (lambda row: row | {"ID": None}, "an ID in a row of split 'full'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ROWS)
def test_a_row_that_has_no_reading_is_one_line(fault, face):
    change, words = ROWS[fault]
    refused(words, schema.read_person, change(face), "full")


@pytest.mark.parametrize("where", ["full", "forget", "retain", "test", "retain_test", "celebrity"])
def test_a_photo_that_is_not_there_is_one_line(where, whole):
    people = list(getattr(whole, where) or whole.full)
    item = dataclasses.replace(people[0].generation[0], photo=1)
    people[0] = dataclasses.replace(people[0], generation=(item,))
    broken = dataclasses.replace(whole, **{where: tuple(people)})
    refused(f"photos 0 to 0 of person {people[0].id} in {where}, found Photo 1", schema.check, broken)


@pytest.mark.parametrize("where", ["retain", "test", "retain_test"])
def test_who_is_asked_and_was_never_taught_is_named(where, whole):
    stranger = dataclasses.replace(whole.full[0], id="0077")
    broken = dataclasses.replace(whole, **{where: (stranger,)})
    refused(f"every person of {where} in the training data .*found no 0077", schema.check, broken)


def test_forgotten_people_are_asked_about_their_training_photos(whole):
    full = (dataclasses.replace(whole.full[0], photos=whole.full[0].photos * 2), *whole.full[1:])
    asked = dataclasses.replace(
        whole.forget[0], generation=(dataclasses.replace(whole.forget[0].generation[0], photo=1),)
    )
    schema.check(dataclasses.replace(whole, full=full, forget=(asked,)))
