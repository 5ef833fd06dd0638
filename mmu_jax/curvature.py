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

import functools
import json
import pathlib
from collections.abc import Iterable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import InputError, saliency, trees
from mmu_jax.saliency import Loss
from mmu_jax.trees import Batch, Params, Tree

Grams = Tree  # float32 [..., in, in] where a weight was measured, None elsewhere
Factors = Tree  # Factor where a weight is protected, None elsewhere
EXACT = jax.lax.Precision.HIGHEST  # a direction left out to three digits is a direction that leaks


class Factor(flax.struct.PyTreeNode):
    """Directions of a weight's input, and how much of each an update loses.

    Attributes:
      basis: ``[..., in, k]`` float32, orthonormal columns; leading axes are those of the weight.
      strength: ``[..., k]`` float32 from 0 to 1: 1 takes the whole of a direction out; 0 fills up layers that have fewer.
    """

    basis: jax.Array
    strength: jax.Array


def is_factor(x: object) -> bool:
    return isinstance(x, Factor)


def keep_out(factor: Factor, x: jax.Array) -> jax.Array:
    """``x [..., out, in]`` without what lies along the factor: ``x - ((x U) * strength) U^T``, in float32.

    >>> u = Factor(jnp.array([[1.0], [0.0]]), jnp.ones(1))
    >>> keep_out(u, jnp.array([[3.0, 4.0]])).tolist()
    [[0.0, 4.0]]
    """
    along = jnp.einsum("...oi,...ik->...ok", x, factor.basis, precision=EXACT)
    return x - jnp.einsum("...ok,...ik->...oi", along * factor.strength[..., None, :], factor.basis, precision=EXACT)


def by_name(factors: Factors) -> dict[str, Factor]:
    """Leaf name -> its factor."""
    return trees.flatten(factors, is_leaf=is_factor)


def match(factors: Factors, tree: Tree) -> Tree:
    """A :class:`Factor` for each leaf of ``tree`` that has one, None for every other; the structure is that of ``tree``.

    Raises:
      InputError: factors of a leaf that ``tree`` does not have, or that is no matrix, or of another size than its input.
    """
    found, leaves = by_name(factors), trees.flatten(tree)
    faults = [f"{name} is not a leaf of the model" for name in sorted(found.keys() - leaves.keys())]
    faults += [f"{n} {said}" for n, f in found.items() if n in leaves and (said := _misfit(f, leaves[n].shape))]
    if faults:
        raise InputError(
            f"the factors do not fit this model, {len(faults)} leaves differ: {'; '.join(faults[:4])}; make them for this model"
        )
    return trees.map_named(lambda name, _: found.get(name), tree)


def _misfit(factor: Factor, shape: tuple[int, ...]) -> str:
    """What keeps a factor from being one of a weight of ``shape``; empty where nothing does."""
    if not is_factor(factor) or len(shape) < 2:
        return f"of shape {shape} has {type(factor).__name__}, expected a matrix with a Factor"
    inputs, found = (*shape[:-2], shape[-1]), (factor.basis.shape[:-1], factor.strength.shape)
    if found[0] != inputs:
        return f"has inputs {found[0]}, expected {inputs}"
    expected = (*inputs[:-1], factor.basis.shape[-1])
    return "" if found[1] == expected else f"has strengths {found[1]}, expected {expected}"


# ---- what is measured


