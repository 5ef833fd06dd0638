"""Speed against peers in the same run, as ratios; nothing here is asserted.

    python -m experiments.bench [--batches=8] [--rows=32]

Saliency of the embedded default's model (random weights, random batches of its shapes) in three ways: ours, accumulated
on device in one donated buffer; the way of the public code in JAX, where every batch's gradient is copied to the host
and squared there; and torch autograd on the same checkpoint, if torch is installed. And the k-th largest score by
bisection on float bits against a full sort.
"""

import importlib.util
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from configs import tiny as tiny_config
from mmu_jax import hf, losses, masks, models, saliency, trees
from mmu_jax.data import tiny

BATCHES = flags.DEFINE_integer("batches", 8, "Batches per measurement.")
ROWS = flags.DEFINE_integer("rows", 32, "Rows per batch.")


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


def main(argv):
    del argv
    logging.set_verbosity(logging.WARNING)
    config, rng = tiny_config.get_config(), np.random.default_rng(0)
    processor = tiny.processor()
    hub = tiny.config(processor.tokenizer, vision=config.model.vision.to_dict(), text=config.model.text.to_dict())
    model = models.Model(hub)
    params = model.init(0)
    batches = [batch(rng, ROWS.value, len(processor.tokenizer), hub.image_token_id) for _ in range(BATCHES.value)]
    leaves = model.module.ELIGIBLE

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

    scores = {"w": jnp.asarray(rng.random(4_000_000, np.float32))}
    exact = clock(lambda: masks.top_k(scores, 1_000_000))
    ranked = jax.jit(lambda x: x >= jnp.sort(x)[-1_000_000])
    by_sort = clock(lambda: ranked(scores["w"]))
    print("top 1,000,000 of 4,000,000 scores")
    print(f"  bisection on float bits     {exact:8.3f} s   1.00")
    print(f"  full sort (ties not exact)  {by_sort:8.3f} s   {by_sort / exact:.2f}")


if __name__ == "__main__":
    app.run(main)
