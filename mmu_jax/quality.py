"""What the field sums an unlearned model up in: how like gold it is on what was to be forgotten, and what it is still good for.

After TOFU (arXiv 2401.06121, section 2.2), whose truth ratio needs a paraphrase of the right answer and wrong ones in its
form for every question; of data without them the distribution of p(right answer) is compared, and the share of the right
option among all stands for the ratio.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmu_jax import InputError

KEPT = ("retain", "retain_test", "celebrity")  # the splits about people whom nothing was to be done to
USEFUL = ("probability", "rouge_l_recall", "right_share")


def log_truth_ratio(
    logps: np.ndarray, lengths: np.ndarray, paraphrase: np.ndarray, *, pooled: bool = False
) -> np.ndarray:
    """log of :func:`truth_ratio`, ``[N]``, in nats: ``mean_k s_k - s`` of log-probabilities per token.

    >>> log_truth_ratio(np.array([[-1.0, -4.0, -8.0]]), np.array([[1, 1, 2]]), np.array([0])).tolist()
    [-3.0]

    Args:
      logps: ``[N, K]``, summed, of a paraphrase of the right answer and of perturbed ones; -inf where there are fewer.
      lengths: ``[N, K]`` tokens of each.
      paraphrase: ``[N]``, the place of the paraphrase.
      pooled: the mean is over the wrong answers of all questions, as in CLEAR's code (arXiv 2410.18057), whose ratio is ``1 / R``.
    Raises:
      InputError: a question without a wrong answer, or without its paraphrase.
    """
    per_token = logps / lengths
    mine = np.take_along_axis(per_token, paraphrase[:, None], axis=1)[:, 0]
    wrong = (np.arange(logps.shape[1]) != paraphrase[:, None]) & (per_token > -np.inf)
    if np.isnan(per_token).any() or not np.isfinite(mine).all() or not wrong.any(axis=1).all():
        raise InputError(
            "expected log-probabilities of a paraphrase and of at least one perturbed answer to every question, found NaN or none; "
            "leave out questions that lack them"
        )
    theirs = np.where(wrong, per_token, 0.0).sum(axis=1) / wrong.sum(axis=1)
    return (per_token[wrong].mean() if pooled else theirs) - mine


def truth_ratio(logps: np.ndarray, lengths: np.ndarray, paraphrase: np.ndarray, *, pooled: bool = False) -> np.ndarray:
    """``R = P(perturbed) / P(paraphrase)`` of every question, ``[N]`` (TOFU, arXiv 2401.06121, section 2.2).

    ``P`` is ``p(answer)^(1 / length)``, of the wrong answers the geometric mean, as its code takes it. Above 1 wrong answers are
    likelier than the right one in other words. Arguments and errors are those of :func:`log_truth_ratio`.

    >>> truth_ratio(np.log([[0.5, 0.2, 0.05]]), np.ones((1, 3)), np.array([0])).round(3).tolist()
    [0.2]
    """
    return np.exp(log_truth_ratio(logps, lengths, paraphrase, pooled=pooled))


def indistinct(ratios: np.ndarray) -> np.ndarray:
    """``min(R, 1 / R)``, ``[N]``: 1 where right and wrong answers are as likely, as they are to who never knew; of what is to be forgotten.

    >>> indistinct(np.array([0.5, 1.0, 4.0])).tolist()
    [0.5, 1.0, 0.25]
    """
    return np.minimum(ratios, 1 / ratios)


def truthful(ratios: np.ndarray) -> np.ndarray:
    """``max(0, 1 - R)``, ``[N]``: 1 where no wrong answer is likely; of what is to be kept.

    >>> truthful(np.array([0.5, 1.0, 4.0])).tolist()
    [0.5, 0.0, 0.0]
    """
    return np.maximum(0.0, 1 - ratios)


def truth_share(logps: np.ndarray, lengths: np.ndarray, paraphrase: np.ndarray) -> np.ndarray:
    """``P(paraphrase) / (P(paraphrase) + P(perturbed)) = 1 / (1 + R)`` of TOFU's truth ratio R (:func:`truth_ratio`), ``[N]``.

    >>> truth_share(np.log([[0.6, 0.2]]), np.ones((1, 2)), np.array([0])).round(3).tolist()
    [0.75]
    """
    return 1 / (1 + truth_ratio(logps, lengths, paraphrase))


def truthful_published(logps: np.ndarray, lengths: np.ndarray, paraphrase: np.ndarray) -> np.ndarray:
    """``max(0, 1 - R)`` as CLEAR's code has it, with the wrong answers of all questions in every ratio R, ``[N]``.

    >>> logps, paraphrase = np.log([[0.5, 0.1], [0.2, 0.4]]), np.array([0, 0])
    >>> truthful_published(logps, np.ones((2, 2)), paraphrase).round(3).tolist()
    [0.6, 0.0]
    """
    return truthful(truth_ratio(logps, lengths, paraphrase, pooled=True))


def forget_quality(model: np.ndarray, gold: np.ndarray) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test that two models' values come from one distribution (TOFU, section 2.2).

    Of the truth ratios of questions about people to forget, or where there are none of their p(right answer). Near 1 nothing tells
    the model from ``gold``; below 0.05 they differ. It falls with the number of questions too: a difference that is there
    is found in the end.

    >>> forget_quality(np.arange(20.0), np.arange(20.0)), forget_quality(np.arange(20.0), np.arange(20.0) + 30) < 1e-6
    (1.0, True)
    """
    from scipy.stats import ks_2samp

    return float(ks_2samp(model, gold).pvalue)


