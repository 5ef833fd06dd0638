"""What a linear weight must not lose: the directions of its input that carry what is kept.

A weight ``W [out, in]`` has for a batch the gradient ``G [out, in]``. The *Gram* ``sum_b G_b^T G_b [in, in]`` over batches of
what is to be kept says along which directions of the input a change of the weight is felt (with ``losses.sketch`` for the loss it is a
Gram of the true Fisher). Its top eigenvectors, the *factors*, are computed once and saved with the model; the data may
then go. An update is kept out of them by :func:`keep_out`, which ``transforms.projected`` does for any optax transformation::

    kept = curvature.pooled([(curvature.grams(loss, params, retain), 1.0), (curvature.grams(loss, params, text), 0.3)])
    factors = curvature.factors(kept, share=0.95)
    tx = transforms.projected(optax.adam(1e-4), factors)

What this does that a mask cannot: a mask chooses coordinates one by one, and the coordinates that matter to what is forgotten
are those that matter to what is kept; directions can be told apart where coordinates cannot.
"""

import re
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import InputError, rowwise, saliency, scored, sharding, trees
from mmu_jax.factor import Factor as Factor
from mmu_jax.factor import Factors as Factors
from mmu_jax.factor import along_inputs
from mmu_jax.factor import by_name as by_name
from mmu_jax.factor import is_factor as is_factor
from mmu_jax.factor import keep_out as keep_out
from mmu_jax.factor import load as load
from mmu_jax.factor import match as match
from mmu_jax.factor import save as save
from mmu_jax.trees import Batch, Params, Tree

Grams = Tree  # float32 [..., in, in] where a weight was measured, None elsewhere


# ---- what is measured


def grams(
    loss: scored.Scored,
    params: Params,
    batches: Iterable[Batch],
    *,
    leaves: str = ".*",
    inputs: int = -1,
    block: tuple[int, int] = (0, 1),
) -> Grams:
    """``sum_b G_b^T G_b`` of every linear weight that ``leaves`` matches, ``G_b`` the gradient of the loss of a batch.

    >>> loss = lambda p, batch: jnp.sum(batch['x'] @ p['w'].T)
    >>> grams(loss, {'w': jnp.ones((1, 2))}, [{'x': jnp.array([[1., 2.]])}])['w'].tolist()
    [[1.0, 2.0], [2.0, 4.0]]

    Args:
      loss: ``loss(params, batch)`` -> scalar or ``(sum, count)``; ``losses.sketch`` of the logits gives the true Fisher's,
        a cross-entropy the empirical one's. Of ``rowwise.Losses`` every row's own Gram is added, in one backward pass, all layers
        at once whatever the block.
      params: tree of arrays; those that ``leaves`` matches are ``[..., out, in]``, leading axes are layers.
      inputs: which axis of the weights is their input: -1, or -2 for kernels ``[..., in, out]`` (Flax's own).
      block: ``(i, n)``: the i-th of n blocks of layers of leaves that stack them (``trees.stacked``), with others in the first:
        one n-th of the memory, ``batches`` n times; :func:`joined` puts their factors together.
      batches: one gradient each, of as many rows each: a mean over fewer rows weighs them more.
    Returns:
      tree like ``params``, float32 ``[..., in, in]``, None where ``leaves`` does not match or the block has no layer. Accumulated
      on device, in a donated buffer; nothing per batch goes to the host.
    Raises:
      InputError: no batch, or one alone; a leaf that is no matrix; a loss that returns something else; a number that is not finite.
    """
    saliency.check_batches(batches)
    part, rest = trees.split(params, leaves)
    flat = [name for name, leaf in trees.flatten(part).items() if leaf.ndim - trees.stacked(name) < 2]
    if flat:
        raise InputError(
            f"expected weights of linear layers to measure, found {', '.join(flat[:4])} which are no matrices; narrow the "
            "pattern `leaves`"
        )
    if inputs not in (-1, -2) or inputs == -2 and isinstance(loss, rowwise.Losses):
        raise InputError(
            f"expected inputs=-1 or -2, the axis of a weight that is its input (-1 for rowwise.Losses), found {inputs!r}; correct it"
        )
    like, seen = accumulators(part, inputs, block), False
    total = {name: jnp.zeros(x.shape, x.dtype, device=x.sharding) for name, x in like.items()}
    step = accumulator(loss, inputs, block, like)
    for batch in batches:
        total, seen = step(total, part, rest, batch), True
    if not seen:
        raise InputError("expected at least one batch to measure, found none; check the split the batches come from")
    trees.check_scores(total, "the Grams of these batches", signed=True)
    return trees.map_named(lambda name, _: total.get(name), params)


