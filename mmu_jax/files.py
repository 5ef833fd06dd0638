"""JSON files in and out: what a file system or a half-written file does to a reader arrives as one line."""

import codecs
import concurrent.futures
import errno
import hashlib
import json
import math
import os
import pathlib
from typing import Any

from mmu_jax import InputError

# What libraries that raise no OSError repeat of one.
REFUSALS = tuple(os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM))


def refused(error: Exception) -> bool:
    """Whether an exception of a library tells that a file system would not write: it is full, or may not be written."""
    return any(words in str(error) for words in (*REFUSALS, "RESOURCE_EXHAUSTED"))


def stamp(
    folder: str | pathlib.Path, without: pathlib.Path | None = None, pieces: int = 256, piece: int = 2**18
) -> str:
    """A hash by which a model or a data set in a folder, or a file, is known: the names, sizes and bytes of its files.

    Of a file above 64 MiB (``pieces * piece``) so many pieces are read, spread over all of it, since nobody wants to read
    gigabytes at every start: what is changed between two of them is not seen. Hidden files (what download tools note for
    themselves), ``*.md`` and what lies in ``without`` do not count; links are followed.

    Raises:
      InputError: a file cannot be read.
    """
    folder, found = pathlib.Path(folder), hashlib.sha256()
    try:
        for path in _files(folder, without):
            size = path.stat().st_size
            spread = size > pieces * piece
            found.update(f"{path.relative_to(folder).as_posix()} {size}".encode())
            with path.open("rb") as file:
                for index in range(pieces if spread else 1):
                    file.seek(
                        index * (size - piece) // (pieces - 1) if spread else 0
                    )  # the last ends where the file does
                    found.update(file.read(piece if spread else -1))
    except OSError as error:
        raise InputError(f"expected files that can be read in {folder}, found {error}; copy them again") from error
    return found.hexdigest()[:16]


def _files(folder: pathlib.Path, without: pathlib.Path | None) -> list[pathlib.Path]:
    """The files that :func:`stamp` reads, in an order that no file system decides; a folder linked twice counts once."""

    def refuse(error: OSError) -> None:
        raise error

    if folder.is_file():
        return [folder]
    found, seen = [], set() if without is None else {without.resolve()}
    for root, inner, names in os.walk(folder, followlinks=True, onerror=refuse):
        here = pathlib.Path(root)
        if here.resolve() in seen:
            inner.clear()
            continue
        inner.sort()
        seen.add(here.resolve())
        found += [here / name for name in names if not name.startswith(".") and not name.lower().endswith(".md")]
    return sorted(path for path in found if path.is_file())


def hashes(folder: str | pathlib.Path) -> dict[str, str]:
    """File -> SHA-256 of all that is in a folder, hidden files left out, as ``sha256sum`` prints them.

    Raises:
      InputError: a file cannot be read.
    """
    folder = pathlib.Path(folder)
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    shown = {name: path for name, path in found.items() if not any(part.startswith(".") for part in name.parts)}
    with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing lets other threads run
        return dict(zip((name.as_posix() for name in shown), pool.map(digest, shown.values()), strict=True))


def sealed(told: dict[str, Any]) -> dict[str, Any]:
    """What a file says of itself with ``sha256``, of all else in it: it is as it was written where it equals this.

    >>> sealed(sealed({"people": ["0007"]}) | {"people": []})["sha256"] == sealed({"people": ["0007"]})["sha256"]
    False
    """
    rest = {key: value for key, value in told.items() if key != "sha256"}
    return rest | {"sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def digest(path: str | pathlib.Path) -> str:
    """SHA-256 of a file.

    Raises:
      InputError: it cannot be read.
    """
    try:
        with pathlib.Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"expected a file that can be read, found {path} ({error}); copy it again") from error


def open_as_umask_says(path: str | pathlib.Path) -> None:
    """Gives a file the mode of any other new one: what ``safetensors`` writes, nobody else may read."""
    umask = os.umask(0o077)  # it can only be read by setting it
    os.umask(umask)
    pathlib.Path(path).chmod(0o666 & ~umask)


