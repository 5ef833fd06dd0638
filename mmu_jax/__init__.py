"""Multimodal machine unlearning in JAX: forget a face, keep the facts.

    >>> import jax.numpy as jnp
    >>> import mmu_jax
    >>> mmu_jax.masks.count({"w": jnp.array([True, False])})
    1

Every module is here by name and is loaded when it is first named.
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mmu_jax import (
        activations,
        adapters,
        attacks,
        checkpoint,
        clear_compat,
        curvature,
        data,
        directory,
        edits,
        evaluate,
        factor,
        files,
        generate,
        hf,
        hub,
        letters,
        likelihood,
        lora,
        losses,
        masks,
        membership,
        memory,
        methods,
        metrics,
        models,
        objectives,
        optimizers,
        overlap,
        plan,
        quality,
        questions,
        report,
        rowwise,
        rules,
        saliency,
        scored,
        selection,
        separable,
        sharding,
        study,
        together,
        train,
        train_state,
        trainable,
        transforms,
        trees,
    )

__all__ = [
    "Faults",
    "InputError",
    "NotFiniteError",
    "Stopped",
    "__version__",
    "activations",
    "adapters",
    "attacks",
    "checkpoint",
    "clear_compat",
    "curvature",
    "data",
    "directory",
    "distillation",
    "edits",
    "evaluate",
    "factor",
    "files",
    "generate",
    "hf",
    "hub",
    "letters",
    "likelihood",
    "lora",
    "losses",
    "masks",
    "membership",
    "memory",
    "methods",
    "metrics",
    "models",
    "objectives",
    "optimizers",
    "overlap",
    "phases",
    "plan",
    "programs",
    "quality",
    "questions",
    "report",
    "rowwise",
    "rules",
    "saliency",
    "scored",
    "selection",
    "separable",
    "sharding",
    "sine",
    "study",
    "train",
    "train_state",
    "together",
    "trainable",
    "transforms",
    "trees",
]


class InputError(ValueError):
    """Something given to the library is not what it needs.

    The message is one line: what was expected, what was found, what to do. Programs print it and exit with code 2.
    """


class Faults(InputError):
    """All that is wrong with something at once: ``faults``, a line each."""

    def __init__(self, faults: Sequence[str]):
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


class NotFiniteError(InputError):
    """A number that a model gives, or that a step would leave, is NaN or infinite."""


class Stopped(SystemExit):
    """A run that was asked to end, by SIGTERM, and kept what it had: a program ends with exit code 143 by it.

    The message says where it was stopped.
    """

    def __init__(self, where: str):
        super().__init__(143)
        self.where = where

    def __str__(self) -> str:
        return f"stopped by SIGTERM{self.where and ' '}{self.where}; the same command resumes"


def __getattr__(name: str) -> Any:
    if name in __all__:
        try:
            return importlib.import_module(f"mmu_jax.{name}")
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("mmu_jax"):  # a fault of ours
                raise
            raise ModuleNotFoundError(
                f"expected what mmu_jax.{name} needs, found {error.name} not installed; pip install 'mmu_jax[run]'",
                name=error.name,
            ) from error
    raise AttributeError(f"module 'mmu_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
