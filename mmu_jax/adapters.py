"""LoRA adapters of PEFT (arXiv 2106.09685): a directory of factors, merged into a copy of its base, or written.

``adapter_config.json`` says how the factors of ``adapter_model.safetensors`` act: ``W + s B A`` with ``s = alpha / rank``
(``alpha / sqrt(rank)`` with ``use_rslora``, arXiv 2312.03732). What is more than that is refused by name.
"""

import math
import os
import pathlib
import re
from typing import Any

import numpy as np
from safetensors.numpy import save

from mmu_jax import InputError, hf, models, sharding
from mmu_jax.directory import ADAPTER, INDEX, SINGLE, Path, Tensor, tensors
from mmu_jax.directory import write as write_whole
from mmu_jax.files import read_object, write_json
from mmu_jax.trainable import LowRank

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.(?P<name>\w+))?(\.weight)?")
CARD = """---
library_name: peft
---
A LoRA adapter of rank {rank} on {count} linear layers. With all of it, and on the very weights of `{base}`, the model is the one
that forgot; what loads a part of it, or none, has a model that still knows. Whoever serves it also has the model before. To load it:

    import peft, transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained({base!r}, dtype="auto")
    model = peft.PeftModel.from_pretrained(model, "FOLDER OF THIS FILE")
    # PEFT passes over layers that have other names, as those of LLaVA's vision tower had before transformers 5.6.
    assert sum(".lora_A." in name for name, _ in model.named_parameters()) == {count}
    model = model.merge_and_unload()
"""
# Keys of the config that say how the factors act, and keys that change nothing once they are trained. Any other key is a
# variant: it must be off.
READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
}
HARMLESS = {
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "layers_to_transform",
    "layers_pattern",
    "megatron_config",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "runtime_config",
    "qalora_group_size",
    "ensure_weight_tying",
}
OFF = (None, False, "none", [], {}, "")
STARTS = (
    None,
    True,
    False,
    "gaussian",
    "orthogonal",
    "eva",
)  # others take from the base what they put into the factors


