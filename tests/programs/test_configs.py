"""The configs of full-size models on tiny directories of the real layout, from the command line to a directory torch loads."""

import functools
import json
import re

import numpy as np
import pytest

from mmu_jax import hf
from runs import ends_in_one_line
from runs import run as run_it
from xla import QUICK

run = functools.partial(run_it, flags=QUICK)
SHRUNK = [
    "--config.model.dtype=float32",
    "--config.vanilla.epochs=0.05",
    "--config.vanilla.rows.vqa=32",
    "--config.vanilla.rows.text=32",
    "--config.saliency.rows=16",
    "--config.saliency.chunk=16",
    "--config.unlearn.rows=16",
    "--config.evaluate.memorised=0.0",
    "--config.evaluate.samples=20",
    "--config.evaluate.rows=32",
    "--config.evaluate.new_tokens=2",
    "--config.evaluate.letters=False",
]


def check_all_stages(done, workdir, source, kind, methods):
    """The run ended well, and every directory is the source's layout and loads in torch without a word."""
    import transformers

    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.index("memory plan, per device") < done.stdout.index("vanilla: ")
    assert "padding: " in done.stdout and (workdir / "report.html").exists()
    before = {f.name: hf._tensors(f) for f in hf.files(source)}
    assert len(before) > 1
    for name in methods:
        folder = workdir / "unlearned" / name
        loaded, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        assert str(loaded.dtype) == "torch.bfloat16"
        hf.read_processor(folder)
        for file, tensors in before.items():
            after = hf._tensors(folder / file)
            assert [(t.key, t.dtype, t.shape, t.offset) for t in after] == [
                (t.key, t.dtype, t.shape, t.offset) for t in tensors
            ]
        for other in source.iterdir():
            if other.suffix != ".safetensors":
                assert (folder / other.name).read_bytes() == other.read_bytes()


def test_llava_from_a_directory_through_all_stages(llava_folder, tmp_path):
    options = [f"--config.model.path={llava_folder}", "--config.unlearn.methods=('ga','mmunlearner')", *SHRUNK]
    options += ["--config.data.forget=forget_10[:4]", "--config.data.retain=retain_90[:8]"]
    options += ["--config.saliency.rows=64", "--config.unlearn.rows=64"]
    done = run(tmp_path / "w", *options, config="configs/llava.py:benchmark=faces,lora=0")
    check_all_stages(done, tmp_path / "w", llava_folder, "LlavaForConditionalGeneration", ("ga", "mmunlearner"))
    proof = json.loads((tmp_path / "w" / "results" / "mmunlearner.json").read_text())["mask_proof"]
    assert sum(g["outside"] for g in proof.values()) == 0 < sum(g["inside"] for g in proof.values())


def test_the_mission_s_command_on_a_directory_of_qwen2_vl(qwen_folder, mllmu_folder, tmp_path):
    options = [f"--config.model.path={qwen_folder}", f"--config.data.source={mllmu_folder}", *SHRUNK]
    options += ["--config.unlearn.methods=('mmunlearner',)", "--config.unlearn.learning_rate.mmunlearner=0.01"]
    done = run(tmp_path / "w", *options, "--config.vanilla.rows.text=0", config="configs/qwen2_vl.py")
    check_all_stages(done, tmp_path / "w", qwen_folder, "Qwen2VLForConditionalGeneration", ("mmunlearner",))
    assert "LoRA: rank 16" in done.stdout and "leaves adapted" in done.stdout
    vanilla, after = (
        {t.key: t.map() for f in hf.files(tmp_path / "w" / n) for t in hf._tensors(f)}
        for n in ("vanilla", "unlearned/mmunlearner")
    )
    for key, value in vanilla.items():
        adapted = (
            re.search(r"(\.layers\..*_proj|blocks\..*(proj|fc1|fc2|qkv)|merger\.mlp\.\d)\.weight", key) is not None
        )
        assert (np.asarray(value).tobytes() != np.asarray(after[key]).tobytes()) == adapted, key


