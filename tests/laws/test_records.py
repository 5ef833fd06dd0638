"""What lies on disk between two runs: records of stages, JSON, checkpoints. A damaged one is named, with what to do."""

import errno
import json
import math
import os
import pathlib
import shutil
import types

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import SafetensorError

from mmu_jax import InputError, checkpoint, directory, files, memory
from mmu_jax.data import builders
from mmu_jax.report import tables
from mmu_jax.study import records, stages

STATE = {"a": jnp.arange(1000.0), "b": {"c": jnp.ones((3, 4))}}


@pytest.fixture
def table(tmp_path):
    made = []
    table = [
        stages.Stage("one", {"key": 1}, (), lambda: made.append(1)),
        stages.Stage("two", {}, ("one",), lambda: None),
    ]
    found = stages.Stages(tmp_path / "w", table)
    return found, made


def test_stages_are_made_once(table):
    found, made = table
    found.run([])
    found.run([])
    assert made == [1] and found.done("one") and found.wanted([]) == []


def test_what_a_stage_cost_is_kept_and_told_of_the_devices_that_count(table, monkeypatch):
    found, _ = table
    monkeypatch.setattr(memory, "peak", lambda: None)  # as on a CPU
    found.run(["one"])
    assert tables.cost_table(found.workdir)[0] == ["Stage", "Seconds", "Peak host memory so far, GiB"]
    monkeypatch.setattr(memory, "peak", lambda: 3 * 2**30)
    found.run([])
    assert "peak_device_bytes_so_far" not in found.record("one")["cost"]
    head, one, two, _ = tables.cost_table(found.workdir)
    assert head[3] == "Peak device memory so far, GiB" and (one[0], one[3], two[0], two[3]) == (
        "one",
        "–",
        "two",
        "3.00",
    )


def test_the_peak_is_that_of_the_fullest_device(monkeypatch):
    assert memory.peak() is None
    full = [types.SimpleNamespace(memory_stats=lambda n=n: {"peak_bytes_in_use": n}) for n in (5, 7)]
    monkeypatch.setattr(memory.jax, "local_devices", lambda: full)
    assert memory.peak() == 7


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        ({"path.content": "a"}, {"path.content": "b"}, "made with other files in the folder of data.path)"),
        ({"path.content": "a"}, {"path": "/gone"}, "made with a folder that is gone as data.path)"),
        ({"path": "its/id"}, {"path.content": "b"}, "made with no folder as data.path)"),
        ({"path": "its/id"}, {"path": "another/id"}, "made with data.path = 'its/id', now 'another/id')"),
    ],
)
def test_a_folder_that_is_another_is_told_of_once(was, now, said, tmp_path):
    def table(reads):
        return stages.Stages(tmp_path, [stages.Stage("one", {"data": reads}, (), lambda: None)])

    table(was).run([])
    with pytest.raises(InputError) as refused:
        table(now).check()
    assert said in str(refused.value)


DAMAGED = {
    "empty": "",
    "half": '{"status": "do',
    "a list": "[]",
    "without its keys": "{}",
    "no UTF-8": b"\xff\xfe\x00",
    "a pointer of git-lfs": "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_record_is_named(what, table):
    found, made = table
    found.run([])
    content = DAMAGED[what]
    records.place(found.workdir, "one").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"one\.json.*") as said:
        found.run([])
    assert "delete it" in str(said.value) and "\n" not in str(said.value) and made == [1]


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "w").write_text("")
    with pytest.raises(InputError, match="expected a directory in --workdir, found a file"):
        stages.Stages(tmp_path / "w", []).run([])


def test_a_stage_that_is_none_is_named(table):
    with pytest.raises(InputError, match="stages among one, two, found 'three'"):
        table[0].run(["three"])


def test_provenance_without_git_or_packages(monkeypatch):
    def missing(name):
        raise records.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(records.importlib.metadata, "version", missing)
    made = records.provenance()
    assert made["git"] == "git is not installed" and set(made["versions"].values()) == {
        "not installed by a package manager"
    }


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [["results", "forget", "mean"], ["curve", 3]])
def test_a_number_that_is_no_json_is_named_and_nothing_is_written(odd, place, tmp_path):
    value = odd
    for key in reversed(place):
        value = {key: value} if isinstance(key, str) else [0.0] * key + [value]
    with pytest.raises(InputError, match="/".join(map(str, place))):
        files.write_json(tmp_path / "x.json", value)
    assert not list(tmp_path.iterdir())


