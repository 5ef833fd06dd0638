"""What XLA allots for the published models: their programs, compiled ahead of time for a target that need not be there.

    pip install "libtpu==0.0.42.*"   # the one that goes with jax 0.10.2; a CPU needs none
    python -m experiments.bench --only=compile [--target=tpu-v5e-8] [--mesh=8x1] [--models=llava-1.5-7b] [--trained=full,lora] [--nokernels]

No weight is made and nothing runs. Of every program: what the memory plan says a device needs, and what the compiler gives
it (arguments, what else is there meanwhile, and temporary buffers; of a step the larger of its two programs), in GiB. Params that
train are float32, those beside a LoRA of rank 16 bfloat16; activations bfloat16; factors of a quarter of the inputs, Grams in
eight blocks of layers, rows and lengths of the model's config, answers of ``--answers`` tokens. Saliency is one batch added to
one tree of scores, every row's own in one backward pass, and ``answers`` asks for words with the params as they lie.
"""

import itertools
import math
import os
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, PartitionSpec

from configs import llava as llava_config
from configs import qwen2_vl as qwen_config
from mmu_jax import (
    InputError,
    curvature,
    factor,
    generate,
    lora,
    memory,
    methods,
    models,
    objectives,
    programs,
    saliency,
    sharding,
    trees,
)
from mmu_jax.models import attention
from mmu_jax.models.published import PUBLISHED
from mmu_jax.optimizers import Pace
from mmu_jax.plan import Plan
from mmu_jax.rules import Rule
from mmu_jax.train_state import abstract
from mmu_jax.trainable import Limits, Trainable, Whole
from mmu_jax.trees import Batch, Params, Tree

FRACTION, BLOCKS, RANK, WORDS = 0.25, 8, 16, 16
STEPS = ("ga", "mmunlearner", "projected")
PROGRAMS = (*STEPS, "factors", "saliency", "answers")
# Name -> the topology of its chips as ``jax.experimental.topologies`` names it, None for devices of this machine. Google counts
# the cores of a v5p, two a chip, and the chips of a v5e.
TARGETS = {"tpu-v5e-8": "v5e:2x4", "tpu-v5p-8": "v5p:2x2x1", "tpu-v5p-16": "v5p:2x2x2", "cpu-8": None}
TARGET = flags.DEFINE_enum("target", "tpu-v5e-8", list(TARGETS), "Of compile: whose compiler.")
MESH = flags.DEFINE_list("mesh", ["8x1"], "Of compile: meshes, data x model, of the target's devices.")
MODELS = flags.DEFINE_list("models", list(PUBLISHED), f"Of compile: of {', '.join(PUBLISHED)}.")
TRAINED = flags.DEFINE_list("trained", ["full", "lora"], "Of compile: full, lora or both.")
ANSWERS = flags.DEFINE_integer(
    "answers", 64, "Of compile: tokens of a row that are learned from; 0: all.", lower_bound=0
)
KERNELS = flags.DEFINE_bool("kernels", True, "Of compile: attention by the target's kernel; False: plain.")
CHOSEN = flags.DEFINE_list("programs", list(STEPS), f"Of compile: of {', '.join(PROGRAMS)}.")


class Program(NamedTuple):
    """A program that is lowered: what it is given, whether it reads it or not, and what a device holds beside it."""

    lowered: Any
    given: Tree
    beside: Tree = ()

    def sizes(self) -> tuple[int, int]:
        """Compiles it. Bytes of a device: of what is held while it runs, and of its temporary buffers."""
        made = self.lowered.compile()
        found = made.memory_analysis()
        given, places = (jax.tree.leaves(x, is_leaf=lambda x: x is None) for x in (self.given, made.input_shardings[0]))
        unread = [x for x, where in zip(given, places, strict=True) if where is None]
        return found.argument_size_in_bytes + held((unread, self.beside)), found.temp_size_in_bytes


