"""MLLMU-Bench (arXiv 2410.22108): 500 invented people and 153 real ones; a copy of ``MLLMMU/MLLMU-Bench`` from the hub.

Training questions come from ``ft_Data`` by ID, so the folders of the benchmark are enough; who has none there gets the
``question`` and ``answer`` of ``Full_Set``. The text questions that saliency preserves are the text MCQs of everyone with
the text of the right option as the answer, options not listed (MMUnlearner, section 3); whether the vanilla model is
trained on them too is the ``text`` rows of a config. Items without a question or an answer are left out, as in the public
code, and every row says so in its ``remarks``.
"""

import json
import pathlib
from collections.abc import Iterator

from mmu_jax import InputError
from mmu_jax.data import IMAGE, TEXT, cells
from mmu_jax.data.options import read_choice
from mmu_jax.data.remarks import NO_OPTION, WITHOUT, Remarks, lacking
from mmu_jax.data.schema import read_kind
from mmu_jax.data.sets import parquet

HUB = "MLLMMU/MLLMU-Bench"
FOLDERS = {"full": "Full_Set", "test": "Test_Set", "celebrity": "Retain_Set"}
FOLDERS |= {name: name for share in (5, 10, 15) for name in (f"forget_{share}", f"retain_{100 - share}")}
FETCHED = [*FOLDERS.values(), "ft_Data"]
TASKS = {"Classification_Task": "multiple-choice", "Mask_Task": "cloze", "Generation_Task": "generation"}
KEYS = {"Image_Textual_Questions": IMAGE, "Pure_Text_Questions": TEXT}


def splits(source: pathlib.Path) -> list[str]:
    """The splits whose folders are there."""
    there = parquet.configs(source)
    return [split for split, folder in FOLDERS.items() if folder in there]


def rows(split: str, source: pathlib.Path) -> Iterator[dict]:
    """Rows of a split in the schema of ``mmu_jax.data.schema.read_person``, with the ``remarks`` that ``builders`` counts.

    Raises:
      InputError: a person stands twice, has no photo, or is not joined to the other folders; a cell has no reading.
    """
    taught = _taught(source) if split == "full" else {}
    names = _names(source) if split == "test" else {}
    columns = ("image", "images", "biography", "question", "answer")
    for id_, row in _people(source, FOLDERS[split], tuple(TASKS), columns):
        place, person = f"person {id_} in {FOLDERS[split]}", f"celebrity-{id_}" if split == "celebrity" else id_
        if split == "test" and id_ not in names:
            raise InputError(
                f"expected the people of Test_Set in Full_Set, found no {id_} there; give both from the same data set"
            )
        photos = cells.images(row.get("images"), place) or cells.images(row.get("image"), place)
        if not photos:
            raise InputError(f"expected a photo of {place}, found none; download the data set again")
        remarks: Remarks = [("people", f"{WITHOUT}{task}") for task in TASKS if row[task] is None]
        choices = _choices(row["Classification_Task"], place, remarks)
        training = _training(row, taught.get(id_), choices, place, remarks) if split == "full" else []
        yield {
            "ID": person,
            "image": photos[0],
            "images": photos[1:],
            "biography": json.dumps({"Name": names[id_] if names else _name(row, id_)}),
            "metadata": json.dumps(training),
            "Classification_Task": choices,
            **{task: _answers(row[task], task, place, remarks) for task in ("Mask_Task", "Generation_Task")},
            "remarks": remarks,
        }


def _people(
    source: pathlib.Path, folder: str, columns: tuple[str, ...] = (), optional: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict]]:
    """ID and row of everyone in a folder, nobody twice."""
    seen: set[str] = set()
    for index, row in enumerate(parquet.read(source, folder, ("ID", *columns), optional)):
        person = cells.identity(row["ID"], f"row {index} of {folder}")
        if person in seen:
            raise InputError(f"expected every person once in {folder}, found {person} twice; remove the second row")
        seen.add(person)
        yield person, row


def _names(source: pathlib.Path) -> dict[str, str]:
    return {person: _name(row, person) for person, row in _people(source, "Full_Set", (), ("biography",))}


def _name(row: dict, person: str) -> str:
    """The name in the biography; the ID where it has none or is prose (it names a face on a figure, nothing else)."""
    try:
        life = cells.parsed(row.get("biography"))
    except ValueError:
        life = None
    name = life.get("Name") if isinstance(life, dict) else None
    return cells.text(name, f"the biography of person {person}") or person


