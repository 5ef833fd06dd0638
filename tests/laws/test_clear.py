"""CLEAR as people bring it: twins, names within names, lists as text; a fault of the data is one line with the author."""

import json

import pytest

from configs import tiny
from folders import copy_with, png, refused, rewritten, write
from mmu_jax import InputError
from mmu_jax.data import IMAGE, TEXT, builders
from mmu_jax.data.sets import clear, perturbed
from mmu_jax.study import steps
from mmu_jax.study.study import Study
from mmu_jax.study.workspace import Workspace


def captions(*names, said="{} in room {}."):
    return [{"image": png(10 * i + k), "caption": said.format(name, k), "name": name}
            for i, name in enumerate(names) for k in range(3)]  # fmt: skip


def authors_of(out, names, rows=None, asked=None):
    """A folder of CLEAR: the first author is to be forgotten."""
    rows = rows or captions(*names)
    asked = asked or [{"question": f"Q{i}.{k} of {name}?", "answer": f"A{i}.{k}"}
                      for i, name in enumerate(names) for k in range(clear.BLOCK)]  # fmt: skip
    nothing = dict.fromkeys(("image", "caption", "question", "answer"))
    write(out / "full", rows)
    write(
        out / "full+tofu",
        [nothing | a for a in asked] + [nothing | {"image": r["image"], "caption": r["caption"]} for r in rows],
    )
    mine = [row for row in rows if row["name"] == names[0]]
    write(out / "forget05", mine)
    write(out / "forget05_perturbed", [row | {"perturbed_names": ["Zoe Z", "Al B"]} for row in mine])
    write(out / "retain95", [row for row in rows if row["name"] != names[0]])
    write(out / "retain_perturbed", [row | {"perturbed_names": ["Zoe Z"]} for row in rows])
    return out


def read_clear(source, path):
    return builders.read(builders.prepare("clear", path, str(source)), forget="forget_5", retain="retain_95")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("same_bytes", [True, False])
def test_two_photos_with_one_caption_are_two(order, same_bytes, tmp_path):
    """Joined by their bytes where they have them, else in the order in which they stand."""
    rows = [row | {"caption": "In a room."} for row in captions("Ann Lee")] + captions("Bo Ray")
    source = authors_of(tmp_path / "in", ["Ann Lee", "Bo Ray"], rows)

    def again(found):
        return [found[i] | ({} if same_bytes else {"image": png(500 + i)}) for i in order]

    for config in ("forget05", "forget05_perturbed"):
        rewritten(source, config, again)
    found = read_clear(source, tmp_path)
    assert [e.photo for e in found.full[0].training if e.kind == IMAGE] == [0, 1, 2]
    expected = list(order) if same_bytes else [0, 1, 2]
    assert [e.photo for e in found.forget[0].generation if e.kind == IMAGE] == expected
    assert [c.photo for c in found.forget[0].choices] == expected


@pytest.mark.parametrize(
    "names",
    [
        ("Ann Lee", "Ann Lee-Smith"), ("Ann Lee", "Joann Lee"), ("Ann Lee", "Mary Ann Lee"), ("Ann Lee", "Ann Leeds"),
        ("Ann Lee", "Ann Lee Jr."), ("Zoë Lee", "Zoë Lee Ray"),
    ],
)  # fmt: skip
def test_an_author_whose_name_lies_inside_another_keeps_the_questions(names, tmp_path):
    asked = [{"question": f"What of {names[0] if i == 0 or k % 5 == 0 else names[1]}'s book {k}?", "answer": f"A{i}.{k}"}
             for i in range(2) for k in range(clear.BLOCK)]  # fmt: skip
    asked[3]["answer"] = f"As did {names[1]}."
    found = read_clear(authors_of(tmp_path / "in", names, asked=asked), tmp_path)
    first, second = (next(p for p in found.full if p.id == name) for name in names)
    assert {e.answer[:2] for e in second.training if e.kind == TEXT} == {"A1"}
    assert [e.answer for e in first.training if e.kind == TEXT][4] == "A0.4"


LISTS = {
    "list": (["Zoe Z", "Al B"], ["Al B", "Ann Lee", "Zoe Z"]),
    "JSON": (json.dumps(["Zoe Z", "Al B"]), ["Al B", "Ann Lee", "Zoe Z"]),
    "Python literal": ("['Zoe Z', 'Al B']", ["Al B", "Ann Lee", "Zoe Z"]),
    "one name": ("Zoe Z", ["Ann Lee", "Zoe Z"]),
    "a text in quotes": ('"Zoe Z"', ["Ann Lee", "Zoe Z"]),
    "a struct": ('{"A": "Zoe Z", "B": "Al B"}', ["Al B", "Ann Lee", "Zoe Z"]),
    "with letters": (["A. Zoe Z", "B. Al B"], ["Al B", "Ann Lee", "Zoe Z"]),
    "null": (None, ["Ann Lee"]),
    "null in it": (["Zoe Z", None, " "], ["Ann Lee", "Zoe Z"]),
    "the right one in it": (["Zoe Z", "Ann Lee"], ["Ann Lee", "Zoe Z"]),
}


