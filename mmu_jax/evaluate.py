"""Splits x tasks x metrics -> results with n and a 95 % interval over people, and every answer beside its truth."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from mmu_jax import InputError, generate, losses, metrics, models, sharding
from mmu_jax.data import IMAGE, TEXT, Choice, Example, Person, loader, text
from mmu_jax.questions import Prompts

Tree = Any
TASKS = {"vqa": IMAGE, "qa": TEXT}
Progress = Callable[[int], None]


@partial(jax.jit, static_argnums=0)
def answer_logps(model: models.Model, params: Tree, batch: dict) -> jax.Array:
    """log p(answer | prompt) of every row, ``[B]``; not finite where a logit of the row is not (:func:`check_finite`)."""
    return losses.sequence_logps(model.forward(params, batch), batch["tokens"], batch["weights"])


def check_finite(good: np.ndarray, whose: Callable[[int], str]) -> None:
    """Raises InputError if one of ``good [N]`` (bool) is False, naming ``whose(i)`` the first is."""
    broken = np.flatnonzero(~np.asarray(good))
    if len(broken):
        raise InputError(
            f"expected finite numbers from the model, found NaN or infinity for {whose(int(broken[0]))} ({len(broken)} of "
            f"{len(good)} rows); its weights are not finite or do not fit its config, or config.model.dtype is too coarse"
        )


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
            object.__setattr__(self, "stop", text.end_of_turn(self.processor))

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

    def answers(
        self,
        params: Tree,
        questions: Sequence[str],
        photos: np.ndarray | None,
        album: loader.Album | None,
        whose: Sequence[str] = (),
    ) -> list[str]:
        """The greedy answer to every question; ``photos [N]`` are places in the album, None for text.

        Raises:
          InputError: logits that are not finite; the question, or what ``whose`` says of it, is named.
        """
        if not questions:
            return []
        texts = text.encode_prompts(self.processor, list(questions), 0 if album is None else 1)
        found = []
        with jax.set_mesh(self.mesh):
            for n, batch in self._batches(texts, photos, album):
                new = np.asarray(
                    generate.generate(self.model, params, batch, new_tokens=self.new_tokens, stop=self.stop)
                )[:n]
                start = len(found)
                check_finite((new >= 0).all(axis=1), lambda i: (whose or questions)[start + i])  # noqa: B023
                found += generate.texts(self.processor, new, self.stop)
        return found

    def option_logps(
        self,
        params: Tree,
        choices: Sequence[Choice],
        photos: np.ndarray | None,
        album: loader.Album | None,
        split: str = "",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probability and length in tokens of every option as the answer, both ``[N, O]``; -inf where there is none.

        Options are in the order of ``Choice.options``.

        Raises:
          InputError: logits that are not finite; person and question are named.
        """
        pairs = [(choice.question, option) for choice in choices for option in choice.options.values()]
        counts = np.array([len(choice.options) for choice in choices])
        texts = text.encode(self.processor, pairs, 0 if album is None else 1)
        photos = None if photos is None else np.repeat(photos, counts)
        found = []
        with jax.set_mesh(self.mesh):
            for n, batch in self._batches(texts, photos, album):
                found.append(np.asarray(answer_logps(self.model, params, batch))[:n])
        scored, asked = np.concatenate(found), np.repeat(np.arange(len(choices)), counts)
        check_finite(np.isfinite(scored), lambda i: _whose(choices[asked[i]], split))
        there = np.arange(counts.max()) < counts[:, None]
        logps, lengths = np.full(there.shape, -np.inf), np.ones(there.shape)
        logps[there], lengths[there] = scored, [row.sum() for row in texts.weights]
        return logps, lengths

    def examine(
        self, params: Tree, people: Sequence[Person], kind: str, album: loader.Album, split: str = ""
    ) -> tuple[dict, list[dict]]:
        """All metrics of one split and kind: ``metric -> summary``, and the answers one by one.

        Choices of which only one option is there are no choices, and are left out.

        Raises:
          InputError: logits that are not finite, or a choice whose right letter is none of its options; the ``split``,
            person and question are named.
        """
        photos, album = album, album if kind == IMAGE else None

        def rows(items):
            return np.array([photos.of(item)[0] for item in items]) if kind == IMAGE else None

        def ask(items, put):
            return self.answers(params, list(map(put, items)), rows(items), album, [_whose(i, split) for i in items])

        free, blanks, choices = (
            [item for person in people for item in getattr(person, task) if item.kind == kind]
            for task in ("generation", "cloze", "choices")
        )
        choices = [choice for choice in choices if len(choice.options) > 1]
        right = np.array([_right(choice, split) for choice in choices], int)
        free_said, blank_said = ask(free, self.prompts.free), ask(blanks, self.prompts.filled_blank)
        values, owners = {}, {}

        def add(items, **found):
            for name, value in found.items():
                values[name], owners[name] = value, [item.person for item in items]

        if free:
            pairs = [(s, item.answer) for s, item in zip(free_said, free, strict=True)]
            add(free, exact=[metrics.exact(*p) for p in pairs], rouge_l=[metrics.rouge_l(*p) for p in pairs])
        if blanks:
            pairs = [(s, item.answer) for s, item in zip(blank_said, blanks, strict=True)]
            add(blanks, cloze=[metrics.cloze(*p) for p in pairs], cloze_exact=[metrics.exact(*p) for p in pairs])
        if choices:
            scored = self.option_logps(params, choices, rows(choices), album, split)
            add(choices, **metrics.choice(*scored, right))
        if choices and self.letters:
            pairs = list(zip(ask(choices, self.prompts.asked_letter), choices, strict=True))
            strict = [float(metrics.strict_letter(s, list(c.options)) == c.letter) for s, c in pairs]
            published = [float(metrics.published_key(s, list(c.options)) == c.letter) for s, c in pairs]
            add(choices, letter=strict, letter_published=published)
        results = {
            name: metrics.summary(np.asarray(v), np.asarray(owners[name]), samples=self.samples, seed=self.seed)
            for name, v in values.items()
        }
        if choices:
            results["mcq"]["chance"] = float(np.mean([1 / len(choice.options) for choice in choices]))
        answers = [
            _answer(task, item, said)
            for task, items, every in (("generation", free, free_said), ("cloze", blanks, blank_said))
            for item, said in zip(items, every, strict=True)
        ]
        if answers:
            results["distinct"] = {"mean": metrics.distinct([a["answer"] for a in answers]), "n": len(answers)}
        return results, answers


