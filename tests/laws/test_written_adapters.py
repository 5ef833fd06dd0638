"""What LoRA trained is written as an adapter that PEFT loads whole and merges to the weights of the exported directory."""

import contextlib
import dataclasses
import io
import json
import pathlib
import re
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mmu_jax import InputError, adapters, curvature, hf, lora, masks, models, sharding, trees
from mmu_jax.directory import ADAPTER
from mmu_jax.study import records
from mmu_jax.study.study import Study
from mmu_jax.trainable import LowRank, Whole
from runs import small_config
from toys import SPEC, make_batch, random_factors, random_mask, run
from twins import QWEN_ROWS, qwen_batch, torch_inputs, torch_llava

# Every linear layer of a block of tower and decoder, and the projector: more than the twenty names beyond which PEFT shortens a list.
EVERY = dataclasses.replace(
    SPEC, targets=r".*(layers|blocks|projector|merger)/.*(proj|fc1|fc2|qkv|linear_1|mlp/0)/weight"
)
PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")


def is_factors(x):
    return isinstance(x, lora.Adapter)


def drawn(spec, params, kinds, size=0.05):
    """Adapters of those kinds as training leaves them: with a B that is not zero."""

    def leaf(factors):
        return lora.Adapter(factors.a, size * jax.random.normal(jax.random.key(factors.b.size), factors.b.shape))

    made = {kind: lora.init(spec, params, jax.random.key(i)) for i, kind in enumerate(kinds)}
    return {kind: jax.tree.map(leaf, tree, is_leaf=is_factors) for kind, tree in made.items()}


def export(base, model, out, spec, trained, mask=None, factors=None):
    """``out/whole`` and ``out/adapter``, as a run leaves them."""
    hf.rewrite(model, base, out / "whole", lora.merge(spec, trained, mask, factors))
    adapters.write(lora.low_rank(spec, trained, mask, factors), model, str(base), out / "adapter")


def load(folder):
    import transformers

    return transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()


def merged_by_peft(folder, **options):
    """What PEFT merges onto the base that an adapter names; every factor of the file is in it, and nothing else."""
    import peft

    config = json.loads((folder / "adapter_config.json").read_text())
    base = load(config["base_model_name_or_path"])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        wrapped = peft.PeftModel.from_pretrained(base, folder)
    assert not [str(w.message) for w in said if re.search("missing|unexpected", str(w.message), re.IGNORECASE)]
    there = {name.replace(".default.", "."): p for name, p in wrapped.named_parameters() if ".lora_" in name}
    file = load_file(folder / adapters.WEIGHTS)
    assert there.keys() == file.keys() and len(file) == 2 * len(config["target_modules"])
    assert all(np.array_equal(there[key].detach().numpy(), value) for key, value in file.items())
    return wrapped.merge_and_unload(**options).eval()


def weights(model):
    return {name: value.detach().float().numpy() for name, value in model.state_dict().items()}


def furthest(first, second):
    assert first.keys() == second.keys()
    return max(np.abs(first[key] - second[key]).max() for key in first)


def check(base, model, out, kinds, inputs):
    import torch

    params = hf.load(base, model)
    factors = random_factors(model, params) if "projected" in kinds else None
    export(base, model, out, EVERY, drawn(EVERY, params, kinds), factors=factors)
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert len(config["target_modules"]) > 20 and config["r"] == len(kinds) * EVERY.rank
    adapters.merge(out / "adapter", adapters.base_of(out / "adapter"), out / "merged")
    ours, read = (load_file(out / name / hf.SINGLE) for name in ("whole", "merged"))
    before = load_file(base / hf.SINGLE)
    assert furthest(ours, read) < 1e-5 < furthest(ours, before)
    theirs, whole = merged_by_peft(out / "adapter"), load(out / "whole")
    assert furthest(weights(theirs), weights(whole)) < 1e-5
    with torch.no_grad():
        found, expected = (m(**inputs).logits.numpy() for m in (theirs, whole))
    assert np.abs(found - expected).max() < 1e-5 * max(np.abs(expected).max(), 1.0)


