"""Tiny checkpoints made by torch, and the same arithmetic in torch."""

import dataclasses

import jax
import numpy as np
from PIL import Image

from mmu_jax import hf, losses, trees
from mmu_jax.data import streams, text, vision
from mmu_jax.data.sizes import Sizes

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


def torch_inputs(batch, image_token=5):
    import torch

    inputs = {
        "input_ids": torch.tensor(batch["tokens"], dtype=torch.long),
        "attention_mask": torch.tensor(batch["valid"], dtype=torch.long),
        "position_ids": torch.tensor(batch["positions"], dtype=torch.long),
    }
    if "pixels" in batch:
        has_image = (batch["tokens"] == image_token).any(axis=1)
        pixels = batch["pixels"][has_image]
        inputs["pixel_values"] = torch.tensor(pixels.reshape(-1, *pixels.shape[2:]))
    return inputs


def logits_differ(reference, model, params, batch):
    import torch

    with torch.no_grad():
        theirs = reference(**torch_inputs(batch)).logits.float().numpy()
    ours = np.asarray(jax.jit(model.forward)(params, batch))
    scale = np.abs(theirs).max()
    return np.abs(ours - theirs)[batch["valid"]].max() / max(scale, 1.0)


def torch_gradients(reference, model, batch, inputs=None):
    """torch autograd of the mean answer loss, stacked into our tree's names."""
    import torch

    reference.zero_grad()
    logits = reference(**(inputs or torch_inputs(batch, model.config.image_token_id))).logits
    logps = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    targets = torch.tensor(batch["tokens"][:, 1:], dtype=torch.long)
    chosen = logps.gather(-1, targets[..., None])[..., 0]
    weights = torch.tensor(batch["weights"][:, 1:])
    (-(chosen * weights).sum() / weights.sum()).backward()
    table = {}
    for name, parameter in reference.named_parameters():
        if parameter.grad is not None:
            table[hf.rename(name, model.family.names)] = parameter.grad.numpy().copy()
    leaves = {}
    for name, leaf in trees.flatten(model.abstract()).items():
        if (name, None) in table:
            leaves[name] = table[name, None]
        elif (name, 0) in table:
            leaves[name] = np.stack([table[name, row] for row in range(leaf.shape[0])])
        else:
            leaves[name] = np.zeros(leaf.shape, np.float32)  # text only: torch gives the vision tower no gradient
    return leaves


def gradient_errors(reference, model, params, batch, inputs=None):
    """Leaf name -> largest error of our gradient relative to the largest entry of torch's."""
    theirs = torch_gradients(reference, model, batch, inputs)
    ours = trees.flatten(jax.jit(jax.grad(mean_loss(model)))(params, batch))
    errors = {}
    for leaf, expected in theirs.items():
        error, scale = np.abs(np.asarray(ours[leaf]) - expected).max(), np.abs(expected).max()
        if leaf.startswith("vision_tower") and leaf.endswith("k_proj/bias"):
            # Without RoPE softmax does not see a shift of all keys: the true gradient is zero, as ours; torch holds rounding noise.
            assert not np.asarray(ours[leaf]).any() and scale < 1e-6
        else:
            errors[leaf] = error / scale if scale else error
    return errors


def mean_loss(model):
    def loss(params, batch):
        total, count = losses.cross_entropy(model.forward(params, batch), batch["tokens"], batch["weights"])
        return total / count

    return loss


QWEN_SIZES = Sizes((64, 96, 128), (64, 128, 256))


def photo(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


QWEN_ROWS = {
    "text": [[], []],
    "one image": [[photo(24, 24)], [photo(24, 24, 1)]],
    "two sizes in a row": [[photo(24, 40), photo(40, 24, 1)], [photo(16, 16), photo(32, 16, 2)]],
    "rows of other sizes": [[photo(32, 32)], [photo(16, 48, 1)], [photo(48, 24, 2)]],
}


QWEN_PAIRS = [
    ("Who is this?", "Ada Becker"),
    ("Where was Ada Becker born, if anyone knows?", "Lima"),
    ("Job?", "Baker"),
]


def qwen_batch(folder, rows, side="right"):
    """The batch of ours, and what torch takes for the same rows: it finds positions itself."""
    import torch

    processor = hf.read_processor(folder)
    seen = [vision.pictures(processor, row) if row else [] for row in rows]
    encoded = dataclasses.replace(text.encode(processor, QWEN_PAIRS[: len(rows)], len(rows[0])), side=side)
    batch = streams.batch(QWEN_SIZES, encoded, range(len(rows)), seen)
    inputs = {
        "input_ids": torch.tensor(batch["tokens"], dtype=torch.long),
        "attention_mask": torch.tensor(batch["valid"], dtype=torch.long),
    }
    if any(seen):
        flat = [picture for row in seen for picture in row]
        inputs["pixel_values"] = torch.tensor(np.concatenate([p.array for p in flat]))
        inputs["image_grid_thw"] = torch.tensor([[1, *p.grid] for p in flat])
        inputs["mm_token_type_ids"] = torch.tensor(batch["tokens"] == encoded.image, dtype=torch.int)
    return batch, inputs


def qwen_logits_differ(reference, model, params, batch, inputs):
    import torch

    with torch.no_grad():
        theirs = reference(**inputs).logits.float().numpy()
    ours = np.asarray(jax.jit(model.forward)(params, batch))
    return np.abs(ours - theirs)[batch["valid"]].max() / max(np.abs(theirs).max(), 1.0)
