"""The table of metrics, and what is told of many values: means with an interval, differences of models, distances of samples."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmu_jax import InputError, quality
from mmu_jax.letters import published_key, strict_letter
from mmu_jax.overlap import bleu, cloze, exact, normalise, rouge

if TYPE_CHECKING:
    from mmu_jax.likelihood import Told


def choice(logps: np.ndarray, lengths: np.ndarray, right: np.ndarray) -> dict[str, np.ndarray]:
    """Options ranked by likelihood: per item the three values below, each ``[N]``, all from 0 to 1.

    >>> found = choice(np.log([[0.2, 0.6]]), np.ones((1, 2)), np.array([1]))
    >>> {name: float(value[0].round(3)) for name, value in found.items()}
    {'mcq': 1.0, 'probability': 0.6, 'right_share': 0.75}

    Args:
      logps: ``[N, O]`` summed log-probability of every option as the answer; -inf where an item has fewer options.
      lengths: ``[N, O]`` tokens of every option.
      right: ``[N]`` index of the right option.
    Returns:
      ``mcq``: 1.0 where the right option has the highest log-probability per token; a tie is wrong, and so is an option
        alone, which beats nothing.
      ``probability``: ``p(right answer)^(1 / length)`` (TOFU, arXiv 2401.06121, section 2.2).
      ``right_share``: that of the right option over the sum of all options'. Not TOFU's truth ratio, which weighs
        paraphrases of the right answer against perturbed ones.
    Raises:
      InputError: a log-probability is NaN, or the right option's is not finite.
    """
    per_token = logps / lengths
    mine = np.take_along_axis(per_token, right[:, None], axis=1)
    if np.isnan(per_token).any() or not np.isfinite(mine).all():
        raise InputError(
            "expected log-probabilities of the options, found NaN or a right option without one; look at the model"
        )
    wrong = (np.arange(logps.shape[1])[None] != right[:, None]) & (logps > -np.inf)
    others = np.where(wrong, per_token, -np.inf)
    # Relative to the likeliest option, so that none of the powers vanishes altogether.
    relative = np.exp(per_token - per_token.max(axis=1, keepdims=True))
    return {
        "mcq": ((mine[:, 0] > others.max(axis=1)) & wrong.any(axis=1)).astype(float),
        "probability": np.exp(mine[:, 0]),
        "right_share": np.take_along_axis(relative, right[:, None], axis=1)[:, 0] / relative.sum(axis=1),
    }


def one_of(name: str) -> Callable[..., np.ndarray]:
    """The value ``name`` of :func:`choice`, of the same arguments.

    >>> one_of('mcq')(np.log([[0.2, 0.6]]), np.ones((1, 2)), np.array([1])).tolist()
    [1.0]
    """
    return lambda *options: choice(*options)[name]


def told_probability(told: "Told") -> np.ndarray:
    """``p(right answer)^(1 / length)``, end of turn included, ``[N]`` (TOFU, arXiv 2401.06121, section 2.2).

    >>> from types import SimpleNamespace
    >>> told_probability(SimpleNamespace(logps=np.log([[0.5, 0.5, 1.0]]), there=np.array([[True, True, False]]))).tolist()
    [0.5]
    """
    return np.exp(told.logps.sum(axis=1) / told.there.sum(axis=1))


def exact_memorisation(told: "Told") -> np.ndarray:
    """Share of the tokens of every answer that are the likeliest, teacher forced, ``[N]`` (Tirumala et al., arXiv 2205.10770).

    The end of turn is left out.

    >>> from types import SimpleNamespace
    >>> said = SimpleNamespace(words=np.ones((1, 4), bool), hits=np.array([[True, False, True, True]]))
    >>> exact_memorisation(said).tolist()
    [0.75]
    """
    words = told.words
    return (told.hits & words).sum(axis=1) / words.sum(axis=1)


def extraction_strength(told: "Told") -> np.ndarray:
    """Share of every answer that greedy decoding says once it was given the rest as its beginning, ``[N]`` (Carlini et al., arXiv 2012.07805).

    ``1 - k / n`` of n tokens, where from the k-th on all are the likeliest, with the smallest such k; 0 where not even the last
    is, of which OpenUnlearning's loop makes 1 / n. The end of turn is left out.

    >>> from types import SimpleNamespace
    >>> said = SimpleNamespace(words=np.ones((1, 4), bool), hits=np.array([[True, False, True, True]]))
    >>> extraction_strength(said).tolist()
    [0.5]
    """
    words = told.words
    wrong = words & ~told.hits
    last = np.where(wrong, np.arange(1, wrong.shape[1] + 1), 0).max(axis=1)
    return 1 - last / words.sum(axis=1)


ASKS = ("generation", "cloze", "letter", "options", "option", "told", "perturbed")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A row of the table of metrics.

    >>> METRICS['rouge_l'].title, METRICS['exact'].name
    ('ROUGE-L', 'exact answers')

    Attributes:
      title: as a heading; tables and sentences take it from here.
      asks: what is put to the model: ``'generation'`` and ``'cloze'``, where ``of`` is ``(said, truth) -> float``;
        ``'letter'``, where it is ``(said, option keys) -> the key that was chosen, or None``; ``'options'``, where it is
        ``(logps [N, O], lengths [N, O], right [N]) -> [N]``; ``'option'``, the same, of questions with the right option alone too;
        ``'told'``, where it is ``likelihood.Told -> [N]``, of the right answers to what generation asks; ``'perturbed'``, as of
        options, of which the right one is a paraphrase of the right answer.
      of: the function.
      up: whether it is higher where more is known.
      form, scale: how ``scale`` times the value is printed.
      right: the value from which one answer counts as right.
      note: what a reader must know of it, a sentence beside its table.
    """

    title: str
    asks: str
    of: Callable[..., Any]
    up: bool = True
    form: str = "{:.1f}"
    scale: float = 100
    right: float = 1.0
    note: str = ""

    def __post_init__(self):
        if self.asks not in ASKS:
            raise InputError(f"expected asks of a metric among {', '.join(ASKS)}, found {self.asks!r}; correct it")

    @property
    def leads(self) -> bool:
        """Whether it may be the headline: a share of what is known, which sentences, flags and the gate take for one."""
        return self.up and self.scale == 100

    @property
    def name(self) -> str:
        """The title within a sentence."""
        return self.title if self.title[1:2].isupper() else self.title[0].lower() + self.title[1:]


