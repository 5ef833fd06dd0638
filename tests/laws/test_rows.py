"""Law 9 over the rows of methods, metrics, families and streams: a new row meets them all."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmu_jax import (
    InputError,
    masks,
    methods,
    metrics,
    models,
    objectives,
    phases,
    rules,
    sharding,
    train,
    trees,
)
from mmu_jax.data import IMAGE, TEXT, slices, streams, tiny
from mmu_jax.data.general import rehearsal
from mmu_jax.data.sizes import Sizes
from mmu_jax.likelihood import Told
from toys import make_batch

LOSSES = sorted(objectives.LOSSES)
METHODS = sorted(methods.METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_names_rows_that_there_are(name):
    method = methods.METHODS[name]
    assert method.family in phases.FAMILIES and method.source
    assert method.streams <= set(slices.STREAMS)
    for phase in method.phases:
        assert set(phase.losses.values()) <= set(LOSSES) and set(phase.weights) <= set(phase.losses)
    assert all(set(phase.options) <= set(phase.losses.values()) for phase in method.phases)
    assert bool(method.mask) == any(phase.masked for phase in method.phases)
    assert method.mask is None or method.mask.by in rules.CHOICES


@pytest.mark.parametrize("name", METHODS)
def test_a_citation_is_no_part_of_what_a_result_is_known_by(name):
    method = methods.METHODS[name]
    other = dataclasses.replace(method, source="elsewhere", note="another", family="control")
    assert other.arithmetic() == method.arithmetic()
    assert dataclasses.replace(method, one_rate=not method.one_rate).arithmetic() != method.arithmetic()


def test_a_weight_is_part_of_what_a_result_is_known_by_and_none_is_not():
    assert "weights" not in methods.METHODS["npo_retain"].arithmetic()["phases"][0]
    assert methods.METHODS["simnpo"].arithmetic()["phases"][0]["weights"] == {"forget": 0.125}


def test_where_nothing_is_replayed_weights_and_what_stands_beside_are_those_of_the_rest():
    (phase,) = methods.METHODS["simnpo"].alone().phases
    assert phase.losses == {"forget": "simnpo"} and phase.weights == {"forget": 0.125}
    with pytest.raises(
        InputError, match="moves something where nothing .* is replayed, found one .SCRUB.* has no gradient"
    ):
        methods.METHODS["scrub"].alone()  # as far from the model it begins with as can be, and begins there
    assert methods.METHODS["dpo"].alone().streams == methods.METHODS["dpo"].referenced == {"forget", "refusal"}


def test_what_a_loss_and_a_stream_are_by_default_is_part_of_what_a_result_is_known_by(monkeypatch):
    before = methods.METHODS["npo_retain"].arithmetic()
    assert before["phases"][0]["options"] == {"descent": {}, "npo": {"beta": 0.1}}
    other = dataclasses.replace(objectives.LOSSES["npo"], of=lambda seen, batch, beta=5.0: None)
    monkeypatch.setitem(objectives.LOSSES, "npo", other)
    changed = methods.METHODS["npo_retain"].arithmetic()
    assert changed["phases"][0]["options"]["npo"] == {"beta": 5.0} and changed["streams"] == before["streams"]
    monkeypatch.setitem(slices.STREAMS, "forget", slices.Slice(slices.TEXT, "forget"))
    assert methods.METHODS["npo_retain"].arithmetic()["streams"] != before["streams"]


# Metric -> arguments of its function, and the value worked out by hand.
OPTIONS = (np.log([[0.2, 0.6]]), np.ones((1, 2)), np.array([1]))
BREAD = ("she bakes bread", "she bakes good bread")
# Four words, of which the second is not the likeliest, and the end of turn.
TOLD = Told(*np.zeros((3, 1, 5)), np.array([[True, False, True, True, False]]), np.ones((1, 5), bool))
JUDGED = {
    "exact": (("Ada Becker.", "ada becker"), 1.0),
    "rouge_l": (BREAD, 6 / 7),
    "contains": (("she is a baker", "baker"), 1.0),
    "cloze": (("she is a baker", "baker"), 1.0),
    "cloze_exact": (("she is a baker", "baker"), 0.0),
    "mcq": (OPTIONS, [1.0]),
    "probability": (OPTIONS, [0.6]),
    "right_share": (OPTIONS, [0.75]),
    "truth_share": (OPTIONS, [0.75]),
    "truthful_published": (OPTIONS, [1 - 0.2 / 0.6]),
    "rouge_1": (BREAD, 6 / 7),
    "rouge_2": (BREAD, 2 / 5),  # one of two pairs, of three
    "rouge_1_recall": (BREAD, 3 / 4),
    "rouge_2_recall": (BREAD, 1 / 3),
    "rouge_l_recall": (BREAD, 3 / 4),
    # Of one word all three match, of two one of two, of three and of four none; and it is shorter by a word.
    "bleu": (BREAD, math.exp(1 - 4 / 3) * (1 * 1 / 2 * 0.1 / 1 * 0.1 / 1) ** (1 / 4)),
    "told_probability": ((TOLD._replace(logps=np.log([[0.5, 0.5, 0.25, 0.25, 1.0]])),), [2 ** (-6 / 5)]),
    "exact_memorisation": ((TOLD,), [3 / 4]),
    "extraction_strength": ((TOLD,), [1 / 2]),
    "letter": (("The answer is B.", ["A", "B"]), "B"),
    "letter_published": (("B. a welder", ["A", "B"]), "B"),  # its first letter
}


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_a_metric_is_the_number_worked_out_by_hand(name):
    arguments, value = JUDGED[name]
    found = metrics.METRICS[name].of(*arguments)
    if isinstance(value, str):
        assert found == value
    else:
        np.testing.assert_allclose(found, value, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_a_metric_says_how_it_is_printed(name):
    metric = metrics.METRICS[name]
    assert metric.title and metric.asks in metrics.ASKS
    assert metric.form.format(metric.scale * 0.5) and metric.name[1:] == metric.title[1:]


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_a_family_tells_its_leaves_apart(name, whole, qwen, llava):
    model = {"llava": llava, "qwen2_vl": qwen, "qwen2_5_vl": qwen}[name][2]
    family, abstract = models.MODELS[name], model.abstract()
    leaves = trees.flatten(abstract)
    for side, pattern in family.sides.items():
        assert trees.flatten(masks.restrict(jax.tree.map(lambda x: jnp.ones(x.shape, bool), abstract), pattern)), side
    assert all(
        sum(trees.flatten(trees.select(abstract, p))[leaf] for p in family.sides.values()) == 1 for leaf in leaves
    )
    assert sharding.unmatched(abstract, family.rules) == []
    weights = [leaf for leaf, yes in trees.flatten(trees.select(abstract, family.eligible)).items() if yes]
    assert weights and all(leaf.endswith("/weight") for leaf in weights)
    assert {*family.images(model.config), "photo"} == set(family.arrays)


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_what_a_method_moves_is_there_in_every_family(name, qwen, llava):
    family = models.MODELS[name]
    abstract = {"llava": llava, "qwen2_vl": qwen, "qwen2_5_vl": qwen}[name][2].abstract()

    def chosen(pattern):
        return {leaf for leaf, yes in trees.flatten(trees.select(abstract, pattern)).items() if yes}

    for method in methods.METHODS.values():
        assert chosen(method.bounded or method.scope), method.source
    assert chosen(methods.METHODS["vkd"].scope) == chosen(family.sides["vision"])
    bounded = chosen(methods.METHODS["sine_project"].bounded)
    assert len(bounded) == 2 and bounded <= chosen(family.eligible) & chosen(family.sides["vision"])


@pytest.mark.parametrize("name", sorted(slices.STREAMS))
def test_a_stream_deals_what_its_slice_says(name, faces):
    part, forgotten = slices.STREAMS[name], set(faces.forget_ids)
    found = slices.examples(part, faces)
    assert found and {example.kind for example in found} == {part.kind} <= {IMAGE, TEXT}
    people = {example.person for example in found}
    everyone = {person.id for person in faces.full}
    of = {"forget": forgotten, "retain": everyone - forgotten, "full": everyone, "nobody": {rehearsal.NOBODY}}
    assert people == of[part.who]
    own = {example for person in faces.full for example in person.training}
    assert (set(found) <= own) == (part.answers == "own" and part.who != "nobody")
    if part.answers == "refusal":
        assert {example.answer for example in found} <= set(slices.REFUSALS)
    assert not {e.person for e in slices.examples(part, faces, frozenset(forgotten))} & forgotten


def test_streams_of_the_same_questions_are_dealt_in_one_order(faces):
    """Row r of a batch of refusals asks what row r of the forget set asks, of the same photo."""
    assert {name: slices.dealt_as(name) for name in slices.STREAMS} == {
        "forget": "forget", "retain": "retain", "text": "text", "refusal": "forget", "vqa": "vqa", "rehearsal": "rehearsal",
    }  # fmt: skip
    for name in slices.STREAMS:
        found, first = (slices.examples(slices.STREAMS[one], faces) for one in (name, slices.dealt_as(name)))
        assert [(e.person, e.question, e.photo) for e in found] == [(e.person, e.question, e.photo) for e in first]


def test_rehearsal_is_of_nobody_to_keep():
    """Neither thinned nor left out where nothing of the kept people is replayed, and in messages it is no person's."""
    both = methods.Method((methods.Phase({"forget": "ascent", "rehearsal": "descent"}),))
    more = methods.Method((methods.Phase({"forget": "ascent", "rehearsal": "descent", "retain": "descent"}),))
    assert both.alone() == both == more.alone()
    with pytest.raises(InputError, match="expected a method with a step on the people to forget"):
        methods.Method((methods.Phase({"rehearsal": "descent"}),)).alone()
    given = dict(people={}, rows=4, seed=0)
    found = streams.stream("rehearsal", tiny.processor(), rehearsal.read(), None, **given)
    batch = found.batch(0)
    assert batch["person"].tolist() == [-1] * 4 and "(rehearsal.tsv)" in found.describe(batch)
    with pytest.raises(InputError, match=r"rehearsal\.tsv"):
        streams.stream("rehearsal", tiny.processor(), rehearsal.read(), None, **given, sizes=Sizes(tokens=(8,)))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    from mmu_jax.data import builders

    prepared = builders.prepare("embedded_faces", tmp_path_factory.mktemp("faces"))
    return builders.read(prepared, forget="forget_10", retain="retain_90")