KINDS = [("free",), ("projected",), ("free", "projected")]


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_peft_merges_an_adapter_of_llava_to_the_exported_weights(llava, tmp_path, kinds):
    folder, _, model = llava
    check(folder, model, tmp_path, kinds, torch_inputs(make_batch()))


@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_peft_merges_an_adapter_of_qwen_to_the_exported_weights(qwen, tmp_path, kinds):
    folder, _, model = qwen
    check(folder, model, tmp_path, kinds, qwen_batch(folder, QWEN_ROWS["rows of other sizes"])[1])


METHODS = {
    "ga": {"free"},
    "projected": {"projected"},
    "projected_retain": {"projected"},
    "linear_only": {"free", "masked"},
}


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_trained_is_what_its_adapter_adds(llava, tmp_path, name):
    """On a mesh, where factors and masks lie on several devices."""
    folder, _, model = llava
    mesh = sharding.make_mesh(4, 2)
    params = hf.load(folder, model, mesh)
    factors = random_factors(model, params) if "projected" in METHODS[name] else None
    linear = trees.select(params, model.family.eligible)
    mask = jax.tree.map(lambda p, yes: jax.device_put(jnp.full(p.shape, yes), p.sharding), params, linear)
    mask = mask if "masked" in METHODS[name] else None
    state = run(model, params, name, mask=mask, factors=factors, trainable=SPEC, iterations=4, mesh=mesh)
    assert set(state.params) == METHODS[name]
    assert all(np.abs(x.b).max() > 0 for x in jax.tree.leaves(state.params, is_leaf=is_factors))
    export(folder, model, tmp_path, SPEC, state.params, mask, factors)
    adapters.merge(tmp_path / "adapter", folder, tmp_path / "merged")
    ours, read = (load_file(tmp_path / each / hf.SINGLE) for each in ("whole", "merged"))
    assert furthest(ours, read) < 1e-5 and furthest(ours, load_file(folder / hf.SINGLE)) > 0


def test_in_bfloat16_sums_are_rounded_once(tmp_path):
    """By us and by PEFT; where PEFT merges into a copy it rounds the update first, and then the sum."""
    unit, float32 = 2.0**-8, 1 + 1e-4  # half a step of eight significant bits; sums are taken in float32
    base = tmp_path / "base"
    torch_llava(base, dtype="bfloat16")
    model = models.Model(hf.read_config(base))
    trained = drawn(EVERY, hf.load(base, model), ("free",), size=0.2)
    export(base, model, tmp_path, EVERY, trained)
    old, ours = (weights(load(folder)) for folder in (base, tmp_path / "whole"))
    once, twice = (weights(merged_by_peft(tmp_path / "adapter", safe_merge=safe)) for safe in (False, True))
    factors, seen = load_file(tmp_path / "adapter" / adapters.WEIGHTS), 0
    for key, weight in old.items():
        pair = [factors.get(f"base_model.model.{key.removesuffix('weight')}lora_{side}.weight") for side in "BA"]
        if pair[0] is None:
            assert all(np.array_equal(weight, each[key]) for each in (ours, once, twice))
            continue
        seen += 1
        update = EVERY.scale * np.matmul(*pair, dtype=np.float64)
        total = weight + update
        for each in (ours, once):
            assert (np.abs(each[key] - total) <= float32 * unit * np.abs(total)).all(), key
        both = (1 + unit) * np.abs(update) + np.abs(total)
        assert (np.abs(twice[key] - total) <= float32 * unit * both).all(), key
    assert 2 * seen == len(factors) and furthest(ours, twice) > 0


# ---- what is a product of factors, and what is not


def trained_and_mask(llava, kinds=("free", "masked")):
    folder, _, model = llava
    params = hf.load(folder, model)
    return folder, model, params, drawn(SPEC, params, kinds)


