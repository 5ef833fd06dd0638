"""What is settled before anything is loaded: that the config can work, and that it fits into memory."""

import dataclasses
import re

import jax.numpy as jnp
from ml_collections import ConfigDict
from PIL import Image

from mmu_jax import (
    Faults,
    InputError,
    attacks,
    clear_compat,
    factor,
    hf,
    hub,
    lora,
    memory,
    methods,
    models,
    together,
    trees,
)
from mmu_jax.data import IMAGE, TEXT, branches, builders, text, vision
from mmu_jax.data.picture import Picture
from mmu_jax.data.sets import clear
from mmu_jax.data.streams import longest
from mmu_jax.study import general
from mmu_jax.study.workspace import Workspace
from mmu_jax.trainable import Trainable

ADVICE = (
    "use LoRA (config.unlearn.lora.rank=16 and, for the vanilla model, config.vanilla.lora.rank=16, with "
    "config.model.param_dtype=bfloat16), more devices (config.mesh), fewer rows, or go on all the same with "
    "config.memory.allow_too_large=True"
)
TUNED = ("vqa", "text", "rehearsal")  # what a model is fine-tuned on


def fine_tuning(rows: dict[str, int]) -> methods.Method:
    """Fine-tuning on everyone: the streams that have rows, in one step."""
    phase = methods.Phase({name: "descent" for name in TUNED if rows[name]})
    return methods.Method((phase,), source="fine-tuning on everyone")


def trainable(config: ConfigDict, section: str, model: models.Model) -> Trainable | None:
    """What trains by a section of the config (``vanilla``, ``unlearn``): a LoRA, with leaves beside it, or None for the params themselves.

    Raises:
      InputError: its targets are not linear weights of the model, or match none; or so do the leaves beside it.
    """
    if not config[section].lora.rank:
        return None
    given = config[section].lora.to_dict()
    whole, spec = given.pop("whole", ""), lora.LoRA(**given)
    try:
        lora.check_targets(spec, model.abstract(), model.family.eligible)
    except InputError as error:
        raise InputError(f"config.{section}.lora.targets: {error}") from error
    if not whole:
        return spec
    both = together.Together(spec, whole)
    try:
        both.check_leaves(model.abstract())
    except InputError as error:
        raise InputError(f"config.{section}.lora.whole: {error}") from error
    return both


def preflight(work: Workspace, wanted: list[str]) -> None:
    """What can be known of the ``wanted`` stages of a workspace from small files, before anything is written.

    Config and processor of the checkpoint are fetched and read, the data set is reached, and where weights would be fetched
    the plan is made of the smallest batch there can be: what does not fit then never will.

    Raises:
      InputError: something is not there (all of it is named, with the folders to give), does not agree with itself, or
        does not fit. Faults where all that is wrong with the data set is told at once.
    """
    c, problems = work.config, []
    path, key = work.starts_from
    if "data" in wanted and not c.data.path:
        try:
            _reach_data(c.data)
        except Faults:  # a list of its own
            raise
        except InputError as error:
            problems.append(str(error))
    if needed := path and any(name != "report" for name in wanted):
        try:
            hub.fetch(path, key, patterns=hub.SMALL)
        except InputError as error:
            problems.append(str(error))
    if c.evaluate.clear_compat and any(name.startswith("evaluate/") for name in wanted):
        _check_clear(c.data)
    projected = {f"unlearn/{name}" for name in c.unlearn.methods if methods.METHODS[name].reads_factors}
    if c.factors.path and projected & set(wanted):
        try:
            factor.head(c.factors.path)
        except InputError as error:
            raise InputError(f"config.factors.path: {error}") from error
    if problems:
        raise InputError(
            "; ".join(problems) + "; or run python -m experiments.run --config=configs/tiny.py, which needs no network"
        )
    if needed:
        smallest = _least(work)
        for section in ("unlearn",) if c.vanilla.path else ("unlearn", "vanilla"):
            trainable(c, section, work.model)
        if not hub.is_id(path):
            hf.survey(path, work.model)  # headers only: what is missing is known before anything is made
        elif not c.memory.allow_too_large:
            stages, limit = needs(work, smallest)
            if max(sum(need.values()) for need in stages.values()) > limit:
                print(memory.table(stages, limit), flush=True)
                memory.check(stages, limit, ADVICE)