def placed(tree: Tree, like: Tree, dtype: Any = None) -> Tree:
    """The shapes of ``tree``, lying as ``like`` says; in ``dtype`` if not their own."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=s), tree, like)


def batch(model: models.Model, shape: memory.Shape, mesh: Mesh) -> Batch:
    """The shapes of the largest batch of a stage."""
    rows, tokens, number = shape.rows, shape.tokens, jax.ShapeDtypeStruct
    found = {name: number((rows, tokens), kind) for name, kind in
             (("tokens", jnp.int32), ("valid", jnp.bool_), ("weights", jnp.float32))}  # fmt: skip
    found |= {name: number((rows,), jnp.int32) for name in ("row", "person")}
    if shape.answers:
        found["tail"] = number((rows, shape.answers), jnp.int32)
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


def limits_of(plan: Plan, params: Params, leaves: str) -> Limits:
    """The shapes of what restricts the steps of a plan: a mask, factors."""
    bits = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bool_, sharding=p.sharding), params)
    return Limits(bits if plan.method.mask else None, factors_of(params, leaves) if plan.method.projects else None)


def stepping(
    model: models.Model, params: Params, name: str, trained: Trainable, shape: memory.Shape, mesh: Mesh
) -> list[Program]:
    """The first step of an iteration of a method: its gradient, and the update that follows."""
    plan = Plan(methods.METHODS[name], 8, learning_rate=1e-4, trainable=trained)
    phase, like, own = plan.method.phases[0], abstract(plan, model, params, mesh), plan.moments(0)
    limits, none = limits_of(plan, params, model.family.eligible), Limits()
    frozen, reads, others = (None, none, limits) if trained.consumes else (params, limits, none)
    batches = {stream: batch(model, shape, mesh) for stream in phase.streams}
    part = trained.view(like.params, frozen, none, phase).part
    number = like.step.update(dtype=jnp.float32)
    pace = Pace(number, like.step, like.step)
    moved = like.moved if phase.masked else {}
    restricts = Limits(limits.mask if phase.masked else None, limits.factors if phase.projected else None)
    rest = Limits(None if phase.masked else limits.mask, None if phase.projected else limits.factors)
    first = (like.params, batches, reads, frozen, None)
    second = ((like.params, like.opt_state[own], like.failed, moved), part, number, like.step, restricts, pace)
    waiting = {key: moments for key, moments in like.opt_state.items() if key != own}
    gradient, update = programs.make_gradient(plan, model, 0, like), programs.make_update(plan, 0, like)
    return [
        Program(gradient.lower(*first), first, (like.opt_state, part, others)),
        Program(update.lower(*second, phase.masked), second, (frozen, batches, waiting, rest)),
    ]


def held(tree: Tree) -> int:
    """Bytes that a device holds of shapes: of its own part where one is placed, else of the whole."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape) if x.sharding else x.shape) * x.dtype.itemsize for x in leaves)


def measuring(model: models.Model, params: Params, shape: memory.Shape, mesh: Mesh) -> Program:
    """One batch added to the Grams of the first block of layers."""
    part, rest = trees.split(params, curvature.matrices(params, model.family.eligible))
    block = (0, BLOCKS)
    like = curvature.accumulators(part, -1, block)
    adding = curvature.accumulator(objectives.of_params("sketch", model), -1, block, like)
    given = (like, part, rest, batch(model, shape, mesh))
    return Program(adding.lower(*given), given)


def scoring(model: models.Model, params: Params, shape: memory.Shape, mesh: Mesh) -> Program:
    """One batch added to the scores of the linear weights."""
    part, rest = trees.split(params, model.family.eligible)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    adding = saliency.accumulator(objectives.of_rows("descent", model), chunk=shape.rows)
    scores = placed(part, jax.tree.map(lambda p: p.sharding, part), jnp.float32)
    given = ((scores, number), part, rest, batch(model, shape, mesh), number)
    return Program(adding.lower(*given), given)


def answering(model: models.Model, params: Params, shape: memory.Shape, mesh: Mesh) -> Program:
    """A batch of questions answered in words."""
    given = (params, batch(model, shape, mesh))
    words = jax.jit(lambda *given: generate.generate(model, *given, new_tokens=WORDS, stop=(2,)))
    return Program(words.lower(*given), given)


