"""CLEAR's own table (arXiv 2410.18057): the numbers that its code prints, faults included, each beside the corrected one.

Of six tasks (:data:`TASKS`) it prints p(right answer), ROUGE and a truth ratio; of two models a forget quality; of these numbers
harmonic means. Its faults are in three places: wrong answers to all questions stand in every truth ratio
(``quality.truth_ratio``), answers are generated without the photo, and the distance of two models is one of vectors over questions
instead of distributions (:func:`js_of_vectors`). What is not named here is as it is there.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from mmu_jax import metrics, quality
from mmu_jax.data import IMAGE, Benchmark, Choice, Person

LIMIT = 300  # items of a task: the first
TOKENS = 300  # of an answer, at most
NAMED = "The name of the person on the image is "  # its question for a face
VALUES = ("probability", "rouge", "truth_ratio")

Numbers = Mapping[str, Mapping[str, float]]  # task -> name of VALUES -> mean, from 0 to 1
Name = tuple[str, str]  # task, name of VALUES


@dataclasses.dataclass(frozen=True)
class Task:
    """A row of CLEAR's tasks.

    >>> TASKS['forget'].captions, TASKS['forget_facerec'].title
    (True, 'Forget FaceRec')

    Attributes:
      title: as its table has it.
      split: whose questions.
      captions: whether photos are described; else they are named, which is judged among the options of a choice.
    """

    title: str
    split: str
    captions: bool = False

    @property
    def forgotten(self) -> bool:
        """Whether it is about the people to forget: its truth ratio is then high where right and wrong answers are as likely."""
        return self.split == "forget"


TASKS = {
    "real_faces": Task("Real Faces", "celebrity"),
    "real_world": Task("Real World", "celebrity"),
    "retain": Task("Retain", "retain", captions=True),
    "retain_facerec": Task("Retain FaceRec", "retain"),
    "forget": Task("Forget", "forget", captions=True),
    "forget_facerec": Task("Forget FaceRec", "forget"),
}


def _every(tasks: tuple[str, ...], values: tuple[str, ...] = VALUES) -> tuple[Name, ...]:
    return tuple((task, value) for task in tasks for value in values)


_JUDGED = ("probability", "truth_ratio")
KEPT = tuple(name for name, task in TASKS.items() if not task.forgotten)
UTILITY = _every(KEPT)  # all whose name does not hold "Forget"
# The columns of the paper, and the utility beside them, which has numbers of people to forget too.
GROUPS: dict[str, tuple[Name, ...]] = {
    "Real": _every(("real_faces", "real_world"), _JUDGED),
    "Retain": _every(("retain", "retain_facerec"), _JUDGED),
    "Forget": _every(("forget", "forget_facerec"), _JUDGED),
}
UTILITY_WITH_FORGET = (*(name for group in GROUPS.values() for name in group), ("retain", "rouge"), ("forget", "rouge"))


def asked(name: str, benchmark: Benchmark) -> list[Choice]:
    """The items of a task, :data:`LIMIT` at most: choices whose first option is the right answer, the others wrong ones.

    Of captions the second option is the right one in other words; a photo without these is left out, and so is a face with no
    other name to choose.

    >>> asked('forget', Benchmark((), (Person('a', 'Ada', (), (), (), (), ()),), ()))
    []
    """
    task = TASKS[name]
    people = getattr(benchmark, task.split)
    found = [choice for p in people for choice in (_captions(p) if task.captions else _faces(name, p))]
    return found[:LIMIT]


def _captions(person: Person) -> list[Choice]:
    said = {item.photo: item.answer for item in person.generation if item.kind == IMAGE}
    rated = [item for item in person.perturbed if item.kind == IMAGE and item.photo in said]
    return [
        _put(item, item.question, {"truth": said[item.photo], "paraphrase": item.options[item.letter]})
        for item in rated
    ]


def _faces(name: str, person: Person) -> list[Choice]:
    if TASKS[name].split == "celebrity" and not person.id.startswith(f"{name}-"):  # both are in one split
        return []
    choices = [item for item in person.choices if item.kind == IMAGE and len(item.options) > 1]
    own = name == "real_world"  # its rows bring their question
    return [_put(item, item.question if own else NAMED, {"truth": item.options[item.letter]}) for item in choices]


def _put(item: Choice, question: str, right: dict[str, str]) -> Choice:
    wrong = {letter: option for letter, option in item.options.items() if letter != item.letter}
    return dataclasses.replace(item, question=question, options=right | wrong, letter="truth")


def probability(name: str, logps: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """p(right answer)^(1 / length), of what is no caption over the sum of all options', ``[N]``.

    Published and corrected are the same.

    >>> probability('forget_facerec', np.log([[0.6, 0.2]]), np.ones((1, 2))).round(3).tolist()
    [0.75]

    Args:
      name: of :data:`TASKS`.
      logps: ``[N, O]``, summed, of the options of :func:`asked`; -inf where there are fewer.
      lengths: ``[N, O]`` tokens of each.
    """
    what = "probability" if TASKS[name].captions else "right_share"
    return metrics.choice(logps, lengths, np.zeros(len(logps), int))[what]


def log_ratios(name: str, logps: np.ndarray, lengths: np.ndarray, *, published: bool) -> np.ndarray:
    """log of TOFU's truth ratio R (``quality.truth_ratio``), ``[N]``; CLEAR's own ratio is ``1 / R``.

    Of what is no caption the right answer itself stands for the one in other words. ``published``: the mean log-probability of wrong
    answers is that of all questions together.

    >>> logps = np.array([[-1.0, -2.0, -6.0], [-1.0, -2.0, -2.0]])
    >>> [log_ratios('forget', logps, np.ones((2, 3)), published=p).tolist() for p in (True, False)]
    [[-2.0, -2.0], [-4.0, 0.0]]
    """
    first = int(TASKS[name].captions)
    places = np.zeros(len(logps), int)
    return quality.log_truth_ratio(logps[:, first:], lengths[:, first:], places, pooled=published)


def truth_ratio(name: str, logs: np.ndarray) -> np.ndarray:
    """What is made of ``logs [N]`` of :func:`log_ratios`: ``min(R, 1 / R)`` of people to forget, else ``max(0, 1 - R)``, ``[N]``.

    >>> truth_ratio('forget', np.zeros(1)).tolist(), truth_ratio('retain', np.zeros(1)).tolist()
    ([1.0], [0.0])
    """
    if TASKS[name].forgotten:
        return np.exp(-np.abs(logs))  # quality.indistinct, which the ratio itself would overflow
    return quality.truthful(np.exp(np.minimum(logs, 0.0)))  # from 1 on it is 0


def mean_of(numbers: Numbers, names: tuple[Name, ...]) -> float | None:
    """Harmonic mean of those of ``names``, from 0 to 1; None where one was not measured.

    >>> mean_of({'retain': {'rouge': 0.5, 'probability': 1.0}}, (('retain', 'rouge'), ('retain', 'probability')))
    0.6666666666666666
    """
    if any(value not in numbers.get(task, {}) for task, value in names):
        return None
    return float(quality.harmonic(np.array([numbers[task][value] for task, value in names])))


def js_of_vectors(first: np.ndarray, second: np.ndarray) -> float:
    """CLEAR's "JS metric" of two models' ``logs [N]`` of R: the square root of the Jensen-Shannon divergence, in nats, of ``1 / R`` over its sum.

    0 where the vectors are alike, at the most ``sqrt(log 2) = 0.83``. Question i of one is held against question i of the other: two
    models with the same ratios in another order are apart, and two of which one has all ratios twice the other's are not. The
    distance of distributions is ``metrics.js``.

    >>> js_of_vectors(np.log([1.0, 3.0]), np.log([2.0, 6.0])), round(js_of_vectors(np.log([1.0, 3.0]), np.log([3.0, 1.0])), 3)
    (0.0, 0.362)
    """
    p, q = (np.exp(-logs - (-logs).max()) for logs in (np.asarray(first, float), np.asarray(second, float)))
    return float(np.sqrt(metrics.jensen_shannon(p / p.sum(), q / q.sum())))


def quality_of(model: np.ndarray, gold: np.ndarray, *, published: bool) -> dict[str, float]:
    """How like gold a model is on captions of people to forget, by ``logs [N]`` of R of both: ``p_value``, ``one_minus_js``.

    ``p_value`` is that of a two-sample Kolmogorov-Smirnov test, which is the same of R, 1 / R and their logs. ``published``:
    ``one_minus_js`` is of :func:`js_of_vectors`; else of ``metrics.js`` of ``1 / (1 + R)``, which lies from 0 to 1.

    >>> quality_of(np.zeros(3), np.zeros(3), published=False)
    {'p_value': 1.0, 'one_minus_js': 1.0}
    """
    if published:
        apart = js_of_vectors(model, gold)
    else:
        apart = metrics.js(*(1 / (1 + np.exp(np.clip(logs, -700, 700))) for logs in (model, gold)))
    return {"p_value": quality.forget_quality(model, gold), "one_minus_js": 1 - apart}
