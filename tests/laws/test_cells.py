"""Every form of a cell is read as the same value, and what has no reading is one line."""

import decimal
import json
import pprint

import numpy as np
import pytest

from folders import png, refused
from mmu_jax.data import IMAGE, TEXT, cells, schema
from mmu_jax.data.options import read_choice

JOBS = {"A": "baker", "B": "welder", "C": "pilot", "D": "nurse"}


ITEMS = [{"Question": "Q1", "Answer": "A1"}, {"Question": "Q2", "Answer": "A2"}]
TURNED = {"Question": ["Q1", "Q2"], "Answer": ["A1", "A2"]}
RECORDS = {
    "list of structs": (ITEMS, ITEMS),
    "struct of lists": (TURNED, ITEMS),
    "struct of arrays": ({k: np.array(v, object) for k, v in TURNED.items()}, ITEMS),
    "array of structs": (np.array(ITEMS, object), ITEMS),
    "JSON": (json.dumps(ITEMS), ITEMS),
    "JSON bytes": (json.dumps(ITEMS).encode(), ITEMS),
    "JSON of JSON": (json.dumps(json.dumps(ITEMS)), ITEMS),
    "JSON of a struct of lists": (json.dumps(TURNED), ITEMS),
    "Python literal": (repr(ITEMS), ITEMS),
    "list of JSON": ([json.dumps(item) for item in ITEMS], ITEMS),
    "one object": (ITEMS[0], ITEMS[:1]),
    "one object as JSON": (json.dumps(ITEMS[0]), ITEMS[:1]),
    "one object with a list in it": ({"Question": "Q", "Options": ["a", "b"]}, [{"Question": "Q", "Options": ["a", "b"]}]),
    "null": (None, []),
    "NaN, as pandas writes null": (float("nan"), []),
    "blank": ("  ", []),
    "JSON null": ("null", []),
    "empty list": ([], []),
    "struct of nulls": ({"Question": None, "Answer": None}, []),
    "struct of empty lists": ({"Question": [], "Answer": []}, []),
    "null item": ([ITEMS[0], None], [ITEMS[0], {}]),
    "null column": ({"Question": ["Q1"], "Answer": None}, [{"Question": "Q1", "Answer": None}]),
    "struct of lists with a struct": (
        {"Question": ["Q"], "Options": {"A": ["x"], "B": ["y"]}},
        [{"Question": "Q", "Options": {"A": "x", "B": "y"}}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", RECORDS)
def test_items_are_read_in_every_form(form):
    cell, expected = RECORDS[form]
    assert cells.records(cell, "metadata of person 0003") == expected


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (["Who? Me"], "expected JSON in metadata of person 0003, found 'Who. Me'"),
        ([1987], "expected objects in the list of metadata of person 0003, found 1987"),
        (1987, "expected a list of objects in metadata of person 0003, found 1987"),
        ('"Who?"', "expected JSON in"),
        ("[{'Question': 'Q', ", "expected JSON in"),
        (b"\xff\xfe", "expected JSON in"),
        ("[" * 100_000, "expected JSON in"),
        ("[([1], 2)]", "expected objects in the list of metadata"),
        ('[{"Question": "Q", "Question": "R"}]', "'Question' stands twice in one object"),
        ('[{"Question": ' + "1" * 5000 + "}]", "expected JSON in"),
        ({"Question": ["Q1", "Q2"], "Answer": ["A1"]}, "lists of one length .* found 2 of Question, 1 of Answer"),
        ([{"question": "Q", "answer": "A"}], "a Question in every item .* found only 'question', 'answer'"),
    ],
)
def test_items_that_have_no_reading_are_one_line(cell, words):
    refused(words, cells.records, cell, "metadata of person 0003")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("Ada ", "Ada "), (b"Ada", "Ada"), (1987, "1987"), (1987.0, "1987"), (1.5, "1.5"), (np.int64(7), "7"), (0, "0"),
        (np.str_("Ada"), "Ada"), (["Ada"], "Ada"), (np.array(["Ada"]), "Ada"), (None, ""), (float("nan"), ""), (" \n", ""),
        (True, "True"), ("x" * 10_000_000, "x" * 10_000_000),
    ],
)  # fmt: skip
def test_a_text_is_read_in_every_form(cell, expected):
    assert cells.text(cell, "x") == expected


