"""Several answers to one question in one row: what they have in common is computed once.

A row of a question with the options Ada and Bo, where ``branch`` says which option a token is of, 0 for what they share::

    USER : Who ? ASSISTANT : Ada </s> Bo </s>
    0    0 0   0 0         0 1   1    2  2

A token looks at what is shared and at the earlier tokens of its own branch, and stands where it would stand if its branch were
the only one: every option has the logits of a row of its own.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mmu_jax.data import text
from mmu_jax.data.picture import Picture
from mmu_jax.data.sizes import ANY, Sizes, fit


@dataclasses.dataclass(frozen=True)
class Branched(text.Rows):
    """Rows that end in branches.

    Attributes:
      tails: for every row, the branch of each of its last tokens: 1, 2, ... in runs.
    """

    tails: list[np.ndarray]

    def batch(
        self, index: Sequence[int], pictures: list[list[Picture]], sizes: tuple[int, ...] = ()
    ) -> dict[str, np.ndarray]:
        """What :meth:`text.Rows.batch` gives, and what tells the branches apart.

        Returns:
          ``positions`` as they are for each branch alone, ``branch [B,T]``, and for A tokens, as many as the most that end a
          row or a few more, ``at [B,A]``, where each is predicted, ``said [B,A]``, which it is, ``of [B,A]``, its branch, and ``told
          [B,A]``, its weight; ``weights`` and ``tail`` are not among them.
        """
        made = super().batch(index, pictures, sizes)
        del made["tail"]
        weights, widest = made.pop("weights"), fit(max(map(len, self.tails)), (), "tokens")
        of = np.zeros((len(index), widest), np.int32)
        found = {"branch": np.zeros(made["tokens"].shape, np.int32), "at": np.zeros_like(of), "said": np.zeros_like(of)}
        told = np.zeros(of.shape, np.float32)
        for b, row in enumerate(index):
            tail = self.tails[row]
            place = made["valid"][b].sum() - len(tail) + np.arange(len(tail))
            first = np.searchsorted(tail, tail)  # of each token's branch, counted from the end of what is shared
            made["positions"][b, ..., place] -= first if made["positions"].ndim == 2 else first[:, None]
            starts = first == np.arange(len(tail))
            found["at"][b, : len(tail)] = np.where(starts, place[:1] - 1, place - 1)
            found["branch"][b, place], of[b, : len(tail)] = tail, tail
            found["said"][b, : len(tail)], told[b, : len(tail)] = made["tokens"][b, place], weights[b, place]
        return made | found | {"of": of, "told": told}


def join(rows: text.Rows, counts: Sequence[int], tokens: int, sizes: Sizes = ANY) -> tuple[Branched, list[np.ndarray]]:
    """Neighbouring rows that begin alike, as branches of one row.

    Args:
      rows: answered questions, padded on the right.
      counts: how many neighbours are options of one question, for every question.
      tokens: of the images of a row, if it has any.
      sizes: no row becomes longer than the largest of their lengths by a second branch, or, where they say nothing, than
        twice the longest of ``rows``; options that find no place go to a further row.
    Returns:
      The rows, and for each the rows that its branches were.
    """
    lengths, parts = rows.lengths(tokens), []
    limit = max(sizes.tokens, default=2 * int(lengths.max()))
    for stop, count in zip(np.cumsum(counts), counts, strict=True):
        options = range(int(stop) - count, int(stop))
        shared = _shared([rows.tokens[i] for i in options], [rows.weights[i] for i in options])
        parts.append(([], shared))
        length = 0
        for i in options:
            own = len(rows.tokens[i]) - shared
            if parts[-1][0] and length + own > limit:
                parts.append(([], shared))
            length = length + own if parts[-1][0] else int(lengths[i])
            parts[-1][0].append(i)

    def joined(values):
        return [np.concatenate([values[of[0]], *(values[i][shared:] for i in of[1:])]) for of, shared in parts]

    tails = [
        np.repeat(np.arange(1, len(of) + 1, dtype=np.int32), [len(rows.tokens[i]) - shared for i in of])
        for of, shared in parts
    ]
    made = Branched(joined(rows.tokens), joined(rows.weights), rows.pad, rows.image, rows.side, tails)
    return made, [np.array(of) for of, _ in parts]


def _shared(tokens: list[np.ndarray], weights: list[np.ndarray]) -> int:
    """How many tokens at their head rows have in common, none of which weighs anything."""
    most = min(int(np.argmax(w > 0)) for w in weights)
    alike = np.all([row[:most] == tokens[0][:most] for row in tokens], axis=0)
    return most if alike.all() else int(np.argmin(alike))
