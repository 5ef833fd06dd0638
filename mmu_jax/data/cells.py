"""Cells of a table in every form in which data sets are written, as Python values.

A list of structs may be stored as a struct of lists (``datasets.Sequence``), as JSON or as what Python prints; a number may
stand for a text and a text for a number; any of them may be null. What has no one reading is refused. ``place`` names the
cell in messages, as in ``'Mask_Task of person 0012 in Full_Set'``.
"""

import ast
import decimal
import io
import json
import math
import re
import tokenize
from typing import Any

import numpy as np

from mmu_jax import InputError


def plain(value: Any) -> Any:
    """NumPy's and Arrow's spellings of Python's values; None for the NaN that pandas writes where nothing is."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, list) and value and all(_is_entry(pair) for pair in value):
        return dict(value)  # a map
    if isinstance(value, tuple):
        return list(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def _is_entry(pair: Any) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str | int)


def text(value: Any, place: str) -> str:
    """The text of a cell, a number as one says it (1987.0 is '1987'); '' where it is null or blank.

    Raises:
      InputError: it is a list or an object, or no Unicode text.
    """
    value = plain(value)
    if isinstance(value, list) and len(value) == 1:
        value = plain(value[0])
    if value is None:
        return ""
    if isinstance(value, list | dict):
        kind = "an object" if isinstance(value, dict) else f"a list of {len(value)}"
        raise InputError(f"expected one text in {place}, found {kind}, {brief(value)}; mend that row")
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, decimal.Decimal) and value.is_finite() and value == value.to_integral_value():
        value = int(value)
    try:
        found = value.decode() if isinstance(value, bytes) else str(value)
        found.encode()
    except UnicodeError as error:
        raise InputError(f"expected Unicode text in {place}, found {brief(value)} ({error}); mend that row") from error
    return found if found.strip() else ""


def identity(value: Any, place: str) -> str:
    """Who a row is about: 7, 7.0, '7' and b'7' are one person, '0007' is another.

    Raises:
      InputError: there is none.
    """
    found = text(value, f"the ID of {place}").strip()
    if not found:
        raise InputError(f"expected an ID in {place}, found none; fill it in or remove the row")
    return found


def parsed(cell: Any) -> Any:
    """The value of a cell that may be JSON or a Python literal; None where it is blank.

    Raises:
      ValueError: it is text that is neither.
    """
    value = plain(cell)
    for _ in range(2):  # JSON of a JSON text is common too
        value = value.decode() if isinstance(value, bytes) else value
        if isinstance(value, str):
            value = _literal(value) if value.strip() else None
    return plain(value)


def _literal(said: str) -> Any:
    try:
        return json.loads(said, object_pairs_hook=_object)
    except (json.JSONDecodeError, RecursionError) as error:
        try:
            together = _run_together(said)
            tree = ast.parse(said.strip(), mode="eval")
            value = ast.literal_eval(tree)
        except (ValueError, tokenize.TokenError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(str(error)) from error
    if together:
        raise ValueError("two texts without a comma between them")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value is ...:
            raise ValueError("it is cut off with '...'")
        if isinstance(node, ast.Dict):
            _object([(ast.literal_eval(key), None) for key in node.keys])
    return value


def _run_together(said: str) -> bool:
    """Whether two texts stand side by side in a list, as numpy prints one: Python reads them as one text.

    As the value of a dict they are one text: so are long ones written by ``pprint``.
    """
    inside, before = [], None
    for token in tokenize.generate_tokens(io.StringIO(said.strip()).readline):
        if token.type in (tokenize.NL, tokenize.COMMENT):
            continue
        if token.type == tokenize.STRING and before == tokenize.STRING and inside[-1:] != ["value"]:
            return True
        before = token.type
        if token.string in ("[", "(", "{"):
            inside.append(token.string)
        elif token.string in ("]", ")", "}"):
            inside.pop()
        elif token.string in (":", ",") and inside and inside[-1] in ("{", "value"):
            inside[-1] = "value" if token.string == ":" else "{"
    return False


def _object(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dict; ValueError where a key stands twice, of which Python's readers would keep the last in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return found


def read(cell: Any, place: str) -> Any:
    """As :func:`parsed`; InputError where there is no reading."""
    try:
        return parsed(cell)
    except ValueError as error:
        raise InputError(f"expected JSON in {place}, found {brief(cell)} ({error}); mend that row") from error


def table(cell: Any, place: str) -> dict[str, Any]:
    """An object: a struct, JSON, a Python literal; empty where the cell is null.

    Raises:
      InputError: it is something else.
    """
    found = read(cell, place)
    if isinstance(found, list) and len(found) == 1:
        found = read(found[0], place)
    if not isinstance(found, dict | None):
        raise InputError(f"expected an object in {place}, found {brief(found)}; mend that row")
    return found or {}


def records(cell: Any, place: str) -> list[dict[str, Any]]:
    """A list of items, each with a ``Question``; a null item is ``{}``.

    Read from a list of structs, a struct of lists, one struct, JSON or a Python literal of any of them.

    Raises:
      InputError: it is something else, or items have no key ``Question``.
    """
    found = read(cell, place)
    if isinstance(found, dict):
        found = [found] if _is_one(found) else _struct_of_lists(found, place)
    if not isinstance(found, list | None):
        raise InputError(f"expected a list of objects in {place}, found {brief(found)}; mend that row")
    items = [read(item, place) for item in found or ()]
    for item in items:
        if not isinstance(item, dict | None):
            raise InputError(f"expected objects in the list of {place}, found {brief(item)}; mend that row")
        if item and "Question" not in item:
            raise InputError(
                f"expected a Question in every item of {place}, found only {', '.join(map(repr, item))}; rename the keys"
            )
    return [item or {} for item in items]


def _is_one(struct: dict) -> bool:
    return any(plain(field) is not None and not isinstance(plain(field), list | dict) for field in struct.values())


def _struct_of_lists(struct: Any, place: str) -> list | None:
    """The items of a struct of lists, structs in it included; None where all of it is null."""
    struct = plain(struct)
    if not isinstance(struct, dict):
        if isinstance(struct, list | None):
            return struct
        raise InputError(f"expected a list in every field of {place}, found {brief(struct)}; mend that row")
    columns = {name: _struct_of_lists(field, place) for name, field in struct.items()}
    lengths = {len(column) for column in columns.values() if column is not None}
    if len(lengths) > 1:
        found = ", ".join(f"{len(column or ())} of {name}" for name, column in columns.items())
        raise InputError(f"expected lists of one length in {place}, found {found}; mend that row")
    if not lengths:
        return None
    return [{name: column and column[i] for name, column in columns.items()} for i in range(lengths.pop())]


def photo(cell: Any, place: str) -> int | None:
    """The place of a photo among those of its person; None where it is null or -1: any will do.

    Raises:
      InputError: it is no such number.
    """
    said = text(cell, place)
    if said in ("", "-1"):
        return None
    if not re.fullmatch(r"\d{1,9}", said):
        raise InputError(f"expected the place of a photo (0, 1, ...) in Photo of {place}, found {said[:60]!r}; mend it")
    return int(said)


def images(cell: Any, place: str) -> list[bytes]:
    """The encoded bytes of one image or of several: structs of bytes and path, bare bytes, lists of numbers, arrays.

    Raises:
      InputError: there is a path and no bytes, or something that is no encoded image.
    """
    found = plain(cell)
    if isinstance(found, dict) and any(_is_several(field) for field in found.values()):
        found = _struct_of_lists(found, place)
    several = _is_several(found)
    return [_image(item, place) for item in (found if several else [] if found is None else [found])]


def _is_several(cell: Any) -> bool:
    """Whether it is a list, and not of numbers, which are the bytes of one image."""
    found = plain(cell)
    return isinstance(found, list) and not (found and isinstance(plain(found[0]), int | float))


def _image(cell: Any, place: str) -> bytes:
    found, path = plain(cell), None
    if isinstance(found, dict):
        found, path = plain(found.get("bytes")), found.get("path")
    try:
        encoded = bytes(found) if isinstance(found, list) else found
    except (ValueError, TypeError):
        encoded = None
    if isinstance(encoded, bytes) and encoded:
        return encoded
    shown = f"only the path {brief(path)}" if path else brief(found) if found else "none"
    raise InputError(
        f"expected the encoded bytes of every photo of {place}, found {shown}; write the image files into the table, as "
        "push_to_hub of datasets does, or download the data set again"
    )


def brief(value: Any) -> str:
    shown = repr(value[:60] if isinstance(value, str | bytes | list) else value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
