"""Sizes of a model that is made from nothing, which must fit one another."""

from ml_collections import ConfigDict

from mmu_jax import InputError
from mmu_jax.models import gguf

WIDEST, DEEPEST = 2**16, 2**10
SIZES = {
    "vision": (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "image_size",
        "patch_size",
    ),
    "text": ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
}
OTHER_SIZES = {"vision": ("projection_dim",), "text": ("num_key_value_heads",)}


def problems(c: ConfigDict) -> list[str]:
    """What is wrong with the sizes of a config that has no model to start from, a line each."""
    if c.model.path or c.vanilla.path:
        return []
    vision, text = c.model.vision.to_dict(), c.model.text.to_dict()
    if c.model.language and text:
        return [
            "expected no sizes in config.model.text beside config.model.language, which has its own, found some; leave them out"
        ]
    if c.model.language:
        try:
            gguf.find(c.model.language)
        except InputError as error:
            return [f"config.model.language: {error}"]
    if not vision or not (text or c.model.language):
        return [
            "expected a model to start from, found config.model.path empty and no sizes in config.model.vision and "
            "config.model.text; give a directory or hub id in config.model.path, or run configs/tiny.py"
        ]
    found = []
    for part, sizes in (("vision", vision), *([] if c.model.language else [("text", text)])):
        for name, value in (dict.fromkeys(SIZES[part]) | sizes).items():
            most = DEEPEST if name == "num_hidden_layers" else WIDEST
            if name not in SIZES[part] + OTHER_SIZES[part]:
                found.append(
                    f"expected sizes among {', '.join(SIZES[part] + OTHER_SIZES[part])} in config.model.{part}, found "
                    f"config.model.{part}.{name}; correct it"
                )
            elif type(value) is not int or not 1 <= value <= most:
                found.append(
                    f"expected a whole number from 1 to {most} in config.model.{part}.{name}, found {value!r}; correct it"
                )
    if found:
        return found
    divisions = [
        ("vision.hidden_size", vision["hidden_size"], "vision.num_attention_heads", vision["num_attention_heads"]),
        ("vision.image_size", vision["image_size"], "vision.patch_size", vision["patch_size"]),
    ]
    if not c.model.language:
        heads, groups = text["num_attention_heads"], text.get("num_key_value_heads", text["num_attention_heads"])
        divisions += [
            ("text.hidden_size", text["hidden_size"], "text.num_attention_heads (twice)", 2 * heads),
            ("text.num_attention_heads", heads, "text.num_key_value_heads", groups),
        ]
    found = [
        f"expected config.model.{a} to divide by config.model.{b}, found {x} and {y}; change one"
        for a, x, b, y in divisions
        if x % y
    ]
    if vision["num_hidden_layers"] < 2:
        found.append(
            "expected at least 2 in config.model.vision.num_hidden_layers (the last is never read), found 1; raise it"
        )
    return found
