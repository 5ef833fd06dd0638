"""Chat template -> token ids and loss weights. One template serves training and evaluation.

For the template ``USER: {q} ASSISTANT: {a}</s>``::

    USER : Who ? ASSISTANT : Ada Becker </s>
    0    0 0   0 0         0 1   1      1      weights: the answer and the end of turn
"""

from typing import Any

import numpy as np

from mmu_jax import InputError


def messages(question: str, images: int) -> list[dict]:
    """The user's turn, images first."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def prompt(processor: Any, question: str, images: int, image_tokens: int) -> str:
    """What the model is given before it answers, each image placeholder expanded to its image tokens."""
    text = processor.apply_chat_template(messages(question, images), add_generation_prompt=True, tokenize=False)
    return _expand(processor, text, image_tokens)


def _expand(processor: Any, text: str, image_tokens: int) -> str:
    return text.replace(processor.image_token, processor.image_token * image_tokens)


def _conversation(processor: Any, question: str, answer: str, images: int, image_tokens: int) -> tuple[str, int, int]:
    """The rendered turn pair and the character span of the answer with the end of turn."""
    turn = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    text = processor.apply_chat_template([*messages(question, images), turn], tokenize=False)
    start = text.rfind(answer)  # the template puts the answer last, so a match in the question is never taken
    if start < 0:
        raise InputError(f"expected a chat template that keeps the answer, found {answer!r} lost in {text!r}")
    after = text[start + len(answer) :].strip()
    closing = after or processor.tokenizer.eos_token  # templates without an end of turn get the tokenizer's
    body = _expand(processor, text[:start], image_tokens)
    return body + answer + closing, len(body), len(body) + len(answer) + len(closing)


def _tokenize(processor: Any, texts: list[str], offsets: bool) -> Any:
    bos = processor.tokenizer.bos_token
    special = not (bos and texts and texts[0].startswith(bos))  # a template that writes BOS itself gets no second one
    return processor.tokenizer(texts, return_offsets_mapping=offsets, add_special_tokens=special)


def bucket(length: int, multiple: int = 8) -> int:
    """The padded length: few distinct ones, so few compilations."""
    return -(-length // multiple) * multiple


def pad(
    rows: list[list[float]], fill: float, dtype: Any, *, side: str = "right", length: int | None = None
) -> np.ndarray:
    """Ragged lists -> ``[B, T]``, T the bucket of the longest unless given."""
    length = length or bucket(max(map(len, rows)))
    out = np.full((len(rows), length), fill, dtype)
    for target, row in zip(out, rows, strict=True):
        if row:
            target[slice(None, len(row)) if side == "right" else slice(-len(row), None)] = row
    return out


def positions(valid: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... over the valid tokens of a row, wherever the padding is."""
    return np.maximum(np.cumsum(valid, axis=1) - 1, 0).astype(np.int32)


def encode(
    processor: Any, pairs: list[tuple[str, str]], images: int, image_tokens: int, *, length: int | None = None
) -> dict[str, np.ndarray]:
    """(question, answer) pairs -> ``tokens, valid, weights, positions``, each ``[B, T]``, padded on the right.

    Weights come from character offsets of the rendered template, so an answer that also stands in the question is
    supervised only where it answers. Prompt, padding and image tokens weigh nothing.

    Raises:
      InputError: an answer of which no token is left to learn.
    """
    rendered = [_conversation(processor, q, a, images, image_tokens) for q, a in pairs]
    encoded = _tokenize(processor, [text for text, _, _ in rendered], offsets=True)
    weights = [
        [float(end > begin and end > start and begin < stop) for begin, end in spans]
        for spans, (_, start, stop) in zip(encoded["offset_mapping"], rendered, strict=True)
    ]
    for (question, answer), row in zip(pairs, weights, strict=True):
        if not any(row):
            raise InputError(
                f"expected an answer with at least one token, found {answer!r} to {question!r}; correct it"
            )
    tokens = pad(encoded["input_ids"], processor.tokenizer.pad_token_id, np.int32, length=length)
    valid = pad([[1] * len(row) for row in weights], 0, bool, length=length)
    return {
        "tokens": tokens,
        "valid": valid,
        "weights": pad(weights, 0.0, np.float32, length=length),
        "positions": positions(valid),
    }


def encode_prompts(processor: Any, questions: list[str], images: int, image_tokens: int) -> dict[str, np.ndarray]:
    """Questions -> ``tokens, valid, positions`` padded on the left, ready to be continued."""
    texts = [prompt(processor, question, images, image_tokens) for question in questions]
    ids = _tokenize(processor, texts, offsets=False)["input_ids"]
    tokens = pad(ids, processor.tokenizer.pad_token_id, np.int32, side="left")
    valid = pad([[1] * len(row) for row in ids], 0, bool, side="left")
    return {"tokens": tokens, "valid": valid, "positions": positions(valid)}