@pytest.mark.parametrize(
    ("key", "value"),
    [("weights", np.ones((8, 23))), ("valid", np.ones(8, bool)), ("row", np.arange(7)), ("tokens", np.ones(8))],
)
def test_a_batch_whose_arrays_do_not_fit_is_named(key, value):
    batch = make_batch()
    train.check_batch(batch, "retain")
    with pytest.raises(InputError, match="in stream 'retain', found others"):
        train.check_batch(batch | {key: value}, "retain")


def test_one_program_serves_every_batch_of_a_length(llava):
    """Compiled once for the same shapes, whatever the values."""
    from mmu_jax import hf

    folder, _, model = llava
    params = hf.load(folder, model)
    chex.clear_trace_counter()
    forward = jax.jit(chex.assert_max_traces(lambda p, b: model.forward(p, b), n=1))
    for seed in range(3):
        forward(params, make_batch(seed=seed))


SLIPS = {
    "a clip that is none": (lambda: rules.Rule(clip="aftr"), "clip of a mask rule among after, before, found 'aftr'"),
    "a side that is none": (lambda: rules.Rule(side="visoin"), "side of a mask rule .* found 'visoin'"),
    "unlisted that is none": (lambda: rules.Rule(unlisted="feeze"), "unlisted of a mask rule .* found 'feeze'"),
    "a loss that is none": (lambda: methods.Phase({"forget": "asent"}), "losses of a phase among .* found 'asent'"),
    "options of another loss": (lambda: methods.Phase({"forget": "npo"}, options={"nop": {}}), "found those of nop"),
    "a family that is none": (
        lambda: methods.Method((methods.Phase({"retain": "descent"}),), family="basline"),
        "family of a method among .* found 'basline'",
    ),
    "moments that are none": (
        lambda: methods.Method((methods.Phase({"retain": "descent"}),), moments="shard"),
        "moments of a method among shared, separate, found 'shard'",
    ),
    "a stream that is none": (
        lambda: methods.Phase({"forgot": "ascent"}),
        "streams of a phase among forget, .* found 'forgot'",
    ),
    "a weight that is none": (
        lambda: methods.Phase({"forget": "npo"}, weights={"forget": 0.0}),
        "expected weights above 0, found others of forget",
    ),
    "a weight of another stream": (
        lambda: methods.Phase({"forget": "npo"}, weights={"retain": 2.0}),
        "weights of a phase among forget, found 'retain'",
    ),
    "an option that is none": (
        lambda: methods.Phase({"forget": "npo"}, options={"npo": {"betta": 1.0}}),
        "options of npo among beta, found 'betta'",
    ),
    "a need that is none": (
        lambda: objectives.Loss(lambda seen, batch: None, frozenset({"techer"})),
        "needs of a loss among reference, teacher, found 'techer'",
    ),
    "an option without a default": (
        lambda: objectives.Loss(lambda seen, batch, beta: None),
        "every option of a loss by name with its default, found beta without",
    ),
    "options without names": (lambda: objectives.Loss(lambda seen, batch, **rest: None), "found rest without"),
    "a scored loss that is none": (
        lambda: methods.Method((methods.Phase({"retain": "descent"}),), rules.Rule(loss="desent")),
        "the loss of a mask rule among .*descent.* found 'desent'",
    ),
    "a metric that asks for nothing": (
        lambda: metrics.Metric("Word F1", "genration", lambda said, truth: 1.0),
        "asks of a metric among generation, cloze, letter, options, option, told, perturbed, found 'genration'",
    ),
    "a scope and what is bounded": (
        lambda: methods.Method((methods.Phase({"retain": "descent"}),), scope="a", bounded="b"),
        "a scope or what is bounded, found 'a' and 'b'",
    ),
    "a masked phase without a rule": (
        lambda: methods.Method((methods.Phase({"forget": "ascent"}, masked=True),)),
        "a rule for the masked phase",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_in_a_row_is_named(slip):
    make, words = SLIPS[slip]
    with pytest.raises(InputError, match=words):
        make()


def test_a_rule_without_its_evidence_is_refused():
    one = {"w": jnp.ones(4)}
    evidence = rules.Evidence(one, one, one, 1.0, 1.0, None)
    with pytest.raises(InputError, match="expected Evidence.summed for a mask rule salun"):
        rules.make(rules.Rule(by="salun"), evidence, one, {"vision": "none"}, jax.random.key(0))
