"""From a checkpoint and a benchmark to unlearned checkpoints and a report one can trust.

    python -m experiments.run --config=configs/tiny.py [--workdir=DIR] [--config.key=value ...] [--stages=a,b]

Stages: data -> base -> vanilla -> gold -> saliency/<method> -> unlearn/<method> -> evaluate/<model> -> report. A stage whose
record in ``<workdir>/stages`` matches is skipped; one that was made with another config is refused before anything is
written. The same command goes on where it was killed and ends in the same results, bit for bit.
"""

import dataclasses
import functools
import math
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from experiments import command, plans, settings
from experiments.stages import Progress, Stage, Stages, provenance
from mmu_jax import (
    InputError,
    adapters,
    checkpoint,
    evaluate,
    hf,
    hub,
    lora,
    masks,
    methods,
    models,
    questions,
    report,
    saliency,
    sharding,
    train,
    trees,
)
from mmu_jax.data import IMAGE, TEXT, Benchmark, builders, loader, tiny
from mmu_jax.files import write_json

CONTROLS = ("test", "unseen", "celebrity")  # splits with photos of their own, evaluated where they are there


class Run:
    """A config, a workdir, and what stages share, loaded when first needed.

    Attributes:
      given: the dotted keys of the config that a user gave, which something must read (``settings.judge``).
    """

    def __init__(self, config: Any, workdir: str | pathlib.Path, given: dict[str, Any] | None = None):
        settings.judge(config, given or {})
        self.config, self.workdir, self.given = config, pathlib.Path(workdir), given or {}
        self.mesh = sharding.make_mesh(**config.mesh)
        # A model made from nothing is small: it is trained on one device, so that every mesh unlearns the same bits.
        self.training_mesh = self.mesh if config.model.path else sharding.make_mesh(1)
        self.stages = Stages(self.workdir, self._stages())
        self.scored: tuple[Any, Any] | None = None  # what was scored last and its scores
        self.planned = False

    # ---- what stages share

    @functools.cached_property
    def data(self) -> pathlib.Path:
        """The prepared TFDS directory."""
        c = self.config.data
        return pathlib.Path(c.path) if c.path else builders.prepare(c.name, self.workdir / "data", c.source)

    @functools.cached_property
    def benchmark(self) -> Benchmark:
        return builders.read(self.data, forget=self.config.data.forget, retain=self.config.data.retain)

    @functools.cached_property
    def base(self) -> pathlib.Path:
        path = self.config.model.path
        return hub.fetch(path, "config.model.path") if path else self.workdir / "base"

    @functools.cached_property
    def vanilla(self) -> pathlib.Path:
        path = self.config.vanilla.path
        return hub.fetch(path, "config.vanilla.path") if path and not self.adapter else self.workdir / "vanilla"

    @functools.cached_property
    def adapter(self) -> str:
        """The base that ``config.vanilla.path`` is a LoRA adapter of, empty if it is a whole model, or none is given.

        That of the command line, the one the adapter names, that of the config file: the first there is.
        """
        path = self.config.vanilla.path
        folder = hub.fetch(path, "config.vanilla.path", patterns=hub.SMALL) if path else None
        if folder is None or not adapters.is_adapter(folder):
            return ""
        return self.given.get("model.path") or adapters.base_of(folder) or self.config.model.path

    @property
    def source(self) -> pathlib.Path:
        """The directory that every model of the run is a copy of, but for what was trained."""
        return self.vanilla if self.config.vanilla.path else self.base

    @functools.cached_property
    def card(self) -> pathlib.Path:
        """Config and processor of :attr:`source`; of a repository on the hub no weight is fetched for them."""
        path, key = self.starts_from
        return hub.fetch(path, key, patterns=hub.SMALL) if path else self.workdir / "base"

    @property
    def starts_from(self) -> tuple[str, str]:
        """The checkpoint that is read first and the key that names it; empty where one is made from nothing."""
        if self.config.vanilla.path and not self.adapter:
            return self.config.vanilla.path, "config.vanilla.path"
        return self.adapter or self.config.model.path, "config.model.path"

    @functools.cached_property
    def processor(self) -> Any:
        return hf.read_processor(self.card)

    @functools.cached_property
    def model(self) -> models.Model:
        return models.Model(hf.read_config(self.card), jnp.dtype(self.config.model.dtype))

    @functools.cached_property
    def albums(self) -> dict[str, loader.Album]:
        pixels = self.config.data.max_pixels
        found = {name: getattr(self.benchmark, name) for name in ("full", *CONTROLS)}
        return {name: loader.album(self.processor, people, pixels) for name, people in found.items() if people}

    @functools.cached_property
    def sizes(self) -> loader.Sizes:
        return loader.Sizes(tuple(self.config.data.tokens), tuple(self.config.data.patches))

    @functools.cached_property
    def people(self) -> dict[str, int]:
        return {person.id: index for index, person in enumerate(self.benchmark.full)}

    def plan(self) -> None:
        """Says, once, what the stages need, before a weight is fetched or read; refuses what cannot fit."""
        if not self.planned:
            self.planned = True
            plans.memory_plan(self)

    def load(self, path: pathlib.Path, mesh: jax.sharding.Mesh | None = None) -> Any:
        """The params of a directory, once the plan has said that they fit; one model is held at a time."""
        self.__dict__.pop("vanilla_params", None)
        self.plan()
        return hf.load(path, self.model, mesh or self.mesh, jnp.dtype(self.config.model.param_dtype))

    @functools.cached_property
    def vanilla_params(self) -> Any:
        return self.load(self.vanilla)

    def take_vanilla_params(self) -> Any:
        """The vanilla params for a caller that consumes them; they are read again when they are needed again."""
        params = self.vanilla_params
        del self.vanilla_params
        return params

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

    def go(self, only: tuple[str, ...] | list[str] = ()) -> None:
        """Makes the stages that are not done, all or those named, once it is known that they can be made.

        Raises:
          InputError: what a stage needs is not there, does not fit, or is not what it says it is.
        """
        wanted = self.stages.wanted(list(only))
        for line in settings.unused(self.config, self.given):
            print(line, flush=True)
        plans.preflight(self, wanted)
        self.stages.go(list(only))

    def _stages(self) -> list[Stage]:
        c = self.config.to_dict()
        start = "data" if c["vanilla"]["path"] else "vanilla"
        data = {key: value for key, value in c["data"].items() if key not in ("tokens", "patches", "max_pixels")}
        # What every number that a model computes depends on.
        numbers = {"dtype": c["model"]["dtype"], "param_dtype": c["model"]["param_dtype"]}
        numbers |= {"max_pixels": c["data"]["max_pixels"]}
        if c["vanilla"]["path"]:
            stages = [Stage("data", {"data": data, "vanilla.path": c["vanilla"]["path"]}, (), self.make_data)]
            if self.adapter:
                start = "merge"
                stages += [Stage("merge", {"base": self.adapter}, ("data",), self.make_merged)]
        else:
            made = {key: value for key, value in c["model"].items() if key not in ("dtype", "param_dtype")}
            common = {"vanilla": c["vanilla"], "seed": c["seed"], "numbers": numbers}
            stages = [Stage("data", {"data": data}, (), self.make_data)]
            stages += [Stage("base", {"model": made, "seed": c["seed"]}, ("data",), self.make_base)]
            stages += [Stage("vanilla", common, ("base",), functools.partial(self.make_trained, "vanilla"))]
            if c["gold"]:
                stages += [Stage("gold", common, ("base",), functools.partial(self.make_trained, "gold"))]
        names = [*c["unlearn"]["methods"]]
        # Masks that share scores stand together: they are taken once and dropped.
        wanted = {name: methods.METHODS[name].mask for name in names if methods.METHODS[name].mask}
        for name, mask in sorted(wanted.items(), key=lambda item: str(item[1].reads)):
            reads = {"saliency": c["saliency"], "mask": dataclasses.asdict(mask), "seed": c["seed"], "numbers": numbers}
            reads |= {"rows": c["unlearn"]["rows"]} if mask.unit == "batch" else {}
            make = functools.partial(self.make_mask, name)
            stages += [Stage(f"saliency/{name}", reads, (start,), make)]
        for name in names:
            how = {k: v for k, v in c["unlearn"].items() if k not in ("methods", "learning_rate")}
            how |= {"learning_rate": c["unlearn"]["learning_rate"].get(name), "seed": c["seed"]}
            reads = {"unlearn": how, "method": dataclasses.asdict(methods.METHODS[name]), "numbers": numbers}
            inputs = (start, f"saliency/{name}") if name in wanted else (start,)
            stages += [Stage(f"unlearn/{name}", reads, inputs, functools.partial(self.make_unlearned, name))]
        for name in self.model_names():
            upstream = name if name in ("vanilla", "gold") else f"unlearn/{name}"
            upstream = start if name == "vanilla" else upstream
            make = functools.partial(self.make_evaluated, name)
            stages += [Stage(f"evaluate/{name}", {"evaluate": c["evaluate"], "numbers": numbers}, (upstream,), make)]
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
            shutil.rmtree(self.workdir / "data", ignore_errors=True)  # begun and not ended, maybe from another source
        b = self.benchmark
        for line in builders.left_out(self.data):
            print(f"  {line}", flush=True)
        # What cannot be shown or asked is found here, not after hours of training.
        everyone = (*b.full, *b.test, *b.unseen, *b.celebrity)
        if self.config.model.path or self.config.vanilla.path:
            loader.examine(self.processor, everyone, self.config.data.max_pixels, self.sizes)
        for person in everyone:
            loader.decode(person)
        return {name: len(getattr(b, name)) for name in ("full", "forget", "retain", *CONTROLS)}

    def make_merged(self) -> None:
        """The vanilla model, from an adapter and its base."""
        self.plan()
        adapter = hub.fetch(self.config.vanilla.path, "config.vanilla.path")
        adapters.merge(adapter, hub.fetch(self.adapter, "config.model.path"), self.vanilla)

    def make_base(self) -> dict:
        c = self.config.model
        if c.path:
            self.plan()
            model = models.Model(hf.read_config(self.base))
        else:
            vision, text = c.vision.to_dict(), c.text.to_dict()
            processor = tiny.processor(vision["image_size"], vision["patch_size"])
            model = models.Model(tiny.config(processor.tokenizer, vision=vision, text=text))
            hf.create(model.init(self.config.seed), model, processor, self.base, self.config.seed)
        return {"parameters": trees.size(model.abstract())}

    def make_trained(self, name: str) -> dict:
        """Fine-tuning on everyone (vanilla) or on everyone but the people to forget (gold)."""
        c = self.config.vanilla
        forgotten = set(self.benchmark.forget_ids) if name == "gold" else set()
        rows = c.rows.to_dict()
        streams = {
            stream: self.stream(stream, kind, rows[stream], lambda i: i not in forgotten)
            for stream, kind in (("vqa", IMAGE), ("text", TEXT))
            if rows[stream]
        }
        numbers = {key: c[key] for key in ("learning_rate", "schedule", "warmup", "clip")}
        numbers |= {"lora": plans.lora_of(self.config, "vanilla", self.model), "seed": self.config.seed}
        iterations = math.ceil(c.epochs * next(iter(streams.values())).steps)
        plan = train.Plan(plans.vanilla_method(rows), iterations, **numbers)
        params = self.load(self.base, self.training_mesh)
        return self.fit(name, plan, params, streams, None, self.workdir / name, self.training_mesh)

    def scores(self, mask: methods.Mask, make: Callable[[methods.Mask], Any]) -> Any:
        """Saliency of the vanilla model on the three sets; kept until other scores are asked for or training starts."""
        if self.scored is None or self.scored[0] != mask.reads:
            self.scored = None
            self.scored = (mask.reads, make(mask))
        return self.scored[1]

    def _scores(self, mask: methods.Mask) -> methods.Evidence:
        passes, score = self._scorer(mask)
        wanted = [methods.METHODS[name].mask for name in self.config.unlearn.methods]
        signed = any(other.rule == "salun" and other.reads == mask.reads for other in wanted if other)
        bar = Progress(f"scores by {mask.unit}", sum(len(p) for p in passes.values()) + signed * len(passes["forget"]))
        trio = {name: score(saliency.scores, passes[name].shown(bar)) for name in ("forget", "retain", "text")}
        summed = score(saliency.scores, passes["forget"].shown(bar), kind="signed") if signed else None
        bar.close()
        count = {f"{name}_units": passes[name].units(mask.unit) for name in ("retain", "text")}
        count |= {"retain_units": 0.0} if mask.mixed else {}
        return methods.Evidence(**trio, **count, summed=summed)

    def _difference(self, mask: methods.Mask) -> Any:
        """``F_forget - tau * F_preserve`` of the vanilla model, one side of the model after the other."""
        passes, score = self._scorer(mask)
        language = ["text"] if mask.mixed else ["retain", "text"]
        preserve = {"vision": [passes["retain"]], "language": [passes[name] for name in language]}
        walked = {side: sum(map(len, [passes["forget"], *kept])) for side, kept in preserve.items()}
        found, bar = [], Progress(f"difference of scores by {mask.unit}", sum(walked.values()))
        for side, kept in preserve.items():
            leaves = rf"(?={self.model.module.SIDES[side]}\Z)(?:{mask.leaves or self.model.module.ELIGIBLE})"
            pair = passes["forget"].shown(bar), loader.Pass.joined(kept).shown(bar)
            found.append(score(saliency.difference, *pair, leaves=leaves, tau=self.config.saliency.tau))
        bar.close()
        return trees.merge(*found)

    def _scorer(self, mask: methods.Mask) -> tuple[dict[str, loader.Pass], Callable[..., Any]]:
        c = self.config.saliency
        streams = self.unlearning_streams(c.rows if mask.unit == "example" else self.config.unlearn.rows)
        if mask.mixed:
            streams["text"] = loader.mixed("retain and text", streams["retain"], streams["text"], self.config.seed)
        shuffled = mask.unit == "batch"
        passes = {name: loader.Pass((stream,), self.mesh, shuffled) for name, stream in streams.items()}
        common = {"leaves": mask.leaves or self.model.module.ELIGIBLE, "unit": mask.unit, "chunk": c.chunk}
        loss = methods.scored_loss(mask, self.model)

        def score(how, *batches, **options):
            with jax.set_mesh(self.mesh):
                return how(loss, self.vanilla_params, *batches, **(common | options))

        return passes, score

    def make_mask(self, name: str) -> dict:
        c, rule = self.config.saliency, methods.METHODS[name].mask
        params, sides = self.vanilla_params, self.model.module.SIDES
        numbers = dict(tau=c.tau, eps=c.eps, noise=c.noise)
        if c.keep_scores:
            evidence, key = self.scores(rule, self._scores), jax.random.key(self.config.seed)
            mask = methods.make_mask(rule, evidence, params, sides, key, **numbers)
        else:
            mask = methods.sign_mask(rule, self.scores(rule, self._difference), params, sides, **numbers)
        masks.check(mask, params)
        path = self.mask_path(name)
        partial = path.with_suffix(".partial")
        path.parent.mkdir(exist_ok=True)
        masks.save(partial, mask)
        os.replace(partial, path)
        coverage = masks.coverage(mask)
        write_json(path.with_suffix(".json"), {"groups": coverage, "layers": masks.by_layer(mask)})
        return coverage

    def mask_path(self, name: str) -> pathlib.Path:
        return self.workdir / "masks" / f"{name}.safetensors"

    def prepared(self, name: str, **rates: float) -> tuple[train.Plan, dict[str, loader.Stream], Any]:
        """The plan, streams and mask of a method; ``learning_rate`` and ``retain_rate`` stand for those of the config."""
        c, method = self.config.unlearn, methods.METHODS[name]
        numbers = {key: c[key] for key in ("retain_rate", "schedule", "clip", "beta")}
        numbers |= {
            "learning_rate": c.learning_rate.get(name),
            "lora": plans.lora_of(self.config, "unlearn", self.model),
            "seed": self.config.seed,
        } | rates
        if numbers["learning_rate"] is None:
            raise InputError(f"expected config.unlearn.learning_rate.{name}, found none; set it")
        streams = self.unlearning_streams(c.rows)
        if "reference" in methods.needs(method):
            streams["forget"].columns["ref_logps"] = self.reference_logps(streams["forget"], self.vanilla_params)
        mask = masks.load(self.mask_path(name), self.vanilla_params) if method.mask else None
        if mask is not None and numbers["lora"]:
            mask = masks.restrict(mask, numbers["lora"].targets)
            if not masks.count(mask):
                raise InputError(
                    f"expected a mask of {name} that selects some of what LoRA adapts, found it empty on "
                    f"{numbers['lora'].targets!r}; widen config.unlearn.lora.targets or set config.unlearn.lora.rank=0"
                )
            print("  of the mask, LoRA reaches what the plan shows; the rest of it stays frozen", flush=True)
        return train.plan(method, streams, c.epochs, **numbers), streams, mask

    def make_unlearned(self, name: str) -> dict:
        plan, streams, mask = self.prepared(name)
        params = self.vanilla_params if plan.lora else self.take_vanilla_params()
        return self.fit(f"unlearn/{name}", plan, params, streams, mask, self.model_dir(name), self.mesh)

    def reference_logps(self, stream: loader.Stream, params: Any) -> np.ndarray:
        """log p(answer) under the vanilla model of every row and photo, ``[R, P]``: the reference is a column."""
        rows = len(stream.examples)
        photos = max(len(stream.photos(row)) for row in range(rows))
        column = np.zeros((rows, photos), np.float32)
        with jax.set_mesh(self.mesh):
            for photo in range(photos):
                for start in range(0, rows, stream.rows):
                    part = np.arange(start, min(start + stream.rows, rows))
                    batch = sharding.put(stream.gather(part, np.full(len(part), photo)), self.mesh)
                    values = np.asarray(evaluate.answer_logps(self.model, params, batch))
                    evaluate.check_finite(
                        np.isfinite(values[: len(part)]),
                        lambda i, part=part: f"the reference of {stream.describe({'row': part[i : i + 1]})}",
                    )
                    column[part, photo] = values[: len(part)]
        return column

    def fit(self, name, plan, params, streams, mask, out, mesh) -> dict:
        self.scored = None  # room for the moments
        print(train.describe(plan, params, mask), flush=True)
        print(loader.padding_line(streams), flush=True)
        folder = self.workdir / "checkpoints" / name
        kept = checkpoint.Checkpoints(folder)
        bar = Progress(name, plan.iterations)
        state = train.fit(
            plan,
            self.model,
            params,
            streams,
            mesh=mesh,
            mask=mask,
            checkpoints=kept,
            save_every=self.config.save_every,
            report=bar.to,
        )
        bar.close()
        kept.close()
        if plan.lora:
            # Updates are added to the weights as they are in the files the run started from.
            source = self.base if name in ("vanilla", "gold") else self.vanilla
            changed = hf.rewrite(self.model, source, out, lora.merge(plan.lora, state.params, mask))
        else:
            changed = hf.save(state.params, self.model, self.source, out)
        history = {k: [None if np.isnan(x) else float(x) for x in v] for k, v in jax.device_get(state.history).items()}
        write_json(self.workdir / "training" / f"{name}.json", history)
        shapes = trees.flatten(self.model.abstract())
        share = sum(changed.values()) / sum(shapes[leaf].size for leaf in changed)
        numbers = {"iterations": plan.iterations, "spacing": plan.spacing, "changed_in_file": share}
        return numbers | {"mask_proof": train.mask_proof(state, mask)}

    def questioned(self, name: str, params: Any) -> tuple[dict, dict]:
        """Results and answers of a model on every split."""
        c = self.config.evaluate.to_dict()
        prompts, _, _ = questions.Prompts(**c.pop("prompts")), c.pop("memorised"), c.pop("headline")
        stop = hf.stop_tokens(self.card, self.processor)
        numbers = dict(seed=self.config.seed, sizes=self.sizes, stop=stop)
        examiner = evaluate.Examiner(self.model, self.processor, self.mesh, prompts, **numbers, **c)
        b, full = self.benchmark, self.albums["full"]
        splits = {"forget": (b.forget, full), "retain": (b.retain, full)}
        splits |= {name: (getattr(b, name), self.albums[name]) for name in CONTROLS if name in self.albums}
        bar = Progress(f"evaluate/{name}", len(evaluate.TASKS) * len(splits))
        found = evaluate.evaluate(examiner, params, splits, bar.add)
        bar.close()
        return found

    def make_evaluated(self, name: str) -> None:
        memorised, headline = self.config.evaluate.memorised, self.config.evaluate.headline
        params = self.vanilla_params if name == "vanilla" else self.load(self.model_dir(name))
        results, answers = self.questioned(name, params)
        record = self.stages.record(f"unlearn/{name}") or {}
        made = record.get("result", {})
        proof = made.get("mask_proof", {})
        write_json(self.workdir / "answers" / f"{name}.json", answers)
        value = {"model": name, "results": results, "mask_proof": proof}
        value |= {"flags": evaluate.flags(results, proof, made.get("changed_in_file"), headline=headline)}
        value |= {"config": self.config.to_dict(), "provenance": provenance()}
        write_json(self.workdir / "results" / f"{name}.json", value)
        if name == "vanilla":  # what it said is on disk: a refusal can be looked into
            trained = not self.config.vanilla.path
            prompts = questions.Prompts(**self.config.evaluate.prompts)
            if refusal := evaluate.gate(results, headline, memorised, trained=trained, prompts=prompts):
                raise InputError(refusal)

    def make_report(self) -> None:
        report.write(self.workdir, self.model_names(), self.benchmark)


def main(argv: list[str]) -> None:
    del argv
    command.quiet()
    command.spoken(study)


def study() -> None:
    """The run of the command line, and what it found."""
    workdir, stages = command.workdir(), command.STAGES.value
    Run(command.CONFIG.value, workdir, command.given()).go(stages)
    if not stages or "report" in stages:
        print(report.summary(workdir))
        print(f"report: {workdir / 'report.html'}")


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse)
