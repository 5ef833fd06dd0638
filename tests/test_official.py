"""The rows with the public code's name are its arithmetic: scores, mask and ten steps against torch written out."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import make_batch
from test_parity import torch_inputs

from mmu_jax import hf, methods, saliency, sharding, train, trees

FORGET, RETAIN, TEXT = 3, 8, 2  # batches: f = 8 // 3 = 2, so forget steps in iterations 0, 2, 4, and not in 6
STEPS, RATE, CLIP = 10, 1e-4, 1.0
ROWS = {"mmunlearner_official": True, "mmunlearner_official_clear": False}  # whether the retain step is clipped
KEPT = ("proj", "fc", "linear", "mlp", "qkv")


class Stream:
    """Batches in passes over a fixed few, the first padded up with a row that weighs nothing."""

    def __init__(self, name, steps, seed):
        self.name, self.steps = name, steps
        self.dealt = [make_batch(rows=3, length=16, seed=seed + i) for i in range(steps)]
        self.dealt[0]["weights"][2] = 0.0

    def batch(self, step):
        return self.dealt[step % self.steps]


def streams():
    """The text stream has photos too: how the sets are pooled is the same, and one program scores all three."""
    return {
        "forget": Stream("forget", FORGET, 10),
        "retain": Stream("retain", RETAIN, 20),
        "text": Stream("text", TEXT, 40),
    }


def torch_loss(model, batch):
    """Cross-entropy over every token but padding, image tokens included, of the rows there are."""
    rows = batch["weights"].any(axis=1)
    there = {name: array[rows] for name, array in batch.items()}
    logits = model(**torch_inputs(there)).logits[:, :-1]
    labels = torch.tensor(np.where(there["valid"], there["tokens"], -100)[:, 1:]).long()
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=-100
    )


def torch_gradients(model, batch, sign=1.0):
    model.zero_grad()
    (sign * torch_loss(model, batch)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def torch_mask(model, data):
    """F = mean over batches of the squared gradient; 1 where (F_f + 1e-15) / (F_p + 1e-15) >= 1; the name filter."""

    def fisher(*sets):
        batches = [batch for stream in sets for batch in stream.dealt]
        total = {}
        for batch in batches:
            for name, grad in torch_gradients(model, batch).items():
                total[name] = total.get(name, 0) + grad**2 / len(batches)
        return total

    forget, vision, language = fisher(data["forget"]), fisher(data["retain"]), fisher(data["retain"], data["text"])
    mask = {}
    for name, score in forget.items():
        preserve = language if "language_model" in name else vision
        if any(part in name for part in KEPT):
            mask[name] = (score + 1e-15) / (preserve[name] + 1e-15) >= 1.0
    return mask


def torch_clip(grads):
    norm = torch.sqrt(sum((g**2).sum() for g in grads.values()))
    return {name: g * torch.clamp(CLIP / (norm + 1e-6), max=1.0) for name, g in grads.items()}


def torch_loop(model, data, mask, clip_retain):
    """The published loop, epoch by epoch, and AdamW whose eps stands before the bias correction."""
    moments, params = {}, dict(model.named_parameters())
    count = {name: 0 for name in params}

    def adam(grads):
        with torch.no_grad():
            for name, g in grads.items():
                m, v = moments.get(name, (torch.zeros_like(g), torch.zeros_like(g)))
                count[name] += 1
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
                moments[name] = m, v
                step = RATE * (1 - 0.999 ** count[name]) ** 0.5 / (1 - 0.9 ** count[name])
                params[name] -= step * m / (v.sqrt() + 1e-6)

    done, every = 0, RETAIN // FORGET
    while done < STEPS:
        forget = iter(data["forget"].dealt)
        for i, batch in enumerate(data["retain"].dealt[: STEPS - done]):
            given = next(forget, None) if i % every == 0 else None
            if given is not None:
                grads = torch_clip(torch_gradients(model, given, -1.0))
                adam({name: g * mask[name] if name in mask else g for name, g in grads.items()})
            grads = torch_gradients(model, batch)
            adam(torch_clip(grads) if clip_retain else grads)
            done += 1


@pytest.fixture(scope="module")
def scored(llava):
    """(params, data, our mask, torch's mask): what both rows start from."""
    folder, reference, model = llava
    data, rule, params = streams(), methods.METHODS["mmunlearner_official"].mask, hf.load(folder, model)
    loss = methods.scored_loss(rule, model)
    options = {"leaves": rule.leaves, "unit": rule.unit}
    found = {name: saliency.scores(loss, params, stream.dealt, **options) for name, stream in data.items()}
    evidence = methods.Evidence(**found, retain_units=RETAIN, text_units=TEXT, summed=None)
    mask = methods.make_mask(rule, evidence, params, model.module.SIDES, jax.random.key(0), noise=0.5, eps=1.0)
    return params, data, mask, torch_mask(reference, data)


@pytest.mark.parametrize("name", ROWS)
def test_ten_steps_equal_the_equations_in_torch(name, llava, scored, tmp_path):
    folder, reference, model = llava
    params, data, mask, theirs = scored
    plan = train.plan(methods.METHODS[name], data, STEPS / RETAIN, learning_rate=RATE, retain_rate=1.0, clip=CLIP)
    state = train.fit(plan, model, jax.tree.map(jnp.copy, params), data, mesh=sharding.make_mesh(1), mask=mask)
    other = copy.deepcopy(reference)
    torch_loop(other, data, theirs, ROWS[name])
    other.save_pretrained(tmp_path)
    start, expected, got = (trees.flatten(t) for t in (params, hf.load(tmp_path, model), state.params))
    assert int(state.step) == STEPS
    for leaf, value in expected.items():
        np.testing.assert_allclose(np.asarray(got[leaf]), np.asarray(value), rtol=0, atol=1e-6, err_msg=leaf)
    moved = max(float(np.abs(np.asarray(expected[leaf]) - np.asarray(start[leaf])).max()) for leaf in start)
    assert moved > 500 * 1e-6  # what they may differ by


def test_the_mask_has_biases_and_equals_torch_s(scored):
    _, _, mask, theirs = scored
    ours = {name: np.asarray(leaf) for name, leaf in trees.flatten(mask).items()}
    named = {name for name in ours if any(part in name for part in KEPT)}
    assert any(name.endswith("bias") for name in named) and not any("norm" in name or "embed" in name for name in named)
    assert all(ours[name].all() for name in ours.keys() - named)  # what has no mask takes the whole ascent
    # A bias of the keys has no gradient but rounding: its mask is noise there as it is here.
    count = sum(int(m.sum()) for name, m in theirs.items() if "k_proj.bias" not in name)
    assert sum(int(ours[name].sum()) for name in named if "k_proj/bias" not in name) == count


@pytest.mark.parametrize("name", ROWS)
def test_what_the_rows_say(name):
    row = methods.METHODS[name]
    assert [phase.clip for phase in row.phases] == [True, ROWS[name]]
    assert row.one_rate and row.moments == "shared" and row.mask.numbers(1.0, 0.5) == {"eps": 1e-15, "noise": -1.0}
    assert row.mask.reads == ("batch", "descent_all", r".*(proj|fc|linear|mlp|qkv).*")
