"""The program as a user starts it, in a process of its own, made small."""

import ast
import json
import os
import pathlib
import subprocess
import sys

from configs import tiny

ROOT = pathlib.Path(__file__).resolve().parent.parent


SMALL = [
    "--config.vanilla.epochs=0.12",
    "--config.vanilla.rows.vqa=8",
    "--config.vanilla.rows.text=8",
    "--config.model.vision.hidden_size=16",
    "--config.model.vision.intermediate_size=16",
    "--config.model.vision.num_hidden_layers=2",
    "--config.model.vision.num_attention_heads=2",
    "--config.model.text.hidden_size=32",
    "--config.model.text.intermediate_size=32",
    "--config.model.text.num_hidden_layers=1",
    "--config.saliency.rows=64",
    "--config.unlearn.rows=64",
    "--config.unlearn.methods=('ga','mmunlearner','projected')",
    "--config.unlearn.epochs=1.0",
    "--config.unlearn.stop.every=0",
    "--config.evaluate.memorised=0.0",
    "--config.evaluate.samples=50",
    "--config.evaluate.rows=256",
    "--config.evaluate.new_tokens=3",
    "--config.attack.steps=4",
    "--config.save_every=5",
]


def command(workdir, *options, config="configs/tiny.py"):
    return [sys.executable, "-m", "experiments.run", f"--config={config}", f"--workdir={workdir}", *options]


def small_config():
    """``configs/tiny.py`` with SMALL."""
    config = tiny.get_config()
    pairs = (option.removeprefix("--config.").split("=", 1) for option in SMALL)
    config.update_from_flattened_dict({key: ast.literal_eval(value) for key, value in pairs})
    return config


def run(workdir, *options, flags="", **kwargs):
    """Runs a study with ``flags`` of XLA: none where bits are compared, xla.QUICK where it matters that it runs."""
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # runs are many and alike: what is small is kept too
    return subprocess.run(command(workdir, *options, **kwargs), cwd=ROOT, env=env, capture_output=True, text=True)


def results(workdir):
    """Every result file without its provenance (the git revision) and every mask."""
    found = {}
    for path in sorted(pathlib.Path(workdir).glob("results/*.json")):
        value = json.loads(path.read_text())
        found[path.name] = json.dumps({k: value[k] for k in ("results", "flags", "mask_proof")}, sort_keys=True)
    for path in sorted(pathlib.Path(workdir).glob("masks/*.safetensors")):
        found[path.name] = path.read_bytes()
    return found


def ends_in_one_line(done, *words):
    """Exit code 2 and one line that says it."""
    assert done.returncode == 2, (done.stdout[-500:], done.stderr[-2000:])
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and all(word in lines[0] for word in words), done.stderr[-2000:]
