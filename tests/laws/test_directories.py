"""A directory means what it means to transformers: which files, which weights; and what a copy may carry."""

import errno
import os
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from folders import POINTER, edit, first, load, retensor
from mmu_jax import InputError, directory, hf, models
from twins import torch_llava

# ---- which files


def test_a_single_file_comes_before_an_old_index(tmp_path):
    torch_llava(tmp_path / "old", seed=1, shard="40KB")
    torch_llava(tmp_path / "new", seed=2)
    shutil.copyfile(tmp_path / "new" / hf.SINGLE, tmp_path / "old" / hf.SINGLE)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "old")[0], load(tmp_path / "new")[0])
    params, model = load(tmp_path / "old")
    hf.save(params, model, tmp_path / "old", tmp_path / "out")
    assert {f.name for f in (tmp_path / "out").iterdir()} == {f.name for f in (tmp_path / "new").iterdir()}


INDICES = {
    "no JSON": ("{", "not JSON"),
    "a pointer": (POINTER, "git lfs pull"),
    "a list": ("[]", "a JSON object, found list"),
    "no map": ("{}", "expected a weight_map"),
    "an empty map": ('{"weight_map": {}}', "expected a weight_map"),
    "numbers": ('{"weight_map": {"a": 1}}', "expected a weight_map"),
    "the folder above": ('{"weight_map": {"a": "../m.safetensors"}}', "inside the folder, found '../m.safetensors'"),
    "elsewhere": ('{"weight_map": {"a": "/tmp/m.safetensors"}}', "inside the folder, found '/tmp/m.safetensors'"),
    "a detour": ('{"weight_map": {"a": "x/../../m.safetensors"}}', "inside the folder"),
    "backslashes": (r'{"weight_map": {"a": "..\\m.safetensors"}}', "inside the folder"),
    "a pickle": ('{"weight_map": {"a": "pytorch_model.bin"}}', "inside the folder, found 'pytorch_model.bin'"),
    "two of a name": (
        '{"weight_map": {"a": "x/m.safetensors", "b": "y/m.safetensors"}}',
        "several called m.safetensors",
    ),
    "missing": ('{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}', "2 missing: m-1.safetensors, m-2"),
}


@pytest.mark.parametrize("name", INDICES)
def test_an_index_that_leads_astray(tmp_path, name):
    content, said = INDICES[name]
    (tmp_path / hf.INDEX).write_text(content)
    with pytest.raises(InputError, match=said) as error:
        hf.files(tmp_path)
    assert "\n" not in str(error.value)


def test_shards_in_a_folder_of_their_own_stay_there(tmp_path):
    torch_llava(tmp_path / "in", shard="40KB")
    (tmp_path / "in" / "weights").mkdir()
    for file in hf.files(tmp_path / "in"):
        file.rename(tmp_path / "in" / "weights" / file.name)
    within = {"weight_map": lambda v: v.update(weight_map={k: f"weights/{f}" for k, f in v["weight_map"].items()})}
    edit(tmp_path / "in", hf.INDEX, within["weight_map"])
    params, model = load(tmp_path / "in")
    hf.save(params, model, tmp_path / "in", tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, params, load(tmp_path / "out")[0])
    assert not [f for f in (tmp_path / "out").iterdir() if f.suffix == ".safetensors"]


