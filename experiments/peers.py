"""The peers: the same work in torch and transformers, as their users write it, on the same checkpoint and batches.

Torch is imported where it is used: whoever has none measures ours alone.
"""

import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.workload import Workload
from mmu_jax import hf, trees
from mmu_jax.models import Model
from mmu_jax.trees import Batch, Mask


def load(folder: pathlib.Path) -> Any:
    """The model as transformers reads it, in float32, ready for inference."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def read(folder: pathlib.Path) -> tuple[Any, list]:
    """The same with every number read once: transformers maps the file, and reads what is used."""
    model = load(folder)
    return model, [float(parameter.detach().sum()) for parameter in model.parameters()]


def threads(cores: int) -> int:
    """Lets torch use as many threads as there are cores; how many it says it uses."""
    import torch

    torch.set_num_threads(cores)
    return torch.get_num_threads()


def tensors(batch: Batch) -> dict[str, Any]:
    """A batch as torch takes it: no mask where no token is padding."""
    import torch

    made = {"input_ids": torch.from_numpy(batch["tokens"]).long()}
    if "pixels" in batch:
        made["pixel_values"] = torch.from_numpy(batch["pixels"][:, 0])
    if not batch["valid"].all():
        made["attention_mask"] = torch.from_numpy(batch["valid"]).long()
    return made


def answer_loss(logits: Any, tokens: Any, weights: Any) -> Any:
    """The mean cross-entropy of the answers: ``logits [B,T,V]``, ``tokens, weights [B,T]``."""
    import torch

    each = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return (each * weights[:, 1:].flatten()).sum() / weights.sum()


def loss_of(model: Any, batch: Batch) -> Any:
    """The loss of a batch, to go backward from."""
    import torch

    given, count = tensors(batch), batch["tail"].shape[1]  # nowhere else a logit is needed
    logits = model(**given, logits_to_keep=count).logits
    return answer_loss(logits, given["input_ids"][:, -count:], torch.from_numpy(batch["weights"])[:, -count:])


def name_of(model: Model, key: str) -> tuple[str, int | None]:
    """A torch parameter's leaf in our tree, and its row of a stacked one."""
    return hf.rename(key, model.family.names)


def ours(model: Model, named: dict[str, Any]) -> dict[str, np.ndarray]:
    """Tensors by torch name as the leaves of our tree by name; what our tree has not is left out."""
    table = {name_of(model, key): tensor.detach().numpy() for key, tensor in named.items()}
    found = {}
    for name, leaf in trees.flatten(model.abstract()).items():
        rows = [table[place] for place in hf.places(name, leaf.shape) if place in table]
        if rows:
            found[name] = np.stack(rows) if trees.stacked(name) else rows[0]
    return found


def scored(work: Workload) -> tuple[Any, dict[str, Any]]:
    """A torch model in which only the linear weights that our tree has take gradients, and those by name."""
    model, there = load(work.folder), trees.flatten(work.model.abstract())
    for key, parameter in model.named_parameters():
        name, row = name_of(work.model, key)
        reached = name in there and (row is None or row < there[name].shape[0])
        parameter.requires_grad_(bool(re.fullmatch(work.model.family.eligible, name)) and reached)
    return model, {key: p for key, p in model.named_parameters() if p.requires_grad}


def squares_of_batches(work: Workload, batches: Sequence[Batch]) -> Callable[[], dict[str, Any]]:
    """The squared gradient of every batch, summed: what the public code accumulates."""
    import torch

    model, leaves = scored(work)

    def run():
        total = {key: torch.zeros_like(p) for key, p in leaves.items()}
        for batch in batches:
            grads = torch.autograd.grad(loss_of(model, batch), list(leaves.values()))
            for t, g in zip(total.values(), grads, strict=True):
                t.addcmul_(g, g)
        return total

    return run


def one_row(batch: Batch, row: int) -> Batch:
    return {name: x[row : row + 1] for name, x in batch.items()}


def squares_of_rows(work: Workload, batches: Sequence[Batch]) -> Callable[[], dict[str, Any]]:
    """The squared gradient of every row, a forward and a backward pass each."""
    return squares_of_batches(work, [one_row(batch, row) for batch in batches for row in range(len(batch["tokens"]))])


