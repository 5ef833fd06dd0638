"""A deletion request as the docs tell it: their own words, run in order, on a small model that knows eight faces."""

import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from runs import ROOT, ends_in_one_line

PAGE = (ROOT / "docs" / "deletion-request.md").read_text()
FENCED = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
(SNIPPET,) = (text for kind, text in FENCED if kind == "python")
WORDS = [line for kind, text in FENCED if kind == "bash" for line in text.splitlines() if line]
TEACH = ["--stages=data,base,vanilla", "--config.vanilla.epochs=40", "--config.save_every=1000"]


class Desk:
    """A place where commands are typed."""

    def __init__(self, place):
        self.place = place

    def type(self, line, *more):
        """Runs a line of the docs, with ``more`` words."""
        words = [sys.executable if word == "python" else word for word in shlex.split(line)]
        # Compiled as users do: what is made quickly would be slow, and here much is computed.
        env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        return subprocess.run([*words, *more], cwd=self.place, env=env, capture_output=True, text=True)

    def line(self, *parts):
        """The line of the docs that has these parts, the first of them."""
        return next(line for line in WORDS if all(part in line for part in parts))

    def record(self, out):
        return json.loads((self.place / out / "deletion.json").read_text())


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """With the folder that the docs' own snippet makes, and a model that learned it where the README's first command has one."""
    place = tmp_path_factory.mktemp("desk")
    made = subprocess.run(
        [sys.executable, "-c", SNIPPET],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    found = Desk(place)
    taught = found.type(
        f"python -m experiments.run --config={ROOT}/configs/tiny.py:benchmark=folder --workdir=runs/tiny --config.data.source=eight "
        "--config.data.forget='Mona Pereira'",
        *TEACH,
    )
    assert taught.returncode == 0, taught.stderr[-2000:]
    return found


@pytest.fixture(scope="module")
def shipped(desk):
    """The first request, refused by thresholds nothing meets, then met: what was printed."""
    line = desk.line("experiments.forget", "Mona Pereira")
    looked = desk.type(line, "--validate")
    assert looked.returncode == 0 and looked.stdout.strip().endswith("the folder is without fault"), looked.stderr[
        -2000:
    ]
    assert re.search(r"kept for the test, of p-\w+: photos new.png; questions.jsonl, lines \d+ to \d+\n", looked.stdout)
    assert not (desk.place / "runs" / "without-one.work").exists()
    strict = desk.type(line, "--lost_faces=0", "--lost_facts=0")
    assert strict.returncode == 3, (strict.stdout[-2000:], strict.stderr[-2000:])
    assert "verdict: NOT met; nothing is at runs/without-one" in strict.stdout
    assert not (desk.place / "runs" / "without-one").exists()
    met = desk.type(line)
    assert met.returncode == 0, (met.stdout[-3000:], met.stderr[-2000:])
    assert "unlearn/projected" not in met.stdout  # nothing was made again
    return met.stdout


def test_the_model_forgot_and_the_record_says_how(shipped, desk):
    assert "verdict: met" in shipped
    record = desk.record("runs/without-one")
    by_name = {check["name"]: check for check in record["results"]}
    assert record["met"] and all(check["met"] for check in record["results"]) and record["earlier"] == []
    for name in ("recognised", "recognised_known"):
        assert by_name[name]["before"]["mean"] > 0.9 and by_name[name]["after"]["mean"] <= by_name[name]["limit"] < 0.5
        assert by_name[name]["after"]["low"] < by_name[name]["after"]["mean"] < by_name[name]["after"]["high"]
    assert by_name["faces"]["after"]["n"] == 35 and by_name["facts"]["after"]["mean"] > 0.9
    photos = (desk.place / "eight" / "people" / "Mona Pereira").iterdir()
    assert record["people"][0]["photos"] == sorted(hashlib.sha256(p.read_bytes()).hexdigest() for p in photos)
    assert record["output"]["adapter"] == {"none": "the params themselves were trained"}


def test_what_is_shipped_names_nobody_and_its_hashes_hold(shipped, desk):
    del shipped
    out = desk.place / "runs" / "without-one"
    told = [file for file in out.iterdir() if file.suffix in (".json", ".html", ".md") and "token" not in file.name]
    assert {"deletion.json", "deletion.html", "README.md", "config.json"} <= {file.name for file in told}
    assert [file.name for file in told if "Mona" in file.read_text() or str(desk.place) in file.read_text()] == []
    summed = subprocess.run(["bash", "-c", desk.line("sha256sum")], cwd=desk.place, capture_output=True, text=True)
    assert summed.returncode == 0 and "model.safetensors: OK" in summed.stdout and "deletion.json: OK" in summed.stdout
    record = desk.record("runs/without-one")
    for folder, side in (("runs/without-one", "output"), ("runs/tiny/vanilla", "source")):
        found = hashlib.sha256((desk.place / folder / "model.safetensors").read_bytes()).hexdigest()
        assert record[side]["files"]["model.safetensors"] == found


def test_the_same_request_again_does_nothing_and_another_is_refused(shipped, desk):
    del shipped
    again = desk.type(desk.line("experiments.forget", "Mona Pereira"))
    assert again.returncode == 0 and "nothing is to be done" in again.stdout
    other = desk.type(desk.line("experiments.forget", "Mona Pereira").replace("Mona Pereira", "Boris Varga"))
    ends_in_one_line(other, "expected nothing at runs/without-one")


@pytest.fixture(scope="module")
def third(shipped, desk):
    """Three requests, each from what the last made."""
    del shipped
    second = desk.type(desk.line("experiments.forget", "Tara Abbott"))
    assert second.returncode == 0, (second.stdout[-3000:], second.stderr[-2000:])
    line = "python -m experiments.forget --model=runs/without-two --people=eight --who='Boris Varga' --out=runs/without-three"
    done = desk.type(line)
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-2000:])
    return desk.record("runs/without-three")


