"""How much memory a stage needs on every device, worked out from shapes before anything is loaded.

What is kept (params, gradients, scores, masks, moments, cache) is exact up to padding: each leaf by the slice its rule
gives a device. Activations are an estimate: with rematerialised layers a pass keeps one residual stream a layer, the
inside of one layer, and the logits; and it makes weights of the params, in another dtype or gathered.
"""

import dataclasses
import os

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jax.typing import DTypeLike

from mmu_jax import InputError, curvature, factor, methods, models, sharding, trees
from mmu_jax.models import attention, decoder
from mmu_jax.objectives import LOSSES
from mmu_jax.rules import Rule
from mmu_jax.trainable import Trainable
from mmu_jax.trees import Tree

Needs = dict[str, int]  # what -> bytes on a device
SHARE = (
    0.7  # of the input directions of a weight: 95 % of a trace took up to 0.65 (stages/factors.json of configs/tiny.py)
)

GRAMS = 3  # sets of them held at once: of the faces, of the texts, and their sum


@dataclasses.dataclass(frozen=True)
class Shape:
    """The largest batch of a stage: rows, tokens, and what the vision tower sees (images of LLaVA, patches of Qwen2-VL).

    Attributes:
      answers: tokens at the end of a row of which alone logits are made; 0 for all tokens.
    """

    rows: int
    tokens: int
    images: int = 0
    patches: int = 0
    answers: int = 0


