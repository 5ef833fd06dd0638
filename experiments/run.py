"""From a checkpoint and a benchmark to unlearned checkpoints and a report one can trust.

    python -m experiments.run --config=configs/tiny.py [--workdir=DIR] [--config.key=value ...] [--stages=a,b]

Stages: data -> base -> vanilla -> gold -> saliency -> unlearn/<method> -> evaluate/<model> -> report. A stage whose
record in ``<workdir>/stages`` matches is skipped; one that was made with another config is refused before anything is
written. The same command goes on where it was killed and ends in the same results, bit for bit.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

import mmu_jax
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


class Progress:
    """A bar with rate and time left on a terminal, plain lines elsewhere."""

    def __init__(self, name: str, total: int):
        from tqdm import tqdm

        self.name, self.total, self.done, self.spoke = name, total, 0, 0.0
        self.first: tuple[int, float] | None = None  # where and when the first report came: compilation is behind it
        self.bar = tqdm(total=total, desc=name, dynamic_ncols=True) if sys.stderr.isatty() else None

    def to(self, done: int, values: dict[str, float] | None = None) -> None:
        """``done`` of the total is done; ``values`` are shown beside it."""
        text = "  ".join(f"{name} {value:.3f}" for name, value in (values or {}).items())
        now = time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(done - self.done)
        elif done == self.total or now - self.spoke > 5:
            self.spoke = now
            print(f"  {self.name}: {done}/{self.total}  {self._pace(done, now)}{text}".rstrip(), flush=True)
        self.first, self.done = self.first or (done, now), done

    def _pace(self, done: int, now: float) -> str:
        if self.first is None or done == self.first[0]:
            return ""
        rate = (done - self.first[0]) / max(now - self.first[1], 1e-6)
        return f"{rate:.1f}/s  {(self.total - done) / rate:.0f} s left  "

    def add(self, n: int = 1) -> None:
        self.to(self.done + n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def write_json(path: pathlib.Path, value: Any) -> None:
    """Whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    os.replace(partial, path)


def read_json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text())


def provenance() -> dict[str, Any]:
    """Versions, devices and git revision, written beside every result."""
    names = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "tensorflow-datasets", "numpy", "safetensors")
    root = pathlib.Path(__file__).resolve().parent.parent
    git = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "mmu_jax": mmu_jax.__version__,
        "git": git or "not a git checkout",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in names},
        "devices": sorted({f"{d.platform}:{d.device_kind}" for d in jax.devices()}),
        "device_count": jax.device_count(),
    }


@dataclasses.dataclass(frozen=True)
class Stage:
    """A step of the run.

    Attributes:
      reads: the part of the config its result depends on.
      inputs: names of the stages whose results it reads.
      make: does the work; returns what the record should keep.
    """

    name: str
    reads: dict[str, Any]
    inputs: tuple[str, ...]
    make: Callable[[], dict[str, Any] | None]