STRANGERS = [
    "model.safetensors.bak", "model.SAFETENSORS", "model-old.safetensors", "model.fp16.safetensors",
    "consolidated.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json", "training_args.bin",
    "optimizer.pt", "scheduler.pt", "rng_state.pth", "model.ckpt", "tf_model.h5", "flax_model.msgpack", "model.gguf",
    "model.gguf.part1", "ggml-model-q4", "model.onnx", "model.tflite", "weights.npy", "weights.npz", "model.pkl",
    "model.pickle", "weights.tar", "weights.tar.gz", "model.zip", "model.7z", "LICENSE.pt", "train.json",
    "data.jsonl", "faces.parquet", "photo.png", "answers.txt", "run.log", "modeling_llava.py", "trainer_state.json",
    "LICENSE_people.md", "NOTICE-forget.txt", "adapter_model.safetensors", ".env", "config.json.bak", "tokenizer.json.old", "events.tfevents",
]  # fmt: skip
WELCOME = [
    "README.md", "LICENSE", "LICENSE.txt", "LICENSE-APACHE", "LICENSE_MIT.md", "NOTICE", "USE_POLICY.md", "generation_config.json",
    "merges.txt", "vocab.json", "vocab.txt", "special_tokens_map.json", "added_tokens.json",
    "preprocessor_config.json", "video_preprocessor_config.json",
]  # fmt: skip


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_copy_carries_what_is_named_and_nothing_else(copy, tmp_path, family):
    assert len(STRANGERS) > 30
    folder, weights = copy(family), (tmp_path / "copy" / hf.SINGLE).read_bytes()
    native = {str(f.relative_to(folder)) for f in folder.rglob("*")}
    for name in STRANGERS:
        (folder / name).write_bytes(weights)
    for name in WELCOME:
        if name not in native:
            (folder / name).write_text("{}")
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    (folder / "spiece.model").write_bytes(weights)
    (folder / "COPYING").write_bytes(weights)
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "model.safetensors").write_bytes(weights)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates" / "rag.safetensors").write_bytes(weights)
    (folder / "additional_chat_templates" / "bad.jinja").write_bytes(weights)
    (folder / "sentencepiece.model").symlink_to(folder / hf.SINGLE)
    (folder / "NOTICE.txt").symlink_to(folder / "pytorch_model.bin")
    (folder / "USE_POLICY").symlink_to(tmp_path / "nowhere")
    table = load_file(folder / hf.SINGLE)
    model = models.Model(hf.read_config(folder))
    hf.rewrite(model, folder, tmp_path / "out", lambda name, row, tensor: tensor + 1)
    found = {str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*")}
    assert found == native | set(WELCOME) | {
        "tokenizer.model",
        "additional_chat_templates",
        "additional_chat_templates/rag.jinja",
    }
    after = load_file(tmp_path / "out" / hf.SINGLE)
    assert after.keys() == table.keys() and not any(f.is_symlink() for f in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("name", ["README.md", "config.json", "LICENSE", "tokenizer.json", "chat_template.jinja"])
def test_a_link_out_of_the_folder_is_refused_before_anything_is_made(copy, tmp_path, name):
    folder = copy()
    (tmp_path / "elsewhere").write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"Ada, 555-1234")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "elsewhere")
    model = models.Model(hf.read_config(folder))
    for use in (hf.survey, lambda path, model: hf.rewrite(model, path, tmp_path / "out", lambda *_: None)):
        with pytest.raises(InputError, match=rf"links out of .*{name} -> .*elsewhere.*copies in their place"):
            use(folder, model)
    assert not (tmp_path / "out").exists()


def test_links_within_the_folder_and_into_the_cache_of_the_hub_are_files(copy, tmp_path):
    folder, blobs = copy(), tmp_path / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (folder / "tokenizer.json").rename(blobs / "c0ffee")
    (folder / "tokenizer.json").symlink_to(blobs / "c0ffee")
    (folder / "README.md").write_text("Ada")
    (folder / "LICENSE").symlink_to("README.md")
    directory.check_links(folder)
    assert {"tokenizer.json", "README.md", "LICENSE"} <= set(map(str, directory.carried(folder)))


def test_a_linked_folder_of_templates_and_a_file_beyond_all_size_stay_behind(copy, tmp_path, monkeypatch):
    folder = copy()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "other.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    (folder / "vocab.json").write_text("x" * 1000)
    monkeypatch.setattr(directory, "LARGEST", 999_999)
    assert "vocab.json" in map(str, directory.carried(folder))
    monkeypatch.setattr(directory, "LARGEST", 999)
    names = set(map(str, directory.carried(folder)))
    assert not names & {"vocab.json", "additional_chat_templates/other.jinja"}


# ---- which weights


def spoiled(value):
    def change(table):
        key = first(table)
        flat = table[key].copy()
        flat.flat[7] = value
        return table | {key: flat}

    return change


