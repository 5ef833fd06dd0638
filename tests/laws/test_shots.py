"""Questions with others' right answers before them: nobody who is to be forgotten is among these, nor who is asked."""

import dataclasses

import pytest

from mmu_jax import InputError, questions
from mmu_jax.data import IMAGE, TEXT, Benchmark, Choice, Example, Person, builders


@pytest.fixture(scope="module")
def faces(prepared):
    return builders.read(prepared, forget="forget_10", retain="retain_90")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_nobody_who_is_to_be_forgotten_is_ever_shown(faces, count):
    gone = {person.id: person.name for person in faces.forget}
    for seed in range(30):
        shots = questions.drawn(faces, count, seed)
        assert len(shots) == (count + 1 if count else 0) and not {p.id for p in shots} & set(gone)
        assert shots == questions.drawn(faces, count, seed)
    assert count == 0 or questions.drawn(faces, count, 0) != questions.drawn(faces, count, 1)
    asked, prompts = (*faces.forget, *faces.test, *faces.retain), questions.Prompts(shots=shots)
    for person in asked:
        put = [prompts.filled_blank(e) for e in person.cloze] + [prompts.asked_letter(c) for c in person.choices]
        for said, item in zip(put, (*person.cloze, *person.choices), strict=True):
            shown = said[: said.rfind("Correct Answer: ")] if count else ""
            assert not any(name in shown for name in gone.values())
            told = said.count("Correct Answer: ")
            task = "cloze" if isinstance(item, Example) else "choices"
            others = [p for p in shots if p.id != person.id][:count]
            assert told == sum(i.kind == item.kind for p in others for i in getattr(p, task))


def test_who_was_forgotten_before_is_not_shown_either(faces):
    kept = faces.retain[:3]
    before = dataclasses.replace(faces, retain=kept, before=kept[:1])
    assert {p.id for seed in range(9) for p in questions.drawn(before, 1, seed)} == {p.id for p in kept[1:]}
    with pytest.raises(InputError, match="expected 3 people to keep who are asked something.*found 2; show fewer"):
        questions.drawn(before, 2, 0)


def person(name, job):
    options = {"A": "nurse", "B": "baker"}
    letter = {value: key for key, value in options.items()}[job]
    choices = tuple(Choice(name, kind, f"{what}?", options, letter) for kind, what in ((IMAGE, "job"), (TEXT, name)))
    return Person(name, name, (), (), choices, (Example(name, IMAGE, "a __", job),), ())


def test_a_question_that_names_one_of_them_is_not_shown(faces):
    gone, (kept, other) = faces.forget[0], faces.retain[:2]
    options = {"A": kept.name, "B": gone.name.upper()}
    named = Choice(kept.id, IMAGE, "Who is this?", options, "A")
    blank = Example(kept.id, TEXT, f"{kept.name}, a friend of {gone.name}, is a __", "baker")
    odd = dataclasses.replace(kept, choices=(named, *kept.choices), cloze=(blank, *kept.cloze))
    (first, second) = questions.drawn(dataclasses.replace(faces, retain=(odd, other)), 1, 0)
    shown = {p.id: p for p in (first, second)}[kept.id]
    assert all(choice in kept.choices for choice in shown.choices) and set(shown.cloze) <= set(kept.cloze)


def test_shots_stand_before_a_question_in_the_published_words():
    ada, bo, cy = person("Ada", "nurse"), person("Bo", "baker"), person("Cy", "baker")
    prompts = questions.Prompts(shots=(ada, bo))
    shown = "Question: job?\nA: nurse\nB: baker\nCorrect Answer: A\n"
    assert prompts.asked_letter(cy.choices[0]) == shown + questions.Prompts().asked_letter(cy.choices[0])
    assert prompts.asked_letter(ada.choices[0]).startswith("Question: job?\nA: nurse\nB: baker\nCorrect Answer: B\n")
    assert prompts.asked_letter(cy.choices[1]).startswith("Question: Ada?\n"), "of the kind that is asked"
    only = "Please **ONLY** provide the correct answer that should replace the [Blank]."
    assert prompts.filled_blank(cy.cloze[0]) == f"a [Blank]\n{only}\nCorrect Answer: nurse\na [Blank]\n{only}"
    said = Example("Cy", IMAGE, "Who is this?", "Cy")
    assert prompts.free(said) == "Who is this?", "what is asked for in words is asked alone"
    assert questions.drawn(Benchmark((ada,), (ada,), (bo,)), 0, 0) == ()