@pytest.mark.parametrize("cell", [["Ada", "Bo"], {"text": "Ada"}, b"\xff", "half \ud83d", ["Ada", "Bo"] * 10_000])
def test_what_is_no_text_is_one_line(cell):
    refused("text in answer of person 0003", cells.text, cell, "answer of person 0003")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (decimal.Decimal(7), "7"),
        (decimal.Decimal("7.00"), "7"),
        (0, "0"),
        (0.0, "0"),
        ("0", "0"),
        (b"0001", "0001"),
        ("0001", "0001"),
        (np.int32(12), "12"),
        (" 7 ", "7"),
    ],
)
def test_ids_of_every_type_meet(cell, expected):
    assert cells.identity(cell, "row 4 of Full_Set") == expected


@pytest.mark.parametrize("cell", [None, "", float("nan"), "  "])
def test_a_row_without_an_id_is_named(cell):
    refused("expected an ID in row 4 of Full_Set, found none", cells.identity, cell, "row 4 of Full_Set")


# ---- choices

B_OF = (JOBS, "B")
CHOICES = {
    "published": (JOBS, "B", B_OF),
    "small letter": (JOBS, "b", B_OF),
    "brackets": (JOBS, "(b)", B_OF),
    "full stop": (JOBS, "B.", B_OF),
    "bracket after": (JOBS, "b)", B_OF),
    "letter and text": (JOBS, "B. welder", B_OF),
    "letter and text in brackets": (JOBS, "(b) Welder", B_OF),
    "letter, colon, text": (JOBS, "B: welder", B_OF),
    "Option B": (JOBS, "Option B", B_OF),
    "text": (JOBS, "welder", B_OF),
    "text in other spelling": (JOBS, " Welder. ", B_OF),
    "index": (JOBS, 1, B_OF),
    "index as a float": (JOBS, 1.0, B_OF),
    "a list of one": (JOBS, ["B"], B_OF),
    "small keys": (dict(zip("abcd", JOBS.values(), strict=True)), "b", B_OF),
    "keys with full stops": ({f"{k}.": v for k, v in JOBS.items()}, "B", B_OF),
    "keys in brackets": ({f"({k})": v for k, v in JOBS.items()}, "(B)", B_OF),
    "numbers from 1": (dict(zip("1234", JOBS.values(), strict=True)), "2", B_OF),
    "numbers from 1, asked by number": (dict(zip("1234", JOBS.values(), strict=True)), 2, B_OF),
    "numbers from 0": (dict(zip("0123", JOBS.values(), strict=True)), 1, B_OF),
    "number keys that are texts too": ({"1": "2", "2": "1"}, "1", ({"A": "2", "B": "1"}, "A")),
    "options a list": (list(JOBS.values()), "B", B_OF),
    "options an array, answer an index": (np.array(list(JOBS.values())), 1, B_OF),
    "options a labelled list": ([f"{k}. {v}" for k, v in JOBS.items()], "b", B_OF),
    "options JSON": (json.dumps(JOBS), "B", B_OF),
    "options JSON of a list": (json.dumps(list(JOBS.values())), "welder", B_OF),
    "options a Python literal": (repr(JOBS), "B", B_OF),
    "options a map": (list(JOBS.items()), "B", B_OF),
    "options bytes": (json.dumps(JOBS).encode(), b"B", B_OF),
    "other order": ({"B": "welder", "A": "baker"}, "A", ({"B": "welder", "A": "baker"}, "A")),
    "keys that are no letters": ({"first": "x", "second": "y"}, "Second", ({"first": "x", "second": "y"}, "second")),
    "numbers for texts": ({"A": 1986, "B": 1987.0}, "1987", ({"A": "1986", "B": "1987"}, "B")),
    "letters for texts": ({"A": "B", "B": "AB", "C": "A"}, "A", ({"A": "B", "B": "AB", "C": "A"}, "A")),
    "text that begins like a letter": ({"A": "A. Smith", "B": "B. Jones"}, "B. Jones", ({"A": "A. Smith", "B": "B. Jones"}, "B")),
    "three of four": (JOBS | {"D": None}, "B", ({k: JOBS[k] for k in "ABC"}, "B")),
    "one alone": (dict.fromkeys("ACD") | {"B": "welder"}, "B", ({"B": "welder"}, "B")),
    "keys of other rows, null": (dict.fromkeys("abcd") | JOBS, "b", B_OF),
    "numbers of other rows, null": ({"1": "baker", "2": "welder", "A": None, "B": None}, "B", ({"A": "baker", "B": "welder"}, "B")),
    "full stops of other rows, null": ({f"{k}.": None for k in JOBS} | JOBS, "B.", B_OF),
    "options with numbers": ({f"option{i}": v for i, v in enumerate(JOBS.values(), 1)}, "2", B_OF),
    "options with numbers below": ({f"option_{i}": v for i, v in enumerate(JOBS.values(), 1)}, "option_2", B_OF),
    "options with numbers from 0": ({f"Option {i}": v for i, v in enumerate(JOBS.values())}, 1, B_OF),
    "Roman numbers": ({"i": "x", "ii": "y", "iii": "z"}, "II", ({"i": "x", "ii": "y", "iii": "z"}, "ii")),
    "a list of label and text": ([{"label": k, "text": v} for k, v in JOBS.items()], "B", B_OF),
    "lists of label and text": ({"text": list(JOBS.values()), "label": list(JOBS)}, "B", B_OF),
    "right one blank": (JOBS | {"B": " "}, "B", ({k: JOBS[k] for k in "ACD"}, "")),
    "no answer": (JOBS, None, (JOBS, "")),
    "no options": (None, "B", ({}, "")),
    "nothing": (dict.fromkeys("ABCD"), None, ({}, "")),
}  # fmt: skip


