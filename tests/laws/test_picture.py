"""A picture is held as bytes, and reads as the image processor's own numbers, whatever it does to a level."""

import json
import types

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from mmu_jax import InputError, hf
from mmu_jax.data import picture, vision

OPENAI = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
KINDS = {
    "clip": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28}, "crop_size": 28},
    "qwen": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 64, "longest_edge": 4096},
        "patch_size": 6,
        "temporal_patch_size": 2,
        "merge_size": 2,
    },
}
NORMALISED = {
    "as OpenAI": OPENAI,
    "not at all": {"do_rescale": False, "do_normalize": False},
    "rescaled alone": {"do_normalize": False},
    "normalised alone": {"do_rescale": False, "image_mean": [100.0] * 3, "image_std": [3.0] * 3},
    "by an odd factor": OPENAI | {"rescale_factor": 1 / 127.3},
}


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalised", NORMALISED)
def test_a_picture_reads_as_the_processors_numbers(tmp_path, kind, normalised):
    fields = KINDS[kind] | NORMALISED[normalised]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    made = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    images = [noise(30, 40), noise(61, 47)]
    processor = types.SimpleNamespace(image_processor=made, patch_size=4, vision_feature_select_strategy="default")
    found = vision.pictures(processor, images)
    want = np.asarray(made(images, return_tensors="np")["pixel_values"], np.float32)
    got = np.concatenate([p.array for p in found]) if kind == "qwen" else np.stack([p.array for p in found])
    np.testing.assert_array_equal(got, want)
    assert all(p.codes.dtype == np.uint8 and p.nbytes == p.array.size for p in found)


def test_levels_by_hand():
    class Halves:
        """A processor of channels that are 2 x, x - 1 and x at level x."""

        def __call__(self, images, return_tensors, do_rescale=True, do_normalize=True, **sizes):
            pixels = np.stack([np.asarray(image, np.float32).transpose(2, 0, 1) for image in images])
            scale, shift = np.array([2.0, 1, 1]), np.array([0.0, 1, 0])
            if do_rescale and do_normalize:
                pixels = pixels * scale[:, None, None] - shift[:, None, None]
            return {"pixel_values": pixels}

    table = picture.levels(Halves())
    assert table[:, [0, 7, 255]].tolist() == [[0, 14, 510], [-1, 6, 254], [0, 7, 255]]


class Spread:
    """A processor that makes levels beyond those of a byte, or, ``uneven``, other numbers of a level in the left half."""

    def __init__(self, uneven):
        self.uneven = uneven

    def __call__(self, images, return_tensors, do_rescale=True, do_normalize=True, **sizes):
        pixels = np.stack([np.asarray(image, np.float32).transpose(2, 0, 1) for image in images])
        if not self.uneven:
            return {"pixel_values": pixels + 25.0}
        if do_rescale and do_normalize:
            pixels[..., : pixels.shape[-1] // 2] *= 2.0
        return {"pixel_values": pixels}


def test_what_is_no_byte_is_refused():
    with pytest.raises(InputError, match="whole levels from 0 to 255 .* found Spread, which makes 25 to 280"):
        picture.coded(
            Spread(uneven=False), [Image.fromarray(np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 2, 3)))]
        )


def test_a_processor_that_is_no_bytes_is_refused_as_it_is_read(whole, monkeypatch):
    monkeypatch.setattr(picture, "exact", lambda *given, **more: False)
    for family in ("llava", "qwen2_vl"):
        with pytest.raises(
            InputError, match="normalises a level of a channel alike all over an image, found that .*Processor"
        ):
            hf.read_processor(whole[family])


def test_levels_that_are_not_alike_all_over_an_image_are_seen(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(KINDS["clip"] | OPENAI))
    made = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert picture.exact(made, noise(28, 28)) and not picture.exact(Spread(uneven=True), noise(28, 28))
