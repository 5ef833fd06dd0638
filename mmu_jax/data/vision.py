"""Host geometry of images: encoded bytes -> the pixels of the checkpoint's own processor."""

import dataclasses
import io
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from mmu_jax import InputError, sharding
from mmu_jax.data import Processor
from mmu_jax.data.picture import Picture, coded, levels
from mmu_jax.data.sizes import fit

# What photographs come in; Pillow's other readers (PostScript, fonts, maps, ...) run programs or hold no photographs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF")
# What Pillow's plugins raise on a broken file; RuntimeError is AVIF's.
FAULTS = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, RuntimeError, struct.error)
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITES = {"I": (255, 65535, 2**31 - 1), "F": (1, 255, 65535)}  # the white levels that deep grey files are written with
EDGES = (("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels"))  # the spellings of the bounds in files
_OPENING = threading.Lock()  # what becomes of a warning is decided for all threads
LARGEST = 2**27  # pixels of a resized photo: only a stripe needs more, and it would take gigabytes


def decode(encoded: bytes, where: str) -> Image.Image:
    """The bytes of a photo -> RGB as a viewer shows it: upright, on white, the first frame. ``where`` names it in errors.

    The pixels are those of ``transformers.image_utils.load_image`` and the RGB conversion of the image processor, which
    puts what is transparent on white. ICC profiles are ignored, as there. Grey of more than 8 bits, which both of them
    clip to white, is scaled.

    Raises:
      InputError: it is none of ``FORMATS``, is cut off or damaged, or would unpack to more pixels than Pillow allows.
    """
    try:
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        image.load()
        # Not ImageOps.exif_transpose: it also writes the EXIF block anew, which fails on odd tags.
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
        image = image if image.mode[0] in "IF" else _on_white(image)
    except BOMBS as error:
        raise InputError(f"expected a photo of ordinary size, found {error} for {where}; shrink it") from error
    except FAULTS as error:
        why = (
            f"none of {', '.join(FORMATS)}"
            if isinstance(error, UnidentifiedImageError)
            else " ".join(str(error).split())
        )
        raise InputError(
            f"expected an image that decodes, found {len(encoded)} bytes that do not for {where} ({why}); replace the file"
        ) from error
    image = image if image.mode == "RGB" else _grey(image, where)
    return image if turn is None else image.transpose(turn)


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _grey(image: Image.Image, where: str) -> Image.Image:
    """Grey of more than 8 bits -> RGB, white at 255.

    16-bit files say how much white is; in 32-bit and float files it is the least usual level that holds every pixel.
    """
    values, tags = np.asarray(image, np.float32), getattr(image, "tag_v2", {})
    low, high = float(values.min()), float(values.max())
    levels = WHITES.get(image.mode) or (2 ** tags.get(ExifTags.Base.BitsPerSample, (16,))[0] - 1,)
    white = next((level for level in levels if high <= 1.1 * level), None)
    if white is None or not low >= -0.1 * white:
        raise InputError(
            f"expected grey from 0 to {' or '.join(map(str, levels))}, found {low:g} to {high:g} for {where}; save it as PNG"
        )
    scaled = np.clip(np.rint(values * (255 / white)), 0, 255)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero
        scaled = 255 - scaled
    clear = values == image.info.get("transparency")
    return Image.fromarray(np.where(clear, 255, scaled).astype(np.uint8)).convert("RGB")


def pictures(
    processor: Processor,
    images: Sequence[Image.Image],
    max_pixels: int = 0,
    names: Sequence[str] = (),
    shades: np.ndarray | None = None,
) -> list[Picture]:
    """Resized, cropped and normalised by the processor.

    ``max_pixels`` bounds images that keep their own size, where the checkpoint's own bound is not smaller; ``names`` name
    the images in errors; ``shades`` are ``picture.levels`` of the image processor, where they are known.

    Raises:
      InputError: as :func:`measure`.
    """
    made, names = processor.image_processor, names or [f"image {i}" for i in range(len(images))]
    sizes = [measure(processor, image.size, max_pixels, name) for image, name in zip(images, names, strict=True)]
    shades = levels(made) if shades is None else shades
    if not _keeps_size(made):
        codes = coded(made, images)["pixel_values"]
        return [Picture(own, shades, size.tokens) for own, size in zip(codes, sizes, strict=True)]
    return [_patches(made, image, size, shades) for image, size in zip(images, sizes, strict=True)]


def _keeps_size(made: Any) -> bool:
    """Whether an image processor leaves images their own size (Qwen2-VL) or makes all alike (CLIP)."""
    return hasattr(made, "merge_size")


def _patches(made: Any, image: Image.Image, size: "Measure", shades: np.ndarray) -> Picture:
    out = coded(made, [image], size={"shortest_edge": size.least, "longest_edge": size.most})
    _, h, w = (int(n) for n in out["image_grid_thw"][0])
    return Picture(out["pixel_values"], shades, size.tokens, (h, w), made.merge_size)


@dataclasses.dataclass(frozen=True)
class Measure:
    """What a photo becomes: image tokens and patches (0 for pixels), resized to between ``least`` and ``most`` pixels."""

    tokens: int
    patches: int = 0
    least: int = 0
    most: int = 0


