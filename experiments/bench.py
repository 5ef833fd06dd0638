"""Speed and memory against peers in the same run, as ratios; nothing here is asserted.

    python -m experiments.bench [--only=saliency,iteration] [--size=mid] [--rounds=7] [--json=bench.json] [--profile=DIR]

Ours against torch and transformers, where they are installed, on one checkpoint of random weights and the same batches, in
float32 and with a thread a core on both sides. Every way runs once, which compiles it and shows whether all find the same; then
they run in turns, and medians, quartiles and ratios to ours are told.

saliency    scores of the linear weights by the gradient of a batch and of every example
iteration   a masked step of ascent and one of descent, as ``mmunlearner`` takes them
generation  greedy decoding of many rows, and of one
ranking     log-probabilities of four options of a question about a photo
checkpoint  reading and writing the model's directory
memory      what saliency holds beyond the params
selection   the k-th largest score by bisection on float bits against a full sort
product     a linear layer in bfloat16 and its gradients against the plain product, in bfloat16 and in float32
load        peak resident memory of a process that reads a sharded bfloat16 checkpoint of ``--gib`` onto an 8-device CPU
            mesh, relative to the checkpoint; and, as the peer, of one that reads every file whole before placing it
plan        what the published models need on a device, worked out from their shapes
compile     asked for alone: the same beside what the compiler of a TPU allots, with no TPU (experiments/compiled.py)
"""

import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from experiments import command, compiled, contests, footprint, peers, timing
from experiments.workload import SIZES, Size, Workload
from mmu_jax import InputError, masks, rowwise, trees

NAMES = (*contests.CONTESTS, "memory", "selection", "product", "load", "plan")
ONLY = flags.DEFINE_list("only", list(NAMES), "Which measurements.")
SIZE = flags.DEFINE_enum("size", "mid", list(SIZES), "Of the model: the embedded default's, or 47 million parameters.")
ROUNDS = flags.DEFINE_integer("rounds", 7, "How often every way runs after its first time.", lower_bound=1)
BATCHES = flags.DEFINE_integer("batches", 1, "Batches of saliency.", lower_bound=1)
ROWS = flags.DEFINE_integer("rows", None, "Rows of a batch of saliency and training, if not the size's.", lower_bound=1)
GIB = flags.DEFINE_float("gib", 2.0, "Size of the checkpoint that load reads.", lower_bound=0.01, upper_bound=1000)
JSON = flags.DEFINE_string("json", None, "Where to write all of it as JSON.")
PROFILE = flags.DEFINE_string("profile", None, "A folder for a trace of ours that xprof shows.")
READ = flags.DEFINE_string("read", None, "Internal: read this checkpoint and print the memory it took.")
WHOLE = flags.DEFINE_bool("whole", False, "Internal: read it the peer's way.")
SCORE = flags.DEFINE_string("score", None, "Internal: score with the model that is read, in this way.")

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers", "safetensors")


def cores() -> int:
    """How many this process may use, which is how many threads XLA has."""
    return len(os.sched_getaffinity(0))


def processor() -> str:
    """The name of the CPU."""
    found = re.search(r"model name\s*: (.+)", pathlib.Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


def revision() -> str | None:
    """The commit of this checkout, with a plus where files differ from it; None where it is none."""
    words = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty=+"]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def machine() -> dict:
    """Where this is measured, and how busy it was before."""
    threads = {"jax": cores()} | ({"torch": peers.threads(cores())} if contests.TORCH else {})
    device = jax.devices()[0]
    found = {"cpu": processor(), "cores": cores(), "platform": device.platform, "device": device.device_kind}
    return found | {"threads": threads, "load": os.getloadavg()[0], "python": platform.python_version()}


def selection() -> timing.Contest:
    """The k-th largest score, exactly and by a sort in which ties are not."""
    scores = {"w": jnp.asarray(np.random.default_rng(0).random(4_000_000, np.float32))}
    ranked = jax.jit(lambda x: x >= jnp.sort(x)[-1_000_000])
    ways = [
        timing.Way("ours, bisection on float bits", lambda: masks.top_k(scores, 1_000_000)),
        timing.Way("full sort (ties not exact)", lambda: ranked(scores["w"])),
    ]
    return timing.Contest("top 1,000,000 of 4,000,000 scores", ways)


def product() -> timing.Contest:
    """A layer of 576 by 1,536 on 1,440 tokens, from input to the gradients of weight and input."""
    rng = np.random.default_rng(0)
    weight, x, back = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((1536, 576), (1440, 576), (1440, 1536))
    )

    def way(label, of, dtype):
        gradient = jax.jit(jax.grad(lambda w, x: (of(w, x.astype(dtype)).astype(jnp.float32) * back).sum(), (0, 1)))
        return timing.Way(label, lambda: gradient(weight, x))

    def plain(weight, x):
        return jnp.einsum("ni,oi->no", x, weight.astype(x.dtype))

    ways = [
        way("ours, bfloat16", lambda w, x: rowwise.linear(w, x, jnp.bfloat16), jnp.bfloat16),
        way("plain, bfloat16", plain, jnp.bfloat16),
        way("plain, float32", plain, jnp.float32),
    ]
    return timing.Contest("a linear layer and its gradients", ways)


