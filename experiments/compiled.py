"""What XLA allots for the published models: their programs, compiled ahead of time for a TPU that need not be there.

    pip install "libtpu==0.0.42.*"   # the one that goes with jax 0.10.2
    python -m experiments.compiled [--topology=v5p:2x2x1] [--mesh=1x1] [--models=llava-1.5-7b] [--programs=...]

No weight is made and nothing runs. Of every program: what the memory plan says a device needs, and what the compiler gives
it (arguments, what else is there meanwhile, and temporary buffers; of a step the larger of its two programs), in GiB. With a
LoRA of rank 16, bfloat16 params, factors of a quarter of the inputs, Grams in eight blocks of layers, rows and lengths of the
model's config.
"""

import math
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, PartitionSpec

from configs import llava as llava_config
from configs import qwen2_vl as qwen_config
from experiments import command
from mmu_jax import InputError, curvature, factor, lora, memory, methods, models, objectives, programs, sharding, trees
from mmu_jax.models.published import PUBLISHED
from mmu_jax.plan import Plan
from mmu_jax.train_state import abstract
from mmu_jax.trainable import Limits
from mmu_jax.trees import Batch, Params, Tree

FRACTION, BLOCKS, RANK = 0.25, 8, 16
PROGRAMS = ("ga", "projected", "factors")
TOPOLOGY = flags.DEFINE_string("topology", "v5p:2x2x1", "Of the TPU, as jax.experimental.topologies names it.")
MESH = flags.DEFINE_list("mesh", ["1x1"], "Meshes, data x model, of its devices.")
MODELS = flags.DEFINE_list("models", ["llava-1.5-7b"], f"Of {', '.join(PUBLISHED)}.")
CHOSEN = flags.DEFINE_list("programs", list(PROGRAMS), "Which programs.")


def placed(tree: Tree, like: Tree, dtype: Any = None) -> Tree:
    """The shapes of ``tree``, lying as ``like`` says; in ``dtype`` if not their own."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=s), tree, like)


def batch(model: models.Model, shape: memory.Shape, mesh: Mesh) -> Batch:
    """The shapes of the largest batch of a stage."""
    rows, tokens, number = shape.rows, shape.tokens, jax.ShapeDtypeStruct
    found = {name: number((rows, tokens), kind) for name, kind in
             (("tokens", jnp.int32), ("valid", jnp.bool_), ("weights", jnp.float32))}  # fmt: skip
    found |= {name: number((rows,), jnp.int32) for name in ("row", "person")}
    images = jax.eval_shape(lambda: model.family.images(model.config))
    moving = "patches" in images  # images that keep their size, and positions in time, height and width
    found["positions"] = number((rows, 3, tokens) if moving else (rows, tokens), jnp.int32)
    for name, x in images.items():
        length = (rows, shape.patches) if moving else (rows, shape.images)
        found[name] = number((*length, *x.shape[2:]), x.dtype)
    return placed(found, sharding.shardings(found, [("", PartitionSpec("data"))], mesh))


def factors_of(params: Params, leaves: str) -> Tree:
    """The shapes of factors that hold :data:`FRACTION` of the inputs of every linear weight."""

    def leaf(p):
        width, number = p.shape[-1], jax.ShapeDtypeStruct
        count = int(FRACTION * width)
        basis = number((*p.shape[:-2], width, count), jnp.float32, sharding=factor.along_inputs(p, -1))
        return curvature.Factor(basis, number((*p.shape[:-2], count), jnp.float32))

    return jax.tree.map(leaf, trees.split(params, curvature.matrices(params, leaves))[0])


def stepping(
    model: models.Model, params: Params, name: str, spec: lora.LoRA, shape: memory.Shape, mesh: Mesh
) -> list[tuple[Any, int]]:
    """The first step of an iteration of a method, both its programs lowered, each with the bytes a device holds beside it.

    Beside the gradient are the moments and what it makes; beside the update the params that stay frozen, factors and batches.
    """
    plan = Plan(methods.METHODS[name], 8, learning_rate=1e-4, trainable=spec)
    phase, like = plan.method.phases[0], abstract(plan, model, params, mesh)
    limits = Limits(None, factors_of(params, model.family.eligible) if phase.projected else None)
    batches = {stream: batch(model, shape, mesh) for stream in phase.losses}
    part = plan.trainable.view(like.params, None, Limits(), phase).part
    number = like.step.update(dtype=jnp.float32)
    carried = (like.params, like.opt_state[plan.moments(0)], like.failed, {})
    gradient, update = programs.make_gradient(plan, model, 0, like), programs.make_update(plan, 0, like)
    return [
        (gradient.lower(like.params, batches, limits, params, None), held((like.opt_state, part))),
        (update.lower(carried, part, number, like.step, Limits(), number, True), held((params, limits, batches))),
    ]


def held(tree: Tree) -> int:
    """Bytes that a device holds of shapes: of its own part where one is placed, else of the whole."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape) if x.sharding else x.shape) * x.dtype.itemsize for x in leaves)


