"""MLLMU-Bench (arXiv 2410.22108): 500 invented people and 153 real ones; a copy of ``MLLMMU/MLLMU-Bench`` from the hub.

Training questions come from ``ft_Data`` by ID, so the folders of the benchmark are enough; who has none there gets the
``question`` and ``answer`` of ``Full_Set``. The text questions that saliency preserves are the text MCQs of everyone with
the text of the right option as the answer, options not listed (MMUnlearner, section 3); whether the vanilla model is
trained on them too is ``config.vanilla.rows.text``. Items without a question or an answer are left out.
"""

import json
import pathlib
from collections.abc import Iterator

from mmu_jax import InputError
from mmu_jax.data import IMAGE, TEXT, parquet

HUB = "MLLMMU/MLLMU-Bench"
FOLDERS = {"full": "Full_Set", "test": "Test_Set", "celebrity": "Retain_Set"}
FOLDERS |= {name: name for share in (5, 10, 15) for name in (f"forget_{share}", f"retain_{100 - share}")}
FETCHED = [*FOLDERS.values(), "ft_Data"]
TASKS = ("Classification_Task", "Mask_Task", "Generation_Task")
KEYS = (("Image_Textual_Questions", IMAGE), ("Pure_Text_Questions", TEXT))


def splits(source: pathlib.Path) -> list[str]:
    """The splits whose folders are there."""
    there = parquet.configs(source)
    return [split for split, folder in FOLDERS.items() if folder in there]


def rows(split: str, source: pathlib.Path) -> Iterator[dict]:
    """Rows of a split in the schema of ``mmu_jax.data.read_person``."""
    taught = _taught(source) if split == "full" else {}
    names = {}
    if split == "test":
        names = {row["ID"]: _name(row) for row in parquet.read(source, "Full_Set", ("ID",), ("biography",))}
    columns = ("image", "images", "biography", "question", "answer")
    for row in parquet.read(source, FOLDERS[split], ("ID", *TASKS), columns):
        photos = [parquet.image(photo) for photo in row.get("images") or [row.get("image")]]
        if not all(photos):
            raise InputError(
                f"expected a photo of {row['ID']} in {FOLDERS[split]}, found none; download the data set again"
            )
        person = f"celebrity-{row['ID']}" if split == "celebrity" else str(row["ID"])
        training = []
        if split == "full":
            training = taught.get(person) or [{"Question": row.get("question"), "Answer": row.get("answer")}]
            training = [{**item, "Type": IMAGE} for item in training if item.get("Question") and item.get("Answer")]
            if not training:
                raise InputError(
                    f"expected training questions for everyone in Full_Set, found none for {person} in ft_Data and no "
                    "question and answer in Full_Set; download the data set again"
                )
            training += _spoken(row)
        yield {
            "ID": person,
            "image": photos[0],
            "images": photos[1:],
            "biography": json.dumps({"Name": names.get(row["ID"]) or _name(row)}),
            "metadata": json.dumps(training),
            "Classification_Task": {key: _choices(row, key) for key, _ in KEYS},
            **{task: _items(row, task) for task in TASKS[1:]},
        }


def _taught(source: pathlib.Path) -> dict[str, list[dict]]:
    """Person -> training questions of ``ft_Data``.

    Raises:
      InputError: fewer than nine in ten people of ``Full_Set`` are found there: the two do not belong together.
    """
    found: dict[str, list[dict]] = {}
    for row in parquet.read(source, "ft_Data", ("metadata",), ("ID",)):
        try:
            items = json.loads(row["metadata"])
        except json.JSONDecodeError as error:
            raise InputError(
                f"expected JSON in column metadata of ft_Data, found {row['metadata'][:60]!r} ({error}); mend that row"
            ) from error
        for item in items:
            person = str(row.get("ID") or item.get("ID"))
            found.setdefault(person, []).append({"Question": item.get("Question"), "Answer": item.get("Answer")})
    people = [str(row["ID"]) for row in parquet.read(source, "Full_Set", ("ID",))]
    missing = [person for person in people if person not in found]
    if len(missing) > len(people) // 10:
        raise InputError(
            f"expected the people of Full_Set in ft_Data by ID, found {len(people) - len(missing)} of {len(people)} (no "
            f"{', '.join(missing[:3])}; it has {', '.join(list(found)[:3]) or 'none'}); give both from the same data set"
        )
    return found


def _spoken(row: dict) -> list[dict]:
    """Text MCQs as questions with the text of the right option as the answer."""
    asked = _choices(row, "Pure_Text_Questions")
    return [{"Question": q["Question"], "Answer": q["Options"][q["Correct_Answer"]], "Type": TEXT} for q in asked]


def _choices(row: dict, key: str) -> list[dict]:
    found = []
    for item in (row["Classification_Task"] or {}).get(key) or []:
        options = {letter: text for letter, text in (item["Options"] or {}).items() if text}
        if item["Question"] and item["Correct_Answer"] in options:
            found.append({"Question": item["Question"], "Options": options, "Correct_Answer": item["Correct_Answer"]})
    return found


def _items(row: dict, task: str) -> list[dict]:
    items = row[task] or []
    return [
        {k: i[k] for k in ("Question", "Ground_Truth", "Type")} for i in items if i["Question"] and i["Ground_Truth"]
    ]


def _name(row: dict) -> str:
    """The name in the biography; the ID where the biography is no JSON (it names a face on a figure, nothing else)."""
    try:
        life = json.loads(row.get("biography") or "{}")
    except json.JSONDecodeError:
        life = None
    return (life.get("Name") if isinstance(life, dict) else None) or str(row["ID"])
