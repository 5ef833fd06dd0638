"""The published benchmarks, read from Parquet folders laid out as on the hub; the people in them are invented here."""

import json

import numpy as np
import pytest

from folders import author, copy_with, person, png, write
from mmu_jax import InputError
from mmu_jax.data import IMAGE, TEXT, builders, loader, streams, tiny
from mmu_jax.data.picture import Picture
from mmu_jax.data.sets import clear, mllmu

SPLITS = ("full", "forget", "retain", "test", "retain_test", "unseen", "celebrity")


def read(name, folder, path, **splits):
    return builders.read(builders.prepare(name, path, str(folder)), **splits)


def test_mllmu_bench_is_read_from_its_folders(mllmu_folder, tmp_path):
    b = read("mllmu_bench", mllmu_folder, tmp_path, forget="forget_5", retain="retain_95")
    assert [len(getattr(b, n)) for n in SPLITS] == [12, 2, 10, 2, 10, 0, 2]
    assert [p.id for p in b.retain_test] == [p.id for p in b.retain] and b.retain_test[0].photos[0] == png(102)["bytes"]
    assert {p.id for p in b.celebrity} == {"celebrity-0000", "celebrity-0001"}  # their ids live in another space
    first, second = b.full[:2]
    assert [(e.question, e.answer) for e in first.training if e.kind == IMAGE] == [("Describe.", "Someone.")]
    assert [(e.question, e.answer) for e in second.training if e.kind == IMAGE] == [("Who?", "Me")]
    # The text MCQs of everyone, with the right option as the answer; the empty one is left out.
    assert [(e.question, e.answer) for e in second.training if e.kind == TEXT] == [("What does Person 1 do?", "welder")]
    assert {e.person for p in b.full for e in p.training if e.kind == TEXT} == {f"{i:04d}" for i in range(12)}
    assert [c.kind for c in first.choices] == [IMAGE, TEXT] and first.choices[0].options["B"] == "welder"
    assert len(b.test[0].photos) == 2 and b.test[0].choices[0].question == "What does this person do now?"
    assert b.test[0].photos[0] == png(100)["bytes"] and b.full[0].photos[0] == png(0)["bytes"]
    assert b.full[3].name == "Person 3"


def test_what_was_left_out_is_told(mllmu_folder, clear_folder, tmp_path):
    built = builders.prepare("mllmu_bench", tmp_path, str(mllmu_folder))
    assert builders.left_out(built)[:3] == [
        "full: 12 of 36 multiple-choice items left out: empty (persons 0000, 0001, 0002, 0003, 0004, ...)",
        "full: 1 of 12 people without questions in ft_Data, taught the question and answer of Full_Set (person 0000)",
        "full: 11 of 35 training items left out: empty (persons 0001, 0002, 0003, 0004, 0005, ...)",
    ]
    (built / "left_out.json").unlink()  # prepared by a release that told nothing: it is prepared again
    assert builders.left_out(built) == []
    assert len(builders.left_out(builders.prepare("mllmu_bench", tmp_path, str(mllmu_folder)))) == 7
    built = builders.prepare("clear", tmp_path, str(clear_folder))
    assert builders.left_out(built) == [
        "forget_5: 1 of 3 multiple-choice items not asked: no names to choose from (person Author A)",
        "celebrity: 1 of 3 multiple-choice items left out: no photo (person real_world-0001)",
    ]


def test_clear_is_read_from_its_folders(clear_folder, tmp_path):
    b = read("clear", clear_folder, tmp_path, forget="forget_5", retain="retain_95")
    assert [len(getattr(b, n)) for n in SPLITS] == [4, 1, 3, 0, 0, 0, 2]
    forgotten, kept = b.forget[0], b.retain[0]
    assert forgotten.id == author(0) and len(b.full[0].photos) == 3
    # A caption belongs to its own photo, a block of twenty text questions to the author it names most.
    captions = [e for e in b.full[0].training if e.kind == IMAGE]
    assert [(e.answer, e.photo) for e in captions] == [(f"{author(0)} in room {k}.", k) for k in range(3)]
    assert b.full[0].photos[2] == png(2)["bytes"]
    text = [e for e in b.full[1].training if e.kind == TEXT]
    assert len(text) == clear.BLOCK and text[0].answer == "A1.0" and text[0].photo is None
    assert {e.kind for e in forgotten.generation} == {IMAGE, TEXT} and not forgotten.cloze
    assert [c.photo for c in forgotten.choices] == [1, 2] and forgotten.choices[0].question == clear.RECOGNISE
    assert all(c.options[c.letter] == author(0) for c in forgotten.choices)
    assert {len(c.options) for c in kept.choices} == {2, 3}
    # The right caption in other words, then wrong ones; of the photos that are among the perturbed.
    assert [(c.photo, c.options, c.letter) for c in forgotten.perturbed] == [
        (k, {"A": "x", "B": "y"}, "A") for k in (1, 2)
    ]
    assert {c.kind for c in forgotten.perturbed} == {IMAGE} and not b.full[0].perturbed
    assert forgotten.perturbed[0].question == next(e.question for e in forgotten.generation if e.photo == 1)
    assert b.celebrity[0].choices[0].options == {"A": "Star One", "B": "Star Three", "C": "Star Two"}