def measure(processor: Processor, size: tuple[int, int], max_pixels: int = 0, where: str = "an image") -> Measure:
    """What a photo of ``size`` (width, height) becomes, by geometry alone. ``where`` names it in errors.

    Raises:
      InputError: the processor refuses its shape, or it does not fit ``max_pixels``, or no image would.
    """
    made, (width, height) = processor.image_processor, size
    if not _keeps_size(made):
        refuse_stripes(made, width, height, where)
        return Measure(_image_tokens(processor, *_box(made)))
    least, most = bounds(made, max_pixels)
    n = _count(made, size, least, most, where)
    if _ours(made, most) and n * made.patch_size**2 > most:  # sides are rounded up where an image is enlarged: do not
        least = 1
        n = _count(made, size, least, most, where)
    if _ours(made, most) and n * made.patch_size**2 > most:
        raise InputError(
            f"expected a photo that can be resized to {most} pixels, found {width} x {height} for {where}, which keeps "
            f"{n * made.patch_size**2}; crop it or raise max_pixels"
        )
    return Measure(n // made.merge_size**2, n, least, most)


def bounds(made: Any, max_pixels: int = 0) -> tuple[int, int]:
    """Least and most pixels of a resized image: the checkpoint's, or ``max_pixels`` where that is smaller.

    Raises:
      InputError: the processor states none, or they are less than one image token.
    """
    least, most = _stated(made)
    if not least or not most or not made.do_resize:
        raise InputError(
            "expected size with shortest_edge and longest_edge (or min_pixels and max_pixels) in preprocessor_config.json, "
            f"found {dict(made.size)} and do_resize={made.do_resize}; copy the checkpoint's own file"
        )
    bound = min(most, max_pixels or most)
    side = made.patch_size * made.merge_size
    if bound < side**2:
        raise InputError(
            f"expected room for one image token of {side} x {side} pixels, found max_pixels={bound}; raise "
            f"{'max_pixels' if bound < most else 'size in preprocessor_config.json'} to {side**2} or more"
        )
    return min(least, bound), bound


def _stated(made: Any) -> tuple[int | None, int | None]:
    """The bounds of a processor in either spelling."""
    size = made.size
    return tuple(size.get(edge) or size.get(pixels) for edge, pixels in EDGES)


def _ours(made: Any, most: int) -> bool:
    return most < _stated(made)[1]


def _count(made: Any, size: tuple[int, int], least: int, most: int, where: str) -> int:
    """Patches of a photo."""
    width, height = size
    try:
        return made.get_number_of_image_patches(height, width, {"min_pixels": least, "max_pixels": most})
    except ValueError as error:
        raise InputError(
            f"expected a photo whose shape the processor takes, found {width} x {height} for {where} ({error}); crop it"
        ) from error


def _box(made: Any) -> tuple[int, int]:
    """Height and width of every image of a processor that makes all alike."""
    box = made.crop_size if made.do_center_crop else made.size if made.do_resize else {}
    if not box or not box.get("height") or not box.get("width"):
        raise InputError(
            "expected a processor that makes all photos alike (crop_size, or size with height and width), found "
            f"do_center_crop={made.do_center_crop}, size={dict(made.size or {})}; copy the checkpoint's own "
            "preprocessor_config.json"
        )
    return box["height"], box["width"]


def refuse_stripes(made: Any, width: int, height: int, where: str) -> None:
    """A shape whose resized or padded photo would not fit in memory, before it is cropped.

    Raises:
      InputError: that; the photo is named by ``where``.
    """
    long, short = max(width, height), min(width, height)
    size = dict(made.size or {}) if made.do_resize else {}
    side, box = size.get("shortest_edge"), (size.get("height") or 0) * (size.get("width") or 0)
    pixels = long**2 if getattr(made, "do_pad", None) else side**2 * long // short if side else box
    if pixels > LARGEST:
        raise InputError(
            f"expected a photo of ordinary shape, found {width} x {height} for {where}, {pixels} pixels once resized; crop it"
        )


def _image_tokens(processor: Processor, height: int, width: int) -> int:
    patches = (height // processor.patch_size) * (width // processor.patch_size)
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
    first = next(picture for row in rows for picture in row)
    if first.grid is None:

        def show(target, row):
            for i, picture in enumerate(rows[row]):
                target[i] = picture.array

        return {"pixels": sharding.rows((len(rows), max(map(len, rows)), *first.shape), show)}
    length = fit(max(sum(p.length for p in row) for row in rows), sizes, "patches", 4)
    grid = np.zeros((len(rows), length, 2), np.int32)
    segment = np.full((len(rows), length), -1, np.int32)
    for b, row in enumerate(rows):
        for i, (picture, part) in enumerate(_laid(row)):
            grid[b, part], segment[b, part] = cells(picture), i

    def lay(target, row):
        for picture, part in _laid(rows[row]):
            target[part] = picture.array

    return {"patches": sharding.rows((len(rows), length, first.shape[1]), lay), "grid": grid, "segment": segment}


def _laid(row: list[Picture]) -> Iterator[tuple[Picture, slice]]:
    """Every picture of a row and its patches, one after the other."""
    start = 0
    for picture in row:
        yield picture, slice(start, start + picture.length)
        start += picture.length


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
