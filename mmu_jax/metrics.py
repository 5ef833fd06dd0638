"""Metrics on strings and numbers. Every function maps one item to one value, except the bootstrap.

Text of any script is compared after Unicode's canonical composition (NFC) and case folding: equal strings are equal
however they were typed, and a mark that tells two names apart (an accent, a matra, a point, a tone) is never dropped.
"""

import functools
import re
import types
import unicodedata
from collections.abc import Sequence

import numpy as np

from mmu_jax import InputError

JOINERS = "\u200c\u200d"  # zero width, between letters of Persian, Hindi and others, where they make another word
# Thai, Lao, Burmese, Khmer, kana and Han are written without spaces: there a character is the unit of a sequence.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _unseen(c: str) -> bool:
    """Marks of direction, soft hyphens, the stroke that stretches an Arabic word: nobody reads them."""
    return unicodedata.category(c) == "Cf" and c not in JOINERS or c == "\u0640"


def normalise(text: str) -> str:
    """One case, no punctuation, single spaces: what exact match compares; text that is all punctuation stays as it is.

    A sign that is part of a name or a number is kept.

    >>> [normalise(said) for said in ('The C#-developer.', 'C++', '-5 °C')]
    ['the c# developer', 'c++', '-5 °c']
    """
    folded = "".join(c for c in _folded(text) if not _unseen(c))

    def kept(i: int, c: str) -> bool:
        before, after = folded[i - 1 : i] if i else "", folded[i + 1 : i + 2]
        return c == "#" and before.isalnum() or c in "-\u2212" and after.isdigit() and not before.isalnum()

    plain = (
        " " if (unicodedata.category(c)[0] == "P" or c == "`") and not kept(i, c) else c for i, c in enumerate(folded)
    )
    return " ".join("".join(plain).split()) or " ".join(folded.split())


def exact(prediction: str, truth: str) -> float:
    """1.0 if the two are equal after :func:`normalise`."""
    return float(normalise(prediction) == normalise(truth))


def cloze(prediction: str, truth: str) -> float:
    """MLLMU-Bench's rule: the truth is a substring of the prediction, case ignored. An empty truth is in nothing.

    A substring ends where a letter ends with its marks: with another mark it is another word.
    """
    said, sought = _folded(prediction), _folded(truth)
    if not sought.strip():
        return 0.0
    ends = (match.end() for match in re.finditer(f"(?={re.escape(sought)})", said))
    return float(any(unicodedata.category((said + " ")[end + len(sought)])[0] != "M" for end in ends))


def words(text: str) -> list[str]:
    """Runs of letters, marks and numbers, folded; a character with its marks where words are written unspaced.

    >>> words('Über 2 km, 東京')
    ['über', '2', 'km', '東', '京']
    """
    found, open_word = [], False
    for c in _folded(text):
        if _unseen(c):
            continue
        kind, alone = unicodedata.category(c)[0], UNSPACED.match(c) is not None
        if found and open_word and (kind == "M" or c in JOINERS):
            found[-1] += c
        elif kind not in "LMN":
            open_word = False
        elif open_word and not alone and not UNSPACED.match(found[-1]):
            found[-1] += c
        else:
            found.append(c)
            open_word = True
    return found


@functools.cache
def _rouge():
    from nltk.stem import porter
    from rouge_score import rouge_scorer, tokenize

    stemmer = porter.PorterStemmer()

    def stems(text):  # rouge_score's own where it knows the script; it drops every other letter
        return [stem for w in words(text) for stem in (tokenize.tokenize(w, stemmer) if w.isascii() else [w])]

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=types.SimpleNamespace(tokenize=stems))


def rouge_l(prediction: str, truth: str) -> float:
    """ROUGE-L F-measure over :func:`words`, of ASCII the stems: there the numbers are those of ``rouge_score``.

    Where one of the two has no word (an emoji, a question mark), whether they are equal.
    """
    if not words(prediction) or not words(truth):
        return exact(prediction, truth)
    return _rouge().score(truth, prediction)["rougeL"].fmeasure


