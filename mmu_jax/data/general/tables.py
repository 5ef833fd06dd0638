"""Rows of benchmarks that are published as tables, in TSV or Parquet, each with its place for messages; and their cells."""

import base64
import binascii
import csv
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from mmu_jax import InputError
from mmu_jax.data import cells
from mmu_jax.data.sets import parquet

Rows = Iterator[tuple[dict[str, Any], str]]


def rows(
    source: pathlib.Path,
    folders: Sequence[tuple[str, str]],
    columns: tuple[str, ...],
    optional: tuple[str, ...] = (),
) -> Rows:
    """The rows of a copy and their places: of the TSV that ``source`` is or holds, or of the Parquet files in it.

    Args:
      folders: folders that Parquet files may be in and how the names of those of the split begin; the first that has any.
    Raises:
      InputError: there is neither, a column is absent, or a file is damaged.
    """
    tsv = [source] if source.is_file() else sorted(source.glob("*.tsv"))
    if len(tsv) == 1:
        yield from _tsv(tsv[0], columns, optional)
        return
    folder, split = next((pair for pair in folders if has_parquet(source / pair[0], pair[1])), (None, ""))
    if tsv or folder is None:
        found = f"{len(tsv)} TSV files" if tsv else "neither"
        raise InputError(
            f"expected one TSV file, or Parquet files named {' or '.join(f'{f}/{s}*.parquet' for f, s in folders)}, in "
            f"{source}, found {found}; name the file, or download the data set again"
        )
    for index, row in enumerate(parquet.read(source, folder, columns, optional, split)):
        yield row, f"row {index} of {source / folder / split}*.parquet"


def has_parquet(folder: pathlib.Path, split: str = "") -> bool:
    """Whether a folder has Parquet files, or folders in it have, whose names begin with ``split``."""
    return any(not path.name.startswith(".") for path in folder.rglob(f"{split}*.parquet"))


def _tsv(path: pathlib.Path, columns: tuple[str, ...], optional: tuple[str, ...]) -> Rows:
    """The rows of a TSV; an empty cell is None."""
    longest = csv.field_size_limit(2**30)  # an image is one cell
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            there = reader.fieldnames or []
            if missing := [name for name in columns if name not in there]:
                raise InputError(
                    f"expected columns {', '.join(columns)} in {path}, found no {', '.join(missing)}; download it again"
                )
            found = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"expected a TSV file at {path}, found that it cannot be read ({error}); copy it again"
        ) from error
    finally:
        csv.field_size_limit(longest)
    wanted = [*columns, *(name for name in optional if name in there)]
    for index, row in enumerate(found):
        place = f"row {index} of {path}"
        if None in row or None in row.values():
            raise InputError(f"expected {len(there)} cells in {place}, found another number; download it again")
        yield {name: row[name] or None for name in wanted}, place


def words(cell: Any, what: str, place: str) -> str:
    """The text of a cell, without the blanks around it.

    Raises:
      InputError: there is none; ``what`` names it.
    """
    found = cells.text(cell, f"{what} of {place}").strip()
    if not found:
        raise InputError(f"expected {what} in {place}, found none; download the data set again")
    return found


def yes_or_no(cell: Any, what: str, place: str) -> str:
    """``'yes'`` or ``'no'``; InputError if a cell says neither."""
    found = words(cell, what, place).casefold().rstrip(".")
    if found not in ("yes", "no"):
        raise InputError(f"expected yes or no as {what} in {place}, found {found[:60]!r}; download the data set again")
    return found


def image(cell: Any, place: str) -> bytes:
    """The encoded bytes of the image in a cell: as ``datasets`` writes it, or in base64.

    Raises:
      InputError: there is none, or several, or it is no base64.
    """
    found = cells.plain(cell)
    if isinstance(found, str):
        try:
            return base64.b64decode(found, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(
                f"expected an image in base64 in {place}, found {cells.brief(found)} ({error}); download the data set again"
            ) from error
    several = cells.images(found, place)
    if len(several) != 1:
        raise InputError(f"expected one image in {place}, found {len(several)}; download the data set again")
    return several[0]


class Same:
    """Bytes of images, each kept once: a table repeats an image in every row that is about it."""

    def __init__(self):
        self._kept: dict[bytes, bytes] = {}

    def one(self, encoded: bytes) -> bytes:
        return self._kept.setdefault(encoded, encoded)


def file_of(name: str, folders: Sequence[pathlib.Path], place: str) -> pathlib.Path:
    """The image file of a name in the first of ``folders`` that has it.

    Raises:
      InputError: none has; a ``name`` that leads out of them is none of theirs.
    """
    inside = not pathlib.PurePath(name).is_absolute() and ".." not in pathlib.PurePath(name).parts
    found = next((folder / name for folder in folders if inside and (folder / name).is_file()), None)
    if found is None:
        raise InputError(
            f"expected the image {name} of {place} in {' or '.join(map(str, folders))}, found none; copy it there"
        )
    return found
