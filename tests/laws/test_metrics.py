import math
import unicodedata
import warnings

import numpy as np
import pytest
from rouge_score import rouge_scorer

from mmu_jax import letters, metrics, overlap
from mmu_jax.likelihood import Told

ROUGE_L = overlap.rouge("rougeL")


def test_exact_ignores_case_space_and_punctuation_only():
    assert overlap.exact(" Cape  town.", "Cape Town") == 1.0
    assert overlap.exact("Cape", "Cape Town") == 0.0


def test_cloze_is_the_published_substring_rule():
    assert overlap.cloze("born in LIMA, Peru", "Lima") == 1.0
    assert overlap.cloze("Lim", "Lima") == 0.0


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
    assert letters.published_letter(said) == published
    assert letters.strict_letter(said) == strict


def test_rouge_l():
    assert ROUGE_L("ada becker", "Ada Becker") == 1.0
    assert ROUGE_L("ada", "ada becker") == pytest.approx(2 / 3)
    assert ROUGE_L("", "ada") == 0.0


def test_choice_by_hand():
    logps = np.log(np.array([[0.5, 0.25, 0.125, 0.125], [0.1, 0.4, 0.4, 0.1]]))
    got = metrics.choice(logps, np.ones((2, 4)), np.array([0, 1]))
    assert got["mcq"].tolist() == [1.0, 0.0]  # a tie is wrong
    np.testing.assert_allclose(got["probability"], [0.5, 0.4])
    np.testing.assert_allclose(got["right_share"], [0.5, 0.4])
    longer = metrics.choice(2 * logps, np.full((2, 4), 2), np.array([0, 1]))
    np.testing.assert_allclose(longer["probability"], got["probability"])
    np.testing.assert_allclose(longer["right_share"], got["right_share"])


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
    assert overlap.exact(answer, answer) == ROUGE_L(answer, answer) == overlap.cloze(answer, answer) == 1.0


@pytest.mark.parametrize(
    ("logps", "right", "mcq", "share"),
    [
        ([-9.0, -np.inf], 0, 0.0, 1.0),  # an option alone beats nothing
        ([-2000.0, -2001.0], 0, 1.0, 1 / (1 + np.exp(-1.0))),  # powers that would vanish
        ([-2000.0, -1.0], 0, 0.0, 0.0),
        ([-1.0, -1.0, -np.inf], 1, 0.0, 0.5),
        ([0.0, -np.inf, -np.inf], 0, 0.0, 1.0),
    ],
)
def test_a_choice_is_bounded_and_quiet_at_its_ends(logps, right, mcq, share):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = metrics.choice(np.array([logps]), np.ones((1, len(logps))), np.array([right]))
    assert got["mcq"].tolist() == [mcq] and all(0 <= value[0] <= 1 for value in got.values())
    np.testing.assert_allclose(got["right_share"], [share], atol=1e-300)


NAMES = {
    "hindi": ("मीना कुमारी", "मीन कुमारी"),
    "hindi, short and long": ("कि", "की"),
    "arabic": ("كَتَبَ محمد", "كُتِبَ محمد"),
    "hebrew": ("דָּוִד כֹּהֵן", "דֹּוִד כֹּהֵן"),
    "russian": ("Анна Ковалёва", "Анна Ковалева"),
    "chinese": ("王小明是医生", "王小朋是医生"),
    "thai": ("เขาเป็นหมอ", "เข่าเป็นหมอ"),
    "japanese": ("山田ばなこ", "山田はなこ"),
    "korean": ("김민준 의사", "김민중 의사"),
    "greek": ("Γιώργος", "Γιωργος"),
    "spanish": ("José Peña", "Jose Pena"),
    "bengali": ("রমা দাস", "রাম দাস"),
    "persian": ("می\u200cخواهم", "میخواهم"),
    "symbols": ("C++", "C"),
    "signs": ("?", "!"),
    "faces": ("🙂", "🙁"),
    "nothing": ("", "?"),
}


@pytest.mark.parametrize("script", NAMES)
def test_equal_strings_are_one_in_any_script_and_marks_tell_names_apart(script):
    name, other = NAMES[script]
    decomposed = unicodedata.normalize("NFD", name)
    assert overlap.exact(decomposed, name) == ROUGE_L(decomposed, name) == 1.0
    assert overlap.exact(name, other) == overlap.exact(other, name) == 0.0
    assert overlap.cloze(f"x {decomposed} y", name) == float(name != "")
    assert ROUGE_L(name, other) < 1.0 or script == "symbols"