@dataclasses.dataclass(frozen=True)
class Ledger:
    """Counts bytes on one device of a mesh.

    Attributes:
      param_dtype: of the params in memory.
    """

    model: models.Model
    mesh: Mesh
    param_dtype: DTypeLike = np.float32

    def bytes(self, tree: Tree, dtype: DTypeLike | None = None) -> int:
        """Bytes a device holds of ``tree`` (shapes of the params), each leaf by its rule; ``dtype`` if not the leaf's."""
        placed = sharding.shardings(tree, self.model.family.rules, self.mesh)
        sizes = jax.tree.map(
            lambda x, s: int(np.prod(s.shard_shape(x.shape))) * np.dtype(dtype or x.dtype).itemsize, tree, placed
        )
        return sum(jax.tree.leaves(sizes))

    def _rows(self, rows: int) -> int:
        data = self.mesh.shape["data"]
        return rows // data if rows % data == 0 else rows

    def activations(self, shape: Shape, backward: bool = True, mask: str = "causal", mapped: bool = False) -> int:
        """An estimate for a forward and, unless told otherwise, backward pass, with the weights as it reads them.

        ``mask``: by which text looks, one of ``models.attention.KINDS``. ``mapped``: rows are mapped over, one at a time.
        """
        c, width = self.model.config.text_config, np.dtype(self.model.dtype).itemsize
        b, t, split = self._rows(shape.rows), shape.tokens, self.mesh.shape["model"]
        heads, head, together = c.num_attention_heads, decoder.head_size(c), 1 if mapped else shape.rows
        layers = c.num_hidden_layers if backward else 2
        kept = layers * b * t * c.hidden_size * width
        inside = b * t * (4 * c.hidden_size + (3 * heads * head + 3 * c.intermediate_size) // split) * width
        inside += self._scores(together, b, t, heads, c.num_key_value_heads, head, mask)
        logits = (
            b * (shape.answers or t) * c.vocab_size * (width + (8 if backward else 4)) // split
        )  # and in float32 once each way
        if shape.images or shape.patches:
            own, size, depth, heads = self.model.family.tower(self.model.config)
            images, patches = (b * shape.images, own) if own else (b, shape.patches)
            kept += (depth if backward else 2) * images * patches * size * width
            looks = self._scores(together, images, patches, heads, heads, size // heads, "all" if own else "segments")
            inside = max(inside, images * patches * 12 * size * width // split + looks)
        return kept + inside + logits + self._read()

    def _scores(self, rows: int, own: int, tokens: int, heads: int, groups: int, head: int, mask: str) -> int:
        """Bytes of what attention keeps for ``own`` of the ``rows``, forth and back: scores, or of a kernel a sum for every query."""
        tiled = attention.tiled(self.mesh, rows, tokens, groups, head, self.model.dtype, mask)
        each = attention.LANES if tiled else 2 * tokens
        return own * heads * tokens * each * 4 // self.mesh.shape["model"]

    def _read(self) -> int:
        """Bytes of weights that a pass makes of the params.

        All of them in the dtype of the activations, where the params have another: XLA casts them before the loop over the
        layers, not in it. And a layer's, or the head's where that is larger, gathered from the devices along ``data``.
        """
        whole, dtype = self.model.abstract(), np.dtype(self.model.dtype)
        cast = self.bytes(whole, dtype) if np.dtype(self.param_dtype) != dtype else 0
        at_once: dict[str, int] = {}
        for name, x in trees.flatten(whole).items():
            of = name.split("/")[0] if trees.stacked(name) else name
            at_once[of] = at_once.get(of, 0) + (x.size // x.shape[0] if trees.stacked(name) else x.size)
        shared = self.mesh.shape["data"] > 1
        return cast + shared * max(at_once.values()) * dtype.itemsize // self.mesh.shape["model"]

    def params(self) -> int:
        return self.bytes(self.model.abstract(), self.param_dtype)

    def training(
        self, method: methods.Method, shape: Shape, trainable: Trainable | None = None, fraction: float = SHARE
    ) -> Needs:
        """Of ``train.fit`` with a ``trainable``, None for what of the params the method trains: what -> bytes on a device.

        ``fraction``: of the inputs of a weight, the directions that its factor has (:data:`SHARE`).
        """
        whole = self.model.abstract()
        trainable = trainable or method.trains()
        needs = {"params": self.params()} | trainable.needs(whole, method, self.bytes)
        together = max(len(phase.streams) for phase in method.phases)
        whole_rows = any(LOSSES[name].reads == "logits" for phase in method.phases for name in phase.losses.values())
        shape = dataclasses.replace(shape, rows=shape.rows * together, answers=0 if whole_rows else shape.answers)
        if method.mask:
            needs["mask"] = self.bytes(whole, np.bool_)
        if method.projects:
            needs["factors"] = int(fraction * sum(self._grams().values()))
        activations = self.activations(shape)
        if method.projects and not trainable.limits_in_params:
            # What is left of an update waits for its norm, which is of all weights together, beside some that
            # are not yet projected (of a TPU's compiler 1.3 to 1.7 trees in all); activations are gone by then.
            updates = 3 * self.bytes(trees.split(whole, self.model.family.eligible)[0], np.float32) // 2
            needs |= {"updates beyond activations": updates - activations} if updates > activations else {}
        return needs | {"activations (estimate)": activations}

    def saliency(self, wanted: list[Rule], shape: Shape, chunk: int, keep_scores: bool) -> Needs:
        """Of scoring, or of choosing as many entries as a ratio does, where that needs more; what -> bytes on a device.

        Three trees of scores (SalUn one more) or one signed accumulator, and the gradients that exist at once: ``chunk`` where rows are
        differentiated one by one, else one; or the same scores, two masks and what is beside the leaf that is chosen from.
        """
        whole, linear = self.model.abstract(), self.model.family.eligible
        part, _ = trees.split(whole, linear)
        kept = [self.bytes(part, np.float32)] * (3 + any(rule.needs_sum for rule in wanted))
        by_batch = any(rule.unit == "batch" for rule in wanted)  # one gradient, through all rows
        one_by_one = any(rule.unit == "example" and not rule.by_row(whole, linear) for rule in wanted)
        at_once = chunk if one_by_one else 1
        rows = shape.rows if by_batch else min(chunk, shape.rows)
        if not keep_scores:  # both sides' differences, of which the second is made while the first is kept
            kept = kept[:1]
        scoring = {
            "params": self.params(),
            "scores": sum(kept),
            "gradients": max(at_once * self.bytes(part, self.param_dtype), self.bytes(part, np.float32)),
            "activations (estimate)": self.activations(dataclasses.replace(shape, rows=rows), mapped=one_by_one),
        }
        if all(rule.by in ("ratio", "all") for rule in wanted):
            return scoring
        # The mask whose entries are counted and the one that is chosen; of a leaf its numbers, their bits and a running count.
        leaf = max(self.bytes({name: x}, np.float32) for name, x in trees.flatten(part).items())
        masks = {"masks": 2 * self.bytes(whole, np.bool_), "numbers of a leaf": 3 * leaf}
        return max(
            scoring, {"params": self.params(), "scores": sum(kept)} | masks, key=lambda needs: sum(needs.values())
        )

    def _grams(self) -> dict[str, int]:
        """Leaf name -> bytes on a device of the Gram of a linear weight, ``[..., in, in]`` float32."""
        part, _ = trees.split(self.model.abstract(), self.model.family.eligible)

        def rows(p, where):
            shape = (*p.shape[:-2], p.shape[-1], p.shape[-1])
            placed = factor.along_inputs(jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=where), -1)
            return 4 * int(np.prod(placed.shard_shape(shape)))

        return trees.flatten(jax.tree.map(rows, part, sharding.shardings(part, self.model.family.rules, self.mesh)))

    def factors(self, shape: Shape, blocks: int, fraction: float = SHARE) -> Needs:
        """Of making factors, a block of layers after the other: what -> bytes on a device.

        Two sets of Grams and their sum, of which the eigenvectors are taken; a gradient of all; and factors made.
        """
        grams, part = self._grams(), trees.split(self.model.abstract(), self.model.family.eligible)[0]
        depth = {name: leaf.shape[0] for name, leaf in trees.flatten(part).items()}

        def held(block):
            own = {name: curvature.layers_of(name, layers, (block, blocks)) for name, layers in depth.items()}
            layers = {name: len(range(depth[name])[taken]) for name, taken in own.items() if taken is not None}
            return sum(grams[name] * count // depth[name] for name, count in layers.items())

        return {
            "params": self.params(),
            "Grams": GRAMS * max(map(held, range(blocks))),
            "factors": int(fraction * sum(grams.values())),
            # XLA takes the block out of them before it makes float32 of it.
            "gradients": self.bytes(part, self.model.dtype),
            "activations (estimate)": self.activations(shape),
        }

    def decoding(self) -> int:
        """Bytes on a device of the params as they are held for decoding, which reads all of them for every token; 0 where they stay.

        Weights in the dtype that is computed in, norms and biases in their own, all in full along ``data``; where that is less to
        read or to send for a token, and no more than a third of what a device holds.
        """
        gain = self.mesh.shape["data"] > 1 or np.dtype(self.model.dtype).itemsize < np.dtype(self.param_dtype).itemsize
        placed = sharding.shardings(
            self.model.abstract(), sharding.whole_along_data(self.model.family.rules), self.mesh
        )

        def own(name, x, where):
            kind = self.param_dtype if x.ndim - trees.stacked(name) < 2 else self.model.dtype
            return int(np.prod(where.shard_shape(x.shape))) * np.dtype(kind).itemsize

        held = sum(jax.tree.leaves(trees.map_named(own, self.model.abstract(), placed)))
        return held if gain and not isinstance(self.mesh, AbstractMesh) and held <= capacity(self.mesh) // 3 else 0

    def generation(self, shape: Shape, new_tokens: int) -> Needs:
        """Of asking for words: the key-value cache beside a prompt's forward pass; what -> bytes on a device.

        A token is written into its place in the cache, of which one layer is taken out at a time.
        """
        c, rows = self.model.config.text_config, self._rows(shape.rows)
        cache = jax.eval_shape(lambda: decoder.make_cache(c, rows, shape.tokens + new_tokens, self.model.dtype))
        split = self.mesh.shape["model"] if c.num_key_value_heads % self.mesh.shape["model"] == 0 else 1
        held = trees.nbytes(cache) // split
        again = {"params for decoding": own} if (own := self.decoding()) else {}
        return again | {
            "params": self.params(),
            "cache": held,
            "a layer of it": held // c.num_hidden_layers,
            "activations (estimate)": self.activations(shape, backward=False, mask="segments"),
        }

    def ranking(self, shape: Shape) -> Needs:
        """Of ranking options: a forward pass over rows that hold all options of a question; what -> bytes on a device."""
        activations = self.activations(shape, backward=False, mask="dense")
        return {"params": self.params(), "activations (estimate)": activations}


def checkpoint(needs: Needs) -> int:
    """Bytes of a device that a checkpoint of a stage writes: what trains and its moments; 0 where nothing trains."""
    return needs.get("adapters", needs["params"]) + needs["moments"] if "moments" in needs else 0


def capacity(mesh: Mesh) -> int:
    """Bytes a device of the mesh may hold: what it reports, or for CPU devices an even share of the host's memory."""
    device = mesh.local_devices[0]
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(mesh.local_devices)


def peak() -> int | None:
    """The most bytes that a device of this process has held so far; None where devices do not count, as on a CPU."""
    counts = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    return max((int(count) for count in counts if count is not None), default=None)


def size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def table(stages: dict[str, Needs], limit: int) -> str:
    """The plan as a person reads it: a line a stage."""
    lines = [f"memory plan, per device, of {size(limit)}:"]
    for name, needs in stages.items():
        parts = ", ".join(f"{what} {size(count)}" for what, count in needs.items())
        lines.append(f"  {name:28s}{size(sum(needs.values())):>11s}  = {parts}")
    return "\n".join(lines)


def check(stages: dict[str, Needs], limit: int, advice: str) -> None:
    """Raises InputError, with the worst stage and what to do, if a stage needs more than ``limit``."""
    worst = max(stages, key=lambda name: sum(stages[name].values()))
    need = sum(stages[worst].values())
    if need > limit:
        largest = sorted(stages[worst].items(), key=lambda item: -item[1])[:3]
        parts = ", ".join(f"{what} {size(count)}" for what, count in largest)
        raise InputError(
            f"expected stages that fit into {size(limit)} per device, found that {worst} needs {size(need)} ({parts}); {advice}"
        )
