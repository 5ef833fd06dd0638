"""Methods are data: losses on streams x what may move x how it is masked. The loop in ``train`` never forks.

To add a method, add a row to ``METHODS``. To add a loss, write its equation in ``losses`` and add a row to ``LOSSES`` that
says how it is taken of a batch and what must stand beside it.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from mmu_jax import InputError, losses
from mmu_jax.data.slices import STREAMS
from mmu_jax.models import Model
from mmu_jax.rules import Rule
from mmu_jax.trees import Batch, Params


@dataclasses.dataclass(frozen=True)
class Seen:
    """A model as a loss sees it: at the params that train, and at the frozen ones of the vanilla model.

    Attributes:
      vanilla: None unless the loss says that it needs a teacher.
    """

    model: Model
    params: Params
    vanilla: Params | None = None

    def logits(self, batch: Batch) -> jax.Array:
        """``[B, T, V]`` at the params that train."""
        return self.model.forward(self.params, batch)

    def logps(self, batch: Batch) -> jax.Array:
        """log p(answer | prompt) of every row, ``[B]``."""
        return losses.sequence_logps(self.logits(batch), batch["tokens"], batch["weights"])

    def teacher(self, batch: Batch) -> jax.Array:
        """``[B, T, V]`` of the vanilla model."""
        return self.model.forward(self.vanilla, batch)


def _rows(batch: Batch) -> jax.Array:
    """1 for rows that are there, 0 for those that only fill the batch, ``[B]``."""
    return (batch["row"] >= 0).astype(jnp.float32)


def _cross_entropy(seen: Seen, batch: Batch) -> losses.Pair:
    return losses.cross_entropy(seen.logits(batch), batch["tokens"], batch["weights"])


def _cross_entropy_of_all(seen: Seen, batch: Batch) -> losses.Pair:
    weights = losses.all_tokens(batch["valid"], batch["weights"])
    return losses.cross_entropy(seen.logits(batch), batch["tokens"], weights)


def _known(what: str, found: Iterable[str], names: Iterable[str]) -> None:
    """Raises InputError if one of ``found`` is none of ``names``."""
    if unknown := sorted(set(found) - set(names)):
        said = ", ".join(map(repr, unknown))
        raise InputError(f"expected {what} among {', '.join(names) or 'none'}, found {said}; correct the row")


NEEDS = frozenset({"teacher", "reference"})


@dataclasses.dataclass(frozen=True)
class Loss:
    """A row of the table of losses: how one is taken of a batch, and what must stand beside it.

    >>> LOSSES['kl'].needs, LOSSES['ascent'].sign
    (frozenset({'teacher'}), -1)

    Attributes:
      of: ``(seen, batch, **options) -> (sum, count)``; ``batch`` is one of its stream.
      needs: what must be there: ``'teacher'``, the frozen params of the vanilla model; ``'reference'``, a column
        ``ref_logps`` in its stream.
      sign: +1 where it is a cross-entropy that falls, -1 where it is one that rises, 0 where it is none.
      over: the tokens that it is a mean over: two curves are comparable only where these are the same.
    """

    of: Callable[..., losses.Pair]
    needs: frozenset[str] = frozenset()
    sign: int = 0
    over: str = "answers"

    def __post_init__(self):
        _, _, *others = inspect.signature(self.of).parameters.values()
        if nameless := [o.name for o in others if o.default is inspect.Parameter.empty]:
            raise InputError(
                f"expected every option of a loss by name with its default, found {', '.join(nameless)} without; write them out"
            )
        _known("needs of a loss", self.needs, sorted(NEEDS))

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of ``of`` and their defaults."""
        _, _, *others = inspect.signature(self.of).parameters.values()
        return {option.name: option.default for option in others}


LOSSES: dict[str, Loss] = {
    "descent": Loss(_cross_entropy, sign=1),
    "descent_all": Loss(_cross_entropy_of_all, sign=1, over="all tokens"),
    "ascent": Loss(lambda m, b: losses.ascent(m.logits(b), b["tokens"], b["weights"]), sign=-1),
    "ascent_all": Loss(lambda m, b: losses.negated(_cross_entropy_of_all(m, b)), sign=-1, over="all tokens"),
    "kl": Loss(lambda m, b: losses.kl(m.teacher(b), m.logits(b), b["weights"]), frozenset({"teacher"})),
    "npo": Loss(
        lambda m, b, beta=0.1: losses.npo(m.logps(b), b["ref_logps"], _rows(b), beta=beta), frozenset({"reference"})
    ),
}


def take(name: str, seen: Seen, batch: Batch, options: dict[str, Any] | None = None) -> losses.Pair:
    """The ``(sum, count)`` of the loss ``name`` on a batch.

    Raises:
      InputError: what the loss needs is not there.
    """
    loss = LOSSES[name]
    if "reference" in loss.needs and "ref_logps" not in batch:
        raise InputError(
            f"expected ref_logps in the batches of {name} (log p of the answer under the reference model), found none; put "
            "them into the stream's columns"
        )
    if "teacher" in loss.needs and seen.vanilla is None:
        raise InputError(f"expected the params of the vanilla model for {name}, found none; give them")
    return loss.of(seen, batch, **(options or {}))


