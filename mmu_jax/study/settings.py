"""All of a config judged before anything is made: types, ranges, names, and keys that nothing would read.

All that is wrong is said at once; what each key may be stands in ``ranges``.
"""

import re
from collections.abc import Iterable
from typing import Any

import jax
from ml_collections import ConfigDict

from mmu_jax import InputError, adapters, attacks, hub, lora, methods, questions
from mmu_jax.data import builders
from mmu_jax.data.general.benchmarks import GENERAL
from mmu_jax.data.slices import STREAMS
from mmu_jax.edits import EDITS
from mmu_jax.files import flat
from mmu_jax.metrics import METRICS
from mmu_jax.phases import Method
from mmu_jax.study import networks, trackers
from mmu_jax.study.config import base
from mmu_jax.study.ranges import RULES

OPEN = (
    r"model\.(vision|text)\..*",
    r"unlearn\.(learning_rate|retain_rate|strength)\..*",
)  # keys whose names a config chooses


def judge(config: ConfigDict, given: dict[str, Any]) -> None:
    """Refuses a config that cannot work, before anything is made.

    Args:
      given: the dotted keys that stand on the command line.
    Raises:
      InputError: every problem there is, in one line.
    """
    values = flat(config.to_dict())
    problems = [*_keys(values), *_values(values)]
    if not problems:  # what is below reads several keys
        problems = [*_methods(config), *_named(config.attack.names, "attack.names", attacks.ATTACKS, attacks.EVERY)]
        problems += [*networks.problems(config), *_unread(config, given)]
    problems = problems or [*_together(config), *trackers.problems(config.track)]
    if problems:
        raise InputError(
            "; ".join(problems) + ("" if len(problems) == 1 else f" ({len(problems)} problems in the config)")
        )


def _keys(values: dict[str, Any]) -> list[str]:
    """Keys that are not those of ``mmu_jax.study.config.base``."""
    known = set(flat(base().to_dict()))
    chosen = [key for key in values if any(re.fullmatch(pattern, key) for pattern in OPEN)]
    groups = {re.sub(r"\.[^.]*$", "", key) for key in chosen}
    missing = [
        k for k in sorted(known - values.keys()) if k not in groups and not any(re.fullmatch(p, k) for p in OPEN)
    ]
    extra = [k for k in values if k not in known and k not in chosen]
    return [f"expected config.{key}, found none; start from study.config.base" for key in missing] + [
        f"expected keys of study.config.base, found config.{key}; remove it" for key in extra
    ]


def _values(values: dict[str, Any]) -> list[str]:
    problems = []
    for key, value in values.items():
        for pattern, (holds, expected) in RULES:
            if re.fullmatch(pattern, key) and not holds(value):
                problems.append(f"expected {expected} in config.{key}, found {value!r}; correct it")
                break
    return problems


def _named(names: Any, key: str, table: dict[str, Any], every: str = "") -> list[str]:
    """Whether names are those of rows of a table, each once, or the one name of ``every`` row."""
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        return [f"expected names in config.{key}, as in ('{next(iter(table))}',), found {names!r}; correct it"]
    if every and list(names) == [every]:
        return []
    problems = []
    if unknown := [name for name in names if name not in table]:
        problems.append(f"expected config.{key} among {', '.join(table)}, found {', '.join(unknown)}; correct it")
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        problems.append(f"expected every name once in config.{key}, found {', '.join(twice)} twice; remove one")
    return problems


def _methods(c: ConfigDict) -> list[str]:
    names = c.unlearn.methods
    problems = _named(names, "unlearn.methods", methods.METHODS)
    if not names:
        problems.append("expected a method in config.unlearn.methods, found none; name at least one")
    for name in methods.METHODS:
        row = methods.METHODS[name]
        if isinstance(names, tuple | list) and name in names:
            needed = ["learning_rate"] * bool(row.phases) + ["retain_rate"] * (
                row.has_own_rate and c.unlearn.replay > 0
            )
            needed += ["strength"] * bool(row.edit)
            absent = [key for key in needed if c.unlearn[key].get(name) is None]
            problems += [f"expected config.unlearn.{key}.{name}, found none; set it" for key in absent]
    for key in ("learning_rate", "retain_rate", "strength"):
        strangers = [name for name in c.unlearn[key] if name not in methods.METHODS]
        problems += [f"expected methods in config.unlearn.{key}, found {name!r}; remove it" for name in strangers]
    return problems


def _devices() -> int:
    try:
        return jax.device_count()
    except RuntimeError as error:  # JAX's own, when the platform that was asked for is not there
        raise InputError(
            f"expected devices that JAX can use, found none ({str(error).splitlines()[0]}); install jax[cuda] or jax[tpu], "
            "or set JAX_PLATFORMS=cpu"
        ) from error


