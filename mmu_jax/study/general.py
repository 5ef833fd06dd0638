"""What is left of what a model can do besides: the stages ``general/<model>/<benchmark>``."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mmu_jax import metrics
from mmu_jax.data import loader, text, vision
from mmu_jax.data.general.benchmarks import GENERAL
from mmu_jax.data.general.items import images, stamp
from mmu_jax.data.sizes import fit
from mmu_jax.study import records
from mmu_jax.study.progress import Progress
from mmu_jax.study.workspace import Workspace
from mmu_jax.trees import Params


@dataclasses.dataclass(frozen=True)
class Sheet:
    """The questions of a benchmark as they are put to every model, Q questions of N items one after the other.

    Attributes:
      prompts: what is asked.
      whose: what each is called in messages.
      photos: ``[Q]``, place among the images of the one that each is about.
      images: ``[N]``, the same of the items.
      encoded: every image once, with what it is called in messages.
      sizes: what each becomes; where there are none, what is asked is text alone.
    """

    prompts: list[str]
    whose: list[str]
    photos: np.ndarray
    images: np.ndarray
    encoded: list[tuple[bytes, str]]
    sizes: list[vision.Measure]

    @property
    def shows(self) -> bool:
        """Whether a question is about an image."""
        return bool(self.encoded)


def sheet(work: Workspace, name: str) -> Sheet:
    """The questions of a benchmark, made once for all models of a workspace.

    Raises:
      InputError: an image does not decode, or is refused by the processor.
    """
    if name not in work.sheets:
        items, row, most = work.general[name], GENERAL[name], work.config.data.max_pixels
        encoded, places = images(items)
        sizes = [vision.measure(work.processor, vision.decode(*one).size, most, one[1]) for one in encoded]
        asked = [(row.ask(question), item.where) for item in items for question in item.questions]
        prompts, whose = [words for words, _ in asked], [f"{words!r} of {where}" for words, where in asked]
        photos = np.repeat(places, [len(item.questions) for item in items])
        work.sheets[name] = Sheet(prompts, whose, photos, places, encoded, sizes)
    return work.sheets[name]


def check(work: Workspace, *, processor: bool) -> None:
    """Looks through every image and, where there is a ``processor`` already, every question, before anything is trained.

    Raises:
      InputError: an image does not decode or is refused, or a question does not fit; file and row are named.
    """
    for name, items in work.general.items():
        if not processor:
            for one in images(items)[0]:
                vision.decode(*one)
            continue
        made = sheet(work, name)
        text.check(work.processor, zip(made.whose, made.prompts, strict=True))
        lengths = text.encode_prompts(work.processor, made.prompts, int(made.shows)).lengths(0)
        for length, whose, photo in zip(lengths, made.whose, made.photos, strict=True):
            shown = made.sizes[photo] if made.shows else None
            fit(
                int(length) - 1 + shown.tokens if shown else int(length),
                work.sizes.tokens,
                "tokens",
                whose=f" for {whose}",
            )
            if shown:
                fit(shown.patches, work.sizes.patches, "patches", whose=f" for {whose}")


def longest(work: Workspace) -> list[dict[str, int]]:
    """The most ``tokens`` and ``patches`` of a row of each benchmark, by the questions with the most characters."""
    found = []
    for made in (sheet(work, name) for name in work.general):
        most = sorted(set(made.prompts), key=lambda words: (len(words), words))[-32:]
        shown = max((size.tokens for size in made.sizes), default=0)
        lengths = text.encode_prompts(work.processor, most, int(made.shows)).lengths(shown)
        found.append({"tokens": int(lengths.max()), "patches": max((size.patches for size in made.sizes), default=0)})
    return found


def reads(work: Workspace, name: str) -> dict[str, Any]:
    """The part of the config that what is asked and how it is scored depends on; of the copy what was drawn counts."""
    c, row = work.config, GENERAL[name]
    how = {"instruction": row.instruction, "parse": row.parse.__name__, "measures": list(row.measures)}
    asked = {key: c.evaluate[key] for key in ("rows", "new_tokens", "samples")}
    found = {"drawn": c.general.drawn, f"{name}.content": stamp(work.general[name])}
    return {"general": found, "how": how, "evaluate": asked, "seed": c.seed}


def said(
    work: Workspace, params: Params, name: str, progress: Callable[[int], None] = lambda n: None
) -> list[list[str]]:
    """What a model says to the questions of every item of a benchmark."""
    made, items = sheet(work, name), work.general[name]
    shown = loader.shown(work.processor, made.encoded, work.config.data.max_pixels) if made.shows else []
    album, photos = (loader.Album(shown, {}), made.photos) if made.shows else (None, None)
    words = iter(work.examiner.answers(params, made.prompts, photos, album, made.whose, progress))
    return [[next(words) for _ in item.questions] for item in items]


def rights(work: Workspace, params: Params, name: str) -> dict[str, float]:
    """Item -> the share of its questions that a model answers rightly."""
    pairs = zip(work.general[name], said(work, params, name), strict=True)
    return {item.id: GENERAL[name].right(item, part) / len(part) for item, part in pairs}


def ask(work: Workspace, model: str, name: str) -> dict[str, float]:
    """Asks a model a benchmark and writes how many questions of every item it answered rightly, and what it said.

    They are answered greedily, in batches of ``evaluate.rows``; ``<workdir>/general/<model>/<benchmark>.json``.
    """
    c, row, items, made = work.config, GENERAL[name], work.general[name], sheet(work, name)
    bar = Progress(f"general/{model}/{name}", len(made.prompts))
    parts = said(work, work.load(work.folder(model)), name, bar.add)
    bar.close()
    asked = np.array([len(item.questions) for item in items])
    right = np.array([row.right(item, part) for item, part in zip(items, parts, strict=True)])
    results, floor = {}, row.one_answer(items)
    for title, measure in row.measures.items():
        found = metrics.summary(measure(right, asked), made.images, samples=c.evaluate.samples, seed=c.seed)
        results[title] = {"images" if key == "people" else key: value for key, value in found.items()}
        results[title] |= {"one_answer": floor[title]}
    answers = [
        {"id": item.id, "truth": [q.answer for q in item.questions], "answer": part}
        for item, part in zip(items, parts, strict=True)
    ]
    value = {"model": model, "benchmark": name, "items": stamp(items), "results": results, "answers": answers}
    value |= {"right": _row(right), "asked": _row(asked), "image": _row(made.images)}
    value |= {"config": c.to_dict(), "provenance": records.provenance()}
    records.write(work.ability(model, name), value)
    return {title: found["mean"] for title, found in results.items()}


def _row(numbers: np.ndarray) -> str:
    """Numbers of items in a line: thousands of them would be a line each."""
    return " ".join(map(str, numbers.tolist()))
