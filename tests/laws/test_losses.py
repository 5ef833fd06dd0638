"""Law 5: hand-computed numbers, a torch line each, signs on a two-token toy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmu_jax import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 5, 7)).astype(np.float32)
TEACHER = RNG.normal(size=(3, 5, 7)).astype(np.float32)
TOKENS = RNG.integers(0, 7, (3, 5)).astype(np.int32)
WEIGHTS = np.array([[0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 1]], np.float32)
ROWS = np.array([1.0, 1.0, 0.0], np.float32)


def close(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-5, atol=1e-6)


def torch_nll():
    flat = torch.tensor(LOGITS[:, :-1]).reshape(-1, 7)
    nll = torch.nn.functional.cross_entropy(flat, torch.tensor(TOKENS[:, 1:]).long().reshape(-1), reduction="none")
    return nll.reshape(3, 4)


def test_token_and_sequence_logps_equal_torch():
    close(losses.token_logps(LOGITS, TOKENS), -torch_nll())
    close(losses.sequence_logps(LOGITS, TOKENS, WEIGHTS), (-torch_nll() * torch.tensor(WEIGHTS[:, 1:])).sum(1))


def test_token_logps_by_hand():
    logits = np.log(np.array([[[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]]], np.float32))
    close(losses.token_logps(logits, np.array([[0, 1, 0]])), [[np.log(0.75), np.log(0.5)]])


def test_cross_entropy_and_ascent_equal_torch():
    total, count = losses.cross_entropy(LOGITS, TOKENS, WEIGHTS)
    close(total, (torch_nll() * torch.tensor(WEIGHTS[:, 1:])).sum())
    assert float(count) == 7
    close(losses.ascent(LOGITS, TOKENS, WEIGHTS)[0], -total)


def test_kl_equals_torch_per_answer_token():
    total, count = losses.kl(jnp.asarray(TEACHER), LOGITS, WEIGHTS)
    p, q = (torch.log_softmax(torch.tensor(x[:, :-1]), -1) for x in (TEACHER, LOGITS))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1) * torch.tensor(
        WEIGHTS[:, 1:]
    )
    close(total, expected.sum())
    assert float(count) == 7
    close(losses.kl(jnp.asarray(LOGITS), LOGITS, WEIGHTS)[0], 0.0)


def test_kl_has_no_gradient_into_the_teacher_and_sees_only_the_answer():
    grad = jax.grad(lambda t: losses.kl(t, LOGITS, WEIGHTS)[0])(jnp.asarray(TEACHER))
    assert not np.asarray(grad).any()
    grad = np.asarray(jax.grad(lambda s: losses.kl(jnp.asarray(TEACHER), s, WEIGHTS)[0])(jnp.asarray(LOGITS)))
    predicts = np.pad(WEIGHTS[:, 1:], ((0, 0), (0, 1))) > 0
    assert (np.abs(grad).sum(-1) > 0).tolist() == predicts.tolist()


def test_npo_by_hand_and_by_torch():
    logps, ref = np.array([-3.0, -1.0, -50.0], np.float32), np.array([-1.0, -1.0, -1.0], np.float32)
    total, count = losses.npo(logps, ref, ROWS, beta=0.5)
    close(total, 4 * np.log1p(np.exp(0.5 * -2.0)) + 4 * np.log(2.0))
    assert float(count) == 2
    r = torch.tensor(0.5 * (logps - ref))
    close(total, (-(2 / 0.5) * torch.nn.functional.logsigmoid(-r) * torch.tensor(ROWS)).sum())


def test_npo_is_ascent_at_the_reference_and_fades_as_the_answer_is_forgotten():
    def gradient(logp):
        return float(jax.grad(lambda x: losses.npo(x, jnp.array([-1.0]), jnp.ones(1))[0])(jnp.array([logp]))[0])

    assert gradient(-1.0) == pytest.approx(1.0)  # the gradient of +log p, which is ascent on the loss
    assert 1.0 > gradient(-10.0) > gradient(-40.0) > 0.0


@pytest.mark.parametrize("name", ["ascent", "npo"])
def test_a_step_on_a_forget_loss_lowers_the_answer_and_descent_raises_it(name):
    tokens, weights = np.array([[0, 1]]), np.array([[0.0, 1.0]], np.float32)

    def logp(bias):
        return losses.sequence_logps(jnp.broadcast_to(bias, (1, 2, 2)), tokens, weights)

    def forget(bias):
        if name == "ascent":
            return losses.ascent(jnp.broadcast_to(bias, (1, 2, 2)), tokens, weights)[0]
        return losses.npo(logp(bias), logp(jnp.zeros(2)), jnp.ones(1))[0]

    bias = jnp.zeros(2)
    down = bias - 0.1 * jax.grad(forget)(bias)
    up = bias - 0.1 * jax.grad(lambda b: losses.cross_entropy(jnp.broadcast_to(b, (1, 2, 2)), tokens, weights)[0])(bias)
    assert float(logp(down)[0]) < float(logp(bias)[0]) < float(logp(up)[0])


def test_losses_are_float32_whatever_the_logits_are():
    low = jnp.asarray(LOGITS, jnp.bfloat16)
    for total, count in (losses.cross_entropy(low, TOKENS, WEIGHTS), losses.kl(low, low, WEIGHTS)):
        assert total.dtype == jnp.float32 and count.dtype == jnp.float32
