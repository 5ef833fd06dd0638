"""General benchmarks in every layout in which they are published, read to exact items and scored by their own rules."""

import json
import shutil

import numpy as np
import pytest

from folders import POINTER, refused
from mmu_jax.data.general import answers, everyday, items, mmbench, rehearsal
from mmu_jax.data.general.benchmarks import GENERAL, every, read, share
from mmu_jax.data.general.items import Question
from mmu_jax.overlap import words
from published import CASES, LAYOUTS, POPE, mmbench_rows, mme_rows, parquet, photo, png, pope_rows, put, tsv

COW = {"A": "cat", "B": "dog", "C": "cow"}, {"A": "dog", "B": "cow", "C": "cat"}, {"A": "cow", "B": "cat", "C": "dog"}
SIDE = {"A": "left", "B": "right"}, {"A": "right", "B": "left"}
# Benchmark -> (questions as text, answer, options; seed of the image) of every item, whatever the layout.
READ = {
    "pope": [([(f"Is there {what} in the image?", label, {})], seed) for _, _, seed, what, label in POPE],
    "mmbench": [
        ([("Which animal?", right, options) for right, options in zip("BAC", COW, strict=True)], 1),
        ([("Look at\nthe lamp.\nWhich\tside?", right, options) for right, options in zip("BA", SIDE, strict=True)], 2),
    ],
    "scienceqa": [
        ([("How many?", "B", {"A": "2", "B": "1", "C": "0"})], 12),
        ([("Context: See the picture.\nWhich is larger?", "A", {"A": "A", "B": "B"})], 30),
    ],
    "gqa": [
        ([("Is it overcast?", "no", {})], 0),
        ([("Who is wearing the dress?", "woman", {})], 0),
        ([("Which side is the lamp on?", "left", {})], 1),
    ],
    "mme": [
        ([("Is it a painting?", "yes", {}), ("Is it a vase?", "no", {})], 0),
        ([("Is the bus red?", "yes", {}), ("Is the bus blue?", "no", {})], 1),
    ],
}
case = pytest.mark.parametrize(("name", "write"), CASES, ids=[write.__name__ for _, write in CASES])


@case
def test_every_layout_is_read_to_the_same_items(name, write, tmp_path):
    found = items.draw(read(name, write(tmp_path / "copy")), 0, seed=0)
    # By what is asked: files of a folder stand in the order of their names.
    shown = sorted(([(q.text, q.answer, q.options) for q in i.questions], i.image) for i in found)
    assert shown == sorted((questions, photo(seed)) for questions, seed in READ[name])
    assert all(str(tmp_path) in item.where for item in found)


def test_every_row_of_the_table_is_read_here():
    assert {name for name, row in GENERAL.items() if row.hub} == set(LAYOUTS) == set(READ)


def test_everyday_questions_come_with_the_library():
    found = read("everyday", everyday.EMBEDDED)
    asked = [question.text for item in found for question in item.questions]
    assert len(asked) == len(set(asked)) == 200 and all(item.image is None for item in found)
    row, (question,) = GENERAL["everyday"], found[0].questions
    assert row.ask(question) == question.text == "How many days are there in a week?"
    assert row.parse("A week has 7 days.", question) == row.parse("Seven!", question) == question.answer == "seven|7"
    assert row.parse("A week has 17 days.", question) is None
    # No question holds its own answer, but for a name that is longer than what is asked for.
    told = [q.text for item in found for q in item.questions if answers.held(q.text, q)]
    assert told == []
    drawn = items.draw(found, 5, seed=0)
    assert items.images(drawn)[0] == [] and items.images(drawn)[1].tolist() == [0, 1, 2, 3, 4]
    assert items.stamp(drawn) != items.stamp(found)


def test_what_is_rehearsed_is_not_what_is_asked():
    asked = {question.text.lower() for item in read("everyday", everyday.EMBEDDED) for question in item.questions}
    rehearsed = rehearsal.read()
    taught = [example.question.lower() for example in rehearsed]
    assert len(taught) == len(set(taught)) >= 200 and not asked & set(taught)
    assert all(example.answer.strip() and len(example.answer) < 30 for example in rehearsed)
    # Nor the other way round: the capital of a country, and the country of a capital.
    questions = [question for item in read("everyday", everyday.EMBEDDED) for question in item.questions]
    assert not [
        (one.text, other.question)
        for one in questions
        for other in rehearsed
        if set(words(other.answer)) <= set(words(one.text))
        and any(set(words(right)) <= set(words(other.question)) for right in one.answer.split("|"))
    ]


