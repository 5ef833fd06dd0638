"""Law 13: the examples of the docstrings run, and the library has one for every public function."""

import doctest
import importlib
import inspect
import operator
import pkgutil

import pytest

import mmu_jax

MODULES = sorted(m.name for m in pkgutil.walk_packages(mmu_jax.__path__, "mmu_jax."))
LIBRARY = (
    "trees",
    "masks",
    "packing",
    "selection",
    "saliency",
    "transforms",
    "losses",
    "distillation",
    "rules",
    "letters",
    "metrics",
    "overlap",
    "quality",
)


@pytest.mark.parametrize("name", ["mmu_jax", *MODULES])
def test_the_examples_run(name):
    module = importlib.import_module(name)
    globs = vars(module) | {"jnp": importlib.import_module("jax.numpy")}
    failed = doctest.testmod(module, extraglobs=globs, optionflags=doctest.ELLIPSIS).failed
    assert failed == 0


def public(name):
    module = importlib.import_module(f"mmu_jax.{name}")
    return {
        key: value
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith(("_", "check_"))
    }


@pytest.mark.parametrize("name", LIBRARY)
def test_every_public_function_has_an_example(name):
    assert [key for key, value in public(name).items() if ">>>" not in inspect.getdoc(value)] == []


def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {absent!r}", name=absent)

    monkeypatch.setattr(importlib, "import_module", missing)
    absent = "PIL"
    with pytest.raises(ModuleNotFoundError, match=r"what mmu_jax.hf needs, found PIL not installed.*mmu_jax\[run\]"):
        mmu_jax.__getattr__("hf")  # as where it was never loaded
    absent = "mmu_jax.nosuch"
    with pytest.raises(ModuleNotFoundError, match="No module named 'mmu_jax.nosuch'"):
        mmu_jax.__getattr__("hf")  # as where it was never loaded


def test_every_module_is_there_by_name_and_no_other():
    tops = {name.removeprefix("mmu_jax.") for name in MODULES if name.count(".") == 1} - {"packing"}
    others = {"Faults", "InputError", "NotFiniteError", "Stopped", "__version__"}
    assert tops == set(mmu_jax.__all__) - others == set(dir(mmu_jax)) - others
    for name in tops:
        assert getattr(mmu_jax, name).__name__ == f"mmu_jax.{name}"
    with pytest.raises(AttributeError, match="mmu_jax.*nonsense"):
        operator.attrgetter("nonsense")(mmu_jax)
