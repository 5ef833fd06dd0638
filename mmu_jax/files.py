"""JSON files in and out: what a file system or a half-written file does to a reader arrives as one line."""

import errno
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


def read_text(path: str | pathlib.Path, what: str = "a text file") -> str:
    """The UTF-8 text of a file.

    Raises:
      InputError: it cannot be opened or is not UTF-8; ``what`` names it in the message.
    """
    try:
        return pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected {what}, found {path} which cannot be read ({error}); copy it again") from error


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


def read_object(path: str | pathlib.Path, what: str = "a JSON file") -> dict[str, Any]:
    """The object in a JSON file; InputError too where the value is another."""
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise InputError(f"expected {what} with a JSON object, found {type(value).__name__} in {path}; copy it again")
    return value


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
