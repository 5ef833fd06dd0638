"""The options of a multiple-choice question in every form in which data sets are written, and which is the right one."""

import re
import string
import unicodedata
from typing import Any

from mmu_jax import InputError
from mmu_jax.data import cells

_LABEL = re.compile(r"(?:option|choice)?[\s_]*[(\[]?([A-Za-z])[)\].:]*", re.IGNORECASE)  # 'a', 'A.', '(A)', 'Option A'
_NUMBER = re.compile(r"(?:option|choice)?[\s_]*[(\[]?(\d+)[)\].:]*", re.IGNORECASE)  # '1', '(1)', 'option_1'
LABELS, WORDS = ("label", "key", "letter", "id"), ("text", "option", "value", "content")  # of options in structs
_LABELLED = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:]+\s*|\s+[-\u2013]\s+)(\S.*)", re.DOTALL)  # 'B. text', 'b) text'


def read_choice(cell: Any, answer: Any, place: str) -> tuple[dict[str, str], str]:
    """The options of a question by letter, in their order and without blank ones, and the letter of the right one.

    Options are a struct, a list, a list of label and text, or JSON of any. Keys that spell a letter (``a``, ``1``, ``A.``,
    ``(A)``, ``option_1``) become that capital where all do; others stay. A null option whose key is spelled otherwise than
    those of the others, or as one of them, belongs to other rows of the table. The answer is a key in any of these
    spellings, ``B. text``, the text of an option, or its index, counted from 0 where the options have no numbers of their own. It is '' where the answer, or the option, is blank.

    Raises:
      InputError: the answer is none of the options, or two; or two keys spell one letter.
    """
    spelled, numbered = spell_out(cell, f"Options of {place}")
    keys = _letters([key for key, _ in spelled])
    own = [i for i, (_, option) in enumerate(spelled) if option or keys.count(keys[i]) == 1]
    if spelled and not own:  # nothing but blanks
        own = [keys.index(key) for key in dict.fromkeys(keys)]
    spelled, keys = [spelled[i] for i in own], [keys[i] for i in own]
    if len(set(keys)) < len(keys):
        found = ", ".join(repr(key) for key, _ in spelled)
        raise InputError(f"expected a letter of its own for every option of {place}, found {found}; mend that question")
    texts = dict(zip(keys, (option for _, option in spelled), strict=True))
    there = {key: option for key, option in texts.items() if option}
    said = cells.text(answer, f"Correct_Answer of {place}").strip()
    if not said or not there:
        return there, ""
    numbers = {_number(key) if numbered else i: keys[i] for i, (key, _) in enumerate(spelled)}
    right = _right(said, texts, numbers, numbered)
    if len(right) != 1:
        listed = ", ".join(f"{key} ({option[:40]!r})" for key, option in texts.items())
        raise InputError(
            f"expected one of the options {listed} as Correct_Answer of {place}, found {said[:60]!r}, which is "
            f"{'more than one' if right else 'none'} of them; mend that question"
        )
    return there, right[0] if right[0] in there else ""


def spell_out(cell: Any, place: str) -> tuple[list[tuple[str, str]], bool]:
    """Key and text of every option as they stand, and whether the keys are numbers of the data's own.

    Raises:
      InputError: the cell is neither a struct nor a list, nor the text of one.
    """
    found, asked = cells.read(cell, place), place.removeprefix("Options of ")
    found = _by_label(found) or found
    if isinstance(found, list):  # by place, or with their letters in their texts
        said = [cells.text(option, place).strip() for option in found]
        labels = [_LABELLED.fullmatch(option) for option in said]
        # One alone may be an initial: A. Shaw.
        if (
            len(labels) > 1
            and all(labels)
            and [m[1].upper() for m in labels] == list(string.ascii_uppercase[: len(labels)])
        ):
            return [(match[1], match[2]) for match in labels], False
        return [(str(i), option) for i, option in enumerate(said)], False
    if not isinstance(found, dict | None):
        raise InputError(
            f"expected options by letter, or a list, in {asked}, found {cells.brief(found)}; mend that question"
        )
    table = [
        (str(key).strip(), cells.text(option, f"option {key} of {asked}")) for key, option in (found or {}).items()
    ]
    if len({_NUMBER.fullmatch(key) is None for key, _ in table}) > 1:
        table = [(key, option) for key, option in table if option]
    return table, all(_NUMBER.fullmatch(key) for key, _ in table)


def _by_label(found: Any) -> dict[str, Any] | None:
    """Options by label of a list of ``{label, text}`` or of ``{label: [...], text: [...]}``; None where it is neither."""
    if isinstance(found, dict) and all(isinstance(cells.plain(field), list) for field in found.values()):
        columns = [cells.plain(field) for field in found.values()]
        if not found or len({len(column) for column in columns}) > 1:
            return None
        found = [dict(zip(found, row, strict=True)) for row in zip(*columns, strict=True)]
    if not isinstance(found, list) or not found or not all(isinstance(item, dict) for item in found):
        return None
    label = next((name for name in LABELS if all(name in item for item in found)), None)
    words = next((name for name in WORDS if all(name in item for item in found)), None)
    if label is None or words is None:
        return None
    table = {str(cells.plain(item[label])): item[words] for item in found}
    return table if len(table) == len(found) else None


def _letters(keys: list[str]) -> list[str]:
    """Capitals for the keys that spell a letter; for numbers too where they count from 0 or 1."""
    numbers = [_number(key) for key in keys]
    if keys and None not in numbers and (first := min(numbers)) in (0, 1) and max(numbers) - first < 26:
        return [string.ascii_uppercase[number - first] for number in numbers]
    labels = [_LABEL.fullmatch(key) for key in keys]
    return [label[1].upper() for label in labels] if all(labels) else keys


def _number(said: str) -> int | None:
    match = _NUMBER.fullmatch(said)
    return int(match[1]) if match else None


def _right(said: str, texts: dict[str, str], numbers: dict[int, str], numbered: bool) -> list[str]:
    """The letters that an answer may mean; a key comes before all else, as the benchmark writes it."""
    label, number = _LABEL.fullmatch(said), numbers.get(_number(said))
    key = next((k for k in texts if k.casefold() == said.casefold()), label and label[1].upper())
    if key in texts:
        return [key]
    if numbered and number is not None:
        return [number]
    alike = [key for key, option in texts.items() if option and same(option, said)]
    if number is not None and number not in alike:
        alike.append(number)
    match = _LABELLED.fullmatch(said)
    if not alike and match and match[1].upper() in texts and same(texts[match[1].upper()], match[2]):
        return [match[1].upper()]
    return alike


def same(one: str, other: str) -> bool:
    """Whether two texts differ in case, spacing, Unicode form and a full stop at most."""
    one, other = (" ".join(unicodedata.normalize("NFKC", t).casefold().split()).rstrip(" .") for t in (one, other))
    return one == other
