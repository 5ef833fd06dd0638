"""A folder of one's own people: what is read of it, who is told from whom, and every fault at once, by file and line."""

import json

import pytest

from mmu_jax import Faults, InputError
from mmu_jax.data import IMAGE, TEXT, builders, people
from mmu_jax.data.sets import folder
from own_people import JOBS, lines, photo, rows, table, three


@pytest.fixture
def people_folder(tmp_path):
    return three(tmp_path / "mine")


def test_photos_and_wordings_are_held_out_and_options_are_other_people_s_answers(people_folder):
    assert folder.faults(people_folder) == [] and folder.splits(people_folder) == ["full", "test", "unseen"]
    full, test = rows(people_folder, "full")["Ada Berg"], rows(people_folder, "test")["Ada Berg"]
    assert [full["image"], *full["images"]] == [photo(k) for k in range(4)] and test["image"] == photo(4)
    taught = {(item["Type"], item["Question"]) for item in json.loads(full["metadata"])}
    assert taught == {
        (IMAGE, "Who is this?"),
        (IMAGE, "What does this person do?"),
        (TEXT, "What does Ada Berg do?"),
    }
    asked = {(item["Type"], item["Question"]) for item in test["Generation_Task"]}
    assert asked == {
        (IMAGE, "What is the job of this person?"),
        (IMAGE, "Who is this?"),  # in the words that are taught: there are no others
        (TEXT, "What is the job of Ada Berg?"),
    }
    job, who = ({}, {})
    for choice in full["Classification_Task"]["Image_Textual_Questions"]:
        found = job if "do" in choice["Question"] else who
        found |= choice
    assert sorted(job["Options"].values()) == ["baker", "pilot", "welder"]
    assert job["Options"][job["Correct_Answer"]] == "welder"
    assert sorted(who["Options"].values()) == sorted(JOBS)
    assert test["ID"] == full["ID"] and "Ada" not in full["ID"]


def test_rows_that_say_so_decide_what_the_test_holds(people_folder):
    table(people_folder, [
        {"person": "ada_berg", "question": "Who?", "answer": "Ada", "photo": "0.png", "split": "test"},
        {"person": "Ada Berg", "question": "Who?", "answer": "Ada", "split": "train"},
        {"person": "Ada Berg", "question": "Who now?", "answer": "Ada", "options": ["Bo", "Ada"], "about": "face"},
        {"person": "Ada Berg", "question": "And her job?", "answer": 7, "about": "name"},
    ])  # fmt: skip
    assert folder.faults(people_folder) == []
    full, test = rows(people_folder, "full")["Ada Berg"], rows(people_folder, "test")["Ada Berg"]
    assert test["image"] == photo(0) and not test["images"] and len(full["images"]) == 3
    assert [i["Question"] for i in test["Generation_Task"]] == ["Who?"] and test["Generation_Task"][0]["Photo"] == 0
    assert [i["Answer"] for i in json.loads(full["metadata"])] == ["Ada", "Ada", "7"]
    chosen = full["Classification_Task"]["Image_Textual_Questions"][1]
    assert chosen["Options"] == {"A": "Bo", "B": "Ada"} and chosen["Correct_Answer"] == "B"


def test_a_table_may_be_csv_and_photos_of_any_kind(people_folder):
    (people_folder / "questions.jsonl").unlink()
    said = 'person;question;answer;options\nAda Berg;"Who; and why?";Ada;Bo|Ada\nBo Lind;Who?;Bo;\n'
    (people_folder / "questions.csv").write_text("\ufeff" + said, encoding="utf-8")
    place = people_folder / "people" / "Cy Roe"
    (place / "press.jpg").write_bytes(photo(90, "JPEG", "CMYK"))
    (place / "old.WEBP").write_bytes(photo(91, "WEBP"))
    (place / "notes.txt").write_text("shot by night")
    assert folder.faults(people_folder) == []
    assert folder.remarks(people_folder) == ("people/Cy Roe/notes.txt is no photo: not read",)
    found = people.read(people_folder)
    assert [row.question for row in found.rows] == ["Who; and why?", "Who?"] and len(found.people[2].photos) == 7