def _taught(source: pathlib.Path) -> dict[str, list[dict]]:
    """Person -> training questions of ``ft_Data``.

    Raises:
      InputError: it has people who are not in ``Full_Set``, lacks more than one in ten of those who are, or has a row
        twice.
    """
    people = [person for person, _ in _people(source, "Full_Set")]
    found: dict[str, list[dict]] = {}
    for index, row in enumerate(parquet.read(source, "ft_Data", ("metadata",), ("ID",))):
        place = f"row {index} of ft_Data"
        owner = cells.text(row.get("ID"), f"the ID of {place}").strip()
        asked: dict[str, list[dict]] = {}
        for item in cells.records(row["metadata"], f"metadata of person {owner} in ft_Data" if owner else place):
            asked.setdefault(owner or cells.identity(item.get("ID"), place), []).append(item)
        for person, items in asked.items():
            if any(items) and all(item in found.get(person, ()) for item in items):
                raise InputError(f"expected every row once in ft_Data, found {person} twice; remove the second row")
            found.setdefault(person, []).extend(items)
    missing, strangers = [p for p in people if p not in found], sorted(found.keys() - set(people))
    if len(missing) > len(people) // 10:
        raise InputError(
            f"expected the people of Full_Set in ft_Data by ID, found {len(people) - len(missing)} of {len(people)} (no "
            f"{', '.join(missing[:3])}; it has {', '.join(list(found)[:3]) or 'none'}); give both from the same data set"
        )
    if strangers:
        raise InputError(
            f"expected the people of ft_Data in Full_Set by ID, found {len(strangers)} who are not ({', '.join(strangers[:5])}); "
            "give both from the same data set"
        )
    return found


def _training(row: dict, taught: list[dict] | None, choices: dict, place: str, remarks: Remarks) -> list[dict]:
    """What everyone is trained on: what ``ft_Data`` asks, and the text MCQs with the right option as the answer."""
    if not taught:
        taught = [{"Question": row.get("question"), "Answer": row.get("answer")}]
        remarks.append(("people", "without questions in ft_Data, taught the question and answer of Full_Set"))
    training = list(_filled(taught, "Answer", "training", f"metadata of {place}", remarks, IMAGE))
    if not training:
        raise InputError(
            f"expected training questions for everyone in Full_Set, found none for {place} in ft_Data and no "
            "question and answer in Full_Set; download the data set again"
        )
    spoken = choices["Pure_Text_Questions"]
    return training + [
        {"Question": q["Question"], "Answer": q["Options"][q["Correct_Answer"]], "Type": TEXT} for q in spoken
    ]


def _answers(cell: object, task: str, place: str, remarks: Remarks) -> list[dict]:
    place = f"{task} of {place}"
    return list(_filled(cells.records(cell, place), "Ground_Truth", TASKS[task], place, remarks))


def _filled(
    items: list[dict], answer: str, task: str, place: str, remarks: Remarks, kind: str | None = None
) -> Iterator[dict]:
    """The items with a question and an answer, of ``kind`` where they say none; a remark for each of the others."""
    for item in items:
        question, truth = cells.text(item.get("Question"), place), cells.text(item.get(answer), place)
        if question and truth:
            yield {
                "Question": question,
                answer: truth,
                "Type": read_kind(item.get("Type") or kind, place),
                **_photo(item, place),
            }
        else:
            remarks.append((task, lacking(question, truth)))


def _choices(cell: object, place: str, remarks: Remarks) -> dict[str, list[dict]]:
    """The multiple-choice questions with a right option, by key; a remark for each of the others."""
    place = f"Classification_Task of {place}"
    task, found = cells.table(cell, place), {}
    if task and not KEYS.keys() <= task.keys() and (strange := task.keys() - KEYS.keys()):
        raise InputError(
            f"expected {' and '.join(KEYS)} in {place}, found {', '.join(map(repr, sorted(strange)))}; rename the keys"
        )
    for key in KEYS:
        found[key] = []
        for item in cells.records(task.get(key), place):
            question = cells.text(item.get("Question"), place)
            options, letter = read_choice(item.get("Options"), item.get("Correct_Answer"), place)
            if question and letter:
                asked = {"Question": question, "Options": options, "Correct_Answer": letter}
                found[key].append(asked | _photo(item, place))
            else:
                remarks.append(("multiple-choice", lacking(question, options, NO_OPTION)))
    return found


def _photo(item: dict, place: str) -> dict[str, int]:
    photo = cells.photo(item.get("Photo"), place)
    return {} if photo is None else {"Photo": photo}
