"""Law 12: nothing that is not finite is scored, trained on, saved or written; and what judges a model judges it right."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmu_jax import (
    InputError,
    evaluate,
    files,
    generate,
    metrics,
    models,
    questions,
    sharding,
)
from mmu_jax.data import IMAGE, TEXT, Choice, Example, Person, tiny
from mmu_jax.study import gate

# ---- evaluation


@pytest.fixture(scope="module")
def examiner():
    """A model of random weights that answers by name, and its params."""
    processor = tiny.processor()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = sizes | {"image_size": 24, "patch_size": 12, "projection_dim": 8}
    model = models.Model(tiny.config(processor.tokenizer, vision=vision, text=sizes | {"num_key_value_heads": 2}))
    options = {"rows": 4, "new_tokens": 2, "samples": 10, "letters": True, "memorisation": True}
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype), model.abstract())
    return evaluate.Examiner(model, processor, sharding.make_mesh(1), **options), params


def person(name, choices=(), generation=(), cloze=()):
    return Person(name, name, (), (), tuple(choices), tuple(cloze), tuple(generation))


def broken(params, value=np.nan):
    """The params with one entry of one layer that is not finite."""
    params = jax.tree.map(jnp.copy, params)
    weight = params["language_model"]["layers"]["mlp"]["up_proj"]["weight"]
    params["language_model"]["layers"]["mlp"]["up_proj"]["weight"] = weight.at[1, 0, 0].set(value)
    return params


TWO = Choice("0007", TEXT, "What does Ada do?", {"B": "baker", "A": "nurse"}, "B")


FREE = Example("0007", TEXT, "Where was Ada born?", "Lima")


ASKED = {
    "generation": (person("0007", generation=[FREE]), "'Where was Ada born?' of person 0007 in split retain"),
    "cloze": (person("0007", cloze=[FREE]), "'Where was Ada born?' of person 0007 in split retain"),
    "choices": (person("0007", choices=[TWO]), "'What does Ada do?' of person 0007 in split retain"),
}


@pytest.mark.parametrize("task", ASKED)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error_that_names_the_question(examiner, task, value):
    ask, params = examiner
    who, named = ASKED[task]
    with pytest.raises(InputError) as error:
        ask.examine(broken(params, value), [who], TEXT, None, "retain")
    assert "expected finite numbers from the model" in str(error.value) and named in str(error.value)


def test_a_row_without_finite_logits_says_so_and_its_neighbours_go_on(examiner):
    ask, params = examiner
    batch = {
        "tokens": np.array([[3, 4, 5], [3, 10**6, 5]], np.int32),  # one is no token of this model
        "valid": np.ones((2, 3), bool),
        "positions": np.array([[0, 1, 2]] * 2, np.int32),
    }
    options = {"new_tokens": 3, "stop": (10**6,)}
    got = np.asarray(generate.generate(ask.model, params, batch, **options))
    alone = generate.generate(ask.model, params, {name: array[:1] for name, array in batch.items()}, **options)
    np.testing.assert_array_equal(got[:1], np.asarray(alone))
    assert got[1].tolist() == [-1, 10**6, 10**6] and (got[0] >= 0).all()
    with pytest.raises(InputError, match="found NaN or infinity in row 1"):
        generate.texts(ask.processor, got, (10**6,))


def test_what_several_models_are_asked_is_encoded_once(examiner, monkeypatch):
    ask, params = examiner
    ask, made, encode = dataclasses.replace(ask, encoded={}), [], evaluate.text.encode
    monkeypatch.setattr(evaluate.text, "encode", lambda *args: made.append(args) or encode(*args))
    other = jax.tree.map(lambda x: 2 * x, params)
    first, second, again = (ask.option_logps(p, [TWO], None, None)[0] for p in (params, other, params))
    assert len(made) == 1 and (first == again).all() and not np.allclose(first, second)
    asked = dataclasses.replace(TWO, options={"B": "baker", "A": "clerk"})
    assert not np.allclose(ask.option_logps(params, [asked], None, None)[0], first) and len(made) == 2


def test_finite_numbers_pass_and_results_are_json(examiner, tmp_path):
    ask, params = examiner
    who = person("0007", [TWO, dataclasses.replace(TWO, options={"B": "baker"})], [FREE], [FREE])
    results, answers = ask.examine(params, [who], TEXT, None)
    assert {name: cell["n"] for name, cell in results.items()} == {
        **{name: 1 for name in metrics.asked("generation", "told", "cloze")},
        **dict.fromkeys(("mcq", "right_share", "letter", "letter_published"), 1),  # of two, one is a choice
        "probability": 2,  # the right option has one, alone or not
        "distinct": 2,
    }
    rated = dataclasses.replace(who, perturbed=(TWO,))
    more = ask.examine(params, [rated], TEXT, None)[0]
    assert (
        more.keys() - results.keys() == {"truth_share", "truthful_published"} and len(more["truth_share"]["items"]) == 1
    )
    assert all(more[name] == results[name] for name in results)
    assert [a["task"] for a in answers] == ["generation", "cloze"] and 0 <= results["right_share"]["mean"] <= 1
    files.write_json(tmp_path / "results.json", results)


@pytest.mark.parametrize(
    ("options", "letter", "best", "said", "mcq", "letters"),
    [
        ({"B": "x", "A": "y"}, "B", 0, "B", 1.0, 1.0),
        ({"B": "x", "A": "y"}, "A", 0, "B", 0.0, 0.0),
        ({"b": "x", "a": "y", "c": "z"}, "c", 2, "(c)", 1.0, 1.0),
        ({"2": "x", "1": "y"}, "2", 0, "2", 1.0, 1.0),
    ],
)
def test_options_are_judged_in_their_own_order(examiner, monkeypatch, options, letter, best, said, mcq, letters):
    ask, params = examiner
    put = []

    def answers(self, params, asked, *_):
        put.extend(asked)
        return [said] * len(asked)

    scores = np.full((1, len(options)), -2.0)
    scores[0, best] = -1.0
    monkeypatch.setattr(evaluate.Examiner, "answers", answers)
    monkeypatch.setattr(evaluate.Examiner, "option_logps", lambda *_: (scores, np.ones_like(scores)))
    found, _ = ask.examine(params, [person("1", [Choice("1", TEXT, "Q?", options, letter)])], TEXT, None)
    assert found["mcq"]["mean"] == mcq and found["mcq"]["chance"] == 1 / len(options)
    assert found["letter"]["mean"] == found["letter_published"]["mean"] == letters
    assert "\n".join(f"{key}: {value}" for key, value in options.items()) in put[0]


def test_a_right_letter_without_an_option_is_named(examiner):
    ask, params = examiner
    with pytest.raises(InputError, match="found 'D' for 'What does Ada do.' of person 0007 in split test"):
        ask.examine(params, [person("0007", [dataclasses.replace(TWO, letter="D")])], TEXT, None, "test")


# ---- prompts


@pytest.mark.parametrize(
    ("name", "prompt", "problems"),
    [
        ("generation", "{question}", 0),
        ("generation", '{question}\nReply as {"answer": "..."}', 0),
        ("generation", "{question} {} {0} {{x: 1}} {a b}", 0),
        ("cloze", "{question} in \\boxed{answer}", 0),
        ("generation", "Who is this?", 1),
        ("generation_text", "", 1),
        ("generation", "{q}", 2),
        ("generation", "{question} {options}", 1),
        ("cloze", "{Question}", 2),
        ("letter", "{question}", 1),
        ("letter", "{options} {question} {letter}", 1),
        ("letter", "{question}{options}", 0),
    ],
)
def test_prompts_have_their_places_and_no_others(name, prompt, problems):
    found = questions.check_prompts({name: prompt})
    assert len(found) == problems and all(f"prompts.{name}" in line for line in found)
    if problems:
        with pytest.raises(InputError, match=r"prompts\."):
            questions.Prompts(**{name: prompt})


@pytest.mark.parametrize("text", ["{question}", "{options} {0} {", "100 % of \\1 \\g<0>", '{"a": {question}}'])
def test_what_stands_in_a_question_is_asked_as_it_stands(text):
    prompts = questions.Prompts(generation='{question} as {"a": 1}', letter="{options}|{question}")
    assert prompts.free(Example("1", IMAGE, text, "a")) == text + ' as {"a": 1}'
    assert prompts.free(Example("1", TEXT, text, "a")) == text
    assert prompts.asked_letter(Choice("1", TEXT, text, {"A": text}, "A")) == f"A: {text}|{text}"
    blank = dataclasses.replace(prompts, cloze="{question}", blank="\\1")
    assert blank.filled_blank(Example("1", TEXT, f"{text} ____ is __", "a")) == f"{text} \\1 is \\1"


# ---- the gate


def cells(exact, kept=0.0, **others):
    def cell(mean):
        return {"mean": mean}

    return {"forget": {"vqa": {"exact": cell(exact), "distinct": cell(1.0)} | {k: cell(v) for k, v in others.items()}},
            "retain": {"vqa": {"exact": cell(kept)}}}  # fmt: skip


SENTENCE = questions.Prompts(generation="{question} Answer in one sentence.")


NEVER = "train it longer"


@pytest.mark.parametrize(
    ("results", "headline", "trained", "prompts", "says", "never"),
    [
        (cells(0.2), "exact", True, None, NEVER, "not trained here"),
        (
            cells(0.2, 0.1),
            "exact",
            False,
            None,
            "was not trained here and knows the people to keep no better (10.0 %)",
            NEVER,
        ),
        (cells(0.2, 0.95), "exact", False, None, "it knows the people to keep (95.0 %)", NEVER),
        (cells(0.0, rouge_l=0.8), "exact", False, None, "config.evaluate.headline=rouge_l", NEVER),
        (cells(0.0), "exact", True, SENTENCE, "config.evaluate.headline=rouge_l", "not trained here"),
        (cells(0.0, rouge_l=0.1), "rouge_l", True, SENTENCE, NEVER, "headline="),
        (cells(0.9), "letter", True, None, "found only exact; set config.evaluate.headline", NEVER),
        (cells(0.8996), "exact", True, None, "found 90.0 %", "nan"),
    ],
)
def test_the_gate_gives_advice_that_fits(results, headline, trained, prompts, says, never):
    said = gate.refusal(results, headline, 0.9, trained=trained, prompts=prompts or questions.Prompts())
    assert says in said and never not in said and "\n" not in said


@pytest.mark.parametrize(("known", "memorised"), [(0.9, 0.9), (0.0, 0.0), (1.0, 0.9)])
def test_the_gate_lets_through_what_knows_enough(known, memorised):
    assert gate.refusal(cells(known), "exact", memorised, trained=False, prompts=questions.Prompts()) is None
