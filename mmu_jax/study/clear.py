"""CLEAR's own table of a model: what its code asks, and what is made of the answers, published and corrected."""

import dataclasses
from typing import Any

import numpy as np

from mmu_jax import clear_compat, metrics
from mmu_jax.clear_compat import TASKS
from mmu_jax.data import Choice
from mmu_jax.overlap import rouge
from mmu_jax.study.progress import Progress
from mmu_jax.study.workspace import Workspace
from mmu_jax.trees import Tree


def table(work: Workspace, label: str, params: Tree) -> dict[str, Any]:
    """Task -> ``n``, ``published`` and ``corrected`` numbers, and the logs of its truth ratios; of what is asked something.

    The published mean is a number, the corrected one has a 95 % interval from a bootstrap over people; the logs, item by item, are
    there for the captions of people to forget, by which two models are compared.

    Raises:
      NotFiniteError: what the model says is not finite; person and question are named.
    """
    found, bar = {}, Progress(f"evaluate/{label}, as CLEAR's code", len(TASKS))
    for name in TASKS:
        if items := clear_compat.asked(name, work.benchmark):
            found[name] = _task(work, params, name, items)
        bar.add()
    bar.close()
    return found


def _task(work: Workspace, params: Tree, name: str, items: list[Choice]) -> dict[str, Any]:
    c, split = work.config.evaluate, TASKS[name].split
    examiner = dataclasses.replace(work.examiner, new_tokens=clear_compat.TOKENS)
    album = work.albums["celebrity" if split == "celebrity" else "full"]
    photos = np.array([album.of(item)[0] for item in items])
    options = examiner.option_logps(params, items, photos, album, split)
    questions = [item.question for item in items]
    whose = [f"{item.question!r} of person {item.person} in split {split}" for item in items]
    # Its code hands the model the words of the question alone.
    said = {
        "published": examiner.answers(params, questions, None, None, whose),
        "corrected": examiner.answers(params, questions, photos, album, whose),
    }
    recall, people = rouge("rougeL", "recall"), np.array([item.person for item in items])
    found: dict[str, Any] = {"n": len(items)}
    for which, answers in said.items():
        logs = clear_compat.log_ratios(name, *options, published=which == "published")
        values = {
            "probability": clear_compat.probability(name, *options),
            "rouge": np.array([recall(a, item.options["truth"]) for a, item in zip(answers, items, strict=True)]),
            "truth_ratio": clear_compat.truth_ratio(name, logs),
        }
        if which == "published":
            found[which] = {value: float(each.mean()) for value, each in values.items()}
        else:
            numbers = {"samples": c.samples, "seed": work.config.seed}
            found[which] = {value: metrics.summary(each, people, **numbers) for value, each in values.items()}
        if name == "forget":
            found.setdefault("log_ratios", {})[which] = [round(float(log), 5) for log in logs]
    return found