class Run:
    """A config, a workdir, and what stages share, loaded when first needed."""

    def __init__(self, config: Any, workdir: pathlib.Path):
        self.config, self.workdir = config, workdir
        self.mesh = sharding.make_mesh(**config.mesh)
        self.stages = {stage.name: stage for stage in self._stages()}

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
        return {name: loader.album(self.processor, getattr(self.benchmark, name)) for name in names}

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
        return loader.stream(name, self.processor, examples, album, people=self.people, rows=rows, seed=seed)

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
        masked = [name for name in names if methods.METHODS[name].mask]
        reads = {"saliency": c["saliency"], "methods": masked, "rows": c["unlearn"]["rows"], "seed": c["seed"]}
        if masked:
            stages += [Stage("saliency", reads, (start,), self.make_saliency)]
        for name in names:
            numbers = {k: v for k, v in c["unlearn"].items() if k not in ("methods", "learning_rate")}
            numbers |= {"learning_rate": c["unlearn"]["learning_rate"].get(name), "seed": c["seed"]}
            inputs = (start, "saliency") if name in masked else (start,)
            make = functools.partial(self.make_unlearned, name)
            stages += [Stage(f"unlearn/{name}", {"unlearn": numbers}, inputs, make)]
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
        return {name: len(getattr(b, name)) for name in ("full", "forget", "retain", "test", "unseen")}

    def make_base(self) -> dict:
        c = self.config.model
        if c.path:
            model = models.Model(hf.read_config(c.path))
        else:
            vision, text = c.vision.to_dict(), c.text.to_dict()
            processor = tiny.processor(vision["image_size"], vision["patch_size"])
            model = models.Model(tiny.config(processor.tokenizer, vision=vision, text=text))
            hf.create(models.init(model, self.config.seed), model, processor, self.base, self.config.seed)
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

    def make_saliency(self) -> dict:
        c, key = self.config.saliency, jax.random.key(self.config.seed)
        module, params = self.model.module, self.vanilla_params
        wanted = {name: methods.METHODS[name].mask for name in self.config.unlearn.methods}
        wanted = {name: mask for name, mask in wanted.items() if mask}
        evidence = {}
        for unit in sorted({mask.unit for mask in wanted.values()}):
            streams = self.unlearning_streams(c.rows if unit == "example" else self.config.unlearn.rows)
            epochs = {name: stream.epoch() for name, stream in streams.items()}
            signed = any(mask.rule == "salun" for mask in wanted.values())
            bar = Progress(f"saliency ({unit})", sum(map(len, epochs.values())) + signed * len(epochs["forget"]))

            def score(name, kind="squared", unit=unit, epochs=epochs, bar=bar):
                def batches():
                    for batch in epochs[name]:
                        bar.add()
                        yield sharding.put(batch, self.mesh)

                with jax.set_mesh(self.mesh):
                    return saliency.scores(
                        self._loss, params, batches(), leaves=module.ELIGIBLE, unit=unit, kind=kind, chunk=c.chunk
                    )

            count = {name: sum(saliency.units(b, unit) for b in epochs[name]) for name in ("retain", "text")}
            trio = {name: score(name) for name in ("forget", "retain", "text")}
            summed = score("forget", "signed") if signed else None
            evidence[unit] = methods.Evidence(
                **trio, retain_units=count["retain"], text_units=count["text"], summed=summed
            )
            bar.close()
        table = {}
        for name, rule in wanted.items():
            mask = methods.make_mask(
                rule, evidence[rule.unit], params, module.SIDES, key, tau=c.tau, eps=c.eps, noise=c.noise
            )
            masks.check(mask, params)
            partial = self.workdir / "masks" / f"{name}.partial"
            partial.parent.mkdir(exist_ok=True)
            masks.save(partial, mask)
            os.replace(partial, self.mask_path(name))
            table[name] = {"groups": masks.coverage(mask), "leaves": _row_density(mask)}
        write_json(self.workdir / "masks" / "coverage.json", table)
        return {name: row["groups"] for name, row in table.items()}

    def _loss(self, params, batch):
        return methods.LOSSES["descent"](self.model, params, batch, None, 0.0)

    def mask_path(self, name: str) -> pathlib.Path:
        return self.workdir / "masks" / f"{name}.safetensors"

    def prepared(self, name: str, rate: float | None) -> tuple[train.Plan, dict[str, loader.Stream], Any]:
        """The plan, streams and mask with which a method is run at a learning rate."""
        c, method = self.config.unlearn, methods.METHODS[name]
        if rate is None:
            raise InputError(f"expected config.unlearn.learning_rate.{name}, found none; set it")
        streams = self.unlearning_streams(c.rows)
        if any(loss == "npo" for phase in method.phases for loss in phase.losses.values()):
            streams["forget"].columns["ref_logps"] = self.reference_logps(streams["forget"], self.vanilla_params)
        numbers = {key: c[key] for key in ("retain_rate", "schedule", "clip", "beta")} | {"learning_rate": rate}
        mask = masks.load(self.mask_path(name), self.vanilla_params) if method.mask else None
        return train.plan(method, streams, c.epochs, **numbers), streams, mask

    def make_unlearned(self, name: str) -> dict:
        plan, streams, mask = self.prepared(name, self.config.unlearn.learning_rate.get(name))
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
        print(describe(name, plan, params, mask), flush=True)
        folder = self.workdir / "checkpoints" / name.replace("/", "_")
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
        write_json(self.workdir / "training" / f"{name.replace('/', '_')}.json", history)
        shutil.rmtree(folder)
        return {"iterations": plan.iterations, "spacing": plan.spacing, "mask_proof": _proof(state.moved, mask)}

    def questioned(self, name: str, params: Any) -> tuple[dict, dict]:
        """Results and answers of a model on every split."""
        c = self.config.evaluate.to_dict()
        prompts, _ = evaluate.Prompts(**c.pop("prompts")), c.pop("memorised")
        examiner = evaluate.Examiner(self.model, self.processor, self.mesh, prompts, seed=self.config.seed, **c)
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
        record = self.record(f"unlearn/{name}") or {}
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

    # ---- records

    def fingerprint(self, name: str) -> str:
        stage = self.stages[name]
        value = [stage.name, stage.reads, [self.fingerprint(i) for i in stage.inputs]]
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]

    def record_path(self, name: str) -> pathlib.Path:
        return self.workdir / "stages" / f"{name.replace('/', '_')}.json"

    def record(self, name: str) -> dict | None:
        path = self.record_path(name)
        return read_json(path) if path.exists() else None

    def check(self) -> None:
        """Refuses a workdir whose stages were made with another config, before anything is written."""
        for name, stage in self.stages.items():
            record = self.record(name)
            if record is None or record["fingerprint"] == self.fingerprint(name) or name == "report":
                continue
            reads = json.loads(json.dumps(stage.reads))
            was, now = _flat(record["reads"]), _flat(reads)
            keys = sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k))
            shown = "; ".join(f"{k} = {was.get(k)!r}, now {now.get(k)!r}" for k in keys[:4]) or "its inputs"
            raise InputError(
                f"expected the config that made stage {name} in {self.workdir}, found another (made with {shown}); "
                "give another --workdir, or the old config"
            )

    def go(self, only: list[str]) -> None:
        self.check()
        chosen = [n for n in self.stages if not only or n in only or n.split("/")[0] in only]
        unknown = [n for n in only if n not in self.stages and n not in {s.split("/")[0] for s in self.stages}]
        if unknown:
            raise InputError(
                f"expected stages among {', '.join(self.stages)}, found {', '.join(unknown)}; correct --stages"
            )
        for name in chosen:
            stage, record = self.stages[name], self.record(name)
            if record and record["status"] == "done" and record["fingerprint"] == self.fingerprint(name):
                continue
            missing = [i for i in stage.inputs if (self.record(i) or {}).get("status") != "done"]
            if missing:
                raise InputError(f"expected stage {missing[0]} before {name}, found it not done; add it to --stages")
            print(f"{name}", flush=True)
            head = {"fingerprint": self.fingerprint(name), "reads": stage.reads, **provenance()}
            write_json(self.record_path(name), head | {"status": "started"})
            began = time.monotonic()
            result = stage.make()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            cost = {"seconds": round(time.monotonic() - began, 1), "peak_host_bytes_so_far": peak}
            write_json(self.record_path(name), head | {"status": "done", "result": result, "cost": cost})


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()}