_PAIRS = "An answer of one word has no pair of words: 0 for it, right or not."
METRICS: dict[str, Metric] = {
    "exact": Metric("Exact answers", "generation", exact),
    "rouge_l": Metric("ROUGE-L", "generation", rouge("rougeL"), right=0.5),  # a sentence is kept where half of it is
    "contains": Metric("Answers that hold the truth", "generation", cloze),
    "cloze": Metric("Cloze, the truth is part of the answer", "cloze", cloze),
    "cloze_exact": Metric("Cloze, exact", "cloze", exact),
    "mcq": Metric("MCQ, options ranked by likelihood", "options", one_of("mcq")),
    "letter": Metric("MCQ, a letter that stands alone", "letter", strict_letter),
    "letter_published": Metric("MCQ, the published letter parser", "letter", published_key),
    "probability": Metric("p(right answer)", "option", one_of("probability")),
    "right_share": Metric("Share of the right option among all options", "options", one_of("right_share")),
    "truth_share": Metric(
        "Truth ratio, the share of the right answer in other words",
        "perturbed",
        quality.truth_share,
        note="Beside wrong answers in its form: 50 where a model takes them for as likely.",
    ),
    "truthful_published": Metric(
        "Truth ratio, as CLEAR's code has it of people to keep",
        "perturbed",
        quality.truthful_published,
        note="Of right answers in other words, against the wrong ones to all questions together.",
    ),
    "rouge_1": Metric("ROUGE-1", "generation", rouge("rouge1"), right=0.5),
    "rouge_2": Metric("ROUGE-2", "generation", rouge("rouge2"), right=0.5, note=_PAIRS),
    "rouge_1_recall": Metric("ROUGE-1 recall", "generation", rouge("rouge1", "recall"), right=0.5),
    "rouge_2_recall": Metric("ROUGE-2 recall", "generation", rouge("rouge2", "recall"), right=0.5, note=_PAIRS),
    "rouge_l_recall": Metric("ROUGE-L recall", "generation", rouge("rougeL", "recall"), right=0.5),
    "bleu": Metric(
        "BLEU",
        "generation",
        bleu,
        right=0.5,
        note="An answer of fewer than four words stays far below 100, right or not.",
    ),
    "told_probability": Metric("p(right answer), of what is asked in words", "told", told_probability),
    "exact_memorisation": Metric(
        "Exact memorisation",
        "told",
        exact_memorisation,
        note="The share of the tokens of right answers that are the likeliest, given those before.",
    ),
    "extraction_strength": Metric(
        "Extraction strength",
        "told",
        extraction_strength,
        note="The share of right answers that is said once their beginning is given.",
    ),
}


