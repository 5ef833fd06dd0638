"""Checkpoints: what is restored is what was saved, bit for bit, or nothing; whenever it was saved, the run ends in the same bits."""

import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmu_jax import InputError, Stopped, checkpoint, methods
from toys import Killed, Rows, dying, fit_table, same

GA = methods.METHODS["ga"]
STEPS = 6


def state(seed):
    rng = np.random.default_rng(seed)
    return {"w": jnp.asarray(rng.random((40, 5), np.float32)), "deep": {"n": jnp.asarray(rng.integers(0, 9, 3))}}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with the checkpoints of steps 5 and 10 of three that were saved."""
    folder = tmp_path_factory.mktemp("two")
    written = checkpoint.Checkpoints(folder)
    for step in (3, 5, 10):
        written.save(step, state(step))
    written.close()
    return folder


def resumed(folder):
    """The state, and the lines that were told."""
    said = []
    found = checkpoint.Checkpoints(folder, tell=said.append)
    try:
        return found.resume(state(0)), said
    finally:
        found.close()


def is_state(found, step):
    return all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(state(step))))


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def files_of(folder, step):
    return sorted([*(path for path in (folder / str(step)).rglob("*") if path.is_file()), folder / f"{step}.json"])


def test_two_are_kept_each_with_the_hashes_of_its_files(two):
    assert sorted(path.name for path in two.iterdir()) == ["10", "10.json", "5", "5.json"]
    found, said = resumed(two)
    assert is_state(found, 10) and said == []


def test_no_flipped_bit_of_the_newest_is_restored(two, tmp_path):
    """Sixty bits anywhere in its files, hashes and metadata among them: the newest as it was, or the one before with a line."""
    draw, fell = random.Random(0), 0
    for turn in range(60):
        folder = pathlib.Path(shutil.copytree(two, tmp_path / str(turn)))
        path = draw.choice(files_of(folder, 10))
        size = path.stat().st_size
        if not size:
            continue
        flip(path, draw.randrange(8 * size))
        found, said = resumed(folder)
        if said:
            fell += 1
            assert is_state(found, 5), path
            assert len(said) == 1 and "step 10" in said[0] and "step 5" in said[0] and "\n" not in said[0]
            assert not (folder / "10").exists() and not (folder / "10.json").exists()
        else:
            assert is_state(found, 10), path
        shutil.rmtree(folder)
    assert fell >= 50


def test_a_file_that_is_gone_or_more_is_damage(two, tmp_path):
    for turn, change in enumerate((pathlib.Path.unlink, lambda path: path.with_name("more").write_text("x"))):
        folder = pathlib.Path(shutil.copytree(two, tmp_path / str(turn)))
        change(folder / "10" / "default" / "manifest.ocdbt")
        found, said = resumed(folder)
        assert is_state(found, 5) and "1 of" in said[0]


def test_where_none_is_sound_nothing_is_restored_and_nothing_removed(two, tmp_path):
    folder = pathlib.Path(shutil.copytree(two, tmp_path / "w"))
    for step in (5, 10):
        flip(folder / str(step) / "default" / "_METADATA", 300)
    with pytest.raises(InputError, match="as it was written, found .*_METADATA.*delete .*begins anew") as refused:
        resumed(folder)
    assert "\n" not in str(refused.value) and {path.name for path in folder.iterdir()} == {
        "5",
        "5.json",
        "10",
        "10.json",
    }


def test_one_without_hashes_was_being_written_and_is_removed(two, tmp_path):
    folder = pathlib.Path(shutil.copytree(two, tmp_path / "w"))
    (folder / "10.json").unlink()
    found, said = resumed(folder)
    assert is_state(found, 5) and len(said) == 1 and "step 10" in said[0] and "not yet whole" in said[0]
    alone = pathlib.Path(shutil.copytree(two, tmp_path / "alone"))
    shutil.rmtree(alone / "5")
    (alone / "10.json").unlink()
    assert checkpoint.Checkpoints(alone, tell=said.append).latest is None  # begins anew, as it would have without it


def rows(**changes):
    return {"forget": Rows("forget", STEPS)} | changes


def straight():
    return fit_table(GA, rows())[1]


def test_minutes_and_iterations_both_decide(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: 60 * now[0])
    schedule, found = checkpoint.Schedule(every=5, minutes=2.0), []
    for done in range(1, 13):
        now[0] += 0.75
        found += [done] if schedule.due(done) else []
    # The third minute mark after the last one that was kept, or a fifth iteration, whichever comes first.
    assert found == [3, 5, 8, 10]
    assert not any(checkpoint.Schedule(every=50).due(done) for done in range(1, 50))


@pytest.mark.parametrize("kept_at", [(1,), (2, 3), (1, 2, 3, 4), ()])
def test_whenever_it_was_kept_a_killed_run_ends_in_the_same_bits(kept_at, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.Schedule, "due", lambda self, done: done in kept_at)
    with pytest.raises(Killed):
        fit_table(GA, {"forget": dying(Rows("forget", STEPS), 4)}, tmp_path / "c")
    found = checkpoint.Checkpoints(tmp_path / "c")
    assert found.latest == max(kept_at, default=None)
    found.close()
    same(fit_table(GA, rows(), tmp_path / "c")[1], straight())


def test_a_run_that_resumes_from_the_one_before_ends_in_the_same_bits(tmp_path, caplog):
    with pytest.raises(Killed):
        fit_table(GA, {"forget": dying(Rows("forget", STEPS), 4)}, tmp_path / "c")
    (data,) = (path for path in (tmp_path / "c" / "4" / "default" / "d").iterdir())
    flip(data, 8 * (data.stat().st_size // 2))
    same(fit_table(GA, rows(), tmp_path / "c")[1], straight())
    assert [record.getMessage().count("step 4") for record in caplog.records] == [1]
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"5", "5.json", "6", "6.json"}


@pytest.mark.parametrize("at", [1, 4, STEPS])
def test_a_run_that_is_asked_to_stop_keeps_its_state_and_says_where(at, tmp_path):
    looked = iter(range(1, 99))
    with pytest.raises(
        Stopped, match=f"stopped by SIGTERM after iteration {at} of {STEPS}; the same command resumes"
    ) as end:
        fit_table(GA, rows(), tmp_path / "c", save_every=100, stop_asked=lambda: next(looked) == at)
    assert end.value.code == 143
    found = checkpoint.Checkpoints(tmp_path / "c")
    assert found.latest == at
    found.close()
    same(fit_table(GA, rows(), tmp_path / "c")[1], straight())
    with pytest.raises(Stopped):  # where no state is kept there is nothing to keep
        fit_table(GA, rows(), stop_asked=lambda: True)