def is_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter and no model of its own."""
    there = {name: os.path.isfile(os.path.join(path, name)) for name in (ADAPTER, SINGLE, INDEX)}
    return there[ADAPTER] and not there[SINGLE] and not there[INDEX]


def base_of(path: Path) -> str:
    """The folder or hub id of the base that the adapter names, empty if it names none.

    Raises:
      InputError: its config is damaged.
    """
    named = _config(path).get("base_model_name_or_path") or ""
    if not isinstance(named, str):
        raise InputError(f"expected base_model_name_or_path as text in {pathlib.Path(path) / ADAPTER}, found {named!r}")
    return named


def merge(adapter: Path, base: Path, out: Path) -> None:
    """Writes a copy of the checkpoint directory ``base`` with the adapter merged into its weights.

    Sums are taken in float32, one tensor at a time, and written in the dtype of the file.

    Raises:
      InputError: the adapter is not plain LoRA, does not fit ``base``, or ``base`` is not a whole model.
    """
    adapter = pathlib.Path(adapter)
    if not is_adapter(adapter):
        raise InputError(
            f"expected a folder with an adapter alone ({ADAPTER}, {WEIGHTS}), found another in {adapter}; give its folder"
        )
    config, model = _config(adapter), models.Model(hf.read_config(base))
    _refuse_variants(config, adapter)
    table, tied = hf.survey(base, model), model.config.tie_word_embeddings
    if tied:
        table.setdefault((hf.HEAD, None), table[hf.EMBED, None])
    pairs = _pairs(adapter, config, model, table)
    if tied and (shared := {hf.HEAD, hf.EMBED} & {name for name, _ in pairs}):
        raise InputError(
            f"expected a base with a head of its own for an adapter of {', '.join(shared)}, found tie_word_embeddings in {base}; "
            "merge it with PEFT (merge_and_unload) and give the merged model"
        )

    def change(name: str, row: int | None, tensor: np.ndarray) -> np.ndarray | None:
        if (name, row) not in pairs:
            return None
        return np.asarray(tensor, np.float32) + _update(*pairs[name, row], tensor.shape)

    hf.rewrite(model, base, out, change, unread=True)


def write(change: LowRank, model: models.Model, base: str, out: Path) -> None:
    """Writes a change of the weights of ``base`` as an adapter that PEFT and :func:`merge` read, float32, layer by layer.

    Modules have the names of the model's class in ``transformers``, which PEFT looks for; each is named in full. Of several
    processes all call, and the main one writes.

    Args:
      base: folder or hub id of the model that the change is of, as the adapter is to name it.
    Raises:
      InputError: some of the change is no product of factors, or none of it is; or the disk refuses.
    """
    if change.others or not change.a:
        raise InputError(
            f"expected a change that is a product of factors, found {len(change.others)} weights whose change is none and "
            f"{len(change.a)} others; write the whole model (hf.rewrite)"
        )
    found, modules = {}, []
    for name, a in change.a.items():
        for place, row in hf.places(name, a.shape):
            modules.append(hf.module_name(place, row, model).removesuffix(".weight"))
            for side, factor in (("A", a), ("B", change.b[name])):
                value = sharding.host(factor if row is None else factor[row]).astype(np.float32)
                found[f"{PREFIX}{modules[-1]}.lora_{side}.weight"] = np.ascontiguousarray(value)
    rank = next(iter(change.a.values())).shape[-2]
    alpha = change.scale * rank
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": int(alpha) if alpha.is_integer() else alpha, "bias": "none"}
    config |= {"base_model_name_or_path": base, "target_modules": modules, "inference_mode": True}

    def fill(folder):
        write_json(folder / ADAPTER, config)
        (folder / WEIGHTS).write_bytes(save(found, metadata={"format": "pt"}))  # save_file keeps it from other users
        (folder / "README.md").write_text(CARD.format(rank=rank, count=len(modules), base=base), encoding="utf-8")

    if sharding.main():
        write_whole(out, fill)


def _config(path: Path) -> dict[str, Any]:
    return read_object(pathlib.Path(path) / ADAPTER, "the config of an adapter")


def _refuse_variants(config: dict[str, Any], adapter: pathlib.Path) -> None:
    """Raises InputError unless the config is of plain LoRA."""
    odd = {key: value for key, value in config.items() if key not in READ | HARMLESS and value not in OFF}
    if config.get("init_lora_weights") in STARTS:
        odd.pop("init_lora_weights", None)
    if config.get("peft_type") != "LORA":
        odd["peft_type"] = config.get("peft_type")
    if odd:
        found = ", ".join(f"{key}={value!r}" for key, value in odd.items())
        raise InputError(
            f"expected a plain LoRA adapter, found {found} in {adapter / ADAPTER}; merge it with PEFT (merge_and_unload) and "
            "give the merged model"
        )
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        _check_targets(config.get(key), f"{key} in {adapter / ADAPTER}")
    for key, kind, what in (("use_rslora", bool, "true or false"), ("layers_to_transform", int, "numbers of layers")):
        value = config.get(key)
        listed = value if isinstance(value, list) and kind is int else [] if value is None else [value]
        if not all(type(item) is kind for item in listed):
            raise InputError(f"expected {what} for {key} in {adapter / ADAPTER}, found {value!r}; correct it")
    numbers = [(key, config.get(key)) for key in ("r", "lora_alpha")]
    numbers += [(key, v) for key in ("rank_pattern", "alpha_pattern") for v in _patterns(config, key, adapter).values()]
    for key, value in numbers:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or not math.isfinite(value):
            raise InputError(
                f"expected a positive number for {key} in {adapter / ADAPTER}, found {value!r}; correct it"
            )


def _check_targets(wanted: Any, where: str) -> None:
    """Raises InputError unless it is a list of names, a pattern, or nothing."""
    try:
        names = [re.compile(wanted).pattern] if isinstance(wanted, str) else [] if wanted is None else wanted
    except (TypeError, re.error) as error:
        raise InputError(f"expected names or a pattern for {where}, found {wanted!r}; correct it") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"expected names for {where}, found {wanted!r}; correct it")


def _patterns(config: dict[str, Any], key: str, adapter: pathlib.Path) -> dict[str, float]:
    table = config.get(key) or {}
    try:
        for pattern in table.keys():
            re.compile(pattern)
    except (AttributeError, re.error) as error:
        raise InputError(
            f"expected patterns and numbers for {key} in {adapter / ADAPTER}, found {table!r}; correct it"
        ) from error
    return table


def _pairs(adapter: pathlib.Path, config: dict[str, Any], model: models.Model, table: dict) -> dict[tuple, tuple]:
    """(leaf name, row) -> (A, B, scale) of every weight that the adapter changes; ``table`` is the base's."""
    if not (adapter / WEIGHTS).is_file():
        raise InputError(f"expected {WEIGHTS} beside {ADAPTER}, found none in {adapter}; save it in safetensors format")
    sides: dict[tuple, dict[str, Tensor]] = {}
    modules: dict[tuple, str] = {}
    for tensor in tensors(adapter / WEIGHTS):
        key = tensor.key.removeprefix(PREFIX)
        if _is_of_base(tensor, table.get(hf.rename(key.replace(".base_layer.", "."), model.family.names))):
            continue  # an adapted embedding or head is saved once more
        found = FACTOR.fullmatch(key)
        if found is None or not _targeted(config, found["module"]):
            raise InputError(
                f"expected factors lora_A and lora_B of target_modules only, found {tensor.key} in {adapter / WEIGHTS}; "
                "merge it with PEFT (merge_and_unload) and give the merged model"
            )
        place = hf.rename(f"{found['module']}.weight", model.family.names)
        if found["side"] in sides.setdefault(place, {}):
            raise InputError(f"expected one adapter, found another, {tensor.key}, in {adapter / WEIGHTS}; keep one")
        sides[place][found["side"]] = tensor
        modules[place] = found["module"]
    if not sides:
        raise InputError(f"expected factors lora_A and lora_B, found none in {adapter / WEIGHTS}; copy it again")
    if lost := [modules[place] for place in sides if place not in table]:
        raise InputError(
            f"expected an adapter of its base, found {len(lost)} pairs of factors in {adapter} for weights that are not there: "
            f"{', '.join(lost[:4])}{', ...' if len(lost) > 4 else ''}; give the base it was trained on"
        )
    if lacking := _lacking(modules, config, table):
        raise InputError(
            f"expected factors for everything that {ADAPTER} adapts, found none for {', '.join(lacking[:4])}"
            f"{', ...' if len(lacking) > 4 else ''} ({len(lacking)} in all) in {adapter / WEIGHTS}; copy it again"
        )
    return {place: _pair(pair, modules[place], config, adapter, table[place]) for place, pair in sides.items()}