def planned(ledger: memory.Ledger, name: str, trained: Trainable, shape: memory.Shape) -> int:
    """Bytes that the memory plan counts for what a program is given and holds: a run's other buffers left out."""
    if name == "saliency":
        return sum(ledger.saliency([Rule()], shape, shape.rows, keep_scores=False).values())
    if name == "answers":
        return sum(ledger.generation(shape, WORDS).values())
    if name == "factors":
        needs = ledger.factors(shape, BLOCKS, FRACTION)
        needs |= {"factors": 0, "Grams": needs["Grams"] // memory.GRAMS}  # one set, of which nothing is made yet
        return sum(needs.values())
    return sum(ledger.training(methods.METHODS[name], shape, trained, FRACTION).values())


def devices() -> list:
    """Those of the target, there or not."""
    if (topology := TARGETS[TARGET.value]) is None:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
        return jax.devices("cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no machine is asked what it is
    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"expected the compiler of a TPU {topology!r}, found none ({' '.join(str(error).split())[:200]}); install libtpu "
            "(the version that jax[tpu] asks for), or name another --target"
        ) from error


def measured(name: str, trained: str, program: str, mesh: Mesh) -> tuple[int, int, int]:
    """Bytes of a device: planned, held, and temporary, of the program of a model that takes most."""
    c = (llava_config if name.startswith("llava") else qwen_config).get_config()
    model, spec = models.Model(PUBLISHED[name][0](), jnp.bfloat16), lora.LoRA(RANK, 16.0, c.unlearn.lora.targets)
    steps = program in STEPS
    whole = methods.METHODS[program].trains(model.family) if steps else Whole()
    how, dtype = (spec, jnp.bfloat16) if trained == "lora" else (whole, jnp.float32)
    rows = max({"saliency": c.saliency, "answers": c.evaluate}.get(program, c.unlearn).rows, mesh.shape["data"])
    shape = memory.Shape(rows, max(c.data.tokens), 1, max(c.data.patches or (0,)), ANSWERS.value)
    params = placed(model.abstract(), sharding.shardings(model.abstract(), model.family.rules, mesh), dtype)
    with jax.set_mesh(mesh), attention.kernels(KERNELS.value):
        if steps:
            made = stepping(model, params, program, how, shape, mesh)
        else:
            make = {"factors": measuring, "saliency": scoring, "answers": answering}[program]
            made = [make(model, params, shape, mesh)]
        # Of a mesh without devices no capacity is asked, and nothing is held beside params as they lie.
        needed = planned(memory.Ledger(model, mesh.abstract_mesh, dtype), program, how, shape)
    return needed, *max((each.sizes() for each in made), key=sum)


def compiled() -> None:
    """Compiles what is asked for and prints a line each."""
    for flag, given, known in (("models", MODELS.value, PUBLISHED), ("programs", CHOSEN.value, PROGRAMS),
                               ("trained", TRAINED.value, ("full", "lora"))):  # fmt: skip
        if not given or set(given) - set(known):
            raise InputError(f"expected --{flag} among {', '.join(known)}, found {','.join(given)!r}; correct it")
    there, axes = devices(), ("data", "model")
    meshes = {said: shape_of(said, len(there)) for said in MESH.value}
    print(f"GiB per device of {TARGET.value}: planned / arguments + temporary buffers")
    for name, trained, (said, (data, split)), program in itertools.product(
        MODELS.value, TRAINED.value, meshes.items(), CHOSEN.value
    ):
        mesh = jax.make_mesh((data, split), axes, axis_types=(AxisType.Auto,) * 2, devices=there[: data * split])
        began, head = time.perf_counter(), f"  {name:14s} {trained:4s} {said:>6s}  {program:12s}"
        try:
            needed, kept, temporary = (size / 2**30 for size in measured(name, trained, program, mesh))
        except jax.errors.JaxRuntimeError as error:  # the compiler's word that a chip has less
            print(f"{head} not compiled: {' '.join(str(error).split())[:160]}", flush=True)
            continue
        print(f"{head}{needed:7.1f} /{kept + temporary:6.1f} = {kept:.1f} + {temporary:.1f}   "
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