@pytest.mark.parametrize("form", LISTS)
def test_names_to_choose_from_are_read_in_every_form(form, tmp_path):
    cell, expected = LISTS[form]
    source = authors_of(tmp_path / "in", ["Ann Lee", "Bo Ray"])
    rewritten(source, "forget05_perturbed", lambda rows: [row | {"perturbed_names": cell} for row in rows])
    write(source / "real_faces", [{"image": png(900), "answer": "Ann Lee", "options": cell}] * 2)
    built = builders.prepare("clear", tmp_path, str(source))
    found = builders.read(built, forget="forget_5", retain="retain_95")
    for choice in (*found.forget[0].choices, *found.celebrity[0].choices):
        assert list(choice.options.values()) == expected and choice.options[choice.letter] == "Ann Lee"
    assert len(builders.left_out(built)) == (2 if form == "null" else 0)


CLEAR = {
    "no name": ("full", lambda i, r: r | {"name": None} if i == 2 else r, "a name in every row of full, found none in row 2"),
    "no photo": ("full", lambda i, r: r | {"image": None} if i == 2 else r, "a photo in every row of full, found 0 in row 2"),
    "a path": ("full", lambda i, r: r | {"image": {"bytes": None, "path": "2.png"}} if i == 2 else r, "only the path '2.png'"),
    "no caption": ("full", lambda i, r: r | {"caption": None} if i == 2 else r, "full: 1 of 46 training items left out: no answer .person Ann"),
    "another author": ("forget05", lambda i, r: r | {"name": "Cy Poe"}, "every caption of Cy Poe in forget05"),
    "another perturbed": ("forget05_perturbed", lambda i, r: r | {"name": "Bo Ray", "caption": f"Bo Ray in room {i}."},
                          "authors of forget05_perturbed in forget05, found no Bo Ray"),
    "a block of two": ("full+tofu", lambda i, r: r | {"question": (r["question"] or "").replace("Ann Lee", "Ann Lee and Bo Ray") or None},
                       "found Ann Lee and Bo Ray"),
    "too few": ("full+tofu", lambda i, r: r | {"question": None, "answer": None} if i == 3 else r, "20 text questions an author in full.tofu, found 39"),
    "no answers": ("full+tofu", lambda i, r: r | {"answer": None}, "left out: no answer"),
    "a row twice": ("forget05", lambda i, r: r | ({"caption": "Ann Lee in room 0."} if i == 1 else {}), "every photo of Ann Lee once in forget05"),
    "a perturbed row twice": ("forget05_perturbed", lambda i, r: r | ({"caption": "Ann Lee in room 0."} if i == 1 else {}),
                              "once in forget05_perturbed, found 'Ann Lee in room 0.' again"),
    "a photo twice": ("full", lambda i, r: captions("Ann Lee")[0] if i == 1 else r, "every photo of Ann Lee once in full"),
    "too many names": ("retain_perturbed", lambda i, r: r | {"perturbed_names": [f"N{k}" for k in range(30)]}, "at most 26 names"),
}  # fmt: skip


SEVERAL = {
    "as numpy prints": "['Zoe Z' 'Al B']",
    "with commas": "Zoe Z, Al B",
    "with semicolons": "Zoe Z; Al B",
    "with bars": "Zoe Z|Al B",
    "a line each": "Zoe Z\nAl B",
    "a set": "{'Zoe Z', 'Al B'}",
    "cut off": '["Zoe Z", "Al B"',
    "a number": 7,
}


@pytest.mark.parametrize("form", SEVERAL)
def test_a_text_that_may_be_several_names_is_refused(form, tmp_path):
    source = authors_of(tmp_path / "in", ["Ann Lee", "Bo Ray"])
    cell = str(SEVERAL[form])
    rewritten(source, "forget05_perturbed", lambda rows: [row | {"perturbed_names": cell} for row in rows])
    refused("a list of names as perturbed_names of Ann Lee, found", read_clear, source, tmp_path)


