"""The table of questions of one's own people: in every form in which it is saved, and what a row means."""

import codecs
import json
import re

import pytest

from mmu_jax.data import people
from mmu_jax.data.sets import folder
from own_people import lines, photo, rows, table, three


@pytest.fixture
def people_folder(tmp_path):
    return three(tmp_path / "mine")


SAID = "person;question;answer\nAda Berg;Where, and when?;Zürich\nBo Lind;Who?;Bo\n"


@pytest.mark.parametrize(
    ("encoded", "first"),
    [
        (SAID.encode("utf-16"), 2),  # what a spreadsheet calls "Unicode text"
        (codecs.BOM_UTF16_BE + SAID.encode("utf-16-be"), 2),
        (b"sep=;\r\n" + SAID.replace("\n", "\r\n").encode(), 3),
        (('\ufeff"sep=|"\n' + SAID.replace(";", "|")).encode(), 3),
        (SAID.replace("\n", "\r").encode(), 2),
    ],
)
def test_a_table_as_a_spreadsheet_saves_it(people_folder, encoded, first):
    (people_folder / "questions.jsonl").unlink()
    (people_folder / "questions.csv").write_bytes(encoded)
    found = people.read(people_folder)
    assert found.faults == () and [row.answer for row in found.rows] == ["Zürich", "Bo"]
    assert [row.where for row in found.rows] == [f"questions.csv:{first}", f"questions.csv:{first + 1}"]


def test_a_table_in_another_encoding_is_told_with_its_line_and_what_to_do(people_folder):
    (people_folder / "questions.jsonl").unlink()
    for encoded, words in (
        (SAID.encode("cp1252"), "found byte 0xfc in line 2 of .*save it as UTF-8 .a spreadsheet calls it .CSV UTF-8"),
        (SAID.encode("utf-16-le"), "in UTF-8, found"),
    ):
        (people_folder / "questions.csv").write_bytes(encoded)
        (fault,) = folder.faults(people_folder)
        assert re.search(words, fault)


def test_a_table_that_is_no_table_is_a_fault_with_its_line(people_folder):
    (people_folder / "questions.jsonl").unlink()
    for text, words in (
        ('"person,question,answer\nAda Berg,Who?,Ada\n', "questions.csv:.*expected CSV, found that"),
        ('person,"question"x,answer\nAda Berg,Who?,Ada\n', "questions.csv:1: expected CSV, found that"),
        ("person,question,answer,answer\nAda Berg,Who?,Ada,Bo\n", "found answer twice; name each once"),
        (
            "person,question,answer,\nAda Berg,Who?,Ada,x\n",
            "questions.csv:2: expected a name over every column, found none over 'x'",
        ),
        (
            "person,question,answer, \nAda Berg,Who?,Ada,x\n",
            "questions.csv:2: expected a name over every column, found none over 'x'",
        ),
        ("\n\nperson,question\nAda Berg,Who?\n", "questions.csv:3: expected columns .*, found no answer"),
    ):
        (people_folder / "questions.csv").write_text(text)
        (fault,) = folder.faults(people_folder)
        assert re.search(words, fault), fault
    (people_folder / "questions.csv").write_text("\n\nperson,question,answer\nAda Berg,Who?,Ada\n")
    assert [row.where for row in people.read(people_folder).rows] == ["questions.csv:4"]


def test_a_photo_that_is_not_read_can_not_be_asked_about(people_folder):
    place = people_folder / "people" / "Ada Berg"
    for name in ("notes.txt", ".hidden.png"):
        (place / name).write_bytes(photo(80))
        table(people_folder, [{"person": "Ada Berg", "question": "Which?", "answer": "this", "photo": name}])
        (fault,) = folder.faults(people_folder)
        assert f"questions.jsonl:1: expected a photo in Ada Berg, found no {name!r} there that ends in .avif" in fault
    (place / "card.jfif").write_bytes(photo(81, "JPEG"))
    table(people_folder, [{"person": "Ada Berg", "question": "Which?", "answer": "this", "photo": "card.jfif"}])
    assert folder.faults(people_folder) == [] and rows(people_folder, "full")


def test_a_part_of_a_name_may_mean_the_person_and_is_told(people_folder):
    said = {"person": "Ada Berg", "question": "What does Ada do?", "answer": "welder"}
    table(people_folder, [said])
    assert folder.faults(people_folder) == []
    (remark,) = folder.remarks(people_folder)
    assert (
        remark
        == "questions.jsonl:1 is asked about a face: it has 'Ada' in it; if that is the person, write about: name"
    )
    for kind in ("name", "face"):
        table(people_folder, [said | {"about": kind}])
        assert folder.remarks(people_folder) == ()
    table(people_folder, [said | {"question": "Is this a berg?"}])
    assert folder.remarks(people_folder) == ()


