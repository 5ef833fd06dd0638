"""What stages made is known by its hashes: what is gone is made again, what is altered is refused, and neither is ever trusted."""

import json
import pathlib
import random
import shutil

import pytest

from mmu_jax import InputError
from mmu_jax.study import outputs, records, stages


class World:
    """A workdir of four stages: data, a model of it, a leaf of the model, a report of the leaf; what was made, in order."""

    def __init__(self, workdir):
        self.workdir, self.made, self.says, self.before = workdir, [], "a model", lambda: None

    def table(self):
        model, leaf, told = self.workdir / "vanilla", self.workdir / "masks" / "m.bin", self.workdir / "report.html"
        curves = self.workdir / "training" / "vanilla.json"

        def write(name, *files):
            def make():
                self.before()
                self.made.append(name)
                for file in files:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(f"{self.says} {file.name}" if name == "model" else file.name)

            return make

        deep = (model / "weights.bin", model / "deep" / "config.json", model / "README.md", model / ".hidden", curves)
        return stages.Stages(
            self.workdir,
            [
                stages.Stage("data", {}, (), write("data")),
                stages.Stage("model", {"rate": 1}, ("data",), write("model", *deep), models=(model, curves)),
                stages.Stage("mask", {}, ("model",), write("mask", leaf), (leaf,)),
                stages.Stage("report", {}, ("mask",), write("report", told), (told,)),
            ],
        )

    def run(self, *only):
        """The stages that a run makes."""
        self.made.clear()
        self.table().run(list(only))
        return self.made

    def record(self, name):
        return records.place(self.workdir, name)


@pytest.fixture
def world(tmp_path):
    found = World(tmp_path / "w")
    assert found.run() == ["data", "model", "mask", "report"] and found.run() == []
    return found


def test_a_record_has_the_hashes_of_what_was_made_and_of_what_it_was_made_from(world):
    made = {name: json.loads(world.record(name).read_text()) for name in ("data", "model", "mask")}
    assert made["data"]["made"] == {} and made["data"]["inputs"] == {}
    assert set(made["model"]["made"]) == {"vanilla/weights.bin", "vanilla/deep/config.json", "training/vanilla.json"}
    assert made["mask"]["inputs"] == {"model": outputs.known_by(made["model"]["made"])}


