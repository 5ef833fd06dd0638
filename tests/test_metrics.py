import numpy as np
import pytest

from mmu_jax import metrics


def test_exact_ignores_case_space_and_punctuation_only():
    assert metrics.exact(" Cape  town.", "Cape Town") == 1.0
    assert metrics.exact("Cape", "Cape Town") == 0.0


def test_cloze_is_the_published_substring_rule():
    assert metrics.cloze("born in LIMA, Peru", "Lima") == 1.0
    assert metrics.cloze("Lim", "Lima") == 0.0


@pytest.mark.parametrize(
    ("said", "published", "strict"),
    [
        ("B", "B", "B"),
        ("**C**: tea", "C", "C"),
        ("Based on it", "B", None),
        ("The answer is D.", "T", "D"),
        ("", None, None),
    ],
)
def test_letters(said, published, strict):
    assert metrics.published_letter(said) == published
    assert metrics.strict_letter(said) == strict


def test_rouge_l():
    assert metrics.rouge_l("ada becker", "Ada Becker") == 1.0
    assert metrics.rouge_l("ada", "ada becker") == pytest.approx(2 / 3)
    assert metrics.rouge_l("", "ada") == 0.0


def test_choice_by_hand():
    logps = np.log(np.array([[0.5, 0.25, 0.125, 0.125], [0.1, 0.4, 0.4, 0.1]]))
    got = metrics.choice(logps, np.ones((2, 4)), np.array([0, 1]))
    assert got["mcq"].tolist() == [1.0, 0.0]  # a tie is wrong
    np.testing.assert_allclose(got["probability"], [0.5, 0.4])
    np.testing.assert_allclose(got["truth_ratio"], [(0.5 / 3) / 0.5, 0.2 / 0.4])
    longer = metrics.choice(2 * logps, np.full((2, 4), 2), np.array([0, 1]))
    np.testing.assert_allclose(longer["probability"], got["probability"])


def test_the_interval_draws_whole_people():
    people = np.repeat(["a", "b", "c", "d"], 5)
    certain = metrics.summary(np.ones(20), people)
    assert certain == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 20, "people": 4}
    split = np.repeat([1.0, 1.0, 0.0, 0.0], 5)  # all or nothing by person: as wide as four coins
    spread = metrics.summary(split, people)
    loose = metrics.summary(np.tile([1.0, 0.0], 10), people)
    assert spread["high"] - spread["low"] > 0.7 > loose["high"] - loose["low"]
    assert metrics.summary(split, people) == spread


def test_distinct_sees_a_collapsed_model():
    assert metrics.distinct(["a", "a", "A.", "a"]) == 0.25
    assert metrics.distinct(["a", "b"]) == 1.0