def test_the_photo_of_somebody_else_is_a_fault(people_folder):
    row = {"person": "Ada Berg", "question": "Who?", "answer": "Ada", "photo": "people/Bo Lind/1.png"}
    table(people_folder, [row])
    (fault,) = folder.faults(people_folder)
    assert "expected a photo in Ada Berg, found no 'people/Bo Lind/1.png' there" in fault
    table(people_folder, [row | {"photo": "people/Ada Berg/1.png"}])
    assert folder.faults(people_folder) == []
    table(people_folder, [row | {"photo": f"{'x' * 300}.png"}])
    assert len(folder.faults(people_folder)) == 1


def test_no_fact_about_a_face_is_left_out_of_the_test(people_folder):
    """The job is there in two wordings, the name in one, the hobby of one photo alone."""
    said = [("Who is this?", "Ada"), ("Job?", "welder"), ("Works as?", "welder"), ("Hobby?", "chess")]
    rows_ = [{"person": "Ada Berg", "question": q, "answer": a} for q, a in said]
    rows_[-1]["photo"] = "0.png"
    for more in ([], [{"person": "Ada Berg", "question": "Is she a nurse?", "answer": "no", "split": "test"}]):
        table(people_folder, [*rows_, *more])
        found = people.read(people_folder)
        taught, tested = folder.divided(found, found.people[0])
        assert {row.answer for row in taught} == {"Ada", "welder", "chess"}
        assert {row.answer for row in tested} == {"Ada", "welder", "chess", *(["no"] if more else [])}
        put = rows(people_folder, "test")["Ada Berg"]["Generation_Task"]
        assert {item["Ground_Truth"] for item in put} == {row.answer for row in tested}


def test_an_answer_that_is_a_letter_and_an_option_is_a_fault(people_folder):
    table(
        people_folder,
        [{"person": "Ada Berg", "question": "Language?", "answer": "C", "options": ["C", "Java", "Python"]}],
    )
    (fault,) = folder.faults(people_folder)
    assert "found 'C', which is one and that of another; write it out" in fault
    table(people_folder, [{"person": "Ada Berg", "question": "Blood?", "answer": "A", "options": ["A", "B"]}])
    assert people.read(people_folder).rows[0].answer == "A"


def test_the_letter_of_an_option_is_taught_as_its_words(people_folder):
    table(people_folder, [{"person": "Ada Berg", "question": "Job?", "answer": "B", "options": ["nurse", "welder"]}])
    assert [row.answer for row in people.read(people_folder).rows] == ["welder"]
    assert json.loads(rows(people_folder, "full")["Ada Berg"]["metadata"])[0]["Answer"] == "welder"


@pytest.mark.parametrize("options", ["1|2|3", ["1", "2", "3"], [1, 2, 3], "[1, 2, 3]"])
def test_options_may_be_numbers(people_folder, options):
    table(people_folder, [{"person": "Ada Berg", "question": "How many dogs?", "answer": "2", "options": options}])
    (row,) = people.read(people_folder).rows
    assert (row.options, row.letter, row.answer) == ({"A": "1", "B": "2", "C": "3"}, "B", "2")


def test_questions_of_one_short_answer_are_not_each_other_s_rewording(people_folder):
    said = [("Is she a pilot?", "Yes."), ("Is she a nurse?", "Yes."), ("How many dogs?", "2"), ("How many cats?", "2")]
    table(people_folder, [{"person": "Ada Berg", "question": q, "answer": a} for q, a in said])
    assert len(json.loads(rows(people_folder, "full")["Ada Berg"]["metadata"])) == 4


def test_who_has_one_photo_is_not_tested_and_that_is_told(people_folder):
    for k in range(1, 5):
        (people_folder / "people" / "Ada Berg" / f"{k}.png").unlink()
    table(
        people_folder,
        [*lines("Ada Berg", "welder"), lines("Ada Berg", "welder")[3] | {"question": "And Ada Berg?", "split": "test"}],
    )
    assert folder.faults(people_folder) == [] and "Ada Berg" not in rows(people_folder, "test")
    (remark,) = folder.remarks(people_folder)
    assert remark == "people/Ada Berg has no second photo to keep for the test: 1 rows of it are not asked"
    found = people.read(people_folder)
    assert folder.divided(found, found.people[0])[1] == []


def test_an_answer_may_hold_any_character_but_the_end_of_a_line(people_folder):
    row = {"person": "Ada Berg", "question": "What did she say?", "answer": "one\u2028two\x85three\x0bfour"}
    table(people_folder, [json.dumps(row, ensure_ascii=False) + "\n"])
    (found,) = people.read(people_folder).rows
    assert found.answer == row["answer"] and found.where == "questions.jsonl:1"