def refused(world, *words):
    before = {path: path.read_bytes() for path in world.workdir.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as said:
        world.run()
    assert all(str(word) in str(said.value) for word in words) and "\n" not in str(said.value), said.value
    assert world.made == [] and {p: p.read_bytes() for p in world.workdir.rglob("*") if p.is_file()} == before


ALTERED = {"masks/m.bin": "mask", "vanilla/weights.bin": "model", "vanilla/deep/config.json": "model"}
ALTERED |= {"training/vanilla.json": "model"}


@pytest.mark.parametrize("name", ALTERED)
def test_one_flipped_bit_of_what_was_made_is_refused_and_told_what_to_do(name, world):
    file, stage = world.workdir / name, ALTERED[name]
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    delete = file if stage == "mask" else world.record(stage)
    refused(
        world,
        f"expected {file} as stage {stage} made it, found it altered",
        f"delete {delete}, and the stage is made again",
    )
    delete.unlink()
    assert world.run()[0] == stage
    assert file.read_bytes() != content and world.run() == []


def test_what_is_gone_of_a_model_that_is_there_is_refused(world):
    (world.workdir / "vanilla" / "deep" / "config.json").unlink()
    refused(world, "config.json", "found it gone")


def test_a_model_that_was_moved_away_is_not_missed_until_it_is_read(world):
    shutil.rmtree(world.workdir / "vanilla")
    assert world.run() == []


def test_a_leaf_that_is_gone_is_made_again_with_a_line_and_what_follows_stays(world, capsys):
    leaf = world.workdir / "masks" / "m.bin"
    leaf.unlink()
    capsys.readouterr()
    assert world.run() == ["mask"]
    assert f"  again: {leaf} is gone" in capsys.readouterr().out.splitlines()


def test_cards_and_hidden_files_are_no_part_of_a_model(world):
    for name in ("README.md", ".hidden", "NOTES.md"):
        (world.workdir / "vanilla" / name).write_text("another")
    assert world.run() == []


def test_an_altered_report_is_told_again(world, capsys):
    (world.workdir / "report.html").write_text("another")
    assert world.run() == ["report"] and "report.html is not as it was made" in capsys.readouterr().out


@pytest.mark.parametrize("says", ["a model", "another model"])
def test_what_follows_is_made_again_where_what_it_was_made_from_is_another(says, world, capsys):
    world.record("model").unlink()
    world.says = says
    capsys.readouterr()
    same = says == "a model"
    assert world.run() == (["model"] if same else ["model", "mask"])  # whose leaf is the same, so its report stays
    assert ("  again: model was made again and is another" in capsys.readouterr().out.splitlines()) != same
    assert world.run() == []


def test_a_large_file_is_read_whole_where_a_stage_reads_it(world, monkeypatch):
    monkeypatch.setattr(outputs, "LARGE", 10)
    weights = world.workdir / "vanilla" / "weights.bin"
    weights.write_text("b model weights.bin")
    assert world.run() == []  # nothing reads it
    (world.workdir / "masks" / "m.bin").unlink()
    refused(world, weights, "altered or damaged", world.record("model"))
    weights.write_text("a model weights.bin")
    assert world.run() == ["mask"]


def test_a_file_is_hashed_once_as_long_as_it_stays(world, monkeypatch):
    read, digest = [], outputs.digest
    monkeypatch.setattr(outputs, "digest", lambda file: read.append(file.name) or digest(file))
    table = world.table()
    table.check()
    table.check()
    assert sorted(read) == ["config.json", "m.bin", "vanilla.json", "weights.bin"]


def test_a_record_that_says_nothing_of_its_files_is_refused(world):
    record = json.loads(world.record("mask").read_text())
    del record["made"]
    records.keep(world.workdir, "mask", record)
    refused(world, "mask.json", "without made", "delete it, and the stage is made again")


@pytest.mark.parametrize("name", ["mask", "model"])
def test_no_flipped_bit_of_a_record_is_read(name, world):
    content, draw, refusals = world.record(name).read_bytes(), random.Random(0), 0
    right = records.read(world.workdir, name)
    for _ in range(60):
        damaged, bit = bytearray(content), draw.randrange(8 * len(content))
        damaged[bit // 8] ^= 1 << bit % 8
        world.record(name).write_bytes(damaged)
        try:
            assert records.read(world.workdir, name) == right
        except InputError as error:
            refusals += 1
            assert "delete it" in str(error) and str(world.record(name)) in str(error)
    assert refusals > 45  # the rest lies between the words


def test_leftovers_of_killed_runs_go_and_what_is_not_ours_stays(world):
    gone = [
        "vanilla.partial/x",
        "vanilla.old.partial/x",
        "masks/m.partial",
        "stages/mask.json.partial",
        "report.html.partial",
    ]
    gone += ["checkpoints/other/5.orbax-checkpoint-tmp/x", "checkpoints/model/5/x"]  # of a stage that is done
    stays = ["notes.partial", "mine/x.partial", "masks/m.old", "vanilla.old/x", "checkpoints/other/5/x"]
    for name in (*gone, *stays):
        (world.workdir / name).parent.mkdir(parents=True, exist_ok=True)
        (world.workdir / name).write_text("")
    (world.workdir / "masks" / "m.bin").unlink()
    world.run()
    assert [name for name in gone if (world.workdir / name).exists()] == []
    assert [name for name in stays if not (world.workdir / name).exists()] == []


def test_a_checkpoint_begun_from_another_model_is_dropped(world):
    state = world.workdir / "checkpoints" / "mask" / "5"

    def begin():
        state.mkdir(parents=True)
        raise InputError("killed")

    def killed():
        (world.workdir / "masks" / "m.bin").unlink(missing_ok=True)
        world.before = begin
        with pytest.raises(InputError, match="killed"):
            world.run("mask")
        assert state.exists()
        world.before = lambda: seen.append(state.exists())

    seen = []
    killed()
    world.run("mask")
    assert seen == [True] and not state.exists()  # resumed, and gone when it is done
    killed()
    world.record("model").unlink()
    world.says, seen = "another model", seen[:0]
    world.before = lambda: seen.append(state.exists())
    assert world.run() == ["model", "mask"] and seen == [True, False]


def test_a_second_run_is_refused_before_it_opens_anything(world):
    opened = []

    def meets():
        with pytest.raises(InputError, match="expected a workdir that no other run works in"):
            world.table().run([], lambda: opened.append("second"))

    (world.workdir / "masks" / "m.bin").unlink()
    world.before = meets
    table = world.table()
    table.run([], lambda: opened.append("first"))
    assert opened == ["first"]
    assert pathlib.Path(world.workdir / ".lock").exists()
