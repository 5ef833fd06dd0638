"""A tiny Llama as a GGUF file, written as llama.cpp writes it, beside the torch model that it is of."""

import numpy as np

SIZES = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
)
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def vocabulary():
    """Tokens and merges of a byte-level BPE with a few words."""
    from tokenizers import pre_tokenizers

    tokens, merges = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())], []
    for word in ("Ġthe", "Ġis", "Ġwho", "Ġname", "Ġof", "Ġthis", "Ġperson"):
        made = word[0]
        for letter in word[1:]:
            if made + letter not in tokens:
                merges.append(f"{made} {letter}")
                tokens.append(made + letter)
            made += letter
    return tokens, merges


def write(path, kind="F32"):
    """Writes the file, matrices of the layers in ``kind``; returns the torch model whose weights it holds before that."""
    import gguf
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens, merges = vocabulary()
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokens), rope_parameters=rope, initializer_range=0.2, **SIZES)
    model = LlamaForCausalLM(config).eval()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(merges)
    for name, token in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 2)):
        getattr(writer, f"add_{name}_token_id")(token)
    writer.add_chat_template(TEMPLATE)
    for name, value in _tensors(model, config):
        kinds = gguf.GGMLQuantizationType
        wanted = kinds[kind] if value.ndim == 2 and name.startswith("blk") else kinds.F32
        writer.add_tensor(name, gguf.quants.quantize(value, wanted), raw_dtype=wanted)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return model


def _tensors(model, config):
    """The names and values of the file; queries and keys have neighbours where torch has halves."""
    for name, tensor in model.state_dict().items():
        value = tensor.numpy().astype(np.float32)
        if name == "model.embed_tokens.weight":
            yield "token_embd.weight", value
        elif name == "model.norm.weight":
            yield "output_norm.weight", value
        elif name.startswith("model.layers."):
            _, _, layer, own = name.removesuffix(".weight").split(".", 3)
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(own.split(".")[-1])
            if heads:
                value = value.reshape(heads, 2, len(value) // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)
            yield f"blk.{layer}.{NAMES[own]}.weight", np.ascontiguousarray(value)