def layers_of(name: str, layers: int, block: tuple[int, int]) -> slice | None:
    """The layers of a leaf that stacks so many, or the whole of one that does not, that are in a block; None for none.

    >>> layers_of('layers/w', 5, (0, 2)), layers_of('layers/w', 5, (1, 2)), layers_of('w', 5, (1, 2))
    (slice(0, 2, None), slice(2, 5, None), None)
    """
    index, number = block
    if not trees.stacked(name):
        return slice(None) if index == 0 else None
    first, last = layers * index // number, layers * (index + 1) // number
    return slice(first, last) if last > first else None


def matrices(params: Params, leaves: str) -> str:
    """A pattern of those leaves that ``leaves`` matches whose inputs are directions: no patch embedding, no bias."""
    part = trees.flatten(trees.split(params, leaves)[0])
    return "|".join(re.escape(name) for name, leaf in part.items() if leaf.ndim - trees.stacked(name) == 2)


def accumulators(part: Tree, inputs: int = -1, block: tuple[int, int] = (0, 1)) -> dict[str, jax.ShapeDtypeStruct]:
    """Leaf name -> the shape of the Grams of its layers in the block, and where they lie."""
    found = {}
    for name, p in trees.flatten(part).items():
        if (own := layers_of(name, p.shape[0], block)) is not None:
            lead = (*range(p.shape[0])[own],) if trees.stacked(name) else ()
            shape = (len(lead), *p.shape[1:-2]) if lead else p.shape[:-2]
            size, where = p.shape[inputs], along_inputs(p, inputs)
            found[name] = jax.ShapeDtypeStruct((*shape, size, size), jnp.float32, sharding=where)
    return found


def accumulator(loss: scored.Scored, inputs: int, block: tuple[int, int], like: dict[str, jax.ShapeDtypeStruct]):
    """Jitted ``total, part, rest, batch -> total``: the Gram of a batch added to :func:`accumulators`, which are donated."""
    product = "...oi,...oj->...ij" if inputs == -1 else "...io,...jo->...ij"

    def of_rows(total, part, rest, batch):
        scored.check(loss, part, rest, batch)

        def gram(p):
            return jax.ShapeDtypeStruct((*p.shape[:-2], p.shape[-1], p.shape[-1]), jnp.float32)

        like, counts = jax.tree.map(gram, part), saliency.counted(batch)
        found = trees.flatten(rowwise.sums(loss, trees.merge(part, rest), like, batch, "gram", counts))
        return {name: t + found[name][layers_of(name, len(found[name]), block)] for name, t in total.items()}

    def step(total, part, rest, batch):
        if isinstance(loss, rowwise.Losses):
            return of_rows(total, part, rest, batch)
        mean = scored.mean_of(loss)
        scored.check(loss, part, rest, batch)
        grads = trees.flatten(jax.grad(mean)(part, rest, batch))

        def add(name, t):
            g = grads[name][layers_of(name, len(grads[name]), block)].astype(jnp.float32)
            return t + jnp.einsum(product, g, g)

        return {name: add(name, t) for name, t in total.items()}

    return jax.jit(step, donate_argnums=0, out_shardings={name: t.sharding for name, t in like.items()})


@jax.jit
def _pooled(grams, weights):
    """One weight's, in one pass: no scaled copy is ever held."""
    total = 0.0
    for gram, weight in zip(grams, weights, strict=True):
        trace = jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None]
        total += gram * jnp.where(trace > 0, weight / jnp.where(trace > 0, trace, 1.0), 0.0)
    return total


def pooled(weighed: Sequence[tuple[Grams, float]]) -> Grams:
    """``C = sum_n weight_n C_n / tr C_n``, weight by weight and layer by layer: each set on a scale of its own.

    What a set leaves alone (a trace of zero: text in the vision tower) it adds nothing to; a leaf that it does not have
    (None) likewise.

    >>> first, second = {'w': jnp.diag(jnp.array([3., 1.]))}, {'w': jnp.diag(jnp.array([0., 5.]))}
    >>> jnp.diag(pooled([(first, 1.0), (second, 0.5)])['w']).tolist()
    [0.75, 0.75]
    """
    if not weighed:
        raise InputError("expected at least one set of Grams to pool, found none; measure one")
    weights = [weight for _, weight in weighed]

    def leaf(*grams):
        there = [(gram, weight) for gram, weight in zip(grams, weights, strict=True) if gram is not None]
        return _pooled(*zip(*there, strict=True)) if there else None

    first, *others = (gram for gram, _ in weighed)
    return jax.tree.map(leaf, first, *others, is_leaf=lambda x: x is None)


# ---- what is kept of it


