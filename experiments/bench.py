"""Speed and memory against peers in the same run, as ratios; nothing here is asserted.

    python -m experiments.bench [--only=saliency,selection,load,plan] [--batches=8] [--rows=32] [--gib=2]

saliency   of the embedded default's model (random weights, random batches of its shapes) in three ways: ours, accumulated
           on device in one donated buffer; the way of the public code in JAX, where every batch's gradient is copied to
           the host and squared there; and torch autograd on the same checkpoint, if torch is installed
selection  the k-th largest score by bisection on float bits against a full sort
load       peak resident memory of a process that reads a sharded bfloat16 checkpoint of ``--gib`` onto an 8-device CPU
           mesh, relative to the checkpoint; and, as the peer, of one that reads every file whole before placing it
plan       what the published models need on a device, worked out from their shapes
"""

import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from absl import app, flags, logging
from safetensors.numpy import load_file, save_file

from configs import llava as llava_config
from configs import qwen2_vl as qwen_config
from configs import tiny as tiny_config
from experiments import command
from mmu_jax import InputError, hf, lora, losses, masks, memory, methods, models, saliency, sharding, trees
from mmu_jax.data import tiny
from mmu_jax.models.published import PUBLISHED
from mmu_jax.rules import Rule

ONLY = flags.DEFINE_list("only", ["saliency", "selection", "load", "plan"], "Which measurements.")
GIB = flags.DEFINE_float("gib", 2.0, "Size of the checkpoint that load reads.", lower_bound=0.01, upper_bound=1000)
READ = flags.DEFINE_string("read", None, "Internal: read this checkpoint and print the memory it took.")
WHOLE = flags.DEFINE_bool("whole", False, "Internal: read it the peer's way.")
BATCHES = flags.DEFINE_integer("batches", 8, "Batches per measurement.", lower_bound=1)
ROWS = flags.DEFINE_integer("rows", 32, "Rows per batch.", lower_bound=1)


def clock(work, repeats=3):
    """Best seconds of ``repeats`` runs, after one that compiles."""
    work()
    best = np.inf
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(work())
        best = min(best, time.perf_counter() - began)
    return best


def batch(rng, rows, vocabulary, image):
    tokens = rng.integers(5, vocabulary, (rows, 32)).astype(np.int32)
    tokens[:, 3:7] = image
    weights = np.zeros((rows, 32), np.float32)
    weights[:, -4:] = 1
    return {
        "tokens": tokens,
        "valid": np.ones((rows, 32), bool),
        "weights": weights,
        "positions": np.tile(np.arange(32, dtype=np.int32), (rows, 1)),
        "pixels": rng.normal(size=(rows, 1, 3, 24, 24)).astype(np.float32),
    }


def torch_saliency(folder, batches):
    import torch
    import transformers

    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def work():
        for b in batches:
            model.zero_grad()
            logits = model(
                input_ids=torch.tensor(b["tokens"]).long(), pixel_values=torch.tensor(b["pixels"][:, 0])
            ).logits
            logps = torch.log_softmax(logits[:, :-1], -1)
            chosen = logps.gather(-1, torch.tensor(b["tokens"][:, 1:, None]).long())[..., 0]
            weights = torch.tensor(b["weights"][:, 1:])
            (-(chosen * weights).sum() / weights.sum()).backward()
            for name, p in model.named_parameters():
                if p.grad is not None:
                    total[name] += p.grad**2

    return work


def measure_saliency():
    config, rng = tiny_config.get_config(), np.random.default_rng(0)
    processor = tiny.processor()
    hub = tiny.config(processor.tokenizer, vision=config.model.vision.to_dict(), text=config.model.text.to_dict())
    model = models.Model(hub)
    params = model.init(0)
    batches = [batch(rng, ROWS.value, len(processor.tokenizer), hub.image_token_id) for _ in range(BATCHES.value)]
    leaves = model.family.eligible

    def loss(p, b):
        total, count = losses.cross_entropy(model.forward(p, b), b["tokens"], b["weights"])
        return total / count

    def ours(unit):
        part, rest = trees.split(params, leaves)
        step = saliency.accumulator(loss, unit=unit)

        def work():
            state = saliency.zeros(part)
            for b in batches:
                state = step(state, part, rest, b, 1.0)
            return state

        return work

    gradient = jax.jit(jax.grad(loss))

    def host_copies():
        total = None
        for b in batches:
            squares = jax.tree.map(lambda g: np.square(np.asarray(g)), gradient(params, b))
            total = squares if total is None else jax.tree.map(np.add, total, squares)
        return total

    base = clock(ours("batch"))
    print(
        f"saliency, {BATCHES.value} batches of {ROWS.value} rows, {trees.size(params):,} parameters, {jax.devices()[0].platform}"
    )
    print(f"  ours, unit batch            {base:8.3f} s   1.00")
    example = clock(ours("example"))
    print(f"  ours, unit example          {example:8.3f} s   {example / base:.2f}")
    host = clock(host_copies)
    print(f"  gradients to the host       {host:8.3f} s   {host / base:.2f}")
    if importlib.util.find_spec("torch"):
        with tempfile.TemporaryDirectory() as folder:
            hf.create(params, model, processor, pathlib.Path(folder) / "m")
            torch = clock(torch_saliency(pathlib.Path(folder) / "m", batches))
        print(f"  torch autograd              {torch:8.3f} s   {torch / base:.2f}")


