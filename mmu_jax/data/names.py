"""People by name or id, as a person types them: case, spacing, underscores and Unicode form do not count."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping


def key(name: str) -> str:
    """What two spellings of one name have in common.

    >>> key('ada_berg') == key('Ada  Berg')
    True
    """
    return " ".join(unicodedata.normalize("NFKC", name).replace("_", " ").casefold().split())


def _pattern(name: str) -> re.Pattern:
    return re.compile(rf"(?<!\w){re.escape(key(name))}(?!\w)")


def mentioned(name: str, text: str) -> bool:
    """Whether a text has a name, as words of its own.

    >>> mentioned('Bo', 'What book is this?'), mentioned('Bo', "What is Bo's job?")
    (False, True)
    """
    return _pattern(name).search(key(text)) is not None


def part(name: str, text: str) -> str:
    """A word of a name that a text has with a capital, which may mean the person; empty where there is none.

    >>> part('Anne-Marie Li', 'What does Anne do?'), part('Anne-Marie Li', 'Where does Li live?'), part('Bo Will', 'Which will?')
    ('Anne', 'Li', '')
    """
    words = re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", text))
    spelled = {key(word): word for word in words if word[:1].isupper() and len(word) > 1}
    return next((spelled[one] for one in re.findall(r"[^\W\d_]+", key(name)) if one in spelled), "")


def without(name: str, text: str) -> str:
    """A text with a name taken out.

    >>> without('Ada Berg', 'Where does Ada Berg live?')
    'where does  live?'
    """
    return _pattern(name).sub("", key(text))


def resolve(said: str, people: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """The ids of the people in a list separated by commas, each once, and what in it is nobody.

    A name may hold a comma: the longest that is somebody's is taken.

    >>> resolve('Ada Berg, lind, bo,Zed', {'p1': 'Ada Berg', 'p2': 'Lind, Bo'})
    (['p1', 'p2'], ['Zed'])

    Args:
      people: id -> name.
    """
    known = {key(id_): id_ for id_ in people} | {key(name): id_ for id_, name in people.items()}
    parts, found, unknown = said.split(","), [], []
    while parts:
        size = next((n for n in range(len(parts), 0, -1) if key(",".join(parts[:n])) in known), 0)
        if size:
            found.append(known[key(",".join(parts[:size]))])
        elif parts[0].strip():
            unknown.append(parts[0].strip())
        parts = parts[size or 1 :]
    return list(dict.fromkeys(found)), unknown


def nearest(name: str, names: Iterable[str]) -> str:
    """``" (did you mean 'Ada Berg'?)"``, or nothing where none is near.

    >>> nearest('Ada Brg', ['Ada Berg', 'Bo Lind'])
    " (did you mean 'Ada Berg'?)"
    """
    by_key = {key(other): other for other in names}
    near = difflib.get_close_matches(key(name), list(by_key), 1, 0.75)
    return f" (did you mean {by_key[near[0]]!r}?)" if near else ""
