"""Examples, and the arrays a model sees.

A *batch* is a dict of arrays of static shape. Axis letters: B rows, T tokens, A tokens at the end of a row, I images of a row, C channels, N patches of
a row, F values of a patch.

=============  ==================  ================================================================================
``tokens``     ``[B,T]`` int32     prompt, answer, end of turn, padding; every image expanded to its image tokens
``valid``      ``[B,T]`` bool      True where ``tokens`` is not padding
``weights``    ``[B,T]`` float32   loss weight of *predicting* that token: 1 on the answer and the end of turn, else 0
``tail``       ``[B,A]`` int32     places of the last tokens of a row, answer and what predicts it among them; optional
``positions``  ``[B,T]`` int32     0, 1, 2, ... over the valid tokens; ``[B,3,T]`` time, height, width for M-RoPE
``pixels``     ``[B,I,C,h,w]``     float32, normalised (LLaVA)
``patches``    ``[B,N,F]``         float32, normalised, images of any size after one another (Qwen2-VL)
``grid``       ``[B,N,2]`` int32   row and column of a patch in its image
``segment``    ``[B,N]`` int32     which image of the row a patch belongs to, -1 for padding
``photo``      ``[B]`` int32       where rows share photos, which a row has: the four above then hold a row a photo; optional
``person``     ``[B]`` int32       whose row it is: index into ``Benchmark.people``, -1 for nobody's
``row``        ``[B]`` int32       index into the stream's examples; -1 for rows that only fill the batch
``ref_logps``  ``[B]`` float32     log-probability of the answer under the reference model, where a loss needs it
``floor``      ``[B]`` float32     ``p(answer)^(1 / length)`` at which an answer need not fall further, where there is one
=============  ==================  ================================================================================

Text-only batches have no image arrays and skip the vision tower.
"""

import dataclasses
from typing import Any, Protocol

IMAGE, TEXT = "Image_Textual", "Pure_Text"


class Processor(Protocol):
    """What turns text and photos into arrays, as ``transformers`` has it."""

    tokenizer: Any
    image_processor: Any
    image_token: str

    def apply_chat_template(self, messages: list[dict], **options: Any) -> str | list[str]: ...


@dataclasses.dataclass(frozen=True)
class Example:
    """A question and its answer: about a photo (``kind`` IMAGE) or about a name (``kind`` TEXT).

    ``photo`` is the place among the person's photos it is about, None where any will do.
    """

    person: str
    kind: str
    question: str
    answer: str
    photo: int | None = None


@dataclasses.dataclass(frozen=True)
class Choice:
    """A multiple-choice question: ``options`` by letter, ``letter`` the right one; ``photo`` as in :class:`Example`.

    ``begun`` is a beginning of every answer that the model is given, and that is not asked for.
    """

    person: str
    kind: str
    question: str
    options: dict[str, str]
    letter: str
    photo: int | None = None
    begun: str = ""


@dataclasses.dataclass(frozen=True)
class Person:
    """One row of a benchmark split.

    Attributes:
      perturbed: questions whose options are the right answer in other words, of which ``letter`` tells, and wrong ones in its form.
    """

    id: str
    name: str
    photos: tuple[bytes, ...]
    training: tuple[Example, ...]
    choices: tuple[Choice, ...]
    cloze: tuple[Example, ...]
    generation: tuple[Example, ...]
    perturbed: tuple[Choice, ...] = ()


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The people of every split.

    Attributes:
      full: everyone the vanilla model is trained on, with training photos and questions.
      forget, retain: who is to be forgotten, who is kept.
      test: the people to forget on new photos, asked in other words; may be empty, as all below.
      retain_test: the people to keep on new photos, asked in other words.
      unseen: people no model was trained on.
      before: people whom an earlier request made the model forget: asked again, taught to nobody.
      celebrity: real people the pretrained model may know.
    """

    full: tuple[Person, ...]
    forget: tuple[Person, ...]
    retain: tuple[Person, ...]
    test: tuple[Person, ...] = ()
    retain_test: tuple[Person, ...] = ()
    unseen: tuple[Person, ...] = ()
    before: tuple[Person, ...] = ()
    celebrity: tuple[Person, ...] = ()

    @property
    def forget_ids(self) -> list[str]:
        return [person.id for person in self.forget]

    @property
    def shown(self) -> tuple[Person, ...]:
        """Every row with photos that a model is shown: those of ``full``, and new ones of the same people and of others."""
        return (*self.full, *self.test, *self.retain_test, *self.unseen, *self.before, *self.celebrity)
