import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.*)"', (ROOT / "mmu_jax" / "__init__.py").read_text()).group(1)

# What the runner needs beside the library: checkpoints, data sets, configs, the report.
RUN = [
    "absl-py>=2.1",
    "array_record>=0.8; sys_platform != 'win32'",
    "chex>=0.1.90",
    "huggingface_hub>=1.0",
    "importlib_resources>=6",  # tensorflow-datasets imports it without declaring it
    "jinja2>=3.1",
    "matplotlib>=3.9",
    "ml-collections>=1.1",
    "ml_dtypes>=0.5",
    "orbax-checkpoint>=0.12",
    "pillow>=11",
    "pyarrow>=16",
    "rouge-score>=0.1.2",
    "scikit-image>=0.25",
    "tensorflow-datasets>=4.9.9",
    "tokenizers>=0.22",
    "tqdm>=4.66",
    "transformers>=5",
]

setup(
    name="mmu_jax",
    version=VERSION,
    description="Multimodal machine unlearning in JAX/Flax: forget a face, keep the facts.",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["mmu_jax", "mmu_jax.*"]),
    package_data={
        "mmu_jax": ["py.typed"],
        "mmu_jax.data.general": ["everyday.tsv", "rehearsal.tsv"],
        "mmu_jax.report": ["page.html"],
    },
    install_requires=["jax>=0.10", "flax>=0.12", "optax>=0.2.8", "numpy>=2.0", "safetensors>=0.6"],
    extras_require={
        "run": RUN,
        # torch is the reference that parity is tested against; nothing here needs it at run time.
        "test": [
            *RUN,
            "axe-core-python>=0.1",  # the file of axe, with which chromium judges the report
            "gguf>=0.17",
            "ipykernel>=7",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "peft>=0.18",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
            "scikit-learn>=1.6",
            "tensorboardX>=2.6",
            "torch==2.13.0",
        ],
        # Where numbers can be sent while a run goes on (config.track).
        "tensorboard": ["tensorboardX>=2.6"],
        "trackio": ["trackio>=0.40"],
        "wandb": ["wandb>=0.31"],
        "cuda": ["jax[cuda13]>=0.10"],
        "tpu": ["jax[tpu]>=0.10"],
        # To start from a language model in a GGUF file (config.model.language).
        "gguf": ["gguf>=0.17"],
        "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29", "ruff>=0.14"],
    },
)
