"""What is compared: of every measurement, ours first and then the peers, each a line.

To add a way, add a ``Way`` to the list of its measurement; those of ours have labels that begin so. To add a measurement, add
a row to ``CONTESTS``.
"""

import importlib.util
import itertools
import re
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from safetensors.numpy import load_file

from experiments import peers
from experiments.timing import Contest, Way
from experiments.workload import OPTIONS, Workload
from mmu_jax import evaluate, generate, hf, likelihood, objectives, programs, saliency, scored, sharding, train, trees
from mmu_jax.methods import METHODS
from mmu_jax.plan import Plan
from mmu_jax.train_state import abstract, init
from mmu_jax.trainable import Limits, Whole
from mmu_jax.trees import Batch

TORCH = bool(importlib.util.find_spec("torch"))
RATE, EPS = 1e-3, 1e-6  # steps well above the rounding of a param, and no sign of a gradient that is rounding
ITERATIONS = 4096


def arrays(tree) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in trees.flatten(tree).items()}


# ---- saliency


# How a loss is given so that scores cost a backward pass a batch, whatever the unit.
QUICK = {"batch": objectives.of_params, "example": objectives.of_rows}


def scoring(work: Workload, batches: list[Batch], unit: str, given: Callable) -> Callable:
    """Ours: squares accumulated on device in one donated buffer, of a loss that ``given`` makes of its name and the model."""
    part, rest = trees.split(work.params, work.model.family.eligible)
    step = saliency.accumulator(given("descent", work.model), unit=unit)

    def run():
        state = saliency.zeros(part)
        for batch in batches:
            state = step(state, part, rest, batch, 1.0)
        return state[0]

    return run


def by_host(work: Workload, batches: list[Batch]) -> Callable:
    """The way of the public code in JAX: every batch's gradient goes to the host and is squared there."""
    part, rest = trees.split(work.params, work.model.family.eligible)
    gradient = jax.jit(jax.grad(scored.mean_of(objectives.of_params("descent", work.model))))

    def run():
        total = None
        for batch in batches:
            squares = jax.tree.map(lambda g: np.square(np.asarray(g)), gradient(part, rest, batch))
            total = squares if total is None else jax.tree.map(np.add, total, squares)
        return total

    return run


def saliency_ways(work: Workload, batches: int) -> list[Way]:
    """Of a unit of a batch and of an example; seconds relative to a batch of ours."""
    given = [work.batch(seed) for seed in range(batches)]

    def theirs(found):
        return peers.ours(work.model, found)

    ways = [
        *(Way(f"ours, unit {unit}", scoring(work, given, unit, loss), arrays, unit) for unit, loss in QUICK.items()),
        Way(
            "ours, unit example, vmap of any loss",
            scoring(work, given, "example", objectives.of_params),
            arrays,
            "example",
        ),
        Way("gradients copied to the host, unit batch", by_host(work, given), arrays, "batch"),
    ]
    if TORCH:
        ways += [
            Way("torch autograd, unit batch", peers.squares_of_batches(work, given), theirs, "batch"),
            Way("torch autograd row by row, unit example", peers.squares_of_rows(work, given), theirs, "example"),
            Way("torch.func vmap of grad, unit example", peers.squares_by_vmap(work, given, 8), theirs, "example"),
        ]
    return ways


# ---- an unlearning iteration


def iterating(work: Workload, forget: Batch, retain: Batch) -> Callable:
    """Ours: the two steps of ``mmunlearner``, as ``train.fit`` takes them; the params after them."""
    method = METHODS["mmunlearner"]
    whole = Whole.of(method, work.model.family)
    plan = Plan(method, ITERATIONS, learning_rate=RATE, adam={"eps": EPS}, trainable=whole)
    params, limits = jax.tree.map(lambda x: x.copy(), work.params), Limits(work.mask())
    like, kept = abstract(plan, work.model, params, work.mesh), programs.Programs()
    steps = [programs.make_step(plan, work.model, index, like, kept) for index in range(2)]
    state, turns = init(plan, work.model, params, work.mesh), itertools.count()

    def run():
        nonlocal state
        proving = train.proves(next(turns))
        with jax.set_mesh(work.mesh):
            for step, (stream, batch) in zip(steps, (("forget", forget), ("retain", retain)), strict=True):
                state = step(state, {stream: sharding.put(batch, work.mesh)}, limits, None, None, proving)
            state = programs.counted(state)
        return state

    return run


