"""What a rule makes of scores: each preserve set on its own scale, a share of every layer, and what is told of a set that weighs nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmu_jax import InputError, masks, rules
from mmu_jax.rules import Evidence, Rule

SIDES = {"vision": "vision/.*", "language": "language/.*"}


def tree(vision, language):
    return {"vision": {"w": jnp.asarray(vision, jnp.float32)}, "language": {"w": jnp.asarray(language, jnp.float32)}}


# Retain is 42 times text, as the empirical Fisher of a sure model has it; by text, entries 0 and 1 are the ones to leave alone.
FORGET = tree([2.0, 1.0], [8.0, 8.0, 8.0, 8.0])
RETAIN = tree([1.0, 2.0], [1.0, 2.0, 42.0, 84.0])
TEXT = tree([0.0, 0.0], [9.0, 8.5, 0.1, 0.2])
EVIDENCE = Evidence(FORGET, RETAIN, TEXT, 30.0, 10.0, None)


def made(**fields):
    rule = Rule(**fields)
    return jax.tree.map(lambda m: m.tolist(), rules.make(rule, EVIDENCE, FORGET, SIDES, jax.random.key(0)))


@pytest.mark.parametrize(
    ("preserve", "language"),
    [
        ("pooled", [True, True, False, False]),  # 3, 3.6, 31.5, 63 against 8
        ("retain", [True, True, False, False]),
        ("text", [False, False, True, True]),
    ],
)
def test_what_the_language_side_is_weighed_against(preserve, language):
    found = made(preserve=preserve)
    assert found["language"]["w"] == language
    assert found["vision"]["w"] == [True, False]  # retain alone, whatever the language side has


def test_ranks_are_each_set_on_a_scale_of_its_own():
    forget, retain, text = [0.0, 1.0, 2.0, 3.0], [10.0, 0.0, 30.0, 20.0], [0.2, 0.3, 0.1, 0.0]
    evidence = Evidence(*(tree([1.0, 1.0], x) for x in (forget, retain, text)), 1.0, 1.0, None)
    found = rules.make(Rule(preserve="ranks"), evidence, FORGET, SIDES, jax.random.key(0))
    # ranks 0 1 2 3 against the means of 1 0 3 2 and 2 3 1 0: 1.5 1.5 2 1
    assert found["language"]["w"].tolist() == [False, False, True, True]
    tiny = dataclasses.replace(evidence, text=tree([1.0, 1.0], [1e-6 * x for x in text]))
    again = rules.make(Rule(preserve="ranks"), tiny, FORGET, SIDES, jax.random.key(0))
    assert again["language"]["w"].tolist() == found["language"]["w"].tolist()


def test_a_fraction_is_exact_in_every_layer():
    rng = np.random.default_rng(0)
    scores = [{"layers": {"w": jnp.asarray(rng.random((3, 4, 5)), jnp.float32)}} for _ in range(3)]
    evidence = Evidence(*scores, 1.0, 1.0, None)
    found = rules.make(Rule(fraction=0.2), evidence, scores[0], {"vision": "none"}, jax.random.key(0))
    assert masks.layer_counts(found)["layers/w"].tolist() == [4, 4, 4]
    ratio = np.asarray(scores[0]["layers"]["w"]) / (
        np.asarray(scores[1]["layers"]["w"]) / 2 + np.asarray(scores[2]["layers"]["w"]) / 2
    )
    for layer, chosen in zip(ratio, np.asarray(found["layers"]["w"]), strict=True):
        assert layer[chosen].min() > layer[~chosen].max()
    drawn = rules.make(Rule(by="random", fraction=0.2), evidence, scores[0], {"vision": "none"}, jax.random.key(0))
    assert masks.layer_counts(drawn)["layers/w"].tolist() == [4, 4, 4]


def test_a_rule_that_one_accumulator_does_not_decide_wants_the_scores():
    assert not Rule().needs_scores and not Rule(by="all").needs_scores and not Rule(by="all").scored
    for rule in (Rule(preserve="text"), Rule(fraction=0.5), Rule(by="top_k"), Rule(by="random", fraction=0.5)):
        assert rule.needs_scores
        with pytest.raises(InputError, match="one signed accumulator decides"):
            rules.make_signed(rule, FORGET, FORGET, SIDES, jax.random.key(0))


def test_a_random_mask_of_one_accumulator_is_that_of_the_scores():
    rng, key = np.random.default_rng(0), jax.random.key(3)
    forget, kept = (
        {
            "layers": {"w": jnp.asarray(rng.random((3, 40, 5)), jnp.float32)},
            "bare": jnp.asarray(rng.random(64), jnp.float32),
        }
        for _ in range(2)
    )
    sides = {"vision": "bare", "language": "layers/.*"}
    difference = jax.tree.map(lambda f, k: f - k, forget, kept)
    evidence = Evidence(forget, kept, kept, 1.0, 1.0, None)
    ratio = rules.make_signed(Rule(), difference, forget, sides, key)
    drawn = rules.make_signed(Rule(by="random"), difference, forget, sides, key)
    jax.tree.map(np.testing.assert_array_equal, drawn, rules.make(Rule(by="random"), evidence, forget, sides, key))
    assert not np.array_equal(drawn["bare"], ratio["bare"])
    jax.tree.map(np.testing.assert_array_equal, masks.layer_counts(drawn), masks.layer_counts(ratio))
    alone = rules.make_signed(Rule(by="random", side="vision"), difference, forget, sides, key)
    assert masks.count(alone) == int(ratio["bare"].sum())


def test_every_linear_weight_without_scores():
    params = {"language": {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "vision": {"weight": jnp.ones(2)}}
    found = rules.make_unscored(Rule(by="all", side="language"), params, SIDES, ".*weight")
    assert jax.tree.map(lambda m: int(m.sum()), found) == {
        "language": {"weight": 4, "bias": 0},
        "vision": {"weight": 0},
    }


def test_how_much_text_weighs_in_the_pool():
    pooled = 30 * (1 + 2 + 42 + 84), 10 * (9 + 8.5 + 0.1 + 0.2)
    assert rules.text_share(EVIDENCE, SIDES) == pytest.approx(pooled[1] / sum(pooled))


@pytest.mark.parametrize("field", [{"fraction": 0.0}, {"fraction": 1.0}, {"preserve": "texts"}])
def test_a_slip_in_a_rule_is_named(field):
    with pytest.raises(InputError, match=f"{next(iter(field))} of a mask rule"):
        Rule(**field)