def _lacking(modules: dict[tuple, str], config: dict[str, Any], table: dict) -> list[str]:
    """What the config says is adapted and the file has no factors of: layers beside those it has, and names of modules.

    ``modules`` are those of the file by place. Other places of a name, such as a tower that was not there, PEFT leaves as they
    are.
    """
    wanted, layers = config.get("target_modules"), config.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    lacking = []
    if isinstance(wanted, list) and not config.get("exclude_modules") and layers is None:
        there = [tensor.key.removesuffix(".weight") for tensor in table.values()]
        for name in wanted:
            meant, held = ([m for m in among if _ends(m, name)] for among in (there, modules.values()))
            lacking += [name] if meant and not held else []
    beside = {leaf: (row, module) for (leaf, row), module in modules.items()}
    for leaf, row in table:
        if leaf not in beside or (leaf, row) in modules or layers is not None and row not in layers:
            continue
        other, module = beside[leaf]
        module = module.replace(f".{other}.", f".{row}.", 1)
        lacking += [module] if _targeted(config, module) else []
    return lacking


def _ends(module: str, name: str) -> bool:
    """Whether PEFT takes a module for one of this name."""
    return module == name or module.endswith(f".{name}")


def _is_of_base(tensor: Tensor, weight: Tensor | None) -> bool:
    """Whether a tensor of the adapter's file is a copy of a weight of the base."""
    if weight is None or weight.shape != tensor.shape:
        return False
    return np.array_equal(np.asarray(weight.map(), np.float32), np.asarray(tensor.map(), np.float32))


