"""How methods are compared: rates are chosen as the protocol says, and its tables say what was measured."""

import json
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from mmu_jax import InputError, metrics
from mmu_jax.data import IMAGE, TEXT


def row(p, exact=1.0, guard=1.0, reached=True, **others):
    """A measured run in which everybody has the same value: ``p`` on the primary axis, ``guard`` on both guards."""
    people = ["a", "b"]

    def cell(value):
        return dict.fromkeys(people, value)

    axes = {axis: {"probability": cell(p), "exact": cell(exact)} for axis in ("forget", "retain", "retain_test")}
    axes |= {axis: {"probability": cell(p), "exact": cell(guard)} for axis in ("forget_qa", "retain_qa")}
    axes["forget_test"] = {"probability": cell(0.2), "exact": cell(0.0), "items": [0.1, 0.3]}
    return {"axes": axes, "reached": reached, "iterations": 8} | others


@pytest.fixture(autouse=True)
def of_tiny(monkeypatch):
    """What is compared unless the flag says otherwise."""
    from experiments import design, protocol

    monkeypatch.setattr(protocol, "design", lambda: design.DESIGNS["tiny"])


def choose(monkeypatch, table):
    from experiments import protocol

    def measured(pair, key, name, rates, deep=False):
        return table[rates[0]][protocol.design().choosing.index(pair)]

    monkeypatch.setattr(protocol, "measured", measured)
    monkeypatch.setattr(protocol, "grid", lambda key, name: [(rate, 2e-4) for rate in table])
    return protocol.chosen("all", "grad_diff")[0]


def test_a_pair_that_only_chooses_is_asked_what_decides_and_a_reported_one_everything(monkeypatch, tmp_path):
    from experiments import protocol

    asked = []

    def measure(params, people, kind, album, split):
        asked.append((split, kind))
        items = metrics.Items(np.array([0.5]), np.array(["a"]))
        return {"probability": items, "exact": items}, []

    benchmark = dict.fromkeys(("forget", "test", "retain", "retain_test"), ())
    work = types.SimpleNamespace(
        benchmark=types.SimpleNamespace(**benchmark), albums={"full": None}, general=["everyday"],
        examiner=types.SimpleNamespace(measure=measure), workdir=tmp_path, config=ConfigDict({"unlearn": {"stop": {}}}),
    )  # fmt: skip
    monkeypatch.setattr(protocol, "of_pair", lambda *pair: work)
    monkeypatch.setattr(protocol, "configured", lambda work, setting: work)
    monkeypatch.setattr(protocol.general, "rights", lambda work, params, name: {"a question": 1.0})
    monkeypatch.setattr(protocol.unlearning, "forgotten", lambda *_, **__: ({}, {"iterations": 8, "reached": True}))
    chooses = protocol.measured(protocol.design().choosing[0], "none", "ga", (1e-5, 2e-4))
    assert asked == [("retain_test", IMAGE), ("forget", TEXT), ("retain", TEXT)]
    assert chooses["axes"].keys() == {"retain_test", "forget_qa", "retain_qa"}
    # What was asked less is not what a reported pair is asked, wherever it lies.
    reports = protocol.measured(protocol.design().reported[0], "none", "ga", (1e-5, 2e-4))
    assert reports["axes"].keys() == {*protocol.AXES, "everyday"}


@pytest.mark.parametrize(
    ("table", "rate"),
    [
        ({1e-4: [row(0.8), row(0.6)], 2e-4: [row(0.7), row(0.9)]}, 2e-4),  # by the mean
        ({1e-4: [row(0.9), row(0.9, reached=False)], 2e-4: [row(0.5), row(0.5)]}, 2e-4),  # that got there on both
        ({1e-4: [row(0.9), row(0.9, guard=0.9)], 2e-4: [row(0.5), row(0.5)]}, 2e-4),  # the guards go before
        ({1e-4: [row(0.9), row(0.9, guard=0.9)], 2e-4: [row(0.5), row(0.5, guard=0.9)]}, 1e-4),
        ({1e-4: [row(0.9), {"axes": {}}], 2e-4: [{"axes": {}}, row(0.5)]}, 2e-4),  # nowhere: the highest
    ],
)
def test_a_rate_is_chosen_as_the_protocol_says(monkeypatch, table, rate):
    assert choose(monkeypatch, table) == rate


