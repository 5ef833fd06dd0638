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
    np.testing.assert_allclose(got["right_share"], [0.5, 0.4])
    longer = metrics.choice(2 * logps, np.full((2, 4), 2), np.array([0, 1]))
    np.testing.assert_allclose(longer["probability"], got["probability"])


def test_an_option_alone_beats_nothing():
    got = metrics.choice(np.array([[-9.0, -np.inf], [-1.0, -2.0]]), np.ones((2, 2)), np.array([0, 1]))
    assert got["mcq"].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(got["right_share"], [1.0, 1 / (1 + np.e)])


def test_a_share_is_finite_however_unlikely_the_options():
    got = metrics.choice(np.array([[-2000.0, -1990.0]]), np.ones((1, 2)), np.array([0]))
    np.testing.assert_allclose(got["right_share"], [1 / (1 + np.exp(10.0))])


SAME = [
    "Priyā Sharmā",
    "प्रिया शर्मा एक शिक्षिका हैं",
    "مهندس في القاهرة",
    "Инженер из Москвы",
    "她是一名医生",
    "แพทย์หญิง",
    "רופאה בירושלים",
]


@pytest.mark.parametrize("answer", SAME)
def test_the_same_words_in_any_script_score_one(answer):
    assert metrics.exact(answer, answer) == metrics.rouge_l(answer, answer) == metrics.cloze(answer, answer) == 1.0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("José", "Jose\u0301", 1.0),
        ("José", "Jose", 0.0),
        ("कि", "की", 0.0),
        ("?", "!", 0.0),
        ("", "ada", 0.0),
        ("Ada Becker.", "ada becker", 1.0),
    ],
)
def test_exact_tells_names_apart(one, other, same):
    assert metrics.exact(one, other) == same


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("b.", "B"),
        ("The answer is B.", "B"),
        ("A welder, so B", "B"),
        ("C. A pretty girl", "C"),
        ("Option B is correct, not A.", "B"),
        ("It is not A. B", "B"),
        ("A baker", None),
        ("ＢＢ", None),
    ],
)
def test_a_letter_is_a_letter_and_no_article(said, right):
    assert metrics.strict_letter(said, "ABCD") == right


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
