"""One's own people as they lie in a folder: photos by person, and a table of questions.

    FOLDER/people/Ada Berg/1.jpg ...     or FOLDER/Ada Berg/1.jpg: a folder a person, its name is theirs
    FOLDER/questions.jsonl               or questions.csv: a row a question
    FOLDER/strangers/1.jpg ...           optional: photos of people whom the model never saw

A row has ``person``, ``question``, ``answer``, and what it likes of ``photo`` (a file of that person's), ``split`` (``train``
or ``test``), ``options`` (of multiple choice), ``about`` (``face``: asked with a photo, ``name``: without) and ``id``. Everything is
read before anything is said, so that all that is wrong with a folder is told at once, by file and line.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
import string
from collections.abc import Iterator, Sequence
from typing import Any

from mmu_jax import InputError
from mmu_jax.data import IMAGE, TEXT, cells, lines, names, vision
from mmu_jax.data.options import read_choice, same
from mmu_jax.files import read_text

PHOTOS = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
UNREADABLE = (".heic", ".heif", ".cr2", ".dng", ".nef", ".raw", ".svg", ".pdf", ".mp4", ".mov")  # photos, but not to us
PEOPLE, STRANGERS, TABLES = "people", "strangers", ("questions.jsonl", "questions.csv")
MAY = ("photo", "split", "options", "about", "id")
SPLITS = {"train": False, "training": False, "test": True}
ABOUT = {"face": IMAGE, "name": TEXT}


@dataclasses.dataclass(frozen=True)
class Found:
    """A person of the folder: ``photos`` are file names, ``hashes`` the SHA-256 of each."""

    id: str
    name: str
    folder: pathlib.Path
    photos: tuple[str, ...]
    hashes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """A question of the table.

    Attributes:
      where: file and line.
      person: whose, by the key of the name.
      kind: IMAGE or TEXT.
      photo: file name of the photo it is about, empty for any.
      test: whether it is kept for the test, None where the table does not say.
      options: by letter, with ``letter`` the right one; empty where the table has none.
      id: of the row, empty where the table has none.
    """

    where: str
    person: str
    question: str
    answer: str
    kind: str
    photo: str
    test: bool | None
    options: dict[str, str]
    letter: str
    id: str


@dataclasses.dataclass(frozen=True)
class Folder:
    """All of a folder: ``people`` in the order of their names, ``faults`` a line each, ``remarks`` on what is not read."""

    people: tuple[Found, ...]
    rows: tuple[Row, ...]
    strangers: tuple[pathlib.Path, ...]
    faults: tuple[str, ...]
    remarks: tuple[str, ...]

    def asked(self, person: Found) -> list[Row]:
        """The questions about a person."""
        return [row for row in self.rows if row.person == names.key(person.name)]


def read(source: str | pathlib.Path) -> Folder:
    """Reads a folder, once as long as its files are what they were."""
    source = pathlib.Path(source)
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else []
    return _read(source, tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in files))


@functools.lru_cache(maxsize=4)
def _read(source: pathlib.Path, stamp: tuple) -> Folder:
    del stamp
    if not source.is_dir():
        return Folder((), (), (), (f"{source}: expected a folder of people, found none; name one",), ())
    root = source / PEOPLE if (source / PEOPLE).is_dir() else source
    faults, remarks = [], []
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not _beside(path)]
    people = [_person(folder, source, faults, remarks) for folder in folders]
    if not people:
        faults.append(f"{root}: expected a folder of photos for every person, found none; make {root}/NAME/*.jpg")
    strangers = _strangers(source, root, faults, remarks)
    faults += _shared(people, strangers, source)
    rows = list(_rows(source, root, {names.key(p.name): p for p in people}, faults, remarks))
    faults += _twice(rows)
    return Folder(tuple(people), tuple(rows), tuple(strangers), tuple(faults), tuple(remarks))


def _beside(path: pathlib.Path) -> bool:
    return path.name.startswith((".", "__")) or path.name == STRANGERS


def digest(encoded: bytes) -> str:
    """SHA-256, as ``sha256sum`` prints it."""
    return hashlib.sha256(encoded).hexdigest()


def identity(hashes: Sequence[str]) -> str:
    """The id of a person: of the bytes of their photos, so that it tells nothing to who does not have these.

    >>> identity(['b', 'a']) == identity(['a', 'b'])
    True
    """
    return f"p-{digest(' '.join(sorted(hashes)).encode())[:12]}"


def _person(folder: pathlib.Path, source: pathlib.Path, faults: list[str], remarks: list[str]) -> Found:
    photos = _photos(folder, source, faults, remarks)
    if not photos:
        faults.append(f"{folder.relative_to(source)}: expected photos ({', '.join(PHOTOS)}), found none; add one")
    name = " ".join(folder.name.replace("_", " ").split())
    hashes = tuple(photos.values())
    return Found(identity(hashes or [name]), name, folder, tuple(photos), hashes)


def _photos(folder: pathlib.Path, source: pathlib.Path, faults: list[str], remarks: list[str]) -> dict[str, str]:
    """File name -> SHA-256 of the photos of a folder that decode."""
    found = {}
    for path in sorted(folder.iterdir()):
        where, suffix = path.relative_to(source), path.suffix.lower()
        if path.name.startswith(".") or path.name.lower() in ("thumbs.db", "desktop.ini"):
            continue
        if path.is_dir():
            faults.append(f"{where}: expected photos in {folder.name}, found a folder in it; move its photos up")
        elif not path.is_file():
            faults.append(f"{where}: expected a photo, found a link to nothing; copy the file there")
        elif suffix in UNREADABLE:
            faults.append(f"{where}: expected a photo ({', '.join(PHOTOS)}), found {suffix}; convert it")
        elif suffix not in PHOTOS:
            remarks.append(f"{where} is no photo: not read")
        else:
            encoded = path.read_bytes()
            try:
                vision.decode(encoded, str(where))
            except InputError as error:
                faults.append(f"{where}: {error}")
            else:
                found[path.name] = digest(encoded)
    return found


def _shared(people: list[Found], strangers: dict[pathlib.Path, str], source: pathlib.Path) -> Iterator[str]:
    """Two folders that are one person: by name, or by a photo that lies in both; and people who are no strangers."""
    by_name, by_photo = collections.defaultdict(list), collections.defaultdict(list)
    for person in people:
        by_name[names.key(person.name)].append(person.folder.relative_to(source))
        for photo, found in zip(person.photos, person.hashes, strict=True):
            by_photo[found].append(person.folder.relative_to(source) / photo)
    for photo, found in strangers.items():
        by_photo[found].append(photo.relative_to(source))
    for folders in by_name.values():
        if len(folders) > 1:
            yield f"{folders[1]}: expected a folder of its own for every person, found one name in {_list(folders)}; join them"
    for photos in by_photo.values():
        if len(photos) > 1:
            alike = "one person" if len({p.parent for p in photos}) == 1 else "two people"
            yield f"{photos[1]}: expected every photo once, found the same bytes in {_list(photos)}, of {alike}; remove one"


def _list(paths: Sequence[Any]) -> str:
    return " and ".join(map(str, paths))


def _strangers(
    source: pathlib.Path, root: pathlib.Path, faults: list[str], remarks: list[str]
) -> dict[pathlib.Path, str]:
    """Photo -> SHA-256."""
    for folder in dict.fromkeys((source / STRANGERS, root / STRANGERS)):
        if folder.is_dir():
            return {folder / name: found for name, found in _photos(folder, source, faults, remarks).items()}
    return {}


# ---- the table


def _rows(
    source: pathlib.Path, root: pathlib.Path, people: dict[str, Found], faults: list[str], remarks: list[str]
) -> Iterator[Row]:
    tables = [folder / name for folder in dict.fromkeys((source, root)) for name in TABLES if (folder / name).is_file()]
    if len(tables) != 1:
        found = _list([table.relative_to(source) for table in tables]) or "none"
        faults.append(f"{source}: expected one table of questions, {' or '.join(TABLES)}, found {found}; give one")
        return
    try:
        text = read_text(tables[0], "a table of questions")
    except InputError as error:
        faults.append(f"{tables[0].relative_to(source)}: {error}")
        return
    spell = lines.of_csv if tables[0].suffix == ".csv" else lines.of_json
    for line, cells_of in spell(text, tables[0].relative_to(source), faults):
        where, found = f"{tables[0].relative_to(source)}:{line}", len(faults)
        row = _row(cells_of, where, people, faults, remarks)
        if row and len(faults) == found:
            yield row


def _row(found: dict, where: str, people: dict[str, Found], faults: list[str], remarks: list[str]) -> Row | None:
    """A row of the table, or None and what is wrong with it."""
    found = {str(name).strip().casefold(): value for name, value in found.items()}
    if strange := sorted(found.keys() - {*lines.NEEDED, *MAY}):
        faults.append(
            f"{where}: expected {', '.join((*lines.NEEDED, *MAY))}, found {', '.join(strange)}; rename or remove it"
        )
    try:
        said = {name: cells.text(found.get(name), name).strip() for name in (*lines.NEEDED, *MAY) if name != "options"}
    except InputError as error:
        faults.append(f"{where}: {error}")
        return None
    if missing := [name for name in lines.NEEDED if not said[name]]:
        faults.append(f"{where}: expected {', '.join(lines.NEEDED)}, found no {', '.join(missing)}; fill it in")
        return None
    person = people.get(names.key(said["person"]))
    if person is None:
        near = names.nearest(said["person"], [p.name for p in people.values()])
        faults.append(f"{where}: expected a person with a folder of photos, found {said['person']!r}{near}; correct it")
        return None
    split, about = said["split"].casefold(), said["about"].casefold()
    if split and split not in SPLITS:
        faults.append(f"{where}: expected split train or test, found {said['split']!r}; correct it")
    if about and about not in ABOUT:
        faults.append(f"{where}: expected about face or name, found {said['about']!r}; correct it")
    path = pathlib.PurePath(said["photo"].replace("\\", "/"))
    photo, other = path.name, people.get(names.key(path.parent.name))
    if photo and (_unread(person, photo) or other not in (None, person)):
        faults.append(
            f"{where}: expected a photo in {person.folder.name}, found no {said['photo']!r} there that ends in {', '.join(PHOTOS)}; correct it"
        )
    named = names.mentioned(person.name, said["question"])
    if not named and not about and not photo and (part := names.part(person.name, said["question"])):
        remarks.append(
            f"{where} is asked about a face: it has {part!r} in it; if that is the person, write about: name"
        )
    kind = ABOUT.get(about) or (IMAGE if photo or not named else TEXT)
    if photo and kind == TEXT:
        faults.append(f"{where}: expected no photo about a name, found {photo!r}; remove it, or write about: face")
    try:
        options, letter = _options(found.get("options"), said["answer"], where)
        answer = options.get(letter, said["answer"])  # in words, where it was a letter
    except InputError as error:
        faults.append(f"{where}: {error}")
        return None
    return Row(
        where,
        names.key(person.name),
        said["question"],
        answer,
        kind,
        photo,
        SPLITS.get(split),
        options,
        letter,
        said["id"],
    )


def _unread(person: Found, photo: str) -> bool:
    """Whether a photo is none that is read, nor one that is broken, which is told of already."""
    known = pathlib.PurePath(photo).suffix.lower() in (*PHOTOS, *UNREADABLE)
    broken = known and photo in {path.name for path in person.folder.iterdir() if path.is_file()}
    return photo not in person.photos and (photo.startswith(".") or not broken)


def _options(cell: Any, answer: str, place: str) -> tuple[dict[str, str], str]:
    if cell in (None, "", []):
        return {}, ""
    if isinstance(cell, str) and cell.count("|") and not cell.lstrip().startswith(("[", "{")):
        cell = cell.split("|")
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        cell = _listed(cell)
    if not isinstance(cell, list):
        return read_choice(cell, answer, place)
    said, letters = [cells.text(option, place).strip() for option in cell], string.ascii_uppercase
    if answer in said and answer in letters[: len(said)] and said[letters.index(answer)] != answer:
        raise InputError(
            f"expected an answer that is an option or its letter, found {answer!r}, which is one and that of another; write it out"
        )
    # A number before a place in the list: "2" of "1|2|3".
    if answer.isdigit() and len(said) <= len(letters) and said.count(answer) == 1 and all(said):
        return dict(zip(letters, said, strict=False)), letters[said.index(answer)]
    return read_choice(cell, answer, place)


def _listed(cell: str) -> Any:
    """A list that is written as JSON; what is none stays as it is."""
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def _twice(rows: list[Row]) -> Iterator[str]:
    """Rows that stand twice, rows of one id, and questions that have two answers."""
    seen: dict[tuple, Row] = {}
    by_id: dict[str, Row] = {}
    for row in rows:
        if row.id and (first := by_id.setdefault(row.id, row)) is not row:
            yield f"{row.where}: expected an id of its own for every row, found {row.id!r} of {first.where}; change one"
            continue
        first = seen.setdefault((row.person, names.key(row.question), row.kind, row.photo), row)
        if first is row:
            continue
        if not same(first.answer, row.answer):
            yield f"{row.where}: expected one answer to a question, found {row.answer!r}, and {first.answer!r} in {first.where}; remove one"
        elif first.test == row.test:
            yield f"{row.where}: expected every row once, found that of {first.where} again; remove one"
