"""CLEAR (arXiv 2410.18057): 200 invented authors, captions of their photos, and TOFU's questions about them.

A copy of ``therem/CLEAR`` from the hub. A person is an author: photos and captions are joined by name, a caption belongs to
its own photo. TOFU's questions come twenty to an author and name nobody by column; a block belongs to the author whose
name it says most often. Face recognition is a choice among the names of ``*_perturbed``, whose captions are those of the truth ratio.
"""

import collections
import functools
import json
import pathlib
import re
import string
import unicodedata
from collections.abc import Iterable, Iterator

from mmu_jax import InputError
from mmu_jax.data import IMAGE, TEXT, cells
from mmu_jax.data.options import same, spell_out
from mmu_jax.data.remarks import NO_NAMES, NO_OPTION, NO_PARAPHRASE, NO_PHOTO, Remarks, lacking
from mmu_jax.data.sets import parquet, perturbed

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

# Between names in one text, or before the first of several.
SEVERAL = re.compile(r"[,;|/&\t\r\n\u2028\u2029\uff0c\uff1b\u3001]|\\n|\sand\s|^\W*(?:1[.)]|A[.)].*\sB[.)])\s")
LETTER = re.compile(r"\W*(?:(?:option|choice|answer)[\s_]*)?\W*(?:[A-Za-z]|\d+)\W*", re.IGNORECASE)
INITIAL = re.compile(r"[A-Z]\.\s+\S.*", re.DOTALL)
NOTHING = ("nan", "none", "null", "n/a", "<na>")
FETCHED = [*FOLDERS.values(), *(f"{FOLDERS[s]}_perturbed" for s in FOLDERS if s.startswith("forget"))]
FETCHED += ["full+tofu", "retain_perturbed", *REAL]


def splits(source: pathlib.Path) -> list[str]:
    """The splits whose folders are there."""
    there = parquet.configs(source)
    real = ["celebrity"] if set(REAL) & there else []
    return [split for split, folder in FOLDERS.items() if folder in there] + real


def rows(split: str, source: pathlib.Path) -> Iterator[dict]:
    """Rows of a split in the schema of ``mmu_jax.data.schema.read_person``, a row an author, with the ``remarks`` that ``builders`` counts.

    Raises:
      InputError: an author, a caption or a block of questions is not joined to the others; a cell has no reading.
    """
    if split == "celebrity":
        yield from _real(source)
        return
    folder, authors, asked = FOLDERS[split], _authors(source), _asked(source)
    mine: dict[str, list[int]] = {}
    for name, place, _ in _placed(source, folder):
        mine.setdefault(name, []).append(place)
    faces: dict[str, list[tuple[int, list[str]]]] = {}
    rated: dict[str, list[dict]] = {}
    if split != "full":
        for name, place, row in _placed(source, _perturbed(split), ("perturbed_names",), perturbed.COLUMNS):
            faces.setdefault(name, []).append((place, _names(row["perturbed_names"], f"perturbed_names of {name}")))
            if perturbed.COLUMNS[0] in row:
                options = perturbed.read(row, f"photo {place} of {name} in {_perturbed(split)}")
                question = {"Question": CAPTION[place % len(CAPTION)], "Options": options, "Correct_Answer": "A"}
                rated.setdefault(name, []).append(question | {"Photo": place, "Type": IMAGE})
        if split.startswith("forget") and (strange := sorted(faces.keys() - mine.keys())):
            raise InputError(
                f"expected the authors of {_perturbed(split)} in {folder}, found no {', '.join(strange[:5])} there; "
                "download the data set again"
            )
    for name, places in mine.items():
        photos = authors[name]
        remarks: Remarks = []
        shown = [(CAPTION[place % len(CAPTION)], photos[place][0], {"Type": IMAGE, "Photo": place}) for place in places]
        spoken = [(question, answer, {"Type": TEXT}) for question, answer in asked[name]]
        task = "training" if split == "full" else "generation"
        items = list(_filled(shown + spoken, task, remarks))
        faced = [_choice(RECOGNISE, name, wrong, place) for place, wrong in faces.get(name, ())]
        if split != "full":
            remarks += [("multiple-choice", NO_NAMES)] * len(set(places) - {place for place, _ in faces.get(name, ())})
            remarks += [("truth ratio", NO_PARAPHRASE)] * sum(not item["Options"] for item in rated.get(name, ()))
        yield {
            "ID": name,
            "image": photos[0][1],
            "images": [photo for _, photo in photos[1:]] if split == "full" else [],
            "biography": json.dumps({"Name": name}),
            "metadata": json.dumps(
                [{"Question": q, "Answer": a, **kind} for q, a, kind in items] if split == "full" else []
            ),
            "Classification_Task": {"Image_Textual_Questions": faced, "Pure_Text_Questions": []},
            "Mask_Task": [],
            "Generation_Task": [{"Question": q, "Ground_Truth": a, **kind} for q, a, kind in items],
            "Perturbed_Task": [item for item in rated.get(name, ()) if item["Options"]],
            "remarks": remarks,
        }


