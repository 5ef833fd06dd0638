"""MLLMU-Bench as people bring it: in every form the same benchmark, and a fault of the data is one line with the person."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from folders import (
    POINTER,
    column,
    folder_of,
    plain_person,
    questions,
    refused,
    rewritten,
    tasks,
    taught,
    turned,
    write,
)
from mmu_jax.data import TEXT, builders
from mmu_jax.data.sets import mllmu, parquet


def benchmark(source, path):
    return builders.read(builders.prepare("mllmu_bench", path, str(source)), forget="forget_5", retain="retain_95")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return benchmark(folder_of(tmp_path_factory.mktemp("in") / "x"), tmp_path_factory.mktemp("out"))


FORMS = {
    "tasks as struct of lists": (tasks(turned), None),
    "tasks as JSON": (tasks(json.dumps), None),
    "whole task as JSON": (column("Classification_Task", json.dumps), None),
    "whole task as a Python literal": (column("Classification_Task", repr), None),
    "answers as text": (questions(lambda q: {"Correct_Answer": q["Options"]["B"]}), None),
    "answers as letter and text": (questions(lambda q: {"Correct_Answer": f"B. {q['Options']['B']}"}), None),
    "answers as letter in brackets": (questions(lambda q: {"Correct_Answer": "(b)"}), None),
    "answers as index": (questions(lambda q: {"Correct_Answer": 1}), None),
    "options as list": (questions(lambda q: {"Options": list(q["Options"].values())}), None),
    "options as JSON": (questions(lambda q: {"Options": json.dumps(q["Options"])}), None),
    "small keys": (questions(lambda q: {"Options": {k.lower(): v for k, v in q["Options"].items()}}), None),
    "number keys": (
        questions(lambda q: {"Options": dict(zip("1234", q["Options"].values(), strict=True)), "Correct_Answer": "2"}),
        None,
    ),
    "types spelled otherwise": (
        column("Mask_Task", lambda t: [i | {"Type": i["Type"].replace("_", " ").lower()} for i in t]),
        None,
    ),
    "biography a struct": (column("biography", json.loads), None),
    "biography a Python literal": (column("biography", lambda b: repr(json.loads(b))), None),
    "image bare bytes": (column("image", lambda i: i["bytes"]), None),
    "image a list of numbers": (column("image", lambda i: list(i["bytes"])), None),
    "IDs bytes": (column("ID", str.encode), None),
    "metadata a list of structs": (None, taught),
    "metadata a struct of lists": (None, lambda i: turned(taught(i))),
    "metadata a Python literal": (None, lambda i: repr(taught(i))),
    "metadata with null items": (None, lambda i: json.dumps([*taught(i), None])),
}


@pytest.mark.parametrize("form", FORMS)
def test_mllmu_bench_in_every_form_is_the_same_benchmark(form, published, tmp_path):
    change, meta = FORMS[form]
    options = {} if meta is None else {"meta": meta}
    found = benchmark(folder_of(tmp_path / "in", change or (lambda p: p), **options), tmp_path)
    assert found == published and len(found.forget[0].choices) == 2
    assert [e.answer for e in found.full[0].training] == ["Me, 0", "There", "welder"]


def arrow(name, make):
    def change(path):
        for file in path.rglob("*.parquet"):
            table = pq.read_table(file)
            if name in table.schema.names:
                table = table.set_column(table.schema.get_field_index(name), name, make(table[name]))
            pq.write_table(table, file)

    return change


def add_an_empty_file(path):
    for file in list(path.rglob("*.parquet")):
        pq.write_table(pq.read_table(file).slice(0, 0), file.with_name("train-00001-of-00002.parquet"))


def add_strangers(path):
    for file in list(path.rglob("*.parquet")):
        table = pq.read_table(file)
        table = table.append_column("__index_level_0__", pa.array(range(len(table)))).append_column(
            "x", pa.nulls(len(table))
        )
        pq.write_table(table, file)
        file.with_name("._" + file.name).write_bytes(b"what a Mac leaves beside a file")


ARROW = {
    "large strings": arrow("ID", lambda c: c.cast(pa.large_string())),
    "dictionary": arrow("ID", lambda c: c.dictionary_encode()),
    "binary": arrow("ID", lambda c: c.cast(pa.binary())),
    "string view": arrow("ID", lambda c: c.cast(pa.string_view())),
    "dictionary of biographies": arrow("biography", lambda c: c.dictionary_encode()),
    "binary metadata": arrow("metadata", lambda c: c.cast(pa.large_binary())),
    "large binary image": arrow("image", lambda c: pa.array([i["bytes"] for i in c.to_pylist()], pa.large_binary())),
    "large lists": arrow("Mask_Task", lambda c: c.cast(pa.large_list(c.type.value_type))),
    "an empty file beside": add_an_empty_file,
    "other columns, other files": add_strangers,
}


@pytest.mark.parametrize("form", ARROW)
def test_arrow_types_of_other_writers_are_read(form, published, tmp_path):
    ARROW[form](folder_of(tmp_path / "in"))
    assert benchmark(tmp_path / "in", tmp_path) == published


@pytest.mark.parametrize("types", [(int, int), (int, str), (float, int), (str, float), (float, float)])
def test_people_are_joined_by_ids_of_any_type(types, tmp_path):
    full, other = types
    source = folder_of(tmp_path / "in", lambda p: p | {"ID": full(int(p["ID"]))}, n=12)
    for config in ("ft_Data", "forget_5", "Test_Set"):
        rewritten(
            source,
            config,
            lambda rows: [row | {"ID": str(i) if other is str else other(i)} for i, row in enumerate(rows)],
        )
    found = benchmark(source, tmp_path)
    assert {p.id: p.training[0].answer for p in found.full} == {str(i): f"Me, {i}" for i in range(12)}
    assert [p.id for p in found.test] == [p.id for p in found.forget] == ["0"]


def half(change):
    """What happens to every other person."""
    return lambda p: change(p) if int(p["ID"]) % 2 else p


def only(who, change):
    return lambda p: change(p) if p["ID"] == who else p


FAULTS = {
    "no answer to the MCQs of half": (half(questions(lambda q: {"Correct_Answer": None})), "full: 6 of 12 multiple-choice"),
    "no question in the MCQs of half": (half(questions(lambda q: {"Question": ""})), "left out: no question .persons 0001, 0003"),
    "right option blank": (questions(lambda q: {"Options": q["Options"] | {"B": None}}), "12 of 12 .* no right option"),
    "no answer to the cloze": (column("Mask_Task", lambda t: [i | {"Ground_Truth": None} for i in t]), "12 of 12 cloze items"),
    "all of the cloze blank": (
        column("Mask_Task", lambda t: [i | {"Question": "", "Ground_Truth": ""} for i in t]),
        "12 of 12 cloze items left out: empty, and nothing else is there",
    ),
    "the cloze of some": (half(column("Mask_Task", lambda t: None)), "3 of 6 people without task Mask_Task"),
    "letter without an option": (only("0003", questions(lambda q: {"Correct_Answer": "E"})), "person 0003 in Full_Set, found 'E'"),
    "text of no option": (only("0003", questions(lambda q: {"Correct_Answer": "smith"})), "person 0003 in Full_Set, found 'smith'"),
    "misspelt type": (
        only("0003", column("Mask_Task", lambda t: [i | {"Type": "Image_Text"} for i in t])),
        "Mask_Task of person 0003 in Full_Set, found 'Image_Text'",
    ),
    "no type": (column("Generation_Task", lambda t: [{k: i[k] for k in ("Question", "Ground_Truth")} for i in t]),
                "Generation_Task of person 0000 in Full_Set, found ''"),
    "image a path": (only("0003", column("image", lambda i: {"bytes": None, "path": "3.jpg"})), "person 0003 .* path '3.jpg'"),
    "no image": (only("0003", column("image", lambda i: None)), "a photo of person 0003 in Full_Set, found none"),
    "ID null": (only("0003", column("ID", lambda i: None)), "an ID in row 3 of Full_Set"),
    "ID twice": (only("0003", column("ID", lambda i: "0002")), "every person once in Full_Set, found 0002 twice"),
    "an answer that is a list": (
        only("0003", column("Mask_Task", lambda t: json.dumps([i | {"Ground_Truth": ["a", "b"]} for i in t]))),
        "Mask_Task of person 0003 in Full_Set, found a list of 2",
    ),
    "keys misspelt": (
        only("0003", column("Classification_Task", lambda t: json.dumps({"Image_Textual": t["Image_Textual_Questions"]}))),
        "Classification_Task of person 0003 in Full_Set, found 'Image_Textual'; rename",
    ),
    "half a character": (only("0003", column("Mask_Task", lambda t: json.dumps([i | {"Question": "\ud83d"} for i in t]))),
                         "Unicode text in Mask_Task of person 0003"),
}  # fmt: skip


def one_type(people):
    """A column has one type: where some are JSON, all are."""
    mixed = {name for name in people[0] if len({isinstance(p[name], str) for p in people}) > 1 and name != "ID"}
    return [{k: json.dumps(v) if k in mixed and not isinstance(v, str) else v for k, v in p.items()} for p in people]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_data_is_one_line_with_the_person(fault, tmp_path):
    change, words = FAULTS[fault]
    source = folder_of(tmp_path / "in")
    shutil.rmtree(source / "Full_Set")
    write(source / "Full_Set", one_type([change(plain_person(i)) for i in range(6)]))
    refused(words, builders.prepare, "mllmu_bench", tmp_path, str(source))


METADATA = {
    "text": ("Who? Me", "expected JSON in metadata of person 0003 in ft_Data"),
    "list of strings": (["Who? Me"], "expected JSON in metadata of person 0003 in ft_Data"),
    "a number": (1987, "expected a list of objects in metadata of person 0003 in ft_Data, found 1987"),
    "other keys": ([{"question": "Q", "answer": "A"}], "a Question in every item of metadata of person 0003"),
    "an answer that is an object": ([{"Question": "Q", "Answer": {"a": 1}}], "found an object"),
    "no answers": (
        [{"Question": "Q", "Answer": None}],
        "full: 1 of 17 training items left out|expected training questions",
    ),
    "a type of none": ([{"Question": "Q", "Answer": "A", "Type": "Picture"}], "found 'Picture'"),
    "null": (None, "the people of Full_Set in ft_Data by ID, found 5 of 6 .no 0003"),
}


@pytest.mark.parametrize("fault", METADATA)
def test_faults_of_the_training_questions_are_one_line(fault, tmp_path):
    value, words = METADATA[fault]
    source = folder_of(tmp_path / "in", meta=lambda i: json.dumps(value if i == 3 else taught(i)))
    refused(words, builders.prepare, "mllmu_bench", tmp_path, str(source))


@pytest.mark.parametrize("answer", [1987, 1.5, ["Me"], "x" * 10_000_000, True])
def test_answers_that_are_no_strings_are_trained_on_as_text(answer, tmp_path):
    meta = [{"Question": "When?", "Answer": answer}]
    source = folder_of(tmp_path / "in", meta=lambda i: json.dumps(meta if i == 3 else taught(i)), n=4)
    (row,) = (row for row in mllmu.rows("full", source) if row["ID"] == "0003")
    assert json.loads(row["metadata"])[0]["Answer"] == (answer if isinstance(answer, str) else str(answer).strip("[']"))


@pytest.mark.parametrize(("unit", "time"), [("ns", 1), ("us", 2**62)])
def test_times_that_python_has_not_are_one_line(unit, time, tmp_path):
    folder = folder_of(tmp_path / "in")
    (file,) = (folder / "Full_Set").iterdir()
    table = pq.read_table(file)
    ids = pa.array([time] * len(table), pa.timestamp(unit))
    pq.write_table(table.set_column(table.schema.get_field_index("ID"), "ID", ids), file)
    refused("expected a Parquet file at .*Full_Set", builders.prepare, "mllmu_bench", tmp_path, str(folder))


def test_one_item_in_a_hundred_may_lack_its_answer(tmp_path):
    def meta(missing):
        asked = [{"Question": f"Q{k}?", "Answer": None if k < missing else "A"} for k in range(100)]
        return lambda i: json.dumps(asked if i == 3 else taught(i))

    built = builders.prepare("mllmu_bench", tmp_path / "a", str(folder_of(tmp_path / "in", meta=meta(1))))
    assert builders.left_out(built) == ["full: 1 of 116 training items left out: no answer (person 0003)"]
    refused(
        "full: 2 of 116", builders.prepare, "mllmu_bench", tmp_path / "b", str(folder_of(tmp_path / "in", meta=meta(2)))
    )
    assert not list((tmp_path / "b").rglob("left_out.json"))


def test_a_question_with_one_option_alone_is_kept_and_told(tmp_path):
    alone = only("0000", questions(lambda q: {"Options": dict.fromkeys("ACD") | {"B": q["Options"]["B"]}}))
    source = folder_of(tmp_path / "in", alone)
    built = builders.prepare("mllmu_bench", tmp_path, str(source))
    remark = "2 of {} multiple-choice items with one option alone, nothing to choose from (person 0000)"
    assert builders.left_out(built) == [
        f"{s}: {remark.format(n)}" for s, n in (("full", 12), ("test", 12), ("forget_5", 2))
    ]
    found = builders.read(built, forget="forget_5", retain="retain_95")
    assert found.forget[0].choices[0].options == {"B": "welder"}
    assert [e.answer for e in found.full[0].training if e.kind == TEXT] == ["welder"]


def test_a_question_with_two_options_alike_is_told(tmp_path):
    alike = only("0000", questions(lambda q: {"Options": q["Options"] | {"A": q["Options"]["B"]}}))
    built = builders.prepare("mllmu_bench", tmp_path, str(folder_of(tmp_path / "in", alike)))
    assert "full: 2 of 12 multiple-choice items with two options alike (person 0000)" in builders.left_out(built)


def test_a_damaged_list_of_what_was_left_out_is_one_line(tmp_path):
    for content in ("{", "{}", "[3]", '[{"split": "full"}]'):
        (tmp_path / "left_out.json").write_text(content)
        refused("left_out.json", builders.left_out, tmp_path)


JOINS = {
    "twice in ft_Data": ("ft_Data", lambda rows: rows + rows, "every row once in ft_Data, found 0000 twice"),
    "strangers in ft_Data": ("ft_Data", lambda rows: [*rows, rows[0] | {"ID": "0077"}], "1 who are not .0077"),
    "twice in Full_Set": ("Full_Set", lambda rows: rows + rows[2:3], "once in Full_Set, found 0002 twice"),
    "twice in forget_5": ("forget_5", lambda rows: rows + rows, "once in forget_5, found 0000 twice"),
    "strangers in retain_95": ("retain_95", lambda rows: [*rows, rows[0] | {"ID": "0077"}], "every person of retain .* no 0077"),
    "strangers in forget_5": ("forget_5", lambda rows: [*rows, rows[0] | {"ID": "0077"}], "every person of forget .* no 0077"),
    "a test photo of nobody": ("Test_Set", lambda rows: [*rows, rows[0] | {"ID": "0077"}], "of Test_Set in Full_Set, found no 0077"),
    "nobody in forget_5": ("forget_5", lambda rows: rows[:0], "expected people in split 'forget_5' of .*, found none"),
    "nobody in ft_Data": ("ft_Data", lambda rows: rows[:0], "found 0 of 6"),
    "forget in retain": ("retain_95", lambda rows: [*rows, rows[0] | {"ID": "0000"}], "nobody both in forget and retain"),
}  # fmt: skip


@pytest.mark.parametrize("fault", JOINS)
def test_people_who_do_not_meet_are_named(fault, tmp_path):
    config, change, words = JOINS[fault]
    refused(words, benchmark, rewritten(folder_of(tmp_path / "in"), config, change), tmp_path)


def test_a_part_of_the_people_may_be_retained(tmp_path):
    built = builders.prepare("mllmu_bench", tmp_path, str(folder_of(tmp_path / "in")))
    assert len(builders.read(built, forget="forget_5", retain="retain_95[:2]").retain) == 2


FILES = {
    "pointer": (lambda f: f.write_text(POINTER), "it is a pointer of git-lfs; run 'git lfs pull'"),
    "empty": (lambda f: f.write_bytes(b""), "Full_Set/train-00000-of-00001.parquet, found that it cannot be read"),
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[:-40]), "cannot be read"),
    "text": (lambda f: f.write_text("<html>not found</html>"), "cannot be read"),
    "flipped": (lambda f: f.write_bytes(bytes([b ^ 255 if 100 < i < 9000 else b for i, b in enumerate(f.read_bytes())])),
                "cannot be read"),
    "broken link": (lambda f: (f.unlink(), f.symlink_to(f.parent / "nowhere")), "cannot be read"),
    "gone": (lambda f: f.unlink(), "expected Parquet files in .*Full_Set, found none"),
    "half": (lambda f: f.rename(f.with_name("train-00000-of-00002.parquet")), "expected 2 Parquet files .* found 1"),
    "no Latin-1": (
        lambda f: pq.write_table(
            pa.table({"ID": pa.array([b"\xff\xfe"], pa.binary()).cast(pa.string(), safe=False)} | {
                name: pa.nulls(1) for name in mllmu.TASKS}), f), "cannot be read|no Unicode|Unicode"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FILES)
def test_a_parquet_file_that_cannot_be_read_is_named(fault, tmp_path):
    change, words = FILES[fault]
    source = folder_of(tmp_path / "in")
    change(source / "Full_Set" / "train-00000-of-00001.parquet")
    refused(words, lambda: list(parquet.read(source, "Full_Set", ("ID", "Mask_Task"), ("image",))))
