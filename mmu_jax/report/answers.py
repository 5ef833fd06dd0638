"""What the models said, read from ``answers/<model>.json``: whether an answer is right, wrong, or none of the kind asked for."""

import collections
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from mmu_jax.data import Benchmark
from mmu_jax.files import read_object
from mmu_jax.metrics import METRICS, summary
from mmu_jax.overlap import exact, words
from mmu_jax.report.results import Results

ROW = {"person": str, "photo": float, "question": str, "answer": str, "truth": str, "task": str}
FEW = 5  # people: a question that fewer are asked is judged by all that is asked of the same kind
MANY = 0.2  # of the answers about the forgotten faces, above which a reader is told

Answers = dict[str, dict[str, list[dict[str, Any]]]]  # split -> task -> rows
Judge = Callable[[str, dict[str, Any]], bool]


def read(workdir: pathlib.Path, model: str) -> Answers:
    """All answers of a model, none where the file is gone.

    Raises:
      InputError: the file is damaged.
    """
    path = workdir / "answers" / f"{model}.json"
    return read_object(path, "answers", {"*": {"*": [ROW]}}) if path.exists() else {}


def by_question(answers: Answers) -> dict[tuple, str]:
    """``(split, task, person, photo, question) -> `` what was said."""
    return {
        (split, task, row["person"], row["photo"], row["question"]): row["answer"]
        for split, tasks in answers.items()
        for task, rows in tasks.items()
        for row in rows
    }


def judge(metric: str) -> Callable[[str, str], bool]:
    """``(said, truth) -> `` whether an answer counts as right, as the tables count it."""
    row = METRICS[metric]
    if row.asks != "generation":
        return lambda said, truth: bool(exact(said, truth))
    return lambda said, truth: row.of(said, truth) >= row.right


def kinds(vanilla: Answers, benchmark: Benchmark) -> Judge:
    """``(task, row) -> `` whether what is said in a row is an answer of the kind that its question asks for.

    It is where most of its words occur in the truths, or in what the vanilla model said, to the same question about
    anybody (names in it do not count), and most are there once: a town is no occupation, and a word again and again is
    no answer. A question that :data:`FEW` people are asked is judged by all questions by face, or by name.
    """
    names = {person.id: person.name for person in benchmark.shown}
    known, people = collections.defaultdict(set), collections.defaultdict(set)

    def asked(row):
        name = names.get(row["person"])
        return row["question"].replace(name, "") if name else row["question"]

    for tasks in vanilla.values():
        for task, rows in tasks.items():
            for row in rows:
                for key in ((task, asked(row)), (task, None)):
                    known[key].update(words(row["truth"]), words(row["answer"]))
                    people[key].add(row["person"])

    def answers(task, row):
        said, key = words(row["answer"]), (task, asked(row))
        pool = known[key if len(people[key]) >= FEW else (task, None)]
        return 2 * sum(word in pool for word in said) > len(said) and 2 * len(set(said)) > len(said)

    return answers


def marked(workdir: pathlib.Path, results: Results, benchmark: Benchmark) -> Results:
    """The results with ``no_answer`` in every cell, the share of free answers that are none of the kind asked for.

    ``no answer`` is among the flags of an unlearned model where that share is above :data:`MANY` on faces of the
    forgotten. Without answers of the vanilla model the results are as they were.
    """
    vanilla = read(workdir, "vanilla")
    if not vanilla:
        return results
    answers, found = kinds(vanilla, benchmark), {}
    for name, value in results.items():
        said = vanilla if name == "vanilla" else read(workdir, name)
        cells = {split: dict(tasks) for split, tasks in value["results"].items()}
        shares = []
        for split, tasks in said.items():
            for task, rows in tasks.items():
                free = [row for row in rows if row["task"] == "generation"]
                if free and task in cells.get(split, {}):
                    none = np.array([not answers(task, row) for row in free])
                    share = summary(none, np.array([row["person"] for row in free]))
                    cells[split][task] = cells[split][task] | {"no_answer": share}
                    shares += [share["mean"]] if task == "vqa" and split in ("forget", "test") else []
        many = name not in ("vanilla", "gold") and max(shares, default=0.0) > MANY
        found[name] = value | {"results": cells, "flags": [*value["flags"], *["no answer"] * many]}
    return found
