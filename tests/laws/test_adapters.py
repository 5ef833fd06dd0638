"""A directory of PEFT's is merged as PEFT merges it, and what is more than LoRA is refused by name."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmu_jax import InputError, adapters, hf, models, trees
from twins import torch_llava, torch_qwen

FAMILIES = {"llava": torch_llava, "qwen2_vl": torch_qwen, "qwen2_5_vl": lambda f: torch_qwen(f, "qwen2_5_vl")}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Family -> (folder, torch model) of a base of its own: merging changes a torch model in place."""
    made = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    return {family: (folder, FAMILIES[family](folder)) for family, folder in made.items()}


def trained(base, folder, **options):
    """Trains nothing, but leaves in ``folder`` an adapter whose B is not zero; returns what PEFT merges from it."""
    import peft
    import torch

    path, reference = base
    model = type(reference).from_pretrained(path)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**({"r": 3, "lora_alpha": 5} | options)))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload()


def by_place(reference, model):
    names = model.family.names
    return {hf.rename(key, names): value.detach().float().numpy() for key, value in reference.state_dict().items()}


def table(folder, model):
    read = [(key, value) for file in hf.files(folder) for key, value in load_file(file).items()]
    return {hf.rename(key, model.family.names): np.asarray(value, np.float32) for key, value in read}


