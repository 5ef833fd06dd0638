"""Every device does its share of the arithmetic, and no activation travels where rows alone are split: read in what XLA makes."""

import math

import jax
import jax.numpy as jnp
import pytest

import hlo
from divisible import FAMILIES, SHAPE, config
from mmu_jax import lora, methods, models, programs, sharding, trees
from mmu_jax.plan import Plan
from mmu_jax.train_state import abstract
from mmu_jax.trainable import Limits, Whole

TRAINED = {"full": Whole(), "lora": lora.LoRA(4, 4.0, r"language_model/layers/.*proj/weight")}


@pytest.fixture(scope="module")
def gradient():
    """``gradient(family, devices, trained, dtype)``: the model, and the compiled gradient of a masked step; each made once."""
    from experiments import compiled

    kept, known = {}, {family: models.Model(config(family)) for family in FAMILIES}

    def made(family, devices, trained="full", dtype=jnp.float32):
        model, mesh = (
            known[family] if dtype == jnp.float32 else models.Model(config(family), dtype),
            sharding.make_mesh(*devices),
        )
        params = compiled.placed(model.abstract(), sharding.shardings(model.abstract(), model.family.rules, mesh))
        plan = Plan(methods.METHODS["mmunlearner"], 8, learning_rate=1e-4, trainable=TRAINED[trained])
        (masked,) = (i for i, phase in enumerate(plan.method.phases) if phase.masked)
        with jax.set_mesh(mesh):
            like = abstract(plan, model, params, mesh)
            batches = {name: compiled.batch(model, SHAPE, mesh) for name in plan.method.phases[masked].losses}
            mask = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bool_, sharding=p.sharding), params)
            limits = Limits(mask) if plan.trainable.limits_in_params else Limits()
            program = programs.make_gradient(plan, model, masked, like)
            return model, program.lower(like.params, batches, limits, params, None).compile()

    def get(*key):
        if key not in kept:
            kept[key] = made(*key)
        return kept[key]

    return get


def largest(model):
    """Numbers in all weights of a layer, or in the one weight beside the layers that has more."""
    sizes = {}
    for name, x in trees.flatten(model.abstract()).items():
        whole = name.split("/")[0] if trees.stacked(name) else name
        sizes[whole] = sizes.get(whole, 0) + math.prod(x.shape[trees.stacked(name) :])
    return max(sizes.values())


@pytest.mark.parametrize("devices", [(8, 1), (4, 2)], ids=["8x1", "4x2"])
@pytest.mark.parametrize("family, trained", [("llava", "full"), ("llava", "lora"), ("qwen2_vl", "full")])
def test_a_device_of_eight_computes_an_eighth(gradient, family, devices, trained):
    alone, shared = (hlo.dot_flops(gradient(family, each, trained)[1]) for each in ((1, 1), devices))
    assert 1 / 8 <= shared / alone < 1.15 / 8


@pytest.mark.parametrize("family", FAMILIES)
def test_where_rows_alone_are_split_only_weights_and_sums_travel(gradient, family):
    """What is added up over devices is a number or the gradient of a leaf; rows of activations stay where they are."""
    model, program = gradient(family, (8, 1))
    leaves = {name: x.shape[trees.stacked(name) :] for name, x in trees.flatten(model.abstract()).items()}
    of_weights = {tuple(sorted(shape)) for shape in leaves.values()}
    of_weights |= {(shape[0], math.prod(shape[1:])) for shape in leaves.values()}  # kernels, as matrices
    summed = [shape for one in hlo.collectives(program) if one.kind.startswith("all-reduce") for shape in one.made]
    # All but the embedding, which is split by width, and the biases of CLIP's keys, which have no gradient.
    assert len([shape for shape in summed if shape]) == len(leaves) - 1 - (family == "llava")
    assert [shape for shape in summed if shape and tuple(sorted(shape)) not in of_weights] == []


@pytest.mark.parametrize("devices", [(8, 1), (4, 2)], ids=["8x1", "4x2"])
@pytest.mark.parametrize("family, trained", [*((family, "full") for family in FAMILIES), ("llava", "lora")])
def test_no_more_than_a_layer_is_gathered_at_once(gradient, family, trained, devices):
    model, program = gradient(family, devices, trained)
    gathered = [
        math.prod(shape)
        for each in hlo.collectives(program)
        if each.kind.startswith("all-gather")
        for shape in each.made
    ]
    assert 0 < max(gathered) <= largest(model)


@pytest.mark.parametrize("dtype, most", [(jnp.float32, 0.8), (jnp.bfloat16, 1.2)])
def test_a_masked_step_with_lora_costs_about_what_a_full_one_does(gradient, dtype, most):
    """The masked update is a matrix as large as the weight. In float32 the two are added and contracted once, without a gradient of what
    is frozen; in bfloat16, which would swallow the update, it is contracted by itself, forth and back."""
    full, masked = (hlo.dot_flops(gradient("llava", (1, 1), trained, dtype)[1]) for trained in ("full", "lora"))
    assert masked < most * full


def test_the_arithmetic_of_a_program_is_that_of_its_loops():
    def repeated(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    program = jax.jit(repeated).lower(jnp.ones((3, 4)), jnp.ones((5, 4, 4))).compile()
    assert hlo.dot_flops(program) == 5 * 2 * 3 * 4 * 4
