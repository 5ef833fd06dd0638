"""The plan counts what is really there, comes before anything is loaded, and refuses what cannot fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmu_jax import InputError, generate, hf, memory, methods, models, saliency, sharding, train_state, trees
from mmu_jax.plan import Plan
from mmu_jax.rules import Rule
from mmu_jax.trainable import Whole
from toys import SPEC, make_batch, random_mask, streams
from twins import mean_loss


def on_a_device(tree):
    """Bytes of a tree of placed arrays on the first device."""
    device = jax.devices()[0]
    return sum(s.data.nbytes for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == device)


@pytest.fixture
def shape():
    batch = make_batch()
    return memory.Shape(len(batch["tokens"]), batch["tokens"].shape[1], images=1)


@pytest.mark.parametrize("name", ["grad_diff", "mmunlearner", "mmunlearner_vision", "mmunlearner_official"])
def test_what_training_keeps_is_counted_to_the_byte(llava, mesh, shape, name):
    folder, _, model = llava
    params = hf.load(folder, model, mesh)
    trained = Whole.of(methods.METHODS[name], model.family)
    needs = memory.Ledger(model, mesh).training(methods.METHODS[name], shape, trained)
    state = train_state.init(Plan.of(methods.METHODS[name], streams(), 1.0, trainable=trained), model, params, mesh)
    assert needs["params"] == needs["gradients"] == on_a_device(params)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]  # beside them only counters
    assert needs["moments"] == on_a_device(moments)
    if methods.METHODS[name].mask:
        assert needs["mask"] == on_a_device(random_mask(model, params))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_what_lora_keeps_is_counted_to_the_byte(llava, mesh, shape, dtype):
    folder, _, model = llava
    params = hf.load(folder, model, mesh, dtype=dtype)
    needs = memory.Ledger(model, mesh, dtype).training(methods.METHODS["mmunlearner"], shape, SPEC)
    plan = Plan.of(methods.METHODS["mmunlearner"], streams(), 1.0, trainable=SPEC)
    state = train_state.init(plan, model, params, mesh)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert needs["params"] == on_a_device(params)
    assert needs["adapters"] == needs["gradients"] == on_a_device(state.params)
    assert needs["moments"] == on_a_device(moments)


def test_what_saliency_keeps_is_counted_to_the_byte(llava, mesh, shape):
    folder, _, model = llava
    params = hf.load(folder, model, mesh)
    part, _ = trees.split(params, model.family.eligible)
    ledger, one = memory.Ledger(model, mesh), on_a_device(saliency.zeros(part)[0])
    wanted = [Rule(), Rule(by="salun")]
    assert ledger.saliency(wanted[:1], shape, 4, keep_scores=False)["scores"] == one
    assert ledger.saliency(wanted[:1], shape, 4, keep_scores=True)["scores"] == 3 * one
    assert ledger.saliency(wanted, shape, 4, keep_scores=True)["scores"] == 4 * one
    assert (
        ledger.saliency(wanted, shape, 4, keep_scores=True)["gradients"] == one
    )  # float32, of all rows in one backward pass
    biased = [Rule(leaves=r".*_proj/(weight|bias)")]  # a bias does not tell its rows apart
    assert ledger.saliency(biased, shape, 4, keep_scores=True)["gradients"] == 4 * one


def test_drawing_a_mask_is_counted_where_it_takes_more_than_scoring(llava):
    model, small = llava[2], memory.Shape(1, 4, images=1)
    ledger, part = (
        memory.Ledger(model, sharding.make_mesh(1)),
        trees.split(llava[2].abstract(), llava[2].family.eligible)[0],
    )
    largest = max(4 * x.size for x in jax.tree.leaves(part))
    drawing = 4 * trees.size(model.abstract()) + 4 * trees.size(part) + 2 * trees.size(model.abstract()) + 3 * largest
    totals = []
    for chunk in (1, 8):
        scoring, drawn, top = (
            sum(
                ledger.saliency(
                    [Rule(by=by, leaves=".*")], memory.Shape(8, 4, images=1), chunk, keep_scores=False
                ).values()
            )
            for by in ("ratio", "random", "top_k")
        )
        assert drawn == top == max(scoring, drawing)
        totals.append(drawn > scoring)
    assert "masks" not in ledger.saliency([Rule()], small, 1, keep_scores=False)
    assert totals[1] is False, "eight gradients are more than two masks"


def test_a_projection_of_whole_params_holds_its_updates_where_activations_were(llava):
    model = llava[2]
    ledger, part = memory.Ledger(model, sharding.make_mesh(1)), trees.split(model.abstract(), model.family.eligible)[0]
    shape = memory.Shape(8, 24, images=1)
    needs = ledger.training(methods.METHODS["projected"], shape)
    both = needs.get("updates beyond activations", 0) + needs["activations (estimate)"]
    assert both == max(6 * trees.size(part), needs["activations (estimate)"])
    assert "updates beyond activations" not in ledger.training(methods.METHODS["projected"], shape, SPEC)
    assert "updates beyond activations" not in ledger.training(methods.METHODS["mmunlearner"], shape)


def test_activations_are_estimated_within_a_factor_of_two_of_what_xla_allots():
    """A network wide and long enough that activations are not lost in the params."""
    from mmu_jax.data import tiny

    vision = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4)
    text = dict(
        hidden_size=128, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4
    )
    processor = tiny.processor()
    sizes = dict(image_size=24, patch_size=12, projection_dim=64)
    model = models.Model(tiny.config(processor.tokenizer, vision=vision | sizes, text=text))
    batch = make_batch(rows=16, length=256)
    lowered = jax.jit(jax.grad(mean_loss(model))).lower(model.abstract(), batch)
    allotted = lowered.compile().memory_analysis().temp_size_in_bytes
    ledger = memory.Ledger(model, jax.sharding.AbstractMesh((1, 1), ("data", "model")))
    estimate = ledger.activations(memory.Shape(16, 256, images=1))
    assert 0.5 < estimate / allotted < 2.0, (estimate, allotted)


def test_weights_that_a_pass_makes_of_the_params_are_counted(llava):
    """In another dtype, all of them; on devices that share them, those of one layer."""
    low, row = models.Model(llava[2].config, jnp.bfloat16), memory.Shape(1, 24, images=1)

    def planned(devices, dtype):
        ledger = memory.Ledger(low, jax.sharding.AbstractMesh(devices, ("data", "model")), dtype)
        return ledger.activations(dataclasses.replace(row, rows=devices[0]))

    alone, layers = planned((1, 1), jnp.bfloat16), low.abstract()["language_model"]["layers"]
    assert planned((1, 1), np.float32) - alone == 2 * trees.size(low.abstract())
    assert planned((8, 1), jnp.bfloat16) - alone == 2 * trees.size(layers) // low.config.text_config.num_hidden_layers


def test_logits_are_counted_where_they_are_made(llava):
    ledger, method = memory.Ledger(llava[2], sharding.make_mesh(1)), methods.METHODS
    every, few = (memory.Shape(8, 24, images=1, answers=answers) for answers in (0, 4))
    spared = 8 * (24 - 4) * llava[2].config.text_config.vocab_size * (4 + 8)
    assert ledger.activations(every) - ledger.activations(few) == spared
    for name, less in (("ga", spared), ("mmunlearner_official", 0)):  # which learns from all tokens
        whole, part = (sum(ledger.training(method[name], shape).values()) for shape in (every, few))
        assert whole - part == less


def test_the_cache_is_counted_to_the_byte(llava):
    model = llava[2]
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "model"))
    needs = memory.Ledger(model, mesh).generation(memory.Shape(8, 24, images=1), new_tokens=8)
    assert needs["cache"] == trees.nbytes(model.make_cache(8, 32)) // 8


def test_decoding_keeps_what_is_planned_of_the_cache(llava):
    """Where there is little else: long answers to short prompts."""
    model, rows, tokens, new = llava[2], 64, 8, 512
    batch = {
        name: jax.ShapeDtypeStruct((rows, tokens), dtype)
        for name, dtype in (("tokens", jnp.int32), ("valid", bool), ("positions", jnp.int32))
    }
    options = {"new_tokens": new, "stop": (2,), "temperature": 0.0, "top_p": 1.0}
    lowered = generate._decode.lower(model, model.abstract(), batch, jax.random.key(0), **options)
    allotted = lowered.compile().memory_analysis().temp_size_in_bytes
    ledger = memory.Ledger(model, jax.sharding.AbstractMesh((1, 1), ("data", "model")))
    needs = ledger.generation(memory.Shape(rows, tokens), new)
    planned = needs["cache"] + needs["a layer of it"]
    assert 0.7 < planned / allotted <= 1.0, (planned, allotted)


def test_a_plan_that_does_not_fit_is_refused_with_the_worst_stage():
    stages = {"small": {"params": 100}, "large": {"params": 100, "moments": 400}}
    memory.check(stages, 500, "less")
    with pytest.raises(InputError, match=r"fit into .* large needs .* \(moments .*params.*\); use LoRA"):
        memory.check(stages, 499, "use LoRA")
    said = memory.table(stages, 2**31)
    assert "2.00 GiB" in said and said.splitlines()[2].startswith("  large")


def test_capacity_is_a_share_of_the_host_on_cpu_devices():
    from mmu_jax import sharding

    whole = memory.capacity(sharding.make_mesh(1))
    assert whole > 2**30 and memory.capacity(sharding.make_mesh(4, 2)) == whole // 8


@pytest.mark.parametrize("blocks", [1, 2])
def test_grams_take_what_the_plan_says_on_every_mesh(llava, mesh, blocks):
    from mmu_jax import curvature, objectives, sharding

    folder, _, model = llava
    params, loss = hf.load(folder, model, mesh), objectives.of_params("sketch", model)
    matrices = r".*(layers|projector)/.*weight"
    leaves = rf"(?={matrices}\Z)(?:{model.family.eligible})"
    with jax.set_mesh(mesh):
        held = [
            sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(found))
            for found in (
                curvature.grams(loss, params, [sharding.put(make_batch(), mesh)], leaves=leaves, block=(i, blocks))
                for i in range(blocks)
            )
        ]
    planned = memory.Ledger(model, mesh).factors(memory.Shape(8, 24, images=1), blocks)
    assert planned["Grams"] == 3 * max(held)
