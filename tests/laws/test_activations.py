"""What neurons say on a set of examples is what torch reads there, on every mesh."""

import jax
import numpy as np
import pytest

from mmu_jax import InputError, activations, curvature, edits, hf, sharding, trees
from toys import make_batch, run
from twins import QWEN_ROWS, qwen_batch, torch_inputs


def hooked(reference, model, inputs):
    """Leaf name -> layer -> what torch's second weights of MLPs read, ``[..., in]``."""
    found, hooks = {}, []

    def keep(name):
        def hook(module, given):
            leaf, layer = hf.rename(f"{name}.weight", model.family.names)
            found.setdefault(leaf, {})[layer] = given[0].detach().numpy()

        return hook

    import torch

    for name, module in reference.named_modules():
        if name.endswith((".down_proj", ".fc2")):
            hooks.append(module.register_forward_pre_hook(keep(name)))
    with torch.no_grad():
        reference(**inputs)
    for hook in hooks:
        hook.remove()
    return found


def agree(seen, theirs, counts):
    """``counts``: leaf name -> which of torch's places count."""
    for name, ours in trees.flatten(seen).items():
        for layer, got in enumerate(np.asarray(ours)):
            x = theirs[name][layer][counts(name)].reshape(-1, got.shape[-1])
            right = [np.abs(x).sum(0), None, x.sum(0), np.square(x).sum(0), np.full(x.shape[-1], len(x))]
            for index, want in enumerate(right):
                if want is not None:  # how often a number is positive is for rounding to say where it is nearly zero
                    scale = max(np.abs(want).max(), 1.0)
                    np.testing.assert_allclose(
                        got[index], want, rtol=1e-4, atol=1e-5 * scale, err_msg=f"{name} {index}"
                    )
            assert np.abs(got[1] - (x > 0).sum(0)).max() <= 1


@pytest.mark.parametrize("over", activations.OVER)
def test_moments_are_those_of_what_torch_reads(llava, over):
    folder, reference, model = llava
    (batch,) = [make_batch(seed=4)]
    batch["weights"][2] = 0.0
    params, rows = hf.load(folder, model), (batch["weights"] > 0).any(axis=1)
    (seen,) = activations.each(model, params, [batch], leaves=edits.NEURONS, over=over)
    places = rows[:, None] & (batch["valid"] if over == "tokens" else batch["weights"] > 0)
    theirs = hooked(reference, model, torch_inputs(batch))
    agree(seen, theirs, lambda name: rows if "vision_tower" in name else places)


def test_grams_are_those_of_what_torch_reads(qwen):
    folder, reference, model = qwen
    batch, inputs = qwen_batch(folder, QWEN_ROWS["two sizes in a row"])
    params, valid = hf.load(folder, model), batch["valid"].astype(bool)
    leaves = curvature.matrices(
        params, model.family.eligible
    )  # those of the merger too, which read four patches as one
    (seen,) = activations.each(model, params, [batch], leaves=leaves, kind="grams")
    (square,) = activations.each(model, params, [batch], leaves=leaves)
    traces = activations.means(square)["square"]
    theirs = hooked(reference, model, inputs)
    for name, ours in trees.flatten(seen).items():
        places = np.asarray(trees.flatten(square)[name])[..., -1:, 0]
        diagonal = np.diagonal(np.asarray(ours), axis1=-2, axis2=-1)
        np.testing.assert_allclose(diagonal, places * np.asarray(trees.flatten(traces)[name]), rtol=1e-4, atol=1e-4)
        for layer in theirs.get(name, ()):
            x = theirs[name][layer][... if "visual" in name else valid].reshape(-1, ours.shape[-1])
            right = x.T @ x
            np.testing.assert_allclose(ours[layer], right, rtol=1e-4, atol=1e-5 * np.abs(right).max(), err_msg=name)


def test_what_is_kept_out_of_inputs_leaves_whole_what_weights_say_of_them(alone, llava):
    folder, _, model = llava
    (batch, _), _ = alone
    params = hf.load(folder, model)
    leaves = r"language_model/layers/(self_attn/(q|k|v)_proj|mlp/(gate|up)_proj)/weight"
    grams = activations.total(activations.each(model, params, [batch], leaves=leaves, kind="grams"))
    factors = curvature.joined([curvature.factors(grams, share=0.95)], params)
    state = run(model, params, "null_space", iterations=4, factors=factors)
    before, after, made = trees.flatten(params), trees.flatten(state.params), curvature.by_name(factors)
    for name, gram in trees.flatten(grams).items():
        step = np.asarray(after[name] - before[name], np.float64)
        values = np.linalg.eigvalsh(np.asarray(gram, np.float64))[:, ::-1]
        taken = np.asarray(made[name].strength).sum(axis=-1).astype(int)
        # What the weight says changes by no more, for the length of the step, than along the first direction that is left.
        felt = np.einsum("loi,lij,loj->l", step, gram, step) / np.square(step).sum(axis=(1, 2))
        assert (felt <= 1.001 * values[range(len(values)), taken]).all() and (felt < values.mean(axis=1)).all(), name


def test_patches_that_only_fill_count_for_nothing(qwen):
    folder, reference, model = qwen
    batch, inputs = qwen_batch(folder, QWEN_ROWS["two sizes in a row"])
    (seen,) = activations.each(model, hf.load(folder, model), [batch], leaves=edits.NEURONS)
    agree(seen, hooked(reference, model, inputs), lambda name: ... if "visual" in name else batch["valid"].astype(bool))


def test_text_excites_no_patch_and_nothing_to_look_at_is_refused(llava):
    folder, _, model = llava
    params = hf.load(folder, model)
    (seen,) = activations.each(model, params, [make_batch(images=0)], leaves=edits.NEURONS)
    for name, x in trees.flatten(activations.means(seen)["absolute"]).items():
        assert bool((np.asarray(x) == 0).all()) == ("vision_tower" in name)
    with pytest.raises(InputError, match="at least one batch to look at"):
        activations.total([])
    with pytest.raises(InputError, match="moments over tokens or answers, found 'words'"):
        activations.each(model, params, [], leaves=edits.NEURONS, over="words")


@pytest.fixture(scope="module")
def alone(llava):
    """Two batches, of which a row only fills, and their moments on one device."""
    folder, _, model = llava
    batches = [make_batch(seed=seed) for seed in (10, 11)]
    batches[1]["weights"][3] = 0.0
    params = hf.load(folder, model)
    return batches, activations.total(activations.each(model, params, batches, leaves=edits.NEURONS))


def test_moments_agree_on_every_mesh(alone, llava, mesh):
    folder, _, model = llava
    batches, expected = alone
    params = hf.load(folder, model, mesh)
    with jax.set_mesh(mesh):
        put = [sharding.put(batch, mesh) for batch in batches]
        found = trees.flatten(activations.total(activations.each(model, params, put, leaves=edits.NEURONS)))
    for leaf, right in trees.flatten(expected).items():
        scale = 1e-5 * np.abs(np.asarray(right)).max()
        np.testing.assert_allclose(found[leaf], right, rtol=1e-4, atol=scale, err_msg=leaf)
