"""The embedded default's processor and config: a LLaVA of about 1.3 M parameters with its own tokenizer."""

from typing import TYPE_CHECKING

from mmu_jax.data import Processor
from mmu_jax.data.sets import faces

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlavaConfig, PreTrainedTokenizerBase

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% else %} ASSISTANT: {% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def corpus() -> list[str]:
    """Every sentence of the embedded benchmark, as the chat template renders it."""
    lives = faces.profiles()
    facts = sorted({f" {value}" for life in lives for value in life.values()})
    subjects = ["this person", *(life["name"] for life in lives)]
    templates = [(t, fact) for fact, own in faces.QUESTIONS.items() for t in (*faces.FRAMES, *own)]
    asked = [f"USER: {faces.ask(t, fact, s)} ASSISTANT:" for s in subjects for t, fact in templates]
    return asked + facts * 5


def tokenizer(vocab_size: int = 768) -> "PreTrainedTokenizerBase":
    """Byte-level BPE trained on the corpus; nothing is ever out of vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(corpus(), trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=256,
    )


def processor(image_size: int = 24, patch_size: int = 12, tokens: "PreTrainedTokenizerBase | None" = None) -> Processor:
    """An ordinary LLaVA processor for ``image_size`` square photographs; default the embedded tokenizer and template."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(
        size={"height": image_size, "width": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
    )
    return LlavaProcessor(
        images,
        tokens or tokenizer(),
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        chat_template=tokens.chat_template if tokens else CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def config(tokens: "PreTrainedTokenizerBase", *, vision: dict, text: "dict | LlamaConfig") -> "LlavaConfig":
    """A ``transformers.LlavaConfig`` for the tokenizer; ``vision`` and ``text`` are the sizes of the two networks.

    ``text`` may be the whole config of a language model that there is.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    if isinstance(text, dict):
        text = LlamaConfig(
            vocab_size=len(tokens),
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
            max_position_embeddings=256,
            **text,
        )
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=text,
        tie_word_embeddings=text.tie_word_embeddings,
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        image_seq_length=(vision["image_size"] // vision["patch_size"]) ** 2,
        pad_token_id=tokens.pad_token_id,
    )