def _filled(items: list[tuple[str, str, dict]], task: str, remarks: Remarks) -> Iterator[tuple[str, str, dict]]:
    """The items with a question and an answer; a remark for each of the others."""
    for item in items:
        if item[0] and item[1]:
            yield item
        else:
            remarks.append((task, lacking(*item[:2])))


def _perturbed(split: str) -> str:
    return f"{FOLDERS[split]}_perturbed" if split.startswith("forget") else "retain_perturbed"


def _said(row: dict, column: str, index: int, folder: str) -> str:
    return cells.text(row[column], f"column {column} of row {index} of {folder}").strip()


def _named(row: dict, index: int, folder: str) -> str:
    if name := unicodedata.normalize("NFC", _said(row, "name", index, folder)):
        return name
    raise InputError(
        f"expected a name in every row of {folder}, found none in row {index}; download the data set again"
    )


def _authors(source: pathlib.Path) -> dict[str, list[tuple[str, bytes]]]:
    """Author -> (caption, photo) in the order of the full set."""
    return _authors_of(source, parquet.stamp(source, "full"))


@functools.lru_cache(maxsize=1)
def _authors_of(source: pathlib.Path, stamp: tuple) -> dict[str, list[tuple[str, bytes]]]:
    found: dict[str, list[tuple[str, bytes]]] = {}
    for index, row in enumerate(parquet.read(source, "full", ("image", "caption", "name"))):
        name = _named(row, index, "full")
        photos = cells.images(row["image"], f"{name} in row {index} of full")
        if len(photos) != 1:
            raise InputError(
                f"expected a photo in every row of full, found {len(photos)} in row {index} ({name}); "
                "download the data set again"
            )
        taken = (_said(row, "caption", index, "full"), photos[0])
        if taken in found.setdefault(name, []):
            raise InputError(
                f"expected every photo of {name} once in full, found {taken[0][:60]!r} again in row {index}; remove it"
            )
        found[name].append(taken)
    return found


def _placed(
    source: pathlib.Path, folder: str, columns: tuple[str, ...] = (), may: tuple[str, ...] = ()
) -> Iterator[tuple[str, int, dict]]:
    """Author, place among the author's photos, and row, for every row of a folder of captions; ``may`` be there, ``columns`` must.

    A row belongs to the photo with its caption; where several have it to the one of its bytes, else to the next in order.

    Raises:
      InputError: the full set has no such author, or the author no photo with that caption.
    """
    authors, turns = _authors(source), collections.Counter()
    twins = any(len({caption for caption, _ in photos}) < len(photos) for photos in authors.values())
    image = ("image",) if twins else ()  # else there is no need to read a gigabyte of them
    for index, row in enumerate(parquet.read(source, folder, ("caption", "name", *columns), (*image, *may))):
        name, caption = _named(row, index, folder), _said(row, "caption", index, folder)
        photos = authors.get(name, [])
        places = [place for place, (said, _) in enumerate(photos) if said == caption]
        if not places:
            raise InputError(
                f"expected every caption of {name} in {folder} to stand in full, found 1 that does not, "
                f"{caption[:60]!r}; download the data set again"
            )
        if len(places) > 1:
            mine = cells.images(row.get("image"), f"{name} in row {index} of {folder}")
            places = [place for place in places if [photos[place][1]] == mine] or places
        place = next((place for place in places if not turns[name, place]), None)
        if place is None:
            raise InputError(
                f"expected every photo of {name} once in {folder}, found {caption[:60]!r} again in row {index}; remove it"
            )
        turns[name, place] += 1
        yield name, place, row