def iteration_ways(work: Workload) -> list[Way]:
    """A masked step of ascent and a step of descent."""
    forget, retain = work.batch(10), work.batch(11)
    before = arrays(work.params)

    def moved(found):
        # Of all in one: a leaf of ones rounds its steps. The biases of the tower's keys have a gradient in torch alone: rounding.
        there = [name for name in sorted(found) if not re.fullmatch("vision_tower/.*k_proj/bias", name)]
        return {"update": np.concatenate([(found[name] - before[name]).ravel() for name in there])}

    def theirs(model):
        return moved(peers.ours(work.model, dict(model.named_parameters())))

    ways = [Way("ours", iterating(work, forget, retain), lambda state: moved(arrays(state.params)), "update")]
    for fused in (True, False) if TORCH else ():
        run = peers.iteration(work, forget, retain, work.mask(), rate=RATE, eps=EPS, fused=fused)
        ways.append(Way(f"torch, {'fused ' * fused}AdamW and a product with the mask", run, theirs, "update"))
    return ways


# ---- answers


def generation_ways(work: Workload, rows: int) -> list[Way]:
    """Greedy decoding."""
    prompts, stop = work.prompts(rows), work.processor.tokenizer.eos_token_id
    placed = sharding.put(prompts, work.mesh)

    def ours():
        with jax.set_mesh(work.mesh):
            return generate.generate(work.model, work.params, placed, new_tokens=work.size.new, stop=(stop,))

    def padded(found):
        return {"tokens": np.pad(found, ((0, 0), (0, work.size.new - found.shape[1])), constant_values=stop)}

    ways = [Way(f"ours, {rows} rows", ours, lambda x: padded(np.asarray(x)), "tokens")]
    if TORCH:
        ways += [Way(f"transformers generate, {rows} rows", peers.continued(work, prompts, stop), padded, "tokens")]
    return ways


def ranking_ways(work: Workload) -> list[Way]:
    """log p of every option of a question."""
    choices, photos, album = work.choices()
    rows = work.rows_of_options()
    examiner = evaluate.Examiner(work.model, work.processor, work.mesh, rows=len(choices))

    def branches():
        return examiner.option_logps(work.params, choices, photos, album)[0].ravel()

    def each():
        with jax.set_mesh(work.mesh):
            placed = [sharding.put(batch, work.mesh) for batch in rows]
            found = [likelihood.answer_logps(work.model, work.params, batch) for batch in placed]
        return np.concatenate([np.asarray(x) for x in found])

    def shown(found):
        return {"logps": found}

    ways = [
        Way(f"ours, a row a question ({len(OPTIONS)} options)", branches, shown, "logps"),
        Way("ours, a row an option", each, shown, "logps"),
    ]
    return ways + ([Way("transformers, a row an option", peers.logps(work, rows), shown, "logps")] if TORCH else [])


# ---- checkpoints


def _summed(params):
    return jax.tree.map(jax.numpy.sum, params)


def loading_ways(work: Workload) -> list[Way]:
    """From a directory in the page cache to params of which every number was read once."""
    summed = jax.jit(_summed)

    def ours():
        params = hf.load(work.folder, work.model, work.mesh)
        return params, summed(params)

    def theirs(found):
        return peers.ours(work.model, dict(found[0].named_parameters()))

    ways = [Way("ours, hf.load", ours, lambda found: arrays(found[0]), "params")]
    if TORCH:
        read = partial(peers.read, work.folder)
        ways.append(Way("transformers from_pretrained", read, theirs, "params"))
    return ways


def saving_ways(work: Workload) -> list[Way]:
    """From params to a directory; of transformers its weights and config, of ours the processor as well."""
    out = work.folder.parent

    def save():
        hf.save(work.params, work.model, work.folder, out / "saved")
        return out / "saved"

    def create():
        hf.create(work.params, work.model, work.processor, out / "created")
        return out / "created"

    def written(folder):
        table = {hf.rename(k, work.model.family.names): x for k, x in load_file(folder / hf.SINGLE).items()}
        return {f"{name}[{row}]": x for (name, row), x in table.items() if name in owned and row in owned[name]}

    owned = {name: {row for _, row in hf.places(name, x.shape)} for name, x in arrays(work.params).items()}
    ways = [Way("ours, hf.save", save, written, "files"), Way("ours, hf.create", create, written, "files")]
    if TORCH:
        ways.append(Way("transformers save_pretrained", peers.saved(work.folder, out / "theirs"), written, "files"))
    return ways


CONTESTS: dict[str, Callable[[Workload, int], list[Contest]]] = {
    "saliency": lambda work, batches: [Contest("saliency of the linear weights", saliency_ways(work, batches))],
    "iteration": lambda work, _: [Contest("an unlearning iteration", iteration_ways(work))],
    "generation": lambda work, _: [
        Contest(f"greedy decoding, {rows} rows, {work.size.new} tokens each", generation_ways(work, rows))
        for rows in (work.size.asked, 1)
    ],
    "ranking": lambda work, _: [Contest(f"log-probabilities of {len(OPTIONS)} options", ranking_ways(work))],
    "checkpoint": lambda work, _: [
        Contest("reading a checkpoint", loading_ways(work)),
        Contest("writing a checkpoint", saving_ways(work)),
    ],
}