def test_a_mask_that_keeps_single_entries_leaves_no_factors(llava, tmp_path):
    folder, model, params, trained = trained_and_mask(llava)
    low = lora.low_rank(SPEC, trained, masks.restrict(random_mask(model, params), ".*proj/weight"))
    targets = [name for name, yes in trees.flatten(trees.select(params, SPEC.targets)).items() if yes]
    touched = [name for name in targets if "proj/weight" in name]
    assert low.others == touched and touched
    with pytest.raises(InputError, match="product of factors"):
        adapters.write(low, model, str(folder), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_nothing_is_no_adapter(llava, tmp_path):
    with pytest.raises(InputError, match="product of factors"):
        adapters.write(LowRank({}, {}, 1.0, []), llava[2], "base", tmp_path / "adapter")


def test_a_mask_of_whole_layers_is_kept_by_factors(llava, tmp_path):
    """All of the first layer of a leaf and nothing of the second; ``linear_only`` masks so."""
    folder, model, params, trained = trained_and_mask(llava)
    mask = trees.map_named(lambda name, p: jnp.zeros(p.shape, bool).at[0].set("q_proj" in name), params)
    low = lora.low_rank(SPEC, trained, mask)
    assert not low.others and {a.shape[-2] for a in low.a.values()} == {2 * SPEC.rank}
    export(folder, model, tmp_path, SPEC, trained, mask)
    adapters.merge(tmp_path / "adapter", folder, tmp_path / "merged")
    assert furthest(*(load_file(tmp_path / each / hf.SINGLE) for each in ("whole", "merged"))) < 1e-5


@pytest.mark.parametrize("still", ["B", "mask"])
def test_masked_factors_that_add_nothing_cost_no_rank(llava, still):
    _, model, params, trained = trained_and_mask(llava)
    mask = random_mask(model, params)
    if still == "B":
        trained["masked"] = lora.init(SPEC, params, jax.random.key(0))
    else:
        mask = jax.tree.map(jnp.zeros_like, mask)
    low = lora.low_rank(SPEC, trained, mask)
    assert not low.others
    for name, factors in trees.flatten(trained["free"], is_leaf=is_factors).items():
        np.testing.assert_array_equal(low.a[name], factors.a)
        np.testing.assert_array_equal(low.b[name], factors.b)


def test_a_weight_without_factors_stays_as_it_is(llava, tmp_path):
    """Projected adapters of it add nothing; beside free ones its rank is that of all."""
    folder, model, params, trained = trained_and_mask(llava, ("free", "projected"))
    found = curvature.by_name(random_factors(model, params))
    missing = next(name for name in found if re.fullmatch(SPEC.targets, name))
    del found[missing]
    factors = curvature.match(found, params)
    alone = lora.low_rank(SPEC, {"projected": trained["projected"]}, None, factors)
    assert missing not in alone.a and alone.a
    assert {a.shape[-2] for a in lora.low_rank(SPEC, trained, None, factors).a.values()} == {2 * SPEC.rank}
    export(folder, model, tmp_path, SPEC, trained, factors=factors)
    adapters.merge(tmp_path / "adapter", folder, tmp_path / "merged")
    assert furthest(*(load_file(tmp_path / each / hf.SINGLE) for each in ("whole", "merged"))) < 1e-5


def test_the_scale_of_an_adapter_is_that_of_training(llava, tmp_path):
    folder, _, model = llava
    params = hf.load(folder, model)
    for rank, alpha, said in ((3, 6.0, 6), (3, 5.0, 5), (4, 0.5, 0.5)):
        spec = dataclasses.replace(SPEC, rank=rank, alpha=alpha)
        adapters.write(lora.low_rank(spec, drawn(spec, params, ("free",))), model, "org/name", tmp_path / "adapter")
        config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"]) == (rank, said) and type(config["lora_alpha"]) is type(said)
        assert adapters.base_of(tmp_path / "adapter") == "org/name"


def test_params_that_train_themselves_have_no_factors():
    assert Whole().low_rank({}, None) is None


# ---- what a run leaves


@pytest.fixture(scope="module")
def small(whole, prepared):
    """Two methods by LoRA on a model that is given, one of which masks single entries."""
    config = small_config()
    config.vanilla.path, config.data.path = str(whole["llava"]), str(prepared)
    config.attack.names, config.unlearn.methods, config.unlearn.lora.rank = (), ("ga", "mmunlearner"), 2
    return config


@pytest.fixture(scope="module")
def left(small, tmp_path_factory):
    """The workdir of such a run, in which an older adapter lay, and what it said."""
    workdir, said = tmp_path_factory.mktemp("left") / "w", io.StringIO()
    (workdir / "adapters" / "mmunlearner").mkdir(parents=True)
    with contextlib.redirect_stdout(said):
        Study(small, workdir).run(["data", "saliency", "unlearn"])
    return workdir, said.getvalue()


def test_a_run_leaves_an_adapter_of_its_vanilla_model(left, whole, tmp_path):
    workdir, _ = left
    adapter, expected = workdir / "adapters" / "ga", weights(load(workdir / "unlearned" / "ga"))
    assert records.read(workdir, "unlearn/ga")["result"]["adapter"] == {"rank": 2, "weights": 7}
    assert {f.name for f in adapter.iterdir()} == {ADAPTER, adapters.WEIGHTS, "README.md"}
    assert len({f.stat().st_mode for f in adapter.iterdir()}) == 1  # who may read one may read all
    assert furthest(weights(merged_by_peft(adapter)), expected) < 1e-5
    adapters.merge(adapter, adapters.base_of(adapter), tmp_path / "merged")
    assert (
        furthest(weights(load(tmp_path / "merged")), expected)
        < 1e-5
        < furthest(weights(load(whole["llava"])), expected)
    )


def test_an_adapter_names_its_vanilla_model_as_the_config_does(left, whole, tmp_path):
    assert adapters.base_of(left[0] / "adapters" / "ga") == str(whole["llava"])
    config = small_config()
    assert Study(config, tmp_path / "w").work.vanilla_name == str(tmp_path / "w" / "vanilla")
    config.vanilla.path = str(left[0] / "adapters" / "ga")  # merged into the workdir first
    assert Study(config, tmp_path / "w").work.vanilla_name == str(tmp_path / "w" / "vanilla")


def test_a_run_says_why_there_is_no_adapter(left):
    workdir, said = left
    why = records.read(workdir, "unlearn/mmunlearner")["result"]["adapter"]["none"]
    assert "mask keeps single entries" in why and (workdir / "unlearned" / "mmunlearner").is_dir()
    assert [line for line in said.splitlines() if "no adapter" in line and why in line]
    assert [path.name for path in (workdir / "adapters").iterdir()] == ["ga"]  # that of another model is gone


def test_an_adapter_that_is_gone_is_told(left, small, tmp_path, capsys):
    workdir, _ = left
    shutil.copytree(workdir, tmp_path / "w")
    Study(small, tmp_path / "w").run(["unlearn"])
    assert "is gone" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "w" / "adapters")
    Study(small, tmp_path / "w").run(["unlearn"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "is gone" in line)
    assert "adapters/ga" in line and "stages/unlearn/ga.json" in line


def test_the_page_loads_both_forms_as_printed(left, tmp_path, monkeypatch, capsys):
    workdir, _ = left
    monkeypatch.chdir(tmp_path)
    pathlib.Path("runs").mkdir()
    pathlib.Path("runs/mine").symlink_to(workdir)
    Image.new("RGB", (24, 24), "red").save("face.png")
    directory, adapter = (
        code.replace("/projected", "/ga") for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    )
    names = {}
    exec(directory, names)
    assert capsys.readouterr().out.endswith("\n") and names["answer"].shape[1] > names["inputs"]["input_ids"].shape[1]
    whole = names["model"]
    exec(adapter, names)
    assert furthest(weights(names["model"]), weights(whole)) < 1e-5


def test_the_card_of_an_adapter_says_how_to_load_it(left):
    card = (left[0] / "adapters" / "ga" / "README.md").read_text()
    lines = [line.strip() for line in card.splitlines() if line.startswith("    ")]
    names = {}
    exec("\n".join(lines).replace("FOLDER OF THIS FILE", str(left[0] / "adapters" / "ga")), names)
    assert furthest(weights(names["model"]), weights(load(left[0] / "unlearned" / "ga"))) < 1e-5