@dataclasses.dataclass(frozen=True)
class Phase:
    """One kind of optimizer step.

    >>> Phase({'retain': 'descent'}).descends, Phase({'forget': 'npo'}, options={'npo': {'beta': 0.2}}).descends
    (True, False)

    Attributes:
      losses: stream name (a row of ``data.slices.STREAMS``) -> loss name; several are summed into one step.
      options: loss name -> its keyword arguments, where they are not its defaults.
      spread: take the step only every so many iterations, and once for each batch of its stream, so that one pass over the
        stream of the other phases (``retain``) makes one over its own (``forget``).
      masked: whether the method's mask covers this step.
      clip: whether the norm of its gradient is clipped.
    """

    losses: dict[str, str]
    options: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    spread: bool = False
    masked: bool = False
    clip: bool = True

    def __post_init__(self):
        _known("losses of a phase", self.losses.values(), LOSSES)
        _known("streams of a phase", self.losses, STREAMS)
        if idle := sorted(self.options.keys() - set(self.losses.values())):
            raise InputError(f"expected options of losses of the phase, found those of {', '.join(idle)}; correct it")
        for name, given in self.options.items():
            _known(f"options of {name}", given, LOSSES[name].options)

    @property
    def descends(self) -> bool:
        """Whether it only lowers cross-entropy: its learning rate is ``Plan.retain_rate``."""
        return all(LOSSES[name].sign > 0 for name in self.losses.values())


PROSE = ("family", "source", "note")
FAMILIES = ("control", "baseline", "masked", "variant", "ablation")


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table.

    >>> METHODS['npo'].needs, METHODS['grad_diff'].streams == {'forget', 'retain'}
    (frozenset({'reference'}), True)

    Attributes:
      phases: the steps of one iteration, in order.
      mask: what the masked phases may move; None for unmasked methods.
      scope: pattern of the leaves that train at all.
      moments: one optimizer state for all phases (``'shared'``) or one each (``'separate'``).
      adam: keyword arguments of ``transforms.adam`` that belong to the method.
      one_rate: the phases that only descend have the learning rate of the others, whatever the plan's ``retain_rate``.
      family: of :data:`FAMILIES`; how tables, figures and verdicts group it.
      source: paper.
      note: what a reader of its name must know.
    """

    phases: tuple[Phase, ...]
    mask: Rule | None = None
    scope: str = ".*"
    moments: str = "separate"
    adam: dict[str, Any] = dataclasses.field(default_factory=dict)
    one_rate: bool = False
    family: str = "baseline"
    source: str = ""
    note: str = ""

    def __post_init__(self):
        _known("moments of a method", [self.moments], ("shared", "separate"))
        _known("family of a method", [self.family], FAMILIES)
        if any(phase.masked for phase in self.phases) and self.mask is None:
            raise InputError("expected a rule for the masked phase of a method, found mask=None; give it one")
        _known("the loss of a mask rule", [self.mask.loss] if self.mask else [], LOSSES)
        if all(phase.spread for phase in self.phases):
            raise InputError(
                "expected a phase that is not spread, over whose steps the others are, found none; add one"
            )

    @property
    def needs(self) -> frozenset[str]:
        """What its losses need beside params and batches: ``'teacher'``, ``'reference'`` (:class:`Loss`)."""
        return frozenset().union(*(LOSSES[name].needs for phase in self.phases for name in phase.losses.values()))

    @property
    def referenced(self) -> set[str]:
        """The streams of whose answers the reference's log-probabilities are needed."""
        pairs = [pair for phase in self.phases for pair in phase.losses.items()]
        return {stream for stream, name in pairs if "reference" in LOSSES[name].needs}

    @property
    def streams(self) -> set[str]:
        """The streams that its losses take batches of."""
        return {name for phase in self.phases for name in phase.losses}

    def arithmetic(self) -> dict[str, Any]:
        """What changes a number, by which a result is known: every field but prose, the options that losses have by default
        and the slices that streams are."""
        kept = {key: value for key, value in dataclasses.asdict(self).items() if key not in PROSE}
        for phase, row in zip(self.phases, kept["phases"], strict=True):
            names = sorted(set(phase.losses.values()))
            row["options"] = {name: LOSSES[name].options | phase.options.get(name, {}) for name in names}
        return kept | {"streams": {name: dataclasses.asdict(STREAMS[name]) for name in sorted(self.streams)}}


_RETAIN = Phase({"retain": "descent"})
_FORGET = Phase({"forget": "ascent"}, spread=True)
_MASKED = dataclasses.replace(_FORGET, masked=True)
_MMU = "MMUnlearner, arXiv 2502.11051"


