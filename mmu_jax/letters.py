"""Which option of a multiple-choice question a model chose, read from what it said."""

import re
import unicodedata
from collections.abc import Sequence

# Thai, Lao, Burmese, Khmer, kana and Han are written without spaces: there a character is the unit of a sequence.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)


def published_letter(prediction: str) -> str | None:
    """MLLMU-Bench's parser: the first alphanumeric character, upper-cased (so "Based on" is B).

    >>> published_letter('Answer: B'), published_letter('none')
    ('A', 'N')
    """
    kept = re.sub(r"[^a-zA-Z0-9]", "", prediction)
    return kept[0].upper() if kept else None


def published_key(prediction: str, letters: Sequence[str]) -> str | None:
    """The key of the options that :func:`published_letter` names, read off the keys by the same rule; None if not one.

    >>> published_key('Answer: b', ('a', 'b'))
    'a'
    """
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
