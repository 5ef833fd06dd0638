"""Photos of every kind: the pixels that transformers' own loader and processor make, or one line with photo and person."""

import contextlib
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor
from transformers.image_utils import load_image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mmu_jax import InputError
from mmu_jax.data import Example, Person, loader, tiny, vision
from mmu_jax.data.sizes import Sizes
from mmu_jax.models.reading import PlainProcessor

WHERE = "photo 3 of person 0042"
RAMP = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))


def noise(width, height, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def moving(kind):
    """Two pictures in a file."""
    return encoded(noise(30, 20), kind, save_all=True, append_images=[noise(30, 20, seed=1)])


def turned(kind, orientation):
    """Red on the left, blue on the right as stored, with an EXIF orientation."""
    image = Image.fromarray(np.concatenate([np.full((40, 30, 3), c, np.uint8) for c in ([255, 0, 0], [0, 0, 255])], 1))
    exif = image.getexif()
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif)


def tiff(values, bits, white_is_zero=False):
    """A grey TIFF of one strip with rows of packed 12- or 16-bit values."""
    height, width = values.shape
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(int)
        strip = b"".join((a << 12 | b).to_bytes(3, "big") for a, b in pairs.tolist())
    else:
        strip = values.astype("<u2").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 122, 277: 1, 278: height}
    tags[279] = len(strip)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + struct.pack("<I", 0) + strip


@pytest.fixture(scope="module")
def processors():
    """One of each family, and a LLaVA that crops what it resized."""
    own = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 256, "longest_edge": 1536})
    llava, cropping = tiny.processor(), tiny.processor()
    cropping.image_processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336)
    return {"llava": llava, "cropping": cropping, "qwen": PlainProcessor(llava.tokenizer, own, "<image>")}