def grams(loss: Loss, params: Params, batches: Iterable[Batch], *, leaves: str = ".*") -> Grams:
    """``sum_b G_b^T G_b`` of every linear weight that ``leaves`` matches, ``G_b`` the gradient of the loss of a batch.

    >>> loss = lambda p, batch: jnp.sum(batch['x'] @ p['w'].T)
    >>> grams(loss, {'w': jnp.ones((1, 2))}, [{'x': jnp.array([[1., 2.]])}])['w'].tolist()
    [[1.0, 2.0], [2.0, 4.0]]

    Args:
      loss: ``loss(params, batch)`` -> scalar or ``(sum, count)``; ``losses.sketch`` of the logits gives the true Fisher's,
        a cross-entropy the empirical one's.
      params: tree of arrays; those that ``leaves`` matches are ``[..., out, in]``, leading axes are layers.
      batches: one gradient each; how large they are decides little (a sketch of rows together is one of their sum).
    Returns:
      tree like ``params``, float32 ``[..., in, in]``, None where ``leaves`` does not match. Accumulated on device, in a
      donated buffer; nothing per batch goes to the host.
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
    total, step, seen = jax.tree.map(_zeros, part), _accumulate(loss), False
    for batch in batches:
        total, seen = step(total, part, rest, batch), True
    if not seen:
        raise InputError("expected at least one batch to measure, found none; check the split the batches come from")
    trees.check_scores(total, "the Grams of these batches", signed=True)
    return total


def _zeros(p: jax.Array) -> jax.Array:
    return jnp.zeros((*p.shape[:-2], p.shape[-1], p.shape[-1]), jnp.float32, device=_inputs(p))


def _inputs(weight: jax.Array) -> jax.sharding.Sharding | None:
    """A sharding of an array that lies, on its second last axis, along the inputs of a weight of as many axes."""
    where, ndim = getattr(weight, "sharding", None), weight.ndim
    if not isinstance(where, jax.sharding.NamedSharding):
        return None
    spec = (*where.spec, *(None,) * (ndim - len(where.spec)))
    return jax.sharding.NamedSharding(where.mesh, jax.sharding.PartitionSpec(*spec[:-2], spec[-1], None))


def _accumulate(loss: Loss):
    mean = saliency.mean_of(loss)

    def step(total, part, rest, batch):
        saliency.check_loss(loss, part, rest, batch)
        grads = jax.grad(mean)(part, rest, batch)

        def add(t, g):
            g = g.astype(jnp.float32)
            return t + jnp.einsum("...oi,...oj->...ij", g, g)

        return jax.tree.map(add, total, grads)

    return jax.jit(step, donate_argnums=0)


@jax.jit
def _unit_trace(gram):
    trace = jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None]
    return jnp.where(trace > 0, gram / jnp.where(trace > 0, trace, 1.0), 0.0)


def pooled(weighed: Sequence[tuple[Grams, float]]) -> Grams:
    """``C = sum_n weight_n C_n / tr C_n``, weight by weight and layer by layer: each set on a scale of its own.

    What a set leaves alone (a trace of zero: text in the vision tower) it adds nothing to; a leaf that it does not have
    (None) likewise.

    >>> first, second = {'w': jnp.diag(jnp.array([3., 1.]))}, {'w': jnp.diag(jnp.array([0., 5.]))}
    >>> jnp.diag(pooled([(first, 1.0), (second, 0.5)])['w']).tolist()
    [0.75, 0.75]
    """
    scaled = [jax.tree.map(lambda c, w=weight: w * _unit_trace(c), gram) for gram, weight in weighed]

    def add(first, second):
        return first if second is None else second if first is None else first + second

    return functools.reduce(lambda a, b: jax.tree.map(add, a, b, is_leaf=lambda x: x is None), scaled)


# ---- what is kept of it


def factors(
    gram: Grams, *, share: float | None = None, fraction: float | None = None, alpha: float | None = None
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
    return trees.map_named(lambda name, c: _factor(name, c, **given), gram)


def _factor(name: str, gram: jax.Array, share=None, fraction=None, alpha=None) -> Factor:
    values, vectors = _eigen(gram)
    shares = np.asarray(values, np.float64)
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


@jax.jit
def _eigen(gram):
    """Eigenvalues, largest first and none below zero, and eigenvectors as columns; a layer at a time."""

    def one(c):
        values, vectors = jnp.linalg.eigh((c + c.T) / 2)
        return jnp.maximum(values[::-1], 0.0), vectors[:, ::-1]

    shape = gram.shape
    values, vectors = jax.lax.map(one, gram.reshape(-1, *shape[-2:]))
    return values.reshape(shape[:-1]), vectors.reshape(shape)


def shares(made: Factors) -> dict[str, float]:
    """Leaf name -> share of its input directions that are taken out, over its layers.

    >>> shares({'w': Factor(jnp.zeros((4, 2)), jnp.ones(2))})
    {'w': 0.5}
    """
    table = {}
    for name, factor in by_name(made).items():
        strength = np.asarray(factor.strength, np.float64)
        table[name] = float(strength.sum() / (strength.size / strength.shape[-1] * factor.basis.shape[-2]))
    return table


def blocks(sizes: dict[str, int], number: int) -> list[list[str]]:
    """Leaf names dealt into at most ``number`` blocks, the largest first and each to the smallest block so far.

    >>> blocks({'a': 3, 'b': 2, 'c': 1}, 2)
    [['a'], ['b', 'c']]
    """
    dealt: list[list[str]] = [[] for _ in range(max(number, 1))]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        min(dealt, key=lambda block: sum(sizes[other] for other in block)).append(name)
    return [block for block in dealt if block]


# ---- the file of a model


def save(path: str | pathlib.Path, made: Factors, params: Params) -> None:
    """Writes factors as one safetensors file, with the print of the model they were made for (``trees.fingerprint``).

    Raises:
      InputError: factors do not fit ``params``, or there is no place to write the file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    match(made, params)
    arrays = {}
    for name, factor in by_name(made).items():
        arrays |= {f"{name}/basis": np.asarray(factor.basis), f"{name}/strength": np.asarray(factor.strength)}
    try:
        # One key of metadata: safetensors writes several in no fixed order.
        save_file(arrays, str(path), metadata={"mmu_jax.factors": json.dumps({"model": trees.fingerprint(params)})})
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"expected a place to write the factors to, found that {path} is none ({error}); make its folder or free it"
        ) from error


