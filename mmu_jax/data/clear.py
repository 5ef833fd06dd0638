"""CLEAR (arXiv 2410.18057): 200 invented authors, captions of their photos, and TOFU's questions about them.

A copy of ``therem/CLEAR`` from the hub. A person is an author: photos and captions are joined by name, a caption belongs to
its own photo. TOFU's questions come twenty to an author and name nobody by column; a block belongs to the author whose
name it says most often. Face recognition is a choice among the names of ``*_perturbed``.
"""

import functools
import json
import pathlib
from collections.abc import Iterator

from mmu_jax import InputError
from mmu_jax.data import IMAGE, TEXT, parquet

HUB = "therem/CLEAR"
CAPTION = (  # the benchmark's own wording
    "What can you see in this picture?",
    "Tell me about the content of this image",
    "Can you give a description of the image?",
    "What is depicted in the image?",
    "Explain what you observe in the picture.",
    "Describe the image in detail.",
    "What is the main subject of this image?",
    "Can you describe the scene or objects in the image?",
    "What is happening in this image?",
)
RECOGNISE = "What is the name of the person in the image?"
BLOCK = 20
REAL = ["real_faces", "real_world"]
FOLDERS = {"full": "full"}
FOLDERS |= {f"forget_{share}": f"forget{share:02d}" for share in (1, 5, 10)}
FOLDERS |= {f"retain_{100 - share}": f"retain{100 - share}" for share in (1, 5, 10)}

FETCHED = [*FOLDERS.values(), *(f"{FOLDERS[s]}_perturbed" for s in FOLDERS if s.startswith("forget"))]
FETCHED += ["full+tofu", "retain_perturbed", *REAL]


def splits(source: pathlib.Path) -> list[str]:
    """The splits whose folders are there."""
    there = parquet.configs(source)
    real = ["celebrity"] if set(REAL) & there else []
    return [split for split, folder in FOLDERS.items() if folder in there] + real


def rows(split: str, source: pathlib.Path) -> Iterator[dict]:
    """Rows of a split in the schema of ``mmu_jax.data.read_person``, a row an author."""
    if split == "celebrity":
        yield from _real(source)
        return
    folder, authors, asked = FOLDERS[split], _authors(source), _asked(source)
    mine: dict[str, dict[str, list]] = {}
    for row in parquet.read(source, folder, ("caption", "name")):
        mine.setdefault(row["name"], {"captions": [], "names": []})["captions"].append(row["caption"])
    if split != "full":
        for row in parquet.read(source, _perturbed(split), ("caption", "name", "perturbed_names")):
            if row["name"] in mine:
                mine[row["name"]]["names"].append(row)
    for name, found in mine.items():
        captions = {caption: index for index, (caption, _) in enumerate(authors.get(name, ()))}
        lost = [c for c in (*found["captions"], *(row["caption"] for row in found["names"])) if c not in captions]
        if lost:
            raise InputError(
                f"expected every caption of {name} in {folder} and {_perturbed(split)} to stand in full, found {len(lost)} "
                f"that do not, {lost[0][:60]!r}; download the data set again"
            )
        shown = [
            {"Question": CAPTION[captions[c] % len(CAPTION)], "Photo": captions[c], "c": c} for c in found["captions"]
        ]
        spoken = [{"Question": q, "Answer": a, "Type": TEXT} for q, a in asked.get(name, [])]
        training = [{"Question": i["Question"], "Answer": i["c"], "Type": IMAGE, "Photo": i["Photo"]} for i in shown]
        photos = [photo for _, photo in authors[name]]
        yield {
            "ID": name,
            "image": photos[0],
            "images": photos[1:] if split == "full" else [],
            "biography": json.dumps({"Name": name}),
            "metadata": json.dumps(training + spoken if split == "full" else []),
            "Classification_Task": {
                "Image_Textual_Questions": [
                    _choice(RECOGNISE, name, row["perturbed_names"], captions[row["caption"]]) for row in found["names"]
                ],
                "Pure_Text_Questions": [],
            },
            "Mask_Task": [],
            "Generation_Task": [
                {"Question": i["Question"], "Ground_Truth": i["c"], "Type": IMAGE, "Photo": i["Photo"]} for i in shown
            ]
            + [{"Question": i["Question"], "Ground_Truth": i["Answer"], "Type": TEXT} for i in spoken],
        }


def _perturbed(split: str) -> str:
    return f"{FOLDERS[split]}_perturbed" if split.startswith("forget") else "retain_perturbed"


@functools.lru_cache(maxsize=1)
def _authors(source: pathlib.Path) -> dict[str, list[tuple[str, bytes]]]:
    """Author -> (caption, photo) in the order of the full set."""
    found: dict[str, list[tuple[str, bytes]]] = {}
    for row in parquet.read(source, "full", ("image", "caption", "name")):
        found.setdefault(row["name"], []).append((row["caption"], parquet.image(row["image"])))
    return found


@functools.lru_cache(maxsize=1)
def _asked(source: pathlib.Path) -> dict[str, list[tuple[str, str]]]:
    """Author -> TOFU's questions and answers.

    Raises:
      InputError: they are not twenty to an author, or a block names no author of the photos, or two name the same.
    """
    pairs = [
        (row["question"], row["answer"])
        for row in parquet.read(source, "full+tofu", ("caption", "question", "answer"))
        if row["question"] and not row["caption"]
    ]
    blocks = [pairs[start : start + BLOCK] for start in range(0, len(pairs), BLOCK)]
    if not blocks or len(blocks[-1]) < BLOCK:
        raise InputError(
            f"expected {BLOCK} text questions an author in full+tofu, found {len(pairs)} in all; download the data set again"
        )
    found: dict[str, list[tuple[str, str]]] = {}
    for block in blocks:
        text = " ".join(part for pair in block for part in pair)
        said = {name: text.count(name) for name in _authors(source)}
        name = max(said, key=said.get)
        if not said[name] or name in found:
            raise InputError(
                f"expected a block of {BLOCK} text questions of full+tofu to name one author of full whom no other block "
                f"names, found {name if said[name] else 'nobody'} in that of {block[0][0][:60]!r}; download the data set again"
            )
        found[name] = block
    return found


def _choice(question: str, right: str, wrong: list[str], photo: int = -1) -> dict:
    """Options in alphabetical order, so that the right one stands anywhere but by no chance."""
    options = sorted({right, *wrong})
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]
    table = dict(zip(letters, options, strict=True))
    return {"Question": question, "Options": table, "Correct_Answer": letters[options.index(right)], "Photo": photo}


def _real(source: pathlib.Path) -> Iterator[dict]:
    for folder in sorted(set(REAL) & parquet.configs(source)):
        for index, row in enumerate(parquet.read(source, folder, ("answer", "options"), ("image", "question"))):
            photo = parquet.image(row.get("image"))
            if photo is None:
                continue
            question = row.get("question") or RECOGNISE
            yield {
                "ID": f"{folder}-{index:04d}",
                "image": photo,
                "images": [],
                "biography": json.dumps({"Name": row["answer"]}),
                "metadata": "[]",
                "Classification_Task": {
                    "Image_Textual_Questions": [_choice(question, row["answer"], row["options"])],
                    "Pure_Text_Questions": [],
                },
                "Mask_Task": [],
                "Generation_Task": [],
            }