def _together(c: ConfigDict) -> list[str]:
    """Keys that must fit one another and the machine."""
    problems = questions.check_prompts(c.evaluate.prompts.to_dict(), "config.evaluate.prompts")
    there, data, split = _devices(), c.mesh.data, c.mesh.model
    if (max(data, 1) * split) > there:
        problems.append(
            f"expected a mesh of at most {there} devices, found config.mesh.data={data} x config.mesh.model={split}; set "
            "both to what the machine has"
        )
    if c.data.forget == c.data.retain:
        problems.append(
            f"expected two splits in config.data.forget and .retain, found {c.data.forget!r} in both; correct one"
        )
    if not c.vanilla.path and not (c.vanilla.rows.vqa or c.vanilla.rows.text):
        problems.append("expected rows in config.vanilla.rows.vqa or .text, found 0 in both; set one")
    problems += _headline(c.evaluate)
    coarse = c.model.param_dtype != "float32"
    if coarse and not c.vanilla.path and not c.vanilla.lora.rank:
        problems.append(
            f"expected config.model.param_dtype=float32 or a LoRA to train the vanilla model, found {c.model.param_dtype} "
            "and no LoRA; set config.vanilla.lora.rank too, or give a model that needs no training in config.vanilla.path"
        )
    if coarse and not c.unlearn.lora.rank and any(methods.METHODS[name].phases for name in c.unlearn.methods):
        problems.append(
            f"expected config.model.param_dtype=float32 or a LoRA to unlearn with, found {c.model.param_dtype} and no "
            "LoRA; set config.unlearn.lora.rank"
        )
    if c.factors.fraction and c.factors.alpha:
        problems.append(
            f"expected config.factors.fraction or config.factors.alpha, found {c.factors.fraction:g} and {c.factors.alpha:g}; set "
            "one to 0"
        )
    if not c.factors.path and not (c.factors.share or c.factors.fraction or c.factors.alpha):
        problems.append("expected a number above 0 in config.factors.share, .fraction or .alpha, found none; set one")
    if coarse and (taught := [n for n in attacks.named(c.attack.names) if attacks.ATTACKS[n].trains]):
        problems.append(
            f"expected config.model.param_dtype=float32 to relearn in, found {c.model.param_dtype}; set it, or leave "
            f"{', '.join(taught)} out of config.attack.names"
        )
    return [*problems, *_of_methods(c)]


def _of_methods(c: ConfigDict) -> list[str]:
    """What the methods cannot do as the config has it."""
    problems = []
    for name in c.unlearn.methods:
        method = methods.METHODS[name]
        if not c.unlearn.replay:
            try:
                method.alone()
            except InputError as error:
                problems.append(f"config.unlearn.replay=0: {name}: {error}")
        if method.mask and method.mask.needs_scores and not c.saliency.keep_scores:
            problems.append(
                f"expected the scores themselves for the mask of {name} (rule {method.mask.by}), found "
                "config.saliency.keep_scores=False; set it to True"
            )
        if method.edit and EDITS[method.edit].beyond(c.unlearn.strength[name]):
            row = EDITS[method.edit]
            problems.append(
                f"expected config.unlearn.strength.{name} ({row.strength}) of {row.limit:g} at the most, found "
                f"{c.unlearn.strength[name]:g}; correct it"
            )
        if c.unlearn.lora.rank and method.edit:
            problems.append(
                f"expected config.unlearn.lora.rank=0 for {name}, found {c.unlearn.lora.rank}: an edit ({method.edit}) is of the params "
                "themselves, and no product of factors is what it adds; set it to 0, or leave the method out"
            )
        elif c.unlearn.lora.rank:
            try:
                lora.LoRA(**c.unlearn.lora).check(method)
            except InputError as error:
                problems.append(f"{name}: {error}")
    return problems


def _headline(c: ConfigDict) -> list[str]:
    switch = {"letter": "letters", "told": "memorisation"}.get(METRICS[c.headline].asks)
    unmeasured = switch is not None and not c[switch]
    return [
        f"expected config.evaluate.{switch}=True for config.evaluate.headline={c.headline}, found False; set it"
    ] * unmeasured


def matching(keys: Iterable[str], table: list[tuple[str, Any, str]]) -> list[tuple[str, str]]:
    """(key, reason) for every key and every row ``(pattern, whether it holds, reason)`` of the table that holds for it."""
    return [(key, reason) for key in keys for pattern, holds, reason in table if holds and re.fullmatch(pattern, key)]


def _unread(c: ConfigDict, given: dict[str, Any]) -> list[str]:
    """What a user brings on the command line and nothing would look at: a source, a directory, the sizes of a model."""
    own, prepared = c.vanilla.path, c.data.path
    # An adapter needs its base; what a repository on the hub holds is not known yet.
    whole = own and not hub.is_id(own) and not adapters.is_adapter(own)
    embedded = not hasattr(builders.DATASETS[c.data.name], "HUB")
    table = [
        (r"data\.(source|name)", prepared, "config.data.path is a prepared data set"),
        (
            r"data\.source",
            embedded and not prepared,
            f"{c.data.name} needs none: name the data set in config.data.name, or benchmark=mllmu after the config's colon",
        ),
        (r"model\.path", whole, "config.vanilla.path is the model that is unlearned"),
        (r"model\.(vision|text)\..*|model\.language", c.model.path, "config.model.path has sizes of its own"),
        (r"model\.text\..*", c.model.language, "config.model.language has sizes of its own"),
        (
            r"model\.system",
            c.model.path or not c.model.language,
            "it is of the chat template of config.model.language alone",
        ),
        (r"gold", own and c.gold, "nothing is trained beside config.vanilla.path"),
    ]
    brought = [key for key, value in given.items() if value not in ("", None)]
    return [
        f"expected every key that is given to be read, found config.{key}={given[key]!r}, which nothing reads ({reason}); "
        "remove one"
        for key, reason in matching(brought, table)
    ]