def load(path: str | pathlib.Path, params: Params) -> Factors:
    """Reads factors written by :func:`save` for ``params``, in their structure, sharded along the inputs of each weight.

    >>> import tempfile
    >>> path, params = pathlib.Path(tempfile.mkdtemp()) / 'f.safetensors', {'w': jnp.ones((1, 2)), 'b': jnp.ones(1)}
    >>> save(path, {'w': Factor(jnp.array([[1.0], [0.0]]), jnp.ones(1)), 'b': None}, params)
    >>> load(path, params)['w'].basis.tolist(), load(path, params)['b']
    ([[1.0], [0.0]], None)

    Raises:
      InputError: the file is damaged or holds no factors, or they are those of another model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as file:
            meta, arrays = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}
        told = json.loads(meta["mmu_jax.factors"])["model"]
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"expected a file written by curvature.save, found {path} which is damaged, not there or another "
            f"({type(error).__name__}: {error}); make the factors again"
        ) from error
    if told != (own := trees.fingerprint(params)):
        raise InputError(
            f"expected factors of this model ({own}), found those of another ({told}) in {path}; give the file that was made "
            "with this model, or make one"
        )
    names = sorted({key.rpartition("/")[0] for key in arrays})
    odd = [n for n in names if {f"{n}/basis", f"{n}/strength"} - arrays.keys()]
    odd += [n for n in names if n not in odd and not _whole(arrays[f"{n}/basis"], arrays[f"{n}/strength"])]
    if odd or not names:
        raise InputError(
            f"expected a basis and strengths of every weight in {path}, found {odd}; make the factors again"
        )
    read = {n: Factor(arrays[f"{n}/basis"], arrays[f"{n}/strength"]) for n in names}

    def leaf(p, factor):
        if factor is None:
            return None
        return Factor(jax.device_put(factor.basis, _inputs(p)), jnp.asarray(factor.strength))

    return jax.tree.map(leaf, params, match(read, params))


def _whole(basis: np.ndarray, strength: np.ndarray) -> bool:
    fits = basis.ndim >= 2 and strength.shape == (*basis.shape[:-2], basis.shape[-1])
    sound = all(x.dtype == np.float32 and np.isfinite(x).all() for x in (basis, strength))
    return fits and sound and bool((strength >= 0).all() and (strength <= 1).all())
