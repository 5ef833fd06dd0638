"""Methods are data: losses on streams x what may move x how it is restricted x what is edited. The loop in ``train`` never forks.

To add a method, add a row to ``METHODS``; a new loss is a row of ``objectives.LOSSES``.
"""

import dataclasses

from mmu_jax.phases import Method, Phase
from mmu_jax.rules import Rule

_RETAIN = Phase({"retain": "descent"})
_FORGET = Phase({"forget": "ascent"}, spread=True)
_MASKED = dataclasses.replace(_FORGET, masked=True)
_PROJECTED = dataclasses.replace(_FORGET, projected=True)
_TEXT = Rule(side="language", fraction=0.2)
_REPAIR = dataclasses.replace(_RETAIN, projected=True)
_MMU = "MMUnlearner, arXiv 2502.11051"
_MASK_NOTE = "where it was measured, its mask protects no better than a random one as dense"
_VISION = r"(?!(language_model|lm_head)/).*"  # in every family all that is not the language side
_PROJECTOR = r"(multi_modal_projector/linear_[12]|visual/merger/mlp/[02])/weight"
_OWN = "ascent projected off the directions that carry what is kept (mmu_jax.curvature)"


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
    is not selected, and the biases of keys in CLIP's tower have none (there what rounding makes of zero); clipping divides by the
    norm (there by the norm + 1e-6); a schedule falls step by step (there once an epoch, so that in the one epoch of the recipe the
    rate is constant: ``schedule='constant'``).
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
        source="preference optimisation (PO): descent on refusals beside the retain set, arXiv 2401.06121",
    ),
    "simnpo": Method(
        (Phase({"forget": "simnpo", "retain": "descent"}, weights={"forget": 0.125}),),
        source="SimNPO, arXiv 2410.07163",
    ),
    "dpo": Method(
        (Phase({"forget": "dpo", "retain": "descent"}, weights={"forget": 20.0}),),
        source="DPO of refusals over answers, arXiv 2305.18290, beside the retain set",
        note="weighed by 2 / beta, as NPO is",
    ),
    "llmu": Method(
        (Phase({"forget": "ascent", "refusal": "descent", "retain": "kl"}),),
        source="LLMU, arXiv 2310.10683",
        note="the mismatched answers are refusals",
    ),
    "wga": Method((Phase({"forget": "wga", "retain": "descent"}),), source="WGA, arXiv 2502.19301"),
    "satimp": Method(
        (Phase({"forget": "satimp", "retain": "descent"}, weights={"forget": 0.1}),), source="SatImp, arXiv 2505.11953"
    ),
    "undial": Method((Phase({"forget": "undial"}),), source="UNDIAL, arXiv 2402.10052", note="no retain term"),
    "ce_u": Method(
        (Phase({"forget": "ce_u"}, options={"ce_u": {"skip": 1}}),),
        source="CE-U, arXiv 2503.01224",
        note="no retain term; the first token of an answer is left out, as a footnote of the paper says",
    ),
    "scrub": Method(
        (Phase({"retain": "distil"}), Phase({"forget": "diverge"}, spread=True)),
        moments="shared",
        source="SCRUB, arXiv 2302.09880",
        note="minimum and maximum alternate by step, not by epoch, and the minimum begins: at the vanilla model the maximum has no gradient",
    ),
    "rmu": Method(
        (Phase({"forget": "rmu", "retain": "keep_states"}),),
        source="RMU, arXiv 2403.03218",
        note="on what predicts an answer; all up to the layer that is read moves, where the paper moves three down-projections, and the retain "
        "term weighs 1, where the paper's weighs 100 and more",
    ),
    "vkd": Method(
        (Phase({"forget": "ascent", "retain": "keep_features"}),),
        scope=_VISION,
        source="VKD, arXiv 2512.11325",
        note="from its abstract: the language side is frozen, and visual features of the retain set stay as they were",
    ),
    "sine_project": Method(
        (Phase({"forget": "ascent", "retain": "descent"}),),
        bounded=_PROJECTOR,
        source="SineProject, arXiv 2511.18444, with the losses of GradDiff",
    ),
    "projected": Method((dataclasses.replace(_PROJECTED, spread=False),), family="projected", source=_OWN),
    "projected_retain": Method(
        (_PROJECTED, _REPAIR),
        family="projected",
        source=f"{_OWN}, alternating with descent on the retain set, projected likewise",
    ),
    "projected_deep": Method(
        (dataclasses.replace(_PROJECTED, lookahead=0.3), _REPAIR),
        family="projected",
        source=f"{_OWN}, with look-ahead, alternating with descent on the retain set, projected likewise",
    ),
    "mmunlearner": Method((_MASKED, _RETAIN), Rule(), family="masked", source=_MMU, note=_MASK_NOTE),
    "mmunlearner_vision": Method((_MASKED, _RETAIN), Rule(side="vision"), family="variant", source=_MMU),
    "mmunlearner_language": Method((_MASKED, _RETAIN), Rule(side="language"), family="variant", source=_MMU),
    "mmunlearner_official": _official("the public code's arithmetic, its MLLMU script", clip_retain=True),
    "mmunlearner_official_clear": _official("the public code's arithmetic, its CLEAR script", clip_retain=False),
    "mask_random": _ablation(Rule(by="random"), "ablation: as dense, random positions"),
    "linear_only": _ablation(Rule(by="all"), "ablation: every linear weight, no scores"),
    "mask_fisher": _ablation(Rule(loss="sketch"), "ablation: scores by the true Fisher, labels drawn from the model"),
    "text_pooled": _ablation(_TEXT, "ablation: a fifth of the language side, against retain and text pooled"),
    "text_own": _ablation(
        dataclasses.replace(_TEXT, preserve="text"), "a fifth of the language side, against text on a scale of its own"
    ),
    "text_ranks": _ablation(
        dataclasses.replace(_TEXT, preserve="ranks"), "a fifth of the language side, against the mean of both ranks"
    ),
    "text_random": _ablation(
        dataclasses.replace(_TEXT, by="random"), "ablation: a fifth of the language side, random positions"
    ),
    "mask_top_k": _ablation(Rule(by="top_k"), "ablation: as dense, largest forget scores"),
    "mask_salun": _ablation(Rule(by="salun"), "SalUn's mask, arXiv 2310.12508"),
    "null_space": Method(
        (dataclasses.replace(_PROJECTED, spread=False),),
        factors="inputs",
        source="ascent in the null space of what the kept photos and texts make the weights read (AlphaEdit, arXiv 2410.02355)",
    ),
    # ---- edits: params changed without steps
    "ssd": Method(
        (),
        edit="ssd",
        options={"alpha": 1.0},
        source="selective synaptic dampening, arXiv 2308.07707",
        note="of the paper's alpha of 10 nothing is selected where a tenth of everyone is forgotten; linear weights alone",
    ),
    "manu": Method(
        (),
        edit="manu",
        source="MANU, arXiv 2502.15910",
        note="measured on photo questions; neurons of whole MLPs, in all layers",
    ),
    "kvw": Method(
        (),
        edit="kvw",
        source="KVW: knowledge vectors weakened, arXiv 2601.21794",
        note="measured on photo questions and the model as it was, in all layers",
    ),
    "task_vector": Method(
        (Phase({"forget": "descent"}),),
        edit="task_vector",
        one_rate=True,
        source="a negated task vector, arXiv 2212.04089",
    ),
    "vl_eraser": Method(
        (Phase({"forget": "descent"}, projected=True),),
        edit="task_vector",
        one_rate=True,
        factors="inputs",
        source="a negated task vector in the null space of what the kept photos and texts make the weights read, as VL-Eraser is described",
        note="from a description of it; there is no public code",
    ),
    "smfa": Method(
        (Phase({"refusal": "descent", "retain": "descent"}), _RETAIN),
        edit="smfa",
        one_rate=True,
        source="SMFA: what refusals add, but where it undoes what the retain set adds, arXiv 2511.20196",
        note="of the params themselves, photo questions alone",
    ),
}
