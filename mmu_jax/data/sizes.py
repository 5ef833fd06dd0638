"""Padded lengths of a batch: few distinct ones, so few compilations."""

import dataclasses

from mmu_jax import InputError


def fit(length: int, sizes: tuple[int, ...], what: str, multiple: int = 8, whose: str = "") -> int:
    """The padded length: the smallest of ``sizes`` that holds ``length``, without sizes the next ``multiple``.

    ``whose`` names the row in the error.

    >>> fit(70, (64, 128), 'tokens'), fit(70, (), 'tokens')
    (128, 72)

    Raises:
      InputError: every size is too small.
    """
    if not sizes:
        return -(-length // multiple) * multiple
    if length > max(sizes):
        raise InputError(
            f"expected rows of at most {max(sizes)} {what}, found one of {length}{whose}; add a larger size to "
            f"the lengths in {what}" + (" or lower max_pixels" if what == "patches" else "")
        )
    return min(size for size in sizes if size >= length)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The padded lengths a batch may have, in ``tokens`` and in ``patches``; none: what the longest row needs.

    >>> Sizes((64, 128)).padded(tokens=70, patches=10)
    {'tokens': 128, 'patches': 16}
    >>> Sizes((64, 128)).padded(tokens=200, patches=0)
    {'tokens': 128, 'patches': 0}
    """

    tokens: tuple[int, ...] = ()
    patches: tuple[int, ...] = ()

    def holding(self, tokens: int, patches: int) -> "Sizes":
        """These, or where they say nothing one size that holds a row so long."""
        return Sizes(self.tokens or (fit(tokens, (), "tokens"),), self.patches or (patches,))

    def padded(self, tokens: int, patches: int) -> dict[str, int]:
        """The lengths of a batch whose longest row has at most so many ``tokens`` and ``patches``.

        That is the longest text beside the largest photo, which need not be one row: it may be more than every size, and no
        batch is longer than the largest of them. A row that is, is refused where it is dealt.
        """
        return {
            "tokens": fit(min(tokens, max(self.tokens, default=tokens)), self.tokens, "tokens"),
            "patches": fit(min(patches, max(self.patches, default=patches)), self.patches, "patches") if patches else 0,
        }


ANY = Sizes()  # one size, that of the longest row
