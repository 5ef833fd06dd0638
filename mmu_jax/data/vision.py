"""Host geometry of images: encoded bytes -> the pixels of the checkpoint's own processor."""

import io
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


def pixels(processor: Any, images: list[Image.Image]) -> np.ndarray:
    """Resized, cropped and normalised by the processor: ``[N, C, h, w]`` float32."""
    return np.asarray(processor.image_processor(images, return_tensors="np")["pixel_values"], np.float32)


def image_tokens(processor: Any, array: np.ndarray) -> int:
    """How many image tokens one image of ``pixels`` becomes."""
    patches = (array.shape[-2] // processor.patch_size) * (array.shape[-1] // processor.patch_size)
    return patches + (
        processor.num_additional_image_tokens if processor.vision_feature_select_strategy == "full" else 0
    )