def _asked(source: pathlib.Path) -> dict[str, list[tuple[str, str]]]:
    """Author -> TOFU's questions and answers.

    Raises:
      InputError: they are not twenty to an author; a block names no author of the photos, or two as often, or the author of
        another block; an author has no block.
    """
    authors = _authors(source)
    pairs = []
    for index, row in enumerate(parquet.read(source, "full+tofu", ("caption", "question", "answer"))):
        caption, question, answer = (_said(row, c, index, "full+tofu") for c in ("caption", "question", "answer"))
        if (question or answer) and not caption:
            pairs.append((question, answer))
    blocks = [pairs[start : start + BLOCK] for start in range(0, len(pairs), BLOCK)]
    if not blocks or len(blocks[-1]) < BLOCK:
        raise InputError(
            f"expected {BLOCK} text questions an author in full+tofu, found {len(pairs)} in all; download the data set again"
        )
    found: dict[str, list[tuple[str, str]]] = {}
    for block in blocks:
        named = _most_named(" ".join(part for pair in block for part in pair), authors)
        if len(named) != 1 or named[0] in found:
            raise InputError(
                f"expected a block of {BLOCK} text questions of full+tofu to name one author of full whom no other block "
                f"names, found {' and '.join(named) or 'nobody'} in that of {block[0][0][:60]!r}; download the data set again"
            )
        found[named[0]] = block
    if silent := sorted(authors.keys() - found.keys()):
        raise InputError(
            f"expected {BLOCK} text questions in full+tofu for every author of full, found none for {', '.join(silent[:5])}; "
            "download the data set again"
        )
    return found


def _most_named(text: str, authors: Iterable[str]) -> list[str]:
    """The authors whose whole names stand most often in a text; a name within another's is the other's."""
    longest_first = sorted(authors, key=len, reverse=True)
    names = re.compile(rf"(?<![^\W_]|-)(?:{'|'.join(map(re.escape, longest_first))})(?!-?[^\W_])")
    counts = collections.Counter(names.findall(unicodedata.normalize("NFC", text)))
    return sorted(name for name, count in counts.items() if count == max(counts.values()))


def _names(cell: object, place: str, right: str = "") -> list[str]:
    """The names of a list, of a struct of options, or of the text of either; of a text that is one name; null is none.

    Of a list whose items begin with 'A. ', 'B. ', ... the name that is ``right`` says whether these are letters or initials.

    Raises:
      InputError: it is a text that may be several names, a list that is cut off, or one that can be read in two ways.
    """
    try:
        found = cells.parsed(cell)
    except ValueError:
        found = cells.text(cell, place).strip()
        found = found[1:-1] if re.fullmatch(r"([\"'])(?:(?!\1).)*\1", found) else found
        if found[:1] in tuple("[({\"'") or SEVERAL.search(found):  # else a name, not a list of them written out
            raise InputError(
                f"expected a list of names as {place}, found {found[:60]!r}, which may be several; write a list"
            ) from None
    if isinstance(found, dict | list):
        names = [name for _, name in spell_out(found, place)[0]]
        items = [cells.plain(item) for item in (found.values() if isinstance(found, dict) else found)]
        if any(isinstance(item, bool) or item in ("...", "\u2026") for item in items if isinstance(item, bool | str)):
            raise InputError(f"expected a list of names as {place}, found {cells.brief(cell)}; write every name")
        if isinstance(found, list) and all(isinstance(item, str) for item in items):
            names = _unlabelled(items, names, place, right)
    elif isinstance(found, str | None):
        names = [found or ""]
    else:
        raise InputError(f"expected a list of names as {place}, found {str(cell)[:60]!r}; write a list")
    return [name.strip() for name in names if name.strip() and name.strip().casefold() not in NOTHING]