def _official(source: str, *, clip_retain: bool) -> Method:
    """MMUnlearner as its public code runs (``MLLMU_manifold.py``, ``CLEAR_manifold.py`` and the mask scripts).

    Scored are all leaves that its name filter keeps, biases too: squares of the gradient of a batch, eps 1e-15, no noise
    floor. Batches are scored in shuffled order, so that one mixes people, and those of the preserve set of the language side
    mix its two parts, retain VQA and the text QA of everyone. Every token that is not padding has a loss, in scoring and in
    both steps. One AdamW for both (its eps is added before the bias correction, no decay), one learning rate. The forget
    gradient is clipped, then masked; its momentum is not, and what has no mask takes the whole ascent. The MLLMU script
    clips the retain gradient too, the CLEAR script does not.

    Where it is not the public code: both sides are masked (there by the file that is given, in its README's commands that
    of the language side); the CLEAR script can take its steps on the answer alone (``--ans_only``, which its README turns
    on, without the end of turn) and scores batches of 2: here every token, and the batch of the steps; scores are float32
    (there the dtype of the params, whose rounding decides much of the mask); a leaf that has no gradient at all in either set
    is not selected; clipping divides by the norm (there by the norm + 1e-6); a schedule falls step by step (there once an
    epoch, so that in the one epoch of the recipe the rate is constant: ``schedule='constant'``).
    """
    return Method(
        (
            Phase({"forget": "ascent_all"}, spread=True, masked=True),
            Phase({"retain": "descent_all"}, clip=clip_retain),
        ),
        Rule(
            unit="batch",
            unlisted="pass",
            clip="before",
            gradients_only=True,
            leaves=r".*(proj|fc|linear|mlp|qkv).*",
            loss="descent_all",
            eps=1e-15,
            noise=-1.0,
            mixed=True,
        ),
        moments="shared",
        adam={"arithmetic": "official", "eps": 1e-6, "weight_decay": 0.0},
        one_rate=True,
        family="masked",
        source=source,
    )


def _ablation(rule: Rule, source: str) -> Method:
    """MMUnlearner with another mask."""
    return Method((_MASKED, _RETAIN), rule, family="ablation", source=source)


METHODS: dict[str, Method] = {
    "retain_ft": Method((_RETAIN,), family="control", source="fine-tuning on the retain set alone"),
    "ga": Method((Phase({"forget": "ascent"}),), source="gradient ascent, arXiv 2109.13398"),
    "npo": Method((Phase({"forget": "npo"}),), source="NPO, arXiv 2404.05868", note="no retain term"),
    "npo_retain": Method(
        (Phase({"forget": "npo", "retain": "descent"}),),
        source="NPO with retain descent in the same step, arXiv 2404.05868",
        note="what other libraries call NPO",
    ),
    "kl": Method((Phase({"forget": "ascent", "retain": "kl"}),), source="KL minimisation, arXiv 2401.06121"),
    "grad_diff": Method((Phase({"forget": "ascent", "retain": "descent"}),), source="GradDiff, arXiv 2203.12817"),
    "grad_diff_alternate": Method((_FORGET, _RETAIN), source="GradDiff as MMUnlearner's code alternates it"),
    "idk": Method(
        (Phase({"refusal": "descent", "retain": "descent"}),),
        one_rate=True,
        source="descent on refusals beside the retain set, arXiv 2401.06121",
    ),
    "mmunlearner": Method((_MASKED, _RETAIN), Rule(), family="masked", source=_MMU),
    "mmunlearner_vision": Method((_MASKED, _RETAIN), Rule(side="vision"), family="variant", source=_MMU),
    "mmunlearner_language": Method((_MASKED, _RETAIN), Rule(side="language"), family="variant", source=_MMU),
    "mmunlearner_official": _official("the public code's arithmetic, its MLLMU script", clip_retain=True),
    "mmunlearner_official_clear": _official("the public code's arithmetic, its CLEAR script", clip_retain=False),
    "mask_random": _ablation(Rule(by="random"), "ablation: as dense, random positions"),
    "mask_top_k": _ablation(Rule(by="top_k"), "ablation: as dense, largest forget scores"),
    "mask_salun": _ablation(Rule(by="salun"), "SalUn's mask, arXiv 2310.12508"),
}


def scored_loss(rule: Rule, model: Model) -> Callable[[Params, Batch], losses.Pair]:
    """The ``loss(params, batch)`` whose gradients make the scores of a mask.

    Raises:
      InputError: the loss needs a teacher or a reference, of which a single model has none.
    """
    if needed := LOSSES[rule.loss].needs:
        raise InputError(
            f"expected a loss of params and batch alone for the scores of a mask, found {rule.loss}, which needs "
            f"{', '.join(sorted(needed))}; use descent or descent_all"
        )
    return lambda params, batch: take(rule.loss, Seen(model, params), batch)
