import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.*)"', (ROOT / "mmu_jax" / "__init__.py").read_text()).group(1)

setup(
    name="mmu_jax",
    version=VERSION,
    description="Multimodal machine unlearning in JAX/Flax: forget a face, keep the facts.",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["mmu_jax", "mmu_jax.*", "experiments", "configs"]),
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "transformers>=5",
        "tokenizers>=0.22",
        "tensorflow-datasets>=4.9.9",
        "importlib_resources>=6",  # tensorflow-datasets imports it without declaring it
        "array_record>=0.8; sys_platform != 'win32'",
        "pyarrow>=16",
        "ml_dtypes>=0.5",
        "ml-collections>=1.1",
        "chex>=0.1.90",
        "safetensors>=0.6",
        "huggingface_hub>=1.0",
        "numpy>=2.0",
        "pillow>=11",
        "jinja2>=3.1",
        "scikit-image>=0.25",
        "matplotlib>=3.9",
        "rouge-score>=0.1.2",
        "tqdm>=4.66",
        "absl-py>=2.1",
    ],
    extras_require={
        # torch is the reference that parity is tested against; nothing here needs it at run time.
        "test": [
            "ipykernel>=7",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "peft>=0.18",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
            "torch==2.13.0",
        ],
        "cuda": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
    },
)
