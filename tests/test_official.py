"""The rows with the public code's name are its arithmetic: scores, mask and ten steps against torch written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import make_batch
from test_parity import torch_inputs

from mmu_jax import hf, masks, methods, saliency, sharding, train, trees

FORGET, RETAIN, TEXT = 3, 8, 2  # batches: f = 8 // 3 = 2, so forget steps in iterations 0, 2, 4, and not in 6
STEPS, RATE, CLIP = 10, 1e-4, 1.0
ROWS = {"mmunlearner_official": True, "mmunlearner_official_clear": False}  # whether the retain step is clipped
KEPT = ("proj", "fc", "linear", "mlp", "qkv")


class Stream:
    """Batches in passes over a fixed few, the first padded up with a row that weighs nothing."""

    def __init__(self, name, steps, seed, images=1):
        self.name, self.steps = name, steps
        self.dealt = [make_batch(rows=3, length=16, images=images, seed=seed + i) for i in range(steps)]
        self.dealt[0]["weights"][2] = 0.0

    def batch(self, step):
        return self.dealt[step % self.steps]


def streams():
    return {
        "forget": Stream("forget", FORGET, 10),
        "retain": Stream("retain", RETAIN, 20),
        "text": Stream("text", TEXT, 40, 0),
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


@pytest.fixture(scope="module", params=ROWS)
def both(request, llava, tmp_path_factory):
    """(params before, their mask and params, our mask and state, the model) after ten iterations of one row."""
    folder, reference, model = llava
    data, row = streams(), methods.METHODS[request.param]
    before = {name: p.detach().clone() for name, p in reference.named_parameters()}
    params, mesh = hf.load(folder, model), sharding.make_mesh(1)

    # Ours first, on the very weights of the file.
    options = {"leaves": row.mask.leaves, "unit": row.mask.unit}
    loss = methods.scored_loss(row.mask, model)
    scored = {name: saliency.scores(loss, params, stream.dealt, **options) for name, stream in data.items()}
    evidence = methods.Evidence(**scored, retain_units=RETAIN, text_units=TEXT, summed=None)
    mask = methods.make_mask(row.mask, evidence, params, model.module.SIDES, jax.random.key(0), noise=0.5, eps=1.0)
    plan = train.plan(row, data, STEPS / RETAIN, learning_rate=RATE, retain_rate=1.0, clip=CLIP)
    state = train.fit(plan, model, jax.tree.map(jnp.copy, params), data, mesh=mesh, mask=mask)

    theirs = torch_mask(reference, data)
    torch_loop(reference, data, theirs, ROWS[request.param])
    out = tmp_path_factory.mktemp("official")
    reference.save_pretrained(out)
    after = hf.load(out, model)
    with torch.no_grad():  # the model of the session goes back to what it was
        for name, p in reference.named_parameters():
            p.copy_(before[name])
            p.grad = None
    return params, theirs, after, mask, state


def test_ten_steps_equal_the_equations_in_torch(both):
    params, _, after, _, state = both
    start, expected, got = (trees.flatten(t) for t in (params, after, state.params))
    assert int(state.step) == STEPS
    for name, value in expected.items():
        np.testing.assert_allclose(np.asarray(got[name]), np.asarray(value), rtol=0, atol=1e-6, err_msg=name)
    moved = max(float(jnp.abs(expected[name] - start[name]).max()) for name in start)
    assert moved > 5 * RATE  # a thousand times what they may differ by


def test_the_mask_has_biases_and_equals_torch_s(both):
    _, theirs, _, mask, _ = both
    ours = trees.flatten(mask)
    assert not any(part in name for name in ours if bool(ours[name].all()) for part in KEPT if "norm" not in name)
    named = {name for name in ours if not bool(ours[name].all())}
    assert {name for name in named if name.endswith("bias")} and all(any(k in n for k in KEPT) for n in named)
    free = {name for name in ours if name not in named}
    assert any("norm" in name for name in free) and "lm_head/weight" in free
    # A bias of the keys has no gradient but rounding: its mask is noise there as it is here.
    count = sum(int(m.sum()) for name, m in theirs.items() if "k_proj.bias" not in name)
    assert sum(masks.count(ours[n]) for n in named if "k_proj/bias" not in n) == count


def test_what_the_rows_say():
    for name, clip_retain in ROWS.items():
        row = methods.METHODS[name]
        assert [phase.clip for phase in row.phases] == [True, clip_retain]
        assert row.one_rate and row.moments == "shared" and row.mask.numbers(1.0, 0.5) == {"eps": 1e-15, "noise": -1.0}
        assert row.mask.reads == ("batch", "descent_all", r".*(proj|fc|linear|mlp|qkv).*")
