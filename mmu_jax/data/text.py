"""Chat template -> token ids and loss weights. One template serves training and evaluation.

For the template ``USER: {q} ASSISTANT: {a}</s>``::

    USER : Who ? ASSISTANT : Ada Becker </s>
    0    0 0   0 0         0 1   1      1      weights: the answer and the end of turn
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmu_jax import InputError
from mmu_jax.data import vision


def messages(question: str, images: int) -> list[dict]:
    """The user's turn, images first."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def _conversation(processor: Any, question: str, answer: str, images: int) -> tuple[str, int, int]:
    """The rendered turn pair and the character span of the answer with the end of turn."""
    turn = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    text = processor.apply_chat_template([*messages(question, images), turn], tokenize=False)
    start = text.rfind(answer)  # the template puts the answer last, so a match in the question is never taken
    if start < 0:
        raise InputError(f"expected a chat template that keeps the answer, found {answer!r} lost in {text!r}")
    after = text[start + len(answer) :].strip()
    closing = after or processor.tokenizer.eos_token  # templates without an end of turn get the tokenizer's
    return text[:start] + answer + closing, start, start + len(answer) + len(closing)


def _tokenize(processor: Any, texts: list[str], offsets: bool) -> Any:
    bos = processor.tokenizer.bos_token
    special = not (bos and texts and texts[0].startswith(bos))  # a template that writes BOS itself gets no second one
    return processor.tokenizer(texts, return_offsets_mapping=offsets, add_special_tokens=special)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Tokenized rows of any length, every image still one placeholder token.

    Attributes:
      tokens, weights: an array a row; weights are 1 on the answer and the end of turn, 0 elsewhere.
      side: where padding goes: ``'right'`` of what is trained, ``'left'`` of what is to be continued.
    """

    tokens: list[np.ndarray]
    weights: list[np.ndarray]
    pad: int
    image: int
    side: str

    def lengths(self, tokens: int) -> np.ndarray:
        """How long every row is once its images are ``tokens`` tokens in all."""
        return np.array([len(row) + (tokens - int((row == self.image).sum()) if tokens else 0) for row in self.tokens])

    def batch(
        self, index: Sequence[int], pictures: list[list[vision.Picture]], sizes: tuple[int, ...] = ()
    ) -> dict[str, np.ndarray]:
        """``tokens, valid, weights, positions`` of the rows ``index``, whose images are ``pictures``, padded to a size.

        Raises:
          InputError: a row has not as many placeholders as pictures, or is longer than every size.
        """
        expanded = [self._expand(row, seen) for row, seen in zip(index, pictures, strict=True)]
        length = vision.fit(max(len(tokens) for tokens, _ in expanded), sizes, "tokens")
        tokens = np.full((len(index), length), self.pad, np.int32)
        weights, valid = np.zeros((len(index), length), np.float32), np.zeros((len(index), length), bool)
        for b, (row, weight) in enumerate(expanded):
            part = slice(0, len(row)) if self.side == "right" else slice(length - len(row), length)
            tokens[b, part], weights[b, part], valid[b, part] = row, weight, True
        positions = vision.positions(valid, tokens == self.image, pictures)
        return {"tokens": tokens, "valid": valid, "weights": weights, "positions": positions}

    def _expand(self, row: int, pictures: list[vision.Picture]) -> tuple[np.ndarray, np.ndarray]:
        is_image = self.tokens[row] == self.image
        if is_image.sum() != len(pictures):
            raise InputError(
                f"expected a chat template with one placeholder for each of {len(pictures)} images, found "
                f"{is_image.sum()} in row {row}; use the processor of this checkpoint"
            )
        counts = np.ones(len(is_image), int)
        counts[is_image] = [picture.tokens for picture in pictures]
        return np.repeat(self.tokens[row], counts), np.repeat(self.weights[row], counts)


def _rows(processor: Any, tokens: list[list[int]], weights: list[list[float]], side: str) -> Rows:
    image = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    arrays = [np.asarray(row, np.int32) for row in tokens], [np.asarray(row, np.float32) for row in weights]
    return Rows(*arrays, processor.tokenizer.pad_token_id, image, side)


def encode(processor: Any, pairs: list[tuple[str, str]], images: int) -> Rows:
    """(question, answer) pairs, each about ``images`` images -> rows to train on.

    Weights come from character offsets of the rendered template, so an answer that also stands in the question is
    supervised only where it answers. Prompt, padding and image tokens weigh nothing.

    Raises:
      InputError: an answer of which no token is left to learn.
    """
    rendered = [_conversation(processor, q, a, images) for q, a in pairs]
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
    return _rows(processor, encoded["input_ids"], weights, "right")


def encode_prompts(processor: Any, questions: list[str], images: int) -> Rows:
    """Questions, each about ``images`` images -> rows ready to be continued."""
    texts = [
        processor.apply_chat_template(messages(question, images), add_generation_prompt=True, tokenize=False)
        for question in questions
    ]
    ids = _tokenize(processor, texts, offsets=False)["input_ids"]
    return _rows(processor, ids, [[0.0] * len(row) for row in ids], "left")