def asked(*kinds: str) -> dict[str, Metric]:
    """The rows of the table that ask for one of ``kinds``.

    >>> list(asked('cloze', 'letter'))
    ['cloze', 'cloze_exact', 'letter', 'letter_published']
    """
    return {name: metric for name, metric in METRICS.items() if metric.asks in kinds}


class Items(NamedTuple):
    """A metric item by item: ``values [N]``, and ``people [N]``, whose each is."""

    values: np.ndarray
    people: np.ndarray


def by_person(items: Items) -> dict[str, float]:
    """Person -> mean of what is theirs, to five digits.

    >>> by_person(Items(np.array([0.0, 1.0, 1.0]), np.array(['a', 'a', 'b'])))
    {'a': 0.5, 'b': 1.0}
    """
    return {str(p): round(float(items.values[items.people == p].mean()), 5) for p in np.unique(items.people)}


def summary(values: np.ndarray, people: np.ndarray, *, samples: int = 1000, seed: int = 0) -> dict[str, float]:
    """Mean with a 95 % interval from a bootstrap over people: whole people are drawn, with all their items; of one person, items.

    >>> round(summary(np.array([1., 0., 1.]), np.array(['a', 'a', 'b']), samples=10)['mean'], 3)
    0.667

    Returns:
      ``{'mean', 'low', 'high', 'n', 'people'}``
    Raises:
      InputError: there is no value.
    """
    values, people = np.asarray(values, float), np.asarray(people)
    if not len(values):
        raise InputError("expected at least one value to take the mean of, found none; leave that metric out")
    ids, index = np.unique(people, return_inverse=True)
    clusters = (
        index if len(ids) > 1 else np.arange(len(values))
    )  # one person drawn again and again leaves nothing to chance
    totals, counts = np.bincount(clusters, weights=values), np.bincount(clusters)
    drawn = np.random.default_rng(seed).integers(0, len(counts), (samples, len(counts)))
    means = totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "n": len(values), "people": len(ids)}


def standard_error(values: np.ndarray, people: np.ndarray) -> float:
    """Of the mean of ``values [N]``, drawn by whole ``people [N]``; 0 where there is one person alone, who says nothing of it.

    Of n people, each with the sum s of c values: ``sqrt(n / (n - 1) sum (s - mean c)^2) / N``; with as many values each, the
    ``std / sqrt(n)`` of their means.

    >>> round(standard_error(np.array([0.1, 0.3, 0.5, 0.7]), np.array(['a', 'a', 'b', 'b'])), 3)
    0.2
    """
    ids, index = np.unique(people, return_inverse=True)
    off = np.bincount(index, weights=values - values.mean(), minlength=len(ids))
    return float(np.sqrt(len(ids) / (len(ids) - 1) * (off**2).sum()) / len(values)) if len(ids) > 1 else 0.0