@pytest.mark.parametrize("form", CHOICES)
def test_options_and_answers_are_read_in_every_form(form):
    options, answer, expected = CHOICES[form]
    found = read_choice(options, answer, "person 0003")
    assert found == expected and list(found[0]) == list(expected[0])


@pytest.mark.parametrize(
    ("options", "answer", "words"),
    [
        (JOBS, "E", "found 'E', which is none of them"),
        (JOBS, "5", "found '5', which is none of them"),
        (JOBS, 4, "found '4', which is none of them"),
        (JOBS, "plumber", "found 'plumber', which is none of them"),
        (JOBS, "B. pilot", "found 'B. pilot', which is none of them"),
        (JOBS, ["A", "B"], "expected one text in Correct_Answer of person 0003"),
        ({"A": "pilot", "B": "Pilot"}, "pilot", "which is more than one of them"),
        (["1", "0", "3"], "1", "which is more than one of them"),
        (["2", "0", "1"], 1, "which is more than one of them"),
        ({"A": "x", "a": "y"}, "A", "a letter of its own for every option of person 0003, found 'A', 'a'"),
        ("baker, welder", "B", "expected JSON in Options of person 0003"),
        (7, "B", "expected options by letter, or a list, in person 0003, found 7"),
        ({"A": ["x", "y"]}, "A", "expected one text in option A of person 0003"),
        ('{"A": "x", "A": "y"}', "A", "'A' stands twice in one object"),
        ("{'A': 'x', 'B': 'z', 'A': 'y'}", "A", "'A' stands twice in one object"),
    ],
)
def test_a_letter_without_an_option_is_one_line(options, answer, words):
    refused(words, read_choice, options, answer, "person 0003")