@pytest.mark.parametrize(
    ("said", "truth", "equal"),
    [
        ("STRASSE", "Straße", 1.0),
        ("ΟΔΟΣ", "οδος", 1.0),
        ("O’Brien", "O'Brien", 1.0),
        ("«Ада»", "ада", 1.0),
        ("`Ada`", "ada", 1.0),
        ("\u200fדוד\u200e", "דוד", 1.0),
        ("नमस्ते।", "नमस्ते", 1.0),
        ("Ada_Becker", "ada becker", 1.0),
        ("5 $", "5 €", 0.0),
        ("C#", "C", 0.0),
        ("-5", "5", 0.0),
        ("1987-1990", "1987 1990", 1.0),
        ("محـمد", "محمد", 1.0),
        ("co\u00adop", "coop", 1.0),
        ("a\u200bb", "ab", 1.0),
        ("...", "?!", 0.0),
        ("", "", 1.0),
    ],
)
def test_exact_sees_letters_not_dress(said, truth, equal):
    assert overlap.exact(said, truth) == equal
    assert equal == 0.0 or ROUGE_L(said, truth) == 1.0


@pytest.mark.parametrize(
    ("said", "truth"),
    [
        ("Ada", ""),
        ("Ada", "  "),
        ("", ""),
        ("Jose\u0301", "Jose"),
        ("Lim", "Lima"),
        ("वह कमला है", "कमल"),
        ("رَجُلٌ", "رَجُل"),
    ],
)
def test_what_cloze_does_not_find(said, truth):
    assert overlap.cloze(said, truth) == 0.0


ENGLISH = [
    ("The runners were running quickly, weren't they?", "A runner runs quick; they were."),
    ("She works as a software-engineer at 3.5 km from 21st St.", "works as an engineer 3 km away"),
    ("It’s a “nurse” — she_said", "its a nurse she said"),
    ("Cities' populations studied", "city population studies"),
    ("nothing alike", "wholly different"),
]


@pytest.mark.parametrize(("said", "truth"), ENGLISH)
def test_english_rouge_is_rouge_score_s_own(said, truth):
    kinds = ("rouge1", "rouge2", "rougeL")
    published = rouge_scorer.RougeScorer(list(kinds), use_stemmer=True).score(truth, said)
    for kind in kinds:
        for part in ("fmeasure", "recall"):
            assert overlap.rouge(kind, part)(said, truth) == getattr(published[kind], part)


def bleu_by_hand(said, truth):
    said, truth, precisions = said.split(), truth.split(), []
    for n in (1, 2, 3, 4):
        runs, sought = ([" ".join(x[i : i + n]) for i in range(len(x) - n + 1)] for x in (said, truth))
        found = sum(min(runs.count(run), sought.count(run)) for run in set(runs))
        precisions.append((found or 0.1) / max(len(runs), 1) if found or n > 1 else 0.0)
    short = min(0.0, 1 - len(truth) / max(len(said), 1))
    return math.exp(short) * math.prod(precisions) ** (1 / 4)


@pytest.mark.parametrize(
    ("said", "truth"),
    [
        *ENGLISH,
        ("she is a baker from Lima in the south of Peru", "she is a baker who was born in Lima in the south"),
        ("the the the the the", "the cat is on the mat"),
        ("Lima", "Lima"),
        ("lima", "Lima"),  # as they are written
        ("", "Lima"),
    ],
)
def test_bleu_is_the_published_one(said, truth):
    assert overlap.bleu(said, truth) == pytest.approx(bleu_by_hand(said, truth), rel=1e-12)


@pytest.mark.parametrize("name", [name for name, row in metrics.METRICS.items() if row.asks == "generation"])
def test_a_metric_of_answers_is_higher_where_more_is_known(name):
    row, truth = metrics.METRICS[name], "she was born in Lima"
    known, half, none = (row.of(said, truth) for said in (truth, "she was born in Oslo", "a man from Rome"))
    assert row.up and known == 1.0 > half >= none == 0.0


