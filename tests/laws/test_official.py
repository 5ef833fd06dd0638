"""The rows with the public code's name are its arithmetic: scores, mask and ten steps against torch written out.

On a network of a few leaves, of every kind the name filter tells apart: kept and not, weight and bias, vision and language.
That the gradients of the real networks are torch's is another test.
"""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from mmu_jax import InputError, methods, objectives, rules, saliency, sharding, train, trees
from mmu_jax.models import llava
from mmu_jax.plan import Plan

FORGET, RETAIN, TEXT = 3, 8, 2  # batches: f = 8 // 3 = 2, so forget steps in iterations 0, 2, 4, and not in 6
STEPS, RATE, CLIP = 10, 1e-3, 0.1
ROWS = {"mmunlearner_official": True, "mmunlearner_official_clear": False}  # whether the retain step is clipped
KEPT = ("proj", "fc", "linear", "mlp", "qkv")
IMAGE, WIDTH, WORDS = 5, 6, 9
SHAPES = {
    "vision_tower/fc1/weight": (WIDTH, 4),
    "vision_tower/fc1/bias": (WIDTH,),
    "vision_tower/norm/bias": (WIDTH,),
    "language_model/embed_tokens/weight": (WORDS, WIDTH),
    "language_model/q_proj/weight": (WIDTH, WIDTH),
    "language_model/q_proj/bias": (WIDTH,),
    "language_model/norm/weight": (WIDTH,),
    "lm_head/weight": (WORDS, WIDTH),
}


def numbers():
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in SHAPES.items()}


def nested(flat):
    tree = {}
    for name, leaf in flat.items():
        *path, last = name.split("/")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = leaf
    return tree


def logits(p, tokens, pixels, of):
    """``[B, T, V]`` by the arrays of ``of``, jax.numpy or torch; ``p`` by leaf name."""
    seen = of.tanh(pixels @ p["vision_tower/fc1/weight"].T + p["vision_tower/fc1/bias"]) + p["vision_tower/norm/bias"]
    x = of.where((tokens == IMAGE)[..., None], seen[:, None], p["language_model/embed_tokens/weight"][tokens])
    x = of.tanh(x @ p["language_model/q_proj/weight"].T + p["language_model/q_proj/bias"])
    return (x * p["language_model/norm/weight"]) @ p["lm_head/weight"].T


class Network:
    """What saliency and training need of a model."""

    family = types.SimpleNamespace(rules=[])

    def forward(self, params, batch):
        return logits(trees.flatten(params), batch["tokens"], batch["pixels"], jnp)


class Stream:
    """A few batches, again and again; the first is filled up with a row that weighs nothing."""

    def __init__(self, steps, seed):
        rng = np.random.default_rng(seed)
        self.steps, self.dealt = steps, [self.make(rng) for _ in range(steps)]
        self.dealt[0]["weights"][2] = 0.0

    def make(self, rng):
        tokens = rng.integers(0, WORDS, (3, 7)).astype(np.int32)
        tokens[:, 1] = IMAGE
        valid, weights = np.ones((3, 7), bool), np.zeros((3, 7), np.float32)
        valid[1, 5:], weights[:, 4:] = False, 1.0
        weights *= valid
        row = np.arange(3, dtype=np.int32)
        pixels = rng.normal(size=(3, 4)).astype(np.float32)
        return {"tokens": tokens, "valid": valid, "weights": weights, "row": row, "pixels": pixels}

    def batch(self, step):
        return self.dealt[step % self.steps]


def streams():
    """``mixed`` has rows of both kinds: in the middle row of a batch the photo is not shown."""
    made = {"forget": Stream(FORGET, 11), "retain": Stream(RETAIN, 12), "text": Stream(TEXT, 13)}
    made["mixed"] = Stream(RETAIN + TEXT, 14)
    for batch in made["mixed"].dealt:
        batch["tokens"][1, 1] = 0
    return made