def _whose(item: Example | Choice, split: str) -> str:
    return f"{item.question!r} of person {item.person}" + (f" in split {split}" if split else "")


def _right(choice: Choice, split: str) -> int:
    """The place of the right option."""
    if choice.letter not in choice.options:
        raise InputError(
            f"expected the right letter among the options {', '.join(choice.options)}, found {choice.letter!r} for "
            f"{_whose(choice, split)}; correct that choice"
        )
    return list(choice.options).index(choice.letter)


def _answer(task: str, item: Example, said: str) -> dict:
    about = {"person": item.person, "photo": item.photo or 0, "task": task}
    return about | {"question": item.question, "truth": item.answer, "answer": said}


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
    Raises:
      InputError: what the model says is not finite; split, person and question are named.
    """
    results, answers = {}, {}
    for split, (people, album) in splits.items():
        results[split], answers[split] = {}, {}
        for task, kind in TASKS.items():
            # Nobody was ever told about the unseen: only their faces are a control.
            if split != "unseen" or task == "vqa":
                results[split][task], answers[split][task] = examiner.examine(params, people, kind, album, split)
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


def gate(results: dict, headline: str, memorised: float, *, trained: bool, prompts: Prompts) -> str | None:
    """Why nothing should be unlearned from a vanilla model with these ``results``, and what to do; None if it knows them.

    Args:
      headline: the metric that must reach ``memorised`` (0 to 1) on photos of the people to forget.
      trained: whether the model was fine-tuned here.
      prompts: how it was asked.
    """
    forget, retain = (results[split]["vqa"] for split in ("forget", "retain"))
    if headline not in forget:
        there = ", ".join(name for name in forget if name != "distinct") or "none at all"
        return (
            f"expected the headline metric {headline} of the people to forget, found only {there}; set "
            "config.evaluate.headline to one that the data set has items for"
        )
    known, kept = forget[headline]["mean"], retain.get(headline, {}).get("mean", 0.0)
    if known >= memorised:
        return None
    advice, overlap = [], forget.get("rouge_l", {}).get("mean", 0.0)
    sentences = "sentence" in prompts.generation or overlap >= max(0.3, 2 * known)
    if headline in ("exact", "cloze_exact") and sentences:
        advice.append(
            f"{headline} wants the very words, and the model answers or is asked in sentences (ROUGE-L {100 * overlap:.0f} %): set "
            "config.evaluate.headline=rouge_l, or ask for less in config.evaluate.prompts"
        )
    if trained:
        advice.append("train it longer in another --workdir (config.vanilla.epochs)")
    elif kept >= memorised:
        advice.append(
            f"it knows the people to keep ({100 * kept:.1f} %): config.data.forget is another split than it was taught, or "
            "it has forgotten them already"
        )
    else:
        advice.append(
            f"it was not trained here and knows the people to keep no better ({100 * kept:.1f} %): give the model that was "
            "taught this data set (config.vanilla.path), or the data set that it was taught (config.data)"
        )
    return (
        f"expected a vanilla model that knows the people to forget ({headline} on their VQA of at least {100 * memorised:.1f} "
        f"%), found {100 * known:.1f} %; {'; '.join(advice)}; or lower config.evaluate.memorised to go on all the same"
    )
