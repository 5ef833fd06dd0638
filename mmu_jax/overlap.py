"""How much of a text is in another. Every function maps an answer and its truth to one number.

Text of any script is compared after Unicode's canonical composition (NFC) and case folding: equal strings are equal
however they were typed, and a mark that tells two names apart (an accent, a matra, a point, a tone) is never dropped.
"""

import functools
import re
import types
import unicodedata
from collections.abc import Callable

from mmu_jax.letters import UNSPACED

JOINERS = "\u200c\u200d"  # zero width, between letters of Persian, Hindi and others, where they make another word


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
    """1.0 if the two are equal after :func:`normalise`.

    >>> exact('Ada Becker.', 'ada becker'), exact('Ada', 'Bea')
    (1.0, 0.0)
    """
    return float(normalise(prediction) == normalise(truth))


def cloze(prediction: str, truth: str) -> float:
    """MLLMU-Bench's rule: the truth is a substring of the prediction, case ignored. An empty truth is in nothing.

    A substring ends where a letter ends with its marks: with another mark it is another word.

    >>> cloze('She is a baker.', 'baker'), cloze('She is a welder.', 'baker')
    (1.0, 0.0)
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
def _scorer():
    from nltk.stem import porter
    from rouge_score import rouge_scorer, tokenize

    stemmer = porter.PorterStemmer()

    def stems(text):  # rouge_score's own where it knows the script; it drops every other letter
        return [stem for w in words(text) for stem in (tokenize.tokenize(w, stemmer) if w.isascii() else [w])]

    return rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=types.SimpleNamespace(tokenize=stems))


@functools.lru_cache(2**14)  # every metric of the family asks for the same two
def _scores(prediction, truth):
    return _scorer().score(truth, prediction)


def rouge(kind: str, part: str = "fmeasure") -> Callable[[str, str], float]:
    """``(prediction, truth) -> `` ROUGE (Lin, ACL 2004 workshop) over :func:`words`, of ASCII the stems.

    There the numbers are those of ``rouge_score``. Where one of the two has no word (an emoji, a question mark), whether they are equal. Two texts of one word share no pair of
    words: their ``rouge2`` is 0, equal or not.

    >>> [round(rouge(kind)('She bakes bread', 'She bakes good bread'), 3) for kind in ('rouge1', 'rouge2', 'rougeL')]
    [0.857, 0.4, 0.857]
    >>> rouge('rougeL', 'recall')('She bakes bread', 'She bakes good bread')
    0.75

    Args:
      kind: ``'rouge1'`` of words, ``'rouge2'`` of pairs of neighbours, ``'rougeL'`` of the longest common subsequence.
      part: ``'fmeasure'``, or ``'recall'``, the share of the truth that is found, which TOFU reports (arXiv 2401.06121,
        section 2.2).
    """

    def score(prediction: str, truth: str) -> float:
        if not words(prediction) or not words(truth):
            return exact(prediction, truth)
        return getattr(_scores(prediction, truth)[kind], part)

    return score


def bleu(prediction: str, truth: str) -> float:
    """Sentence BLEU as MLLMU-Bench has it (arXiv 2410.22108): words between spaces, as they are written, one reference.

    The geometric mean of the precisions of runs of one to four words, where a run length of which none matches counts as 0.1 matches
    (method 1 of Chen and Cherry, WMT 2014), times the brevity penalty ``exp(1 - len(truth) / len(prediction))`` of an answer shorter
    than the truth (Papineni et al., ACL 2002). A run that an answer is too short for counts as one that does not match: a short
    answer that is right is far below 1. Without any word in common it is 0.

    >>> round(bleu('born in Lima', 'born in Lima'), 3), bleu('Oslo', 'Lima')
    (0.562, 0.0)
    """
    from nltk.translate import bleu_score

    smoothing = bleu_score.SmoothingFunction().method1
    return float(bleu_score.sentence_bleu([truth.split()], prediction.split(), smoothing_function=smoothing))
