"""The entry point as a user meets it: every config runs, errors are one line, a killed run ends in the same results."""

import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from mmu_jax import InputError, files
from mmu_jax.study import records, unlearning
from runs import ROOT, SMALL, command, ends_in_one_line, results, run, small_config
from xla import QUICK


@pytest.fixture
def copy(whole, tmp_path):
    return pathlib.Path(shutil.copytree(whole[0], tmp_path / "w"))


SPLITS = {"forget": 10, "retain": 90, "test": 10, "retain_test": 90}


def test_the_run_ends_with_the_table_and_the_report(whole):
    workdir, out = whole
    assert "plan:" in out and "forget mask" in out
    assert out.strip().splitlines()[-1] == f"report: {workdir / 'report.html'}"
    for name in ("vanilla", "gold", "ga", "mmunlearner"):
        assert any(line.startswith(name) for line in out.splitlines())
        assert (workdir / "results" / f"{name}.json").exists()
    page = (workdir / "report.html").read_text()
    assert 'src="http' not in page and "data:image/png;base64," in page
    assert "Retain Test VQA ↑" in out
    found = json.loads((workdir / "results" / "mmunlearner.json").read_text())
    numbers = {
        split: {task: cells["exact"]["people"] for task, cells in found["results"][split].items()} for split in SPLITS
    }
    assert numbers == {split: {"vqa": people, "qa": people} for split, people in SPLITS.items()}
    proof = found["mask_proof"]
    assert sum(group["outside"] for group in proof.values()) == 0
    assert sum(group["inside"] for group in proof.values()) > 0


def test_transformers_loads_the_unlearned_model_and_gives_our_logits(whole):
    import jax
    import torch
    import transformers

    from mmu_jax import hf, models
    from mmu_jax.data import builders, text, vision

    folder = whole[0] / "unlearned" / "mmunlearner"
    reference, info = transformers.LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    processor = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    benchmark = builders.read(
        next((whole[0] / "data").glob("*/*/dataset_info.json")).parent, forget="forget_10", retain="retain_90"
    )
    face = vision.decode(benchmark.forget[0].photos[0], "a face")
    question = text.messages("What is the name of this person?", 1)
    prompt = processor.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    theirs = processor(images=face, text=prompt, return_tensors="pt")
    with torch.no_grad():
        expected = reference.eval()(**theirs).logits.numpy()
    model = models.Model(hf.read_config(folder))
    seen = [vision.pictures(processor, [face])]
    batch = text.encode_prompts(processor, ["What is the name of this person?"], 1).batch([0], seen)
    batch |= vision.arrays(seen)
    valid = batch["valid"][0]
    np.testing.assert_array_equal(batch["tokens"][0][valid], theirs["input_ids"][0].numpy())
    logits = jax.jit(model.forward)(hf.load(folder, model), batch)
    np.testing.assert_allclose(np.asarray(logits)[0][valid], expected[0], atol=1e-4)


def test_saliency_and_mask_of_the_vanilla_model_equal_torch(whole):
    import transformers

    from configs import tiny as config_file
    from mmu_jax import masks, methods, objectives, saliency, trees
    from mmu_jax.study.study import Study
    from twins import torch_gradients

    config = config_file.get_config()
    config.vanilla.path = str(whole[0] / "vanilla")
    work = Study(config, whole[0]).work
    reference = transformers.LlavaForConditionalGeneration.from_pretrained(whole[0] / "vanilla")
    streams = work.streams(16)
    first = {name: list(itertools.islice(stream.epoch(), 4)) for name, stream in streams.items()}
    sets = {"forget": first["forget"][:3], "retain": first["retain"]}
    sets["preserve"] = sets["retain"] + first["text"][:3]
    leaves, ours, theirs = work.model.family.eligible, {}, {}
    loss = objectives.of_params(methods.METHODS["mmunlearner"].mask.loss, work.model)
    for name, batches in sets.items():
        scores = saliency.scores(loss, work.load(work.vanilla), batches, leaves=leaves, unit="batch")
        ours[name] = {leaf: np.asarray(x) for leaf, x in trees.flatten(scores).items()}
        grads = [torch_gradients(reference, work.model, batch) for batch in batches]
        theirs[name] = {leaf: np.mean([g[leaf].astype(np.float64) ** 2 for g in grads], axis=0) for leaf in ours[name]}
        for leaf, expected in theirs[name].items():
            assert np.abs(ours[name][leaf] - expected).max() <= 1e-4 * expected.max(), (name, leaf)
    for leaf, f in theirs["forget"].items():
        p = theirs["retain" if leaf.startswith(("vision", "multi")) else "preserve"][leaf]
        q = ours["retain" if leaf.startswith(("vision", "multi")) else "preserve"][leaf]
        mask = np.asarray(masks.ratio({"x": ours["forget"][leaf]}, {"x": q})["x"])
        ratio = (f + 1e-15) / (p + 1e-15)
        # Scores this far below a tensor's largest are rounding noise on both sides: no ratio of them is a fact.
        real = np.maximum(f, p) > 1e-8 * max(f.max(), p.max())
        sure = real & (np.abs(ratio - 1) > 1e-3)
        np.testing.assert_array_equal(mask[sure], ratio[sure] >= 1)
        assert sure.mean() > 0.9, leaf


