"""The stages of a study, one function each, and the order in which they tell the story."""

import dataclasses
import functools
import math
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from mmu_jax import (
    InputError,
    NotFiniteError,
    adapters,
    evaluate,
    hf,
    hub,
    models,
    report,
    sharding,
    trees,
)
from mmu_jax.data import builders, loader, tiny
from mmu_jax.files import stamp
from mmu_jax.methods import METHODS
from mmu_jax.models import gguf
from mmu_jax.phases import PROSE
from mmu_jax.plan import Plan
from mmu_jax.report import results
from mmu_jax.study import attacking, checks, clear, gate, general, records, scoring, unlearning
from mmu_jax.study.fitting import Job, fit
from mmu_jax.study.progress import Progress
from mmu_jax.study.stages import Stage
from mmu_jax.study.workspace import CONTROLS, Workspace
from mmu_jax.trees import Tree

# ---- the order


def stages(work: Workspace) -> list[Stage]:
    """Every stage with the part of the config that its result depends on, in the order of the story."""
    c, given = work.config.to_dict(), work.config.vanilla.path
    data = {key: value for key, value in c["data"].items() if key not in ("group", "tokens", "patches", "max_pixels")}
    data = _known(work, data, "source", "path")
    # What every number that a model computes depends on.
    numbers = {"dtype": c["model"]["dtype"], "param_dtype": c["model"]["param_dtype"]}
    numbers |= {"max_pixels": c["data"]["max_pixels"]}
    source = {"data": data} | ({"vanilla": _known(work, {"path": given}, "path")} if given else {})
    built = () if c["data"]["path"] else (work.workdir / "data",)
    start = [Stage("data", source, (), _by_one(prepare_data, work), models=built)]
    if given and work.adapter:
        based, merged = _known(work, {"base": work.adapter}, "base"), {"models": (work.vanilla,)}
        start += [Stage("merge", based, ("data",), _by_one(_fitting(work, merge)), **merged)]
    trained = {"vanilla": c["vanilla"], "seed": c["seed"], "numbers": numbers}
    gold = []
    if not given:
        made = {key: value for key, value in c["model"].items() if key not in ("dtype", "param_dtype")}
        made = _known(work, made, "path", "language")
        made_base = _fitting(work, make_base) if c["model"]["path"] else functools.partial(make_base, work)
        begun = () if c["model"]["path"] else (work.base,)
        start += [Stage("base", {"model": made, "seed": c["seed"]}, ("data",), _by_one(made_base), models=begun)]
        start += [_tuned(work, "vanilla", trained)]
        gold = [_tuned(work, "gold", trained)] if c["gold"] else []
    first = start[-1].name
    # Nothing is unlearned from a model that does not know what is to be forgotten.
    known = _evaluated(work, "vanilla", first, numbers)
    scored = [_scored(work, name, first, numbers) for name in _by_scores(work)]
    if any(METHODS[name].reads_factors for name in work.config.unlearn.methods) and not c["factors"]["path"]:
        scored += [_factors(work, first, numbers)]
    unlearned = [_unlearned(work, name, first, numbers) for name in work.config.unlearn.methods]
    others = [name for name in work.names() if name != "vanilla"]
    asked = [_evaluated(work, name, "gold" if name == "gold" else f"unlearn/{name}", numbers) for name in others]
    able = _able(work, first, numbers)
    attacked = [stage for name in work.names() for stage in _attacked(work, name, first, numbers)]
    prose = {n: {field: getattr(METHODS[n], field) for field in PROSE} for n in work.config.unlearn.methods}
    told = Stage(
        "report",
        {"methods": prose, "attacks": attacking.sources(work), "show_people": c["show_people"]},
        (*(f"evaluate/{name}" for name in work.names()), *(stage.name for stage in (*able, *attacked))),
        _by_one(tell, work),
        (work.workdir / "report.html", work.workdir / "report.md"),
    )
    # The vanilla model serves every group of people to forget; what follows is of one.
    of_group = {"data": {"group": c["data"]["group"]}}
    after = [known, *gold, *scored, *unlearned, *asked, *able, *attacked, told]
    return [*start, *(dataclasses.replace(stage, reads=stage.reads | of_group) for stage in after)]