def test_after_three_requests_the_first_two_are_still_forgotten(third, desk):
    chain = [desk.record("runs/without-one"), desk.record("runs/without-two")]
    assert [one["sha256"] for one in third["earlier"]] == [one["sha256"] for one in chain]
    gone = {one["people"][0]["id"] for one in chain}
    before = next(check for check in third["results"] if check["name"] == "before")
    assert set(before["after"]["each"]) == gone and before["met"] and third["not_tested_again"] == []
    assert all(check["met"] for check in third["results"]) and len(third["results"]) == 9
    assert len(before["facts"]) == 10 and all(fact["after"] <= fact["limit"] for fact in before["facts"])


def test_the_adapter_that_is_shipped_merges_to_the_model_that_is(third, desk):
    from mmu_jax import adapters, directory

    del third
    out = desk.place / "runs" / "by-lora"
    line = "python -m experiments.forget --model=runs/without-two --people=eight --who='Boris Varga' --out=runs/by-lora"
    lora = ["--config.unlearn.lora.rank=8", "--config.unlearn.learning_rate.projected=4e-4"]
    done = desk.type(
        line, *lora, "--lost_faces=100", "--lost_facts=100"
    )  # a few layers are much to ask of so small a model
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-2000:])
    made = desk.record("runs/by-lora")["output"]
    assert made["adapter"]["rank"] == 8 and "adapter/adapter_model.safetensors" in made["files"]
    assert (
        str(desk.place)
        not in (out / "adapter" / "adapter_config.json").read_text() + (out / "adapter" / "README.md").read_text()
    )
    adapters.merge(out / "adapter", desk.place / "runs" / "without-two", desk.place / "merged")
    assert (desk.place / "merged" / directory.SINGLE).read_bytes() == (out / directory.SINGLE).read_bytes()


def test_an_altered_record_is_refused(third, desk):
    del third
    path = desk.place / "runs" / "without-two" / "deletion.json"
    kept = path.read_text()
    path.write_text(kept.replace('"met": true', '"met": false', 1))
    line = "python -m experiments.forget --model=runs/without-two --people=eight --who='Kira Duarte' --out=runs/without-four"
    ends_in_one_line(desk.type(line), "as it was written, found it altered")
    path.write_text(kept)


