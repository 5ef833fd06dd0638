"""Metrics on strings and numbers; numpy only. Every function maps one item to one value, except the bootstrap."""

import re
from collections.abc import Sequence

import numpy as np


def normalise(text: str) -> str:
    """Lower case, no punctuation, single spaces: what exact match compares."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


def exact(prediction: str, truth: str) -> float:
    """1.0 if the two are equal after :func:`normalise`."""
    return float(normalise(prediction) == normalise(truth))


def cloze(prediction: str, truth: str) -> float:
    """MLLMU-Bench's rule: the truth is a substring of the prediction, case ignored."""
    return float(truth.lower() in prediction.lower())


def published_letter(prediction: str) -> str | None:
    """MLLMU-Bench's parser: the first alphanumeric character, upper-cased (so "Based on" is B)."""
    kept = re.sub(r"[^a-zA-Z0-9]", "", prediction)
    return kept[0].upper() if kept else None


def strict_letter(prediction: str, letters: Sequence[str] = "ABCD") -> str | None:
    """A letter that stands alone, the first one; None where there is none."""
    found = re.search(rf"\b([{''.join(letters)}])\b", prediction)
    return found.group(1) if found else None


def rouge_l(prediction: str, truth: str) -> float:
    """ROUGE-L F-measure with stemming (``rouge_score``)."""
    from rouge_score import rouge_scorer

    global _ROUGE
    if _ROUGE is None:
        _ROUGE = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    return _ROUGE.score(truth, prediction)["rougeL"].fmeasure


_ROUGE = None


def choice(logps: np.ndarray, lengths: np.ndarray, right: np.ndarray) -> dict[str, np.ndarray]:
    """Options ranked by likelihood: per item the three values below, each ``[N]``.

    Args:
      logps: ``[N, O]`` summed log-probability of every option as the answer; -inf where an item has fewer options.
      lengths: ``[N, O]`` tokens of every option.
      right: ``[N]`` index of the right option.
    Returns:
      ``mcq``: 1.0 where the right option has the highest log-probability per token; a tie is wrong.
      ``probability``: ``p(right answer)^(1 / length)`` (TOFU, arXiv 2401.06121, section 2.2).
      ``truth_ratio``: mean over wrong options of ``p^(1 / length)`` divided by that of the right one (TOFU, eq. 1).
    """
    per_token = logps / lengths
    mine = np.take_along_axis(per_token, right[:, None], axis=1)
    wrong = (np.arange(logps.shape[1])[None] != right[:, None]) & (logps > -np.inf)
    others = np.where(wrong, per_token, -np.inf)
    mean_wrong = np.where(wrong, np.exp(per_token), 0.0).sum(axis=1) / wrong.sum(axis=1)
    return {
        "mcq": (mine[:, 0] > others.max(axis=1)).astype(float),
        "probability": np.exp(mine[:, 0]),
        "truth_ratio": mean_wrong / np.maximum(np.exp(mine[:, 0]), 1e-12),
    }


def summary(values: np.ndarray, people: np.ndarray, *, samples: int = 1000, seed: int = 0) -> dict[str, float]:
    """Mean with a 95 % interval from a bootstrap over people: whole people are drawn, with all their items.

    Returns:
      ``{'mean', 'low', 'high', 'n', 'people'}``
    """
    values, people = np.asarray(values, float), np.asarray(people)
    ids, index = np.unique(people, return_inverse=True)
    totals = np.bincount(index, weights=values, minlength=len(ids))
    counts = np.bincount(index, minlength=len(ids))
    drawn = np.random.default_rng(seed).integers(0, len(ids), (samples, len(ids)))
    means = totals[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "n": len(values), "people": len(ids)}


def distinct(texts: Sequence[str]) -> float:
    """Distinct answers per answer: near 0 where a collapsed model says the same thing to everything."""
    return len(set(map(normalise, texts))) / max(len(texts), 1)