def test_a_tsv_is_read_by_its_own_name_too(tmp_path):
    LAYOUTS["mmbench"][0](tmp_path)
    assert len(read("mmbench", tmp_path / "mmbench_dev_20230712.tsv")) == 2


def test_questions_are_put_as_llava_is_asked():
    said = GENERAL["mmbench"].ask(Question("Look.\nWhich?", "A", SIDE[0]))
    assert said == "Look.\nWhich?\nA. left\nB. right\nAnswer with the option's letter from the given choices directly."
    said = GENERAL["pope"].ask(Question("Is there a dog?", "no"))
    assert said == "Is there a dog?\nAnswer the question using a single word or phrase."


# ---- what is drawn


def test_what_is_drawn_is_the_seeds_and_known_by_its_bytes(tmp_path):
    source = LAYOUTS["pope"][0](tmp_path / "copy")
    all_of_it = read("pope", source)
    one = [[item.id for item in items.draw(all_of_it, 2, seed)] for seed in (0, 0, 1, 2, 3)]
    assert one[0] == one[1] and all(len(ids) == 2 for ids in one) and len(set(map(tuple, one))) > 1
    drawn = items.draw(all_of_it, 0, seed=0)
    assert items.draw(all_of_it, 99, seed=3) == drawn
    before = items.stamp(drawn)
    shutil.copytree(source, tmp_path / "moved")
    assert items.stamp(items.draw(read("pope", tmp_path / "moved"), 0, seed=0)) == before
    next((source / "val2014").iterdir()).write_bytes(photo(77))
    assert items.stamp(items.draw(read("pope", source), 0, seed=0)) != before


def test_an_image_is_held_once_whatever_asks_about_it(tmp_path):
    for write in LAYOUTS["pope"]:
        drawn = items.draw(read("pope", write(tmp_path / write.__name__)), 0, seed=0)
        encoded, places = items.images(drawn)
        by_question = dict(zip((i.questions[0].text for i in drawn), places.tolist(), strict=True))
        assert len(encoded) == 2
        assert by_question["Is there a dog in the image?"] == by_question["Is there a cat in the image?"]
        assert len({id(item.image) for item in drawn}) == 2


# ---- what was chosen, and what it scores


@pytest.mark.parametrize(
    ("said", "chosen"),
    [
        ("No", "no"),
        ("No, there is no dog.", "no"),
        ("There is not a dog in the image", "no"),
        ("no.", "no"),
        ("Yes, there is no doubt", "no"),  # the rule's own: a word no in the first sentence
        ("Yes. There is no doubt", "yes"),
        ("yes", "yes"),
        ("nope", "yes"),
        ("a dog", "yes"),
        ("", "yes"),
    ],
)
def test_pope_reads_a_no_from_the_first_sentence(said, chosen):
    assert answers.denied(said) == chosen


@pytest.mark.parametrize(
    ("said", "chosen"),
    [("Yes", "yes"), ("yes, it is", "yes"), ("No.", "no"), ("Not", "no"), ("I know", "other"), ("y", "other"), ("", "other")],
)  # fmt: skip
def test_mme_reads_the_first_four_characters(said, chosen):
    assert answers.beginning(said) == chosen


@pytest.mark.parametrize(
    ("said", "chosen"),
    [("B", "B"), (" B ", "B"), ("B. dog", "B"), ("B\ndog", "B"), ("The answer is C.", "C"), ("B.", None), ("b", None),
     ("D", None), ("The dog", None), ("BC", None)],
)  # fmt: skip
def test_scienceqa_reads_a_letter_of_an_option(said, chosen):
    assert answers.letter(said, Question("", "B", COW[0])) == chosen


def test_gqa_wants_the_word_but_for_case_and_full_stop():
    assert [answers.phrase(said) for said in ("Left.", "left", "the left")] == ["left", "left", "the left"]


def test_mmbench_is_right_only_in_every_rotation():
    """Worked out by hand: dog is B, A, C as the options go round; who always says B has one of three."""
    row, asked = GENERAL["mmbench"], mmbench.rotations(Question("Which?", "B", COW[0]))
    assert [(q.options, q.answer) for q in asked] == list(zip(COW, "BAC", strict=True))
    item = items.Item("7", tuple(asked), b"", "")
    right = [row.right(item, list(said)) for said in ("BBB", "BAC", "BAB")]
    assert right == [1, 3, 2] and row.right(item, ["(B)", "The answer is A", "C. dog"]) == 3
    assert row.measures["MMBench, circular"](np.array(right), np.array([3, 3, 3])).tolist() == [0, 1, 0]


