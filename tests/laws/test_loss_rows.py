"""Law 5 over the rows of ``LOSSES``: a new row meets them all, and one without a number worked out by hand fails."""

import math
import types

import chex
import jax
import jax.numpy as jnp
import pytest

from mmu_jax import InputError, distillation, losses, objectives

# A row of three tokens. At the first place the second token has 3/4, at the second place the third has 1/2; to the vanilla
# model, 1/4. The answer is the third token alone, of which the reference had log p = -1.
BATCH = {
    "tokens": jnp.array([[0, 1, 0]]),
    "valid": jnp.ones((1, 3), bool),
    "weights": jnp.array([[0.0, 0.0, 1.0]]),
    "row": jnp.array([0]),
    "ref_logps": jnp.array([-1.0]),
}
# The same question with the second token as its answer, of which the reference had log p = -2: beside it, in the other stream.
OTHER = BATCH | {"tokens": jnp.array([[0, 1, 1]]), "ref_logps": jnp.array([-2.0])}
PARAMS = jnp.log(jnp.array([[[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]]]))
VANILLA = jnp.log(jnp.array([[[0.25, 0.75], [0.25, 0.75], [0.9, 0.1]]]))
MODEL = types.SimpleNamespace(
    forward=lambda params, batch: params,
    states=lambda params, batch, layer: params,
    features=lambda params, batch: (params, batch["valid"]),
)
# Where hidden states are pushed to, and how far what predicts the answer is from it: from -log 2 in both coordinates.
PUSHED = 6.5 * distillation.direction(2) + math.log(2)
KL = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
# Loss -> sum and count, worked out on paper.
HAND = {
    "descent": (math.log(2), 1),
    "descent_all": (math.log(4 / 3) + math.log(2), 2),
    "ascent": (-math.log(2), 1),
    "ascent_all": (-math.log(4 / 3) - math.log(2), 2),
    "kl": (KL, 1),
    "sketch": (0.0, 1),  # sum of v is zero, and both logits are the same
    "npo": (20 * math.log(1 + math.exp(0.1 * (1 - math.log(2)))), 1),
    "simnpo": (2 / 4.5 * math.log(1 + 2**-4.5), 1),
    "dpo": (
        math.log(1 + math.exp(-0.1)),
        1,
    ),  # both answers have 1/2, and the reference thought the one likelier by a nat
    "wga": (-math.log(2) / 2, 1),
    "satimp": (-math.log(2) / 2**6, 1),
    "ce_u": (math.log(2), 1),  # all of the target is on the token that has 1/2
    "undial": (math.log(2), 1),  # whatever the target, both tokens have 1/2
    "distil": (KL + math.log(2), 1),
    "diverge": (-KL, 1),
    "rmu": (float(PUSHED[0] ** 2 + PUSHED[1] ** 2) / 2, 1),
    "keep_states": ((math.log(2) ** 2 + math.log(1.5) ** 2) / 2, 1),
    "keep_features": ((math.log(2) ** 2 + math.log(1.5) ** 2) / 6, 1),  # of three places two are as they were
}
LOSSES = sorted(objectives.LOSSES)


def take(name, params=PARAMS, vanilla=VANILLA, batch=BATCH, options=None, other=OTHER):
    others = [other] * len(objectives.LOSSES[name].beside)
    return objectives.take(name, objectives.Seen(MODEL, params, vanilla), batch, options, others)


class Losses(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_every_loss_is_the_number_worked_out_by_hand_compiled_or_not(self):
        assert sorted(HAND) == LOSSES, "a loss without a number worked out by hand"
        for name in LOSSES:
            found = self.variant(lambda params, name=name: take(name, params))(PARAMS)
            chex.assert_trees_all_close(found, jax.tree.map(jnp.float32, HAND[name]), rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_a_pair_of_float32_whatever_the_logits_are(name):
    total, count = take(name, PARAMS.astype(jnp.bfloat16), VANILLA.astype(jnp.bfloat16))
    chex.assert_shape((total, count), ())
    chex.assert_type((total, count), jnp.float32)


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_has_a_gradient_into_the_vanilla_model(name):
    chex.assert_trees_all_equal(jax.grad(lambda v: take(name, PARAMS, v)[0])(VANILLA), jnp.zeros_like(VANILLA))


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_moves_the_answer_as_the_sign_of_the_loss_says(name):
    def answer(params):
        return losses.sequence_logps(params, BATCH["tokens"], BATCH["weights"])[0]

    def change(options):
        step = jax.grad(lambda params: take(name, params, options=options)[0])(PARAMS)
        return float(answer(PARAMS - 0.1 * step) - answer(PARAMS))

    loss = objectives.LOSSES[name]
    draws = [{"seed": seed} for seed in range(8)] if "seed" in loss.options else [{}]
    changes = [change(options) for options in draws]
    assert all(found * loss.sign > 0 for found in changes) if loss.sign else any(changes)


@pytest.mark.parametrize("name", LOSSES)
def test_rows_that_only_fill_the_batch_count_for_nothing(name):
    def filled(batch):
        twice = {key: jnp.concatenate([value, value]) for key, value in batch.items()}
        return twice | {"weights": twice["weights"].at[1].set(0.0), "row": jnp.array([0, -1])}

    twice = jnp.concatenate([PARAMS, PARAMS]), jnp.concatenate([VANILLA, VANILLA])
    chex.assert_trees_all_close(take(name, *twice, filled(BATCH), other=filled(OTHER)), take(name), rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_refused_where_what_it_needs_is_not_there(name):
    bare = {key: value for key, value in BATCH.items() if key != "ref_logps"}
    if objectives.LOSSES[name].needs:
        with pytest.raises(InputError, match=f"for {name}|of {name}"):
            take(name, vanilla=None, batch=bare)
    else:
        chex.assert_trees_all_equal(take(name, vanilla=None, batch=bare), take(name))
