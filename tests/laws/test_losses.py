"""Law 5: hand-computed numbers, a torch line each, signs on a two-token toy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmu_jax import distillation, losses

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


def test_simnpo_equals_torch_and_needs_no_reference():
    logps, lengths = np.array([-3.0, -1.0, 0.0], np.float32), np.array([2.0, 4.0, 0.0], np.float32)
    total, count = losses.simnpo(logps, lengths, ROWS, beta=4.5, delta=0.25)
    nll = torch.tensor(-logps[:2] / lengths[:2])
    close(total, (-torch.nn.functional.logsigmoid(4.5 * (nll - 0.25)) * 2 / 4.5).sum())
    assert float(count) == 2


def test_dpo_by_hand_and_by_torch():
    better, worse = np.array([1.0, -2.0, 9.0], np.float32), np.array([0.0, 1.0, 9.0], np.float32)
    total, count = losses.dpo(better, worse, ROWS, beta=0.5)
    close(total, np.log1p(np.exp(-0.5)) + np.log1p(np.exp(1.5)))
    close(total, (-torch.nn.functional.logsigmoid(0.5 * torch.tensor(better - worse))[:2]).sum())
    assert float(count) == 2


def test_weighted_ascents_equal_torch_with_weights_that_are_held():
    logits = torch.tensor(LOGITS, requires_grad=True)
    each = torch.log_softmax(logits[:, :-1], -1).gather(-1, torch.tensor(TOKENS[:, 1:]).long()[..., None])[..., 0]
    held, answer = each.detach().exp(), torch.tensor(WEIGHTS[:, 1:])
    for ours, powers in ((losses.wga, {"beta": 2.0}), (losses.satimp, {"beta1": 3.0, "beta2": 0.5})):
        first, second = (*powers.values(), 0.0)[:2]
        theirs = (held**first * (1 - held) ** second * each * answer).sum()
        (gradient,) = torch.autograd.grad(theirs, logits, retain_graph=True)
        (total, count), grads = jax.value_and_grad(
            lambda x, f=ours, p=powers: f(x, TOKENS, WEIGHTS, **p), has_aux=True
        )(jnp.asarray(LOGITS))
        close(total, theirs.detach())
        close(grads, gradient)
        assert float(count) == 7


def test_a_weighted_ascent_leaves_alone_what_is_forgotten():
    def gradient(p):
        logits = jnp.log(jnp.array([[[p, 1 - p], [0.5, 0.5]]]))
        grads = jax.grad(lambda x: losses.wga(x, np.array([[1, 0]]), np.array([[0.0, 1.0]]))[0])(logits)
        return float(jnp.abs(grads).max())

    assert gradient(0.5) > gradient(0.1) > gradient(0.01)


@pytest.mark.parametrize("name", ["ascent", "npo", "simnpo", "dpo", "wga", "satimp", "ce_u", "undial"])
def test_a_step_on_a_forget_loss_lowers_the_answer_and_descent_raises_it(name):
    tokens, weights = np.array([[0, 1]]), np.array([[0.0, 1.0]], np.float32)

    def logp(bias):
        return losses.sequence_logps(jnp.broadcast_to(bias, (1, 2, 2)), tokens, weights)

    def forget(bias):
        said = (jnp.broadcast_to(bias, (1, 2, 2)), tokens, weights)
        before, one = logp(jnp.zeros(2)), jnp.ones(1)
        return {
            "ascent": lambda: losses.ascent(*said),
            "npo": lambda: losses.npo(logp(bias), before, one),
            "simnpo": lambda: losses.simnpo(logp(bias), one, one),
            "dpo": lambda: losses.dpo(jnp.zeros(1), logp(bias) - before, one),
            "wga": lambda: losses.wga(*said),
            "satimp": lambda: losses.satimp(*said),
            "ce_u": lambda: distillation.ce_u(*said),
            "undial": lambda: distillation.undial(jnp.zeros((1, 2, 2)), *said),
        }[name]()[0]

    bias = jnp.zeros(2)
    down = bias - 0.1 * jax.grad(forget)(bias)
    up = bias - 0.1 * jax.grad(lambda b: losses.cross_entropy(jnp.broadcast_to(b, (1, 2, 2)), tokens, weights)[0])(bias)
    assert float(logp(down)[0]) < float(logp(bias)[0]) < float(logp(up)[0])


def test_losses_are_float32_whatever_the_logits_are():
    low = jnp.asarray(LOGITS, jnp.bfloat16)
    for total, count in (losses.cross_entropy(low, TOKENS, WEIGHTS), distillation.kl(low, low, WEIGHTS)):
        assert total.dtype == jnp.float32 and count.dtype == jnp.float32
