"""Law 12: nothing that is not finite is scored, trained on, saved or written; and what judges a model judges it right."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmu_jax import (
    InputError,
    checkpoint,
    evaluate,
    files,
    generate,
    methods,
    models,
    questions,
    sharding,
    train,
    transforms,
)
from mmu_jax.data import IMAGE, TEXT, Choice, Example, Person, tiny
from mmu_jax.plan import Plan
from mmu_jax.study import gate

# ---- evaluation


@pytest.fixture(scope="module")
def examiner():
    """A model of random weights that answers by name, and its params."""
    processor = tiny.processor()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = sizes | {"image_size": 24, "patch_size": 12, "projection_dim": 8}
    model = models.Model(tiny.config(processor.tokenizer, vision=vision, text=sizes | {"num_key_value_heads": 2}))
    options = {"rows": 4, "new_tokens": 2, "samples": 10, "letters": True}
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


def test_finite_numbers_pass_and_results_are_json(examiner, tmp_path):
    ask, params = examiner
    who = person("0007", [TWO, dataclasses.replace(TWO, options={"B": "baker"})], [FREE], [FREE])
    results, answers = ask.examine(params, [who], TEXT, None)
    assert {name: cell["n"] for name, cell in results.items()} == {
        **dict.fromkeys(("exact", "rouge_l", "cloze", "cloze_exact"), 1),
        **dict.fromkeys(
            ("mcq", "probability", "right_share", "letter", "letter_published"), 1
        ),  # of two, one is a choice
        "distinct": 2,
    }
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


# ---- training: a model of one table, whose logits are the row of the token


class Table:
    """Next-token logits by token: what ``train.fit`` needs of a model."""

    family = types.SimpleNamespace(rules=[(r".*", ())])

    def forward(self, params, batch):
        return params["table"]["weight"][batch["tokens"]]


class Rows:
    """A stream of random rows; the batch ``poison`` has a weight that is not finite."""

    def __init__(self, name, steps, poison=-1):
        self.name, self.steps, self.poison, self.dealt = name, steps, poison, []

    def batch(self, step):
        rng = np.random.default_rng(step)
        self.dealt.append(step)
        weights = np.ones((2, 4), np.float32) * (np.nan if step == self.poison else 1.0)
        common = {"valid": np.ones((2, 4), bool), "row": np.arange(2, dtype=np.int32), "weights": weights}
        return common | {"tokens": rng.integers(0, 5, (2, 4)).astype(np.int32), "ref_logps": np.zeros(2, np.float32)}

    def describe(self, batch):
        return f"{self.name} rows {batch['row'].tolist()}"


def table():
    return {"table": {"weight": jax.random.normal(jax.random.key(0), (5, 5))}}


def fit(method, data, where=None, epochs=1.0, mask=None, save_every=1, **numbers):
    plan = Plan.of(method, data, epochs, **({"learning_rate": 0.1} | numbers))
    kept = None if where is None else checkpoint.Checkpoints(where)
    options = {"mesh": sharding.make_mesh(1), "mask": mask, "checkpoints": kept, "save_every": save_every}
    return plan, train.fit(plan, Table(), table(), data, **options)


@pytest.mark.parametrize(
    ("steps", "poison", "rate", "failed", "kept"),
    [
        (3, 2, 0.1, 2, 2),  # the loss, in the last step
        (3, 0, 0.1, 0, None),
        (1, -1, 1e39, 0, None),  # the params, in the only step: loss and gradient are finite
        (3, -1, 1e39, 0, None),
    ],
)
def test_no_checkpoint_of_a_state_that_is_not_finite(tmp_path, steps, poison, rate, failed, kept):
    data = {"retain": Rows("retain", steps, poison)}
    with pytest.raises(InputError) as error:
        fit(methods.METHODS["retain_ft"], data, tmp_path / "c", learning_rate=rate)
    assert f"found NaN or infinity at step {failed} in retain rows [0, 1]" in str(error.value)
    assert checkpoint.Checkpoints(tmp_path / "c").latest == kept


def test_without_checkpoints_the_end_is_looked_at_too():
    with pytest.raises(InputError, match="at step 2"):
        fit(methods.METHODS["retain_ft"], {"retain": Rows("retain", 3, poison=2)})


# ---- how often, how far


@pytest.mark.parametrize(
    ("retain", "forget", "epochs"), [(8, 3, 1), (8, 2, 1), (57, 7, 1), (8, 3, 2), (3, 8, 2), (5, 5, 1), (1810, 96, 1)]
)
def test_a_lap_takes_every_forget_batch_at_most_once(retain, forget, epochs):
    data = {"retain": Rows("retain", retain), "forget": Rows("forget", forget)}
    for name in ("mmunlearner", "mmunlearner_official", "grad_diff_alternate"):
        method = methods.METHODS[name]
        plan = Plan.of(method, data, epochs)
        turns = [plan.turn(method.phases[0], i) for i in range(plan.iterations)]
        taken = [batch for batch in turns if batch is not None]
        every = max(retain // forget, 1)
        assert len(taken) == epochs * min(-(-retain // every), forget) and len(set(taken)) == len(taken)
        assert [b % forget for b in taken] == list(range(min(retain, forget))) * epochs
        assert [plan.turn(method.phases[1], i) for i in range(plan.iterations)] == list(range(plan.iterations))


def counts(state):
    return sorted({int(value) for _, value in optax.tree.get_all_with_path(state, "count")})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mmunlearner_official", {"shared": 11}),
        ("grad_diff_alternate", {"phase0": 3, "phase1": 8}),
        ("npo", {"phase0": 3}),
    ],
)
def test_a_schedule_ends_with_the_steps_that_are_taken(name, expected, monkeypatch):
    lengths, real = [], transforms.learning_rate
    monkeypatch.setattr(transforms, "learning_rate", lambda peak, n, **kw: lengths.append(n) or real(peak, n, **kw))
    data = {"retain": Rows("retain", 8), "forget": Rows("forget", 3)}
    mask = {"table": {"weight": jnp.eye(5, dtype=bool)}}
    _, state = fit(methods.METHODS[name], data, mask=mask, schedule="linear")
    assert {key: counts(value) for key, value in state.opt_state.items()} == {k: [n] for k, n in expected.items()}
    assert set(lengths) == set(expected.values())


def test_the_official_rows_have_one_rate_and_others_two():
    def moved(name):
        data = {"retain": Rows("retain", 1), "forget": Rows("forget", 1)}
        mask = {"table": {"weight": jnp.zeros((5, 5), bool)}}
        _, state = fit(methods.METHODS[name], data, mask=mask, learning_rate=1e-3, retain_rate=1e-1)
        return float(jnp.abs(state.params["table"]["weight"] - table()["table"]["weight"]).max())

    assert moved("mmunlearner") == pytest.approx(1e-1, rel=1e-3)
    assert moved("mmunlearner_official") < 2e-3


# ---- what a loss needs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ga", set()),
        ("kl", {"teacher"}),
        ("npo", {"reference"}),
        ("npo_retain", {"reference"}),
        ("mmunlearner_official", set()),
    ],
)
def test_a_method_says_what_its_losses_need(name, expected):
    assert methods.METHODS[name].needs == expected


def test_a_loss_gets_the_vanilla_model_because_it_says_so(monkeypatch):
    """By whatever name it goes."""

    def pull(seen, batch):
        return ((seen.params["table"]["weight"] - seen.vanilla["table"]["weight"]) ** 2).sum(), jnp.float32(1.0)

    monkeypatch.setitem(methods.LOSSES, "pull", methods.Loss(pull, frozenset({"teacher"})))
    method = methods.Method((methods.Phase({"retain": "pull"}),))
    _, state = fit(method, {"retain": Rows("retain", 2)})
    assert np.asarray(state.history["retain/pull"]).tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(state.params["table"]["weight"], table()["table"]["weight"])


def test_npo_without_its_reference_is_refused():
    data = {"forget": Rows("forget", 1)}
    deal = data["forget"].batch
    data["forget"].batch = lambda step: {k: v for k, v in deal(step).items() if k != "ref_logps"}
    with pytest.raises(InputError, match="expected ref_logps in the batches of npo"):
        fit(methods.METHODS["npo"], data)


def test_npo_with_a_retain_term_is_the_sum_of_both_in_one_step():
    data = {"retain": Rows("retain", 4), "forget": Rows("forget", 2)}
    plan, state = fit(methods.METHODS["npo_retain"], data)
    assert plan.iterations == 2 and set(state.history) == {"forget/npo", "retain/descent"}
    batch = Rows("forget", 1).batch(0)
    total, values = train.objective(plan.method.phases[0], methods.Seen(Table(), table()), dict.fromkeys(data, batch))
    np.testing.assert_allclose(total, values["forget/npo"] + values["retain/descent"])