def test_rates_that_are_not_written_are_read_off_what_was_tried(monkeypatch):
    from experiments import design, protocol

    monkeypatch.setattr(protocol, "design", lambda: design.DESIGNS["smol"])
    monkeypatch.setattr(
        protocol, "of_pair", lambda *pair: types.SimpleNamespace(config=ConfigDict({"unlearn": {"stop": {}}}))
    )
    monkeypatch.setattr(protocol, "measured", lambda *_, **__: pytest.fail("nothing is run for it"))
    monkeypatch.setattr(protocol, "wanted", lambda key: ["ga"])
    rows = []
    monkeypatch.setattr(protocol, "rows_of", lambda *_: (None, rows))
    with pytest.raises(InputError, match="found no ga at 3e-05 .* on seed 0, group 4; run --part=prepare,choose first"):
        protocol.parts({"measure"}, ["none"])
    for rates, kept in zip(protocol.grid("none", "ga"), (0.6, 0.1), strict=True):
        rows.append(row(kept) | protocol.there((0, 4), "none", "ga", rates)[0])
    assert protocol.reported("none", "ga")[0][0] == 3e-5


def test_rates_that_are_written_are_of_the_grid_and_named_apart():
    from experiments import design, protocol

    for key, setting in design.DESIGNS["tiny"].settings.items():
        for name, several in setting.methods.items():
            assert set(several) <= set(protocol.grid(key, name))
            names = [design.label(setting, name, rates) for rates in several]
            assert names[0] == name and len(set(names)) == len(several)
    assert any(len(several) > 1 for several in design.DESIGNS["tiny"].settings["all"].methods.values())


def test_no_pair_that_is_reported_was_chosen_on():
    from experiments import protocol

    assert not {seed for seed, _ in protocol.design().choosing} & {seed for seed, _ in protocol.design().reported}
    assert not {group for _, group in protocol.design().choosing} & {group for _, group in protocol.design().reported}
    assert len(protocol.design().reported) == 15


def test_the_tables_say_what_was_measured(tmp_path):
    from experiments import told

    pairs = [(0, 2), (1, 2)]
    deep = {"attacks": {"relearn_own": {"a": 0.3, "b": 0.3}, "relearn_benign": {"a": 0.2, "b": 0.2}}}
    gold = row(0.95) | deep
    gold["axes"]["forget_test"]["probability"] = {"a": 0.1, "b": 0.3}
    known = {pair: {"vanilla": row(0.94) | deep, "gold": gold} for pair in pairs}
    rows = {("none", "projected", pair): row(0.9 - 0.1 * i) | deep for i, pair in enumerate(pairs)}
    rows |= {("none", "ga", pair): row(0.5) | deep for pair in pairs}
    told.write(tmp_path, {"none": {"projected": "0.0001", "ga": "1e-05"}}, rows, known, ["none"])
    text = (tmp_path / "results.md").read_text()
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    assert "| projected | 0.0001 | 20.0 | 0.0 | 85.0 | 100.0 |" in text and "| 8 | 2 of 2 |" in text
    found = json.loads((tmp_path / "results.json").read_text())["none"]
    minus = found["minus"]["ga"]["Retain Test p ↑"]
    assert minus["mean"] == pytest.approx(0.35) and minus["above"] == minus["pairs"] == 2
    assert 0.3 <= minus["low"] <= 0.35 <= minus["high"] <= 0.4 + 1e-9
    assert found["landed"] == {"projected": 2, "ga": 2}  # 0.2 is within 0.1 to 0.3
    assert found["minus"]["vanilla"]["Retain Test p ↑"]["mean"] == pytest.approx(-0.09)


def test_what_has_no_picture_or_ended_nowhere_is_told_all_the_same(tmp_path):
    from experiments import told

    known = {(0, 2): {"vanilla": row(0.94), "gold": row(0.95)}}
    rows = {("text", "text_ranks", (0, 2)): row(0.9), ("text", "text_own", (0, 2)): {"axes": {}, "diverged": "NaN"}}
    told.write(tmp_path, {"text": {"text_ranks": "0.0016", "text_own": "0.0016"}}, rows, known, ["none", "all"])
    assert not (tmp_path / "results.png").exists()
    assert f"| text_own | 0.0016 |{' – |' * 13}" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(
    ("parts", "prepared", "done"),
    [
        (["prepare", "measure"], "reported", ["measure"]),
        (["prepare"], "reported", []),
        (["prepare", "choose"], "choosing", ["choose"]),
        (["prepare", "choose", "measure"], "both", ["choose", "measure"]),
    ],
)
def test_parts_prepare_the_pairs_that_they_need(monkeypatch, parts, prepared, done):
    from experiments import protocol

    made, ran = [], set()
    wanted = {"choosing": protocol.design().choosing, "reported": protocol.design().reported}
    wanted["both"] = protocol.design().choosing + protocol.design().reported
    monkeypatch.setattr(protocol, "only", lambda pairs: pairs)
    monkeypatch.setattr(protocol, "wanted", lambda key: ["ga"])
    monkeypatch.setattr(protocol, "prepare", made.extend)
    monkeypatch.setattr(protocol, "choose", lambda keys, pairs: ran.add("choose"))
    monkeypatch.setattr(protocol, "measured", lambda *_, **__: ran.add("measure"))
    protocol.parts(set(parts), ["none"])
    assert made == list(wanted[prepared]) and sorted(ran) == done