def test_the_same_command_again_does_nothing(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()}
    began = time.monotonic()
    assert run(copy, *SMALL).returncode == 0
    assert time.monotonic() - began < 60
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file()} == before


def end_when(workdir, sign, tmp_path, how=signal.SIGKILL):
    """Starts the run and ends it by a signal as soon as ``sign()`` holds; its exit code and the last line it said."""
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command(workdir, *SMALL), cwd=ROOT, env=env, stdout=log, stderr=log)
        while process.poll() is None and not sign():
            time.sleep(0.02)
        alive = process.poll() is None
        process.send_signal(how)
        code = process.wait()
    said = (tmp_path / "log").read_text()
    assert alive, said[-2000:]
    return code, said.splitlines()[-1]


def test_killed_in_training_saliency_and_unlearning_the_results_are_the_same(whole, tmp_path):
    """By SIGTERM too, which loses no iteration, and which outside of training ends at once."""
    workdir = tmp_path / "w"

    def kept(stage, step):
        return lambda: (workdir / "checkpoints" / stage / f"{step}.json").exists()

    def begun(stage):
        return lambda: (workdir / "stages" / f"{stage}.json").exists()

    assert end_when(workdir, kept("vanilla", 10), tmp_path)[0] == -signal.SIGKILL
    code, said = end_when(workdir, kept("vanilla", 15), tmp_path, signal.SIGTERM)
    found = re.fullmatch(r"stopped by SIGTERM in vanilla after iteration (\d+) of \d+; the same command resumes", said)
    assert code == 143 and found and kept("vanilla", found[1])(), said
    assert end_when(workdir, begun("saliency/mmunlearner"), tmp_path)[0] == -signal.SIGKILL
    assert end_when(workdir, kept("unlearn/mmunlearner", 5), tmp_path)[0] == -signal.SIGKILL
    code, said = end_when(workdir, begun("evaluate/mmunlearner"), tmp_path, signal.SIGTERM)
    assert (code, said) == (143, "stopped by SIGTERM in evaluate/mmunlearner; the same command resumes")
    assert run(workdir, *SMALL).returncode == 0
    assert results(workdir) == results(whole[0])
    assert not list(workdir.rglob("*.partial")) and not list((workdir / "checkpoints").rglob("*.json"))


def test_a_workdir_made_with_another_config_is_left_alone(copy):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    ends_in_one_line(run(copy, *SMALL, "--config.vanilla.learning_rate=0.5"), "learning_rate", "another --workdir")
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_a_vanilla_model_that_knows_nobody_stops_the_run(whole, tmp_path):
    small = [option for option in SMALL if "memorised" not in option]
    small += ["--config.vanilla.epochs=0.01", "--stages=data,base,vanilla,evaluate/vanilla"]
    done = run(tmp_path / "w", *small, flags=QUICK)
    ends_in_one_line(done, "knows the people to forget", "train it longer")


def forget_stage(workdir, name):
    (workdir / "stages" / "unlearn" / f"{name}.json").unlink()
    shutil.rmtree(workdir / "unlearned" / name)


def test_a_damaged_checkpoint_is_refused(copy):
    forget_stage(copy, "mmunlearner")
    file = copy / "vanilla" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    ends_in_one_line(run(copy, *SMALL), f"expected {file} as stage vanilla made it", "damaged", "stages/vanilla.json")
    assert not (copy / "unlearned" / "mmunlearner").exists()


