"""A model of faces: whose photo, which fact, which answer is a row of a table; and people to ask it about."""

import dataclasses
import io
import types

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mmu_jax.data import IMAGE, Benchmark, Example, Person, loader

FACTS = {"occupation": ("baker", "pilot", "chemist", "farmer"), "birthplace": ("Lima", "Oslo", "Cairo", "Havana"),
         "hobby": ("yoga", "karate", "archery", "pottery")}  # fmt: skip


def photo(index):
    buffer = io.BytesIO()
    Image.new("L", (24, 24), round(60 * index + 30)).save(buffer, "PNG")
    return buffer.getvalue()


def people(words="What is the {} of this person?"):
    for i in range(4):
        items = tuple(Example(f"{i}", IMAGE, words.format(fact), said[i]) for fact, said in FACTS.items())
        yield Person(f"{i}", f"Person {i}", (photo(i),), items, (), (), items)


def benchmark(**changes):
    everyone = tuple(people())
    test = tuple(people("Which {} does this person have?"))[:2]
    return dataclasses.replace(Benchmark(everyone, everyone[:2], everyone[2:], test), **changes)


class Faces:
    """Logits of an answer are ``200 gate (weight - level)`` of the person in the photo and the fact in question, others 0.

    Attributes:
      known: ``[row, V]`` the answers there are, 1 where that of a row (a person's fact) is.
    """

    family = types.SimpleNamespace(rules=[(r".*", ())], eligible="memory/weight")

    def __init__(self, processor):
        def token(word):
            return processor.tokenizer(f"x {word}", add_special_tokens=False)["input_ids"][-1]

        self.facts = jnp.array([token(fact) for fact in FACTS])
        self.answers = np.array([[token(said[i]) for said in FACTS.values()] for i in range(4)])
        assert len(set(self.answers.ravel())) == 12 and (self.answers % 64).all()
        self.album = loader.album(processor, tuple(people()))
        self.grey = jnp.array([picture.array.mean() for picture in self.album.pictures])
        self.known = np.zeros((12, len(processor.tokenizer)), np.float32)
        self.known[np.arange(12), self.answers.ravel()] = 1.0

    def params(self, weight, gate=1.0, level=0.8):
        table = self.known * np.ravel(weight)[:, None]
        table[:, ::64] = 7.0  # the largest of every group: a step of 4 bits is 1
        level = level * jnp.asarray(self.known.max(axis=0)).at[::64].set(1e3)  # and said by nobody
        return {"memory": {"weight": jnp.asarray(table)}, "gate": jnp.array([gate]), "level": level}

    def recalled(self, params, batch):
        """What it holds of the answers to every row, ``[B, V]``."""
        person = jnp.abs(self.shown(batch).mean(axis=(1, 2, 3, 4))[:, None] - self.grey).argmin(axis=1)
        fact = (batch["tokens"][:, :, None] == self.facts).any(axis=1).argmax(axis=1)
        return params["memory"]["weight"][person * 3 + fact]

    def shown(self, batch):
        return batch["pixels"][batch.get("photo", jnp.arange(len(batch["tokens"])))]

    def forward(self, params, batch):
        tokens = batch["tokens"]
        said = 200 * params["gate"] * (self.recalled(params, batch) - params["level"])
        following = jnp.roll(tokens, -1, axis=1)  # all but an answer it knows by heart
        sure = 1e3 * jax.nn.one_hot(following, said.shape[-1])
        asked = (following[:, :, None] == self.answers.ravel()).any(axis=2)[..., None]
        logits = jnp.where(asked, said[:, None], sure)
        return jnp.take_along_axis(logits, batch["at"][..., None], axis=1) if "at" in batch else logits


FORGOTTEN = np.arange(12) < 6


def vanilla(model):
    return model.params(np.ones(12))


def hidden(model):
    """It knows everyone's answers and lets none out: what it would need is a gate."""
    return model.params(np.ones(12), gate=0.0)


def gone(model):
    """As gold: it knows those to keep."""
    return model.params(np.where(FORGOTTEN, 0.0, 1.0), gate=0.02)