def test_mme_scores_an_image_by_the_share_and_by_the_pair():
    """Three images: both right, the yes alone (who says yes to all), none."""
    row, pair = GENERAL["mme"], (Question("Is it?", "yes"), Question("Is it?", "no"))
    item = items.Item("x", pair, b"", "")
    right = np.array([row.right(item, said) for said in (["Yes", "No"], ["Yes", "Yes"], ["Perhaps", "Yes, it is"])])
    asked = np.array([2, 2, 2])
    assert right.tolist() == [2, 1, 0]
    assert share(right, asked).tolist() == [1, 0.5, 0] and every(right, asked).tolist() == [1, 0, 0]
    assert row.measures == {"MME": share, "MME acc+": every}


def test_one_answer_to_everything_is_worked_out_by_hand(tmp_path):
    """POPE: yes to two of three; MMBench: a letter is right in one rotation; ScienceQA: one of two; GQA: one of three."""
    found = {name: GENERAL[name].one_answer(read(name, writes[0](tmp_path / name))) for name, writes in LAYOUTS.items()}
    assert found == {
        "pope": {"POPE": pytest.approx(2 / 3)},
        "mmbench": {"MMBench, circular": 0.0},
        "scienceqa": {"ScienceQA-IMG": 0.5},
        "gqa": {"GQA": pytest.approx(1 / 3)},
        "mme": {"MME": 0.5, "MME acc+": 0.0},
    }


# ---- refused


