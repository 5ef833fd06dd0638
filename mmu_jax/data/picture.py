"""A picture as the image processor makes it, held as a byte a number."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from mmu_jax import InputError

LEVELS = 256  # of a byte


@dataclasses.dataclass(frozen=True)
class Picture:
    """One image as the checkpoint's own processor makes it: resized and cropped here, normalised when it is read.

    Attributes:
      codes: ``[C,h,w]`` pixels, or ``[N,F]`` patches where images keep their own size (Qwen2-VL), uint8.
      levels: ``[C,256]`` float32: what each level of a channel is normalised to (:func:`levels`).
      tokens: image tokens it becomes.
      grid: rows and columns of its patches, None for pixels.
      merge: side of the square of patches that becomes one token.
    """

    codes: np.ndarray
    levels: np.ndarray
    tokens: int
    grid: tuple[int, int] | None = None
    merge: int = 1

    @property
    def array(self) -> np.ndarray:
        """The processor's own numbers, float32, made each time it is read."""
        made = np.empty(self.codes.shape, np.float32)
        by_channel, channels = (len(self.codes) if self.grid else 1, len(self.levels), -1), range(len(self.levels))
        codes, target = self.codes.reshape(by_channel), made.reshape(by_channel)
        for c in channels:
            target[:, c] = self.levels[c].take(codes[:, c], mode="wrap")  # a byte is in range: nothing to look for
        return made

    @property
    def length(self) -> int:
        """Patches, 0 for pixels."""
        return len(self.codes) if self.grid else 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes


class Later:
    """A picture whose sizes are known and whose array is made, by ``make``, each time it is read."""

    def __init__(self, picture: Picture, make: Callable[[], np.ndarray]):
        self.tokens, self.grid, self.merge, self.length = picture.tokens, picture.grid, picture.merge, picture.length
        self.shape, self._make = picture.shape, make

    @property
    def array(self) -> np.ndarray:
        return self._make()


def coded(made: Any, images: list[Image.Image], **options: Any) -> dict[str, np.ndarray]:
    """What an image processor makes of images before it normalises them: ``pixel_values`` uint8, and what else it says.

    Raises:
      InputError: it makes other numbers than whole ones from 0 to 255.
    """
    out = made(images, return_tensors="np", do_rescale=False, do_normalize=False, **options)
    values = np.asarray(out["pixel_values"])
    codes = values.astype(np.uint8)
    if not np.array_equal(codes, values):
        raise InputError(
            "expected an image processor that resizes to whole levels from 0 to 255 and then normalises them, found "
            f"{type(made).__name__}, which makes {values.min():g} to {values.max():g}; use the one of the checkpoint's family"
        )
    return {**out, "pixel_values": codes}


def exact(made: Any, image: Image.Image, **options: Any) -> bool:
    """Whether bytes and :func:`levels` are what an image processor makes of an image.

    Raises:
      InputError: as :func:`coded`.
    """
    want = np.asarray(made([image], return_tensors="np", **options)["pixel_values"], np.float32)
    codes, patches = coded(made, [image], **options)["pixel_values"], hasattr(made, "merge_size")
    held = Picture(codes if patches else codes[0], levels(made), 0, (1, 1) if patches else None)
    return np.array_equal(held.array, want if patches else want[0])


def levels(made: Any) -> np.ndarray:
    """``[C,256]`` float32: what an image processor makes of every level of every channel, wherever in an image it is."""
    patches = hasattr(made, "merge_size")
    unit = made.patch_size * made.merge_size if patches else 1
    side = -(-16 // unit) * unit  # 16 x 16 pixels have every level once
    ramp = (np.arange(side * side) % LEVELS).astype(np.uint8).reshape(side, side)
    image = Image.fromarray(np.stack([ramp] * 3, axis=-1))
    as_it_is = {name: False for name in ("do_resize", "do_center_crop", "do_pad") if hasattr(made, name)}
    found = np.asarray(made([image], return_tensors="np", **as_it_is)["pixel_values"], np.float32)
    codes = coded(made, [image], **as_it_is)["pixel_values"]
    by_channel = (len(codes) if patches else 1, 3, -1)
    table = np.empty((3, LEVELS), np.float32)
    for c in range(3):
        table[c][codes.reshape(by_channel)[:, c]] = found.reshape(by_channel)[:, c]
    return table
