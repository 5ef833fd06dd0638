"""Host geometry of images: encoded bytes -> the pixels of the checkpoint's own processor."""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmu_jax import InputError


def decode(encoded: bytes, where: str) -> Image.Image:
    """PNG, JPEG, ... bytes -> RGB. ``where`` names the image in the error."""
    try:
        return Image.open(io.BytesIO(encoded)).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(
            f"expected an image that decodes, found {len(encoded)} bytes that do not for {where} ({error}); replace the file"
        ) from error


@dataclasses.dataclass(frozen=True)
class Picture:
    """One image as the checkpoint's own processor makes it.

    Attributes:
      array: ``[C,h,w]`` pixels, or ``[N,F]`` patches where images keep their own size (Qwen2-VL).
      tokens: image tokens it becomes.
      grid: rows and columns of its patches, None for pixels.
      merge: side of the square of patches that becomes one token.
    """

    array: np.ndarray
    tokens: int
    grid: tuple[int, int] | None = None
    merge: int = 1

    @property
    def length(self) -> int:
        """Patches, 0 for pixels."""
        return len(self.array) if self.grid else 0


class Later:
    """A picture whose sizes are known and whose array is made, by ``make``, each time it is read."""

    def __init__(self, picture: Picture, make: Callable[[], np.ndarray]):
        self.tokens, self.grid, self.merge, self.length = picture.tokens, picture.grid, picture.merge, picture.length
        self._make = make

    @property
    def array(self) -> np.ndarray:
        return self._make()


def pictures(processor: Any, images: list[Image.Image], max_pixels: int = 0) -> list[Picture]:
    """Resized, cropped and normalised by the processor; ``max_pixels`` bounds images that keep their own size."""
    made = processor.image_processor
    if not hasattr(made, "merge_size"):
        arrays = np.asarray(made(images, return_tensors="np")["pixel_values"], np.float32)
        return [Picture(array, _image_tokens(processor, array)) for array in arrays]
    size = {"shortest_edge": made.size["shortest_edge"], "longest_edge": max_pixels or made.size["longest_edge"]}
    out = made(images, return_tensors="np", size=size)
    grids = [(int(h), int(w)) for _, h, w in out["image_grid_thw"]]
    ends = np.cumsum([h * w for h, w in grids])
    arrays = np.split(np.asarray(out["pixel_values"], np.float32), ends[:-1])
    merge = made.merge_size
    return [Picture(a, h * w // merge**2, (h, w), merge) for a, (h, w) in zip(arrays, grids, strict=True)]


def _image_tokens(processor: Any, array: np.ndarray) -> int:
    patches = (array.shape[-2] // processor.patch_size) * (array.shape[-1] // processor.patch_size)
    return patches + (
        processor.num_additional_image_tokens if processor.vision_feature_select_strategy == "full" else 0
    )


def cells(picture: Picture) -> np.ndarray:
    """Row and column of every patch of a picture, ``[N,2]``, in the processor's order: square by square of ``merge``."""
    (h, w), m = picture.grid, picture.merge
    table = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), axis=-1)
    return table.reshape(h // m, m, w // m, m, 2).transpose(0, 2, 1, 3, 4).reshape(-1, 2).astype(np.int32)


def arrays(rows: list[list[Picture]], sizes: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    """The pictures of every row -> ``pixels``, or ``patches, grid, segment`` padded to one of ``sizes`` (``mmu_jax.data``)."""
    made = [[(picture, picture.array) for picture in row] for row in rows]
    first, array = next(pair for row in made for pair in row)
    if first.grid is None:
        pixels = np.zeros((len(rows), max(map(len, rows)), *array.shape), np.float32)
        for target, row in zip(pixels, made, strict=True):
            for i, (_, array) in enumerate(row):
                target[i] = array
        return {"pixels": pixels}
    length = fit(max(sum(p.length for p in row) for row in rows), sizes, "patches", 4)
    patches = np.zeros((len(rows), length, array.shape[1]), np.float32)
    grid = np.zeros((len(rows), length, 2), np.int32)
    segment = np.full((len(rows), length), -1, np.int32)
    for b, row in enumerate(made):
        start = 0
        for i, (picture, array) in enumerate(row):
            part = slice(start, start + len(array))
            patches[b, part], grid[b, part], segment[b, part] = array, cells(picture), i
            start = part.stop
    return {"patches": patches, "grid": grid, "segment": segment}


def fit(length: int, sizes: tuple[int, ...], what: str, multiple: int = 8) -> int:
    """The padded length: the smallest of ``sizes`` that holds ``length``, without sizes the next ``multiple``.

    Few distinct lengths, so few compilations.

    Raises:
      InputError: every size is too small.
    """
    if not sizes:
        return -(-length // multiple) * multiple
    if length > max(sizes):
        raise InputError(
            f"expected rows of at most {max(sizes)} {what}, found one of {length}; add a larger size to "
            f"config.data.{what}" + (" or lower config.data.max_pixels" if what == "patches" else "")
        )
    return min(size for size in sizes if size >= length)


def positions(valid: np.ndarray, is_image: np.ndarray, rows: list[list[Picture]]) -> np.ndarray:
    """Positions of the tokens of every row, wherever the padding is; 0 on padding.

    ``[B,T]``: 0, 1, 2, ... For pictures that keep their own size ``[B,3,T]``, M-RoPE (arXiv 2409.12191): text counts alike
    on all three axes; an image stands at one time, its tokens at their row and column, and text goes on after the
    largest of them.
    """
    plain = np.where(valid, np.cumsum(valid, axis=1) - 1, 0).astype(np.int32)
    if not any(picture.grid for row in rows for picture in row):
        return plain
    out = np.zeros((len(valid), 3, valid.shape[1]), np.int32)
    for b, row in enumerate(rows):
        index = np.flatnonzero(valid[b])
        line = np.tile(np.arange(len(index)), (3, 1))
        starts = np.flatnonzero(is_image[b][index])
        for picture in row:
            (h, w), m = picture.grid, picture.merge
            at, starts = starts[0], starts[picture.tokens :]
            cell = np.indices((h // m, w // m)).reshape(2, -1)
            here = line[0, at]
            line[:, at : at + picture.tokens] = here + np.concatenate([np.zeros((1, picture.tokens), int), cell])
            rest = line[:, at + picture.tokens :]
            rest += here + max(h, w) // m - (rest[:, :1] if rest.size else 0)
        out[b][:, index] = line
    return out