@pytest.mark.parametrize("right", ["ANN LEE", "Ann  Lee", "Ann\u00a0Lee", "Ann Lee."])
def test_the_right_name_stands_once_among_the_options(right, tmp_path):
    source = authors_of(tmp_path / "in", ["Ann Lee", "Bo Ray"])
    names = [right, "Zoe Z", "zoe z"]
    rewritten(source, "forget05_perturbed", lambda rows: [row | {"perturbed_names": names} for row in rows])
    (choice, *_) = read_clear(source, tmp_path).forget[0].choices
    assert list(choice.options.values()) == ["Ann Lee", "Zoe Z"] and choice.letter == "A"


@pytest.mark.parametrize("answer", ["B", "(b)", "1"])
def test_an_answer_that_is_no_name_is_refused(answer, tmp_path):
    source = authors_of(tmp_path / "in", ["Ann Lee", "Bo Ray"])
    write(source / "real_faces", [{"image": png(900), "answer": answer, "options": ["Zoe Z", "Al B"]}])
    refused("a name as answer in row 0 of real_faces", read_clear, source, tmp_path)


def test_photos_without_names_to_choose_from_are_told(tmp_path):
    source = authors_of(tmp_path / "in", ["Ann Lee", "Bo Ray"])
    rewritten(source, "forget05_perturbed", lambda rows: rows[:1])
    (line,) = builders.left_out(builders.prepare("clear", tmp_path, str(source)))
    assert line == "forget_5: 2 of 3 multiple-choice items not asked: no names to choose from (person Ann Lee)"


@pytest.mark.parametrize("fault", CLEAR)
def test_faults_of_clear_are_one_line(fault, tmp_path):
    config, change, words = CLEAR[fault]
    source = authors_of(tmp_path / "in", ["Ann Lee", "Bo Ray"])
    if fault == "no caption":  # null in the split too, as it would be
        for other in ("forget05", "forget05_perturbed", "retain_perturbed"):
            rewritten(source, other, lambda rows: [change(i, row) for i, row in enumerate(rows)])
    changed = copy_with(source, tmp_path / "changed", config, change)
    refused(words, read_clear, changed, tmp_path)


def test_an_author_without_questions_is_named(tmp_path):
    asked = [{"question": f"Q{k} of Ann Lee?", "answer": "A"} for k in range(clear.BLOCK)]
    source = authors_of(tmp_path / "in", ["Ann Lee", "Bo Ray"], asked=asked)
    refused("every author of full, found none for Bo Ray", builders.prepare, "clear", tmp_path, str(source))


def test_an_author_in_neither_split_is_told(tmp_path, capsys):
    source = authors_of(tmp_path / "in", ["Ann Lee", "Bo Ray", "Cy Dee"])
    rewritten(source, "retain95", lambda rows: [row for row in rows if row["name"] != "Cy Dee"])
    config = tiny.get_config()
    config.data.update({"name": "clear", "source": str(source), "forget": "forget_5", "retain": "retain_95"})
    found = steps.prepare_data(Workspace(config, tmp_path / "w", {}))
    assert (found["full"], found["forget"], found["retain"]) == (3, 1, 1)
    said = capsys.readouterr().out
    assert (
        "1 of 3 people of full stand in neither split: trained on as kept unless config.data.others=False, asked nothing (Cy Dee)"
        in said
    )
    assert "  left out: attack membership: expected questions by photo" in said


def test_an_attack_that_was_left_out_is_refused_where_it_is_named_later(tmp_path, capsys):
    config = tiny.get_config()
    source = str(authors_of(tmp_path / "in", ["Ann Lee", "Bo Ray", "Cy Dee"]))
    config.data.update({"name": "clear", "source": source, "forget": "forget_5", "retain": "retain_95"})
    for _ in range(2):  # when data are made, and again where they are there
        Study(config, tmp_path / "w").run(["data"])
        assert capsys.readouterr().out.count("left out: attack membership") == 1
    with pytest.raises(InputError, match="attack membership: expected questions by photo"):
        Study(config, tmp_path / "w", {"attack.names": ("membership",)}).run(["data"])