def published_letter(prediction: str) -> str | None:
    """MLLMU-Bench's parser: the first alphanumeric character, upper-cased (so "Based on" is B)."""
    kept = re.sub(r"[^a-zA-Z0-9]", "", prediction)
    return kept[0].upper() if kept else None


def published_key(prediction: str, letters: Sequence[str]) -> str | None:
    """The key of the options that :func:`published_letter` names, read off the keys by the same rule; None if not one."""
    said = published_letter(prediction)
    named = [key for key in letters if said is not None and published_letter(key) == said]
    return named[0] if len(named) == 1 else None


_ANSWER = re.compile(
    r"(?:\banswers?|\bchoice|\bcorrect\s+(?:option|letter)|\\boxed)\W*"
    r"(?:(?:is|would\s+be|must\s+be|should\s+be)\b)?\W*(?:(?:option|choice|letter)\b)?\W*$",
    re.IGNORECASE,
)
_OPTION = re.compile(r"\b(?:option|choice|letter)\W*$", re.IGNORECASE)
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never|nor|neither|cannot|than|except|unlike|instead\s+of)\b|n['’]t\b)[\s\"'“‘(*]*"
    r"(?:(?:be|the|option|choice|letter|answer|\S{1,3}\s+(?:or|and))\b[\s\"'“‘(*]*)*$",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"[)*\s\"'’”}]*\s(?:(?:is|was)\s+(?:not|never|wrong|incorrect|false)|(?:isn|wasn)['’]t)\b", re.IGNORECASE
)
_WORD_FOLLOWS = re.compile(r"[ \t]+(?!(?:is|and|or|because|since|seems|matches)\b)[*_]*\w", re.IGNORECASE)
_PART_OF_A_NAME = re.compile(r"['’‐‑-]\w|[+#]|\.\w\.|[.,:]\d")  # I'm, B-side, C++, A.B., 2.5
# J. D. Salinger, C. S. Lewis, Dr. B. Smith
_INITIALS = re.compile(r"\.\s*[^\W\d_]\.\s*[^\W\d_]{2}")
_INITIAL, _NAME = re.compile(r"(?<!\w)[^\W\d_]\.\s*$"), re.compile(r"\.\s*[^\W\d_]{2}")
_TITLE = re.compile(r"\b(?:Dr|Mr|Mrs|Ms|Prof|St)\.?\s+$")
_FULL_WIDTH = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}
_NEAR = 200  # characters around a letter that say what it is
_AND = r"""[\s)\]*.,"']*(?:\b(?:and|or)\b|[&/])[\s(\[*"']*(?:(?:option|choice)\s+)?[\s(\[*"']*"""  # between two keys
_ENDS = re.compile(r"[*_\s]*(?:$|[.):,\]}>|=;!–—-])|\s*\n")


def _joins(c: str, core: str) -> bool:
    """Whether a character beside a letter makes a word of the two; Korean particles follow Latin letters without a space."""
    if c == "" or UNSPACED.match(c) or core.isascii() and "\uac00" <= c <= "\ud7a3":
        return False
    return unicodedata.category(c)[0] in "LMN"


def _rank(said: str, core: str, before: str, after: str) -> int | None:
    """How sure it is that ``said`` between the two is meant as the letter ``core``: 0 surest, None not at all."""
    if (
        _joins(before[-1:], core)
        or _joins(after[:1], core)
        or _PART_OF_A_NAME.match(after)
        or re.search(r"\w[-‐‑]$", before)
    ):
        return None
    if said.isupper() and (
        _INITIALS.match(after) or _TITLE.search(before) or _INITIAL.search(before) and _NAME.match(after)
    ):
        return None
    if re.search(r"\b[^\W\d]\.$" if said.isalpha() else r"\d[.,:]$", before):
        return None
    if _DENIED_BEFORE.search(before) or _DENIED_AFTER.match(after):
        return None
    option = _OPTION.search(before) is not None
    if said.casefold() in ("a", "i") and _WORD_FOLLOWS.match(after) and not option:
        return None  # an article, a pronoun
    if _ANSWER.search(before):
        return 0
    starts = not re.search(r"[^\W_]", before[: _OPTION.search(before).start()] if option else before)
    if starts and _ENDS.match(after):
        return 1
    enclosed = re.search(r"[(\[{*\"'“‘`]$", before) and re.match(r"[)\]}*\"'”’`]", after)
    return 2 if option or enclosed or said == core or not said.islower() else None


