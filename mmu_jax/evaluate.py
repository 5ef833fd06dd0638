"""Splits x tasks x metrics -> results with n and a 95 % interval over people, and every answer beside its truth."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmu_jax import InputError, generate, hf, hub, likelihood, metrics, models, sharding
from mmu_jax.data import IMAGE, TEXT, Choice, Example, Person, Processor, branches, loader, streams, text
from mmu_jax.data.sizes import ANY, Sizes, fit
from mmu_jax.likelihood import Told, branch_logps, check_finite
from mmu_jax.metrics import Items, by_person
from mmu_jax.questions import Prompts
from mmu_jax.trees import Params

TASKS = {"vqa": IMAGE, "qa": TEXT}
DISTRIBUTED = {"probability", "truth_share"}  # models are compared by how these lie, item by item
Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Examiner:
    """A model with what it takes to question it.

    Attributes:
      rows: rows per batch; every batch is filled up to it, so each length compiles once for a number of photos.
      new_tokens: longest answer.
      samples: bootstrap draws for the intervals.
      sizes: padded lengths of the batches.
      letters: also ask for a letter and parse it, as the benchmark does (strictly and as published).
      memorisation: also take the metrics that ask what is told of right answers, one more forward pass of each.
      stop: token ids that end an answer; default the tokenizer's end of sequence.
      encoded: what was asked so far, encoded: every model is asked the same.
    """

    model: models.Model
    processor: Processor
    mesh: jax.sharding.Mesh
    prompts: Prompts = Prompts()
    rows: int = 64
    new_tokens: int = 8
    samples: int = 1000
    seed: int = 0
    letters: bool = True
    memorisation: bool = False
    sizes: Sizes = ANY
    stop: tuple[int, ...] = ()
    encoded: dict[tuple, text.Rows] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self):
        if not self.stop:
            object.__setattr__(self, "stop", text.end_of_turn(self.processor))

    def _encode(self, how: Callable[..., text.Rows], words: list, images: int) -> text.Rows:
        """``how(processor, words, images)``, once for all models that are asked."""
        key = (how, tuple(words), images)
        if key not in self.encoded:
            self.encoded[key] = how(self.processor, words, images)
        return self.encoded[key]

    def _batches(self, texts: text.Rows, photos: np.ndarray | None, album: loader.Album | None):
        """Batches of ``rows`` rows; rows that only fill the last one are all padding. Neighbours that show one photo see it once."""
        n = len(texts.tokens)
        seen = [[] if album is None else [album.pictures[photos[i]]] for i in range(n)]
        sights = 0 if photos is None else streams.sights(photos, self.rows, self.mesh.shape["data"])
        sizes = self.sizes.holding(**streams.longest(texts, album.pictures if album is not None else []))
        for start in range(0, n, self.rows):
            index = np.arange(start, min(start + self.rows, n))
            filled = np.concatenate([index, np.full(self.rows - len(index), start)])
            batch = streams.batch(sizes, texts, filled, [seen[i] for i in filled], sights)
            batch["valid"][len(index) :] = False
            yield len(index), sharding.put(batch, self.mesh)

    def answers(
        self,
        params: Params,
        questions: Sequence[str],
        photos: np.ndarray | None,
        album: loader.Album | None,
        whose: Sequence[str] = (),
        progress: Progress = lambda n: None,
    ) -> list[str]:
        """The greedy answer to every question; ``photos [N]`` are places in the album, None for text.

        ``progress`` is called with the number of questions of every batch.

        Raises:
          InputError: logits that are not finite; the question, or what ``whose`` says of it, is named.
        """
        if not questions:
            return []
        texts = self._encode(text.encode_prompts, list(questions), 0 if album is None else 1)
        how, found = {"new_tokens": self.new_tokens, "stop": self.stop}, []
        batches = self._batches(texts, photos, album)
        params = generate.for_decoding(self.model, params, self.mesh)
        with jax.set_mesh(self.mesh):
            for n, said in sharding.ahead(
                (n, generate.generate(self.model, params, batch, **how)) for n, batch in batches
            ):
                new, start = sharding.host(said)[:n], len(found)
                check_finite((new >= 0).all(axis=1), lambda i: (whose or questions)[start + i])  # noqa: B023
                found += generate.texts(self.processor, new, self.stop)
                progress(n)
        return found

    def option_logps(
        self,
        params: Params,
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
        said = [(choice.question, choice.begun, option) for choice in choices for option in choice.options.values()]
        counts = np.array([len(choice.options) for choice in choices])
        texts = self._encode(text.encode_begun, said, 0 if album is None else 1)
        asked = np.repeat(np.arange(len(choices)), counts)
        shown = max((picture.tokens for picture in album.pictures), default=0) if album else 0
        rows, of = branches.join(texts, counts, shown, self.sizes)
        photos = None if photos is None else photos[[asked[each[0]] for each in of]]
        most, scored = fit(max(map(len, of)), (), "options", 4), np.zeros(len(said))
        batches = self._batches(rows, photos, album)
        with jax.set_mesh(self.mesh):
            launched = ((n, branch_logps(self.model, params, batch, most)) for n, batch in batches)
            found = [sharding.host(values)[:n] for n, values in sharding.ahead(launched)]
        for each, row in zip(of, np.concatenate(found), strict=True):
            scored[each] = row[: len(each)]
        check_finite(np.isfinite(scored), lambda i: _whose(choices[asked[i]], split))
        there = np.arange(counts.max()) < counts[:, None]
        logps, lengths = np.full(there.shape, -np.inf), np.ones(there.shape)
        logps[there], lengths[there] = scored, [row.sum() for row in texts.weights]
        return logps, lengths

    def told(
        self,
        params: Params,
        examples: Sequence[Example],
        photos: np.ndarray | None,
        album: loader.Album | None,
        split: str = "",
    ) -> Told:
        """What the model says of the right answers, token by token; questions are put as generation puts them.

        Raises:
          InputError: there is no example, or logits are not finite; person and question are named.
        """
        if not examples:
            raise InputError(
                "expected at least one question with its answer, found none; leave out what is told of them"
            )
        pairs = [(self.prompts.free(example), example.answer) for example in examples]
        texts = self._encode(text.encode, pairs, 0 if album is None else 1)
        batches = self._batches(texts, photos, album)
        with jax.set_mesh(self.mesh):
            launched = ((n, likelihood.token_numbers(self.model, params, batch)) for n, batch in batches)
            parts = [Told(*(sharding.host(x)[:n] for x in values)) for n, values in sharding.ahead(launched)]
        found = likelihood.joined(parts)
        finite = np.isfinite([found.logps, found.means, found.variances]).all(axis=(0, 2))
        check_finite(finite, lambda i: _whose(examples[i], split))
        return found

    def measure(
        self, params: Params, people: Sequence[Person], kind: str, album: loader.Album, split: str = ""
    ) -> tuple[dict[str, Items], list[dict]]:
        """All metrics of one split and kind, item by item, and the answers one by one.

        Choices of which only one option is there are no choices, and are left out of what compares options.

        Raises:
          InputError: logits that are not finite, or a choice whose right letter is none of its options; the ``split``,
            person and question are named.
        """
        photos, album = album, album if kind == IMAGE else None

        def rows(items):
            return np.array([photos.of(item)[0] for item in items]) if kind == IMAGE else None

        def ask(items, put):
            return self.answers(params, list(map(put, items)), rows(items), album, [_whose(i, split) for i in items])

        free, blanks, choices = (_items(people, task, kind) for task in ("generation", "cloze", "choices"))
        right = np.array([_right(choice, split) for choice in choices], int)
        free_said, blank_said = ask(free, self.prompts.free), ask(blanks, self.prompts.filled_blank)
        found = {}

        def judge(asks, items, score):
            for name, metric in metrics.asked(asks).items() if items else ():
                found[name] = Items(np.asarray(score(metric.of), float), np.array([item.person for item in items]))

        def against_truth(items, said):
            return lambda of: [of(answer, item.answer) for answer, item in zip(said, items, strict=True)]

        judge("generation", free, against_truth(free, free_said))
        judge("cloze", blanks, against_truth(blanks, blank_said))
        if free and self.memorisation:
            told = self.told(params, free, rows(free), album, split)
            judge("told", free, lambda of: of(told))
        if ratios := _items(people, "perturbed", kind):
            put = [dataclasses.replace(item, question=self.prompts.free(item)) for item in ratios]
            places = np.array([_right(item, split) for item in ratios])
            scored = self.option_logps(params, put, rows(ratios), album, split)
            judge("perturbed", ratios, lambda of: of(*scored, places))
        if choices:
            logps, lengths = self.option_logps(params, choices, rows(choices), album, split)
            judge("option", choices, lambda of: of(logps, lengths, right))
            several = np.flatnonzero([len(choice.options) > 1 for choice in choices])
            scored, choices = (logps[several], lengths[several], right[several]), [choices[i] for i in several]
            judge("options", choices, lambda of: of(*scored))
        if choices and self.letters:
            pairs = list(zip(ask(choices, self.prompts.asked_letter), choices, strict=True))
            judge("letter", choices, lambda of: [float(of(s, list(c.options)) == c.letter) for s, c in pairs])
        answers = [
            _answer(task, item, said)
            for task, items, every in (("generation", free, free_said), ("cloze", blanks, blank_said))
            for item, said in zip(items, every, strict=True)
        ]
        return found, answers

    def examine(
        self, params: Params, people: Sequence[Person], kind: str, album: loader.Album, split: str = ""
    ) -> tuple[dict, list[dict]]:
        """The same as ``metric -> summary``, with the chance level of choices and the share of distinct answers.

        Every metric is also there person by person (``'each'``), :data:`DISTRIBUTED` item by item (``'items'``): models are compared
        on the same people, and by how their probabilities are distributed.
        """
        found, answers = self.measure(params, people, kind, album, split)
        results = {
            name: metrics.summary(*items, samples=self.samples, seed=self.seed) | {"each": by_person(items)}
            for name, items in found.items()
        }
        for name in DISTRIBUTED & found.keys():
            results[name]["items"] = [round(float(p), 5) for p in found[name].values]
        if choices := [choice for choice in _items(people, "choices", kind) if len(choice.options) > 1]:
            results["mcq"]["chance"] = float(np.mean([1 / len(choice.options) for choice in choices]))
        if answers:
            results["distinct"] = {"mean": metrics.distinct([a["answer"] for a in answers]), "n": len(answers)}
        return results, answers


def of_checkpoint(path: str | pathlib.Path, **numbers: Any) -> tuple[Examiner, Params]:
    """Who questions the model of a directory, or of an id on the hub, as an :class:`Examiner` of these ``numbers``; and its params.

    Params are held, and activations computed, in the dtype of the files; every device takes a part of the params.

    Raises:
      InputError: there is no model, or it is none of ours (``hf.read_config``, ``hf.load``).
    """
    folder = hub.fetch(path, "model")
    config, processor, mesh = hf.read_config(folder), hf.read_processor(folder), sharding.make_mesh(-1)
    kinds = [tensor.dtype for tensor in hf.survey(folder, models.Model(config)).values()]
    model = models.Model(config, jnp.result_type(*kinds))
    stop = hf.stop_tokens(folder, processor)
    return Examiner(model, processor, mesh, stop=stop, **numbers), hf.load(folder, model, mesh, None)


def _items(people: Sequence[Person], task: str, kind: str) -> list[Any]:
    """What is asked of people in a task, of one kind."""
    return [item for person in people for item in getattr(person, task) if item.kind == kind]


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
    params: Params,
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