# ---- the public code's equations


def gradients(params, batch, sign=1.0):
    """Of the mean cross-entropy over every token but padding, image tokens included, of the rows there are."""
    there = {name: torch.tensor(array[batch["weights"].any(axis=1)]) for name, array in batch.items()}
    tokens = there["tokens"].long()
    labels = torch.where(there["valid"], tokens, -100)[:, 1:].reshape(-1)
    said = logits(params, tokens, there["pixels"], torch)[:, :-1].reshape(-1, WORDS)
    loss = sign * torch.nn.functional.cross_entropy(said, labels, ignore_index=-100)
    return dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))


PRESERVE = {True: ("mixed",), False: ("retain", "text")}  # of the language side, by whether its batches are mixed


def torch_mask(params, data, mixed):
    """F = mean over batches of the squared gradient; 1 where (F_f + 1e-15) / (F_p + 1e-15) >= 1; the name filter."""

    def fisher(*names):
        every = [gradients(params, batch) for name in names for batch in data[name].dealt]
        return {leaf: sum(g[leaf] ** 2 for g in every) / len(every) for leaf in params}

    forget, vision, language = fisher("forget"), fisher("retain"), fisher(*PRESERVE[mixed])
    return {
        leaf: (forget[leaf] + 1e-15) / ((vision if "vision" in leaf else language)[leaf] + 1e-15) >= 1.0
        for leaf in params
        if any(part in leaf for part in KEPT)
    }


def torch_loop(params, data, mask, clip_retain):
    """The published loop, epoch by epoch, and AdamW whose eps stands before the bias correction."""
    first, second = ({leaf: torch.zeros_like(p) for leaf, p in params.items()} for _ in range(2))
    taken = 0

    def clipped(grads):
        norm = torch.sqrt(sum((g**2).sum() for g in grads.values()))
        return {leaf: g * torch.clamp(CLIP / (norm + 1e-6), max=1.0) for leaf, g in grads.items()}

    def adam(grads):
        nonlocal taken
        taken += 1
        rate = RATE * (1 - 0.999**taken) ** 0.5 / (1 - 0.9**taken)
        with torch.no_grad():
            for leaf, g in grads.items():
                first[leaf] = 0.9 * first[leaf] + 0.1 * g
                second[leaf] = 0.999 * second[leaf] + 0.001 * g * g
                params[leaf] -= rate * first[leaf] / (second[leaf].sqrt() + 1e-6)

    left, every = STEPS, RETAIN // FORGET
    while left:
        forget = iter(data["forget"].dealt)
        for i, batch in enumerate(data["retain"].dealt[:left]):
            given = next(forget, None) if i % every == 0 else None
            if given is not None:
                grads = clipped(gradients(params, given, -1.0))
                adam({leaf: g * mask[leaf] if leaf in mask else g for leaf, g in grads.items()})
            grads = gradients(params, batch)
            adam(clipped(grads) if clip_retain else grads)
            left -= 1


# ---- ours beside them


def rule_of(name, mixed=True):
    rule = methods.METHODS[name].mask
    assert rule.mixed
    return dataclasses.replace(rule, mixed=mixed)


def both_masks(data, mixed):
    """(our mask, torch's mask)."""
    rule, params = rule_of("mmunlearner_official", mixed), nested(numbers())
    loss = objectives.of_params(rule.loss, Network())
    options = {"leaves": rule.leaves, "unit": rule.unit}
    found = {name: saliency.scores(loss, params, stream.dealt, **options) for name, stream in data.items()}
    kept = {"text": found["mixed"], "retain_units": 0.0, "text_units": float(RETAIN + TEXT)}
    if not mixed:
        kept = {"text": found["text"], "retain_units": float(RETAIN), "text_units": float(TEXT)}
    evidence = rules.Evidence(forget=found["forget"], retain=found["retain"], summed=None, **kept)
    mask = rules.make(rule, evidence, params, llava.SIDES, jax.random.key(0), noise=0.5, eps=1.0)
    return mask, torch_mask(torch_params(), data, mixed)


