"""Law 5 for losses against a teacher or a target: a torch line each, and no gradient into what is held."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmu_jax import distillation

RNG = np.random.default_rng(1)
LOGITS = RNG.normal(size=(3, 5, 7)).astype(np.float32)
TEACHER = RNG.normal(size=(3, 5, 7)).astype(np.float32)
TOKENS = RNG.integers(0, 7, (3, 5)).astype(np.int32)
WEIGHTS = np.array([[0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 1]], np.float32)


def close(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-5, atol=1e-6)


def with_gradient(of):
    """``(sum, count), gradient`` of a loss by the logits."""
    return jax.value_and_grad(of, has_aux=True)(jnp.asarray(LOGITS))


def test_kl_equals_torch_per_answer_token():
    total, count = distillation.kl(jnp.asarray(TEACHER), LOGITS, WEIGHTS)
    p, q = (torch.log_softmax(torch.tensor(x[:, :-1]), -1) for x in (TEACHER, LOGITS))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1) * torch.tensor(
        WEIGHTS[:, 1:]
    )
    close(total, expected.sum())
    assert float(count) == 7
    close(distillation.kl(jnp.asarray(LOGITS), LOGITS, WEIGHTS)[0], 0.0)


def test_kl_has_no_gradient_into_the_teacher_and_sees_only_the_answer():
    grad = jax.grad(lambda t: distillation.kl(t, LOGITS, WEIGHTS)[0])(jnp.asarray(TEACHER))
    assert not np.asarray(grad).any()
    grad = np.asarray(jax.grad(lambda s: distillation.kl(jnp.asarray(TEACHER), s, WEIGHTS)[0])(jnp.asarray(LOGITS)))
    predicts = np.pad(WEIGHTS[:, 1:], ((0, 0), (0, 1))) > 0
    assert (np.abs(grad).sum(-1) > 0).tolist() == predicts.tolist()


def soft(target, logits, weights):
    """torch: the cross-entropy of distributions, and its gradient."""
    each = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 7), target.reshape(-1, 7), reduction="none")
    total = (each * torch.tensor(weights[:, 1:]).reshape(-1)).sum()
    return total.detach(), torch.autograd.grad(total, logits)[0]


def test_undial_equals_torch_per_answer_token():
    logits, target = torch.tensor(LOGITS, requires_grad=True), torch.tensor(TEACHER[:, :-1])
    target = torch.softmax(
        target.scatter_add(-1, torch.tensor(TOKENS[:, 1:]).long()[..., None], torch.full((3, 4, 1), -3.0)), -1
    )
    theirs, gradient = soft(target, logits, WEIGHTS)
    (total, count), grads = with_gradient(lambda x: distillation.undial(TEACHER, x, TOKENS, WEIGHTS, beta=3.0))
    close(total, theirs)
    close(grads, gradient)
    assert float(count) == 7
    held = jax.grad(lambda t: distillation.undial(t, LOGITS, TOKENS, WEIGHTS)[0])(jnp.asarray(TEACHER))
    assert not np.asarray(held).any()


@pytest.mark.parametrize(("skip", "left"), [(0, 7), (1, 4), (2, 2)])
def test_ce_u_equals_torch_on_all_but_the_first_tokens_of_an_answer(skip, left):
    logits = torch.tensor(LOGITS, requires_grad=True)
    without = logits.detach()[:, :-1].scatter(-1, torch.tensor(TOKENS[:, 1:]).long()[..., None], -torch.inf)
    later = WEIGHTS * (np.cumsum(WEIGHTS, axis=1) > skip)
    theirs, gradient = soft(torch.softmax(without, -1), logits, later)
    (total, count), grads = with_gradient(lambda x: distillation.ce_u(x, TOKENS, WEIGHTS, skip=skip))
    close(total, theirs)
    close(grads, gradient)
    assert float(count) == left


def test_distances_equal_torch_row_by_row():
    values, target = (torch.tensor(x[..., :4]) for x in (LOGITS, TEACHER))
    each = ((values - target) ** 2).mean(-1) * torch.tensor(WEIGHTS)
    theirs = each.sum(-1) / torch.tensor(WEIGHTS).sum(-1)
    total, count = distillation.distance(LOGITS[..., :4], TEACHER[..., :4], WEIGHTS)
    close(total / count, theirs.mean())
    gone = WEIGHTS * np.array([1.0, 1.0, 0.0])[:, None]
    total, count = distillation.distance(LOGITS[..., :4], TEACHER[..., :4], gone)
    close(total / count, theirs[:2].mean())
    assert float(count) == 2


def test_rmu_pushes_states_to_one_direction_whatever_the_row():
    u = np.asarray(distillation.direction(7, seed=3))
    total, count = distillation.rmu(jnp.asarray(LOGITS), WEIGHTS, coefficient=2.0, seed=3)
    close(total / count, distillation.distance(LOGITS, np.broadcast_to(2 * u, LOGITS.shape), WEIGHTS)[0] / 3)
    assert abs(float(np.linalg.norm(u)) - 1) < 1e-6 and (u >= 0).all()
    assert (u != np.asarray(distillation.direction(7, seed=4))).any()
    grads = np.asarray(
        jax.grad(lambda x: distillation.rmu(x, WEIGHTS, coefficient=2.0, seed=3)[0])(jnp.asarray(LOGITS))
    )
    per_place = 2 * (LOGITS - 2 * u) / 7 * (WEIGHTS / WEIGHTS.sum(-1, keepdims=True))[..., None]
    close(grads, per_place)


@pytest.mark.parametrize("name", ["undial", "ce_u", "distance"])
def test_what_is_in_bfloat16_is_taken_in_float32(name):
    low = jnp.asarray(LOGITS, jnp.bfloat16)
    given = {"undial": (low, low, TOKENS, WEIGHTS), "ce_u": (low, TOKENS, WEIGHTS), "distance": (low, low + 1, WEIGHTS)}
    total, count = getattr(distillation, name)(*given[name])
    assert total.dtype == count.dtype == jnp.float32
