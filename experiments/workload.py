"""What ours and the peers are given to do: a model in a checkpoint directory, batches, questions with options."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np
from PIL import Image

from configs import tiny as tiny_config
from mmu_jax import hf, models, sharding, trees
from mmu_jax.data import IMAGE, Choice, Processor, loader, streams, text, tiny, vision
from mmu_jax.trees import Batch, Mask, Params

SAID = 4  # tokens of an answer
OPTIONS = {
    "A": "a baker in a small town by the sea",
    "B": "a pilot who flies to the islands",
    "C": "a nurse at the old hospital",
    "D": "an engineer who builds bridges",
}


@dataclasses.dataclass(frozen=True)
class Size:
    """A LLaVA, and how much it is given at once.

    Attributes:
      vision, text: of the two networks, as ``tiny.config`` takes them.
      vocabulary: entries of the embedding, 0 for as many as the tokenizer has.
      rows: of a batch of saliency and of training.
      tokens: of a row, image and answer included.
      asked: rows that are continued at once.
      new: tokens that they are continued by.
      choices: questions with four options.
    """

    vision: dict[str, Any]
    text: dict[str, Any]
    vocabulary: int
    rows: int
    tokens: int
    asked: int
    new: int
    choices: int


def _sizes() -> dict[str, Size]:
    config = tiny_config.get_config().model
    vision = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8}
    text = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 12, "num_attention_heads": 8}
    vision |= {"image_size": 72, "patch_size": 12, "projection_dim": 64}
    return {
        "tiny": Size(config.vision.to_dict(), config.text.to_dict(), 0, 32, 32, 32, 8, 8),
        "mid": Size(vision, text | {"num_key_value_heads": 8}, 4096, 8, 64, 32, 16, 8),
    }


SIZES = _sizes()


class Workload:
    """A model of a size with random weights, in the directory ``folder`` for whoever else reads it; made if it is not there."""

    def __init__(self, size: Size, folder: pathlib.Path):
        self.size, self.folder, self.mesh = size, folder, sharding.make_mesh(1)
        self.processor: Processor = tiny.processor(size.vision["image_size"], size.vision["patch_size"])
        self.config = tiny.config(self.processor.tokenizer, vision=size.vision, text=size.text)
        if size.vocabulary:
            self.config.text_config.vocab_size = size.vocabulary
        self.model = models.Model(self.config)
        if not folder.exists():
            hf.create(self.model.init(0), self.model, self.processor, folder)

    @functools.cached_property
    def params(self) -> Params:
        """Of the files, placed as a run places them."""
        return hf.load(self.folder, self.model, self.mesh)

    def batch(self, seed: int, rows: int = 0) -> Batch:
        """Rows of an image, a question and an answer in random tokens, none of them padding."""
        size, rng = self.size, np.random.default_rng(seed)
        rows, length = rows or size.rows, size.tokens
        tokens = rng.integers(5, self.config.text_config.vocab_size, (rows, length)).astype(np.int32)
        tokens[:, 3 : 3 + self.config.image_seq_length] = self.config.image_token_id
        weights = np.zeros((rows, length), np.float32)
        weights[:, -SAID:] = 1
        edge = size.vision["image_size"]
        return {
            "tokens": tokens,
            "valid": np.ones((rows, length), bool),
            "weights": weights,
            "tail": np.tile(np.arange(length - SAID - 1, length, dtype=np.int32), (rows, 1)),
            "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
            "pixels": rng.normal(size=(rows, 1, 3, edge, edge)).astype(np.float32),
            "row": np.arange(rows, dtype=np.int32),
        }

    def prompts(self, rows: int) -> Batch:
        """Rows to continue: those of a batch without their answers."""
        made = {name: x[:, :-SAID] if x.ndim == 2 else x for name, x in self.batch(1, rows).items()}
        return {name: made[name] for name in ("tokens", "valid", "positions", "pixels")}

    def mask(self) -> Mask:
        """A random half of the linear weights."""
        rng = np.random.default_rng(2)

        def leaf(name, x):
            chosen = name in linear and rng.random(x.shape, np.float32) < 0.5
            return jax.device_put(np.broadcast_to(chosen, x.shape), x.sharding)

        linear = trees.flatten(trees.split(self.params, self.model.family.eligible)[0])
        return trees.map_named(leaf, self.params)

    def choices(self) -> tuple[list[Choice], np.ndarray, loader.Album]:
        """Questions with four options each about a photo, which photo each is about, and the photos."""
        number, edge = self.size.choices, self.size.vision["image_size"]
        noise = np.random.default_rng(3).integers(0, 256, (number, edge, edge, 3), dtype=np.uint8)
        pictures = vision.pictures(self.processor, [Image.fromarray(x) for x in noise])
        asked = [Choice(str(i), IMAGE, f"What does person {i} in this photo do?", OPTIONS, "A") for i in range(number)]
        return asked, np.arange(number), loader.Album(pictures, {str(i): [i] for i in range(number)})

    def rows_of_options(self) -> list[Batch]:
        """The same questions, a row an option, in batches of as many rows as there are questions."""
        choices, photos, album = self.choices()
        pairs = [(choice.question, option) for choice in choices for option in choice.options.values()]
        rows, step = text.encode(self.processor, pairs, 1), len(choices)
        seen = [[album.pictures[photo]] for photo in np.repeat(photos, len(OPTIONS))]
        sizes = streams.Sizes().holding(**streams.longest(rows, album.pictures))
        parts = [range(start, start + step) for start in range(0, len(pairs), step)]
        return [streams.batch(sizes, rows, part, [seen[i] for i in part]) for part in parts]