def _known(work: Workspace, reads: dict[str, Any], *paths: str) -> dict[str, Any]:
    """``reads`` with ``{name}.content``, a hash of what is in it, for every one of ``paths`` that is a folder here.

    Another model behind the same path is another model, and a folder that was moved is the same; what is on the hub is
    known by its id.
    """
    found = {}
    for name, value in reads.items():
        folder = name in paths and value and pathlib.Path(value).exists()
        found |= {f"{name}.content": stamp(value, work.workdir)} if folder else {name: value}
    return found


def _by_one(make: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """A stage that computes nothing on the mesh: of several processes the main one makes it."""
    return functools.partial(sharding.first, functools.partial(make, *args))


def _fitting(work: Workspace, make: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """A stage that reads weights: it begins once it is known that everything fits into memory."""

    def made():
        checks.memory_plan(work)
        return make(work, *args)

    return made


def _tuned(work: Workspace, name: str, reads: dict[str, Any]) -> Stage:
    made = (work.folder(name), work.curves(name))
    return Stage(name, reads, ("base",), _fitting(work, fine_tune, name), models=made)


def _by_scores(work: Workspace) -> list[str]:
    """The methods that have a mask; those that share scores stand together: they are taken once and dropped."""
    wanted = [name for name in work.config.unlearn.methods if METHODS[name].mask]
    return sorted(wanted, key=lambda name: str(METHODS[name].mask.reads))


def _scored(work: Workspace, name: str, start: str, numbers: dict) -> Stage:
    c, method = work.config.to_dict(), METHODS[name]
    reads = {"saliency": c["saliency"], "mask": method.arithmetic()["mask"], "seed": c["seed"], "numbers": numbers}
    reads |= {"rows": c["unlearn"]["rows"]} if method.mask.unit == "batch" else {}
    if not method.mask.scored:
        reads = {"mask": reads["mask"]}
    made = (work.mask(name), work.mask(name).with_suffix(".json"))
    return Stage(f"saliency/{name}", reads, (start,), _fitting(work, scoring.mask, name), made)


def _unlearned(work: Workspace, name: str, start: str, numbers: dict) -> Stage:
    c = work.config.to_dict()
    method, inputs = checks.method(work.config, name), [start]
    rates = ("learning_rate", "retain_rate")
    how = {k: v for k, v in c["unlearn"].items() if k not in ("methods", "strength", *rates)}
    rates += ("strength",) if method.edit else ()
    how |= {key: c["unlearn"][key].get(name) for key in rates} | {"seed": c["seed"]}
    reads = {"unlearn": how, "method": method.arithmetic(), "numbers": numbers}
    inputs += [f"saliency/{name}"] if method.mask else []
    measured = {key: value for key, value in c["factors"].items() if key not in ("path", "blocks", "loss")}
    if method.projects and not method.reads_factors:
        reads |= {"factors": measured}
    elif method.projects and c["factors"]["path"]:
        reads |= _known(work, {"factors": c["factors"]["path"]}, "factors")
    elif method.projects:
        inputs += ["factors"]
    made = (work.folder(name), work.adapted(name), work.curves(f"unlearn/{name}"))
    return Stage(f"unlearn/{name}", reads, tuple(inputs), _fitting(work, unlearning.unlearn, name), models=made)


def _factors(work: Workspace, start: str, numbers: dict) -> Stage:
    c = work.config.to_dict()
    measured = {key: value for key, value in c["factors"].items() if key not in ("path", "blocks")}
    reads = {"factors": measured, "seed": c["seed"], "numbers": numbers}
    return Stage("factors", reads, (start,), _fitting(work, scoring.factors), (work.factors,))


def _evaluated(work: Workspace, name: str, upstream: str, numbers: dict) -> Stage:
    reads = {"evaluate": work.config.evaluate.to_dict(), "numbers": numbers, "seed": work.config.seed}
    made = (work.result(name), work.workdir / "answers" / f"{name}.json")
    return Stage(f"evaluate/{name}", reads, (upstream,), _fitting(work, examine, name), made)


def _made_by(name: str, first: str) -> str:
    """The stage that makes a model."""
    return first if name == "vanilla" else "gold" if name == "gold" else f"unlearn/{name}"


def _able(work: Workspace, first: str, numbers: dict) -> list[Stage]:
    """A stage for every general benchmark that is given and every model."""
    reads = {benchmark: general.reads(work, benchmark) | {"numbers": numbers} for benchmark in work.general}

    def stage(name, benchmark):
        make, made = _fitting(work, general.ask, name, benchmark), (work.ability(name, benchmark),)
        return Stage(f"general/{name}/{benchmark}", reads[benchmark], (_made_by(name, first),), make, made)

    return [stage(name, benchmark) for name in work.names() for benchmark in reads]


def _attacked(work: Workspace, name: str, first: str, numbers: dict) -> list[Stage]:
    """A stage for every attack on a model."""

    def stage(attack):
        make, made = _fitting(work, attacking.attack, name, attack), (work.attacked(name, attack),)
        reads = attacking.reads(work, attack) | {"numbers": numbers}
        made_by = dict.fromkeys((_made_by(name, first), *(["gold"] if attacking.against_gold(work, attack) else [])))
        return Stage(f"attack/{name}/{attack}", reads, tuple(made_by), make, made)

    return [stage(attack) for attack in attacking.names(work)]


# ---- what is there before anything is unlearned


def prepare_data(work: Workspace) -> dict:
    """The data set, read and looked through: what cannot be shown or asked is found here, not after hours of training."""
    if not work.config.data.path:
        shutil.rmtree(work.workdir / "data", ignore_errors=True)  # begun and not ended, maybe from another source
    work.forget_data()
    b = work.benchmark
    c = work.config.data
    for line in (*builders.left_out(work.data), *([] if c.path else builders.not_read(c.name, c.source))):
        print(f"  {line}", flush=True)
    checks.supply(work)
    for fault in attacking.left_out(work).values():
        print(f"  left out: {fault}", flush=True)
    general.check(work, processor=bool(work.config.model.path or work.config.vanilla.path))
    if work.config.model.path or work.config.vanilla.path:
        loader.examine(work.processor, b.shown, work.config.data.max_pixels, work.sizes)
    else:  # the processor is made later, and any photo suits it
        for person in b.shown:
            loader.decode(person)
    if idle := sorted({p.id for p in b.full} - {p.id for p in (*b.forget, *b.retain, *b.before)}):
        print(f"  {len(idle)} of {len(b.full)} people of full stand in neither split: trained on as kept unless config.data.others=False, asked nothing "
              f"({', '.join(idle[:5])}{', ...' if len(idle) > 5 else ''})", flush=True)  # fmt: skip
    if (out := builders.number(work.data, "full") - len(b.full)) and not c.others:
        print(
            f"  {out} of {out + len(b.full)} people of full stand in neither split: left out (config.data.others=False)",
            flush=True,
        )
    # Of the test split all who are asked about: how many of them are forgotten is the group's.
    found = {"full": b.full, "forget": b.forget, "retain": b.retain, "test": (*b.test, *b.retain_test)}
    found |= {"unseen": b.unseen, "celebrity": b.celebrity} | ({"before": b.before} if b.before else {})
    return {name: len(people) for name, people in found.items()}


def merge(work: Workspace) -> None:
    """The vanilla model, from an adapter and its base."""
    adapter = hub.fetch(work.config.vanilla.path, "config.vanilla.path")
    adapters.merge(adapter, hub.fetch(work.adapter, "config.model.path"), work.vanilla)


def make_base(work: Workspace) -> dict:
    """The model that is fine-tuned: the one that is given, or a small one from nothing or around a language model."""
    c = work.config.model
    if c.path:
        model = models.Model(hf.read_config(work.base))
    else:
        tokens, text, own = None, c.text.to_dict(), {}
        if c.language:
            language = gguf.read(gguf.find(c.language))
            tokens = gguf.tokenizer(language, c.system)
            text = gguf.config(language, tokens)
            own = gguf.weights(language, text.vocab_size)
        vision = c.vision.to_dict()
        processor = tiny.processor(vision["image_size"], vision["patch_size"], tokens)
        model = models.Model(tiny.config(processor.tokenizer, vision=vision, text=text))
        params = trees.map_named(lambda name, drawn: own.get(name, drawn), model.init(work.config.seed))
        hf.create(params, model, processor, work.base, work.config.seed)
    return {"parameters": trees.size(model.abstract())}


def fine_tune(work: Workspace, name: str) -> dict:
    """On everyone (vanilla) or on everyone but the people to forget (gold), and on general questions if there is rehearsal."""
    c = work.config.vanilla
    without = frozenset(work.benchmark.forget_ids) if name == "gold" else frozenset()
    rows = c.rows.to_dict()
    streams = {stream: work.stream(stream, rows[stream], without) for stream in checks.TUNED if rows[stream]}
    numbers = {key: c[key] for key in ("learning_rate", "schedule", "warmup", "clip")}
    numbers |= {"trainable": checks.trainable(work.config, "vanilla", work.model), "seed": work.config.seed}
    iterations = math.ceil(c.epochs * next(iter(streams.values())).steps)
    plan = Plan(checks.fine_tuning(rows), iterations, **numbers)
    params = work.load(work.base, mesh=work.training_mesh, consumed=plan.trainable.consumes)
    return fit(work, name, Job(plan, streams), params, work.training_mesh)


# ---- what is told


def question(work: Workspace, label: str, params: Tree) -> tuple[dict, dict]:
    """Results and answers of a model on every split."""
    b, full = work.benchmark, work.albums["full"]
    splits = {"forget": (b.forget, full), "retain": (b.retain, full)}
    splits |= {name: (getattr(b, name), work.albums[name]) for name in CONTROLS if name in work.albums}
    bar = Progress(f"evaluate/{label}", len(evaluate.TASKS) * len(splits))
    found = evaluate.evaluate(work.examiner, params, splits, bar.add)
    bar.close()
    return found


def examine(work: Workspace, name: str) -> None:
    """Questions a model and writes what it said; of the vanilla model, then refuses one that does not know enough."""
    c = work.config.evaluate
    params = work.load(work.folder(name), consumed=name != "vanilla")
    try:
        found, answers = question(work, name, params)
        as_clear = {"clear_compat": clear.table(work, name, params)} if c.clear_compat else {}
    except NotFiniteError as error:
        if name not in work.config.unlearn.methods:
            raise
        raise NotFiniteError(
            f"{error}; it was unlearned at too high a rate: delete {records.place(work.workdir, f'unlearn/{name}')} and lower "
            f"config.unlearn.learning_rate.{name}"
        ) from error
    made = (records.read(work.workdir, f"unlearn/{name}") or {}).get("result") or {}
    proof = made.get("mask_proof", {})
    records.write(work.workdir / "answers" / f"{name}.json", answers)
    value: dict[str, Any] = {"model": name, "results": found, "mask_proof": proof, **as_clear}
    stopped = made.get("stopped", {})
    told = {"headline": c.headline, "reached": stopped.get("reached", True)}
    value |= {"flags": results.flags(found, proof, made.get("changed_in_file"), **told), "stopped": stopped}
    value |= {"config": work.told_config, "provenance": records.provenance()}
    records.write(work.result(name), value)
    work.tracker.results(name, found)
    if name == "vanilla":  # what it said is on disk: a refusal can be looked into
        trained = not work.config.vanilla.path
        if why := gate.refusal(found, c.headline, c.memorised, trained=trained, prompts=work.prompts):
            raise InputError(why)


def tell(work: Workspace) -> None:
    """The report."""
    shown = {"show_people": work.config.show_people}
    report.write(work.workdir, work.names(), work.benchmark, attacking.sources(work), tuple(work.general), **shown)
