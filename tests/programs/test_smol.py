"""The config of the second size, around a tiny language model out of a GGUF file, from the command line to its report."""

import json

import pytest

import gguf_file
from runs import run
from xla import QUICK

SHRUNK = [
    "--config.model.dtype=float32",
    "--config.model.vision.hidden_size=16",
    "--config.model.vision.intermediate_size=16",
    "--config.model.vision.num_hidden_layers=2",
    "--config.model.vision.num_attention_heads=2",
    "--config.vanilla.epochs=0.05",
    "--config.gold=False",
    "--config.data.forget=forget_10[:4]",
    "--config.data.retain=retain_90[:8]",
    "--config.unlearn.methods=('projected',)",
    "--config.unlearn.rows=64",
    "--config.unlearn.epochs=1.0",
    "--config.unlearn.stop.every=0",
    "--config.factors.batches=2",
    "--config.general.drawn=40",
    "--config.evaluate.memorised=0.0",
    "--config.evaluate.samples=50",
    "--config.evaluate.rows=256",
    "--config.evaluate.new_tokens=2",
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("language") / "tiny.gguf"
    gguf_file.write(path)
    return path


def test_a_llava_around_a_language_model_goes_through_all_stages(file, tmp_path):
    import transformers

    w = tmp_path / "w"
    done = run(w, f"--config.model.language={file}", *SHRUNK, config="configs/smol.py", flags=QUICK)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "parameters train whole ((vision_tower|multi_modal_projector)/.*)" in done.stdout
    assert "% of tokens; rehearsal" in done.stdout, "what is taught beside the lives"
    for model in ("vanilla", "projected"):
        value = json.loads((w / "general" / model / "everyday.json").read_text())
        assert value["results"]["Everyday questions"]["n"] == 40
    assert "Everyday questions" in (w / "report.md").read_text()
    for folder in (w / "vanilla", w / "unlearned" / "projected"):
        loaded, info = transformers.LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
