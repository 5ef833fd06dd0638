"""What a process has loaded: little for the library, never TensorFlow or torch."""

import subprocess
import sys

import pytest

from mmu_jax.data import builders
from runs import ROOT

HEAVY = (
    "transformers",
    "tensorflow_datasets",
    "tensorflow",
    "torch",
    "orbax",
    "chex",
    "ml_collections",
    "PIL",
    "absl.app",
)


def loaded(code):
    """Which of HEAVY a process has loaded that ran ``code``."""
    end = f"; import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + end], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "code",
    ["import mmu_jax; mmu_jax.masks.ratio", "from mmu_jax import losses, masks, rules, saliency, transforms, trees"],
)
def test_the_library_is_light(code):
    assert loaded(code) == "[]"


def test_importing_the_package_loads_no_jax():
    code = "import mmu_jax, sys; assert 'jax' not in sys.modules and 'masks' in dir(mmu_jax)"
    assert loaded(code) == "[]"


def test_tensorflow_is_never_imported(tmp_path):
    prepared = builders.prepare("embedded_faces", tmp_path / "data")
    said = loaded(
        f"from mmu_jax.data import builders; builders.read({str(prepared)!r}, forget='forget_10', retain='retain_90')"
    )
    assert "tensorflow_datasets" in said and "'tensorflow'" not in said and "torch" not in said
