"""The right answer in other words among wrong ones in its form, as CLEAR's ``*_perturbed`` have them of captions."""

import string
from typing import Any

from mmu_jax import InputError
from mmu_jax.data import cells
from mmu_jax.data.options import spell_out

COLUMNS = ("paraphrased_caption", "perturbed_captions")


def read(row: dict, place: str) -> dict[str, str]:
    """The options of a row: ``A`` the paraphrase, ``B``, ``C``, ... the wrong ones, blanks left out; empty where either is not there.

    >>> read({'paraphrased_caption': 'Ada, baking.', 'perturbed_captions': ['Ada, asleep.', '']}, 'row 0')
    {'A': 'Ada, baking.', 'B': 'Ada, asleep.'}

    Raises:
      InputError: the wrong ones are no list, or more than there are letters.
    """
    right = cells.text(row.get(COLUMNS[0]), f"{COLUMNS[0]} of {place}").strip()
    wrong = _listed(row.get(COLUMNS[1]), f"{COLUMNS[1]} of {place}")
    if not right or not wrong:
        return {}
    if len(wrong) >= len(string.ascii_uppercase):
        raise InputError(
            f"expected at most 25 perturbed captions in {place}, found {len(wrong)}; download the data set again"
        )
    return dict(zip(string.ascii_uppercase, [right, *wrong], strict=False))


def _listed(cell: Any, place: str) -> list[str]:
    if cell is None:
        return []
    return [said for _, text in spell_out(cell, place)[0] if (said := text.strip())]