def _reach_data(data: ConfigDict) -> None:
    """Whether the data set can be read, and has whom it should.

    Raises:
      InputError: it is not there or not whole; Faults where all that is wrong with it is told at once.
    """
    module = builders.DATASETS[data.name]
    if not hasattr(module, "HUB"):
        return
    source = data.source or module.HUB
    folder = hub.fetch(source, "config.data.source", kind="dataset", patterns=["README.md"])
    if not hub.is_id(source):
        retain = "" if data.retain == builders.REST else data.retain
        builders.check_source(data.name, folder, data.forget, retain)


def _check_clear(data: ConfigDict) -> None:
    """Raises InputError unless the data set is one of which CLEAR's own table can be made."""
    name = builders.name_of(data.path) if data.path else data.name
    if builders.DATASETS.get(name) is clear:
        return
    found = f"the data set {name} in config.data.path={data.path}" if data.path else f"config.data.name={name}"
    raise InputError(
        f"expected the data set clear for config.evaluate.clear_compat=True, found {found}; set it to False, or take CLEAR with "
        "benchmark=clear after the config's colon"
    )


def _least(work: Workspace) -> dict[str, int]:
    """The smallest lengths of a batch that holds one photo and a word."""
    photo = vision.pictures(work.processor, [Image.new("RGB", (64, 64))], work.config.data.max_pixels)[0]
    return work.sizes.padded(photo.tokens + 1, photo.length)


def memory_plan(work: Workspace) -> None:
    """Prints, once, what every stage of a workspace needs on a device; refuses what cannot fit unless told to go on.

    Raises:
      InputError: a stage does not fit, or LoRA would reach nothing of what a method masks.
    """
    if work.planned:
        return
    more = {name for method in _rows(work.config) for name in method.reads}
    c, names = work.config, ("forget", "retain", "text", *sorted(more))
    streams = {name: work.stream(name, c.unlearn.rows) for name in dict.fromkeys(names) if work.asked_of(name)}
    stages, limit = needs(
        work,
        {what: max(s.largest[what] for s in streams.values()) for what in ("tokens", "patches")},
        _asked(work),
        _ranked(work),
        max(s.texts.longest_answer for s in streams.values()),
    )
    print(memory.table(stages, limit), flush=True)
    # An attack keeps no checkpoint.
    kept = max(memory.checkpoint(needs) for name, needs in stages.items() if name != "attack") * work.mesh.size
    model = trees.size(work.model.abstract()) * jnp.dtype(c.model.param_dtype).itemsize
    minutes = f" or {c.save_minutes:g} minutes" if c.save_minutes else ""
    print(f"  disk: about {memory.size(model)} a model; a checkpoint of one in training, {memory.size(kept)}, every "
          f"{c.save_every} iterations{minutes}; two are kept, and for a moment three", flush=True)  # fmt: skip
    data = work.mesh.shape["data"]
    for what, rows in (
        ("unlearn", c.unlearn.rows),
        ("unlearn.stop", c.unlearn.stop.rows),
        ("evaluate", c.evaluate.rows),
    ):
        if rows % data:
            print(f"  config.{what}.rows={rows} does not divide by {data} devices: each of them does every row")
    if not c.memory.allow_too_large:
        memory.check(stages, limit, ADVICE)
    work.planned = True