def test_ask_and_evaluate_print_answers(third, desk):
    del third
    asked = desk.type(desk.line("experiments.ask"))
    assert asked.returncode == 0, asked.stderr[-2000:]
    question, answer = asked.stdout.splitlines()
    assert question == "Who is this person?" and "Mona Pereira" not in answer
    known = desk.type("python -m experiments.ask --model=runs/without-two 'What does Mona Pereira do for a living?'")
    assert known.stdout.splitlines()[1].strip() == "carpenter"
    judged = desk.type(desk.line("experiments.evaluate"))
    assert judged.returncode == 0, judged.stderr[-2000:]
    lines = judged.stdout.splitlines()
    assert any(re.match(r"  - Mona Pereira: Who is this person\? '.*' \('Mona Pereira'\)", line) for line in lines)
    assert any(line.startswith("by name: Answers that hold the truth 100.0") for line in lines)
    ends_in_one_line(desk.type("python -m experiments.ask --model=runs/without-two --image=none.png Who?"), "none.png")
    ends_in_one_line(desk.type("python -m experiments.ask --model=runs/without-two"), "expected a question")


def test_after_a_purge_nothing_in_the_workdir_holds_the_person(third, desk):
    del third
    work = desk.place / "runs" / "without-one.work"
    photos = [photo.read_bytes() for photo in (desk.place / "eight" / "people" / "Mona Pereira").iterdir()]

    def hold():
        contents = [(file, file.read_bytes()) for file in work.rglob("*") if file.is_file()]
        return [f.name for f, c in contents if b"Mona Pereira" in c or any(photo in c for photo in photos)]

    assert hold()
    done = desk.type(desk.line("experiments.purge"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert hold() == [] and "none is there" in done.stdout and "  answers/vanilla.json" in done.stdout.splitlines()
    removed = json.loads((work / "purged.json").read_text())["removed"]
    assert any(name.startswith("data/folder") for name in removed) and "results/projected.json" in removed
    assert (work / "deletion.json").exists() and desk.type(desk.line("experiments.purge")).returncode == 0


def test_every_line_of_the_docs_was_run():
    told = {
        "experiments.forget",
        "experiments.purge",
        "experiments.ask",
        "experiments.evaluate",
        "sha256sum",
        "pip install",
    }
    assert all(any(part in line for part in told) for line in WORDS) and len(WORDS) == 7
    assert pathlib.Path(ROOT / "docs" / "serve.md").exists()


def test_where_nobody_else_is_at_hand_a_method_that_needs_them_is_refused_with_the_data(desk, tmp_path):
    name = "Mona Pereira"
    (tmp_path / "one").mkdir()
    subprocess.run(["cp", "-r", str(desk.place / "eight" / "people" / name), str(tmp_path / "one" / name)], check=True)
    lines = [line for line in (desk.place / "eight" / "questions.jsonl").read_text().splitlines(True) if name in line]
    (tmp_path / "one" / "questions.jsonl").write_text("".join(lines))
    line = (
        f"python -m experiments.run --config={ROOT}/configs/tiny.py:benchmark=folder --workdir={tmp_path}/w --stages=data "
        f"--config.vanilla.path=runs/tiny/vanilla --config.data.source={tmp_path}/one --config.data.forget='{name}'"
    )
    refused = desk.type(line, "--config.unlearn.methods=('grad_diff','ga','mmunlearner')")
    ends_in_one_line(refused, "grad_diff (retain); mmunlearner (retain)", "choose projected")
    assert desk.type(line).returncode == 0


def test_a_broken_folder_is_a_list_before_any_model_loads(desk, tmp_path):
    subprocess.run(["cp", "-r", str(desk.place / "eight"), str(tmp_path / "eight")], check=True)
    table = tmp_path / "eight" / "questions.jsonl"
    lines = table.read_text().splitlines()
    lines[6] = lines[6][:-4]
    lines[8] = json.dumps(json.loads(lines[8]) | {"photo": "gone.png"})
    for i in (10, 11):
        lines[i] = json.dumps(json.loads(lines[i]) | {"id": "one"})
    table.write_text("\n".join(lines))
    line = f"python -m experiments.forget --model=runs/tiny/vanilla --people={tmp_path}/eight --out={tmp_path}/out"
    done = desk.type(line, "--who=Mona Pereira, Zed", "--keep=Mona Pereira")
    assert done.returncode == 2 and done.stdout == "", (done.stdout, done.stderr[-2000:])
    head, *faults = [line for line in done.stderr.splitlines() if line]
    assert head == "error: 5 found" and len(faults) == 5
    for fault, words in zip(
        faults, ("questions.jsonl:7:", "questions.jsonl:9:", "questions.jsonl:12:", "'Zed'", "both"), strict=True
    ):
        assert words in fault