def _unlabelled(items: list[str], names: list[str], place: str, right: str) -> list[str]:
    """The names without the letters before them, or as they stand where those are initials."""
    stripped = [item.strip() for item in items] != names
    if not stripped or not all(INITIAL.fullmatch(item.strip()) for item in items):
        return names
    as_they_stand, without = (any(same(name, right) for name in form) for form in (items, names))
    if not as_they_stand and not without:  # letters, unless little of a name is left without them
        without = all(len(name.split()) > 1 and not INITIAL.fullmatch(name) for name in names)
    if as_they_stand == without:
        raise InputError(
            f"expected names as {place}, found {', '.join(items)[:80]!r}, where 'A.' may be a letter or an initial; remove the "
            "letters, or write them as '(A)'"
        )
    return items if as_they_stand else names


def _readings(name: str) -> list[list[str]]:
    """The words of a name in no order, and those without what may be a letter or a number before it."""
    words = re.findall(
        r"[^\W_]+", "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf")
    )
    words = [word.casefold() for word in words]
    return [sorted(words), sorted(words[1:])] if words and len(words[0]) == 1 else [sorted(words)]


def _check_right(right: str, options: list[str], place: str) -> None:
    """Raises InputError where the right name is a letter or a number, or stands among the options in other words."""
    given = [name for name in options if same(name, right)]
    if not given and LETTER.fullmatch(right):
        raise InputError(f"expected a name as answer in {place}, found {right!r}, a letter or a number; write the name")
    mine = _readings(right)
    alike = [name for name in options if (r := _readings(name))[0] in mine or mine[0] in r]
    if not given and alike:
        raise InputError(
            f"expected the answer in {place} spelled as its option, or none like it, found {right!r} and {alike[0]!r}; write "
            "both alike"
        )


def _choice(question: str, right: str, wrong: list[str], photo: int = -1) -> dict:
    """Options in alphabetical order, each once, so that the right one stands anywhere but by no chance."""
    options = [right]
    for name in wrong:
        options += [] if any(same(name, other) for other in options) else [name]
    options.sort()
    if len(options) > len(string.ascii_uppercase):
        raise InputError(
            f"expected at most {len(string.ascii_uppercase)} names to choose from, found {len(options)} for {right}; "
            "download the data set again"
        )
    letters = string.ascii_uppercase[: len(options)]
    table = dict(zip(letters, options, strict=True))
    return {"Question": question, "Options": table, "Correct_Answer": letters[options.index(right)], "Photo": photo}


def _real(source: pathlib.Path) -> Iterator[dict]:
    for folder in sorted(set(REAL) & parquet.configs(source)):
        for index, row in enumerate(parquet.read(source, folder, ("answer", "options"), ("image", "question"))):
            person, place = f"{folder}-{index:04d}", f"row {index} of {folder}"
            photos, answer = cells.images(row.get("image"), place), _said(row, "answer", index, folder)
            if not photos or not answer:
                yield {"ID": person, "remarks": [("multiple-choice", NO_OPTION if photos else NO_PHOTO)]}
                continue
            question = cells.text(row.get("question"), f"question of {place}") or RECOGNISE
            options = _names(row["options"], f"options of {place}", answer)
            _check_right(answer, options, place)
            yield {
                "ID": person,
                "image": photos[0],
                "images": [],
                "biography": json.dumps({"Name": answer}),
                "metadata": "[]",
                "Classification_Task": {
                    "Image_Textual_Questions": [_choice(question, answer, options)],
                    "Pure_Text_Questions": [],
                },
                "Mask_Task": [],
                "Generation_Task": [],
            }
