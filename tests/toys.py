"""Random batches, masks and small runs."""

import dataclasses
import re
import types
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import checkpoint, curvature, lora, methods, sharding, train, trees
from mmu_jax.data import IMAGE
from mmu_jax.data.slices import STREAMS
from mmu_jax.plan import Plan


def make_batch(rows=8, length=24, images=1, image_tokens=4, seed=0, side="right"):
    """A random batch: every row with ``images`` images, answers in the last tokens, two rows padded."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(6, 96, (rows, length)).astype(np.int32)
    valid = np.ones((rows, length), bool)
    pad = slice(length - 3, length) if side == "right" else slice(0, 3)
    valid[1::3, pad] = False
    for row in range(rows if images else 0):
        start = 4 + rng.integers(0, 3)
        tokens[row, start : start + images * image_tokens] = 5
    weights = np.zeros((rows, length), np.float32)
    weights[:, -7:-2] = 1.0
    weights *= valid
    positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0).astype(np.int32)
    batch = {"tokens": tokens, "valid": valid, "weights": weights, "positions": positions}
    batch["row"] = np.arange(rows, dtype=np.int32)
    if images:
        batch["pixels"] = rng.normal(size=(rows, images, 3, 24, 24)).astype(np.float32)
    return batch


@dataclasses.dataclass
class Batches:
    """A stream of random batches: what ``train.fit`` needs of one."""

    name: str
    steps: int
    seed: int
    images: int = 1
    poison: int = -1

    def batch(self, step):
        batch = make_batch(images=self.images, seed=self.seed * 1000 + step)
        batch["ref_logps"] = np.full(8, -9.0, np.float32)
        if step == self.poison:
            batch["pixels"] = np.full_like(batch["pixels"], np.nan)
        return batch

    def epoch(self):
        return map(self.batch, range(self.steps))

    def looks(self, devices=1):
        return self.epoch()

    def describe(self, batch):
        return f"{self.name} rows {batch['row'].tolist()}"


def streams(**changes):
    """One of every row of ``STREAMS``, as long as the people whose it is are many, nobody's in between."""
    steps = {"forget": 2, "retain": 8, "full": 4, "nobody": 3}
    found = {
        name: Batches(name, steps[part.who], seed, int(part.kind == IMAGE))
        for seed, (name, part) in enumerate(STREAMS.items(), 1)
    }
    return found | changes


def random_mask(model, params, seed=0):
    def leaf(name, p):
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        chosen = jax.random.bernoulli(key, 0.4, p.shape) & bool(re.fullmatch(model.family.eligible, name))
        return jax.device_put(chosen, p.sharding)

    return trees.map_named(leaf, params)


def basis(rng, *lead, width, count):
    """Orthonormal columns, ``[*lead, width, count]`` float32."""
    return np.linalg.qr(rng.normal(size=(*lead, width, width)))[0][..., :count].astype(np.float32)


def rows_of_a_device(x):
    """How many of the rows of inputs a device holds."""
    return x.sharding.shard_shape(x.shape)[-2]


def dealt_rows(weight, mesh):
    """How many it should: all devices that hold a part of the weight share them, where the inputs divide by so many."""
    held, inputs = weight.sharding.shard_shape(weight.shape), weight.shape[-1]
    outs, ins = (weight.shape[axis] // held[axis] for axis in (-2, -1))
    return inputs // (outs * ins) if inputs % (outs * ins) == 0 else inputs // ins


def random_factors(model, params, seed=0):
    """A third of the inputs of every linear weight, and in the first layer one less; None for a patch embedding."""
    part, _ = trees.split(params, model.family.eligible)

    def leaf(name, p):
        if p.ndim - trees.stacked(name) > 2:
            return None
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        made = basis(rng, *p.shape[:-2], width=p.shape[-1], count=p.shape[-1] // 3)
        strength = np.ones((*p.shape[:-2], made.shape[-1]), np.float32)
        if strength.ndim > 1:
            strength[0, -1] = 0.0
        return curvature.Factor(jnp.asarray(made), jnp.asarray(strength))

    return trees.map_named(leaf, part)


def run(model, params, name, *, iterations=8, where=None, mesh=None, data=None, learning_rate=1e-3, **numbers):
    data, method = data or streams(), methods.METHODS[name]
    limits = {key: numbers.pop(key) for key in ("mask", "factors", "watched", "programs") if key in numbers}
    plan = dataclasses.replace(
        Plan.of(method, data, 1.0, learning_rate=learning_rate, **numbers), iterations=iterations
    )
    kept = None if where is None else checkpoint.Checkpoints(where)
    params = params if not plan.trainable.consumes else jax.tree.map(jnp.copy, params)  # fit consumes what it trains
    options = {"mesh": mesh or sharding.make_mesh(1), "checkpoints": kept, "save_every": 5, "report_every": 3}
    return train.fit(plan, model, params, data, **options, **limits)


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


TARGETS = r"(language_model/layers|vision_tower)/.*(q_proj|o_proj|up_proj|fc1)/weight"


SPEC = lora.LoRA(rank=3, alpha=6.0, targets=TARGETS)


def scores(seed=0):
    rng = np.random.default_rng(seed)
    return {"a": jnp.asarray(rng.random((8, 16), np.float32)), "b": {"c": jnp.asarray(rng.random(40, np.float32))}}


# ---- a model of one table, whose logits are the row of the token


class Table:
    """Next-token logits by token: what ``train.fit`` needs of a model."""

    family = types.SimpleNamespace(rules=[(r".*", ())])

    def forward(self, params, batch):
        return params["table"]["weight"][batch["tokens"]]


class Rows:
    """A stream of random rows; the batch ``poison`` has a weight that is not finite."""

    def __init__(self, name, steps, poison=-1):
        self.name, self.steps, self.poison, self.dealt = name, steps, poison, []

    def batch(self, step):
        rng = np.random.default_rng(step)
        self.dealt.append(step)
        weights = np.ones((2, 4), np.float32) * (np.nan if step == self.poison else 1.0)
        common = {"valid": np.ones((2, 4), bool), "row": np.arange(2, dtype=np.int32), "weights": weights}
        return common | {"tokens": rng.integers(0, 5, (2, 4)).astype(np.int32), "ref_logps": np.zeros(2, np.float32)}

    def epoch(self):
        return map(self.batch, range(self.steps))

    def looks(self, devices=1):
        return self.epoch()

    def describe(self, batch):
        return f"{self.name} rows {batch['row'].tolist()}"


class Killed(Exception):
    """Stands for kill -9: nothing after it runs."""


def dying(stream, at):
    """The stream, which kills whoever asks for the batch ``at``."""
    deal = stream.batch

    def batch(step):
        if step == at:
            raise Killed
        return deal(step)

    stream.batch = batch
    return stream


def table():
    return {"table": {"weight": jax.random.normal(jax.random.key(0), (5, 5))}}


def fit_table(method, data, where=None, epochs=1.0, save_every=1, **numbers):
    given = ("mask", "factors", "watched", "programs", "stop_asked")
    limits = {key: numbers.pop(key) for key in given if key in numbers}
    plan = Plan.of(method, data, epochs, **({"learning_rate": 0.1} | numbers))
    kept = None if where is None else checkpoint.Checkpoints(where)
    options = {"mesh": sharding.make_mesh(1), "checkpoints": kept, "save_every": save_every}
    return plan, train.fit(plan, Table(), table(), data, **options, **limits)