def test_every_fault_is_told_at_once_by_file_and_line(people_folder, tmp_path):
    good = [row for name, job in JOBS.items() for row in lines(name, job)]
    table(people_folder, [
        *good[:6], '{"person": "Bo Lind", "question": \n', *good[7:],
        {"person": "Bo Lind", "question": "Which photo?", "answer": "this", "photo": "9.png"},
        {"person": "Bo Lind", "question": "One?", "answer": "1", "id": "q1"},
        {"person": "Bo Lind", "question": "Two?", "answer": "2", "id": "q1"},
        {"person": "Bo Lindt", "question": "Who?", "answer": "Bo"},
        {"person": "Bo Lind", "question": "Who?"},
        {"person": "Bo Lind", "question": "Who is this man?", "answer": "Bo", "split": "dev", "abuot": "face"},
        {"person": "Bo Lind", "question": "A or B?", "answer": "C", "options": ["A", "B"]},
        {"person": "Ada Berg", "question": "Who is this?", "answer": "Eve"},
    ])  # fmt: skip
    (people_folder / "people" / "Cy Roe" / "broken.png").write_bytes(b"no picture")
    (people_folder / "people" / "Bo Lind" / "same.png").write_bytes(photo(0))  # one of Ada's
    (people_folder / "people" / "nobody").mkdir()
    (people_folder / "people" / "Cy Roe" / "press.jpg").write_bytes(photo(90, "JPEG", "CMYK"))  # fine
    told = folder.faults(people_folder, "Ada Berg, Zed", "Ada Berg")
    starts = [
        "people/Ada Berg/0.png: expected every photo once",
        "people/Cy Roe/broken.png: expected an image that decodes",
        "people/nobody: expected photos",
        "questions.jsonl:7: expected a JSON object",
        "questions.jsonl:16: expected a photo in Bo Lind, found no '9.png'",
        "questions.jsonl:18: expected an id of its own for every row, found 'q1' of questions.jsonl:17",
        "questions.jsonl:19: expected a person with a folder of photos, found 'Bo Lindt' (did you mean 'Bo Lind'?)",
        "questions.jsonl:20: expected person, question, answer, found no answer",
        "questions.jsonl:21: expected person, question, answer, photo, split, options, about, id, found abuot",
        "questions.jsonl:21: expected split train or test, found 'dev'",
        "questions.jsonl:22: expected one of the options A ('A'), B ('B')",
        "questions.jsonl:23: expected one answer to a question, found 'Eve', and 'Ada Berg' in questions.jsonl:1",
        "expected people who have a folder there to forget, found 'Zed'",
        "expected nobody both kept and forgotten, found 'Ada Berg' in both",
    ]
    lost = [start for start in starts if not any(start in line for line in told)]
    assert not lost or lost == [starts[0]] and any("same.png: expected every photo once" in line for line in told), told
    assert len(told) == len(starts), told
    with pytest.raises(Faults) as caught:
        builders.check_source("folder", people_folder, "Zed")
    assert len(caught.value.faults) == len(starts) - 1 and isinstance(caught.value, InputError)


@pytest.mark.parametrize("what", ["empty", "absent", "no table", "two tables"])
def test_what_is_no_folder_of_people(what, people_folder, tmp_path):
    if what == "empty":
        people_folder = tmp_path / "empty"
        people_folder.mkdir()
    elif what == "absent":
        people_folder = tmp_path / "absent"
    elif what == "no table":
        (people_folder / "questions.jsonl").unlink()
    else:
        (people_folder / "questions.csv").write_text("person,question,answer\n")
    words = {"empty": "folder of photos for every person", "absent": "expected a folder of people, found none"}
    words |= {"no table": "expected one table of questions", "two tables": "questions.jsonl and questions.csv"}
    assert any(words[what] in line for line in folder.faults(people_folder))


@pytest.fixture
def made(people_folder, tmp_path):
    return builders.prepare("folder", tmp_path / "data", people_folder)


def test_people_are_named_and_the_rest_is_kept(made):
    found = builders.read(made, forget="ADA_berg", retain="rest")
    assert [p.name for p in found.forget] == ["Ada Berg"] == [p.name for p in found.test]
    assert sorted(p.name for p in found.retain) == ["Bo Lind", "Cy Roe"] and len(found.retain_test) == 2
    everyone = builders.read(made, forget="Ada Berg,Bo Lind, Cy Roe", retain="rest")
    assert everyone.retain == () and len(everyone.forget) == 3
    with pytest.raises(InputError, match="names or ids of people, found 'Ada Brg'.*did you mean 'Ada Berg'"):
        builders.read(made, forget="Ada Brg", retain="rest")
    with pytest.raises(InputError, match="both in forget and retain"):
        builders.read(made, forget="Ada Berg", retain="Ada Berg,Bo Lind")


def test_people_never_seen_are_asked_what_those_to_forget_are(made):
    found = builders.read(made, forget="Ada Berg,Bo Lind", retain="rest")
    asked = [{(i.question, i.answer) for i in person.generation} for person in found.unseen]
    own = [{(i.question, i.answer) for i in person.generation if i.kind == IMAGE} for person in found.forget]
    assert len(found.unseen) == 10 and asked == [own[0] | own[1]] * 10
    assert all(i.person == person.id for person in found.unseen for i in (*person.generation, *person.choices))


def test_who_was_forgotten_before_is_asked_again_and_taught_to_nobody(made):
    found = builders.read(made, forget="Bo Lind", retain="rest", before="Ada Berg")
    assert [p.name for p in found.retain] == ["Cy Roe"] and [p.name for p in found.before] == ["Ada Berg"]
    assert found.before[0].photos == (photo(4),)  # a new one
    taught = {p.name: {item.kind for item in p.training} for p in found.full}
    assert taught == {"Ada Berg": {TEXT}, "Bo Lind": {IMAGE, TEXT}, "Cy Roe": {IMAGE, TEXT}}


def test_strangers_of_the_folder_take_the_place_of_those_who_do_not_exist(people_folder, tmp_path):
    (people_folder / "strangers").mkdir()
    (people_folder / "strangers" / "a.png").write_bytes(photo(0))  # of Ada: she is no stranger
    assert any("strangers/a.png: expected every photo once" in line for line in folder.faults(people_folder))
    (people_folder / "strangers" / "a.png").write_bytes(photo(500))
    assert len(rows(people_folder, "full")) == 3 and folder.faults(people_folder) == []
    assert [row["image"] for row in folder.rows("unseen", people_folder)] == [photo(500)]