def test_every_fault_of_a_checkpoint_is_listed(whole, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = pathlib.Path(shutil.copytree(whole[0] / "vanilla", tmp_path / "checkpoint"))
    table = load_file(folder / "model.safetensors")
    del table["multi_modal_projector.linear_1.bias"]
    table["multi_modal_projector.linear_2.bias"] = np.zeros(3, np.float32)
    table["multi_modal_projector.linear_3.bias"] = np.zeros(3, np.float32)
    save_file(table, folder / "model.safetensors", metadata={"format": "pt"})
    done = run(tmp_path / "w", *SMALL, f"--config.vanilla.path={folder}", "--stages=data,evaluate/vanilla")
    missing, shape = "linear_1/bias is missing", "linear_2.bias has shape (3,), expected (32,)"
    ends_in_one_line(done, "3 faults", missing, shape, "linear_3.bias is not a tensor of this model")


def lose(column):
    return lambda split, rows: [{k: v for k, v in row.items() if k != column} for row in rows]


def spoil(split, rows):
    return [row | {"images": [b"no image", *row["images"][1:]]} if row["ID"] == "0007" else row for row in rows]


DATA = {
    "column": (lose("Mask_Task"), [], ["a column 'Mask_Task'", "found only", "MLLMU-Bench schema"]),
    "image": (spoil, [], ["photo 1 of person 0007", "replace the file"]),
    "split": (None, ["--config.data.forget=forget_5"], ["'forget_5'", "forget_10"]),
    "both": (None, ["--config.data.retain=full"], ["nobody both in forget and retain", "10 people"]),
    "group": (None, ["--config.data.group=10"], ["one of 10 groups of 10 people", "found group 10"]),
    "empty": (None, ["--config.data.forget=full[:0]"], ["at least one person in the forget set"]),
}


@pytest.mark.parametrize("fault", DATA)
def test_a_data_set_that_cannot_be_used_is_refused(fault, tmp_path, monkeypatch):
    from mmu_jax.data import builders
    from mmu_jax.data.sets import faces

    change, options, words = DATA[fault]
    rows, features = faces.rows, builders._features()
    if change is not None:
        monkeypatch.setattr(faces, "rows", lambda split, source: change(split, list(rows(split))))
    if fault == "column":
        kept = {name: feature for name, feature in features.items() if name != "Mask_Task"}
        monkeypatch.setattr(builders, "_features", lambda: type(features)(kept))
    where = builders.prepare("embedded_faces", tmp_path / "data")
    ends_in_one_line(run(tmp_path / "w", f"--config.data.path={where}", "--stages=data", *options), *words)
    assert not list((tmp_path / "w").rglob("*.safetensors"))


def test_a_path_without_a_data_set_is_refused(tmp_path):
    ends_in_one_line(run(tmp_path / "w", f"--config.data.path={tmp_path}", "--stages=data"), "TFDS", str(tmp_path))


def test_a_method_is_added_to_a_finished_run(copy):
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.suffix in (".safetensors", ".json")}
    more = [option.replace("('ga',", "('ga','mask_random',") for option in SMALL]
    done = run(copy, *more)
    assert done.returncode == 0, done.stderr[-2000:]
    assert any(line.startswith("mask_random") for line in done.stdout.splitlines())
    changed = {p.relative_to(copy).as_posix() for p, at in before.items() if p.stat().st_mtime_ns != at}
    assert changed == {"stages/report.json"}


def test_a_mask_for_another_model_is_refused(copy):
    from mmu_jax import masks
    from mmu_jax.study.study import Study

    forget_stage(copy, "mmunlearner")
    masks.save(copy / "masks" / "mmunlearner.safetensors", {"w": np.ones(8, bool)})
    ends_in_one_line(
        run(copy, *SMALL), "masks/mmunlearner.safetensors as stage saliency/mmunlearner made it", "altered"
    )
    with pytest.raises(InputError, match="does not fit this model.*the saliency stage makes it again"):
        unlearning.prepare(Study(small_config(), copy).work, "mmunlearner")
    assert not (copy / "unlearned" / "mmunlearner").exists()


