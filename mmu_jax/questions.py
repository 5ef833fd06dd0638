"""How questions are put to a model: the prompts, and what is filled in where."""

import dataclasses
import re

from mmu_jax import InputError
from mmu_jax.data import IMAGE, Choice, Example

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

    Raises:
      InputError: what :func:`check_prompts` finds.
    """

    generation: str = "{question}"
    generation_text: str = "{question}"
    cloze: str = "{question}\nPlease **ONLY** provide the correct answer that should replace the [Blank]."
    letter: str = "{question}\n{options}\nJust give ONE letter representing the answer directly."
    blank: str = "[Blank]"

    def __post_init__(self):
        if problems := check_prompts(dataclasses.asdict(self)):
            raise InputError("; ".join(problems))

    def free(self, item: Example) -> str:
        return _fill(self.generation if item.kind == IMAGE else self.generation_text, question=item.question)

    def filled_blank(self, item: Example) -> str:
        return _fill(self.cloze, question=re.sub("__+", lambda _: self.blank, item.question))

    def asked_letter(self, choice: Choice) -> str:
        options = "\n".join(f"{letter}: {option}" for letter, option in choice.options.items())
        return _fill(self.letter, question=choice.question, options=options)


def _fill(prompt: str, **values: str) -> str:
    """Each ``{name}`` of ``values`` replaced once: what stands in a question is never read as a place."""
    return re.sub(rf"\{{({'|'.join(values)})\}}", lambda place: values[place[1]], prompt)
