"""From a checkpoint and a benchmark to unlearned checkpoints and a report one can trust.

    python -m experiments.run --config=configs/tiny.py [--workdir=DIR] [--config.key=value ...] [--stages=a,b]

Stages: data -> base -> vanilla -> gold -> saliency/<method> -> unlearn/<method> -> evaluate/<model> -> report. A stage whose
record in ``<workdir>/stages`` matches is skipped; one that was made with another config is refused before anything is
written. The same command goes on where it was killed and ends in the same results, bit for bit.
"""

import dataclasses
import functools
import os
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from experiments.stages import Progress, Stage, Stages, provenance, write_json
from mmu_jax import (
    InputError,
    checkpoint,
    evaluate,
    hf,
    masks,
    methods,
    models,
    report,
    saliency,
    sharding,
    train,
    trees,
)
from mmu_jax.data import IMAGE, TEXT, Benchmark, builders, loader, tiny

CONFIG = config_flags.DEFINE_config_file("config", None, "Path of the config file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is kept; default runs/<config name>.")
STAGES = flags.DEFINE_list("stages", [], "Only these stages, by name or by their part before the slash.")

VANILLA = methods.Method((methods.Phase({"vqa": "descent", "text": "descent"}),), source="fine-tuning on everyone")


class Run:
    """A config, a workdir, and what stages share, loaded when first needed."""

    def __init__(self, config: Any, workdir: pathlib.Path):
        self.config, self.workdir = config, workdir
        self.mesh = sharding.make_mesh(**config.mesh)
        self.stages = Stages(workdir, self._stages())
        self.scored: tuple[str, methods.Evidence] | None = None  # the unit scored last and its scores

    # ---- what stages share

    @functools.cached_property
    def benchmark(self) -> Benchmark:
        where = self.config.data.path or builders.prepare(self.config.data.name, self.workdir / "data")
        return builders.read(where, forget=self.config.data.forget, retain=self.config.data.retain)

    @property
    def base(self) -> pathlib.Path:
        return pathlib.Path(self.config.model.path or self.workdir / "base")

    @property
    def vanilla(self) -> pathlib.Path:
        return pathlib.Path(self.config.vanilla.path or self.workdir / "vanilla")

    @functools.cached_property
    def processor(self) -> Any:
        return hf.read_processor(self.vanilla if self.config.vanilla.path else self.base)

    @functools.cached_property
    def model(self) -> models.Model:
        source = self.vanilla if self.config.vanilla.path else self.base
        return models.Model(hf.read_config(source), jnp.dtype(self.config.model.dtype))

    @functools.cached_property
    def albums(self) -> dict[str, loader.Album]:
        names = ("full", "test", "unseen")
        pixels = self.config.data.max_pixels
        return {name: loader.album(self.processor, getattr(self.benchmark, name), pixels) for name in names}

    @functools.cached_property
    def sizes(self) -> loader.Sizes:
        return loader.Sizes(tuple(self.config.data.tokens), tuple(self.config.data.patches))

    @functools.cached_property
    def people(self) -> dict[str, int]:
        return {person.id: index for index, person in enumerate(self.benchmark.full)}

    @functools.cached_property
    def vanilla_params(self) -> Any:
        return hf.load(self.vanilla, self.model, self.mesh)

    def examples(self, kind: str, keep: Callable[[str], bool]) -> list:
        return [e for p in self.benchmark.full if keep(p.id) for e in p.training if e.kind == kind]

    def stream(self, name: str, kind: str, rows: int, keep: Callable[[str], bool]) -> loader.Stream:
        album = self.albums["full"] if kind == IMAGE else None
        seed = self.config.seed * 1000 + sum(map(ord, name))
        examples = self.examples(kind, keep)
        numbers = dict(people=self.people, rows=rows, seed=seed, sizes=self.sizes)
        return loader.stream(name, self.processor, examples, album, **numbers)

    def unlearning_streams(self, rows: int) -> dict[str, loader.Stream]:
        forgotten = set(self.benchmark.forget_ids)
        return {
            "forget": self.stream("forget", IMAGE, rows, lambda i: i in forgotten),
            "retain": self.stream("retain", IMAGE, rows, lambda i: i not in forgotten),
            "text": self.stream("text", TEXT, rows, lambda i: True),
        }

    # ---- the stages

    def _stages(self) -> list[Stage]:
        c = self.config.to_dict()
        start = "data" if c["vanilla"]["path"] else "vanilla"
        stages = [Stage("data", {"data": c["data"]}, (), self.make_data)]
        if not c["vanilla"]["path"]:
            common = {"vanilla": c["vanilla"], "seed": c["seed"]}
            stages += [Stage("base", {"model": c["model"], "seed": c["seed"]}, ("data",), self.make_base)]
            stages += [Stage("vanilla", common, ("base",), functools.partial(self.make_trained, "vanilla"))]
            if c["gold"]:
                stages += [Stage("gold", common, ("base",), functools.partial(self.make_trained, "gold"))]
        else:
            stages[0] = dataclasses.replace(stages[0], reads=stages[0].reads | {"vanilla.path": c["vanilla"]["path"]})
        names = [*c["unlearn"]["methods"]]
        for name in names:
            if name not in methods.METHODS:
                raise InputError(
                    f"expected config.unlearn.methods among {', '.join(methods.METHODS)}, found {name!r}; correct it"
                )
        # Masks of one unit stand together: its scores are taken once and dropped.
        wanted = {name: methods.METHODS[name].mask for name in names if methods.METHODS[name].mask}
        for name, mask in sorted(wanted.items(), key=lambda item: item[1].unit):
            reads = {"saliency": c["saliency"], "mask": dataclasses.asdict(mask), "seed": c["seed"]}
            reads |= {"rows": c["unlearn"]["rows"]} if mask.unit == "batch" else {}
            make = functools.partial(self.make_mask, name)
            stages += [Stage(f"saliency/{name}", reads, (start,), make)]
        for name in names:
            numbers = {k: v for k, v in c["unlearn"].items() if k not in ("methods", "learning_rate")}
            numbers |= {"learning_rate": c["unlearn"]["learning_rate"].get(name), "seed": c["seed"]}
            reads = {"unlearn": numbers, "method": dataclasses.asdict(methods.METHODS[name])}
            inputs = (start, f"saliency/{name}") if name in wanted else (start,)
            stages += [Stage(f"unlearn/{name}", reads, inputs, functools.partial(self.make_unlearned, name))]
        for name in self.model_names():
            upstream = name if name in ("vanilla", "gold") else f"unlearn/{name}"
            upstream = start if name == "vanilla" else upstream
            make = functools.partial(self.make_evaluated, name)
            stages += [Stage(f"evaluate/{name}", {"evaluate": c["evaluate"]}, (upstream,), make)]
        results = tuple(f"evaluate/{name}" for name in self.model_names())
        # The gate comes first: nothing is unlearned from a model that does not know it.
        gate = next(s for s in stages if s.name == "evaluate/vanilla")
        stages.remove(gate)
        stages.insert(next(i for i, s in enumerate(stages) if s.name == start) + 1, gate)
        return [*stages, Stage("report", {}, results, self.make_report)]

    def model_names(self) -> list[str]:
        gold = ["gold"] if self.config.gold and not self.config.vanilla.path else []
        return ["vanilla", *gold, *self.config.unlearn.methods]

    def model_dir(self, name: str) -> pathlib.Path:
        if name == "vanilla":
            return self.vanilla
        return self.workdir / "gold" if name == "gold" else self.workdir / "unlearned" / name

    def make_data(self) -> dict:
        if not self.config.data.path:
            builders.prepare(self.config.data.name, self.workdir / "data")
        b = self.benchmark
        for person in (*b.full, *b.test, *b.unseen):
            loader.decode(person)  # a photo that does not decode is found here, not after hours of training
        return {name: len(getattr(b, name)) for name in ("full", "forget", "retain", "test", "unseen")}

    def make_base(self) -> dict:
        c = self.config.model
        if c.path:
            model = models.Model(hf.read_config(c.path))
        else:
            vision, text = c.vision.to_dict(), c.text.to_dict()
            processor = tiny.processor(vision["image_size"], vision["patch_size"])
            model = models.Model(tiny.config(processor.tokenizer, vision=vision, text=text))
            hf.create(model.init(self.config.seed), model, processor, self.base, self.config.seed)
        return {"parameters": trees.size(model.abstract())}

    def make_trained(self, name: str) -> dict:
        """Fine-tuning on everyone (vanilla) or on everyone but the people to forget (gold)."""
        c = self.config.vanilla.to_dict()
        forgotten = set(self.benchmark.forget_ids) if name == "gold" else set()
        rows = c.pop("rows")
        streams = {
            "vqa": self.stream("vqa", IMAGE, rows["vqa"], lambda i: i not in forgotten),
            "text": self.stream("text", TEXT, rows["text"], lambda i: i not in forgotten),
        }
        numbers = {key: c[key] for key in ("learning_rate", "schedule", "warmup", "clip")}
        plan = train.Plan(VANILLA, c["steps"], **numbers)
        return self.fit(name, plan, hf.load(self.base, self.model, self.mesh), streams, None, self.workdir / name)

    def scores(self, unit: str) -> methods.Evidence:
        """Saliency of the vanilla model on the three sets; kept until another unit is asked for or training starts."""
        if self.scored is None or self.scored[0] != unit:
            self.scored = None
            self.scored = (unit, self._scores(unit))
        return self.scored[1]

    def _scores(self, unit: str) -> methods.Evidence:
        c, config = self.config.saliency, self.config.unlearn
        streams = self.unlearning_streams(c.rows if unit == "example" else config.rows)
        epochs = {name: stream.epoch() for name, stream in streams.items()}
        wanted = [methods.METHODS[name].mask for name in config.methods]
        signed = any(mask.rule == "salun" and mask.unit == unit for mask in wanted if mask)
        bar = Progress(f"scores by {unit}", sum(map(len, epochs.values())) + signed * len(epochs["forget"]))

        def batches(name):
            for batch in epochs[name]:
                bar.add()
                yield sharding.put(batch, self.mesh)

        def score(name, kind="squared"):
            options = dict(leaves=self.model.module.ELIGIBLE, unit=unit, kind=kind, chunk=c.chunk)
            with jax.set_mesh(self.mesh):
                return saliency.scores(self._loss, self.vanilla_params, batches(name), **options)

        trio = {name: score(name) for name in ("forget", "retain", "text")}
        count = {name: sum(saliency.units(b, unit) for b in epochs[name]) for name in ("retain", "text")}
        summed = score("forget", "signed") if signed else None
        bar.close()
        return methods.Evidence(**trio, retain_units=count["retain"], text_units=count["text"], summed=summed)

    def make_mask(self, name: str) -> dict:
        c, rule = self.config.saliency, methods.METHODS[name].mask
        params, key = self.vanilla_params, jax.random.key(self.config.seed)
        numbers = dict(tau=c.tau, eps=c.eps, noise=c.noise)
        mask = methods.make_mask(rule, self.scores(rule.unit), params, self.model.module.SIDES, key, **numbers)
        masks.check(mask, params)
        path = self.mask_path(name)
        partial = path.with_suffix(".partial")
        path.parent.mkdir(exist_ok=True)
        masks.save(partial, mask)
        os.replace(partial, path)
        coverage = masks.coverage(mask)
        write_json(path.with_suffix(".json"), {"groups": coverage, "layers": masks.by_layer(mask)})
        return coverage

    def _loss(self, params, batch):
        return methods.LOSSES["descent"](self.model, params, batch, None, 0.0)

    def mask_path(self, name: str) -> pathlib.Path:
        return self.workdir / "masks" / f"{name}.safetensors"

    def prepared(self, name: str, **rates: float) -> tuple[train.Plan, dict[str, loader.Stream], Any]:
        """The plan, streams and mask of a method; ``learning_rate`` and ``retain_rate`` stand for those of the config."""
        c, method = self.config.unlearn, methods.METHODS[name]
        numbers = {key: c[key] for key in ("retain_rate", "schedule", "clip", "beta")}
        numbers |= {"learning_rate": c.learning_rate.get(name)} | rates
        if numbers["learning_rate"] is None:
            raise InputError(f"expected config.unlearn.learning_rate.{name}, found none; set it")
        streams = self.unlearning_streams(c.rows)
        if any(loss == "npo" for phase in method.phases for loss in phase.losses.values()):
            streams["forget"].columns["ref_logps"] = self.reference_logps(streams["forget"], self.vanilla_params)
        mask = masks.load(self.mask_path(name), self.vanilla_params) if method.mask else None
        return train.plan(method, streams, c.epochs, **numbers), streams, mask

    def make_unlearned(self, name: str) -> dict:
        plan, streams, mask = self.prepared(name)
        return self.fit(f"unlearn/{name}", plan, self.vanilla_params, streams, mask, self.model_dir(name))

    def reference_logps(self, stream: loader.Stream, params: Any) -> np.ndarray:
        """log p(answer) under the vanilla model of every row and photo, ``[R, P]``: the reference is a column."""
        rows, photos = len(stream.examples), len(stream.photos(0))
        column = np.zeros((rows, photos), np.float32)
        with jax.set_mesh(self.mesh):
            for photo in range(photos):
                for start in range(0, rows, stream.rows):
                    part = np.arange(start, min(start + stream.rows, rows))
                    batch = sharding.put(stream.gather(part, np.full(len(part), photo)), self.mesh)
                    values = np.asarray(evaluate.answer_logps(self.model, params, batch))
                    column[part, photo] = values[: len(part)]
        return column

    def fit(self, name, plan, params, streams, mask, out) -> dict:
        self.scored = None  # room for the moments
        print(train.describe(plan, params, mask), flush=True)
        folder = self.workdir / "checkpoints" / name
        kept = checkpoint.Checkpoints(folder)
        bar = Progress(name, plan.iterations)
        state = train.fit(
            plan,
            self.model,
            params,
            streams,
            mesh=self.mesh,
            mask=mask,
            checkpoints=kept,
            save_every=self.config.save_every,
            report=bar.to,
        )
        bar.close()
        kept.close()
        hf.save(state.params, self.model, self.base if not self.config.vanilla.path else self.vanilla, out)
        history = {k: [None if np.isnan(x) else float(x) for x in v] for k, v in jax.device_get(state.history).items()}
        write_json(self.workdir / "training" / f"{name}.json", history)
        shutil.rmtree(folder)
        return {"iterations": plan.iterations, "spacing": plan.spacing, "mask_proof": train.mask_proof(state, mask)}

    def questioned(self, name: str, params: Any) -> tuple[dict, dict]:
        """Results and answers of a model on every split."""
        c = self.config.evaluate.to_dict()
        prompts, _ = evaluate.Prompts(**c.pop("prompts")), c.pop("memorised")
        examiner = evaluate.Examiner(
            self.model, self.processor, self.mesh, prompts, seed=self.config.seed, sizes=self.sizes, **c
        )
        b, full = self.benchmark, self.albums["full"]
        splits = {"forget": (b.forget, full), "test": (b.test, self.albums["test"]), "retain": (b.retain, full)}
        if b.unseen:
            splits["unseen"] = (b.unseen, self.albums["unseen"])
        bar = Progress(f"evaluate/{name}", 2 * len(splits) - ("unseen" in splits))
        found = evaluate.evaluate(examiner, params, splits, bar.add)
        bar.close()
        return found

    def make_evaluated(self, name: str) -> None:
        gate = self.config.evaluate.memorised
        params = self.vanilla_params if name == "vanilla" else hf.load(self.model_dir(name), self.model, self.mesh)
        results, answers = self.questioned(name, params)
        record = self.stages.record(f"unlearn/{name}") or {}
        proof = record.get("result", {}).get("mask_proof", {})
        if name == "vanilla":
            known = results["forget"]["vqa"]["exact"]["mean"]
            if known < gate:
                raise InputError(
                    f"expected a vanilla model that knows the people to forget (exact VQA answers of at least "
                    f"{100 * gate:.0f} %), found {100 * known:.0f} %; train it longer (config.vanilla.steps), or lower "
                    "config.evaluate.memorised to go on all the same"
                )
        write_json(self.workdir / "answers" / f"{name}.json", answers)
        value = {"model": name, "results": results, "flags": evaluate.flags(results, proof), "mask_proof": proof}
        value |= {"config": self.config.to_dict(), "provenance": provenance()}
        write_json(self.workdir / "results" / f"{name}.json", value)

    def make_report(self) -> None:
        report.write(self.workdir, self.model_names(), self.benchmark)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    name = pathlib.Path(flags.FLAGS["config"].config_filename).stem
    workdir = pathlib.Path(WORKDIR.value or pathlib.Path("runs") / name)
    try:
        run = Run(CONFIG.value, workdir)
        run.stages.go(STAGES.value)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if not STAGES.value or "report" in STAGES.value:
        print(report.summary(workdir))
        print(f"report: {workdir / 'report.html'}")


def parse(argv: list[str]) -> list[str]:
    """Flags; a mistake is one line and exit code 2."""
    try:
        named = [a.removeprefix("--config=").split(":")[0] for a in argv if a.startswith("--config=")]
        if named and not pathlib.Path(named[0]).exists():
            raise flags.IllegalFlagValueError(f"expected a config file, found no {named[0]}; name one in configs/")
        rest = flags.FLAGS(argv)
        if CONFIG.value is None:
            raise flags.IllegalFlagValueError("expected --config=configs/NAME.py, found none; name a config")
    except (flags.Error, AttributeError, KeyError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    return rest


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
