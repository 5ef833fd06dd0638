"""How questions are put to a model: the prompts, and what is filled in where."""

import dataclasses
import re

import numpy as np

from mmu_jax import InputError
from mmu_jax.data import IMAGE, Benchmark, Choice, Example, Person, names

# The places of every prompt.
FILLED = {name: ("question",) for name in ("generation", "generation_text", "cloze")} | {
    "letter": ("question", "options")
}


def check_prompts(prompts: dict[str, str], where: str = "prompts") -> list[str]:
    """What is wrong with prompts (by the names of :class:`Prompts`), a line each.

    A prompt has the places that are filled in and no other ``{name}``, which would be asked as it stands; any other brace
    means nothing (``{"answer": ...}``, ``\\boxed{letter}``). ``where`` they are is what messages call them by.

    >>> check_prompts({'generation': 'Who is this?'})
    ["expected {question} in prompts.generation, found 'Who is this?'; put it where the question should stand"]
    """
    problems = []
    for name, places in FILLED.items():
        if name not in prompts:
            continue
        prompt, key = prompts[name], f"{where}.{name}"
        problems += [
            f"expected {{{place}}} in {key}, found {prompt!r}; put it where the {place} should stand"
            for place in places
            if f"{{{place}}}" not in prompt
        ]
        strangers = sorted(set(re.findall(r"(?<![\\\w])\{([^\W\d]\w*)\}", prompt)) - set(places))
        known = " and ".join(f"{{{place}}}" for place in places)
        problems += [f"expected only {known} in {key}, found {{{other}}}; correct or remove it" for other in strangers]
    return problems


@dataclasses.dataclass(frozen=True)
class Prompts:
    """How questions are put; ``{question}`` and ``{options}`` are filled in, other braces stay as they are.

    The wording of cloze and letter is MLLMU-Bench's own (arXiv 2410.22108); the chat template of the processor goes around
    it. ``generation`` asks about a photo, ``generation_text`` about a name.

    >>> Prompts(generation='{question} Reply as {"answer": "..."}').generation
    '{question} Reply as {"answer": "..."}'

    Attributes:
      shots: people of whom all but the last, or but the one who is asked about, are shown before a cloze or a letter question: their
        questions of that task and kind, with the right answers, in MLLMU-Bench's words. Their photos are not shown: a model
        that was trained on one photo a question is lost among several.

    Raises:
      InputError: what :func:`check_prompts` finds.
    """

    generation: str = "{question}"
    generation_text: str = "{question}"
    cloze: str = "{question}\nPlease **ONLY** provide the correct answer that should replace the [Blank]."
    letter: str = "{question}\n{options}\nJust give ONE letter representing the answer directly."
    blank: str = "[Blank]"
    shots: tuple[Person, ...] = ()

    def __post_init__(self):
        if problems := check_prompts({name: getattr(self, name) for name in FILLED}):
            raise InputError("; ".join(problems))

    def free(self, item: Example) -> str:
        return _fill(self.generation if item.kind == IMAGE else self.generation_text, question=item.question)

    def filled_blank(self, item: Example) -> str:
        said = [f"{self._cloze(shot)}\nCorrect Answer: {shot.answer}\n" for shot in self._shown("cloze", item)]
        return "".join([*said, self._cloze(item)])

    def asked_letter(self, choice: Choice) -> str:
        said = [
            f"Question: {shot.question}\n{_options(shot)}\nCorrect Answer: {shot.letter}\n"
            for shot in self._shown("choices", choice)
        ]
        return "".join([*said, _fill(self.letter, question=choice.question, options=_options(choice))])

    def _cloze(self, item: Example) -> str:
        return _fill(self.cloze, question=re.sub("__+", lambda _: self.blank, item.question))

    def _shown(self, task: str, asked: Example | Choice) -> list:
        """The items of a task, of the kind that is asked for, of those who are shown before it."""
        people = [person for person in self.shots if person.id != asked.person][: max(len(self.shots) - 1, 0)]
        return [item for person in people for item in getattr(person, task) if item.kind == asked.kind]


def drawn(benchmark: Benchmark, count: int, seed: int) -> tuple[Person, ...]:
    """Who is shown before questions: ``count`` people to keep and one more, who stands in for whoever is asked; none for 0.

    Nobody is among them whom a model is, or ever was, to forget, and no question of theirs in which such a name stands, as
    an option or otherwise.

    Raises:
      InputError: there are not so many.
    """
    gone = {person.id: person.name for person in (*benchmark.forget, *benchmark.before)}

    def silent(items):
        return tuple(i for i in items if not any(names.mentioned(name, _said(i)) for name in gone.values()))

    kept = [person for person in benchmark.retain if person.id not in gone and (person.cloze or person.choices)]
    if count and len(kept) < count + 1:
        raise InputError(
            f"expected {count + 1} people to keep who are asked something, to show {count} before every question, found {len(kept)}; show fewer"
        )
    order = np.random.default_rng(seed).permutation(len(kept))[: count + 1 if count else 0]
    people = [kept[i] for i in order]
    return tuple(dataclasses.replace(p, cloze=silent(p.cloze), choices=silent(p.choices)) for p in people)


def _said(item: Example | Choice) -> str:
    answers = item.options.values() if isinstance(item, Choice) else [item.answer]
    return "\n".join([item.question, *answers])


def _options(choice: Choice) -> str:
    return "\n".join(f"{letter}: {option}" for letter, option in choice.options.items())


def _fill(prompt: str, **values: str) -> str:
    """Each ``{name}`` of ``values`` replaced once: what stands in a question is never read as a place."""
    return re.sub(rf"\{{({'|'.join(values)})\}}", lambda place: values[place[1]], prompt)
