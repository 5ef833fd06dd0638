"""Splits x tasks x metrics -> results with n and a 95 % interval over people, and every answer beside its truth."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from mmu_jax import generate, losses, metrics, models, sharding
from mmu_jax.data import IMAGE, TEXT, Choice, Person, loader, text

Tree = Any
TASKS = {"vqa": IMAGE, "qa": TEXT}
Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Prompts:
    """How questions are put; ``{question}`` and ``{options}`` are filled in.

    The wording of cloze and letter is MLLMU-Bench's own (arXiv 2410.22108); the chat template of the processor goes around
    it. ``generation`` asks about a photo, ``generation_text`` about a name.
    """

    generation: str = "{question}"
    generation_text: str = "{question}"
    cloze: str = "{question}\nPlease **ONLY** provide the correct answer that should replace the [Blank]."
    letter: str = "{question}\n{options}\nJust give ONE letter representing the answer directly."
    blank: str = "[Blank]"


@partial(jax.jit, static_argnums=0)
def answer_logps(model: models.Model, params: Tree, batch: dict) -> jax.Array:
    """log p(answer | prompt) of every row, ``[B]``."""
    return losses.sequence_logps(model.forward(params, batch), batch["tokens"], batch["weights"])


@dataclasses.dataclass(frozen=True)
class Examiner:
    """A model with what it takes to question it.

    Attributes:
      rows: rows per batch; every batch is filled up to it, so each length compiles once.
      new_tokens: longest answer.
      samples: bootstrap draws for the intervals.
      sizes: padded lengths of the batches.
      letters: also ask for a letter and parse it, as the benchmark does (strictly and as published).
      stop: token ids that end an answer; default the tokenizer's end of sequence.
    """

    model: models.Model
    processor: Any
    mesh: jax.sharding.Mesh
    prompts: Prompts = Prompts()
    rows: int = 64
    new_tokens: int = 8
    samples: int = 1000
    seed: int = 0
    letters: bool = True
    sizes: loader.Sizes = loader.Sizes()
    stop: tuple[int, ...] = ()

    def __post_init__(self):
        if not self.stop:
            object.__setattr__(self, "stop", (self.processor.tokenizer.eos_token_id,))

    def _batches(self, texts: text.Rows, photos: np.ndarray | None, album: loader.Album | None):
        """Batches of ``rows`` rows; rows that only fill the last one are all padding."""
        n = len(texts.tokens)
        seen = [[] if album is None else [album.pictures[photos[i]]] for i in range(n)]
        sizes = loader.sizes_for(self.sizes, texts, album.pictures if album is not None else [])
        for start in range(0, n, self.rows):
            index = np.arange(start, min(start + self.rows, n))
            filled = np.concatenate([index, np.zeros(self.rows - len(index), int)])
            batch = sizes.batch(texts, filled, [seen[i] for i in filled])
            batch["valid"][len(index) :] = False
            yield len(index), sharding.put(batch, self.mesh)

    def answers(self, params: Tree, questions: Sequence[str], photos: np.ndarray | None, album: loader.Album | None):
        """The greedy answer to every question; ``photos [N]`` are places in the album, None for text."""
        if not questions:
            return []
        texts = text.encode_prompts(self.processor, list(questions), 0 if album is None else 1)
        found = []
        with jax.set_mesh(self.mesh):
            for n, batch in self._batches(texts, photos, album):
                new = generate.generate(self.model, params, batch, new_tokens=self.new_tokens, stop=self.stop)
                found += generate.texts(self.processor, new, self.stop)[:n]
        return found

    def option_logps(
        self, params: Tree, choices: Sequence[Choice], photos: np.ndarray | None, album: loader.Album | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability and length in tokens of every option as the answer, both ``[N, O]``; -inf where there is none."""
        pairs = [(choice.question, option) for choice in choices for option in choice.options.values()]
        counts = np.array([len(choice.options) for choice in choices])
        texts = text.encode(self.processor, pairs, 0 if album is None else 1)
        photos = None if photos is None else np.repeat(photos, counts)
        found = []
        with jax.set_mesh(self.mesh):
            for n, batch in self._batches(texts, photos, album):
                found.append(np.asarray(answer_logps(self.model, params, batch))[:n])
        there = np.arange(counts.max()) < counts[:, None]
        logps, lengths = np.full(there.shape, -np.inf), np.ones(there.shape)
        logps[there], lengths[there] = np.concatenate(found), [row.sum() for row in texts.weights]
        return logps, lengths

    def examine(
        self, params: Tree, people: Sequence[Person], kind: str, album: loader.Album
    ) -> tuple[dict, list[dict]]:
        """All metrics of one split and kind: ``metric -> summary``, and the answers one by one."""
        photos, album = album, album if kind == IMAGE else None

        def rows(items):
            return np.array([photos.of(item)[0] for item in items]) if kind == IMAGE else None

        free = [item for person in people for item in person.generation if item.kind == kind]
        blanks = [item for person in people for item in person.cloze if item.kind == kind]
        prompt = self.prompts.generation if kind == IMAGE else self.prompts.generation_text
        questions = [prompt.format(question=item.question) for item in free]
        for item in blanks:
            question = item.question.replace("__", self.prompts.blank)
            questions.append(self.prompts.cloze.format(question=question))
        said = self.answers(params, questions, rows(free + blanks), album)
        answers = [
            {
                "person": i.person,
                "photo": i.photo or 0,
                "task": task,
                "question": i.question,
                "truth": i.answer,
                "answer": s,
            }
            for (task, i), s in zip(
                [("generation", i) for i in free] + [("cloze", i) for i in blanks], said, strict=True
            )
        ]
        values, owners = {}, {}

        def add(items, **found):
            for name, value in found.items():
                values[name], owners[name] = value, [item.person for item in items]

        if free:
            pairs = [(s, item.answer) for s, item in zip(said, free, strict=False)]
            add(free, exact=[metrics.exact(*p) for p in pairs], rouge_l=[metrics.rouge_l(*p) for p in pairs])
        if blanks:
            pairs = [(s, item.answer) for s, item in zip(said[len(free) :], blanks, strict=True)]
            add(blanks, cloze=[metrics.cloze(*p) for p in pairs], cloze_exact=[metrics.exact(*p) for p in pairs])
        choices = [choice for person in people for choice in person.choices if choice.kind == kind]
        if choices:
            right = np.array([sorted(choice.options).index(choice.letter) for choice in choices])
            add(choices, **metrics.choice(*self.option_logps(params, choices, rows(choices), album), right))
        if choices and self.letters:
            said = self.answers(params, [self._letter_question(choice) for choice in choices], rows(choices), album)
            pairs = list(zip(said, choices, strict=True))
            strict = [float(metrics.strict_letter(s, sorted(c.options)) == c.letter) for s, c in pairs]
            published = [float(metrics.published_letter(s) == c.letter) for s, c in pairs]
            add(choices, letter=strict, letter_published=published)
        results = {
            name: metrics.summary(np.asarray(v), np.asarray(owners[name]), samples=self.samples, seed=self.seed)
            for name, v in values.items()
        }
        if choices:
            results["mcq"]["chance"] = float(np.mean([1 / len(choice.options) for choice in choices]))
        if answers:
            results["distinct"] = {"mean": metrics.distinct([a["answer"] for a in answers]), "n": len(answers)}
        return results, answers

    def _letter_question(self, choice: Choice) -> str:
        options = "\n".join(f"{letter}: {option}" for letter, option in sorted(choice.options.items()))
        return self.prompts.letter.format(question=choice.question, options=options)