def test_tables_are_made_of_what_was_measured_and_nothing_is_run_for_them(monkeypatch, tmp_path):
    from experiments import design, protocol

    stop = {"every": 8, "level": 0.0, "margin": 1.0}
    work = types.SimpleNamespace(config=ConfigDict({"unlearn": {"stop": stop}}))
    monkeypatch.setattr(protocol, "of_pair", lambda *pair: work)
    path = tmp_path / "rows.json"
    monkeypatch.setattr(protocol, "rows_of", lambda *_: (path, []))
    (rates,) = design.DESIGNS["tiny"].settings["none"].methods["ga"]
    with pytest.raises(
        InputError, match="found no ga at 1e-05 .* on seed 0, group 2; run --part=prepare,measure first"
    ):
        protocol.read((0, 2), "none", "ga", rates)
    sought, _ = protocol.there((0, 2), "none", "ga", rates)
    shallow, deep = row(0.5) | sought, row(0.5) | sought | {"attacks": {}}
    monkeypatch.setattr(protocol, "rows_of", lambda *_: (path, [shallow, deep]))
    assert protocol.read((0, 2), "none", "ga", rates) is deep  # relearned too, in this setting
    work.config.unlearn.stop.margin = 2.0
    with pytest.raises(InputError, match="found no ga at 1e-05"):
        protocol.read((0, 2), "none", "ga", rates)  # that run ended elsewhere


def test_a_second_rate_is_told_where_there_are_steps_that_only_descend():
    from experiments.design import TINY, label, said

    rates = (1e-4, 5e-5)
    assert said(TINY["none"], "projected_retain", rates) == said(TINY["all"], "grad_diff", rates) == "0.0001"
    assert said(TINY["all"], "projected_retain", rates) == "0.0001 / 5e-05"
    assert label(TINY["all"], "grad_diff", (2e-5, 2e-4)) == "grad_diff at 2e-05"


def test_the_picture_shows_every_pair_and_their_mean():
    from experiments import told

    known = {(0, 2): {"vanilla": row(0.94), "gold": row(0.95)}, (1, 2): {"vanilla": row(0.94), "gold": row(0.95)}}
    rows = {("all", "projected_retain", pair): row(0.9 - 0.1 * i) for i, pair in enumerate(known)}
    rows |= {
        ("all", "ga at 1e-05", pair): row(0.5, reached=False) if pair == (0, 2) else {"axes": {}} for pair in known
    }
    rates = {"all": {"projected_retain": "0.0001 / 0.0002", "ga at 1e-05": "1e-05"}, "text": {}}
    (panel,) = told.picture(rows, rates, known, ["none", "all"]).axes
    assert [tick.get_text() for tick in panel.get_yticklabels()] == ["ga at 1e-05", "projected_retain"]
    dots = [line for line in panel.lines if line.get_marker() == "o"]
    assert [line.get_xydata()[0].tolist() for line in dots] == [
        [50.0, 0.0],
        pytest.approx([90.0, 1.0]),
        pytest.approx([80.0, 1.0]),
    ]
    assert [line.get_mfc() == "none" for line in dots] == [True, False, False]  # it did not reach the level
    assert panel.lines[-1].get_xdata()[0] == pytest.approx(85.0)


def test_distances_are_those_of_scipy():
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import ks_2samp

    first, second = np.random.default_rng(0).beta(2, 5, 40), np.random.default_rng(1).beta(3, 3, 50)
    assert metrics.ks(first, second) == pytest.approx(ks_2samp(first, second).statistic)
    bins = [np.histogram(x, 10, (0, 1))[0] for x in (first, second)]
    assert metrics.js(first, second) == pytest.approx(jensenshannon(*bins, base=2))


def test_a_nested_interval_is_as_wide_as_its_widest_level():
    def of(values):
        return {(seed, group): np.full(20, values[seed]) for seed in range(3) for group in range(5)}

    same = metrics.nested(of([0.1, 0.1, 0.1]))
    assert same["low"] == pytest.approx(0.1) and same["high"] == pytest.approx(0.1) and same["above"] == 15
    seeds = metrics.nested(of([-0.1, 0.1, 0.3]))
    assert seeds["mean"] == pytest.approx(0.1) and seeds["low"] < 0 < seeds["high"] and seeds["above"] == 10
    with pytest.raises(InputError, match="at least one pair"):
        metrics.nested({})