def test_a_caption_is_dealt_with_its_own_photo(clear_folder, tmp_path):
    b = read("clear", clear_folder, tmp_path, forget="forget_5", retain="retain_95")
    processor = tiny.processor()
    album = loader.album(processor, b.full)
    examples = [e for p in b.full for e in p.training if e.kind == IMAGE]
    people = {p.id: i for i, p in enumerate(b.full)}
    stream = streams.stream("s", processor, examples, album, people=people, rows=5, seed=0)
    for step in range(6):
        batch = stream.batch(step)
        for pixels, row in zip(batch["pixels"], batch["row"], strict=True):
            if row >= 0:
                place = album.photos[examples[row].person][examples[row].photo]
                np.testing.assert_array_equal(pixels[0], album.pictures[place].array)


@pytest.mark.parametrize(("name", "module"), [("mllmu_bench", mllmu), ("clear", clear)])
def test_a_folder_without_the_data_set_is_refused(name, module, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected a copy of the data set"):
        builders.prepare(name, tmp_path / "data", str(tmp_path / "empty"))
    with pytest.raises(InputError, match="--source=FOLDER"):
        builders.prepare(name, tmp_path / "data")  # the hub, which is not reached here
    assert module.splits(tmp_path / "empty") == []


def test_a_parquet_file_without_a_column_is_refused(mllmu_folder, tmp_path):
    rows = [{k: v for k, v in person(i).items() if k != "Mask_Task"} for i in range(2)]
    write(tmp_path / "in" / "Full_Set", rows)
    taught = json.dumps([{"Question": "Q", "Answer": "A"}])
    write(tmp_path / "in" / "ft_Data", [{"ID": f"{i:04d}", "metadata": taught} for i in range(2)])
    with pytest.raises(InputError, match="found no Mask_Task"):
        list(mllmu.rows("full", tmp_path / "in"))


def test_training_questions_of_other_people_are_refused(mllmu_folder, tmp_path):
    """Joined by ID: where the ids do not meet, nobody is quietly left with one question."""
    write(tmp_path / "in" / "Full_Set", [person(i) for i in range(4)])
    taught = json.dumps([{"Question": "Q", "Answer": "A"}])
    write(tmp_path / "in" / "ft_Data", [{"ID": str(i), "metadata": taught} for i in range(4)])
    with pytest.raises(InputError, match="found 0 of 4"):
        list(mllmu.rows("full", tmp_path / "in"))


def test_captions_and_questions_that_find_no_author_are_refused(clear_folder, tmp_path):
    def other_caption(i, row):
        return row | {"caption": row["caption"] + "!"} if i == 4 else row

    def nameless(i, row):
        return row | {"question": "Q?"} if i < clear.BLOCK else row

    other = copy_with(clear_folder, tmp_path / "a", "retain95", other_caption)
    with pytest.raises(InputError, match="every caption of .* to stand in full, found 1"):
        list(clear.rows("retain_95", other))
    nobody = copy_with(clear_folder, tmp_path / "b", "full+tofu", nameless)
    with pytest.raises(InputError, match="found nobody"):
        list(clear.rows("full", nobody))


def test_photos_beyond_what_is_kept_are_decoded_when_dealt(clear_folder, tmp_path):
    b = read("clear", clear_folder, tmp_path, forget="forget_5", retain="retain_95")
    processor = tiny.processor()
    kept = loader.album(processor, b.full)
    later = loader.album(processor, b.full, keep=2 * kept.pictures[0].nbytes + 5)
    assert kept.photos == later.photos and all(isinstance(p, Picture) for p in kept.pictures)
    assert [isinstance(p, Picture) for p in later.pictures] == [True] * 2 + [False] * (len(kept.pictures) - 2)
    assert kept.pictures[0].nbytes == np.prod(kept.pictures[0].shape)  # a byte a number
    for one, other in zip(kept.pictures, later.pictures, strict=True):
        np.testing.assert_array_equal(one.array, other.array)
        assert (one.tokens, one.grid, one.merge, one.length) == (other.tokens, other.grid, other.merge, other.length)
