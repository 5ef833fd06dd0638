"""Saliency of the vanilla model, and the masks that are made of it."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import jax

from mmu_jax import InputError, activations, curvature, masks, methods, objectives, rules, saliency, scored, sharding
from mmu_jax.data.streams import Pass, Stream, mixed
from mmu_jax.rules import Evidence, Rule
from mmu_jax.study import records
from mmu_jax.study.progress import Progress
from mmu_jax.study.workspace import Workspace
from mmu_jax.trees import Tree

SETS = ("forget", "retain", "text")
NEGLIGIBLE = 0.1  # of a pooled score: a set that is less of it decides nearly nothing


def mask(work: Workspace, name: str) -> dict:
    """Makes the mask of a method; returns how much of every leaf group it selects."""
    c, rule = work.config.saliency, methods.METHODS[name].mask
    params, sides = work.load(work.vanilla), work.model.family.sides
    numbers, key = dict(tau=c.tau, eps=c.eps, noise=c.noise), jax.random.key(work.config.seed)
    if not rule.scored:
        made = rules.make_unscored(rule, params, sides, work.model.family.eligible)
    elif c.keep_scores:
        evidence = work.scores.get(rule.reads, lambda: _evidence(work, rule))
        made = rules.make(rule, evidence, params, sides, key, **numbers)
    else:
        difference = work.scores.get(rule.reads, lambda: _difference(work, rule))
        made = rules.make_signed(rule, difference, params, sides, key, **numbers)
    masks.check(made, params)
    path = work.mask(name)
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    masks.save(partial, made)
    if sharding.main():
        os.replace(partial, path)
    coverage = masks.coverage(made)
    records.write(path.with_suffix(".json"), {"groups": coverage, "layers": masks.by_layer(made)})
    return coverage


def factors(work: Workspace) -> dict:
    """Makes the factors of what the vanilla model is to keep; returns the share of directions, by leaf, that they take out."""
    c, model = work.config.factors, work.model
    params, loss = work.load(work.vanilla), objectives.of_params(c.loss, work.model)
    sets, blocks = _kept(work), []
    leaves = curvature.matrices(params, model.family.eligible)
    bar = Progress("factors", c.blocks * sum(_measured(c.batches, stream) for stream in sets.values()))

    def grams(name, block):
        batches = _batches(work, sets[name], bar)
        return curvature.grams(loss, params, batches, leaves=leaves, block=(block, c.blocks))

    with jax.set_mesh(work.mesh):
        for block in range(c.blocks):
            kept = curvature.pooled([(grams(name, block), _weight(work, name)) for name in sets])
            blocks.append(curvature.factors(kept, **_how(work)))
    bar.close()
    made = curvature.joined(blocks, params)
    people = sorted({example.person for name in sets if name in ("vqa", "retain") for example in sets[name].examples})
    partial = work.factors.with_suffix(".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    curvature.save(partial, made, params, people=people)
    if sharding.main():
        os.replace(partial, work.factors)
    return curvature.shares(made)


def input_factors(work: Workspace) -> curvature.Factors:
    """The same of what the weights read, not of gradients, over all tokens and patches; nothing is written."""
    c, model, sets, params = work.config.factors, work.model, _kept(work), work.load(work.vanilla)
    leaves = curvature.matrices(params, model.family.eligible)
    bar = Progress("factors of inputs", sum(_measured(c.batches, stream) for stream in sets.values()))

    def grams(name):
        batches = _batches(work, sets[name], bar)
        return activations.total(activations.each(model, params, batches, leaves=leaves, kind="grams"))

    with jax.set_mesh(work.mesh):
        made = curvature.factors(curvature.pooled([(grams(name), _weight(work, name)) for name in sets]), **_how(work))
    bar.close()
    return curvature.joined([made], params)


def _kept(work: Workspace) -> dict[str, Stream]:
    """What factors are measured on, by name.

    Raises:
      InputError: there are no faces to keep.
    """
    c, streams = work.config.factors, {}
    shown = "vqa" if c.everyone else "retain"
    if work.asked_of(shown):
        streams[shown] = work.stream(shown, c.rows)
    if work.asked_of("text"):
        streams["text"] = work.stream("text", c.rows)
    if c.unseen and work.asked_by_photo("unseen"):
        streams["unseen"] = work.watched("unseen", c.rows)
    if not streams.keys() - {"text"}:
        raise InputError(
            "expected photos with questions about people to keep, or of people never seen, to measure factors on, found none; add people "
            "to the data set, set config.factors.unseen, or give a file of factors (config.factors.path)"
        )
    return streams


def _weight(work: Workspace, name: str) -> float:
    return {"text": work.config.factors.text, "unseen": work.config.factors.unseen}.get(name, 1.0)


def _how(work: Workspace) -> dict[str, float]:
    """How many directions are kept out."""
    c = work.config.factors
    return {"alpha": c.alpha} if c.alpha else {"fraction": c.fraction} if c.fraction else {"share": c.share}


def _measured(most: int, stream: Stream) -> int:
    """How many batches of a stream are; whole ones only: in the mean of a last one that is not full, each row would weigh more."""
    return min(most, max(len(stream.examples) // stream.rows, 1))


def _batches(work: Workspace, stream: Stream, bar: Progress) -> Iterator[dict[str, jax.Array]]:
    for i in range(_measured(work.config.factors.batches, stream)):
        bar.add()
        yield sharding.put(stream.batch(i), work.mesh)


def _evidence(work: Workspace, rule: Rule) -> Evidence:
    passes, score = _scorer(work, rule)
    wanted = [methods.METHODS[name].mask for name in work.config.unlearn.methods]
    signed = any(other.needs_sum and other.reads == rule.reads for other in wanted if other)
    total = sum(len(p) for p in passes.values()) + signed * len(passes["forget"])
    bar = Progress(f"scores by {rule.unit}", total)
    trio = {name: score(saliency.scores, passes[name].shown(bar)) for name in SETS}
    summed = score(saliency.scores, passes["forget"].shown(bar), kind="signed") if signed else None
    bar.close()
    count = {f"{name}_units": passes[name].units(rule.unit) for name in ("retain", "text")}
    count |= {"retain_units": 0.0} if rule.mixed else {}
    found = Evidence(**trio, **count, summed=summed)
    share = rules.text_share(found, work.model.family.sides)
    pooled = any(
        r and r.reads == rule.reads and r.preserve == "pooled" and r.scored and r.side != "vision" for r in wanted
    )
    if share < NEGLIGIBLE and pooled and not rule.mixed:
        ratio = (1 - share) / max(share, 1e-12) * count["text_units"] / count["retain_units"]
        print(f"  text is {100 * share:.1f} % of the pooled score that the language side is weighed against (an example of retain VQA "
              f"scores {ratio:.0f} times one of text, of which the model is sure): pooled, it restricts next to nothing; a rule with "
              "preserve='text' or 'ranks', or loss='sketch', weighs it on a scale of its own", flush=True)  # fmt: skip
    return found


def _difference(work: Workspace, rule: Rule) -> Tree:
    """``F_forget - tau * F_preserve`` of the vanilla model, both sides of it in one pass."""
    passes, score = _scorer(work, rule)
    bar = Progress(f"difference of scores by {rule.unit}", sum(len(passes[name]) for name in SETS))
    shown = {name: passes[name].shown(bar) for name in SETS}
    against = {"vision": ["retain"], "language": ["text"] if rule.mixed else ["retain", "text"]}
    preserve = {work.model.family.sides[side]: [shown[name] for name in names] for side, names in against.items()}
    found = score(saliency.difference, shown["forget"], preserve, tau=work.config.saliency.tau)
    bar.close()
    return found


def _scorer(work: Workspace, rule: Rule) -> tuple[dict[str, Pass], Callable[..., Any]]:
    """What is walked, by set, and ``score(saliency.scores or .difference, *passes, **options)``."""
    c = work.config.saliency
    streams = work.streams(c.rows if rule.unit == "example" else work.config.unlearn.rows)
    if rule.mixed:
        streams["text"] = mixed("retain and text", streams["retain"], streams["text"], work.config.seed)
    shuffled = rule.unit == "batch"
    passes = {name: Pass((stream,), work.mesh, shuffled) for name, stream in streams.items()}
    common = {"leaves": rule.leaves or work.model.family.eligible, "unit": rule.unit, "chunk": c.chunk}
    loss = _loss(work, rule)

    def score(how, *batches, **options):
        with jax.set_mesh(work.mesh):
            return how(loss, work.load(work.vanilla), *batches, **(common | options))

    return passes, score


def _loss(work: Workspace, rule: Rule) -> scored.Scored:
    """The loss of a rule: of every row for itself, in one backward pass, where the leaves that it scores allow that."""
    by_row = rule.by_row(work.model.abstract(), work.model.family.eligible)
    return (objectives.of_rows if by_row else objectives.of_params)(rule.loss, work.model)