def test_a_loss_that_blows_up_names_the_step_the_rows_and_the_checkpoint(tmp_path):
    diverging = ["--config.vanilla.learning_rate=1e30", "--config.vanilla.warmup=0.0"]
    done = run(tmp_path / "w", *SMALL, *diverging, flags=QUICK)
    ends_in_one_line(done, "finite loss", "at step", "rows", "last good checkpoint")


def test_a_rate_that_diverges_is_the_worst_of_a_sweep(whole):
    from experiments import sweep
    from mmu_jax.study.study import Study

    work = Study(small_config(), whole[0]).work
    found = sweep.measure(work, "ga", learning_rate=1e30, retain_rate=1.0)
    assert found["axes"] == {} and "expected finite" in found["diverged"]
    key = {"seed": 1, "method": "ga", "retain_rate": 1.0}
    rows = [key | {"learning_rate": 1e30} | found, key | {"learning_rate": 2.0, "axes": {"forget VQA": 0.1}}]
    assert sweep.choose(rows) == {"ga": (2.0, 1.0)} and sweep.choose(rows[:1]) == {}


def json_stages(workdir):
    return {
        path.relative_to(workdir / "stages").with_suffix("").as_posix() for path in (workdir / "stages").rglob("*.json")
    }


GONE = {
    "results/vanilla.json": "evaluate/vanilla",
    "results/ga.json": "evaluate/ga",
    "masks/mmunlearner.json": "saliency/mmunlearner",
    "answers/gold.json": "evaluate/gold",
    "report.html": "report",
}


def test_what_is_gone_is_made_again(copy):
    before = results(copy)
    for path in GONE:
        (copy / path).unlink()
    shutil.rmtree(copy / "unlearned" / "ga")
    asked = run(copy, *SMALL)
    ends_in_one_line(asked, "unlearned/ga")
    assert f"delete {copy / 'stages/unlearn/ga.json'}, and it is made again" in asked.stdout
    (copy / "stages/unlearn/ga.json").unlink()
    done = run(copy, *SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    made = [line for line in (asked.stdout + done.stdout).splitlines() if line in json_stages(copy)]
    assert set(made) == {*GONE.values(), "unlearn/ga"}
    assert results(copy) == before and (copy / "report.html").exists()


def test_a_model_that_is_not_finite_names_its_rate(copy):
    from safetensors.numpy import load_file, save_file

    for path in ("stages/evaluate/ga.json", "results/ga.json"):
        (copy / path).unlink()
    weights = copy / "unlearned" / "ga" / "model.safetensors"
    save_file({name: x * np.float32(1e30) for name, x in load_file(weights).items()}, weights, {"format": "pt"})
    record = json.loads((copy / "stages" / "unlearn" / "ga.json").read_text())
    record["made"]["unlearned/ga/model.safetensors"] = files.digest(weights)  # as if the method had made it
    records.keep(copy, "unlearn/ga", record)
    ends_in_one_line(run(copy, *SMALL), "unlearned at too high a rate", "stages/unlearn/ga.json", "learning_rate.ga")


def test_another_model_behind_the_same_path_is_another(whole, tmp_path):
    from mmu_jax.study.study import Study

    config = small_config()
    config.vanilla.path, config.gold = str(shutil.copytree(whole[0] / "vanilla", tmp_path / "mine")), False
    study = Study(config, tmp_path / "w")
    study.run(["data"])
    Study(config, tmp_path / "w").stages.check()
    config.vanilla.path = str((tmp_path / "mine").rename(tmp_path / "moved"))
    Study(config, tmp_path / "w").stages.check()  # the same model, wherever it lies
    shutil.copy(whole[0] / "unlearned" / "ga" / "model.safetensors", tmp_path / "moved")
    with pytest.raises(InputError, match="made with other files in the folder of vanilla.path.*another --workdir"):
        Study(config, tmp_path / "w").stages.check()


def test_a_vanilla_model_of_one_s_own_is_unlearned_as_it_is(whole, tmp_path):
    done = run(tmp_path / "w", *SMALL, f"--config.vanilla.path={whole[0] / 'vanilla'}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "w" / "vanilla").exists() and not (tmp_path / "w" / "base").exists()
    assert (tmp_path / "w" / "unlearned" / "mmunlearner" / "model.safetensors").exists()