def measuring(model: models.Model, params: Params, shape: memory.Shape, mesh: Mesh) -> Any:
    """One batch added to the Grams of the first block of layers, lowered."""
    part, rest = trees.split(params, curvature.matrices(params, model.family.eligible))
    block = (0, BLOCKS)
    like = curvature.accumulators(part, -1, block)
    adding = curvature.accumulator(objectives.of_params("sketch", model), -1, block, like)
    return adding.lower(like, part, rest, batch(model, shape, mesh))


def planned(ledger: memory.Ledger, name: str, spec: lora.LoRA, shape: memory.Shape) -> int:
    """Bytes that the memory plan counts for what a program is given and holds: a run's other buffers left out."""
    if name == "factors":
        needs = ledger.factors(shape, BLOCKS, FRACTION)
        needs |= {"factors": 0, "Grams": needs["Grams"] // memory.GRAMS}  # one set, of which nothing is made yet
        return sum(needs.values())
    return sum(ledger.training(methods.METHODS[name], shape, spec, FRACTION).values())


def compiled() -> None:
    """Compiles what is asked for and prints a line each."""
    logging.set_verbosity(logging.WARNING)
    for flag, given, known in (("models", MODELS.value, PUBLISHED), ("programs", CHOSEN.value, PROGRAMS)):
        if not given or set(given) - set(known):
            raise InputError(f"expected --{flag} among {', '.join(known)}, found {','.join(given)!r}; correct it")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no machine is asked what it is
    try:
        devices = topologies.get_topology_desc(TOPOLOGY.value, "tpu").devices
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"expected the compiler of a TPU {TOPOLOGY.value!r}, found none ({' '.join(str(error).split())[:200]}); install libtpu "
            "(the version that jax[tpu] asks for), or name another --topology"
        ) from error
    print(f"GiB per device of {TOPOLOGY.value}, LoRA of rank {RANK}, bfloat16: planned / arguments + temporary buffers")
    for name in MODELS.value:
        c = (llava_config if name.startswith("llava") else qwen_config).get_config()
        model, spec = models.Model(PUBLISHED[name][0](), jnp.bfloat16), lora.LoRA(RANK, 16.0, c.unlearn.lora.targets)
        for said in MESH.value:
            data, split = shape_of(said, len(devices))
            axes = ("data", "model")
            mesh = jax.make_mesh((data, split), axes, axis_types=(AxisType.Auto,) * 2, devices=devices[: data * split])
            shape = memory.Shape(max(c.unlearn.rows, data), max(c.data.tokens), 1, max(c.data.patches or (0,)))
            params = placed(
                model.abstract(), sharding.shardings(model.abstract(), model.family.rules, mesh), jnp.bfloat16
            )
            ledger = memory.Ledger(model, mesh, jnp.bfloat16)
            for program in CHOSEN.value:
                began = time.perf_counter()
                with jax.set_mesh(mesh):
                    if program == "factors":
                        lowered = [(measuring(model, params, shape, mesh), 0)]
                    else:
                        lowered = stepping(model, params, program, spec, shape, mesh)
                found = [0.0, 0.0]  # of the program that takes most
                for each, beside in lowered:
                    allotted = each.compile().memory_analysis()
                    sizes = allotted.argument_size_in_bytes + beside, allotted.temp_size_in_bytes
                    found = max(found, [size / 2**30 for size in sizes], key=sum)
                needed = planned(ledger, program, spec, shape) / 2**30
                print(f"  {name:14s} {said:>6s}  {program:12s}{needed:7.1f} /{sum(found):6.1f} = {found[0]:.1f} + {found[1]:.1f}   "
                      f"({time.perf_counter() - began:.0f} s)", flush=True)  # fmt: skip


def shape_of(said: str, available: int) -> tuple[int, int]:
    """``'4x2'`` as two numbers."""
    parts = said.split("x")
    if (
        len(parts) != 2
        or not all(part.isdigit() for part in parts)
        or not 0 < int(parts[0]) * int(parts[1]) <= available
    ):
        raise InputError(f"expected --mesh as data x model of at most {available} devices, found {said!r}; correct it")
    return int(parts[0]), int(parts[1])


def main(argv: list[str]) -> None:
    del argv
    command.spoken(compiled)


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse_without_config)