def utility(
    results: Mapping[str, Mapping[str, Mapping[str, Any]]], *, samples: int = 1000, seed: int = 0
) -> dict[str, float] | None:
    """Harmonic mean of what a model still knows of people to keep, from 0 to 1; 0 where one number is (TOFU's model utility, section 2.2).

    Over every mean of :data:`USEFUL` (p(right answer), ROUGE-L recall, share of the right option) that was measured on a
    split of :data:`KEPT`, by photo and by name; with a 95 % interval from a bootstrap over people where each is known person by person.

    >>> cells = {'probability': {'mean': 0.5}, 'rouge_l_recall': {'mean': 1.0}, 'right_share': {'mean': 1.0}}
    >>> utility({'retain': {'vqa': cells}, 'forget': {'vqa': {'probability': {'mean': 0.1}}}})
    {'mean': 0.75}

    Args:
      results: split -> task -> metric -> ``{'mean'}`` and optionally ``'each'``, person -> mean (``evaluate.evaluate``).
    Returns:
      ``{'mean'}``, or ``{'mean', 'low', 'high', 'people'}``; None where not each of the three was measured somewhere.
    """
    cells = [cell for split in KEPT for cell in results.get(split, {}).values()]
    found = {name: [cell[name] for cell in cells if name in cell] for name in USEFUL}
    if not all(found.values()):
        return None
    numbers = [number for values in found.values() for number in values]
    mean = {"mean": float(harmonic(np.array([number["mean"] for number in numbers])))}
    if not all(number.get("each") for number in numbers):
        return mean
    people = sorted({person for number in numbers for person in number["each"]})
    times = np.random.default_rng(seed).multinomial(len(people), np.full(len(people), 1 / len(people)), samples)
    drawn = []
    for number in numbers:
        asked = np.array([person in number["each"] for person in people])
        values = np.array([number["each"].get(person, 0.0) for person in people])
        drawn.append((times @ values) / np.maximum(times @ asked, 1))
    low, high = np.percentile(harmonic(np.array(drawn)), [2.5, 97.5])
    return mean | {"low": float(low), "high": float(high), "people": len(people)}


def harmonic(values: np.ndarray) -> np.ndarray:
    """Harmonic mean over axis 0, ``[K, ...] -> [...]``; 0 where one value is.

    >>> harmonic(np.array([0.5, 1.0, 1.0])).tolist(), harmonic(np.array([0.0, 1.0])).tolist()
    (0.75, 0.0)
    """
    inverse = 1 / np.where(values > 0, values, 1.0)
    return np.where((values > 0).all(axis=0), len(values) / inverse.sum(axis=0), 0.0)
