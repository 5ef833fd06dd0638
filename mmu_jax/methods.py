"""Methods are data: losses on streams x what may move x how it is masked. The loop in ``train`` never forks.

To add a method, add a row to ``METHODS``. To add a loss, add a row to ``LOSSES`` that says what must stand beside it.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmu_jax import InputError, losses, masks, trees


def _descent(model, params, batch, vanilla, beta):
    return losses.cross_entropy(model.forward(params, batch), batch["tokens"], batch["weights"])


def _descent_all(model, params, batch, vanilla, beta):
    weights = losses.all_tokens(batch["valid"], batch["weights"])
    return losses.cross_entropy(model.forward(params, batch), batch["tokens"], weights)


def _ascent(model, params, batch, vanilla, beta):
    return losses.ascent(model.forward(params, batch), batch["tokens"], batch["weights"])


def _ascent_all(model, params, batch, vanilla, beta):
    total, count = _descent_all(model, params, batch, vanilla, beta)
    return -total, count


def _kl(model, params, batch, vanilla, beta):
    return losses.kl(model.forward(vanilla, batch), model.forward(params, batch), batch["weights"])


def _npo(model, params, batch, vanilla, beta):
    if "ref_logps" not in batch:
        raise InputError(
            "expected ref_logps in the batches of npo (log p of the answer under the reference model), found none; put them "
            "into the stream's columns"
        )
    logps = losses.sequence_logps(model.forward(params, batch), batch["tokens"], batch["weights"])
    return losses.npo(logps, batch["ref_logps"], (batch["row"] >= 0).astype(jnp.float32), beta=beta)


@dataclasses.dataclass(frozen=True)
class Loss:
    """A row of the table of losses.

    Attributes:
      of: ``(model, params, batch, vanilla, beta) -> (sum, count)``; ``batch`` is one of its stream.
      needs: what must be there: ``'teacher'``, the frozen params of the vanilla model (else ``vanilla`` may be None);
        ``'reference'``, a column ``ref_logps`` in its stream.
    """

    of: Callable[..., losses.Pair]
    needs: frozenset[str] = frozenset()

    def __call__(self, model: Any, params: Any, batch: dict[str, Any], vanilla: Any, beta: float) -> losses.Pair:
        return self.of(model, params, batch, vanilla, beta)


LOSSES: dict[str, Loss] = {
    "descent": Loss(_descent),
    "descent_all": Loss(_descent_all),
    "ascent": Loss(_ascent),
    "ascent_all": Loss(_ascent_all),
    "kl": Loss(_kl, frozenset({"teacher"})),
    "npo": Loss(_npo, frozenset({"reference"})),
}


@dataclasses.dataclass(frozen=True)
class Phase:
    """One kind of optimizer step.

    Attributes:
      losses: stream name -> loss name; several are summed into one step.
      spread: take the step only every ``len(retain) // len(forget)`` iterations, and once for each forget batch, so that
        one pass over the retain stream makes one pass over the forget stream.
      masked: whether the method's mask covers this step.
      clip: whether the norm of its gradient is clipped.
    """

    losses: dict[str, str]
    spread: bool = False
    masked: bool = False
    clip: bool = True


@dataclasses.dataclass(frozen=True)
class Mask:
    """Which entries a masked step may move.

    Attributes:
      rule: ``'ratio'`` (MMUnlearner), or at the density of that mask ``'random'``, ``'top_k'`` (both as dense in every
        layer, the latter by forget scores) and ``'salun'`` (global, of the summed forget gradient).
      side: ``'vision'``, ``'language'`` or ``'both'``; the other side is frozen in masked steps.
      unit: of the scores, ``'example'`` or ``'batch'``.
      unlisted: leaves that are not scored, ``'freeze'`` or ``'pass'`` (the public code: norms, embeddings and head
        get the whole ascent).
      clip: ``'after'`` or ``'before'`` the mask.
      gradients_only: mask the gradient but not the update, as the public code does.
      leaves: pattern of the leaves that are scored, None for the model's own (``ELIGIBLE``).
      loss: name of the loss whose gradients are scored.
      eps, noise: of the ratio; None for those of the caller, a noise below zero for no floor.
      mixed: whether the preserve set of the language side is scored in batches of photos and text alike.
    """

    rule: str = "ratio"
    side: str = "both"
    unit: str = "example"
    unlisted: str = "freeze"
    clip: str = "after"
    gradients_only: bool = False
    leaves: str | None = None
    loss: str = "descent"
    eps: float | None = None
    noise: float | None = None
    mixed: bool = False

    @property
    def reads(self) -> tuple[str, str, str | None, bool]:
        """What tells its scores from others': masks that agree in it share them."""
        return self.unit, self.loss, self.leaves, self.mixed

    def numbers(self, eps: float, noise: float) -> dict[str, float]:
        """``eps`` and ``noise``, its own where it has them."""
        return {"eps": eps if self.eps is None else self.eps, "noise": noise if self.noise is None else self.noise}


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
      phases: the steps of one iteration, in order.
      mask: what the masked phases may move; None for unmasked methods.
      scope: pattern of the leaves that train at all.
      moments: one optimizer state for all phases (``'shared'``) or one each (``'separate'``).
      adam: keyword arguments of ``transforms.adam`` that belong to the method.
      one_rate: the phases that only descend have the learning rate of the others, whatever the plan's ``retain_rate``.
      source: paper.
    """

    phases: tuple[Phase, ...]
    mask: Mask | None = None
    scope: str = ".*"
    moments: str = "separate"
    adam: dict[str, Any] = dataclasses.field(default_factory=dict)
    one_rate: bool = False
    source: str = ""


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
        Mask(
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
        source=source,
    )


METHODS: dict[str, Method] = {
    "retain_ft": Method((_RETAIN,), source="fine-tuning on the retain set alone"),
    "ga": Method((Phase({"forget": "ascent"}),), source="gradient ascent, arXiv 2109.13398"),
    "npo": Method((Phase({"forget": "npo"}),), source="NPO, arXiv 2404.05868, without a retain term"),
    "npo_retain": Method(
        (Phase({"forget": "npo", "retain": "descent"}),),
        source="NPO with retain descent in the same step, arXiv 2404.05868",
    ),
    "kl": Method((Phase({"forget": "ascent", "retain": "kl"}),), source="KL minimisation, arXiv 2401.06121"),
    "grad_diff": Method((Phase({"forget": "ascent", "retain": "descent"}),), source="GradDiff, arXiv 2203.12817"),
    "grad_diff_alternate": Method((_FORGET, _RETAIN), source="GradDiff as MMUnlearner's code alternates it"),
    "mmunlearner": Method((_MASKED, _RETAIN), Mask(), source=_MMU),
    "mmunlearner_vision": Method((_MASKED, _RETAIN), Mask(side="vision"), source=_MMU),
    "mmunlearner_language": Method((_MASKED, _RETAIN), Mask(side="language"), source=_MMU),
    "mmunlearner_official": _official("the public code's arithmetic, its MLLMU script", clip_retain=True),
    "mmunlearner_official_clear": _official("the public code's arithmetic, its CLEAR script", clip_retain=False),
    "mask_random": Method((_MASKED, _RETAIN), Mask(rule="random"), source="ablation: as dense, random positions"),
    "mask_top_k": Method((_MASKED, _RETAIN), Mask(rule="top_k"), source="ablation: as dense, largest forget scores"),
    "mask_salun": Method((_MASKED, _RETAIN), Mask(rule="salun"), source="SalUn's mask, arXiv 2310.12508"),
}


def needs(method: Method) -> frozenset[str]:
    """What the losses of a method need beside params and batches: ``'teacher'``, ``'reference'`` (:class:`Loss`)."""
    return frozenset().union(*(LOSSES[name].needs for phase in method.phases for name in phase.losses.values()))


def scored_loss(mask: Mask, model: Any) -> Callable[[Any, dict[str, Any]], losses.Pair]:
    """The ``loss(params, batch)`` whose gradients make the scores of a mask.

    Raises:
      InputError: the loss needs a teacher or a reference, of which a single model has none.
    """
    if needed := LOSSES[mask.loss].needs:
        raise InputError(
            f"expected a loss of params and batch alone for the scores of a mask, found {mask.loss}, which needs "
            f"{', '.join(sorted(needed))}; use descent or descent_all"
        )
    return lambda params, batch: LOSSES[mask.loss](model, params, batch, None, 0.0)


def objective(phase: Phase, model: Any, params: Any, batches: dict[str, Any], vanilla: Any, beta: float):
    """The sum of the phase's losses, each divided by its own count, and every loss by ``stream/loss`` name."""
    values = {}
    for stream, name in phase.losses.items():
        total, count = LOSSES[name](model, params, batches[stream], vanilla, beta)
        values[f"{stream}/{name}"] = losses.mean(total, count)
    return jnp.sum(jnp.stack(jax.tree.leaves(values))), values


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Scores of one unit at the vanilla params: squared gradients on the three sets, and how many units each had.

    Attributes:
      forget, retain, text: trees of float32 scores (``saliency.scores``): forget VQA, retain VQA, and what the language side
        is to keep beside it, the text QA of everyone; with ``Mask.mixed`` that and retain VQA in one.
      retain_units, text_units: the numbers of units by which the two are pooled for the language side; with ``Mask.mixed``
        the first is 0.
      summed: ``|mean forget gradient|``, for SalUn.
    """

    forget: Any
    retain: Any
    text: Any
    retain_units: float
    text_units: float
    summed: Any


def make_mask(
    mask: Mask,
    evidence: Evidence,
    params: Any,
    sides: dict[str, str],
    key: jax.Array,
    *,
    tau: float = 1.0,
    eps: float = 1e-15,
    noise: float = masks.NOISE,
) -> Any:
    """The mask of a method, for all of ``params``.

    The vision side (pattern ``sides['vision']``) is weighed against retain VQA, the language side against retain VQA
    and the text QA of everyone, the people to forget included (MMUnlearner, section 3).
    """
    total = evidence.retain_units + evidence.text_units

    def preserve(name, retain, text):
        if re.fullmatch(sides["vision"], name):
            return retain
        return (evidence.retain_units * retain + evidence.text_units * text) / total

    preserved = trees.map_named(preserve, evidence.retain, evidence.text)
    weighed = masks.ratio(evidence.forget, preserved, tau=tau, **mask.numbers(eps, noise))
    ratio = _one_side(mask, weighed, sides)
    if mask.rule == "ratio":
        chosen = ratio
    elif mask.rule == "random":
        chosen = masks.random(key, ratio)
    elif mask.rule == "top_k":
        chosen = masks.top_k(evidence.forget, masks.layer_counts(ratio), scope="layer")
    elif mask.rule == "salun":
        chosen = masks.top_k(evidence.summed, masks.count(ratio))
    else:
        raise InputError(f"expected a mask rule ratio, random, top_k or salun, found {mask.rule!r}; choose one of them")
    return _unlisted(mask, chosen, params)


def sign_mask(
    mask: Mask,
    difference: Any,
    params: Any,
    sides: dict[str, str],
    *,
    tau: float = 1.0,
    eps: float = 1e-15,
    noise: float = masks.NOISE,
) -> Any:
    """The mask of a method with rule ratio from ``F_forget - tau * F_preserve`` (``saliency.difference``).

    ``tau``, ``eps`` and ``noise`` are those of ``masks.sign``. The preserve set of each side is that of :func:`make_mask`.

    Raises:
      InputError: the rule needs the scores themselves.
    """
    if mask.rule != "ratio":
        raise InputError(
            f"expected a mask rule that one signed accumulator decides (ratio), found {mask.rule!r}; set "
            "config.saliency.keep_scores=True"
        )
    weighed = masks.sign(difference, tau=tau, **mask.numbers(eps, noise))
    return _unlisted(mask, _one_side(mask, weighed, sides), params)


def _one_side(mask: Mask, chosen: Any, sides: dict[str, str]) -> Any:
    return chosen if mask.side == "both" else masks.restrict(chosen, sides[mask.side])


def _unlisted(mask: Mask, chosen: Any, params: Any) -> Any:
    """What leaves that were not scored may do in masked steps."""
    if mask.unlisted == "pass":
        ones = trees.map_named(lambda _, p: jnp.ones(p.shape, bool), params)
        return trees.merge(chosen, ones)
    return masks.fill(chosen, params)