def _placing(model: Any, image: int, count: int) -> Any:
    """The model with its image tokens filled by a gather: the class of transformers looks at their number, which vmap cannot.

    Its logits are those of the last ``count`` tokens.
    """
    import torch

    class Placing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, tokens, pixels):
            x, seen = model.get_input_embeddings()(tokens), tokens == image
            features = torch.cat(model.get_image_features(pixels).pooler_output)
            placed = features[(seen.cumsum(1) - 1).clamp(min=0)]
            return model(inputs_embeds=torch.where(seen[..., None], placed, x), logits_to_keep=count).logits

    return Placing()


def squares_by_vmap(work: Workload, batches: Sequence[Batch], chunk: int) -> Callable[[], dict[str, Any]]:
    """The squared gradient of every row by ``torch.func``: ``vmap`` over ``grad``, ``chunk`` rows at once."""
    import torch

    model, leaves = scored(work)
    model.set_attn_implementation("eager")
    count = batches[0]["tail"].shape[1]
    whole = _placing(model, work.config.image_token_id, count)
    leaves = {f"model.{key}": p.detach() for key, p in leaves.items()}

    def loss(part, tokens, pixels, weights):
        logits = torch.func.functional_call(whole, part, (tokens[None], pixels))
        return answer_loss(logits, tokens[None, -count:], weights[None, -count:])

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0, 0), chunk_size=chunk)

    def run():
        total = {key: torch.zeros_like(p) for key, p in leaves.items()}
        for batch in batches:
            tokens, weights = torch.from_numpy(batch["tokens"]).long(), torch.from_numpy(batch["weights"])
            grads = each(leaves, tokens, torch.from_numpy(batch["pixels"]), weights)
            for key, g in grads.items():
                total[key] += g.square().sum(0)
        return {key.removeprefix("model."): t for key, t in total.items()}

    return run


def iteration(
    work: Workload, forget: Batch, retain: Batch, mask: Mask, *, rate: float, eps: float, fused: bool
) -> Callable[[], Any]:
    """A masked step up on ``forget`` and a step down on ``retain``, AdamW each with a clipped gradient; the model."""
    import torch

    model, leaves = scored(work)
    bits = {name: np.asarray(x) for name, x in trees.flatten(mask).items()}
    masks = {}
    for key in leaves:
        name, row = name_of(work.model, key)
        masks[key] = torch.from_numpy(np.array(bits[name] if row is None else bits[name][row], np.float32))
    model.requires_grad_(True)
    every = list(model.parameters())
    up = torch.optim.AdamW(leaves.values(), lr=rate, eps=eps, weight_decay=0.0, fused=fused)
    down = torch.optim.AdamW(every, lr=rate, eps=eps, weight_decay=0.0, fused=fused)

    def step(loss, optimizer, parameters):
        model.zero_grad()
        loss.backward()
        for key, m in masks.items() if optimizer is up else ():
            leaves[key].grad.mul_(m)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    def run():
        step(-loss_of(model, forget), up, list(leaves.values()))
        step(loss_of(model, retain), down, every)
        return model

    return run


def continued(work: Workload, prompts: Batch, stop: int) -> Callable[[], np.ndarray]:
    """The greedy continuation of prompts, new tokens alone."""
    import torch

    model, given = load(work.folder), tensors(prompts)
    length, options = given["input_ids"].shape[1], {"max_new_tokens": work.size.new, "do_sample": False}

    def run():
        with torch.inference_mode():
            mask = torch.ones_like(given["input_ids"])
            found = model.generate(**given, attention_mask=mask, eos_token_id=stop, pad_token_id=stop, **options)
        return found[:, length:].numpy()

    return run


def logps(work: Workload, batches: Sequence[Batch]) -> Callable[[], np.ndarray]:
    """log p(answer) of every row."""
    import torch

    model = load(work.folder)

    def each(batch):
        given = tensors(batch)
        given.pop("attention_mask", None)  # rows are padded on the right, which nothing before it sees
        tokens, weights = given["input_ids"][:, 1:], torch.from_numpy(batch["weights"])[:, 1:]
        said = torch.log_softmax(model(**given).logits[:, :-1], -1).gather(-1, tokens[..., None])[..., 0]
        return (said * weights).sum(-1)

    def run():
        with torch.inference_mode():
            return torch.cat([each(batch) for batch in batches]).numpy()

    return run


def saved(folder: pathlib.Path, out: pathlib.Path) -> Callable[[], pathlib.Path]:
    """The model of ``folder`` written to ``out``, which it returns."""
    model = load(folder)

    def run():
        model.save_pretrained(out)
        return out

    return run
