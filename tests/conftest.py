"""Eight CPU devices for the whole suite, set before jax is imported; tiny Hugging Face checkpoints made by torch."""

import atexit
import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
# The runs that the suite starts, and its two processes, compile the same programs; each is compiled once.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

MESHES = [(1, 1), (8, 1), (4, 2), (1, 8)]
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 12,
    "projection_dim": 16,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}


@pytest.fixture(params=MESHES, ids=lambda m: f"{m[0]}x{m[1]}")
def mesh(request):
    from mmu_jax import sharding

    return sharding.make_mesh(*request.param)


def torch_llava(folder, *, text=(), dtype="float32", tie=False, seed=0, shard="5GB", **options):
    """A tiny random LLaVA of ``transformers`` saved to ``folder``; returns the torch model."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(vocab_size=96, max_position_embeddings=128, **(TEXT | dict(text))),
        image_token_id=5,
        image_seq_length=4,
        tie_word_embeddings=tie,
        **options,
    )
    model = LlavaForConditionalGeneration(config).to(getattr(torch, dtype)).eval()
    with torch.no_grad():  # the 0.02 of the default init hides mistakes in biases and norms
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size=shard)
    return model


CHATML = (
    "{% for message in messages %}{% if loop.first %}<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]


def qwen_processor(folder):
    """Writes tokenizer, template and image processor of a Qwen2-VL with 4 x 4 patches to ``folder``; returns the tokenizer."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from mmu_jax.data import tiny

    backend = Tokenizer.from_str(tiny.tokenizer().backend_tokenizer.to_str())
    backend.add_special_tokens(QWEN_SPECIAL)
    backend.post_processor = None  # as Qwen2's: no token before the text
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<pad>", chat_template=CHATML
    )
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 16 * 16, "longest_edge": 32 * 48}
    Qwen2VLImageProcessorPil(patch_size=4, size=size).save_pretrained(folder)
    return tokenizer


def torch_qwen(folder, kind="qwen2_vl", *, text=(), dtype="float32", tie=False, seed=0, shard="5GB"):
    """A tiny random Qwen2-VL or Qwen2.5-VL of ``transformers`` saved to ``folder`` with its processor; returns the torch model."""
    import torch
    import transformers

    tokenizer = qwen_processor(folder)
    torch.manual_seed(seed)
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}[kind]
    vision = {"depth": 3, "num_heads": 2, "patch_size": 4}
    if kind == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "window_size": 16}
        vision |= {"fullatt_block_indexes": [1]}
    rope = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [1, 1, 2] if not text else dict(text).pop("mrope"),
    }
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2} | dict(text)
    sizes.pop("mrope", None)
    config = getattr(transformers, f"{name}Config")(
        vision_config=vision,
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "max_position_embeddings": 256,
            "rope_parameters": rope,
            **sizes,
        },
        tie_word_embeddings=tie,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).to(getattr(torch, dtype)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size=shard)
    return model


@pytest.fixture(scope="session", params=["qwen2_vl", "qwen2_5_vl"])
def qwen(request, tmp_path_factory):
    """(folder, torch model, our model) of a tiny Qwen2-VL and a tiny Qwen2.5-VL, float32."""
    from mmu_jax import hf, models

    folder = tmp_path_factory.mktemp(request.param)
    reference = torch_qwen(folder, request.param)
    return folder, reference, models.Model(hf.read_config(folder))


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    """(folder, torch model, our model) of one tiny LLaVA, float32."""
    from mmu_jax import hf, models

    folder = tmp_path_factory.mktemp("llava")
    reference = torch_llava(folder)
    return folder, reference, models.Model(hf.read_config(folder))


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Family -> a directory with weights, config, tokenizer and processor."""
    from transformers import LlavaForConditionalGeneration

    from mmu_jax.data import tiny

    root, processor = tmp_path_factory.mktemp("whole"), tiny.processor()
    processor.save_pretrained(root / "llava")
    config = tiny.config(processor.tokenizer, vision=VISION, text=TEXT)
    LlavaForConditionalGeneration(config).save_pretrained(root / "llava")
    torch_qwen(root / "qwen2_vl")
    return {"llava": root / "llava", "qwen2_vl": root / "qwen2_vl"}


@pytest.fixture
def copy(whole, tmp_path):
    """``copy(family)``, a directory of ``whole`` to change."""
    return lambda family="llava": shutil.copytree(whole[family], tmp_path / "copy")


def make_batch(rows=8, length=24, images=1, image_tokens=4, seed=0, side="right"):
    """A random batch: every row with ``images`` images, answers in the last tokens, two rows padded."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(6, 96, (rows, length)).astype(np.int32)
    valid = np.ones((rows, length), bool)
    pad = slice(length - 3, length) if side == "right" else slice(0, 3)
    valid[1::3, pad] = False
    for row in range(rows if images else 0):
        start = 4 + rng.integers(0, 3)
        tokens[row, start : start + images * image_tokens] = 5
    weights = np.zeros((rows, length), np.float32)
    weights[:, -7:-2] = 1.0
    weights *= valid
    positions = np.maximum(np.cumsum(valid, axis=1) - 1, 0).astype(np.int32)
    batch = {"tokens": tokens, "valid": valid, "weights": weights, "positions": positions}
    batch["row"] = np.arange(rows, dtype=np.int32)
    if images:
        batch["pixels"] = rng.normal(size=(rows, images, 3, 24, 24)).astype(np.float32)
    return batch


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield
