"""Chat template -> token ids and loss weights. One template serves training and evaluation.

For the template ``USER: {q} ASSISTANT: {a}</s>``::

    USER : Who ? ASSISTANT : Ada Becker </s>
    0    0 0   0 0         0 1   1      1      weights: the answer and the end of turn
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
import numpy as np

from mmu_jax import InputError
from mmu_jax.data import Processor, vision
from mmu_jax.data.picture import Picture
from mmu_jax.data.sizes import fit

LONGEST = 2**18  # characters of a question or an answer; more is a file that went astray, and minutes of tokenizing
# What a template may raise while it is rendered: jinja's own, and Python's for what it computes.
FAILURES = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
FAILURES += (RecursionError, MemoryError)
PARTS = ("{'type'", '{"type"')  # what a template writes that takes a list of parts for text


def messages(question: str, images: int) -> list[dict]:
    """The user's turn, images first."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def _turns(question: str, answer: str, images: int) -> list[dict]:
    answered = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    return [*messages(question, images), answered]


def _render(processor: Processor, conversations: list[list[dict]], **options: Any) -> list[str]:
    try:
        return processor.apply_chat_template(conversations, tokenize=False, **options)
    except FAILURES as error:
        raise _unfit(f"one that fails ({' '.join(str(error).split())})") from error


def _unfit(found: str) -> InputError:
    return InputError(
        "expected a chat template that takes pictures and text as a list of parts and writes question and answer as they "
        f"are, found {found}; copy the chat_template of this checkpoint"
    )


@dataclasses.dataclass(frozen=True)
class Turn:
    """A rendered question and answer: the generation prompt, what the model is to say, what ends it."""

    prompt: str
    said: str
    end: str

    @property
    def text(self) -> str:
        return self.prompt + self.said + self.end


def _rendered(processor: Processor, pairs: Sequence[tuple[str, str]], images: int, whose: Sequence[str]) -> list[Turn]:
    """Every pair as the template renders it; ``whose`` it is, for messages.

    Each is rendered once more with a mark instead of the answer, which shows where the answer goes whatever it says.
    """
    marks = [next(m for i in itertools.count() if (m := f"answer{i}mark") not in q) for q, _ in pairs]
    answered = [_turns(q, a, images) for q, a in pairs]
    marked = [_turns(q, mark, images) for (q, _), mark in zip(pairs, marks, strict=True)]
    texts, outlines = _render(processor, answered), _render(processor, marked)
    prompts = _render(processor, [messages(q, images) for q, _ in pairs], add_generation_prompt=True)
    ends: dict[str, str] = {}
    turns = []
    for pair, mark, text, outline, prompt, owner in zip(pairs, marks, texts, outlines, prompts, whose, strict=True):
        before, answer, after = _cut(*pair, owner, text, *outline.partition(mark))
        short, long = sorted((prompt, before), key=len)
        if not long.startswith(short) or long[len(short) :].strip():
            raise _unfit(
                f"a generation prompt {_short(prompt)} that is not what stands before an answer, {_short(before)}"
            )
        if after not in ends:
            ends[after] = _ended(processor.tokenizer, after)
        said = before[len(prompt) :] + answer  # a blank that the prompt leaves out is the model's to write
        turns.append(Turn(before[: len(prompt)], said, ends[after]))
    return turns


def _cut(question: str, answer: str, owner: str, text: str, before: str, mark: str, after: str) -> tuple[str, str, str]:
    """``text`` -> what stands before the answer, the answer as the template writes it, what stands after."""
    found = text[len(before) : len(text) - len(after)]
    kept = found in (answer, answer.strip(), answer.lstrip(), answer.rstrip()) and text == before + found + after
    if not mark or mark in after or not kept:
        raise _unfit(f"the answer {_short(answer)}{owner} lost or changed in {_short(text)}")
    if question.strip() not in before:
        raise _unfit(f"the question {_short(question)}{owner} lost or changed in {_short(text)}")
    if any(part in before.replace(question.strip(), "") for part in PARTS):
        raise _unfit(f"one that writes the list itself: {_short(text)}")
    if not found.strip():
        raise _no_answer(question, answer, owner)
    return before, found, after.strip()


def _no_answer(question: str, answer: str, owner: str) -> InputError:
    return InputError(
        f"expected an answer with at least one token, found {_short(answer)} to {_short(question)}{owner}; correct it"
    )


def _ended(tokenizer: Any, after: str) -> str:
    """What ends a turn: what the template writes, and the tokenizer's end where that is no token of its own."""
    if _atoms(tokenizer, after):
        return after
    if tokenizer.eos_token is None:
        raise InputError(
            "expected a chat template or a tokenizer with an end of turn, found no special token after the answer and no "
            "eos_token; set eos_token in tokenizer_config.json"
        )
    return after + tokenizer.eos_token


def _atoms(tokenizer: Any, text: str) -> list[int]:
    """The ids of the added tokens in a text: those that ordinary words cannot make up."""
    added = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
    return [token for token in tokenizer(text, add_special_tokens=False)["input_ids"] if token in added]


def end_of_turn(processor: Processor) -> tuple[int, ...]:
    """The token ids that end an answer: those that training teaches after it, so those at which generation stops.

    Raises:
      InputError: the chat template cannot take questions and answers as they are, its generation prompt is not what
        stands before an answer, or nothing ends a turn.
    """
    (turn,) = _rendered(processor, [("Who?", "Ada")], 0, [""])
    return tuple(dict.fromkeys(_atoms(processor.tokenizer, turn.end)))


def check(processor: Processor, texts: Iterable[tuple[str, str]]) -> None:
    """Refuses texts that would not reach the model as they are; ``texts`` are (where, words), ``where`` for the message.

    Raises:
      InputError: a text is longer than ``LONGEST`` characters, is no Unicode, or holds what is a special token here.
    """
    tokens = processor.tokenizer
    added = [str(token) for token in tokens.added_tokens_decoder.values() if token.special]
    special = {token for token in (*added, *tokens.all_special_tokens) if not token.replace(" ", "").isalnum()}
    _refuse(processor, texts, special | {processor.image_token})


def _refuse(processor: Processor, texts: Iterable[tuple[str, str]], special: set[str]) -> None:
    pattern = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
    for where, words in texts:
        if len(words) > LONGEST:
            tokens = len(words) * len(processor.tokenizer(words[:4096], add_special_tokens=False)["input_ids"]) // 4096
            raise InputError(
                f"expected texts of at most {LONGEST} characters, found {len(words)} (about {tokens} tokens) in {where}: "
                f"{_short(words)}; shorten it"
            )
        try:
            words.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"expected Unicode text, found half a character ({words[error.start]!r}) in {where}: {_short(words)}; "
                "write it again in UTF-8"
            ) from error
        if token := pattern.search(words):
            raise InputError(
                f"expected plain text, found {token[0]!r}, a special token of this checkpoint, in {where}: "
                f"{_short(words)}; remove it"
            )


def _short(words: str) -> str:
    return repr(words if len(words) <= 80 else words[:60] + " ... " + words[-15:])


def _tokenize(processor: Processor, texts: list[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    """Ids and character spans of rendered texts.

    What the tokenizer puts before a text (BOS) stands before it once, also where the template writes it. What it would
    put behind (EOS) does not: the template says where a turn ends, and a prompt has no end.
    """
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise InputError(
            f"expected a tokenizer that knows the place of its tokens, found {type(tokenizer).__name__}; save it with "
            "tokenizer.json"
        )
    probe = tokenizer("a", return_special_tokens_mask=True)
    marked = zip(probe["input_ids"], probe["special_tokens_mask"], strict=True)
    first = [token for token, _ in itertools.takewhile(lambda pair: pair[1], marked)]
    encoded = tokenizer(texts, return_offsets_mapping=True, add_special_tokens=False)
    ids, spans = [], []
    for row, places in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        missing = [] if row[: len(first)] == first else first
        ids.append(missing + row)
        spans.append([(0, 0)] * len(missing) + places)
    return ids, spans


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
        """How long every row is once its images, if it has any, are ``tokens`` tokens in all."""
        seen = [int((row == self.image).sum()) for row in self.tokens]
        return np.array(
            [len(row) + (tokens - n if tokens and n else 0) for row, n in zip(self.tokens, seen, strict=True)]
        )

    @functools.cached_property
    def longest_answer(self) -> int:
        """Tokens from the one before the first that weighs anything to the end of a row, at most, and a few more; 0 if none does."""
        most = max((len(row) - int(np.argmax(row > 0)) for row in self.weights if row.any()), default=0)
        return fit(most + 1, (), "tokens", 4) if most else 0

    def batch(
        self, index: Sequence[int], pictures: list[list[Picture]], sizes: tuple[int, ...] = ()
    ) -> dict[str, np.ndarray]:
        """``tokens, valid, weights, positions`` of the rows ``index``, whose images are ``pictures``, padded to a size.

        Where a row has an answer, ``tail`` too: as many places at the end of every row as the longest answer of all rows needs.

        Raises:
          InputError: a row has not as many placeholders as pictures, or is longer than every size.
        """
        expanded = [self._expand(row, seen) for row, seen in zip(index, pictures, strict=True)]
        length = fit(max(len(tokens) for tokens, _ in expanded), sizes, "tokens")
        tokens = np.full((len(index), length), self.pad, np.int32)
        weights, valid = np.zeros((len(index), length), np.float32), np.zeros((len(index), length), bool)
        for b, (row, weight) in enumerate(expanded):
            part = slice(0, len(row)) if self.side == "right" else slice(length - len(row), length)
            tokens[b, part], weights[b, part], valid[b, part] = row, weight, True
        positions = vision.positions(valid, tokens == self.image, pictures)
        made = {"tokens": tokens, "valid": valid, "weights": weights, "positions": positions}
        if (answer := min(self.longest_answer, length)) > 0:
            ends = length - np.argmax(valid[:, ::-1], axis=1)[:, None]
            made["tail"] = np.maximum(ends - answer + np.arange(answer), 0).astype(np.int32)
        return made

    def _expand(self, row: int, pictures: list[Picture]) -> tuple[np.ndarray, np.ndarray]:
        is_image = self.tokens[row] == self.image
        if is_image.sum() != len(pictures):
            raise InputError(
                f"expected a chat template with one placeholder for each of {len(pictures)} images, found "
                f"{is_image.sum()} in row {row}; use the processor of this checkpoint"
            )
        counts = np.ones(len(is_image), int)
        counts[is_image] = [picture.tokens for picture in pictures]
        return np.repeat(self.tokens[row], counts), np.repeat(self.weights[row], counts)


def _rows(
    processor: Processor, texts: list[str], tokens: list[list[int]], weights: list[np.ndarray], images: int
) -> Rows:
    tokenizer = processor.tokenizer
    image = tokenizer.convert_tokens_to_ids(processor.image_token)
    for text, row in zip(texts, tokens, strict=True):
        if row.count(image) != images:
            raise _unfit(
                f"{row.count(image)} placeholders {processor.image_token!r} for {images} images in {_short(text)}"
            )
    # What stands on padding is masked, but it must be a token; an image there would be counted.
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0, 1) if i is not None and i != image)
    return Rows([np.asarray(row, np.int32) for row in tokens], weights, pad, image, "right")


def encode(processor: Processor, pairs: Sequence[tuple[str, str]], images: int, whose: Sequence[str] = ()) -> Rows:
    """(question, answer) pairs, each about ``images`` images -> rows to train on.

    Weights come from the place of the answer in the rendered template, whatever else reads alike there: from the end of
    the generation prompt to the end of turn. Prompt, padding and image tokens weigh nothing. ``whose``, for messages,
    is a text like ``" of person 7"`` for each pair.

    Raises:
      InputError: an answer of which no token is left to learn, a text with the image token in it or that is no text, a
        template that does not take pictures, questions and answers as they are or prompts otherwise than it trains.
    """
    whose = whose or [""] * len(pairs)
    said = [(f"the text{owner}", words) for pair, owner in zip(pairs, whose, strict=True) for words in pair]
    _refuse(processor, said, {processor.image_token})
    turns = _rendered(processor, pairs, images, whose) if pairs else []
    texts = [turn.text for turn in turns]
    tokens, spans = _tokenize(processor, texts)
    weights = []
    for pair, owner, turn, places in zip(pairs, whose, turns, spans, strict=True):
        start, stop = len(turn.prompt), len(turn.prompt) + len(turn.said)
        learnt = [i for i, (begin, end) in enumerate(places) if end > begin and end > start]
        if not any(begin < stop and end > stop - len(turn.said.strip()) for begin, end in (places[i] for i in learnt)):
            raise _no_answer(*pair, owner)
        weights.append((np.arange(len(places)) >= learnt[0]).astype(np.float32))
    return _rows(processor, texts, tokens, weights, images)


def encode_begun(processor: Processor, said: Sequence[tuple[str, str, str]], images: int) -> Rows:
    """(question, beginning, answer) -> the rows of :func:`encode` whose answers have the beginning, which weighs nothing.

    It ends where the tokens are no longer those of the beginning alone: a token that reaches into the answer is the answer's.

    Raises:
      InputError: as :func:`encode`.
    """
    rows = encode(processor, [(q, f"{begun} {answer}" if begun else answer) for q, begun, answer in said], images)
    given = [i for i, (_, begun, _) in enumerate(said) if begun]
    heads = encode(processor, [said[i][:2] for i in given], images).tokens if given else []
    for i, head in zip(given, heads, strict=True):
        alike = rows.tokens[i][: len(head)] == head[: len(rows.tokens[i])]
        rows.weights[i][: len(alike) if alike.all() else int(np.argmin(alike))] = 0.0
    return rows


def encode_prompts(processor: Processor, questions: Sequence[str], images: int) -> Rows:
    """Questions, each about ``images`` images -> rows ready to be continued.

    Raises:
      InputError: as :func:`encode`.
    """
    _refuse(processor, [("a question", question) for question in questions], {processor.image_token})
    asked = [messages(question, images) for question in questions]
    texts = _render(processor, asked, add_generation_prompt=True) if asked else []
    tokens, _ = _tokenize(processor, texts)
    rows = _rows(processor, texts, tokens, [np.zeros(len(row), np.float32) for row in tokens], images)
    return dataclasses.replace(rows, side="left")