def test_json_is_whole_or_not_there(tmp_path):
    files.write_json(tmp_path / "deep" / "x.json", {"b": [1, 2.5], "a": "ä"})
    assert json.loads((tmp_path / "deep" / "x.json").read_text()) == {"a": "ä", "b": [1, 2.5]}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="room and permission"):
        files.write_json(tmp_path / "file" / "x.json", {})


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    written = checkpoint.Checkpoints(folder)
    written.save(5, STATE)
    written.close()
    return folder


def restored(folder, like=STATE):
    found = checkpoint.Checkpoints(folder)
    try:
        return found.restore(found.latest, like)
    finally:
        found.close()


def test_every_file_of_a_checkpoint_that_is_cut_is_named_or_not_needed(kept, tmp_path):
    """A checkpoint is read right or refused: never read wrong, never a traceback."""
    refusals = 0
    for file in sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file()):
        folder = pathlib.Path(shutil.copytree(kept, tmp_path / "copy"))
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: len(content) // 2])
        try:
            np.testing.assert_array_equal(restored(folder)["a"], STATE["a"])
        except InputError as error:
            refusals += 1
            assert str(folder) in str(error) and "delete" in str(error) and "\n" not in str(error)
        shutil.rmtree(folder)
    assert refusals >= 3


@pytest.mark.parametrize("like", [{"a": jnp.arange(10.0), "b": {"c": jnp.ones((3, 4))}}, {"a": jnp.arange(1000.0)}])
def test_a_checkpoint_of_another_state_is_refused(like, kept):
    with pytest.raises(InputError, match="complete checkpoint of this stage"):
        restored(kept, like)


FULL = os.strerror(errno.ENOSPC)


def test_a_checkpoint_without_room_is_one_line_and_the_last_one_stays(tmp_path, monkeypatch):
    state = {"w": jnp.arange(8.0)}
    kept = checkpoint.Checkpoints(tmp_path / "c")
    kept.save(1, state)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 69, 31))
        with pytest.raises(InputError, match="room .*for a checkpoint in .*c, found 31 bytes free for 32.*resumes"):
            kept.save(2, state)
    for fault, kind in ((ValueError(f"Error writing w: {FULL}"), InputError), (ValueError("a bug"), ValueError)):
        with monkeypatch.context() as patch:
            patch.setattr(kept._manager, "save", raising(fault))
            with pytest.raises(kind) as said:
                kept.save(2, state)
            assert isinstance(said.value, InputError) == (kind is InputError)
    assert kept.latest == 1
    np.testing.assert_array_equal(kept.restore(1, state)["w"], state["w"])


def raising(error):
    def call(*args, **options):
        raise error

    return call