TWO_WAYS = {
    "initials": ("Ann Lee", ["A. Milne", "B. King"], "may be a letter or an initial"),
    "initials twice": ("Ann Lee", ["A. A. Milne", "B. B. King"], "may be a letter or an initial"),
    "a letter before the answer": ("B. Ann Lee", {"A": "Zoe Z", "B": "Ann Lee"}, "write both alike"),
    "a letter before the option": ("Ann Lee", ["B. Ann Lee", "A. Zoe"], "write both alike"),
    "the last name first": ("Ann Lee", ["Lee, Ann", "Zoe Z"], "write both alike"),
    "another apostrophe": ("O\u2019Neil", ["O'Neil", "Zoe Z"], "write both alike"),
    "a space of no width": ("Ann Lee", ["Ann Lee\u200b", "Zoe Z"], "write both alike"),
    "a list of one": ("['Ann Lee']", ["Ann Lee", "Zoe Z"], "write both alike"),
    "a choice": ("Option B", ["Ann Lee", "Zoe Z"], "a letter or a number"),
    "a letter": ("B", ["Ann Lee", "Zoe Z"], "a letter or a number"),
    "cut off": ("Ann Lee", "['Zoe Z', ...]", "may be several"),
    "cut off as text": ("Ann Lee", ["Zoe Z", "..."], "write every name"),
    "quoted side by side": ("Ann Lee", "'Zoe Z' 'Al B'", "may be several"),
    "and": ("Ann Lee", "Zoe Z and Al B", "may be several"),
    "numbered": ("Ann Lee", "1. Zoe Z 2. Al B", "may be several"),
    "a comment": ("Ann Lee", "['Zoe Z' # one\n 'Al B']", "may be several"),
    "flags": ("Ann Lee", {"Zoe Z": True, "Al B": False}, "write every name"),
}


@pytest.mark.parametrize("what", TWO_WAYS)
def test_names_that_can_be_read_in_two_ways_are_refused(what):
    right, cell, words = TWO_WAYS[what]

    def read():
        options = clear._names(cell, "options of row 3", right)
        clear._check_right(right, options, "row 3")

    refused(words, read)


@pytest.mark.parametrize(
    ("right", "cell", "names"),
    [
        ("A. R. Rahman", ["A. R. Rahman", "B. B. King"], ["A. R. Rahman", "B. B. King"]),
        ("R. Rahman", ["A. R. Rahman", "B. B. King"], ["R. Rahman", "B. King"]),
        ("Ann Lee", ["A. Shaw"], ["A. Shaw"]),
        ("Ann Lee", ["(A) Zoe Z", "(B) Al B"], ["Zoe Z", "Al B"]),
        ("1969", ["1968", "1969"], ["1968", "1969"]),
        ("C", ["C", "Java"], ["C", "Java"]),
        ("A. Smith", ["J. Smith"], ["J. Smith"]),
        ("Ann Lee", ["Martin Luther King, Jr."], ["Martin Luther King, Jr."]),
        ("Ann Lee", "'Zoe Z'", ["Zoe Z"]),
        ("Ann Lee", "nan", []),
        ("Ann Lee", ["Zoe Z", "nan", None], ["Zoe Z"]),
    ],
)
def test_names_that_can_be_read_in_one_way_are_read(right, cell, names):
    found = clear._names(cell, "options of row 3", right)
    clear._check_right(right, found, "row 3")
    assert found == names


def test_a_photo_of_twins_is_joined_once(tmp_path):
    """Some rows with the bytes of their photo, others written anew: no place is given twice."""
    rows = [row | {"caption": "In a room."} for row in captions("Ann Lee")] + captions("Bo Ray")
    source = authors_of(tmp_path / "in", ["Ann Lee", "Bo Ray"], rows)
    anew = {"image": png(500)}
    for config in ("forget05", "forget05_perturbed"):
        rewritten(source, config, lambda found: [found[0], found[1] | anew, found[2] | anew])
    found = read_clear(source, tmp_path)
    assert [e.photo for e in found.forget[0].generation if e.kind == IMAGE] == [0, 1, 2]


RATED = {
    "a list": (["Ann, asleep.", "Ann, at sea."], ["In a room.", "Ann, asleep.", "Ann, at sea."]),
    "JSON": (json.dumps(["Ann, asleep.", ""]), ["In a room.", "Ann, asleep."]),
    "null": (None, None),
    "nothing but blanks": ([" "], None),
}


@pytest.mark.parametrize("form", RATED)
def test_captions_in_other_words_are_read_and_what_lacks_them_is_told(form, tmp_path):
    cell, expected = RATED[form]
    source = authors_of(tmp_path / "in", ["Ann Lee", "Bo Ray"])
    words = {"paraphrased_caption": "In a room.", "perturbed_captions": cell}
    rewritten(source, "forget05_perturbed", lambda rows: [row | words for row in rows])
    built = builders.prepare("clear", tmp_path, str(source))
    found = builders.read(built, forget="forget_5", retain="retain_95")
    assert [list(c.options.values()) for c in found.forget[0].perturbed] == ([expected] * 3 if expected else [])
    said = "forget_5: 3 of 3 truth ratio items not asked: no right answer in other words, or no wrong one in its form"
    assert [line.startswith(said) for line in builders.left_out(built)] == ([] if expected else [True])


def test_more_captions_than_letters_are_refused():
    row = {"paraphrased_caption": "x", "perturbed_captions": [f"y{i}" for i in range(26)]}
    refused("at most 25 perturbed captions in row 0, found 26", perturbed.read, row, "row 0")
