"""optax transformations that honour a mask, entry by entry.

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

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmu_jax import InputError, trees
from mmu_jax.trees import Mask, Params, Tree, Updates


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
    if not callable(getattr(inner, "init", None)) or not callable(getattr(inner, "update", None)):
        raise InputError(
            f"expected an optax transformation first, as in masked(optax.adam(1e-3), mask), found {type(inner).__name__}; "
            "call the optimizer's function, and give the mask second"
        )
    return _restricted(optax.with_extra_args_support(inner), mask, gradients_only)


def _restricted(
    inner: optax.GradientTransformationExtraArgs, fixed: Tree | None, gradients_only: bool
) -> optax.GradientTransformationExtraArgs:
    def init(params):
        _check_params(params)
        state = inner.init(params)
        if not gradients_only:
            _check_separable(inner, state, params)
        return state

    def update(
        updates: Updates, state: Tree, params: Params | None = None, *, mask: Mask | None = None, **extra: Any
    ) -> tuple[Updates, Tree]:
        mask = fixed if mask is None else mask
        if mask is None:
            raise InputError("expected a mask, found none; pass it to masked(inner, mask) or to update(..., mask=mask)")
        trees.check_like(mask, updates, "the mask", dtype=jnp.bool_)
        mask = trees.like(mask, updates)
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


def _by_path(tree: Tree) -> dict[tuple, Any]:
    return dict(jax.tree_util.tree_leaves_with_path(tree))


def _copies(state: Tree, params: Params) -> dict[tuple, tuple]:
    """Path of a leaf of an optimizer state -> path of the param it belongs to and has the shape of.

    A subtree of the state is a copy of the params, or of part of them (``optax.masked``, ``optax.partition``), if every
    leaf below it is at the path of a param.
    """
    own, leaves = _by_path(params), _by_path(state)
    foreign = {path[:cut] for path in leaves for cut in range(len(path) + 1) if path[cut:] not in own}
    found = {}
    for path, leaf in leaves.items():
        cut = next((cut for cut in range(len(path) + 1) if path[:cut] not in foreign), None)
        if cut is not None and jnp.shape(leaf) == jnp.shape(own[path[cut:]]):
            found[path] = path[cut:]
    return found


def _keep_state(mask: Mask, value: Tree, other: Tree) -> Tree:
    """``value`` where the mask is True and ``other`` elsewhere, for the parts of an optimizer state like the params."""
    masks, others = _by_path(mask), _by_path(other)
    copies = _copies(value, mask)

    def leaf(path, v):
        return _keep(masks[copies[path]], v, others[path]) if path in copies and path in others else v

    return jax.tree_util.tree_map_with_path(leaf, value)


def _check_params(params: Params) -> None:
    trees.check_arrays(params, "the params")
    for name, leaf in trees.flatten(params).items():
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise InputError(
                f"expected floating point params, found {leaf.dtype} at {name!r}; leave it out of the tree"
            )


def _check_separable(inner: optax.GradientTransformationExtraArgs, state: Tree, params: Params) -> None:
    """Refuses an optimizer that keeps statistics of several entries in one number, by what its numbers come from."""
    (updates, after), sources = _dataflow(inner, state, params)
    shapes = [{path: jnp.shape(leaf) for path, leaf in _by_path(tree).items()} for tree in (updates, params)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"expected an optimizer whose updates have the shapes of the params, found {_kinds(state)} which makes "
            "something else of gradients; use one that works with a mask, listed in transforms.masked"
        )
    copies, width, leaves = _copies(state, params), len(jax.tree.leaves(params)), _by_path(state)
    outputs = [None] * width + list(_by_path(after))  # paths in the state; an update has none
    inputs = [None] * width + list(leaves) + [None] * width
    of_entries = [path is None or path in copies for path in inputs]

    def mixes(path):  # a number that comes from entries and that a later step feels: what only looks on is no harm
        comes_from = sources([output == path for output in outputs])
        goes_on = sources([output is None or (output in leaves and output != path) for output in outputs])
        return goes_on[inputs.index(path)] and any(used and of for used, of in zip(comes_from, of_entries, strict=True))

    for path, leaf in leaves.items():
        if path not in copies and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and mixes(path):
            place = " > ".join(f"{kind}.{field}" for kind, field in _owners(state, path))
            raise InputError(
                f"expected an optimizer that keeps its statistics entry by entry, found {place or 'a state'} of shape "
                f"{jnp.shape(leaf)}, which mixes entries that a mask keeps apart; use one that works with a mask, listed "
                "in transforms.masked"
            )


def _dataflow(inner, state, params):
    """:func:`trees.dataflow` of ``inner.update`` over the leaves of (updates, state, params)."""
    faults = []
    for extra in ({}, {"value": 1.0}):

        def update(updates, state, params, extra=extra):
            return inner.update(updates, state, params, **extra)

        try:
            return trees.dataflow(update, params, state, params)
        except (
            ValueError,
            AttributeError,
        ) as error:  # optax's own: of these shapes, of params that are no LookaheadParams
            faults.append((" ".join(str(error).split()), error))
        except TypeError as error:  # Python's: "transformation() missing 1 required keyword-only argument: 'value_fn'"
            if not re.search("required keyword-only argument|unexpected keyword argument 'value'", str(error)):
                raise
            faults.append((str(error).replace(".<locals>.update_fn", ""), error))
    fault, error = faults[0] if "unexpected keyword" in faults[1][0] else faults[1]
    raise InputError(
        "expected an optimizer that steps from gradients and params (a value besides, at most), found "
        f"{_kinds(state)} which does not: {fault}; use one that works with a mask, listed in transforms.masked"
    ) from error


def _kinds(state: Tree) -> str:
    names = dict.fromkeys(kind for path in _by_path(state) for kind, _ in _owners(state, path))
    return ", ".join(names) or "one without a state"


def _owners(state: Tree, path: tuple) -> list[tuple[str, str]]:
    """The named states on the way to a leaf, outermost first, each with its field that leads there."""
    owners, node = [], state
    for key in path:
        if hasattr(node, "_fields"):
            owners.append((type(node).__name__, key.name))
        if isinstance(key, jax.tree_util.GetAttrKey):
            node = getattr(node, key.name)
        elif isinstance(key, jax.tree_util.SequenceKey):
            node = node[key.idx]
        elif isinstance(key, jax.tree_util.DictKey):
            node = node[key.key]
        else:
            break
    return owners


class ScaleByOfficialAdamState(NamedTuple):
    count: jax.Array
    mu: Tree
    nu: Tree


def scale_by_official_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6) -> optax.GradientTransformation:
    """Adam as the public MMUnlearner code runs it: eps is added to ``sqrt(v)`` *before* the bias correction.

    ``u = sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)``, the arithmetic of ``transformers.AdamW`` (4.x).

    >>> tx = scale_by_official_adam()
    >>> updates, _ = tx.update({'w': jnp.array([2.0])}, tx.init({'w': jnp.zeros(1)}))
    >>> round(float(updates['w'][0]), 4)
    1.0
    """

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return ScaleByOfficialAdamState(jnp.zeros([], jnp.int32), zeros, zeros)

    def update(updates: Updates, state: ScaleByOfficialAdamState, params: Params | None = None):
        del params
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
        t = count.astype(jnp.float32)
        # 1 - b^t by expm1: in float32 the difference alone would carry an error of 6e-5 at t = 1.
        scale = jnp.sqrt(-jnp.expm1(t * math.log(b2))) / -jnp.expm1(t * math.log(b1))
        return jax.tree.map(lambda m, v: scale * m / (jnp.sqrt(v) + eps), mu, nu), ScaleByOfficialAdamState(
            count, mu, nu
        )

    return optax.GradientTransformation(init, update)


def learning_rate(peak: float, steps: int, *, schedule: str = "constant", warmup: float = 0.0) -> optax.Schedule:
    """``'constant'``, ``'linear'`` or ``'cosine'`` decay to zero over ``steps`` after ``warmup * steps`` rising steps.

    >>> rate = learning_rate(1.0, 10, schedule='linear', warmup=0.2)
    >>> [round(float(rate(step)), 3) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    rise = int(warmup * steps)
    if schedule == "constant":
        after = optax.constant_schedule(peak)
    elif schedule == "linear":
        after = optax.linear_schedule(peak, 0.0, max(steps - rise, 1))
    elif schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - rise, 1))
    else:
        raise InputError(f"expected schedule 'constant', 'linear' or 'cosine', found {schedule!r}; choose one of them")
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(rise, 1)), after], [rise]) if rise else after


def adam(
    rate: optax.Schedule | float,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    arithmetic: str = "optax",
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (none unless asked for), ``arithmetic`` ``'optax'`` or ``'official'``.

    >>> tx = adam(0.1)
    >>> updates, _ = tx.update({'w': jnp.array([2.0])}, tx.init({'w': jnp.zeros(1)}))
    >>> round(float(updates['w'][0]), 3)
    -0.1
    """
    if arithmetic not in ("optax", "official"):
        raise InputError(f"expected arithmetic 'optax' or 'official', found {arithmetic!r}; choose one of the two")
    core = optax.scale_by_adam(b1, b2, eps) if arithmetic == "optax" else scale_by_official_adam(b1, b2, eps)
    decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
    return optax.chain(core, *decay, optax.scale_by_learning_rate(rate))