def test_writers_that_know_no_oserror_are_one_line_where_the_disk_is_full(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="room and permission to write .*out"):
        directory.write(tmp_path / "out", raising(SafetensorError(f"Error while serializing: I/O error: {FULL}")))
    monkeypatch.setattr(builders.People, "download_and_prepare", raising(RuntimeError(f"write() failed: {FULL}")))
    with pytest.raises(InputError, match="room and permission to prepare the data set"):
        builders.prepare("embedded_faces", tmp_path / "data")
    monkeypatch.setattr(builders.People, "download_and_prepare", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        builders.prepare("embedded_faces", tmp_path / "data")


def test_two_runs_at_once_in_one_workdir_are_refused(tmp_path):
    def meets():
        other = stages.Stages(tmp_path / "w", [stages.Stage("other", {}, (), lambda: None)])
        with pytest.raises(InputError, match="expected a workdir that no other run works in"):
            other.run([])

    stages.Stages(tmp_path / "w", [stages.Stage("one", {}, (), meets)]).run([])
    stages.Stages(tmp_path / "w", [stages.Stage("other", {}, (), lambda: None)]).run([])  # the first has ended


def test_a_folder_is_known_by_what_is_read_of_it(tmp_path):
    def known():
        return files.stamp(tmp_path / "m")

    (tmp_path / "m" / "inner").mkdir(parents=True)
    weights, table = tmp_path / "m" / "model.safetensors", tmp_path / "m" / "inner" / "questions.jsonl"
    weights.write_bytes(bytes(3 * 2**20))
    table.write_text("{}")
    seen = [known()]
    for path, name in ((tmp_path / "m" / "README.md", "a card"), (tmp_path / "m" / ".note", "of a download")):
        path.write_text(name)
        assert known() == seen[0]
    for at in (0, 3 * 2**20 - 1):  # the first byte and the last
        data = bytearray(3 * 2**20)
        data[at] = 1
        weights.write_bytes(data)
        seen.append(known())
    table.write_text("[]")
    seen.append(known())
    table.rename(table.with_name("other.jsonl"))
    seen.append(known())
    assert len(set(seen)) == len(seen)
    (tmp_path / "m" / "runs").mkdir()
    (tmp_path / "m" / "runs" / "w.json").write_text("{}")
    assert files.stamp(tmp_path / "m", tmp_path / "m" / "runs") == seen[-1] != known()
    (tmp_path / "linked").symlink_to(tmp_path / "m" / "inner")
    linked = files.stamp(tmp_path / "linked")
    (tmp_path / "m" / "inner" / "other.jsonl").write_text("{1}")
    assert files.stamp(tmp_path / "linked") != linked
    (tmp_path / "m" / "inner" / "round").symlink_to(tmp_path / "m")
    (tmp_path / "m" / "also").symlink_to(tmp_path / "m" / "inner")
    before = known()
    (tmp_path / "m" / "inner" / "other.jsonl").write_text("{2}")
    assert before != known()


def test_the_order_of_a_file_system_is_no_part_of_a_stamp(tmp_path, monkeypatch):
    (tmp_path / "m" / "one").mkdir(parents=True)
    (tmp_path / "m" / "one" / "a.json").write_text("{}")
    (tmp_path / "m" / "two").symlink_to(tmp_path / "m" / "one")
    walk, found = os.walk, files.stamp(tmp_path / "m")

    def turned(*args, **kwargs):
        for root, inner, names in walk(*args, **kwargs):
            inner.reverse()
            yield root, inner, names[::-1]

    monkeypatch.setattr(os, "walk", turned)
    assert files.stamp(tmp_path / "m") == found


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        kwargs["onerror"](PermissionError(errno.EACCES, "Permission denied", "inner"))

    monkeypatch.setattr(os, "walk", refused)
    with pytest.raises(InputError, match="files that can be read"):
        files.stamp(tmp_path)


def test_a_large_file_is_known_by_pieces_of_all_of_it(tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(4096))
    seen = {files.stamp(tmp_path, None, 8, 64)}
    for at in (0, 63, 4095, 4096 - 64):
        data = bytearray(4096)
        data[at] = 1
        (tmp_path / "w.bin").write_bytes(data)
        seen.add(files.stamp(tmp_path, None, 8, 64))
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("value", "like", "said"),
    [
        ({"a": 1}, {"a": float}, ""),
        ({"a": True}, {"a": float}, "a = True where a number"),
        ({"a": 1, "b": "x"}, {"a": float, "*": str}, ""),
        ({"a": 1, "b": 2}, {"a": float, "*": str}, "b = 2 where text"),
        ({}, {"a?": float}, ""),
        ({}, {"a": float}, "it without a"),
        ({"a": [1, None]}, {"a": [(float, type(None))]}, ""),
        ({"a": [1, "x"]}, {"a": [(float, type(None))]}, "a/1 = 'x' where a number"),
        (["exact", []], [{"exact"}], "1 = [] where one of exact"),
        ([float("nan")], [float], "0 = nan where a number"),
        ([10**400], [float], "where a number"),
        ("x" * 99, dict, "... where an object"),
    ],
)
def test_json_of_another_shape_is_named_with_its_place(value, like, said):
    found = files.unlike(value, like)
    assert said in found and bool(said) == bool(found)