@pytest.fixture(scope="module")
def scored():
    """(data, our mask, torch's mask): what both rows start from."""
    data = streams()
    return data, *both_masks(data, True)


def torch_params():
    return {name: torch.tensor(value, requires_grad=True) for name, value in numbers().items()}


@pytest.mark.parametrize("name", ROWS)
def test_ten_steps_equal_the_equations_in_torch(name, scored):
    data, mask, theirs = scored
    numbered = {"learning_rate": RATE, "retain_rate": 1.0, "clip": CLIP}
    plan = Plan.of(methods.METHODS[name], data, STEPS / RETAIN, **numbered)
    params = jax.tree.map(jnp.asarray, nested(numbers()))
    state = train.fit(plan, Network(), params, data, mesh=sharding.make_mesh(1), mask=mask)
    expected = torch_params()
    torch_loop(expected, data, theirs, ROWS[name])
    got, start = trees.flatten(state.params), numbers()
    assert int(state.step) == STEPS
    for leaf, value in expected.items():
        value = value.detach().numpy()
        np.testing.assert_allclose(np.asarray(got[leaf]), value, rtol=0, atol=1e-6, err_msg=leaf)
        assert np.abs(value - start[leaf]).max() > 1000 * 1e-6, leaf  # what they may differ by


def test_the_two_scripts_differ_by_the_clip_of_the_retain_step(scored):
    data, _, theirs = scored
    ends = [torch_params(), torch_params()]
    for params, clip_retain in zip(ends, ROWS.values(), strict=True):
        torch_loop(params, data, theirs, clip_retain)
    assert max((a - b).abs().max() for a, b in zip(ends[0].values(), ends[1].values(), strict=True)) > 1e-4


@pytest.mark.parametrize("mixed", PRESERVE)
def test_the_mask_has_biases_and_equals_torch_s_entry_by_entry(mixed):
    mask, theirs = both_masks(streams(), mixed)
    ours = {name: np.asarray(leaf) for name, leaf in trees.flatten(mask).items()}
    assert {name.rsplit("/", 1)[0] for name in theirs} == {"vision_tower/fc1", "language_model/q_proj"}
    for name, leaf in ours.items():  # what has no mask takes the whole ascent
        np.testing.assert_array_equal(leaf, theirs[name].numpy() if name in theirs else np.ones(leaf.shape, bool))
    assert all(0 < ours[name].mean() < 1 for name in theirs)


@pytest.mark.parametrize("mixed", PRESERVE)
@pytest.mark.parametrize("name", ROWS)
def test_one_accumulator_makes_the_same_mask(name, mixed):
    data = streams()
    mask, _ = both_masks(data, mixed)
    rule, params = rule_of(name, mixed), nested(numbers())
    loss, found = objectives.of_params(rule.loss, Network()), []
    for side, kept in (("vision", ("retain",)), ("language", PRESERVE[mixed])):
        preserve = [batch for stream in kept for batch in data[stream].dealt]
        leaves = rf"(?={llava.SIDES[side]}\Z)(?:{rule.leaves})"
        options = {"leaves": leaves, "unit": rule.unit}
        found.append(saliency.difference(loss, params, data["forget"].dealt, preserve, **options))
    signed = rules.make_signed(rule, trees.merge(*found), params, llava.SIDES, jax.random.key(0), noise=0.5, eps=1.0)
    jax.tree.map(np.testing.assert_array_equal, signed, mask)


@pytest.mark.parametrize("name", ["kl", "npo"])
def test_a_loss_that_needs_another_model_makes_no_scores(name):
    rule = dataclasses.replace(methods.METHODS["mmunlearner"].mask, loss=name)
    with pytest.raises(InputError, match=f"for scores and Grams, found {name}, which needs"):
        objectives.of_params(rule.loss, Network())