def _only_descends(row: Method) -> bool:
    return not row.one_rate and all(phase.descends for phase in row.phases)


def unused(c: ConfigDict, given: dict[str, Any]) -> list[str]:
    """Lines about given numbers of steps that will not be taken; they harm nothing, and a user should know."""
    table_of = methods.METHODS
    rows = [table_of[name] if c.unlearn.replay else table_of[name].alone() for name in c.unlearn.methods]
    kept = {stream for name in c.unlearn.methods for stream in table_of[name].reads if STREAMS[stream].kept}
    scored = any(row.edit and EDITS[row.edit].reads == "scores" for row in rows)
    of_masks = "(?!rows|chunk).*" if scored else ".*"
    tried = [attacks.ATTACKS[name] for name in attacks.named(c.attack.names)]
    table = [
        (r"vanilla\.(?!path).*", c.vanilla.path, "nothing is trained before unlearning"),
        (
            r"model\.(vision|text)\..*|model\.language",
            c.vanilla.path,
            "config.vanilla.path has sizes of its own",
        ),
        (r"model\.system", c.vanilla.path, "config.vanilla.path has a chat template of its own"),
        (rf"saliency\.{of_masks}", not any(row.mask for row in rows), "no method has a mask"),
        (
            rf"saliency\.{of_masks}",
            any(row.mask for row in rows) and not any(row.mask.scored for row in rows if row.mask),
            "no mask is made of scores",
        ),
        (r"unlearn\.replay", not kept, "no method trains on the people to keep"),
        (
            r"saliency\.rows",
            not scored and all(row.mask.unit == "batch" for row in rows if row.mask),
            "every mask is scored by batch",
        ),
        (r"saliency\.eps", all(row.mask.eps is not None for row in rows if row.mask), "every mask has its own"),
        (r"saliency\.noise", all(row.mask.noise is not None for row in rows if row.mask), "every mask has its own"),
        (r"factors\..*", not any(row.projects for row in rows), "no method is projected"),
        (
            r"factors\.(?!path).*",
            c.factors.path and all(row.reads_factors for row in rows if row.projects),
            "config.factors.path is the file",
        ),
        (
            r"factors\.(path|loss|blocks)",
            any(row.projects for row in rows) and not any(row.reads_factors for row in rows),
            "the factors of these methods are of inputs, measured by each",
        ),
        (r"factors\.share", c.factors.fraction or c.factors.alpha, "config.factors.fraction or .alpha says how many"),
        (r"unlearn\.stop\.(rows|level|margin|facts)", not c.unlearn.stop.every, "config.unlearn.stop.every is 0"),
        (r"unlearn\.stop\.margin", c.unlearn.stop.level, "config.unlearn.stop.level says where to stop"),
        (r"evaluate\.prompts\.letter", not c.evaluate.letters, "letters are not asked for"),
        (r"attack\.(steps|learning_rate)", not any(row.trains for row in tried), "no attack trains"),
        (r"attack\.rows", not any(row.backward for row in tried), "no attack takes gradients"),
        (r"general\.drawn", not any(c.general[name] for name in GENERAL), "no general benchmark is given"),
        (r"unlearn\.(epochs|schedule|clip)", not any(row.phases for row in rows), "no method takes steps"),
        (r"unlearn\.lora\.(alpha|targets)", not c.unlearn.lora.rank, "config.unlearn.lora.rank is 0"),
        (r"vanilla\.lora\.(alpha|targets|whole)", not c.vanilla.lora.rank, "config.vanilla.lora.rank is 0"),
    ]
    return [f"config.{key} is not read: {reason}" for key, reason in matching(given, table + _unused_numbers(c, rows))]


def _unused_numbers(c: ConfigDict, rows: list[Method]) -> list[tuple[str, Any, str]]:
    """Of the numbers that every method has of its own, those that are not read; rows of a table for :func:`matching`."""
    table: list[tuple[str, Any, str]] = [
        (
            rf"unlearn\.(learning_rate|retain_rate|strength)\.{name}",
            name not in c.unlearn.methods,
            "the method is not run",
        )
        for name in methods.METHODS
    ]
    for name, row in zip(c.unlearn.methods, rows, strict=True):
        steps = f"its steps only descend, at config.unlearn.retain_rate.{name}" if row.phases else "it takes no steps"
        table += [
            (rf"unlearn\.retain_rate\.{name}", not row.has_own_rate, "no step of this method only descends at it"),
            (rf"unlearn\.learning_rate\.{name}", _only_descends(row), steps),
        ]
    return table
