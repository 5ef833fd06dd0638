"""The bench: ways that are compared find the same, and what is written says where and of what."""

import json

import numpy as np
import pytest

from experiments import bench, command, timing
from mmu_jax import InputError


def way(label, value, like="same"):
    return timing.Way(label, lambda: np.float32(value), lambda found: {"x": found}, like)


def test_ways_that_find_something_else_are_not_compared():
    assert timing.warm([way("ours", 1.0), way("theirs", 1.00001), way("another", 7.0, "other")]).keys() == {"theirs"}
    with pytest.raises(InputError, match="expected 'theirs' to find what 'ours' finds"):
        timing.warm([way("ours", 1.0), way("theirs", 1.001)])
    with pytest.raises(InputError, match="relative difference of nan"):
        timing.warm([way("ours", 1.0), way("theirs", np.nan)])


def test_what_lacks_an_array_or_has_another_shape_is_not_the_same():
    assert timing.difference({"a": np.ones(2)}, {"a": np.ones(2), "b": np.ones(2)}) == np.inf
    assert timing.difference({"a": np.ones((2, 1))}, {"a": np.ones(2)}) == np.inf
    assert np.isnan(timing.difference({"a": np.ones(2), "b": np.full(2, np.nan)}, {"a": np.ones(2), "b": np.ones(2)}))
    assert timing.difference({"a": np.full(4, 1e-3)}, {"a": np.zeros(4)}) == pytest.approx(2e-3)


def test_ways_run_in_turns_and_the_first_is_one():
    ran = []
    ways = [timing.Way(name, lambda name=name: ran.append(name)) for name in "abc"]
    taken = timing.interleaved(ways, 3)
    assert "".join(ran) == "abc" + "cba" + "abc"
    rows = timing.compared(
        {"a": np.array([[1.0, 2.0], [2.0, 2.0]]), "b": np.array([[3.0, 5.0], [4.0, 7.0]])}, {"b": 1e-6}
    )
    assert [row["ratio"]["median"] for row in rows] == [1.0, 2.5] and rows[1]["seconds"]["median"] == 3.5
    assert rows[1]["core_seconds"]["median"] == 6.0 and rows[1]["rounds"] == [3.0, 4.0]
    assert rows[1]["apart"] == 1e-6 and "apart" not in rows[0]
    assert {name: len(values) for name, values in taken.items()} == dict.fromkeys("abc", 3)


def test_a_table_is_written_with_its_machine(typed, tmp_path, capsys):
    out = tmp_path / "bench.json"
    words = [
        "--size=tiny",
        "--only=generation,checkpoint",
        "--rounds=2",
        f"--json={out}",
        f"--profile={tmp_path / 'trace'}",
    ]
    typed(*words, how=command.parse_without_config)
    bench.bench()
    found, said = json.loads(out.read_text()), capsys.readouterr().out
    assert found["machine"].keys() >= {"cpu", "cores", "platform", "threads", "load"} and found["rounds"] == 2
    assert found["versions"].keys() >= {"jax", "torch", "transformers"} and found["revision"]
    assert found["size"]["name"] == "tiny" and found["size"]["parameters"] > 1e6
    assert found["machine"]["threads"]["torch"] == found["machine"]["threads"]["jax"] == found["machine"]["cores"]
    many, one, reading, writing = (t for name in ("generation", "checkpoint") for t in found["measurements"][name])
    for table in (many, one, reading, writing):
        ours, *others = table["rows"]
        assert ours["ratio"]["median"] == 1.0 and "apart" not in ours and table["title"] in said
        assert others and all(row["apart"] < timing.TOLERANCE and len(row["rounds"]) == 2 for row in others)
        assert all(f"{row['seconds']['median']:.4f}" in said for row in table["rows"])
    assert [row["apart"] for row in many["rows"][1:] + reading["rows"][1:] + writing["rows"][1:]] == [0.0] * 4
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