def factors(
    gram: Grams,
    *,
    share: float | None = None,
    fraction: float | None = None,
    alpha: float | None = None,
    inputs: int = -1,
) -> Factors:
    """The directions that an update is to leave alone, of every weight and layer; exactly one of the three is given.

    >>> made = factors({'w': jnp.diag(jnp.array([6., 3., 1.]))}, share=0.85)
    >>> made['w'].strength.tolist(), jnp.abs(made['w'].basis.round(3)).tolist()
    ([1.0, 1.0], [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])

    Args:
      share: the fewest top eigenvectors that hold this share of the trace, each taken out whole.
      fraction: this fraction of the inputs, the top eigenvectors.
      alpha: every direction, by ``1 - 1 / (1 + alpha lambda / mean lambda)``: an update is multiplied by
        ``(I + alpha C / mean eig C)^-1``.
      inputs: as in :func:`grams`.
    Returns:
      tree of :class:`Factor` where ``gram`` has a leaf, float32, with as many directions as the layer that has the most.
    Raises:
      InputError: not exactly one of the three, or one out of its range; a Gram of zeros, which protects nothing.
    """
    given = {name: value for name, value in {"share": share, "fraction": fraction, "alpha": alpha}.items() if value}
    good = len(given) == 1 and all(v > 0 and (name == "alpha" or v < 1) for name, v in given.items())
    if not good:
        raise InputError(
            f"expected one of share and fraction (between 0 and 1) and alpha (above 0), found share={share}, "
            f"fraction={fraction}, alpha={alpha}; give one"
        )
    return trees.map_named(lambda name, c: _factor(name, c, **given).replace(inputs=inputs), gram)


def _factor(name: str, gram: jax.Array, share=None, fraction=None, alpha=None) -> Factor:
    where = gram.sharding if isinstance(gram.sharding, jax.sharding.NamedSharding) else None
    values, vectors = jax.jit(_eigen, out_shardings=(None, where))(gram)
    shares = sharding.host(values).astype(np.float64)
    if not (shares.sum(axis=-1) > 0).all():
        raise InputError(
            f"expected something to keep in every layer of {name!r}, found a Gram of zeros; leave that leaf out with the "
            "pattern `leaves`"
        )
    if alpha:
        strength = 1.0 - 1.0 / (1.0 + alpha * values / values.mean(axis=-1, keepdims=True))
        return Factor(vectors, strength)
    width = shares.shape[-1]
    if fraction:
        counts = np.full(shares.shape[:-1], max(int(fraction * width), 1))
    else:
        reached = np.cumsum(shares, axis=-1) / shares.sum(axis=-1, keepdims=True)
        counts = np.minimum((reached < share).sum(axis=-1) + 1, width)
    most = int(counts.max())
    strength = jnp.asarray(np.arange(most) < counts[..., None], jnp.float32)
    return Factor(vectors[..., :most], strength)


def _eigen(gram):
    """Eigenvalues, largest first and none below zero, and eigenvectors as columns; a layer at a time."""

    def one(c):
        values, vectors = jnp.linalg.eigh((c + c.T) / 2)
        return jnp.maximum(values[::-1], 0.0), vectors[:, ::-1]

    shape = gram.shape
    values, vectors = jax.lax.map(one, gram.reshape(-1, *shape[-2:]))
    return values.reshape(shape[:-1]), vectors.reshape(shape)


def joined(blocks: Sequence[Factors], params: Params) -> Factors:
    """The factors of blocks of layers (:func:`grams`), in order, as factors of all of ``params``.

    >>> one = {'layers': {'w': Factor(jnp.ones((1, 2, 1)), jnp.ones((1, 1)))}}
    >>> joined([one, one], {'layers': {'w': jnp.zeros((2, 3, 2))}})['layers']['w'].basis.shape
    (2, 2, 1)

    Raises:
      InputError: together they do not fit ``params``.
    """
    found: dict[str, list[Factor]] = {}
    for block in blocks:
        for name, factor in by_name(block).items():
            found.setdefault(name, []).append(factor)

    def leaf(parts):
        most = max(part.strength.shape[-1] for part in parts)
        basis, strength = ([_filled(getattr(p, what), most) for p in parts] for what in ("basis", "strength"))
        return parts[0].replace(basis=jnp.concatenate(basis), strength=jnp.concatenate(strength))

    return match({name: leaf(parts) if len(parts) > 1 else parts[0] for name, parts in found.items()}, params)


def _filled(x: jax.Array, width: int) -> jax.Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])


def shares(made: Factors) -> dict[str, float]:
    """Leaf name -> share of its input directions that are taken out, over its layers.

    >>> shares({'w': Factor(jnp.zeros((4, 2)), jnp.ones(2))})
    {'w': 0.5}
    """
    table = {}
    for name, factor in by_name(made).items():
        strength = sharding.host(factor.strength).astype(np.float64)
        table[name] = float(strength.sum() / (strength.size / strength.shape[-1] * factor.basis.shape[-2]))
    return table