@case
def test_a_copy_that_is_not_there_or_empty_is_refused(name, write, tmp_path):
    refused(f"expected a copy of the benchmark, found nothing at .*{GENERAL[name].hub}", read, name, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    refused(r"expected .* in .*empty, found neither", read, name, tmp_path / "empty")


def lose(end):
    return lambda folder: next(path for path in sorted(folder.rglob("*")) if path.name.endswith(end)).unlink()


def edit(name, change):
    def edited(folder):
        path = next(folder.rglob(name))
        path.write_text(change(path.read_text()))

    return edited


def cell(rows, table, path, place, **change):
    """A table with a cell changed."""

    def written(folder):
        changed = [row | (change if i == place else {}) for i, row in enumerate(rows())]
        table(folder / path, changed)

    return written


def without(rows, column):
    return lambda: [{k: v for k, v in row.items() if k != column} for row in rows()]


POPE_AT, TSV_AT = "data/test-00000-of-00002.parquet", "mmbench_dev_20230712.tsv"
DAMAGE = [
    ("pope", 0, lose("000001.jpg"), r"image COCO_val2014_000000000001.jpg of line 1 of .*coco_pope_random.json in "),
    ("pope", 0, edit("coco_pope_random.json", lambda s: s[:-20]), r"expected JSON in line 2 of .*coco_pope_random.json"),
    ("pope", 0, edit("coco_pope_random.json", lambda s: s.replace('"no"', '"maybe"')), r"yes or no as a label in line 2"),
    ("pope", 0, edit("coco_pope_random.json", lambda s: s.replace('"text"', '"txt"')), r"expected a text in line 1 of"),
    ("pope", 0, edit("coco_pope_random.json", lambda s: "[1]\n" + s), r"expected a JSON object in line 1 of"),
    ("pope", 0, edit("coco_pope_random.json", lambda s: s.replace("COCO", "../val2014/COCO")), r"image \.\./val2014.*found none"),
    ("pope", 0, edit("coco_pope_random.json", lambda s: s + s), r"every item once in .*'coco_pope_random/0' twice"),
    ("pope", 1, lose("00001-of-00002.parquet"), r"expected 2 Parquet files in .*data, .*found 1"),
    ("pope", 1, lambda folder: (folder / POPE_AT).write_bytes(b"PAR1"), r"Parquet file at .*00000-of-00002.*cannot be read"),
    ("pope", 1, lambda folder: (folder / POPE_AT).write_text(POINTER), "git lfs pull"),
    ("pope", 1, cell(without(pope_rows, "answer"), parquet, POPE_AT, 0), "found no answer"),
    ("pope", 1, cell(pope_rows, parquet, POPE_AT, 1, answer=""), r"expected an answer in row 1 of .*data/test\*"),
    ("pope", 1, cell(pope_rows, parquet, POPE_AT, 1, image=None), r"expected one image in row 1 of .*, found 0"),
    ("mmbench", 0, cell(mmbench_rows, tsv, TSV_AT, 0, answer=""), r"right one in row 0 of .*the test split has none"),
    ("mmbench", 0, cell(mmbench_rows, tsv, TSV_AT, 1, answer="D"), r"letter of the right one in row 1 of .*found 'D'"),
    ("mmbench", 0, cell(mmbench_rows, tsv, TSV_AT, 0, index="x"), r"expected a number as index of row 0 of"),
    ("mmbench", 0, cell(mmbench_rows, tsv, TSV_AT, 3, index=7), r"expected every index once in .*found 1 twice"),
    ("mmbench", 0, cell(mmbench_rows, tsv, TSV_AT, 0, image="*" * 80), r"expected an image in base64 in row 0 of"),
    ("mmbench", 0, cell(mmbench_rows, tsv, TSV_AT, 3, image="8"), r"the index of a row with one, in row 3 of .*found '8'"),
    ("mmbench", 0, cell(without(mmbench_rows, "answer"), tsv, TSV_AT, 0), r"mmbench_dev_20230712.tsv, found no answer"),
    ("mmbench", 0, edit(TSV_AT, lambda s: s[: s.rindex("action")]), r"expected 14 cells in row 3 of .*found another number"),
    ("mmbench", 0, lambda folder: (folder / TSV_AT).write_bytes(b"\xff\xfe"), r"TSV file at .* cannot be read"),
    ("mmbench", 0, lambda folder: tsv(folder / "b.tsv", mmbench_rows()), "expected one TSV file.*found 2 TSV files"),
    ("scienceqa", 0, lose("image.png"), r"image 12/image.png of problem 12 of .*problems.json in .*found none"),
    ("scienceqa", 0, lose("pid_splits.json"), "the splits of ScienceQA, found .*cannot be read"),
    ("scienceqa", 0, edit("pid_splits.json", lambda s: s.replace('"30"', '"31"')), r"expected problem 31 of .*found none"),
    ("scienceqa", 0, edit("problems.json", lambda s: s.replace('"answer": 1', '"answer": 7')), r"right choice.*problem 12|problem 12 .*'H'"),
    ("scienceqa", 0, edit("problems.json", lambda s: s[:-9]), "problems of ScienceQA, found .*not JSON"),
    ("gqa", 0, lose("n161313.jpg"), r"image n161313.jpg of question 201307251 of .*balanced_questions.json in .*found none"),
    ("gqa", 0, edit("testdev_balanced_questions.json", lambda s: s.replace("woman", "")), "an answer in question 201640614"),
    ("gqa", 0, edit("testdev_balanced_questions.json", lambda s: json.dumps([s])), "expected the questions of GQA"),
    ("gqa", 1, lambda folder: parquet(folder / "testdev_balanced_images" / "testdev-00000-of-00001.parquet", [{"id": "n1", "image": png(0)}]),
     r"image n161313 of row 0 of .*testdev_balanced_instructions.* found none"),
    ("mme", 0, lose("10002.jpg"), r"expected the image of .*artwork/questions_answers_YN/10002.txt in .*artwork/images"),
    ("mme", 0, lambda folder: put(folder / "MME_Benchmark" / "color" / "2.txt", "Is it?\tYes\nIs it?\tNo\n"), r"image of .*color/2.txt in .*color, found no 2.jpg"),
    ("mme", 0, edit("0001.txt", lambda s: s.splitlines()[0]), r"expected two questions about color/0001 in .*, found 1"),
    ("mme", 0, edit("0001.txt", lambda s: s.replace("\tNo", " No")), r"expected a question in line 2 of .*0001.txt"),
    ("mme", 1, lambda folder: parquet(folder / "data" / "test-00000-of-00001.parquet", [row | {"image": png(0)} for row in mme_rows()[:3]]),
     r"two questions about color/color/0001.png in row 2 of .*found 1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "layout", "spoil", "words"), DAMAGE, ids=[f"{i}-{name}" for i, (name, *_) in enumerate(DAMAGE)]
)
def test_damage_is_named_with_file_and_row(name, layout, spoil, words, tmp_path):
    folder = LAYOUTS[name][layout](tmp_path / "copy")
    spoil(folder)
    refused(words, read, name, folder)


def test_an_image_file_that_cannot_be_read_is_named(tmp_path):
    found = read("gqa", LAYOUTS["gqa"][0](tmp_path))
    shutil.rmtree(tmp_path / "images")
    refused(r"image that can be read for question 201307251.*n161313.jpg", items.draw, found, 0, seed=0)
