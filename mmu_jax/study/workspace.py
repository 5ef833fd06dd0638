"""What the stages of a study share: a config, a workdir, and what is loaded from them when it is first needed."""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mmu_jax import InputError, adapters, evaluate, hf, hub, metrics, models, questions, sharding
from mmu_jax.data import Benchmark, Example, Processor, builders, loader, names, slices
from mmu_jax.data.general import benchmarks
from mmu_jax.data.general.items import Item, draw
from mmu_jax.data.sizes import Sizes
from mmu_jax.data.streams import Stream, stream
from mmu_jax.programs import Programs
from mmu_jax.study.stopping import Stopping
from mmu_jax.study.trackers import Tracker
from mmu_jax.trees import Tree

# Splits with photos of their own, evaluated where they are there.
CONTROLS = ("test", "retain_test", "unseen", "before", "celebrity")


class Held:
    """One large thing at a time: made when it is asked for, let go before another is made."""

    def __init__(self):
        self._key, self._value = None, None

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``key`` names; it stays until another is asked for."""
        if self._key != key:
            self.drop()
            self._key, self._value = key, make()
        return self._value

    def take(self, key: Any, make: Callable[[], Any]) -> Any:
        """The same for a caller that consumes it: it is made again when it is needed again."""
        value = self.get(key, make)
        self.drop()
        return value

    def drop(self) -> None:
        self._key, self._value = None, None


class Workspace:
    """A config, a workdir, and what stages share.

    Attributes:
      given: the dotted keys of the config that a user gave, which something must read (``settings.judge``).
      params: the params of one directory at a time.
      scores: saliency of the vanilla model, of one kind at a time.
      planned: whether the memory plan was made and holds.
      scenes: what every attack may use, by its name (``attacking``).
      sheets: the questions of every general benchmark, by its name (``general``).
      programs: compiled ones, which all runs share.
      stopping: whether SIGTERM asked the process to end.
      strangers: how well vanilla knows people it never saw, once that was asked (``unlearning``).
    """

    def __init__(self, config: ConfigDict, workdir: pathlib.Path, given: dict[str, Any]):
        self.config, self.workdir, self.given = config, workdir, given
        self.mesh = sharding.make_mesh(config.mesh.data, config.mesh.model)
        # A model made from nothing is small: it is trained on one device, so that every mesh unlearns the same bits.
        self.training_mesh = self.mesh if config.model.path else sharding.make_mesh(1)
        self.params, self.scores = Held(), Held()
        self.planned = False
        self.programs = Programs()
        self.stopping = Stopping()
        self.strangers: metrics.Items | None = None
        self.scenes: dict[str, Any] = {}
        self.sheets: dict[str, Any] = {}

    # ---- data

    @functools.cached_property
    def data(self) -> pathlib.Path:
        """The prepared TFDS directory."""
        c = self.config.data
        return (
            pathlib.Path(c.path)
            if c.path
            else builders.prepare(c.name, self.workdir / "data", c.source, "config.data.source")
        )

    @functools.cached_property
    def benchmark(self) -> Benchmark:
        c = self.config.data
        return builders.read(self.data, **{key: c[key] for key in ("forget", "retain", "others", "group", "before")})

    @functools.cached_property
    def albums(self) -> dict[str, loader.Album]:
        pixels = self.config.data.max_pixels
        found = {name: getattr(self.benchmark, name) for name in ("full", *CONTROLS)}
        return {name: loader.album(self.processor, people, pixels) for name, people in found.items() if people}

    @functools.cached_property
    def general(self) -> dict[str, tuple[Item, ...]]:
        """The items that are drawn of every general benchmark that is given."""
        c, found = self.config.general, {}
        for name in benchmarks.GENERAL:
            if c[name]:
                try:
                    found[name] = draw(benchmarks.read(name, c[name]), c.drawn, self.config.seed)
                except InputError as error:
                    raise InputError(f"config.general.{name}: {error}") from error
        return found

    @functools.cached_property
    def sizes(self) -> Sizes:
        return Sizes(tuple(self.config.data.tokens), tuple(self.config.data.patches))

    @functools.cached_property
    def people(self) -> dict[str, int]:
        return {person.id: index for index, person in enumerate(self.benchmark.full)}

    @property
    def told_config(self) -> dict[str, Any]:
        """The config as it is written beside results: people are named in it by id."""
        told, people = self.config.to_dict(), {person.id: person.name for person in self.benchmark.full}
        for key in ("forget", "retain", "before"):
            ids, unknown = names.resolve(told["data"][key], people)
            if ids and not unknown:
                told["data"][key] = ",".join(ids)
        return told

    def of_group(self, group: int, workdir: pathlib.Path) -> "Workspace":
        """Another group of people to forget, in a workdir of its own; data, vanilla model and what is loaded are shared."""
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.data.group = group
        other = Workspace(config, workdir, self.given)
        shared = ("data", "base", "vanilla", "adapter", "card", "processor", "model", "sizes")
        other.__dict__ |= {name: getattr(self, name) for name in shared} | {
            "params": self.params,
            "programs": self.programs,
        }
        if other.benchmark.unseen == self.benchmark.unseen:  # else they are asked other questions
            other.strangers = self.strangers
        return other

    def forget_data(self) -> None:
        """Whatever was read of the data set is read again when it is next needed."""
        for name in ("data", "benchmark", "albums", "people", "prompts", "examiner"):
            self.__dict__.pop(name, None)
        self.strangers = None
        self.scenes.clear()

    def stream(self, name: str, rows: int, without: frozenset[str] = frozenset(), share: float = 1.0) -> Stream:
        """A row of ``slices.STREAMS`` in batches of ``rows``, but for people whose id is in ``without``.

        ``share``: of the questions about people who are kept, so many are dealt, drawn once by the seed.
        """
        part, found = slices.STREAMS[name], self.asked_of(name, without)
        album = self.albums["full"] if part.kind == slices.IMAGE else None
        seed = self.config.seed * 1000 + sum(map(ord, slices.dealt_as(name)))
        numbers = dict(people=self.people, rows=rows, seed=seed, sizes=self.sizes)
        if share < 1.0 and part.kept:
            drawn = np.random.default_rng((seed, 1)).permutation(len(found))[: math.ceil(share * len(found))]
            found = [found[i] for i in sorted(drawn)]
        return stream(name, self.processor, found, album, **numbers)

    def asked_of(self, name: str, without: frozenset[str] = frozenset()) -> list[Example]:
        """What a row of ``slices.STREAMS`` holds, but for people whose id is in ``without``."""
        return slices.examples(slices.STREAMS[name], self.benchmark, without)

    def asked_by_photo(self, split: str) -> list[Example]:
        """The questions by photo about the people of a split that are answered in words."""
        return [
            item for person in getattr(self.benchmark, split) for item in person.generation if item.kind == slices.IMAGE
        ]

    def watched(self, split: str, rows: int) -> Stream:
        """Questions by photo about the people of a split, in the words of training, each with its right answer."""
        people = getattr(self.benchmark, split)
        album = self.albums["full" if split == "forget" else split]
        found = self.asked_by_photo(split)
        index = {person.id: i for i, person in enumerate(people)}
        data = self.mesh.shape["data"]
        numbers = dict(people=index, rows=min(rows, -(-len(found) // data) * data), seed=0, sizes=self.sizes)
        return stream(f"answers of {split}", self.processor, found, album, **numbers)

    def streams(self, rows: int, *more: str) -> dict[str, Stream]:
        """What scores and steps are taken of: the forget set, the two preserve sets, and ``more`` that a method asks for."""
        return {name: self.stream(name, rows) for name in dict.fromkeys(("forget", "retain", "text", *more))}

    # ---- what is told while it runs

    @functools.cached_property
    def tracker(self) -> Tracker:
        return Tracker(self.config.track, self.workdir, self.config.to_dict())

    # ---- models

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
    def starts_from(self) -> tuple[str, str]:
        """The checkpoint that is read first and the key that names it; empty where one is made from nothing."""
        if self.config.vanilla.path and not self.adapter:
            return self.config.vanilla.path, "config.vanilla.path"
        return self.adapter or self.config.model.path, "config.model.path"

    @functools.cached_property
    def card(self) -> pathlib.Path:
        """Config and processor of what every model is a copy of; of a repository on the hub no weight is fetched for them."""
        path, key = self.starts_from
        return hub.fetch(path, key, patterns=hub.SMALL) if path else self.workdir / "base"

    @functools.cached_property
    def processor(self) -> Processor:
        return hf.read_processor(self.card)

    @functools.cached_property
    def model(self) -> models.Model:
        return models.Model(hf.read_config(self.card), jnp.dtype(self.config.model.dtype))

    @functools.cached_property
    def examiner(self) -> evaluate.Examiner:
        """Who questions every model, as the config says."""
        c = self.config.evaluate
        numbers = {key: c[key] for key in ("rows", "new_tokens", "samples", "letters", "memorisation")}
        numbers |= {"seed": self.config.seed, "sizes": self.sizes, "stop": hf.stop_tokens(self.card, self.processor)}
        return evaluate.Examiner(self.model, self.processor, self.mesh, self.prompts, **numbers)

    @functools.cached_property
    def prompts(self) -> questions.Prompts:
        """How every model is asked, as the config says."""
        c = self.config.evaluate
        return questions.Prompts(**c.prompts, shots=questions.drawn(self.benchmark, c.shots, self.config.seed))

    def names(self) -> list[str]:
        """The models that are evaluated, in the order in which they are told of."""
        gold = ["gold"] if self.config.gold and not self.config.vanilla.path else []
        return ["vanilla", *gold, *self.config.unlearn.methods]

    def folder(self, name: str) -> pathlib.Path:
        """Where a model is, or will be."""
        if name == "vanilla":
            return self.vanilla
        return self.workdir / name if name in ("base", "gold") else self.workdir / "unlearned" / name

    def adapted(self, name: str) -> pathlib.Path:
        """Where what a method did is as an adapter of the vanilla model, or will be, if it can be one."""
        return self.workdir / "adapters" / name

    def curves(self, stage: str) -> pathlib.Path:
        """Where the curves of a stage that trains are, or will be."""
        return self.workdir / "training" / f"{stage}.json"

    @property
    def vanilla_name(self) -> str:
        """What such an adapter calls the vanilla model: what the config does, a folder or a hub id."""
        path = self.config.vanilla.path
        return path if path and not self.adapter else str(self.vanilla)

    def mask(self, name: str) -> pathlib.Path:
        """Where the mask of a method is, or will be."""
        return self.workdir / "masks" / f"{name}.safetensors"

    @property
    def factors(self) -> pathlib.Path:
        """Where the factors of what the vanilla model is to keep are, or will be."""
        return pathlib.Path(self.config.factors.path or self.workdir / "factors.safetensors")

    def result(self, name: str) -> pathlib.Path:
        """Where the results of a model are, or will be."""
        return self.workdir / "results" / f"{name}.json"

    def ability(self, name: str, benchmark: str) -> pathlib.Path:
        """Where what a model can do on a general benchmark is, or will be."""
        return self.workdir / "general" / name / f"{benchmark}.json"

    def attacked(self, name: str, attack: str) -> pathlib.Path:
        """Where what an attack brought back from a model is, or will be."""
        return self.workdir / "attacks" / name / f"{attack}.json"

    def load(self, path: pathlib.Path, *, mesh: jax.sharding.Mesh | None = None, consumed: bool = False) -> Tree:
        """The params of a directory; one model is held at a time, and none that a caller consumes."""
        mesh, dtype = mesh or self.mesh, jnp.dtype(self.config.model.param_dtype)
        get = self.params.take if consumed else self.params.get
        return get((path, mesh), lambda: hf.load(path, self.model, mesh, dtype))