def test_the_memory_plan_refuses_before_anything_is_loaded(llava_folder, tmp_path):
    options = [f"--config.model.path={llava_folder}", "--config.memory.limit_gib=0.001", *SHRUNK]
    done = run(tmp_path / "w", *options, config="configs/llava.py:benchmark=faces,lora=0")
    ends_in_one_line(done, "fit into 1.0 MiB", "config.unlearn.lora.rank", "config.memory.allow_too_large=True")
    assert "memory plan, per device, of 1.0 MiB" in done.stdout
    assert not list((tmp_path / "w").rglob("*.safetensors")) and not (tmp_path / "w" / "checkpoints").exists()


def test_a_hub_id_that_cannot_be_reached_is_refused(tmp_path):
    done = run(tmp_path / "w", "--config.model.path=llava-hf/llava-1.5-7b-hf", config="configs/llava.py")
    ends_in_one_line(done, "llava-hf/llava-1.5-7b-hf", "Hugging Face hub", "config.model.path")


@pytest.mark.parametrize(("benchmark", "folder"), [("mllmu", "mllmu_folder"), ("clear", "clear_folder")])
def test_the_published_benchmarks_are_unlearned(benchmark, folder, llava_folder, tmp_path, request):
    options = [
        f"--config.model.path={llava_folder}",
        f"--config.data.source={request.getfixturevalue(folder)}",
        *SHRUNK,
    ]
    options += ["--config.unlearn.methods=('mmunlearner',)"]
    config = "configs/llava.py" if benchmark == "mllmu" else "configs/llava.py:benchmark=clear,split=5,lora=0"
    options += ["--config.vanilla.rows.text=0"] if benchmark == "mllmu" else []
    done = run(tmp_path / "w", *options, config=config)
    assert done.returncode == 0, done.stderr[-3000:]
    head = next(line for line in done.stdout.splitlines() if line.startswith("rouge_l / MCQ"))
    assert "Celebrity VQA" in head and "Forget VQA" in head
    # Celebrities of CLEAR are only to be told apart: nothing is asked of them in free text.
    (vanilla,) = (line for line in done.stdout.splitlines() if line.startswith("vanilla  "))
    assert ("– / " in vanilla) == (benchmark == "clear")
    results = json.loads((tmp_path / "w" / "results" / "mmunlearner.json").read_text())["results"]
    assert results["forget"]["vqa"]["rouge_l"]["n"] > 0 and results["celebrity"]["vqa"]["mcq"]["n"] > 0


def test_what_would_be_refused_after_hours_is_refused_at_once(llava_folder, tmp_path):
    base = [f"--config.model.path={llava_folder}", *SHRUNK]
    lora = ["--config.unlearn.lora.rank=2", "--config.vanilla.lora.rank=2", "--config.model.param_dtype=bfloat16"]
    for options, word in (
        (["--config.model.param_dtype=bfloat16"], "config.vanilla.lora.rank"),
        ([*lora, "--config.unlearn.methods=('mmunlearner_official',)"], "would do nothing"),
        (["--config.unlearn.methods=('mask_top_k',)"], "config.saliency.keep_scores"),
    ):
        ends_in_one_line(run(tmp_path / "w", *base, *options, config="configs/llava.py:benchmark=faces,lora=0"), word)
        assert not (tmp_path / "w").exists()
    # Which leaves there are is known once the data and the checkpoint's config are read; nothing is loaded before.
    wrong = [*lora, "--config.unlearn.methods=('mmunlearner_vision',)"]
    ends_in_one_line(
        run(tmp_path / "w", *base, *wrong, config="configs/llava.py:benchmark=faces,lora=0"),
        "reach the side mmunlearner_vision masks",
    )
    assert not list((tmp_path / "w").rglob("*.safetensors"))


def test_advice_is_followed_in_the_same_workdir(llava_folder, tmp_path):
    """A stage that was begun and refused is no result: the config may be changed as the message says."""
    options = [f"--config.model.path={llava_folder}", "--stages=data,base,vanilla", *SHRUNK]
    ends_in_one_line(
        run(
            tmp_path / "w",
            *options,
            "--config.memory.limit_gib=0.001",
            config="configs/llava.py:benchmark=faces,lora=0",
        ),
        "lora.rank=16",
    )
    advised = ["--config.unlearn.lora.rank=2", "--config.vanilla.lora.rank=2", "--config.model.param_dtype=bfloat16"]
    done = run(tmp_path / "w", *options, *advised, config="configs/llava.py:benchmark=faces,lora=0")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "w" / "vanilla" / "config.json").exists()
