"""Eight CPU devices for the whole suite, set before jax is imported; tiny Hugging Face checkpoints made by torch."""

import atexit
import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
# The runs that the suite starts compile the same programs; each is compiled once.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

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


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    """(folder, torch model, our model) of one tiny LLaVA, float32."""
    from mmu_jax import hf, models

    folder = tmp_path_factory.mktemp("llava")
    reference = torch_llava(folder)
    return folder, reference, models.Model(hf.read_config(folder))


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