def supply(work: Workspace) -> None:
    """Whether there is something of everything that the methods train on and are scored by.

    Raises:
      InputError: there is not; every method that lacks something is named.
    """
    lacking = []
    for name, row in zip(work.config.unlearn.methods, _rows(work.config), strict=True):
        needed = row.reads | ({"forget", "retain", "text"} if row.mask and row.mask.scored else set())
        if missing := sorted(stream for stream in needed if not work.asked_of(stream)):
            lacking.append(f"{name} ({', '.join(missing)})")
    if lacking:
        raise InputError(
            f"expected questions in everything that the methods train on or are scored by, found none for {'; '.join(lacking)}; choose "
            "projected, which needs only who is to be forgotten (config.unlearn.methods), or set config.unlearn.replay=0, or add people"
        )


def _asked(work: Workspace) -> dict[str, int] | None:
    """The largest lengths of a batch of questions, by those with the most characters of either kind and benchmark; None if none is asked."""
    c, found = work.config.evaluate, []
    prompts, people = work.prompts, work.benchmark.shown
    for kind in (IMAGE, TEXT):
        put = {"generation": prompts.free, "cloze": prompts.filled_blank}
        put |= {"choices": prompts.asked_letter} if c.letters else {}
        said = {ask(i) for task, ask in put.items() for p in people for i in getattr(p, task) if i.kind == kind}
        if c.clear_compat:
            said |= {
                i.question for t in clear_compat.TASKS for i in clear_compat.asked(t, work.benchmark) if i.kind == kind
            }
        if most := sorted(said, key=lambda words: (len(words), words))[-32:]:
            found.append(longest(text.encode_prompts(work.processor, most, int(kind == IMAGE)), _photos(work)))
    return _padded(work, found + general.longest(work))


def _ranked(work: Workspace) -> dict[str, int] | None:
    """The same of rows that hold all options of a question."""
    found, photos = [], _photos(work)
    for kind in (IMAGE, TEXT):
        choices = [i for p in work.benchmark.shown for i in (*p.choices, *p.perturbed)]
        if work.config.evaluate.clear_compat:
            choices += [i for name in clear_compat.TASKS for i in clear_compat.asked(name, work.benchmark)]
        choices = [i for i in choices if i.kind == kind and len(i.options) > 1]
        said = {(i.question, *i.options.values()) for i in choices}
        if most := sorted(said, key=lambda words: (sum(map(len, words)), words))[-32:]:
            pairs = [(question, option) for question, *options in most for option in options]
            texts = text.encode(work.processor, pairs, int(kind == IMAGE))
            shown = max((photo.tokens for photo in photos), default=0) if kind == IMAGE else 0
            rows, _ = branches.join(texts, [len(words) - 1 for words in most], shown, work.sizes)
            found.append(longest(rows, photos))
    return _padded(work, found)


def _photos(work: Workspace) -> list[Picture]:
    return [picture for album in work.albums.values() for picture in album.pictures]


def _padded(work: Workspace, found: list[dict[str, int]]) -> dict[str, int] | None:
    return work.sizes.padded(**{what: max(f[what] for f in found) for what in found[0]}) if found else None


def method(config: ConfigDict, name: str) -> methods.Method:
    """The row of a name as the config runs it: where nothing is replayed, without what it does on the kept people.

    Raises:
      InputError: nothing is left of it.
    """
    row = methods.METHODS[name]
    return row if config.unlearn.replay else row.alone()


def _rows(config: ConfigDict) -> list[methods.Method]:
    return [method(config, name) for name in config.unlearn.methods]


def _check_reach(work: Workspace, spec: Trainable | None) -> None:
    """Raises InputError where a LoRA reaches nothing of the side that a method masks."""
    eligible = trees.split(work.model.abstract(), work.model.family.eligible)[0]
    for name in work.config.unlearn.methods if spec else ():
        mask = methods.METHODS[name].mask
        side = ".*" if mask is None or mask.side == "both" else work.model.family.sides[mask.side]
        reached = trees.split(eligible, spec.targets)[0]
        if not any(re.fullmatch(side, leaf) for leaf in trees.flatten(reached)):
            raise InputError(
                f"expected config.unlearn.lora.targets that reach the side {name} masks ({mask.side}), found "
                f"{spec.targets!r} which does not; name leaves of that side, such as those of {side!r}"
            )


def needs(
    work: Workspace,
    largest: dict[str, int],
    asked: dict[str, int] | None = None,
    ranked: dict[str, int] | None = None,
    answers: int = 0,
) -> tuple[dict[str, memory.Needs], int]:
    """Stage -> bytes on a device, for batches of the ``largest`` lengths, and the bytes a device may hold.

    ``asked`` are the lengths where the model is questioned, ``ranked`` those where it ranks options, ``largest`` if None;
    ``answers`` tokens of a row at most are learned from, all if 0.
    """
    c, ledger = work.config, memory.Ledger(work.model, work.mesh, jnp.dtype(work.config.model.param_dtype))

    def shape(rows, lengths=largest, answers=0):
        return memory.Shape(rows, images=1, answers=answers, **lengths)

    stages, spec = {}, trainable(c, "unlearn", work.model)
    _check_reach(work, spec)
    if not c.vanilla.path:
        rows, there = c.vanilla.rows.to_dict(), dataclasses.replace(ledger, mesh=work.training_mesh)
        stages["vanilla"] = there.training(
            fine_tuning(rows), shape(max(rows.values())), trainable(c, "vanilla", work.model)
        )
    table = dict(zip(c.unlearn.methods, _rows(c), strict=True))
    scored, rows = [], {"example": c.saliency.rows, "batch": c.unlearn.rows}
    for unit in rows:  # scores of one kind are held at a time
        if wanted := [row.mask for row in table.values() if row.mask and row.mask.scored and row.mask.unit == unit]:
            scored.append(ledger.saliency(wanted, shape(rows[unit]), c.saliency.chunk, c.saliency.keep_scores))
    if scored:
        stages["saliency"] = max(scored, key=lambda need: sum(need.values()))
    share = 1.0 if c.factors.alpha else c.factors.fraction or memory.SHARE
    if any(row.reads_factors for row in table.values()) and not c.factors.path:
        stages["factors"] = ledger.factors(shape(c.factors.rows, answers=answers), c.factors.blocks, share)
    look = ledger.activations(shape(c.unlearn.stop.rows or c.unlearn.rows, answers=answers), backward=False)
    for name, row in table.items():
        how = spec or row.trains(work.model.family)
        steps = [ledger.training(one, shape(c.unlearn.rows, answers=answers), how, share) for one in row.trained]
        if row.edit:
            rows = max(c.unlearn.rows, c.saliency.rows, c.unlearn.stop.rows)
            stages[f"unlearn/{name}"] = ledger.editing(row, shape(rows, answers=answers), c.saliency.chunk, steps)
            continue
        (needed,) = steps
        if row.projects and not row.reads_factors:  # measured first, all layers at once
            made = ledger.factors(shape(c.factors.rows, answers=answers), 1, share)
            needed = max(needed, made, key=lambda need: sum(need.values()))
        needed["activations (estimate)"] = max(needed["activations (estimate)"], look * bool(c.unlearn.stop.every))
        stages[f"unlearn/{name}"] = needed
    asked_for = [attacks.ATTACKS[name] for name in attacks.named(c.attack.names)]
    if any(row.trains for row in asked_for):
        stages["attack"] = ledger.training(attacks.models.LESSON, shape(c.attack.rows))
    elif any(row.backward for row in asked_for):
        held = {"params": ledger.params(), "activations (estimate)": ledger.activations(shape(c.attack.rows))}
        stages["attack"] = held
    tokens = max(c.evaluate.new_tokens, clear_compat.TOKENS * c.evaluate.clear_compat)
    questioned = [ledger.generation(shape(c.evaluate.rows, asked or largest), tokens)]
    questioned += [ledger.ranking(shape(c.evaluate.rows, ranked or largest))]
    stages["evaluate"] = max(questioned, key=lambda need: sum(need.values()))
    limit = int(c.memory.limit_gib * 2**30) or memory.capacity(work.mesh)
    return stages, limit