MODES = [
    "L JPEG",
    "CMYK JPEG",
    "CMYK TIFF",
    "P PNG",
    "P BMP",
    "1 PNG",
    "1 TIFF",
    "YCbCr TIFF",
    "RGB JPEG2000",
    "RGB AVIF",
]
OPAQUE = {
    **{f"JPEG turned {i}": turned("JPEG", i) for i in (*range(1, 9), 99)},
    **{f"{kind} turned": turned(kind, 6) for kind in ("PNG", "WEBP", "AVIF", "TIFF")},
    **{name: encoded(noise(30, 20).convert(name.split()[0]), name.split()[1]) for name in MODES},
    **{f"{kind} of two": moving(kind) for kind in ("MPO", "WEBP", "PNG", "TIFF", "GIF")},
    "a profile of nonsense": encoded(noise(30, 20), "JPEG", icc_profile=b"\0" * 200),
    "LAB TIFF": encoded(Image.new("LAB", (8, 8), (50, 20, 20)), "TIFF"),
    "opaque RGBA": encoded(noise(30, 20).convert("RGBA"), "PNG"),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_photos_are_what_transformers_loads(name):
    theirs = load_image(Image.open(io.BytesIO(OPAQUE[name])))
    ours = vision.decode(OPAQUE[name], WHERE)
    assert ours.size == theirs.size and ours.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    if name == "JPEG turned 6":
        assert ours.size == (40, 60) and ours.getpixel((20, 5)) == (254, 0, 0)


def clear(mode, kind, **options):
    image = noise(30, 20, 4)
    image.putalpha(noise(30, 20, 1, seed=1))
    return encoded(image.convert(mode) if mode != "RGBA" else image, kind, **options)


CLEAR = {
    "RGBA PNG": clear("RGBA", "PNG"),
    "LA PNG": clear("LA", "PNG"),
    "RGBA WebP": clear("RGBA", "WEBP", lossless=True),
    "RGBA TIFF": clear("RGBA", "TIFF"),
    "one clear colour in a palette": encoded(noise(30, 20).convert("P"), "PNG", transparency=3),
    "a palette of clear colours": encoded(noise(30, 20).convert("P"), "PNG", transparency=bytes(range(256))),
    "GIF": encoded(noise(30, 20).convert("P"), "GIF", transparency=3),
    "one clear grey": encoded(noise(30, 20, 1), "PNG", transparency=7),
    "one clear RGB": encoded(noise(30, 20), "PNG", transparency=noise(30, 20).getpixel((4, 5))),
}


@pytest.mark.parametrize("family", ["llava", "qwen"])
@pytest.mark.parametrize("name", CLEAR)
def test_what_is_transparent_is_what_the_processor_makes_of_it(processors, family, name):
    processor = processors[family]
    theirs = processor.image_processor([Image.open(io.BytesIO(CLEAR[name]))], return_tensors="np")["pixel_values"]
    ours = vision.pictures(processor, [vision.decode(CLEAR[name], WHERE)])[0].array
    np.testing.assert_allclose(ours.reshape(-1), np.asarray(theirs).reshape(-1), atol=1e-5)


def grey(values, dtype=np.float32):
    return encoded(Image.fromarray(values.astype(dtype)), "TIFF")


WIDE = RAMP.astype(np.uint16) * 257
DEEP = {
    "16-bit PNG": encoded(Image.fromarray(WIDE), "PNG"),
    "16-bit TIFF": encoded(Image.fromarray(WIDE), "TIFF"),
    "16-bit TIFF, big end first": encoded(Image.fromarray(WIDE.astype(">u2")), "TIFF"),
    "16-bit JPEG2000": encoded(Image.fromarray(WIDE), "JPEG2000"),
    "16-bit TIFF, white is zero": tiff(65535 - WIDE, 16, white_is_zero=True),
    "12-bit TIFF": tiff(np.rint(RAMP * (4095 / 255)), 12),
    "32-bit TIFF of 16 bits": grey(WIDE, np.int32),
    "32-bit TIFF of 8 bits": grey(RAMP, np.int32),
    "32-bit TIFF": encoded(Image.fromarray(RAMP.astype(np.int32) * (2**31 // 256)), "TIFF"),
    "float TIFF to 1": grey(RAMP / 255),
    "float TIFF a little over 1": grey(RAMP / 254.5 - 0.001),
    "float TIFF to 255": grey(RAMP),
    "float TIFF to 65535": grey(WIDE),
}


@pytest.mark.parametrize("name", DEEP)
def test_grey_of_more_than_eight_bits_is_scaled(name):
    found = np.asarray(vision.decode(DEEP[name], WHERE), int)
    assert found.shape == (48, 64, 3)
    assert np.abs(found - RAMP[..., None]).max() <= 1


def test_a_clear_grey_of_sixteen_bits_is_white():
    found = np.asarray(vision.decode(encoded(Image.fromarray(WIDE), "PNG", transparency=0), WHERE))
    np.testing.assert_array_equal(found[..., 0], np.where(RAMP == 0, 255, RAMP))


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width, height, extra=b""):
    """A PNG that claims a size and holds nothing."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


WHOLE = {kind: encoded(noise(64, 64), kind) for kind in vision.FORMATS}
BROKEN = {
    "no bytes": (b"", "0 bytes"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", "none of PNG, JPEG"),
    "PostScript": (encoded(noise(8, 8), "EPS"), "none of PNG"),
    "PDF": (b"%PDF-1.7\n" + bytes(99), "none of PNG"),
    "PPM": (encoded(noise(8, 8), "PPM"), "none of PNG"),
    "FITS": (b"SIMPLE  =                    T".ljust(2880), "none of PNG"),
    "icon": (encoded(noise(32, 32), "ICO"), "none of PNG"),
    **{f"half a {kind}": (data[: len(data) // 2], "do not for") for kind, data in WHOLE.items()},
    "a header of PNG": (png(64, 64)[:20], "do not for"),
    "a bomb of text": (png(8, 8, chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2**26)))), "do not for"),
    "a bomb": (png(40_000, 40_000), "ordinary size"),
    "a picture above the warning": (png(10_000, 10_000), "ordinary size"),
    "not a number": (grey(np.where(RAMP == 0, np.nan, RAMP)), "found nan"),
    "infinite": (grey(np.where(RAMP == 0, np.inf, RAMP)), "to inf"),
    "negative": (grey(RAMP / 127.5 - 1), "expected grey from 0"),
    "brighter than any white": (grey(RAMP * 1e6), "expected grey from 0 to 1 or 255"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_photo_is_one_line_with_its_name(name):
    data, said = BROKEN[name]
    with pytest.raises(InputError, match=said) as error:
        vision.decode(data, WHERE)
    assert WHERE in str(error.value) and "\n" not in str(error.value) and "0x" not in str(error.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "JPEG2000", "AVIF"])
@pytest.mark.filterwarnings("ignore:.*EXIF|Truncated|.*corrupt")
def test_damage_anywhere_is_a_picture_or_one_line(kind):
    rng, whole = np.random.default_rng(0), np.frombuffer(encoded(noise(24, 20), kind), np.uint8)
    for _ in range(150):
        damaged = whole.copy()
        damaged[rng.integers(0, min(len(whole), 400), 3)] = rng.integers(0, 256, 3)
        with contextlib.suppress(InputError):
            assert vision.decode(damaged.tobytes(), WHERE).mode == "RGB"


SIDES = [(1, 1), (1, 30), (30, 1), (3, 30), (30, 3), (3, 3), (3, 1), (4, 3), (7, 5), (4100, 20), (20, 4100)]


@pytest.mark.parametrize("size", SIDES)
def test_no_side_is_mistaken_for_channels(processors, size):
    image = noise(*size)
    found = vision.pictures(processors["llava"], [image])[0].array
    plain = np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC), np.float32)
    np.testing.assert_allclose(found, (plain.transpose(2, 0, 1) / 255 - 0.5) / 0.25, atol=1e-5)


@pytest.mark.parametrize("size", [s for s in SIDES if max(s) < 1000])
def test_small_photos_become_patches(processors, size):
    image = noise(*size)
    found = vision.pictures(processors["qwen"], [image])[0]
    h, w = found.grid
    plain = np.asarray(image.resize((4 * w, 4 * h), Image.Resampling.BICUBIC), np.float32) / 255
    mean, std = (np.asarray(getattr(processors["qwen"].image_processor, f"image_{n}")) for n in ("mean", "std"))
    first = found.array.reshape(h * w, 3, 2, 4, 4)[0, :, 0]
    np.testing.assert_allclose(first, ((plain - mean) / std)[:4, :4].transpose(2, 0, 1), atol=1e-5)
    assert found.tokens == h * w // 4 and found.length == h * w


FIXED = {
    "numbers": {"size": 24, "crop_size": 24},
    "shortest edge": {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
    "no crop": {"size": {"height": 24, "width": 24}, "do_center_crop": False},
    "crop alone": {"do_resize": False, "crop_size": 24},
    "padded": {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "size": 24, "crop_size": 24},
}


def read(folder, **fields):
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return AutoImageProcessor.from_pretrained(folder, backend="pil")


@pytest.mark.parametrize("name", FIXED)
def test_every_spelling_of_a_fixed_size(tmp_path, name):
    processor = tiny.processor()
    processor.image_processor = read(tmp_path, **{"image_processor_type": "CLIPImageProcessor"} | FIXED[name])
    images = [noise(30, 40), noise(50, 20), noise(3, 3)]
    found = vision.pictures(processor, images)
    np.testing.assert_array_equal(
        np.stack([p.array for p in found]), processor.image_processor(images, return_tensors="np")["pixel_values"]
    )
    assert [p.tokens for p in found] == [4, 4, 4]


@pytest.mark.parametrize("fields", [{"do_resize": True, "size": 24}, {"do_resize": False}])
def test_a_processor_whose_photos_differ_in_size_is_refused(tmp_path, fields):
    processor = tiny.processor()
    processor.image_processor = read(
        tmp_path, image_processor_type="CLIPImageProcessor", do_center_crop=False, **fields
    )
    with pytest.raises(InputError, match="makes all photos alike"):
        vision.pictures(processor, [noise(8, 8)])


BOTH = {"min_pixels": 256, "max_pixels": 1536}
SPELLINGS = {
    "edges": {"size": {"shortest_edge": 256, "longest_edge": 1536}},
    "pixels in size": {"size": BOTH},
    "pixels at the top": BOTH,
    "pixels twice": {"size": BOTH, **BOTH},
    "top over edges": {"size": {"shortest_edge": 64, "longest_edge": 9999}, **BOTH},
}


@pytest.mark.parametrize("asked, least, most", [(0, 256, 1536), (4096, 256, 1536), (1536, 256, 1536), (1024, 256, 1024), (64, 64, 64)])  # fmt: skip
@pytest.mark.parametrize("name", SPELLINGS)
def test_the_smaller_bound_binds_in_every_spelling(tmp_path, name, asked, least, most):
    made = read(tmp_path, image_processor_type="Qwen2VLImageProcessor", patch_size=4, **SPELLINGS[name])
    assert vision.bounds(made, asked) == (least, most)


@pytest.mark.parametrize(
    "fields, asked, said",
    [
        ({}, 63, "found max_pixels=63; raise max_pixels to 64"),
        ({"size": {"shortest_edge": 16, "longest_edge": 32}}, 0, "raise size in preprocessor_config.json to 64"),
        ({"size": {"shortest_edge": 24}}, 0, "expected size with shortest_edge and longest_edge"),
        ({"do_resize": False}, 0, "do_resize=False"),
    ],
)
def test_bounds_that_hold_no_image_are_refused(fields, asked, said):
    with pytest.raises(InputError, match=said):
        vision.bounds(Qwen2VLImageProcessorPil(patch_size=4, **fields), asked)


@pytest.mark.parametrize("size", [(20, 20), (20, 21), (21, 37), (1, 1), (8, 100), (300, 200), (640, 60), (17, 5)])
@pytest.mark.parametrize("most", [1024, 1500, 2048])
def test_no_photo_is_larger_than_the_bound(most, size):
    own = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 4096, "longest_edge": 16384})
    processor = PlainProcessor(None, own, "")
    found = vision.pictures(processor, [noise(*size)], most)[0]
    assert vision.measure(processor, size, most).patches == found.length <= most / 16


@pytest.mark.parametrize("size", [(20, 21), (300, 20), (640, 480)])
def test_without_a_bound_of_ours_the_checkpoint_s_is_followed_to_the_pixel(size):
    own = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 1024, "longest_edge": 1024})
    found = vision.pictures(PlainProcessor(None, own, ""), [noise(*size)], 9999)[0]
    np.testing.assert_array_equal(found.array, own([noise(*size)], return_tensors="np")["pixel_values"])


def person(*photos):
    return Person("0042", "Ada", photos, (Example("0042", "Image_Textual", "Who is this?", "Ada"),), (), (), ())


GOOD = encoded(noise(24, 24), "PNG")
LARGE = encoded(noise(90, 90), "PNG")
LINE = encoded(Image.new("L", (300_000, 1)), "PNG")
UNFIT = {
    "a stripe": ("qwen", encoded(noise(4100, 20), "PNG"), 0, {}, "whose shape the processor takes, found 4100 x 20"),
    "upright": ("qwen", encoded(noise(20, 4100), "PNG"), 0, {}, "whose shape the processor takes, found 20 x 4100"),
    "too thin for the bound": ("qwen", encoded(noise(1500, 10), "PNG"), 512, {}, "can be resized to 512 pixels"),
    "too many patches": ("qwen", LARGE, 0, {"patches": (16, 48)}, "at most 48 patches, found one of 64"),
    "too many tokens": ("qwen", LARGE, 0, {"tokens": (8, 12)}, "at most 12 tokens, found one of 16"),
    "a stripe for LLaVA": ("cropping", LINE, 0, {}, "ordinary shape, found 300000 x 1"),
    "damaged": ("llava", GOOD[:60], 0, {}, "expected an image that decodes"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_shown_is_found_with_photo_and_person(processors, name):
    family, photo, most, sizes, said = UNFIT[name]
    with pytest.raises(InputError, match=f"{said}.* photo 1 of person 0042"):
        loader.examine(processors[family], [person(GOOD, photo)], most, Sizes(**sizes))
    loader.examine(processors[family], [person(GOOD)], 0, Sizes(**sizes))
    if not sizes:
        with pytest.raises(InputError, match=f"{said}.* photo 1 of person 0042"):
            loader.album(processors[family], (person(GOOD, photo),), most)