def distinct(texts: Sequence[str]) -> float:
    """Distinct answers per answer: near 0 where a collapsed model says the same thing to everything.

    >>> distinct(['Yes.', 'yes', 'no', 'Lima'])
    0.75
    """
    return len(set(map(normalise, texts))) / max(len(texts), 1)


def ks(first: np.ndarray, second: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples: the largest gap between their distribution functions, from 0 to 1.

    >>> ks(np.array([0.1, 0.2]), np.array([0.15, 0.9]))
    0.5
    """
    at = np.sort(np.concatenate([first, second]))
    gaps = [np.searchsorted(np.sort(x), at, side="right") / len(x) for x in (first, second)]
    return float(np.abs(gaps[0] - gaps[1]).max())


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence of two distributions ``[K]``, in nats: from 0 to log 2 (Lin, IEEE Trans. Inf. Theory 37, 1991).

    >>> jensen_shannon(np.array([0.5, 0.5]), np.array([0.5, 0.5])), round(jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])), 3)
    (0.0, 0.693)
    """
    middle = (p + q) / 2
    total = sum((x[x > 0] * np.log(x[x > 0] / middle[x > 0])).sum() for x in (p, q))
    return float(max(total / 2, 0.0))  # rounding may lie below 0


def js(first: np.ndarray, second: np.ndarray, bins: int = 10) -> float:
    """Jensen-Shannon distance of two samples of probabilities, in ``bins`` equal bins of [0, 1]; from 0 to 1 (base 2).

    >>> js(np.array([0.05]), np.array([0.95])), js(np.array([0.5]), np.array([0.5]))
    (1.0, 0.0)
    """
    p, q = (np.histogram(x, bins, (0.0, 1.0))[0] / len(x) for x in (first, second))
    return float(np.sqrt(jensen_shannon(p, q) / np.log(2)))


def nested_draws(pairs: dict[tuple, np.ndarray], *, samples: int = 2000, seed: int = 0) -> np.ndarray:
    """Means of K numbers with seeds, groups within them and people within those drawn anew: ``[samples, K]``, or ``[samples]``.

    ``pairs`` holds for every ``(seed, group)`` the numbers of its people, ``[people, K]`` or ``[people]``; those of one person
    are drawn together, so that columns of the result are paired.

    >>> nested_draws({(0, 0): np.array([[1., 2.]]), (1, 0): np.array([[1., 2.]])}, samples=2).tolist()
    [[1.0, 2.0], [1.0, 2.0]]
    """
    if not pairs:
        raise InputError("expected at least one pair of seed and group, found none; measure one")
    rng, of_seed = np.random.default_rng(seed), {}
    for (s, _), values in pairs.items():
        of_seed.setdefault(s, []).append(np.asarray(values, float))
    seeds, draws = list(of_seed.values()), []
    for _ in range(samples):
        means = []
        for i in rng.integers(0, len(seeds), len(seeds)):
            groups = seeds[i]
            for j in rng.integers(0, len(groups), len(groups)):
                n = len(groups[j])
                means.append(groups[j][rng.integers(0, n, n)].sum(axis=0) / n)
        draws.append(sum(means) / len(means))
    return np.array(draws)


def nested(pairs: dict[tuple, np.ndarray], *, samples: int = 2000, seed: int = 0) -> dict[str, float]:
    """Mean of differences with a 95 % interval from a bootstrap over seeds, over groups within them, and over people within those.

    ``pairs`` holds for every ``(seed, group)`` the differences ``[people]`` of two methods on the same people; the mean is that
    of the pairs' means. ``above`` counts the pairs whose mean is above 0.

    >>> found = nested({(0, 0): np.array([1., 3.]), (0, 1): np.array([-1., -1.])}, samples=50)
    >>> found['mean'], found['pairs'], found['above']
    (0.5, 2, 1)
    """
    low, high = np.percentile(nested_draws(pairs, samples=samples, seed=seed), [2.5, 97.5])
    own = [float(np.mean(values)) for values in pairs.values()]
    table = {"mean": float(np.mean(own)), "low": float(low), "high": float(high)}
    return table | {"pairs": len(own), "above": sum(value > 0 for value in own)}
