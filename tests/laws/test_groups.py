"""Any people of a data set can be the ones to forget, and one vanilla model serves every group of them."""

import dataclasses

import numpy as np
import pytest

from folders import refused
from mmu_jax.data import builders, groups, slices
from mmu_jax.study import records, steps
from mmu_jax.study.study import Study
from runs import small_config


@pytest.fixture(scope="module")
def own(prepared):
    """The benchmark of the data set's own split, group 0."""
    return builders.read(prepared, forget="forget_10", retain="retain_90")


@pytest.fixture(scope="module")
def whole(own):
    """The same before it is told apart: ``test`` is the whole split."""
    return dataclasses.replace(own, test=(*own.test, *own.retain_test)[::-1], retain_test=())


GROUP_2 = ["0010", "0011", "0012", "0013", "0019", "0022", "0048", "0072", "0079", "0098"]


def ids(people):
    return [person.id for person in people]


def test_group_0_is_the_split_of_the_data_set(own, whole):
    found = groups.deal(whole, 0)
    assert (found.forget, found.retain) == (own.forget, own.retain)
    assert sorted(ids(found.test)) == own.forget_ids and sorted(ids(found.retain_test)) == ids(own.retain)


def test_ten_groups_of_ten_faces_are_the_hundred_each_once(own, whole):
    dealt = [groups.deal(whole, group) for group in range(10)]
    assert sorted(person for b in dealt for person in b.forget_ids) == ids(own.full)
    for b in dealt:
        assert b.forget_ids == sorted(b.forget_ids) and len(b.forget) == 10 and b.full == own.full
        assert ids(b.retain) == sorted(set(ids(own.full)) - set(b.forget_ids))
        assert set(ids(b.test)) == set(b.forget_ids) and set(ids(b.retain_test)) == set(ids(b.retain))
    assert dealt[0].forget_ids[0] in ids(dealt[3].retain)


def test_a_group_is_the_same_people_for_ever(prepared, own, whole):
    found = builders.read(prepared, forget="forget_10", retain="retain_90", group=2)
    order = np.random.default_rng(0).permutation(ids(own.retain))
    assert found.forget_ids == sorted(order[10:20]) == GROUP_2
    assert found.test == tuple(p for p in sorted(whole.test, key=lambda p: p.id) if p.id in GROUP_2)
    turned = dataclasses.replace(whole, retain=whole.retain[::-1])  # the order of the data is of no account
    assert groups.deal(turned, 2).forget_ids == GROUP_2


def test_who_stands_in_neither_split_is_trained_on_and_never_asked(prepared):
    for group in (0, 1):
        found = builders.read(prepared, forget="forget_10[:4]", retain="retain_90[:10]", group=group)
        assert [len(getattr(found, name)) for name in ("full", "forget", "retain")] == [100, 4, 10]
        assert (ids(found.test), ids(found.retain_test)) == (found.forget_ids, ids(found.retain))
        trained = {
            part: {e.person for e in slices.examples(slices.STREAMS[part], found)} for part in ("forget", "retain")
        }
        assert trained == {"forget": set(found.forget_ids), "retain": set(ids(found.full)) - set(found.forget_ids)}


@pytest.mark.parametrize(("kept", "count"), [(10, 3), (8, 3), (7, 2), (3, 1)])
def test_a_group_too_many_is_refused_with_how_many_there_are(kept, count, whole):
    few = dataclasses.replace(whole, forget=whole.forget[:4], retain=whole.retain[:kept])
    assert len(groups.deal(few, count - 1).forget) == 4
    said = rf"one of {count} groups of 4 people .0, the forget split, to {count - 1}., found group {{}}; choose one"
    for group in (count, 99, -1):
        refused(said.format(group), groups.deal, few, group)


# ---- a study


def of_group(group, **vanilla):
    config = small_config()
    config.data.group = group
    config.vanilla.update(vanilla)
    return config


def prints(config, workdir):
    stages = Study(config, workdir).stages
    return {name: stages.fingerprint(name) for name in stages.table}


def test_one_vanilla_model_serves_every_group(tmp_path):
    first, second = (prints(of_group(group), tmp_path / "w") for group in (0, 3))
    assert {name for name in first if first[name] == second[name]} == {"data", "base", "vanilla"}
    assert {"gold", "saliency/mmunlearner", "unlearn/ga", "evaluate/vanilla", "evaluate/gold", "report"} <= first.keys()


def test_a_vanilla_model_of_one_s_own_does_too(tmp_path):
    (tmp_path / "vanilla").mkdir()
    path = str(tmp_path / "vanilla")
    first, second = (prints(of_group(group, path=path), tmp_path / "w") for group in (0, 3))
    assert {name for name in first if first[name] == second[name]} == {"data"}


def test_a_second_group_in_a_workdir_is_refused_by_its_key(tmp_path):
    stages = Study(of_group(0), tmp_path).stages
    name = "evaluate/vanilla"
    record = {"status": "done", "fingerprint": stages.fingerprint(name), "reads": stages.table[name].reads}
    record |= {"inputs": {}, "made": {}}
    records.keep(tmp_path, name, record)
    Study(of_group(0), tmp_path).stages.check()
    said = "made stage evaluate/vanilla .*made with data.group = 0, now 3.; give another --workdir"
    refused(said, Study(of_group(3), tmp_path).run)


def test_the_data_stage_counts_the_same_people_for_every_group(prepared, tmp_path):
    counted = []
    for group in (0, 3):
        config = of_group(group)
        config.data.path = str(prepared)
        counted.append(steps.prepare_data(Study(config, tmp_path).work))
    assert counted[0] == counted[1]
    assert counted[0] == {"full": 100, "forget": 10, "retain": 90, "test": 100, "unseen": 10, "celebrity": 0}


@pytest.mark.parametrize("given", [False, True])
def test_the_data_stage_looks_at_every_row_once(given, prepared, tmp_path, monkeypatch):
    config, seen = of_group(3), []
    config.data.path, config.model.path = str(prepared), "/model" if given else ""
    work = Study(config, tmp_path).work
    work.processor = None  # of the model that is given; none is here
    monkeypatch.setattr(steps.loader, "examine", lambda processor, people, *bounds: seen.extend(people))
    monkeypatch.setattr(steps.loader, "decode", seen.append)
    steps.prepare_data(work)
    assert len(seen) == len({(p.id, p.photos) for p in seen}) == 210 and seen == list(work.benchmark.shown)
