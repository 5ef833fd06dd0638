"""What is held: the peak of a process that reads a checkpoint or scores, and what the plan says of the published models."""

import ctypes
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from configs import llava as llava_config
from configs import qwen2_vl as qwen_config
from experiments import contests
from experiments.timing import Way
from experiments.workload import Workload
from mmu_jax import hf, lora, memory, methods, models, saliency, sharding, trees
from mmu_jax.data import tiny
from mmu_jax.models.published import PUBLISHED
from mmu_jax.rules import Rule
from mmu_jax.trainable import Whole

MIB = 2**20


def peak() -> int:
    """Largest resident set of this process so far, in bytes (Linux)."""
    line = next(x for x in pathlib.Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    """Gives back what was freed, and makes the resident set of now the largest."""
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def child(code: str, options: list[str], env: dict[str, str]) -> dict:
    """What a bench of its own with these flags prints last, as JSON."""
    code = f"{code}from experiments import bench; bench.app.run(bench.main, flags_parser=bench.command.parse_without_config)"
    command = [sys.executable, "-c", code, *options]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


# ---- of saliency


def report_scoring(ways: list[Way], label: str) -> None:
    """Prints what a second run of a way holds beyond what was there before it."""
    way = next(way for way in ways if way.label == label)
    jax.block_until_ready(way.work())
    forget_peak()
    before = peak()
    jax.block_until_ready(way.work())
    print(json.dumps({"before": before, "peak": peak()}))


def temporaries(work: Workload, unit: str) -> int:
    """Bytes that XLA allots beside arguments and results for a step of ours."""
    part, rest = trees.split(work.params, work.model.family.eligible)
    step = saliency.accumulator(contests.QUICK[unit]("descent", work.model), unit=unit)
    lowered = step.lower(saliency.zeros(part), part, rest, work.batch(0), 1.0)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def of_scoring(work: Workload, labels: list[str], size: list[str]) -> list[dict]:
    """A row a way: the peak of a process of its own beyond the params, in bytes and relative to the params; ``size`` are its flags."""
    rows, whole = [], trees.nbytes(work.params)
    for label in labels:
        found = child("", [f"--score={label}", f"--read={work.folder}", *size], {})
        held = found["peak"] - found["before"]
        rows.append({"way": label, "bytes": held, "ratio": held / whole})
    for unit in saliency.UNITS:
        rows.append({"way": f"ours, unit {unit}, as XLA allots it", "bytes": temporaries(work, unit)})
        rows[-1]["ratio"] = rows[-1]["bytes"] / whole
    print(f"peak memory of saliency beyond the params ({whole / MIB:.0f} MiB), scores included")
    for row in rows:
        print(f"  {row['way']:44s}{row['bytes'] / MIB:8.0f} MiB  {row['ratio']:.2f}", flush=True)
    return rows


# ---- of reading


def synthetic(out: pathlib.Path, gib: float) -> int:
    """A LLaVA of about ``gib`` GiB in bfloat16, in files of some 200 MB spelled as on the hub; their bytes."""
    processor = tiny.processor()
    vision = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=6, num_attention_heads=16)
    text = dict(hidden_size=2048, intermediate_size=5504, num_attention_heads=16, num_key_value_heads=16)
    layers = max(round((gib * 2**30 / 2 - 66e6) / 50.6e6), 1)
    config = tiny.config(
        processor.tokenizer,
        vision=vision | dict(image_size=24, patch_size=12, projection_dim=64),
        text=text | dict(num_hidden_layers=layers),
    )
    model = models.Model(config)
    noise = np.random.default_rng(0).standard_normal(2**20).astype(ml_dtypes.bfloat16)
    places = [(n, r, x.shape if r is None else x.shape[1:]) for n, x in trees.flatten(model.abstract()).items()
              for n, r in hf.places(n, x.shape)]  # fmt: skip
    places += [(*hf.rename(name, []), shape) for name, shape in model.family.unread(config).items()]
    where, tensors = {}, {}

    def flush():
        name = f"model-{len(set(where.values())) + 1:05d}.safetensors"
        save_file(tensors, out / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, name))
        tensors.clear()

    for name, row, shape in places:
        tensors[hf.hub_name(name, row, model)] = np.resize(noise, shape)
        if sum(x.nbytes for x in tensors.values()) > 200e6:
            flush()
    flush()
    (out / hf.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config.save_pretrained(out)
    return sum(file.stat().st_size for file in out.glob("*.safetensors"))


def report_reading(path: str, whole: bool) -> None:
    """Prints what reading a checkpoint takes: leaf by leaf, or ``whole``, the peer's way."""
    model, mesh = models.Model(hf.read_config(path)), sharding.make_mesh(8)
    before = peak()
    if whole:
        tensors = {hf.rename(k, model.family.names): v for f in hf.files(path) for k, v in load_file(f).items()}

        def leaf(name, x, where):
            rows = [tensors[place] for place in hf.places(name, x.shape)]
            return jax.device_put(np.stack(rows) if trees.stacked(name) else rows[0], where)

        placed = sharding.shardings(model.abstract(), model.family.rules, mesh)
        params = trees.map_named(leaf, model.abstract(), placed)
    else:
        params = hf.load(path, model, mesh, dtype=None)
    jax.block_until_ready(params)
    print(json.dumps({"before": before, "peak": peak()}))


def of_reading(folder: pathlib.Path, gib: float) -> list[dict]:
    """A row a way: the peak of a process that reads a checkpoint of ``gib``, relative to it."""
    size, rows = synthetic(folder, gib), []
    print(
        f"reading {size / 2**30:.2f} GiB in bfloat16 onto 8 CPU devices, peak resident memory over the checkpoint's size"
    )
    # torch, which transformers imports where it finds it, is no part of reading.
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    for label, options in (("ours, leaf by leaf", []), ("every file whole", ["--whole"])):
        found = child("import sys; sys.modules['torch'] = None; ", [f"--read={folder}", *options], env)
        rows.append({"way": label, "bytes": found["peak"], "ratio": found["peak"] / size, "before": found["before"]})
        print(
            f"  {label:44s}{found['peak'] / MIB:8.0f} MiB  {found['peak'] / size:.2f}"
            f"   of which {found['before'] / MIB:.0f} MiB before it began"
        )
    return rows


# ---- planned


def _planned(model: models.Model, mesh: jax.sharding.AbstractMesh, c) -> list[list[float]]:
    """GiB per device: params, then LoRA; of each what every stage needs."""
    found, method = [], methods.METHODS["mmunlearner"]
    whole, adapted = Whole.of(method, model.family), lora.LoRA(16, 16.0, c.unlearn.lora.targets)
    for dtype, spec in ((jnp.float32, None), (jnp.bfloat16, adapted)):
        ledger = memory.Ledger(model, mesh, dtype)
        devices = mesh.shape["data"]
        shape = memory.Shape(max(4, devices), max(c.data.tokens), 1, max(c.data.patches or (0,)))
        stages = (
            ledger.saliency([Rule()], shape, devices, keep_scores=False),
            ledger.training(method, shape, spec or whole),
            ledger.factors(shape, 8, 0.25),
            ledger.training(methods.METHODS["projected"], shape, spec, 0.25),
        )
        found.append([sum(needs.values()) / 2**30 for needs in stages])
    return found


def planned() -> list[dict]:
    """A row a model and mesh: GiB per device, worked out from shapes, of the four stages that are told."""
    print(
        "GiB per device: saliency (one signed accumulator) / unlearning with mmunlearner / factors (a quarter of the inputs, in"
    )
    print("eight blocks) / unlearning with projected; batch 4 or a row a device")
    print(f"  {'':16s}{'devices':>10s}{'params':>26s}{'LoRA rank 16':>26s}")
    rows = []
    for name, (config, _) in PUBLISHED.items():
        c = (llava_config if name.startswith("llava") else qwen_config).get_config()
        model = models.Model(config(), jnp.bfloat16)
        for devices in ((1, 1), (8, 1), (8, 4)):
            params, adapters = _planned(model, jax.sharding.AbstractMesh(devices, ("data", "model")), c)
            rows.append({"model": name, "devices": devices, "params": params, "lora": adapters})
            cells = [" / ".join(f"{stage:.0f}" for stage in stages) for stages in (params, adapters)]
            print(f"  {name:16s}{devices[0]:>6d} x {devices[1]}{cells[0]:>26s}{cells[1]:>26s}")
    return rows