@pytest.mark.parametrize(
    ("hits", "memorised", "extracted"),
    [
        ("1111", 1.0, 1.0),
        ("0111", 3 / 4, 3 / 4),
        ("1011", 3 / 4, 1 / 2),
        ("1110", 3 / 4, 0.0),  # of what is never said to its end nothing is extracted
        ("0000", 0.0, 0.0),
        ("1", 1.0, 1.0),
        ("0", 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("end", [False, True])
def test_what_is_memorised_is_of_words_and_not_of_how_a_turn_ends(hits, memorised, extracted, end):
    said, length = np.zeros((1, 6), bool), len(hits)
    said[0, : length + 1] = [*(hit == "1" for hit in hits), end]
    told = Told(*np.zeros((3, 1, 6)), said, np.arange(6)[None] <= length)
    assert metrics.exact_memorisation(told).tolist() == [memorised]
    assert metrics.extraction_strength(told).tolist() == [extracted]


@pytest.mark.parametrize(
    ("said", "truth", "value"),
    [
        ("王小明", "王大明", 2 / 3),  # by character
        ("เขาดี", "เขา", 6 / 7),  # a mark belongs to its letter: 3 of 4 characters
        ("Анна врач", "Анна", 2 / 3),
        ("iPhone手机", "iphone", 0.5),
        ("مهندس في دبي", "مهندس", 0.5),
    ],
)
def test_rouge_counts_words_or_characters(said, truth, value):
    assert ROUGE_L(said, truth) == pytest.approx(value)


LETTERS = [
    ("(b)", "B"),
    ("b.", "B"),
    ("B) welder", "B"),
    ("**Answer:** C", "C"),
    ("B. A welder", "B"),
    ("A welder", None),
    ("A welder, so B", "B"),
    ("A\nwelder", "A"),
    ("A, a welder", "A"),
    ("A is correct", "A"),
    ("Option A welder", "A"),
    ("The correct answer is a welder", None),
    ("C. A pretty girl", "C"),
    ("Option B is correct, not A.", "B"),
    ("A person in the image is a welder. The answer is B.", "B"),
    ("It is not A. B", "B"),
    ("It isn't B; it is C", "C"),
    ("Neither A nor B but D", "D"),
    ("B is wrong. C", "C"),
    ("The answer is not B", None),
    ("Not sure. B", "B"),
    ("A: welder\nB: baker\nAnswer: B", "B"),
    ("\\boxed{B}", "B"),
    ("$B$", "B"),
    ("B_", "B"),
    ("答案是B。", "B"),
    ("Ответ: B", "B"),
    ("Ｂ", "B"),
    ("（Ｂ）", "B"),
    ("정답은 B입니다", "B"),
    ("J. D. Salinger", None),
    ("The answer is J. D. Salinger", None),
    ("A. B. Smith", None),
    ("C. S. Lewis", None),
    ("Dr. B. Smith", None),
    ("B. Smith", "B"),
    ("A B C D", None),
    ("A, B", None),
    ("Either A or C", None),
    ("A and B", None),
    ("B/C", None),
    ("B or C? I think D", "D"),
    ("A " * 20000, "A"),
    ("x " * 20000 + "The answer is C", "C"),
    ("ＢＢ", None),
    ("B\u0301", None),
    ("C++ developer", None),
    ("D-day", None),
    ("J.B. Smith", None),
    ("I'd say option b", "B"),
    ("he saw b there", None),
]


@pytest.mark.parametrize(("said", "letter"), LETTERS)
def test_a_letter_is_one_that_is_meant(said, letter):
    assert letters.strict_letter(said) == letter


@pytest.mark.parametrize(
    ("keys", "said", "strict", "published"),
    [
        ("abcd", "b", "b", "b"),
        ("abcd", "B) baker", "b", "b"),
        ("abcd", "a baker", None, "a"),
        ("1234", "Option 2", "2", None),
        ("1234", "2.", "2", "2"),
        ("1234", "2.5", None, "2"),
        (["A.", "B."], "B.", "B.", "B."),
        (["(a)", "(b)"], "b) x", "(b)", "(b)"),
        (["a", "A"], "A", "A", None),  # the published parser cannot tell them apart
        (["]", "^"], "^", "^", None),
        ([".*", "a+"], ".*", ".*", None),
        ([str(i) for i in range(1, 12)], "10", "10", None),
        ("ABCDEFGHI", "I think B", "B", "I"),
        ("ABCDEFGHI", "The answer is I.", "I", None),
        ("АБВГ", "б.", "Б", None),
        ([], "A", None, None),
        ([""], "A", None, None),
    ],
)
def test_keys_that_are_not_four_capitals(keys, said, strict, published):
    assert letters.strict_letter(said, list(keys)) == strict
    assert letters.published_key(said, list(keys)) == published


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