def strict_letter(prediction: str, letters: Sequence[str] = "ABCD") -> str | None:
    """The key of the options that a prediction names as a letter of its own; None where there is none.

    What follows "the answer is" counts before a key at the start of the text, and that before any other that stands
    alone; of equals the first. "A welder" is no A and "I think" no I: words follow them; nor is "not A", nor a letter
    within a word or a name ("C++", "B-side", "J. D. Salinger"), nor one of several ("A or B", "A, B, C"). Keys are compared
    without their punctuation ("A.", "(b)"), letters in either case where both are not keys; in the middle of a sentence
    only as the key is written or as a capital.

    >>> [strict_letter(said) for said in ('(b)', 'A welder, so B', 'Option B is correct, not A.', 'A welder')]
    ['B', 'B', 'B', None]
    """
    cores: dict[str, str] = {}
    for key in letters:
        named = unicodedata.normalize("NFC", key).translate(_FULL_WIDTH)
        cores.setdefault(re.sub(r"^[\W_]+|[\W_]+$", "", named) or named, key)
    cased = len({core.casefold() for core in cores}) < len(cores)
    table = {core if cased else core.casefold(): core for core in cores}
    text, found = unicodedata.normalize("NFC", prediction).translate(_FULL_WIDTH), []
    longest_first = sorted(map(re.escape, filter(None, cores)), key=len, reverse=True)
    another = rf"(?<!\w)(?:{'|'.join(longest_first) or '(?!)'})(?!\w)"
    if len(set(re.findall(another, text))) > 1 and re.fullmatch(rf"\W*(?:{another}\W+)+{another}\W*", text):
        return None  # a list of keys
    after_it, before_it = (re.compile(p) for p in (_AND + another, rf"{another}{_AND}$"))
    for match in re.finditer("|".join(longest_first) or r"(?!)", text, 0 if cased else re.IGNORECASE):
        said, start, after = match.group(), match.start(), text[match.end() : match.end() + _NEAR]
        before = text[:start] if start <= _NEAR else "... and " + text[start - _NEAR : start]
        core = table.get(said if cased else said.casefold())
        if core is None:  # re folds the dotless i, casefold does not
            continue
        if after_it.match(after) or before_it.search(before):
            continue
        if not re.search(r"\w", said):  # a key that is a sign stands between spaces
            rank = None if before[-1:].strip() or after[:1].strip() else 2
        else:
            rank = _rank(said, core, before, after)
        if rank is not None:
            found.append((rank, match.start(), cores[core]))
    return min(found)[2] if found else None


def choice(logps: np.ndarray, lengths: np.ndarray, right: np.ndarray) -> dict[str, np.ndarray]:
    """Options ranked by likelihood: per item the three values below, each ``[N]``, all from 0 to 1.

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


def summary(values: np.ndarray, people: np.ndarray, *, samples: int = 1000, seed: int = 0) -> dict[str, float]:
    """Mean with a 95 % interval from a bootstrap over people: whole people are drawn, with all their items.

    Returns:
      ``{'mean', 'low', 'high', 'n', 'people'}``
    Raises:
      InputError: there is no value.
    """
    values, people = np.asarray(values, float), np.asarray(people)
    if not len(values):
        raise InputError("expected at least one value to take the mean of, found none; leave that metric out")
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
