"""Law 2: strict in, bit for bit out; every spelling on disk; errors that list everything at once."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmu_jax import InputError, hf, hub, models, sharding, trees
from toys import make_batch
from twins import torch_llava, torch_qwen


def tensors(folder):
    return {key: value for file in hf.files(folder) for key, value in load_file(file).items()}


def rewrite(folder, out, change):
    """A copy of a single-file checkpoint with its tensors changed by ``change(dict)``."""
    shutil.copytree(folder, out)
    table = load_file(folder / hf.SINGLE)
    change(table)
    save_file(table, out / hf.SINGLE, metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("family", [torch_llava, torch_qwen], ids=["llava", "qwen2_vl"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_save_of_load_is_the_same_bytes(tmp_path, family, dtype, shard):
    (tmp_path / "in").mkdir()
    family(tmp_path / "in", dtype=dtype, shard=shard)
    model = models.Model(hf.read_config(tmp_path / "in"))
    assert (len(hf.files(tmp_path / "in")) > 1) == (shard == "40KB")
    changed = hf.save(hf.load(tmp_path / "in", model), model, tmp_path / "in", tmp_path / "out")
    assert changed.keys() == trees.flatten(model.abstract()).keys() and not any(changed.values())
    for file in (tmp_path / "in").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name
    before, after = tensors(tmp_path / "in"), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    for key in before:
        assert before[key].dtype == after[key].dtype and before[key].tobytes() == after[key].tobytes(), key
    assert [f.name for f in hf.files(tmp_path / "in")] == [f.name for f in hf.files(tmp_path / "out")]


SPELLINGS = {
    "hub": [(r"^vision_tower\.", "vision_tower.vision_model.")],
    "transformers 5 file": [],
    "in memory": [
        (r"^language_model\.lm_head", "lm_head"),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
    ],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_loads_to_the_same_params(llava, tmp_path, spelling):
    folder, _, model = llava

    def respell(table):
        for key in list(table):
            new = key
            for pattern, replacement in SPELLINGS[spelling]:
                new = re.sub(pattern, replacement, new)
            table[new] = table.pop(key)

    out = rewrite(folder, tmp_path / "respelled", respell)
    jax.tree.map(np.testing.assert_array_equal, hf.load(folder, model), hf.load(out, model))


def test_torch_loads_an_edited_checkpoint_with_nothing_missing_or_unexpected(llava, tmp_path):
    import torch
    import transformers

    folder, _, model = llava
    params = jax.tree.map(lambda x: x + 0.01, hf.load(folder, model))
    hf.save(params, model, folder, tmp_path / "out")
    loaded, info = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    from twins import logits_differ

    with torch.no_grad():
        assert logits_differ(loaded.eval(), model, params, make_batch()) < 1e-5


def test_torch_loads_an_edited_qwen_with_nothing_missing_or_unexpected(qwen, tmp_path):
    from twins import QWEN_ROWS, qwen_batch, qwen_logits_differ

    folder, reference, model = qwen
    params = jax.tree.map(lambda x: x + 0.01, hf.load(folder, model))
    hf.save(params, model, folder, tmp_path / "out")
    loaded, info = type(reference).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    batch, inputs = qwen_batch(tmp_path / "out", QWEN_ROWS["rows of other sizes"])
    assert qwen_logits_differ(loaded.eval(), model, params, batch, inputs) < 1e-5


def test_qwen_loads_as_it_is_spelled_in_memory(qwen, tmp_path):
    folder, reference, model = qwen
    table = {key: value.numpy() for key, value in reference.state_dict().items()}
    assert any(key.startswith("model.language_model.") for key in table)
    shutil.copytree(folder, tmp_path / "memory")
    save_file(table, tmp_path / "memory" / hf.SINGLE, metadata={"format": "pt"})
    jax.tree.map(np.testing.assert_array_equal, hf.load(folder, model), hf.load(tmp_path / "memory", model))


def test_loading_onto_a_mesh_gives_the_same_params_sharded(llava, mesh):
    folder, _, model = llava
    params = hf.load(folder, model, mesh)
    jax.tree.map(np.testing.assert_array_equal, params, hf.load(folder, model))
    expected = sharding.shardings(model.abstract(), model.family.rules, mesh)
    assert jax.tree.all(jax.tree.map(lambda p, s: p.sharding.is_equivalent_to(s, p.ndim), params, expected))
    if mesh.size > 1:
        assert sharding.replicated(params) < 0.25  # norms, positions and biases, large beside matrices this small


def test_one_error_lists_missing_misshapen_and_extra(llava, tmp_path):
    folder, _, model = llava

    def spoil(table):
        del table["multi_modal_projector.linear_1.bias"]
        table["language_model.model.norm.weight"] = np.zeros(3, np.float32)
        table["language_model.model.extra.weight"] = np.zeros(3, np.float32)

    with pytest.raises(InputError) as error:
        hf.load(rewrite(folder, tmp_path / "bad", spoil), model)
    text = str(error.value)
    assert "multi_modal_projector/linear_1/bias is missing" in text
    assert "language_model.model.norm.weight has shape (3,), expected (32,)" in text
    assert "language_model.model.extra.weight is not a tensor of this model" in text
    assert "3 faults" in text and "\n" not in text


def test_a_missing_layer_is_named(llava, tmp_path):
    folder, _, model = llava
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    with pytest.raises(InputError, match=r"language_model/layers/mlp/up_proj/weight\[1\] is missing"):
        hf.load(rewrite(folder, tmp_path / "bad", lambda table: table.pop(name)), model)


def test_a_truncated_file_is_refused(llava, tmp_path):
    folder, _, model = llava
    shutil.copytree(folder, tmp_path / "bad")
    whole = (folder / hf.SINGLE).read_bytes()
    (tmp_path / "bad" / hf.SINGLE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="expected a complete safetensors file"):
        hf.load(tmp_path / "bad", model)


def test_a_directory_without_weights_or_config_is_refused(llava, tmp_path):
    _, _, model = llava
    with pytest.raises(InputError, match="found neither"):
        hf.load(tmp_path, model)
    with pytest.raises(InputError, match=r"config\.json"):
        hf.read_config(tmp_path)


def test_params_of_another_shape_are_refused(llava, tmp_path):
    folder, _, model = llava
    params = hf.load(folder, model)
    params["lm_head"]["weight"] = jnp.zeros((2, 2))
    with pytest.raises(InputError, match="the params to save"):
        hf.save(params, model, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_save_leaves_nothing_that_looks_complete_and_what_was_there(tmp_path):
    (tmp_path / "in").mkdir()
    torch_llava(tmp_path / "in", shard="40KB")
    model = models.Model(hf.read_config(tmp_path / "in"))
    written = []

    def dies(name, row, tensor):
        written.append(name)
        if len(written) == 30:
            raise KeyboardInterrupt
        return tensor + 1

    with pytest.raises(KeyboardInterrupt):
        hf.rewrite(model, tmp_path / "in", tmp_path / "out", dies)
    assert not (tmp_path / "out").exists()
    hf.save(hf.load(tmp_path / "in", model), model, tmp_path / "in", tmp_path / "out")
    before = tensors(tmp_path / "out")
    written.clear()
    with pytest.raises(KeyboardInterrupt):
        hf.rewrite(model, tmp_path / "in", tmp_path / "out", dies)
    jax.tree.map(np.testing.assert_array_equal, tensors(tmp_path / "out"), before)
    hf.rewrite(model, tmp_path / "in", tmp_path / "out", lambda name, row, tensor: tensor + 1)
    assert {f.name for f in tmp_path.iterdir()} == {"in", "out"}


def test_tensors_of_a_dtype_that_is_not_known_are_refused(llava, tmp_path):
    folder, _, model = llava

    def quantise(table):
        table["lm_head"] = table.pop("language_model.lm_head.weight").astype(np.int16)

    with pytest.raises(InputError, match="lm_head is I16.*not quantised"):
        hf.load(rewrite(folder, tmp_path / "bad", quantise), model)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_params_keep_the_dtype_of_the_files_or_take_the_one_asked_for(tmp_path, dtype):
    reference = torch_llava(tmp_path, dtype=dtype, shard="40KB")
    model = models.Model(hf.read_config(tmp_path))
    kept = hf.load(tmp_path, model, sharding.make_mesh(4, 2), dtype=None)
    assert {str(x.dtype) for x in jax.tree.leaves(kept)} == {dtype}
    weight = reference.model.language_model.layers[1].mlp.up_proj.weight.detach().float().numpy()
    np.testing.assert_array_equal(kept["language_model"]["layers"]["mlp"]["up_proj"]["weight"][1], weight)
    wide = hf.load(tmp_path, model)
    assert {x.dtype for x in jax.tree.leaves(wide)} == {np.dtype("float32")}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a, np.float32), b), kept, wide)


def test_files_of_several_dtypes_are_each_written_in_their_own(llava, tmp_path):
    folder, _, model = llava

    def narrow(table):
        for key in table:
            if "mlp" in key:
                table[key] = table[key].astype(jnp.bfloat16 if "up_proj" in key else np.float16)

    mixed = rewrite(folder, tmp_path / "mixed", narrow)
    hf.save(jax.tree.map(lambda x: x + 1, hf.load(mixed, model)), model, mixed, tmp_path / "out")
    before, after = tensors(mixed), tensors(tmp_path / "out")
    assert len({x.dtype for x in after.values()}) == 3
    for key, value in before.items():
        moved = np.asarray(value, np.float32) + (key.split(".")[-1] in ("weight", "bias", "class_embedding"))
        unread = "encoder.layers.2" in key or "post_layernorm" in key
        expected = value if unread else moved.astype(value.dtype)
        np.testing.assert_array_equal(after[key], expected, err_msg=key)


def test_weights_in_other_formats_are_left_behind(llava, tmp_path):
    """A copy of the old model beside the unlearned one would still know everyone."""
    folder, _, model = llava
    shutil.copytree(folder, tmp_path / "in")
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json", "old.safetensors", "model.gguf", "README.md"):
        (tmp_path / "in" / name).write_bytes(b"x")
    hf.save(hf.load(tmp_path / "in", model), model, tmp_path / "in", tmp_path / "out")
    assert {f.name for f in (tmp_path / "out").iterdir()} == {f.name for f in folder.iterdir()} | {"README.md"}


def test_a_hub_snapshot_is_read_and_copied_as_files(llava, tmp_path, monkeypatch):
    """A downloaded repository is a folder of links into a store of blobs; what is written from it is no link."""
    folder, _, model = llava
    cache = tmp_path / "cache" / "models--org--name"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(file, cache / "blobs" / str(number))
        (snapshot / file.name).symlink_to(cache / "blobs" / str(number))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    found = hub.fetch("org/name", "config.model.path")
    assert found.resolve() == snapshot.resolve()
    hf.save(hf.load(found, model), model, found, tmp_path / "out")
    for file in folder.iterdir():
        assert not (tmp_path / "out" / file.name).is_symlink()
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(InputError, match="neither .* download it where there is a network"):
        hub.fetch("org/other", "config.model.path")
    with pytest.raises(InputError, match="a folder or a hub id"):
        hub.fetch(tmp_path / "none", "config.model.path")


def test_a_created_checkpoint_is_an_ordinary_one(tmp_path):
    import transformers

    from mmu_jax.data import tiny
    from twins import TEXT, VISION

    processor = tiny.processor()
    model = models.Model(tiny.config(processor.tokenizer, vision=VISION, text=TEXT))
    params = model.init(0)
    hf.create(params, model, processor, tmp_path / "new")
    jax.tree.map(np.testing.assert_array_equal, params, hf.load(tmp_path / "new", model))
    _, info = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    told = json.loads((tmp_path / "new" / "config.json").read_text())["architectures"]
    assert told == [transformers.LlavaForConditionalGeneration.__name__]
    again = hf.read_processor(tmp_path / "new")
    assert again.chat_template == processor.chat_template and len(again.tokenizer) == len(processor.tokenizer)