PLAIN = {
    "names": ("llava", {"target_modules": ["q_proj", "v_proj"]}),
    "a pattern": ("llava", {"target_modules": r".*language_model.*\.(q_proj|up_proj)"}),
    "every linear layer": ("llava", {"target_modules": "all-linear"}),
    "a projector": ("llava", {"target_modules": ["linear_1", "fc2"]}),
    "an embedding and a convolution": ("llava", {"target_modules": ["embed_tokens", "patch_embedding"]}),
    "a head": ("llava", {"target_modules": ["lm_head"]}),
    "rank-stabilised": ("llava", {"target_modules": ["q_proj"], "use_rslora": True}),
    "patterns of ranks": (
        "llava",
        {
            "target_modules": ["q_proj", "o_proj"],
            "rank_pattern": {"language_model.layers.1.self_attn.q_proj": 2, "o_proj": 4},
            "alpha_pattern": {r".*layers\.0\.self_attn\.q_proj": 9},
        },
    ),
    "ranks by name in a stabilised one": (
        "qwen2_vl",
        {"target_modules": ["q_proj", "fc1"], "rank_pattern": {"fc1": 1}, "use_rslora": True},
    ),
    "all but some": ("llava", {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*vision_tower.*"}),
    "some layers": ("llava", {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}),
    "a tower of Qwen": ("qwen2_vl", {"target_modules": ["qkv", "fc2", "q_proj"]}),
    "patches of Qwen": ("qwen2_vl", {"target_modules": r".*patch_embed\.proj|.*merger\.mlp\.0"}),
    "every linear layer of Qwen": ("qwen2_vl", {"target_modules": "all-linear"}),
    "windows of Qwen 2.5": ("qwen2_5_vl", {"target_modules": ["gate_proj", "proj", "down_proj"]}),
}


@pytest.mark.parametrize("name", PLAIN)
def test_merged_as_peft_merges(bases, tmp_path, name):
    family, options = PLAIN[name]
    folder, _ = bases[family]
    theirs = trained(bases[family], tmp_path / "adapter", **options)
    assert adapters.is_adapter(tmp_path / "adapter") and not adapters.is_adapter(folder)
    assert adapters.base_of(tmp_path / "adapter") == str(folder)
    adapters.merge(tmp_path / "adapter", adapters.base_of(tmp_path / "adapter"), tmp_path / "merged")
    model = models.Model(hf.read_config(tmp_path / "merged"))
    before, ours, expected = table(folder, model), table(tmp_path / "merged", model), by_place(theirs, model)
    assert ours.keys() == before.keys() == expected.keys()
    moved = 0
    for place, value in ours.items():
        assert np.abs(value - expected[place]).max() < 1e-5, place
        moved += not np.array_equal(value, before[place])
    assert moved
    assert {f.name for f in (tmp_path / "merged").iterdir()} == {f.name for f in folder.iterdir()}


def test_sums_are_taken_in_float32_and_written_in_the_dtype_of_the_base(tmp_path):
    base = (tmp_path / "base", torch_llava(tmp_path / "base", dtype="bfloat16", shard="40KB"))
    theirs = trained(base, tmp_path / "adapter", target_modules=["q_proj"])
    adapters.merge(tmp_path / "adapter", tmp_path / "base", tmp_path / "merged")
    model = models.Model(hf.read_config(tmp_path / "merged"))
    assert {t.dtype.name for file in hf.files(tmp_path / "merged") for t in hf._tensors(file)} == {"bfloat16"}
    for place, value in table(tmp_path / "merged", model).items():
        expected = by_place(theirs, model)[place]
        assert np.abs(value - expected).max() <= 2**-8 * np.abs(expected).max(), place


def test_a_model_merged_is_loaded_as_any_other(bases, tmp_path):
    """Logits of the loaded params are those of PEFT's merged model."""
    from toys import make_batch
    from twins import logits_differ

    theirs = trained(bases["llava"], tmp_path / "adapter", target_modules="all-linear").eval()
    adapters.merge(tmp_path / "adapter", bases["llava"][0], tmp_path / "merged")
    model = models.Model(hf.read_config(tmp_path / "merged"))
    assert logits_differ(theirs, model, hf.load(tmp_path / "merged", model), make_batch()) < 1e-5


SPELLINGS = {
    "the adapter's name in it": lambda key: key.replace(".lora_A.", ".lora_A.default.").replace("B.", "B.default."),
    "before transformers 5": lambda key: key.replace("model.language_model.", "language_model.model.", 1),
    "without PEFT's prefix": lambda key: key.removeprefix("base_model.model."),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_the_factors(bases, tmp_path, name):
    trained(bases["llava"], tmp_path / "adapter", target_modules=r".*language_model.*q_proj")
    adapters.merge(tmp_path / "adapter", bases["llava"][0], tmp_path / "one")
    file = tmp_path / "adapter" / adapters.WEIGHTS
    save_file({SPELLINGS[name](key): value for key, value in load_file(file).items()}, file)
    adapters.merge(tmp_path / "adapter", bases["llava"][0], tmp_path / "other")
    assert (tmp_path / "one" / hf.SINGLE).read_bytes() == (tmp_path / "other" / hf.SINGLE).read_bytes()


@pytest.fixture(scope="module")
def adapter(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    trained(bases["llava"], folder, target_modules=["q_proj"])
    return folder


SAID = {
    "DoRA": ({"use_dora": True}, "use_dora=True"),
    "modules": ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]"),
    "biases": ({"bias": "lora_only"}, "bias='lora_only'"),
    "a bias of its own": ({"lora_bias": True}, "lora_bias=True"),
    "transposed": ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
    "tokens": ({"trainable_token_indices": [3]}, r"trainable_token_indices=\[3\]"),
    "parameters": ({"target_parameters": ["experts"]}, "target_parameters"),
    "copied layers": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    "a variant to come": ({"use_something_new": True}, "use_something_new=True"),
    "IA3": ({"peft_type": "IA3"}, "peft_type='IA3'"),
    "no type": ({"peft_type": None}, "peft_type=None"),
    "no rank": ({"r": 0}, "positive number for r .*found 0"),
    "no number": ({"lora_alpha": "16"}, "positive number for lora_alpha .*found '16'"),
    "an infinite alpha": ({"alpha_pattern": {"q_proj": float("inf")}}, "alpha_pattern .*found inf"),
    "a broken pattern": ({"rank_pattern": {"(": 3}}, "patterns and numbers for rank_pattern"),
    "a broken target": ({"target_modules": "(q_proj"}, "target_modules .*'\\(q_proj'"),
    "targets that are no names": ({"target_modules": 7}, "target_modules .*7"),
    "targets in a table": ({"target_modules": {"q_proj": [1]}}, "names for target_modules"),
    "rslora in words": ({"use_rslora": "false"}, "true or false for use_rslora .*found 'false'"),
    "rslora a number": ({"use_rslora": -1}, "true or false for use_rslora"),
    "layers in words": ({"layers_to_transform": "("}, "numbers of layers for layers_to_transform"),
    "layers true": ({"layers_to_transform": [True]}, "numbers of layers for layers_to_transform"),
    "a name without factors": ({"target_modules": ["q_proj", "v_proj"]}, "found none for v_proj"),
    "another rank": ({"r": 4}, r"factors of rank 4 of .*q_proj.*found \(3, 32\)"),
    "another target": ({"target_modules": ["k_proj"]}, "target_modules only, found .*q_proj.lora_A"),
    "excluded": ({"exclude_modules": ["q_proj"]}, "target_modules only, found .*q_proj.lora_A"),
}


@pytest.mark.parametrize("name", SAID)
def test_a_config_that_is_not_plain_lora(bases, adapter, tmp_path, name):
    change, said = SAID[name]
    shutil.copytree(adapter, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=said):
        adapters.merge(tmp_path / "adapter", bases["llava"][0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def first(key):
    return next(iter(k for k in sorted(key) if k.endswith("lora_A.weight")))


def respelled(old, new):
    return lambda t: {key.replace(old, new): value for key, value in t.items()}


HELD = {
    "one side": (lambda t: {k: v for k, v in t.items() if k != first(t)}, "lora_A and lora_B of .*found one alone"),
    "a layer less": (
        lambda t: {k: v for k, v in t.items() if "language_model.layers.1." not in k},
        r"everything that adapter_config.json adapts, found none for .*language_model.*layers\.1\..*q_proj \(1 in all\)",
    ),
    "NaN": (lambda t: t | {first(t): t[first(t)] * np.nan}, "NaN or infinity in .*lora_A"),
    "integers": (lambda t: t | {first(t): t[first(t)].astype(np.int32)}, "floating-point factors .*int32"),
    "two adapters": (lambda t: t | {first(t).replace("A.", "A.second."): t[first(t)]}, "expected one adapter"),
    "another width": (lambda t: t | {first(t): t[first(t)][:, :7].copy()}, r"factors of .*found \(3, 7\)"),
    "magnitudes": (lambda t: t | {"base_model.model.lora_magnitude_vector": np.ones(3)}, "lora_magnitude_vector"),
    "a whole weight": (lambda t: t | {"base_model.model.lm_head.weight": np.ones((2, 2))}, "lm_head.weight"),
    "nothing": (lambda t: {}, "lora_A and lora_B, found none"),
    "a trained embedding": (
        lambda t: t | {"base_model.model.model.language_model.embed_tokens.weight": np.ones((96, 32), np.float32)},
        "target_modules only, found .*embed_tokens.weight",
    ),
    "another model": (respelled("layers.0.", "layers.40."), "for weights that are not there: .*layers.40"),
}


@pytest.mark.parametrize("name", HELD)
def test_factors_that_do_not_fit(bases, adapter, tmp_path, name):
    change, said = HELD[name]
    shutil.copytree(adapter, tmp_path / "adapter")
    file = tmp_path / "adapter" / adapters.WEIGHTS
    save_file(change(load_file(file)), file)
    with pytest.raises(InputError, match=said):
        adapters.merge(tmp_path / "adapter", bases["llava"][0], tmp_path / "out")


def test_an_adapter_in_the_wrong_place(bases, adapter, tmp_path):
    base = bases["llava"][0]
    with pytest.raises(InputError, match="found an adapter .* merge it onto its base .* as vanilla.path"):
        hf.files(adapter)
    shutil.copytree(base, tmp_path / "both")
    shutil.copytree(adapter, tmp_path / "both", dirs_exist_ok=True)
    assert not adapters.is_adapter(tmp_path / "both")
    for read in (hf.read_config, hf.files, lambda path: adapters.merge(path, base, tmp_path / "out")):
        with pytest.raises(InputError, match="adapter"):
            read(tmp_path / "both")
    with pytest.raises(InputError, match="beside a whole model"):
        hf.read_config(tmp_path / "both")
    (tmp_path / "pickled").mkdir()
    shutil.copyfile(adapter / "adapter_config.json", tmp_path / "pickled" / "adapter_config.json")
    with pytest.raises(InputError, match="expected adapter_model.safetensors beside"):
        adapters.merge(tmp_path / "pickled", base, tmp_path / "out")
    (tmp_path / "pickled" / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match="the config of an adapter"):
        adapters.base_of(tmp_path / "pickled")
    (tmp_path / "pickled" / "adapter_config.json").write_text("{}")
    assert adapters.base_of(tmp_path / "pickled") == ""
    with pytest.raises(InputError, match=r"config\.json"):
        adapters.merge(adapter, adapter, tmp_path / "out")


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_a_tied_head_is_not_merged_into(tmp_path, name):
    base = (tmp_path / "base", torch_llava(tmp_path / "base", tie=True))
    trained(base, tmp_path / "adapter", target_modules=[name, "q_proj"])
    with pytest.raises(InputError, match="tie_word_embeddings"):
        adapters.merge(tmp_path / "adapter", tmp_path / "base", tmp_path / "out")


def test_only_adapted_weights_change(bases, adapter, tmp_path):
    adapters.merge(adapter, bases["llava"][0], tmp_path / "out")
    model = models.Model(hf.read_config(tmp_path / "out"))
    before, after = hf.load(bases["llava"][0], model), hf.load(tmp_path / "out", model)
    for name, leaf in trees.flatten(after).items():
        assert np.array_equal(leaf, trees.flatten(before)[name]) == ("q_proj/weight" not in name), name
