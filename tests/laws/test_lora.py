"""LoRA trains what it says, the mask holds on the merged update, and the files get what was trained."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mmu_jax import InputError, curvature, hf, lora, methods, models, sharding, trees
from mmu_jax.plan import Plan, describe
from mmu_jax.rules import Rule
from toys import SPEC, TARGETS, make_batch, random_factors, random_mask, run, same, streams
from twins import mean_loss, torch_inputs


def is_factors(x):
    return isinstance(x, lora.Adapter)


def trained_adapters(params, kinds=("free", "masked")):
    """Adapters as training leaves them: with a B that is not zero."""

    def leaf(factors):
        return lora.Adapter(factors.a, 0.05 * jax.random.normal(jax.random.key(factors.b.size), factors.b.shape))

    made = {kind: lora.init(SPEC, params, jax.random.key(i)) for i, kind in enumerate(kinds)}
    return {kind: jax.tree.map(leaf, tree, is_leaf=is_factors) for kind, tree in made.items()}


def merged(params, adapters, mask, factors=None):
    """W + s B A + s mask * (B' A') + s B" A" (I - U diag(strength) U^T), by hand in numpy."""
    out, kept = dict(trees.flatten(params)), curvature.by_name(factors)
    for kind, tree in adapters.items():
        for name, f in trees.flatten(tree, is_leaf=is_factors).items():
            update = SPEC.alpha / SPEC.rank * np.matmul(np.asarray(f.b), np.asarray(f.a))
            if kind == "masked":
                update = update * np.asarray(trees.flatten(mask)[name])
            elif kind == "projected":
                u, strength = np.asarray(kept[name].basis), np.asarray(kept[name].strength)
                update = update - np.matmul(np.matmul(update, u) * strength[..., None, :], u.swapaxes(-1, -2))
            out[name] = out[name] + update
    return jax.tree.structure(params).unflatten(out.values())


def check_adapted_is_merged(model, params, batch):
    mask, factors = random_mask(model, params), random_factors(model, params)
    spec = dataclasses.replace(SPEC, targets=r".*(layers|blocks|vision_tower)/.*(q_proj|o_proj|qkv|up_proj|fc1)/weight")
    adapters = {
        kind: jax.tree.map(
            lambda f: lora.Adapter(f.a, jnp.full_like(f.b, 0.03)),
            lora.init(spec, params, jax.random.key(i)),
            is_leaf=is_factors,
        )
        for i, kind in enumerate(lora.KINDS)
    }
    expected = np.asarray(jax.jit(model.forward)(merged(params, adapters, mask, factors), batch))
    found = np.asarray(jax.jit(model.forward)(lora.adapt(spec, params, adapters, mask, factors), batch))
    before = np.asarray(model.forward(params, batch))
    scale = np.abs(expected).max()
    assert np.abs(found - expected)[batch["valid"]].max() < 1e-5 * scale
    assert np.abs(before - expected)[batch["valid"]].max() > 1e-3 * scale


def test_an_adapted_llava_is_the_merged_one(llava):
    folder, _, model = llava
    check_adapted_is_merged(model, hf.load(folder, model), make_batch())


def test_an_adapted_qwen_is_the_merged_one(qwen):
    from twins import QWEN_ROWS, qwen_batch

    folder, _, model = qwen
    check_adapted_is_merged(model, hf.load(folder, model), qwen_batch(folder, QWEN_ROWS["rows of other sizes"])[0])


def test_new_adapters_change_nothing_and_differ_by_leaf(llava):
    folder, _, model = llava
    params, batch = hf.load(folder, model), make_batch()
    adapters = {"free": lora.init(SPEC, params, jax.random.key(0))}
    np.testing.assert_array_equal(
        model.forward(params, batch), model.forward(lora.adapt(SPEC, params, adapters), batch)
    )
    drawn = [np.asarray(f.a).ravel()[:8] for f in trees.flatten(adapters["free"], is_leaf=is_factors).values()]
    assert len({tuple(a) for a in drawn}) == len(drawn)


def test_gradients_of_factors_are_those_of_the_merged_weight(llava):
    folder, _, model = llava
    params, batch, loss = hf.load(folder, model), make_batch(), mean_loss(model)
    mask = random_mask(model, params)
    adapters = trained_adapters(params)
    ours = jax.jit(jax.grad(lambda a: loss(lora.adapt(SPEC, params, a, mask), batch)))(adapters)
    whole = trees.flatten(jax.jit(jax.grad(loss))(merged(params, adapters, mask), batch))
    for kind, tree in adapters.items():
        for name, f in trees.flatten(tree, is_leaf=is_factors).items():
            g = np.asarray(whole[name]) * (SPEC.alpha / SPEC.rank)
            g = g * np.asarray(trees.flatten(mask)[name]) if kind == "masked" else g
            got = trees.flatten(ours[kind], is_leaf=is_factors)[name]
            for found, expected in (
                (got.b, np.matmul(g, np.asarray(f.a).swapaxes(-1, -2))),
                (got.a, np.matmul(np.asarray(f.b).swapaxes(-1, -2), g)),
            ):
                assert np.abs(np.asarray(found) - expected).max() <= 1e-4 * np.abs(expected).max(), (kind, name)


@pytest.mark.parametrize("name", ["retain_ft", "npo", "kl", "grad_diff_alternate", "mmunlearner"])
def test_every_method_trains_adapters_and_leaves_the_params_alone(llava, name):
    folder, _, model = llava
    params = hf.load(folder, model, dtype=jnp.bfloat16)
    before = jax.tree.map(np.asarray, params)
    mask = random_mask(model, params) if methods.METHODS[name].mask else None
    state = run(model, params, name, mask=mask, trainable=SPEC, iterations=6)
    same(before, params)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(params))
    kinds = {"masked" if phase.masked else "free" for phase in methods.METHODS[name].phases}
    assert set(state.params) == kinds
    for kind in kinds:
        for leaf, f in trees.flatten(state.params[kind], is_leaf=is_factors).items():
            may = kind == "free" or np.asarray(trees.flatten(mask)[leaf]).any()
            assert bool(np.abs(np.asarray(f.b)).max() > 0) == may and f.b.dtype == jnp.float32, (kind, leaf)
    for leaf, (outside, inside) in state.moved.items():
        assert outside == 0 and bool(inside > 0) == bool(np.asarray(trees.flatten(mask)[leaf]).any())


def test_the_mask_holds_on_the_merged_update_in_the_file(llava, tmp_path, monkeypatch):
    folder, _, model = llava
    params = hf.load(folder, model)
    mask = random_mask(model, params)
    phase = methods.Phase({"forget": "ascent"}, masked=True)
    monkeypatch.setitem(methods.METHODS, "masked", methods.Method((phase,), Rule()))
    state = run(model, params, "masked", mask=mask, trainable=SPEC, adam={"weight_decay": 0.1}, clip=0.1)
    changed = hf.rewrite(model, folder, tmp_path / "out", lora.merge(SPEC, state.params, mask))
    after = hf.load(tmp_path / "out", model)
    targets = trees.flatten(trees.select(params, TARGETS))
    for name, old in trees.flatten(params).items():
        new, keep = np.asarray(trees.flatten(after)[name]), np.asarray(trees.flatten(mask)[name])
        moved = np.asarray(old) != new
        assert not moved[~keep].any(), name
        assert moved.any() == (targets[name] and keep.any()), name
        assert changed.get(name, 0) == moved.sum(), name
        inside = float(state.moved[name][1]) if name in state.moved else 0.0
        assert bool(inside) == bool(moved.any()), name


def test_torch_loads_the_merged_checkpoint_and_gives_our_logits(llava, tmp_path):
    import torch
    import transformers

    folder, _, model = llava
    params, batch = hf.load(folder, model), make_batch()
    mask, adapters = random_mask(model, params), trained_adapters(params)
    hf.rewrite(model, folder, tmp_path / "out", lora.merge(SPEC, adapters, mask))
    reference, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        theirs = reference.eval()(**torch_inputs(batch)).logits.numpy()
    ours = np.asarray(model.forward(lora.adapt(SPEC, params, adapters, mask), batch))
    assert np.abs(ours - theirs)[batch["valid"]].max() < 1e-5 * np.abs(theirs).max()
    kept = "vision_tower.encoder.layers.0.mlp.fc2.weight"
    before, after = load_file(folder / hf.SINGLE), load_file(tmp_path / "out" / hf.SINGLE)
    assert before[kept].tobytes() == after[kept].tobytes()


def test_a_resumed_lora_ends_in_the_same_bits(llava, tmp_path):
    folder, _, model = llava
    params = hf.load(folder, model)
    mask = random_mask(model, params)
    options = dict(mask=mask, trainable=SPEC, iterations=10)
    straight = run(model, params, "mmunlearner", **options)
    data = streams()
    deal = data["retain"].batch

    def dies(step):
        if step == 7:
            raise KeyboardInterrupt
        return deal(step)

    data["retain"].batch = dies
    with pytest.raises(KeyboardInterrupt):
        run(model, params, "mmunlearner", where=tmp_path / "c", data=data, **options)
    same(straight, run(model, params, "mmunlearner", where=tmp_path / "c", **options))


def after_a_step(llava, mesh):
    folder, _, model = llava
    params = hf.load(folder, model, mesh)
    mask = random_mask(model, params)
    return run(model, params, "mmunlearner", mask=mask, trainable=SPEC, iterations=1, mesh=mesh, adam={"eps": 1e-3})


@pytest.fixture(scope="module")
def on_one_device(llava):
    with jax.default_matmul_precision("highest"):
        return after_a_step(llava, sharding.make_mesh(1))


def test_every_mesh_trains_the_same_adapters(llava, mesh, on_one_device):
    other = after_a_step(llava, mesh)
    for name, expected in trees.flatten(on_one_device.params).items():
        np.testing.assert_allclose(np.asarray(trees.flatten(other.params)[name]), np.asarray(expected), atol=1e-6)


def test_targets_must_be_linear_weights_that_are_there(llava):
    model = llava[2]
    abstract, eligible = model.abstract(), model.family.eligible

    def check(**changes):
        lora.check_targets(dataclasses.replace(SPEC, **changes), abstract, eligible)

    check()
    with pytest.raises(InputError, match="linear layers only.*patch_embedding"):
        check(targets=r"vision_tower/.*weight")
    with pytest.raises(InputError, match="matches none"):
        check(targets="q_proj")
    with pytest.raises(InputError, match="linear layers only.*embed_tokens"):
        check(targets=r"language_model/.*weight")
    with pytest.raises(InputError, match="rank"):
        check(rank=0)


def test_the_default_targets_leave_the_vision_tower_alone(llava):
    from configs import common

    model = llava[2]
    chosen = trees.flatten(trees.select(model.abstract(), common.base().unlearn.lora.targets))
    assert all(name.startswith("language_model/layers/") for name, yes in chosen.items() if yes)
    assert sum(chosen.values()) == 7


def test_a_method_whose_mask_lora_would_undo_is_refused(llava):
    folder, _, model = llava
    params = hf.load(folder, model)
    with pytest.raises(InputError, match="with LoRA its mask would do nothing"):
        run(model, params, "mmunlearner_official", mask=random_mask(model, params), trainable=SPEC)


def test_params_that_are_not_float32_train_only_through_lora(llava):
    folder, _, model = llava
    params = hf.load(folder, model, dtype=jnp.bfloat16)
    with pytest.raises(InputError, match="expected float32 params to train"):
        run(model, params, "ga")


def test_the_plan_says_what_is_adapted(llava):
    folder, _, model = llava
    params = hf.load(folder, model)
    plan = Plan.of(methods.METHODS["mmunlearner"], streams(), 1.0, trainable=SPEC)
    said = describe(plan, params, random_mask(model, params))
    factors = 2 * sum(
        f.a.size + f.b.size
        for f in trees.flatten(lora.init(SPEC, params, jax.random.key(0)), is_leaf=is_factors).values()
    )
    assert f"rank 3, alpha 6, {factors:,} trained parameters in 2 sets of factors" in said
    lines = {line.split()[0]: line for line in said.splitlines()}
    assert "3 leaves adapted" in lines["language_model/layers"] and "untouched" in lines["lm_head"]
    assert "forget mask" in lines["vision_tower/encoder/layers"]


def test_bfloat16_params_still_see_a_small_update(llava):
    """An update below half a bfloat16 step of the weight would be lost in their sum; it acts all the same."""
    folder, _, model = llava
    low = models.Model(model.config, jnp.bfloat16)
    params, batch = hf.load(folder, model, dtype=jnp.bfloat16), make_batch()
    adapters = trained_adapters(params, ("free",))
    small = jax.tree.map(lambda f: lora.Adapter(f.a, f.b * 2**-9), adapters, is_leaf=is_factors)
    moved = np.abs(
        np.asarray(low.forward(params, batch)) - np.asarray(low.forward(lora.adapt(SPEC, params, small), batch))
    )
    assert moved.max() > 0
