"""What is told of the rows of a data set: which items were left out and why, and who is not like the others.

A module of rows says of a row what it found wanting, as pairs (of what, remark); they are counted split by split, kept
beside the prepared data, and told in the data stage. An item that lacks its question or its answer is left out, as in the
public code; where more than one in a hundred do, the data set is not what it should be.
"""

import collections
import json
from typing import Any

from mmu_jax import InputError

Remarks = list[tuple[str, str]]

NO_PHOTO, EMPTY, NOTHING = "left out: no photo", "left out: empty", "left out: empty, and nothing else is there"
NO_QUESTION, NO_ANSWER, NO_OPTION = "left out: no question", "left out: no answer", "left out: no right option"
KEYS = ("split", "what", "of", "remark", "people")  # of a remark in the file
NO_NAMES = "not asked: no names to choose from"
NO_PARAPHRASE = "not asked: no right answer in other words, or no wrong one in its form"
WITHOUT = "without task "
ALONE, ALIKE = "with one option alone, nothing to choose from", "with two options alike"
FAULTS = (NOTHING, NO_QUESTION, NO_ANSWER, NO_OPTION)
LEFT_OUT = (NO_PHOTO, NO_NAMES, NO_PARAPHRASE, EMPTY, *FAULTS)


def lacking(question: str, answer: Any, without: str = NO_ANSWER) -> str:
    """The remark on an item that lacks its question, its answer (``without``), or both, as published tables pad a list."""
    if not question and not answer:
        return EMPTY
    return without if question else NO_QUESTION


class Tally:
    """Counts the remarks on the rows of a split."""

    def __init__(self, split: str):
        self.split, self.totals, self.people = split, collections.Counter(), {}

    def add(self, row: dict) -> None:
        """Counts a row in the schema of ``mmu_jax.data.schema.read_person``; one of which only ID and remarks are left too."""
        choices = [choice for items in row.get("Classification_Task", {}).values() for choice in items]
        sizes = {
            "people": int("image" in row),
            "training": len(json.loads(row.get("metadata", "[]"))),
            "multiple-choice": len(choices),
            "cloze": len(row.get("Mask_Task", ())),
            "generation": len(row.get("Generation_Task", ())),
            "truth ratio": len(row.get("Perturbed_Task", ())),
        }
        said = [
            (what, NOTHING if remark == EMPTY and not sizes[what] else remark)
            for what, remark in row.get("remarks", [])
        ]
        self.totals.update(sizes)
        self.totals.update(what for what, remark in said if remark in LEFT_OUT)
        for options in (list(choice["Options"].values()) for choice in choices):
            said += [("multiple-choice", ALONE)] * (len(options) == 1)
            said += [("multiple-choice", ALIKE)] * (len(set(options)) < len(options))
        for key in said:
            self.people.setdefault(key, []).append(row["ID"])

    def told(self) -> list[dict]:
        """The remarks with their counts, as JSON keeps them.

        Raises:
          InputError: more than one in a hundred items of a kind lack their question or their answer, or people a task that
            others have.
        """
        found = [
            dict(zip(KEYS, (self.split, what, self.totals[what], remark, people), strict=True))
            for (what, remark), people in self.people.items()
        ]
        for what, total in self.totals.items():
            faults = [r for r in found if r["what"] == what and r["remark"] in FAULTS]
            if 100 * sum(len(r["people"]) for r in faults) > total:
                raise _too_many(faults)
            if part := [r for r in found if r["what"] == what and _lost(r)]:
                raise _too_many(part)
        return found


def _lost(remark: dict) -> bool:
    """Whether people, more than one in a hundred and not all of them, are without a task."""
    missing = len(remark["people"])
    return remark["remark"].startswith(WITHOUT) and missing < remark["of"] < 100 * missing


def _too_many(faults: list[dict]) -> InputError:
    return InputError(
        f"expected at most one in a hundred items to be left out, found {'; '.join(map(line, faults))}; mend or remove "
        "them in the data set, or download it again"
    )


def line(told: dict) -> str:
    """``full: 3 of 500 multiple-choice items left out: no right option (persons 0012, 0034)``."""
    people = list(dict.fromkeys(told["people"]))
    items = told["what"] if told["what"] == "people" else f"{told['what']} items"
    who = f"{'person' if len(people) == 1 else 'persons'} {', '.join(people[:5])}{', ...' if len(people) > 5 else ''}"
    return f"{told['split']}: {len(told['people'])} of {told['of']} {items} {told['remark']} ({who})"
