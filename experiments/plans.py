"""What is settled before anything is loaded: that the config can work, and that it fits into memory."""

import dataclasses
import re
from typing import Any

import jax.numpy as jnp

from mmu_jax import InputError, lora, memory, methods, models, train, trees

ADVICE = (
    "use LoRA (config.unlearn.lora.rank=16 and, for the vanilla model, config.vanilla.lora.rank=16, with "
    "config.model.param_dtype=bfloat16), more devices (config.mesh), fewer rows, or go on all the same with "
    "config.memory.go_on=True"
)


def vanilla_method(rows: dict[str, int]) -> methods.Method:
    """Fine-tuning on everyone: the streams that have rows, in one step."""
    phase = methods.Phase({name: "descent" for name in ("vqa", "text") if rows[name]})
    return methods.Method((phase,), source="fine-tuning on everyone")


def lora_of(section: Any, model: models.Model) -> lora.LoRA | None:
    """The re-parametrisation of a section of the config, None for full training."""
    if not section.lora.rank:
        return None
    spec = lora.LoRA(**section.lora)
    lora.check(spec, model.abstract(), model.module.ELIGIBLE)
    return spec


def check(c: Any) -> None:
    """Refuses, before anything is made, what would be refused after hours."""
    coarse = c.model.param_dtype != "float32"
    if coarse and not c.vanilla.path and not c.vanilla.lora.rank:
        raise InputError(
            f"expected config.model.param_dtype=float32 or a LoRA to train the vanilla model, found {c.model.param_dtype} "
            "and no LoRA; set config.vanilla.lora.rank too, or give a model that needs no training in config.vanilla.path"
        )
    if coarse and not c.unlearn.lora.rank:
        raise InputError(
            f"expected config.model.param_dtype=float32 or a LoRA to unlearn with, found {c.model.param_dtype} and no "
            "LoRA; set config.unlearn.lora.rank"
        )
    for name in c.unlearn.methods:
        method = methods.METHODS[name]
        if method.mask and method.mask.rule != "ratio" and not c.saliency.keep_scores:
            raise InputError(
                f"expected the scores themselves for the mask of {name} (rule {method.mask.rule}), found "
                "config.saliency.keep_scores=False; set it to True"
            )
        if c.unlearn.lora.rank:
            train.check_lora(method)


def memory_plan(run: Any) -> None:
    """Prints what every stage of a ``run.Run`` needs on a device; refuses what cannot fit unless told to go on.

    Raises:
      InputError: a stage does not fit, or LoRA would reach nothing of what a method masks.
    """
    c, ledger = run.config, memory.Ledger(run.model, run.mesh, jnp.dtype(run.config.model.param_dtype))
    streams = run.unlearning_streams(c.unlearn.rows)

    largest = {what: max(s.largest[what] for s in streams.values()) for what in ("tokens", "patches")}

    def shape(rows):
        return memory.Shape(rows, images=1, **largest)

    stages, eligible = {}, trees.split(run.model.abstract(), run.model.module.ELIGIBLE)[0]
    spec = lora_of(c.unlearn, run.model)
    for name in c.unlearn.methods if spec else ():
        mask = methods.METHODS[name].mask
        side = ".*" if mask is None or mask.side == "both" else run.model.module.SIDES[mask.side]
        reached = trees.split(eligible, spec.targets)[0]
        if not any(re.fullmatch(side, leaf) for leaf in trees.flatten(reached)):
            raise InputError(
                f"expected config.unlearn.lora.targets that reach the side {name} masks ({mask.side}), found "
                f"{spec.targets!r} which does not; name leaves of that side, such as those of {side!r}"
            )
    if not c.vanilla.path:
        rows, there = c.vanilla.rows.to_dict(), dataclasses.replace(ledger, mesh=run.training_mesh)
        method = vanilla_method(rows)
        stages["vanilla"] = there.training(method, shape(max(rows.values())), lora_of(c.vanilla, run.model))
    table = {name: methods.METHODS[name] for name in c.unlearn.methods}
    if scored := [method.mask for method in table.values() if method.mask]:
        rows = c.saliency.rows if scored[0].unit == "example" else c.unlearn.rows
        stages["saliency"] = ledger.saliency(scored, shape(rows), c.saliency.chunk, c.saliency.keep_scores)
    for name, method in table.items():
        stages[f"unlearn/{name}"] = ledger.training(method, shape(c.unlearn.rows), spec)
    stages["evaluate"] = ledger.generation(shape(c.evaluate.rows), c.evaluate.new_tokens)
    limit = int(c.memory.limit_gib * 2**30) or memory.capacity(run.mesh)
    print(memory.table(stages, limit), flush=True)
    kept = max(memory.checkpoint(needs) for needs in stages.values()) * run.mesh.size
    model = trees.size(run.model.abstract()) * jnp.dtype(c.model.param_dtype).itemsize
    print(f"  disk: about {memory.size(model)} a model; a checkpoint of one in training, {memory.size(kept)}, every "
          f"{c.save_every} iterations and for a moment twice", flush=True)  # fmt: skip
    data = run.mesh.shape["data"]
    for what, rows in (("unlearn", c.unlearn.rows), ("evaluate", c.evaluate.rows)):
        if rows % data:
            print(f"  config.{what}.rows={rows} does not divide by config.mesh.data={data}: each device does every row")
    if not c.memory.go_on:
        memory.check(stages, limit, ADVICE)