def measure_selection():
    scores = {"w": jnp.asarray(np.random.default_rng(0).random(4_000_000, np.float32))}
    exact = clock(lambda: masks.top_k(scores, 1_000_000))
    ranked = jax.jit(lambda x: x >= jnp.sort(x)[-1_000_000])
    by_sort = clock(lambda: ranked(scores["w"]))
    print("top 1,000,000 of 4,000,000 scores")
    print(f"  bisection on float bits     {exact:8.3f} s   1.00")
    print(f"  full sort (ties not exact)  {by_sort:8.3f} s   {by_sort / exact:.2f}")


def synthetic(out, gib):
    """A LLaVA of about ``gib`` GiB in bfloat16, in files of some 200 MB spelled as on the hub."""
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


def peak():
    """Largest resident set of this process so far, in bytes (Linux)."""
    line = next(x for x in pathlib.Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def read_and_report(path, whole):
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


def measure_load():
    with tempfile.TemporaryDirectory() as folder:
        size = synthetic(pathlib.Path(folder), GIB.value)
        print(
            f"reading {size / 2**30:.2f} GiB in bfloat16 onto 8 CPU devices, peak resident memory over the checkpoint's size"
        )
        # torch, which transformers imports where it finds it, is no part of reading.
        env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
        for label, options in (("ours, layer by layer", []), ("every file whole", ["--whole"])):
            code = "import sys; sys.modules['torch'] = None; from experiments import bench; bench.app.run(bench.main, flags_parser=bench.command.parse_without_config)"
            command = [sys.executable, "-c", code, f"--read={folder}", *options]
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(
                f"  {label:26s}{found['peak'] / 2**20:8.0f} MiB  {found['peak'] / size:.2f}"
                f"   of which {found['before'] / 2**20:.0f} MiB before it began"
            )


def print_plan():
    print(
        "GiB per device: saliency (one signed accumulator) / unlearning with mmunlearner / factors (a quarter of the inputs, in"
    )
    print("eight blocks) / unlearning with projected; batch 4 or a row a device")
    print(f"  {'':16s}{'devices':>10s}{'params':>26s}{'LoRA rank 16':>26s}")
    for name, (config, _) in PUBLISHED.items():
        c = (llava_config if name.startswith("llava") else qwen_config).get_config()
        model = models.Model(config(), jnp.bfloat16)
        for devices in ((1, 1), (8, 1), (8, 4)):
            mesh, cells = jax.sharding.AbstractMesh(devices, ("data", "model")), []
            for dtype, spec in ((jnp.float32, None), (jnp.bfloat16, lora.LoRA(16, 16.0, c.unlearn.lora.targets))):
                ledger = memory.Ledger(model, mesh, dtype)
                shape = memory.Shape(max(4, devices[0]), max(c.data.tokens), 1, max(c.data.patches or (0,)))
                scored = ledger.saliency([Rule()], shape, devices[0], keep_scores=False)
                trained = ledger.training(methods.METHODS["mmunlearner"], shape, spec)
                made = ledger.factors(shape, 8, 0.25)
                projected = ledger.training(methods.METHODS["projected"], shape, spec, 0.25)
                stages = (scored, trained, made, projected)
                cells.append(" / ".join(f"{sum(needs.values()) / 2**30:.0f}" for needs in stages))
            print(f"  {name:16s}{devices[0]:>6d} x {devices[1]}{cells[0]:>26s}{cells[1]:>26s}")


def bench():
    """The measurements that are asked for."""
    logging.set_verbosity(logging.WARNING)
    if READ.value:
        read_and_report(READ.value, WHOLE.value)
        return
    if math.isnan(GIB.value):
        raise InputError("expected a number in --gib, found nan; correct it")
    measures = {"saliency": measure_saliency, "selection": measure_selection, "load": measure_load, "plan": print_plan}
    if not ONLY.value or set(ONLY.value) - measures.keys():
        raise InputError(f"expected --only among {', '.join(measures)}, found {','.join(ONLY.value)!r}; correct it")
    for name in ONLY.value:
        measures[name]()


def main(argv):
    del argv
    command.spoken(bench)


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse_without_config)