# ---- images, photos, types

PNG = png(3)["bytes"]
IMAGES = {
    "struct": (png(3), [PNG]),
    "bytes": (PNG, [PNG]),
    "list of numbers": (list(PNG), [PNG]),
    "array of uint8": (np.frombuffer(PNG, np.uint8), [PNG]),
    "struct of numbers": ({"bytes": list(PNG), "path": None}, [PNG]),
    "bytearray": (bytearray(PNG), [PNG]),
    "several": ([png(3), PNG], [PNG, PNG]),
    "array of several": (np.array([PNG, PNG], object), [PNG, PNG]),
    "struct of lists": ({"bytes": [PNG, PNG], "path": ["a.png", None]}, [PNG, PNG]),
    "struct of lists, paths null": ({"bytes": [PNG], "path": None}, [PNG]),
    "null": (None, []),
    "none of several": ([], []),
}


@pytest.mark.parametrize("form", IMAGES)
def test_images_are_read_in_every_form(form):
    cell, expected = IMAGES[form]
    assert cells.images(cell, "person 0003") == expected


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ({"bytes": None, "path": "a/7.png"}, "photo of person 0003, found only the path 'a/7.png'"),
        ("a/7.png", "photo of person 0003, found 'a/7.png'"),
        ({"bytes": None, "path": None}, "found none"),
        ([png(3), None], "found none"),
        (b"", "found none"),
        ([300, 2], r"found \[300, 2\]"),
        ([[[1, 2, 3]]], r"found \[\[1, 2, 3\]\]"),
        (np.zeros((2, 2, 3), np.uint8), r"found \[\[0, 0, 0\], "),
        ({"path": [None, "b.png"]}, "found none"),
    ],
)
def test_what_is_no_encoded_image_is_one_line(cell, words):
    refused(words, cells.images, cell, "person 0003")


@pytest.mark.parametrize(
    "said", ["Image_Textual", "image_textual", "Image Textual", "image-textual", " IMAGE_TEXTUAL "]
)
def test_a_type_may_be_spelled_otherwise(said):
    assert schema.read_kind(said, "x") == IMAGE and schema.read_kind("pure text", "x") == TEXT


@pytest.mark.parametrize("said", ["Image_Text", "Textual", "", None, "Image_Textual Pure_Text", 1])
def test_a_misspelt_type_is_one_line(said):
    refused("expected Type Image_Textual or Pure_Text in Mask_Task", schema.read_kind, said, "Mask_Task of person 0003")


@pytest.mark.parametrize(("cell", "expected"), [(2, 2), (2.0, 2), ("2", 2), (np.int32(0), 0), (-1, None), (None, None)])
def test_a_photo_is_a_place(cell, expected):
    assert cells.photo(cell, "x") == expected


@pytest.mark.parametrize("cell", ["first", 1.5, -2, "1e3", [0, 1], True])
def test_what_is_no_place_of_a_photo_is_one_line(cell):
    refused("person 0003", cells.photo, cell, "person 0003")


def test_a_long_text_of_a_dict_as_pprint_writes_it_is_one_text():
    said = {"A": "a long text " * 12, "B": ["one", "two"]}
    assert cells.parsed(pprint.pformat(said, width=40)) == said
    for bad in ("['a' 'b']", "['a' # c\n 'b']", "{'k': ['a' 'b']}", "{'a' 'b': 'c'}", "('a' 'b', 'c')"):
        with pytest.raises(ValueError, match="without a comma"):
            cells.parsed(bad)
    for bad in ("['a', ...]", "{'k': ...}", "[..., 'a']"):
        with pytest.raises(ValueError, match="cut off"):
            cells.parsed(bad)