def _row_density(mask: Any) -> dict[str, list[float]]:
    """Leaf name -> density, one value per layer for stacked leaves; leaves with nothing selected are left out."""
    table = {}
    for name, leaf in trees.flatten(mask).items():
        if masks.count(leaf):
            axes = tuple(range(1, leaf.ndim)) if "/layers/" in name else None
            table[name] = np.atleast_1d(np.asarray(jnp.mean(leaf.astype(jnp.float32), axis=axes))).tolist()
    return table


def _proof(moved: dict[str, jax.Array], mask: Any) -> dict[str, dict[str, float]]:
    """Per leaf group: density, entries moved outside the mask by masked steps, entries moved inside."""
    if mask is None:
        return {}
    table = {name: row | {"outside": 0, "inside": 0} for name, row in masks.coverage(mask).items()}
    for name, (outside, inside) in jax.device_get(moved).items():
        table[trees.group(name)]["outside"] += int(outside)
        table[trees.group(name)]["inside"] += int(inside)
    return table


def describe(name: str, plan: train.Plan, params: Any, mask: Any) -> str:
    """The plan, before the first step: what will change, leaf group by leaf group, steps and memory."""
    trained, _ = trees.split(params, plan.method.scope)
    groups: dict[str, list[int]] = {}
    for leaf, value in trees.flatten(params).items():
        groups.setdefault(trees.group(leaf), [0, 0])[0] += value.size
    for leaf, value in trees.flatten(trained).items():
        groups[trees.group(leaf)][1] += value.size
    coverage = masks.coverage(mask) if mask is not None else {}
    lines = [f"  plan: {plan.method.source}; {plan.iterations} iterations, learning rate {plan.learning_rate:g}"]
    for group, (total, moving) in groups.items():
        density = f"  forget mask {100 * coverage[group]['density']:5.1f} %" if coverage else ""
        lines.append(f"    {group:32s}{total:>12,} parameters  {'trained' if moving else 'frozen'}{density}")
    states = 1 if plan.method.moments == "shared" else len(plan.method.phases)
    need = trees.nbytes(params) * (2 + 1) + trees.nbytes(trained) * 2 * states + trees.size(mask or {})
    lines.append(f"    memory for params, gradients, moments and mask: {need / 2**20:,.0f} MiB, activations beside it")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    name = pathlib.Path(flags.FLAGS["config"].config_filename).stem
    workdir = pathlib.Path(WORKDIR.value or pathlib.Path("runs") / name)
    try:
        run = Run(CONFIG.value, workdir)
        run.go(STAGES.value)
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
