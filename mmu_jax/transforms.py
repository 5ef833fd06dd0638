"""optax transformations that honour a mask, entry by entry (:func:`masked`), or leave directions alone (:func:`projected`).

    tx = transforms.masked(optax.adamw(1e-5, weight_decay=0.1), mask)   # fixed
    tx = transforms.masked(optax.adamw(1e-5))                           # given per call:
    updates, state = tx.update(grads, state, params, mask=mask)

Masking gradients alone leaks: weight decay and the moments of other steps move what the mask keeps out. Here the inner
transformation sees the problem restricted to the mask: outside it gradient and param are zero and moments are new, so
that nothing there adds to a clip, a norm or a statistic; afterwards its moments are as they were, and its update is
exactly zero. Params for evaluation that an optimizer makes of its state and the params (``schedule_free_eval_params``) are
rounded anew: take the params themselves outside the mask.

For that everything that the inner transformation keeps from one step to the next must have the shape of the params (it is
masked) or not depend on gradients and params (counts, schedules, hyperparameters; integers and flags may). What
keeps a statistic of many entries in one number would carry one step's mask into the next, and is refused by
``init``, with the name of the state; so is what asks ``update`` for more than gradients, params and ``value``. The
test is made on the data flow of its ``update``, not on names; what it comes to for optax stands in :func:`masked`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmu_jax import InputError, curvature, optimizers, separable, trees
from mmu_jax.curvature import Factors
from mmu_jax.trees import Mask, Params, Tree, Updates

ROUNDING = 1e-4  # of a norm, below which what a projection leaves in float32 is noise: no step is made of it


def masked(
    inner: optax.GradientTransformation, mask: Mask | None = None, *, gradients_only: bool = False
) -> optax.GradientTransformationExtraArgs:
    """``inner`` restricted to the entries where the mask is True.

    What holds, for every ``inner`` that is not refused: outside the mask params and moments stay bit for bit; inside
    they move as if all were zero outside, which is as if nothing were there but for what divides by the number of entries
    or turns whole matrices (adaptive_grad_clip, clip_by_block_rms, scale_by_param_block_rms, muon); a mask of ones is no
    mask, one of zeros is no step.

    What keeps a statistic of many entries is refused (see the head of this module; wrappers: around adam):

    ======= =======
    works   MultiSteps acprop adabelief adadelta adagrad adam adamax adamaxw adamw adan adaptive_grad_clip
            add_decayed_weights add_noise ademamix adopt amsgrad apply_every apply_if_finite centralize chain clip
            clip_by_block_rms clip_by_global_norm cocob conditionally_mask conditionally_transform ema freeze fromage
            identity inject_hyperparams inject_stateful_hyperparams keep_params_nonnegative lamb lars lion madgrad
            masked monitor multi_transform muon nadam nadamw named_chain noisy_sgd normalize normalize_by_update_norm
            optimistic_adam optimistic_adam_v2 optimistic_gradient_descent partition polyak_sgd radam reduce_on_plateau
            rmsprop rprop sam scale scale_by_acprop scale_by_adadelta scale_by_adam scale_by_adamax scale_by_adan
            scale_by_ademamix scale_by_adopt scale_by_amsgrad scale_by_belief scale_by_cocob scale_by_learning_rate
            scale_by_lion scale_by_madgrad scale_by_muon scale_by_optimistic_gradient scale_by_param_block_norm
            scale_by_param_block_rms scale_by_polyak scale_by_radam scale_by_rms scale_by_rprop scale_by_rss
            scale_by_schedule scale_by_sign scale_by_simplified_ademamix scale_by_stddev scale_by_trust_ratio
            scale_by_yogi schedule_free schedule_free_adamw schedule_free_sgd selective_transform set_to_zero sgd
            sign_sgd signum simplified_ademamix snapshot split_real_and_imaginary stateless stateless_with_tree_map
            trace with_extra_args_support yogi zero_nans
    refused adafactor dadapt_adamw differentially_private_aggregate dog dowg dpsgd flatten galore
            hutchinson_estimator_diag_hessian lbfgs lookahead measure_with_ema mechanize momo momo_adam novograd prodigy
            scale_by_backtracking_linesearch scale_by_distance_over_gradients scale_by_factored_rms scale_by_galore
            scale_by_lbfgs scale_by_novograd scale_by_sm3 scale_by_zoom_linesearch sm3 sophia
    ======= =======

    >>> params, mask = {'w': jnp.zeros(2)}, {'w': jnp.array([True, False])}
    >>> tx = masked(optax.adam(0.1), mask)
    >>> updates, _ = tx.update({'w': jnp.ones(2)}, tx.init(params), params)
    >>> [round(float(x), 3) for x in updates['w']]
    [-0.1, -0.0]

    Args:
      inner: any optax transformation, chains included.
      mask: tree of bool arrays like the params, or None to pass ``mask=`` to every update; a mask given to the update
        takes the place of the fixed one. Names and shapes count, not containers: a dict will do for an NNX state.
      gradients_only: mask what goes in and nothing else, as the public MMUnlearner code does; moments and decay then
        move what the mask keeps out, and nothing is refused.
    Returns:
      a transformation whose state is that of ``inner``.
    Raises:
      InputError: ``inner`` is no optax transformation; at init, it is refused, or a param is not floating point; at update,
        no mask was given, or its names or shapes are not those of the updates.
    """
    _check_inner(inner, "masked", "mask")
    return _restricted(optax.with_extra_args_support(inner), mask, gradients_only)


def _restricted(
    inner: optax.GradientTransformationExtraArgs, fixed: Tree | None, gradients_only: bool
) -> optax.GradientTransformationExtraArgs:
    def init(params):
        _check_params(params)
        state = inner.init(params)
        if not gradients_only:
            separable.check(inner, state, params)
        return state

    def update(
        updates: Updates, state: Tree, params: Params | None = None, *, mask: Mask | None = None, **extra: Any
    ) -> tuple[Updates, Tree]:
        mask = fixed if mask is None else mask
        if mask is None:
            raise InputError("expected a mask, found none; pass it to masked(inner, mask) or to update(..., mask=mask)")
        trees.check_like(mask, updates, "the mask", dtype=jnp.bool_)
        mask = trees.like(mask, updates)
        if isinstance(inner, optimizers.Maskable) and not gradients_only:
            return inner.update(updates, state, params, mask=mask, **extra)
        zeroed = jax.tree.map(_keep, mask, updates)
        if gradients_only:
            return inner.update(zeroed, state, params, **extra)
        inside = None if params is None else jax.tree.map(_keep, trees.like(mask, params), params)
        new = inner.init(zeroed if inside is None else inside)
        updates, after = inner.update(zeroed, _keep_state(mask, state, new), inside, **extra)
        # Minus zero: added to a param of minus zero, plus zero would change its sign.
        return jax.tree.map(lambda m, u: _keep(m, u, -0.0), mask, updates), _keep_state(mask, after, state)

    return optax.GradientTransformationExtraArgs(init, update)


def _keep(mask, value, other=0.0):
    return jnp.where(mask, value, jnp.asarray(other).astype(jnp.asarray(value).dtype))


def _keep_state(mask: Mask, value: Tree, other: Tree) -> Tree:
    """``value`` where the mask is True and ``other`` elsewhere, for the parts of an optimizer state like the params."""
    masks, others = separable.by_path(mask), separable.by_path(other)
    copies = separable.copies_of(value, mask)

    def leaf(path, v):
        return _keep(masks[copies[path]], v, others[path]) if path in copies and path in others else v

    return jax.tree_util.tree_map_with_path(leaf, value)


def _check_inner(inner: Any, name: str, second: str) -> None:
    if not callable(getattr(inner, "init", None)) or not callable(getattr(inner, "update", None)):
        raise InputError(
            f"expected an optax transformation first, as in {name}(optax.adam(1e-3), {second}), found {type(inner).__name__}; "
            f"call the optimizer's function, and give the {second} second"
        )


def _check_params(params: Params) -> None:
    trees.check_arrays(params, "the params")
    for name, leaf in trees.flatten(params).items():
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise InputError(
                f"expected floating point params, found {leaf.dtype} at {name!r}; leave it out of the tree"
            )


def projected(
    inner: optax.GradientTransformation, factors: Factors | None = None
) -> optax.GradientTransformationExtraArgs:
    """``inner`` whose steps leave alone the directions that carry what is kept, and every leaf that has none.

    The update ``u [..., out, in]`` of a weight with a factor becomes ``u - ((u U) * strength) U^T``
    (:func:`mmu_jax.curvature.keep_out`); a leaf without a factor does not move. What is left is rescaled to the norm that the
    updates of the weights with factors had, over all of them together, so that a learning rate means what it meant.

    What holds for every ``inner``: along a direction that is taken out whole no step goes, whatever decay, momentum or
    state want, since it is the last word; all others are untouched but for one common factor; no factor at all
    (``strength`` of zeros) is no projection; where nothing but rounding is left of an update, there is no step. It composes
    with :func:`masked`, and the outer of the two holds exactly: ``masked(projected(inner, factors), mask)`` moves nothing
    outside the mask. Where a mask keeps whole rows of a weight, so does the inner.

    >>> factors = {'w': curvature.Factor(jnp.array([[1.0], [0.0]]), jnp.ones(1))}
    >>> tx = projected(optax.sgd(1.0), factors)
    >>> params = {'w': jnp.zeros((1, 2))}
    >>> updates, _ = tx.update({'w': jnp.array([[3.0, 4.0]])}, tx.init(params), params)
    >>> abs(updates['w']).tolist()
    [[0.0, 5.0]]

    Args:
      inner: any optax transformation whose updates have the shapes of the params, chains included.
      factors: tree of :class:`mmu_jax.curvature.Factor` or None like the params, as ``curvature.factors`` makes; or None
        to pass ``factors=`` to every update. Names count, not containers.
    Returns:
      a transformation whose state is that of ``inner``.
    Raises:
      InputError: ``inner`` is no optax transformation; at update, no factors were given, or they are not those of the updates.
    """
    _check_inner(inner, "projected", "factors")
    inner = optax.with_extra_args_support(inner)
    fixed = factors

    def update(
        updates: Updates, state: Tree, params: Params | None = None, *, factors: Factors | None = None, **extra: Any
    ) -> tuple[Updates, Tree]:
        factors = fixed if factors is None else factors
        if factors is None:
            raise InputError(
                "expected factors, found none; pass them to projected(inner, factors) or to update(..., factors=factors)"
            )
        own = curvature.match(factors, updates)
        wanted, state = inner.update(updates, state, params, **extra)
        reached = jax.tree.map(lambda u, f: None if f is None else u.astype(jnp.float32), wanted, own)
        free = jax.tree.map(lambda u, f: None if f is None else curvature.keep_out(f, u), wanted, own)
        whole, left = optax.global_norm(reached), optax.global_norm(free)
        there = left > ROUNDING * whole
        scale = jnp.where(there, whole / jnp.where(there, left, 1.0), 0.0)

        def leaf(u, f):
            return jnp.full_like(u, -0.0) if f is None else (scale * f).astype(u.dtype)

        return jax.tree.map(leaf, wanted, free), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
