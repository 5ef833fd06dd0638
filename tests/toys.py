"""Random batches, masks and small runs."""

import dataclasses
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

    def describe(self, batch):
        return f"{self.name} rows {batch['row'].tolist()}"


def streams(**changes):
    """One of every row of ``STREAMS``, as long as the people whose it is are many."""
    steps = {"forget": 2, "retain": 8, "full": 4}
    found = {
        name: Batches(name, steps[part.who], seed, int(part.kind == IMAGE))
        for seed, (name, part) in enumerate(STREAMS.items(), 1)
    }
    return found | changes


def random_mask(model, params, seed=0):
    def leaf(name, p):
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
        chosen = jax.random.bernoulli(key, 0.4, p.shape) & ("proj/weight" in name)
        return jax.device_put(chosen, p.sharding)

    return trees.map_named(leaf, params)


def random_factors(params, leaves, seed=0):
    """A factor of a few directions, some of them taken out in part, for every leaf that the pattern matches."""

    def leaf(name, p):
        rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
        basis, _ = np.linalg.qr(rng.normal(size=(*p.shape[:-2], p.shape[-1], 5)))
        strength = np.broadcast_to(np.float32([1, 1, 0.5, 1, 0]), (*p.shape[:-2], 5))
        return curvature.Factor(jnp.asarray(basis, jnp.float32), jnp.asarray(strength))

    return trees.map_named(leaf, trees.split(params, leaves)[0])


def run(model, params, name, *, iterations=8, where=None, mask=None, mesh=None, data=None, **numbers):
    data, method = data or streams(), methods.METHODS[name]
    plan = dataclasses.replace(Plan.of(method, data, 1.0, learning_rate=1e-3, **numbers), iterations=iterations)
    mesh = mesh or sharding.make_mesh(1)
    kept = None if where is None else checkpoint.Checkpoints(where)
    params = params if not plan.trainable.consumes else jax.tree.map(jnp.copy, params)  # fit consumes what it trains
    return train.fit(plan, model, params, data, mesh=mesh, mask=mask, checkpoints=kept, save_every=5, report_every=3)


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


TARGETS = r"(language_model/layers|vision_tower)/.*(q_proj|o_proj|up_proj|fc1)/weight"


SPEC = lora.LoRA(rank=3, alpha=6.0, targets=TARGETS)


def scores(seed=0):
    rng = np.random.default_rng(seed)
    return {"a": jnp.asarray(rng.random((8, 16), np.float32)), "b": {"c": jnp.asarray(rng.random(40, np.float32))}}