def evaluate(
    examiner: Examiner,
    params: Tree,
    splits: dict[str, tuple[Sequence[Person], loader.Album]],
    progress: Progress = lambda n: None,
) -> tuple[dict, dict]:
    """Every split x {vqa, qa}: ``{split: {task: {metric: summary}}}`` and the answers in the same shape.

    Args:
      splits: name -> people and the album that holds their photos.
      progress: called with 1 after every cell.
    """
    results, answers = {}, {}
    for split, (people, album) in splits.items():
        results[split], answers[split] = {}, {}
        for task, kind in TASKS.items():
            # Nobody was ever told about the unseen: only their faces are a control.
            if split != "unseen" or task == "vqa":
                results[split][task], answers[split][task] = examiner.examine(params, people, kind, album)
            progress(1)
    return results, answers


def flags(
    results: dict,
    moved: dict[str, dict[str, float]] | None = None,
    saved: float | None = None,
    *,
    headline: str = "exact",
) -> list[str]:
    """What a reader must be told about a model.

    ``collapsed``: it answers everyone's questions alike, or the ``headline`` metric says it knows almost nothing of the
    people to keep. ``over-unlearned``: on the forgotten faces the right option is chosen less than half as often as by
    chance, interval included: the model avoids the answer, and so still knows it. ``inert mask``: masked steps moved
    nothing inside the mask. ``leaking mask``: they moved something outside it. ``lost in rounding``: of the trained
    entries the share ``saved``, under one in a hundred, changed in the dtype of the files.
    """
    found, retain, mcq = [], results["retain"], results["forget"]["vqa"].get("mcq")
    known = [cell[headline]["mean"] for cell in retain.values() if headline in cell]
    alike = [cell["distinct"]["mean"] for task, cell in retain.items() if task == "vqa" and "distinct" in cell]
    if (known and max(known) < 0.1) or any(share < 0.1 for share in alike):
        found.append("collapsed")
    if mcq and mcq["high"] < mcq["chance"] / 2:
        found.append("over-unlearned")
    if moved and sum(group["inside"] for group in moved.values()) == 0:
        found.append("inert mask")
    if moved and sum(group["outside"] for group in moved.values()) > 0:
        found.append("leaking mask")
    if saved is not None and saved < 0.01:
        found.append("lost in rounding")
    return found