def read_text(path: str | pathlib.Path, what: str = "a text file") -> str:
    """The text of a file in UTF-8, or in UTF-16 where its first two bytes say so; every end of a line becomes ``\\n``.

    Raises:
      InputError: it cannot be opened or is in another encoding; ``what`` names it in the message.
    """
    try:
        encoded = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"expected {what}, found {path} which cannot be read ({error}); copy it again") from error
    wide = encoded.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = encoded.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = encoded.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"expected {what} in UTF-8, found byte 0x{encoded[error.start]:02x} in line {line} of {path}, which is none; save it as UTF-8 "
            '(a spreadsheet calls it "CSV UTF-8"), or copy it again if it is damaged'
        ) from error
    if "\0" in text:
        raise InputError(f"expected {what} in UTF-8, found bytes of zero in {path}; save it as UTF-8, or copy it again")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | pathlib.Path, what: str = "a JSON file") -> Any:
    """The value in a JSON file.

    Raises:
      InputError: it cannot be opened, is not UTF-8 or is not JSON; ``what`` names it in the message.
    """
    text = read_text(path, what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
        pointer = text.startswith("version https://git-lfs")
        why = "it is a pointer of git-lfs, run 'git lfs pull' there" if pointer else f"{error}; copy it again"
        raise InputError(f"expected {what}, found {path} which is not JSON: {why}") from error


def read_object(path: str | pathlib.Path, what: str = "a JSON file", like: Any = None) -> dict[str, Any]:
    """The object in a JSON file; InputError too where the value is another, or not :func:`unlike` ``like``."""
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise InputError(f"expected {what} with a JSON object, found {type(value).__name__} in {path}; copy it again")
    if like is not None and (odd := unlike(value, like)):
        raise InputError(f"expected {what}, found {path} with {odd}; undo the edit, or delete it and make it again")
    return value


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested dict by dotted key; an empty dict is a value.

    >>> flat({"a": {"b": 1, "c": {}}})
    {'a.b': 1, 'a.c': {}}
    """
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in flat(item, f"{prefix}.{key}" if prefix else key).items()}


def unlike(value: Any, like: Any, place: str = "") -> str:
    """Where and how a value of JSON is not of a shape; empty if it is.

    Args:
      like: a type (``float`` is a finite number); a tuple of shapes, one of which it has; a set of values, one of which it
        is; a list of one shape, which every item has; or a dict of shapes by key, which must be there but for those that
        end in ``?``; the shape under ``'*'`` is that of every other key.

    >>> unlike({"a": {"mean": None}}, {"*": {"mean": float}})
    'a/mean = None where a number is expected'
    """
    if isinstance(like, tuple):
        found = [unlike(value, one, place) for one in like]
        return "" if not all(found) else found[0]
    if isinstance(like, dict):
        if not isinstance(value, dict):
            return _odd(value, place, "an object")
        by_key = {key.removesuffix("?"): shape for key, shape in like.items() if key != "*"}
        if lost := [key for key in like if key != "*" and not key.endswith("?") and key not in value]:
            return f"{place or 'it'} without {', '.join(lost)}"
        shapes = {key: by_key.get(key, like.get("*", object)) for key in value}
        return next(filter(None, (unlike(value[k], shapes[k], f"{place}/{k}".strip("/")) for k in value)), "")
    if isinstance(like, list):
        if not isinstance(value, list):
            return _odd(value, place, "a list")
        return next(filter(None, (unlike(v, like[0], f"{place}/{i}".strip("/")) for i, v in enumerate(value))), "")
    if isinstance(like, set):
        known = isinstance(value, str) and value in like
        return "" if known else _odd(value, place, f"one of {', '.join(sorted(like))}")
    if like is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
        return "" if number else _odd(value, place, "a number")
    return "" if isinstance(value, like) else _odd(value, place, {str: "text", dict: "an object"}.get(like, str(like)))


def _odd(value: Any, place: str, expected: str) -> str:
    shown = repr(value)
    return f"{place or 'a value'} = {shown if len(shown) < 60 else shown[:57] + '...'} where {expected} is expected"


def write_json(path: str | pathlib.Path, value: Any) -> None:
    """Whole or not there, keys sorted.

    Raises:
      InputError: the value holds NaN or infinity (the place is named), which is no JSON; or the disk refuses.
    """
    path = pathlib.Path(path)
    if odd := _not_finite(value):
        raise InputError(f"expected finite numbers to write to {path}, found {odd}; mend what was measured")
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"expected room and permission to write {path}, found {error}; free or change it") from error


def _not_finite(value: Any, place: str = "") -> str:
    """``'results/forget: nan'``: the first number that is no JSON, empty if there is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{place or 'the value'}: {value}"
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return next(filter(None, (_not_finite(v, f"{place}/{k}".strip("/")) for k, v in items)), "")
