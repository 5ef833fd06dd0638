"""The processor of a checkpoint directory: tokenizer, chat template and image processor, in agreement with its config."""

import pathlib
from typing import Any

import numpy as np
from PIL import Image

from mmu_jax import InputError, models
from mmu_jax.data import Processor, picture, text, vision
from mmu_jax.directory import Path
from mmu_jax.files import read_object
from mmu_jax.models import config as configs
from mmu_jax.models.layers import Config
from mmu_jax.models.reading import Translated

TOKENIZER, GENERATION = "tokenizer_config.json", "generation_config.json"
# What is read with the processor; a file that is no JSON is named before a library stumbles over it.
FILES = (
    "tokenizer.json",
    TOKENIZER,
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.json",
)


def read_processor(path: Path) -> Processor:
    """The processor (tokenizer, chat template, PIL image processor) of a checkpoint directory.

    The template is the processor's own before the tokenizer's, of named ones the ``default``. Padding means nothing, so a
    pad token that is absent, or beyond the embedding, is replaced.

    Raises:
      InputError: a file is damaged; config and processor do not agree; a token is beyond the embedding; or there is no
        chat template that takes a picture.
    """
    path = pathlib.Path(path)
    config = configs.read(path)
    for name in FILES:
        if (path / name).exists():
            read_object(path / name, "a file of the processor")
    family = models.MODELS[config.model_type]
    processor = family.processor(path, config)
    _check_vocabulary(processor.tokenizer, config, path)
    _check_image_token(processor, config, path)
    if odd := [pair for pair in family.agreements(processor, config) if pair[1] != pair[3]]:
        said = "; ".join(
            f"{ours}={a!r} of the processor and {theirs}={b!r} of config.json" for ours, a, theirs, b in odd
        )
        raise InputError(
            f"expected a processor that agrees with the config, found {said} in {path}; copy both from one checkpoint"
        )
    _check_pixels(processor.image_processor, config.vision_config, path)
    _check_template(processor, path)
    return processor


def _check_vocabulary(tokenizer: Any, config: Config, path: pathlib.Path) -> None:
    """Refuses tokens that have no row in the embedding; of a pad token among them another takes the place."""
    rows, longest = config.text_config.vocab_size, tokenizer.model_max_length
    if not isinstance(longest, int | float):
        raise InputError(f"expected a number for model_max_length in {path / TOKENIZER}, found {longest!r}; correct it")
    beyond = {token: id for token, id in tokenizer.get_vocab().items() if id >= rows}
    pad = tokenizer.pad_token
    if others := sorted(set(beyond) - {pad}, key=beyond.get):
        raise InputError(
            f"expected tokens below text_config.vocab_size={rows} of config.json, found {len(others)} beyond in the tokenizer of "
            f"{path}: {', '.join(f'{token!r} is {beyond[token]}' for token in others[:4])}{', ...' if len(others) > 4 else ''}; "
            "remove them there or resize the embedding"
        )
    if pad is None or pad in beyond:
        end = tokenizer.eos_token
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0) if end is None or end in beyond else end


def _check_image_token(processor: Processor, config: Config, path: pathlib.Path) -> None:
    token, vocabulary = processor.image_token, processor.tokenizer.get_vocab()
    if vocabulary.get(token) != config.image_token_id:
        found = f"{token!r} is {vocabulary[token]}" if token in vocabulary else f"{token!r} is no token"
        raise InputError(
            f"expected the image token of config.json, image_token_id={config.image_token_id}, in the tokenizer, found that "
            f"{found} in {path}; no picture would be seen: copy config and tokenizer from one checkpoint"
        )


def _check_pixels(images: Any, c: Config, path: pathlib.Path) -> None:
    """Shows the image processor a black and a white square: what it makes of them must be numbers, and tell them apart."""
    for key in ("size", "crop_size"):
        stated = {k: v for k, v in dict(getattr(images, key, None) or {}).items() if v is not None}
        if any(type(v) is not int or v < 1 for v in stated.values()):
            raise InputError(
                f"expected whole numbers of pixels for {key} of the image processor, found {stated} in {path}; copy "
                "preprocessor_config.json again"
            )
    switches = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
    odd = {k: v for k in switches if (v := getattr(images, k, None)) not in (True, False, None) or type(v) is int}
    if not isinstance(filter := getattr(images, "resample", None), int | None):
        odd["resample"] = filter
    if odd:
        raise InputError(
            f"expected true or false for {', '.join(switches)} and a number for resample of the image processor, found {odd} "
            f"in {path}; copy preprocessor_config.json again"
        )
    alike = hasattr(c, "image_size")
    side, size = (c.image_size if alike else 2 * c.patch_size * c.spatial_merge_size), {}
    if alike:
        vision.refuse_stripes(images, side, side, f"a square in {path}")
    else:  # its own bounds may be far from the smallest
        size = {"size": dict.fromkeys(("shortest_edge", "longest_edge"), side**2)}
    with Translated(f"an image processor in {path}"):
        shown = [Image.new("RGB", (side, side), colour) for colour in ("black", "white")]
        black, white = (np.asarray(images(image, return_tensors="np", **size)["pixel_values"]) for image in shown)
    if not np.isfinite([black, white]).all() or not (white > black).all():
        raise InputError(
            "expected an image processor that makes finite pixels, white ones above black ones, found "
            f"image_mean={images.image_mean}, image_std={images.image_std}, rescale_factor={images.rescale_factor} in {path}; "
            "copy preprocessor_config.json again"
        )
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    if not picture.exact(images, noise, **size):
        raise InputError(
            "expected an image processor that normalises a level of a channel alike all over an image, found that "
            f"{type(images).__name__} in {path} does not; use the one of the checkpoint's family"
        )


def _check_template(processor: Processor, path: pathlib.Path) -> None:
    """Renders a question about a picture, and one about none, as training and evaluation do."""
    try:
        for images in (1, 0):
            text.encode(processor, [("Who is this?", "Ada Becker")], images)
            text.encode_prompts(processor, ["Who is this?"], images)
    except InputError as error:
        raise InputError(f"{error} ({path})") from error


def stop_tokens(path: Path, processor: Processor) -> tuple[int, ...]:
    """Token ids that end an answer: what training teaches to end a turn, and the ends of tokenizer and generation config.

    Raises:
      InputError: generation_config.json is damaged, or nothing ends a turn.
    """
    file, end = pathlib.Path(path) / GENERATION, processor.tokenizer.eos_token_id
    stop = [*text.end_of_turn(processor), *([] if end is None else [end])]
    if file.exists():
        found = read_object(file, "the generation config of a model").get("eos_token_id")
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(type(token) is int and token >= 0 for token in ids):
            raise InputError(f"expected token ids for eos_token_id in {file}, found {found!r}; correct it")
        stop += ids
    return tuple(dict.fromkeys(stop))