def size() -> Size:
    """What the flags ask for."""
    found = SIZES[SIZE.value]
    return dataclasses.replace(found, rows=ROWS.value or found.rows)


def measures(work: Callable[[], Workload]) -> dict[str, Callable[[], list[dict]]]:
    """Every measurement by name; those that need the model ask for it."""

    def contested(contest):
        return [timing.held(each, ROUNDS.value, PROFILE.value) for each in contest(work(), BATCHES.value)]

    def memory():
        labels = [way.label for way in contests.saliency_ways(work(), 1)]
        return footprint.of_scoring(work(), labels, [f"--size={SIZE.value}", f"--rows={size().rows}"])

    def load():
        with tempfile.TemporaryDirectory() as folder:
            return footprint.of_reading(pathlib.Path(folder), GIB.value)

    found = {name: functools.partial(contested, contest) for name, contest in contests.CONTESTS.items()}
    found |= {"memory": memory, "load": load, "plan": footprint.planned}
    alone = {"selection": selection, "product": product}
    return found | {
        name: lambda contest=contest: [timing.held(contest(), ROUNDS.value, PROFILE.value)]
        for name, contest in alone.items()
    }


def sized(work: Workload) -> dict:
    shapes = {"rows": work.size.rows, "tokens": work.size.tokens, "image_tokens": work.config.image_seq_length}
    return {"name": SIZE.value, "parameters": trees.size(work.params)} | shapes


def measure() -> dict:
    """The measurements that are asked for, printed, and as what is written."""
    about = {"command": ["python", "-m", "experiments.bench", *sys.argv[1:]], "revision": revision()}
    about |= {"machine": machine(), "versions": versions(), "rounds": ROUNDS.value, "measurements": {}}
    told = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(f"{about['machine']['cpu']}, {cores()} cores, {about['machine']['platform']}; {told}; {about['revision']}")
    with tempfile.TemporaryDirectory() as folder:

        @functools.cache
        def work():
            made = Workload(size(), pathlib.Path(folder) / "model")
            about["size"] = sized(made)
            print(", ".join(f"{name} {value}" for name, value in about["size"].items()), flush=True)
            return made

        for name in ONLY.value:
            about["measurements"][name] = measures(work)[name]()
    return about


def bench() -> None:
    """What the flags ask for."""
    logging.set_verbosity(logging.WARNING)
    if READ.value and SCORE.value:
        work = Workload(size(), pathlib.Path(READ.value))
        machine()  # sets the threads
        footprint.report_scoring(contests.saliency_ways(work, 1), SCORE.value)
        return
    if READ.value:
        footprint.report_reading(READ.value, WHOLE.value)
        return
    if ONLY.value == ["compile"]:  # makes the devices of its target, and so comes before any other
        compiled.compiled()
        return
    if math.isnan(GIB.value):
        raise InputError("expected a number in --gib, found nan; correct it")
    if not ONLY.value or set(ONLY.value) - set(NAMES):
        raise InputError(
            f"expected --only among {', '.join(NAMES)}, or compile alone, found {','.join(ONLY.value)!r}; correct it"
        )
    found = measure()
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(found, indent=1) + "\n")


def main(argv):
    del argv
    command.spoken(bench)


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse_without_config)
