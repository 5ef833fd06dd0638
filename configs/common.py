"""Groups of methods, and the arguments that a config takes after its colon."""

from ml_collections import ConfigDict

from mmu_jax.study.config import base as base  # what every config starts from

ALL = (
    "retain_ft",
    "ga",
    "npo",
    "npo_retain",
    "kl",
    "grad_diff",
    "grad_diff_alternate",
    "mmunlearner",
    "linear_only",  # beside a mask, what the same steps do without one; as dense at random (mask_random) takes more memory
    "projected",
    "projected_retain",
)
SHOWN = ("ga", "npo_retain", "grad_diff", "mmunlearner", "projected", "projected_retain")


def parse(argument: str | None, **defaults: str | int) -> ConfigDict:
    """``'benchmark=mllmu,split=5'`` -> the defaults with these values, typed as they are.

    >>> parse('split=10', benchmark='faces', split=5).split
    10

    Raises:
      ValueError: an unknown name, one given twice or a value of another type.
    """
    values, given = dict(defaults), set()
    for part in filter(None, (argument or "").split(",")):
        name, _, value = part.partition("=")
        if name not in defaults:
            raise ValueError(f"expected config arguments among {', '.join(defaults)}, found {part!r}; correct it")
        if name in given:
            raise ValueError(f"expected every config argument once, found {name} twice in {argument!r}; remove one")
        given.add(name)
        try:
            values[name] = type(defaults[name])(value)
        except ValueError as error:
            raise ValueError(f"expected {name} like {defaults[name]!r}, found {value!r}; correct it") from error
    return ConfigDict(values)