WEIGHTS = {
    "NaN": (spoiled(np.nan), "NaN or infinity in .*q_proj.weight of .*model.safetensors"),
    "infinity": (spoiled(-np.inf), "NaN or infinity in .*q_proj.weight"),
    "half a NaN": (lambda t: {k: v.astype(np.float16) for k, v in spoiled(np.nan)(t).items()}, "NaN or infinity"),
    "integers": (lambda t: t | {first(t): t[first(t)].astype(np.int32)}, "q_proj.weight is int32, expected floating"),
    "booleans": (lambda t: t | {first(t): t[first(t)] > 0}, "q_proj.weight is bool, expected floating"),
    "bytes": (lambda t: t | {first(t): t[first(t)].astype(np.uint8)}, "q_proj.weight is uint8, expected floating"),
    "trainer's count": (lambda t: t | {"step": np.array(7)}, "step is not a tensor of this model"),
    "an empty one": (lambda t: t | {first(t): np.zeros(0, np.float32)}, r"q_proj.weight has shape \(0,\)"),
    "PEFT's prefix": (lambda t: {f"base_model.model.{k}": v for k, v in t.items()}, "faults"),
    "DDP's prefix": (lambda t: {f"module.{k}": v for k, v in t.items()}, "faults"),
    "a factor": (lambda t: t | {first(t).replace("weight", "lora_A.weight"): np.zeros((2, 2))}, "lora_A.weight is not"),
}


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_none(copy, family, name):
    change, said = WEIGHTS[name]
    folder = copy(family)
    retensor(folder, change)
    with pytest.raises(InputError, match=said) as error:
        load(folder)
    assert "\n" not in str(error.value)


def raw(header, body=b"\0" * 8):
    start = header.encode()
    return len(start).to_bytes(8, "little") + start + body


ONE = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
FILES = {
    "a pointer": (POINTER.encode(), "git lfs pull"),
    "nothing": (b"", "complete safetensors file"),
    "words": (b"hello", "complete safetensors file"),
    "a name twice": (raw("{" + ONE + ", " + ONE.replace("0, 4", "4, 8") + "}"), "a twice in|complete safetensors file"),
    "float8": (raw(ONE.join("{}").replace("F32", "F8_E4M3").replace("4]", "1]"), b"\0"), "a is F8_E4M3"),
    "a foreign dtype": (raw(ONE.join("{}").replace("F32", "Q4")), "complete safetensors file"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_weights_that_is_none(tmp_path, name):
    content, said = FILES[name]
    (tmp_path / hf.SINGLE).write_bytes(content)
    with pytest.raises(InputError, match=said):
        hf._tensors(tmp_path / hf.SINGLE)


def test_a_tensor_in_two_shards_is_named(tmp_path):
    torch_llava(tmp_path, shard="40KB")
    one, two = hf.files(tmp_path)[:2]
    save_file(load_file(two) | {first(load_file(one), ""): np.zeros(1, np.float32)}, two, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"{first(load_file(one), '')} is there twice"):
        load(tmp_path)


def test_what_is_not_finite_is_not_written(whole, tmp_path):
    model = models.Model(hf.read_config(whole["llava"]))
    with pytest.raises(InputError, match="NaN or infinity in what would be written as .*up_proj"):
        hf.rewrite(model, whole["llava"], tmp_path / "out", lambda n, r, t: t * np.nan if "up_proj" in n else None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("other_disk", [False, True])
def test_a_directory_is_moved_whole_onto_another_disk_too(other_disk, tmp_path, monkeypatch):
    def rename(made, out):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    (tmp_path / "made" / "deep").mkdir(parents=True)
    (tmp_path / "made" / "deep" / "x").write_text("x")
    if other_disk:
        monkeypatch.setattr(os, "rename", rename)
    directory.move(tmp_path / "made", tmp_path / "out")
    assert (tmp_path / "out" / "deep" / "x").read_text() == "x" and not (tmp_path / "made").exists()
    with pytest.raises(InputError, match="expected room and permission to write"):
        directory.move(tmp_path / "out" / "deep" / "x", tmp_path / "none" / "x")