def _pair(pair: dict[str, Tensor], module: str, config: dict, adapter: pathlib.Path, weight: Tensor) -> tuple:
    """``A [r, ...]``, ``B [..., r]`` and their scale, once they are what the config says."""
    where = f"of {module} in {adapter / WEIGHTS}"
    if len(pair) < 2:
        raise InputError(f"expected lora_A and lora_B {where}, found one alone; copy it again")
    rank = _of(config.get("rank_pattern"), module, config["r"])
    alpha = _of(config.get("alpha_pattern"), module, config["lora_alpha"])
    a, b = pair["A"], pair["B"]
    if not a.shape or not b.shape or a.shape[0] != rank or b.shape[1:2] != (rank,):
        raise InputError(f"expected factors of rank {rank} {where}, found {a.shape} and {b.shape}; correct r")
    for factor in (a, b):
        if not np.issubdtype(factor.dtype, np.inexact) and factor.dtype.name != "bfloat16":
            raise InputError(f"expected floating-point factors {where}, found {factor.dtype}; save it again")
        if not np.isfinite(np.asarray(factor.map(), np.float32)).all():
            raise InputError(f"expected finite numbers, found NaN or infinity in {factor.key} {where}; save it again")
    _check_fit(a, b, weight)
    return a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _of(patterns: dict[str, float] | None, module: str, otherwise: float) -> float:
    """The value of the first pattern that matches the end of the module's path."""
    return next((v for key, v in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)


def _targeted(config: dict[str, Any], module: str) -> bool:
    """Whether ``target_modules`` (names, or a pattern of whole paths) mean a module and ``exclude_modules`` do not."""

    def among(wanted: Any) -> bool:
        if isinstance(wanted, str):
            return wanted == "all-linear" or re.fullmatch(wanted, module) is not None
        return any(_ends(module, name) for name in wanted or ())

    return among(config.get("target_modules")) and not among(config.get("exclude_modules"))


def _check_fit(a: Tensor, b: Tensor, weight: Tensor) -> None:
    """Raises InputError unless ``B A`` has the shape of the weight, or of its transpose for an embedding."""
    width, *rest = weight.shape[::-1] if _embedded(a) else weight.shape
    if b.shape[0] != width or math.prod(a.shape[1:]) != math.prod(rest) or math.prod(b.shape[2:]) != 1:
        raise InputError(
            f"expected factors of {weight.key} {weight.shape}, found {a.shape} and {b.shape} in {a.file}; give the base it was "
            "trained on"
        )


def _embedded(a: Tensor) -> bool:
    return ".lora_embedding_" in a.key


def _update(a: Tensor, b: Tensor, scale: float, shape: tuple[int, ...]) -> np.ndarray:
    """``s B A`` in the shape of the weight: of a linear layer, a convolution, or an embedding, whose weight is turned."""
    low, high = (np.asarray(x.map(), np.float32) for x in (a, b))
    product = scale * (high.reshape(len(high), -1) @ low.reshape(len(low), -1))
    return (product.T if _embedded(a) else product).reshape(shape)
