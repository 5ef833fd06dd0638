"""Eight CPU devices for the whole suite, set before jax is imported; what several modules are tested on."""

import atexit
import json
import os
import pathlib
import shutil
import sys
import tempfile

from xla import QUICK

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {QUICK}"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
# The runs that the suite starts, and its two processes, compile the same programs; each is compiled once.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax
import pytest

import needed
from folders import author, person, png, write
from mmu_jax.data.sets import clear
from twins import CHATML, TEXT, VISION, qwen_processor, torch_llava, torch_qwen  # noqa: F401

MESHES = [(1, 1), (8, 1), (4, 2), (1, 8)]


def pytest_collection_modifyitems(config, items):
    """Leaves out tests that need a program which is not here; :func:`pytest_terminal_summary` says so."""
    gone = [item for item in items if needed.absent(item)]
    if gone:
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if item not in gone]


def pytest_terminal_summary(terminalreporter):
    for line in needed.advice():
        terminalreporter.write_line(line)


@pytest.fixture(params=MESHES, ids=lambda m: f"{m[0]}x{m[1]}")
def mesh(request):
    from mmu_jax import sharding

    return sharding.make_mesh(*request.param)


MAPS = pathlib.Path("/proc/self/maps")
ROOM = 30_000  # of the 65,530 memory maps that Linux allows a process: beyond them XLA dies where it loads a program


@pytest.fixture(autouse=True, scope="module")
def room_for_programs():
    """Every program that was compiled for a CPU holds some maps, and a process of the suite compiles thousands."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > ROOM:
        jax.clear_caches()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """The embedded faces as a TFDS directory; to read, not to change."""
    from mmu_jax.data import builders

    return builders.prepare("embedded_faces", tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="session", params=["qwen2_vl", "qwen2_5_vl"])
def qwen(request, tmp_path_factory):
    """(folder, torch model, our model) of a tiny Qwen2-VL and a tiny Qwen2.5-VL, float32."""
    from mmu_jax import hf, models

    folder = tmp_path_factory.mktemp(request.param)
    reference = torch_qwen(folder, request.param)
    return folder, reference, models.Model(hf.read_config(folder))


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    """(folder, torch model, our model) of one tiny LLaVA, float32."""
    from mmu_jax import hf, models

    folder = tmp_path_factory.mktemp("llava")
    reference = torch_llava(folder)
    return folder, reference, models.Model(hf.read_config(folder))


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Family -> a directory with weights, config, tokenizer and processor."""
    from transformers import LlavaForConditionalGeneration

    from mmu_jax.data import tiny

    root, processor = tmp_path_factory.mktemp("whole"), tiny.processor()
    processor.save_pretrained(root / "llava")
    config = tiny.config(processor.tokenizer, vision=VISION, text=TEXT)
    LlavaForConditionalGeneration(config).save_pretrained(root / "llava")
    torch_qwen(root / "qwen2_vl")
    return {"llava": root / "llava", "qwen2_vl": root / "qwen2_vl"}


@pytest.fixture
def copy(whole, tmp_path):
    """``copy(family)``, a directory of ``whole`` to change."""
    return lambda family="llava": shutil.copytree(whole[family], tmp_path / "copy")


@pytest.fixture
def typed(monkeypatch):
    """``typed('--config=...', ...)`` parses as a program does, and leaves no flag behind."""
    from absl import flags

    from experiments import command

    def forget():
        for name in [name for name in flags.FLAGS if name.startswith("config.")]:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()

    def parse(*words, how=command.parse):
        forget()
        argv = ["run", *words]
        monkeypatch.setattr(sys, "argv", argv)  # ml_collections looks for overrides there
        return how(argv)

    yield parse
    forget()


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def mllmu_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mllmu")
    everyone = [person(i) for i in range(12)]
    write(folder / "Full_Set", everyone)
    taught = [{"Question": "Who?", "Answer": "Me"}, {"Question": "", "Answer": ""}]
    write(
        folder / "ft_Data", [{"ID": f"{i:04d}", "image": png(i), "metadata": json.dumps(taught)} for i in range(1, 12)]
    )
    write(folder / "forget_5", everyone[:2])
    write(folder / "retain_95", everyone[2:])
    write(folder / "Test_Set", [person(i, test=True) for i in range(12)], parts=2)
    write(folder / "Retain_Set", [person(i, job="singer") for i in range(2)])
    return folder


@pytest.fixture(scope="session")
def clear_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clear")
    captions = [{"image": png(10 * i + k), "caption": f"{author(i)} in room {k}.", "name": author(i)}
                for i in range(4) for k in range(3)]  # fmt: skip
    asked = [{"image": None, "caption": None, "question": f"Q{i}.{k} of {author(i) if k else 'them'}?", "answer": f"A{i}.{k}"}
             for i in range(4) for k in range(clear.BLOCK)]  # fmt: skip
    shown = [{"image": c["image"], "caption": c["caption"], "question": None, "answer": None} for c in captions]
    write(folder / "full", captions)
    write(folder / "full+tofu", asked + shown)
    perturbed = [c | {"paraphrased_caption": "x", "perturbed_captions": ["y"], "perturbed_names": ["Zoe Z", "Al B"][: 1 + k % 2]}
                 for k, c in enumerate(captions)]  # fmt: skip
    write(folder / "forget05", captions[:3])
    write(folder / "forget05_perturbed", perturbed[1:3])
    write(folder / "retain95", captions[3:])
    write(folder / "retain_perturbed", perturbed)  # holds forgotten authors too
    write(folder / "real_faces", [{"image": png(900), "answer": "Star One", "options": ["Star Two", "Star Three"]}])
    world = {"image": png(901), "question": "What is it?", "answer": "a bridge", "options": ["a tower"]}
    write(folder / "real_world", [world, world | {"image": None}])
    return folder


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory):
    """What ``transformers`` writes for LLaVA: files in bfloat16, in shards, with its processor."""
    import torch
    from transformers import LlavaForConditionalGeneration

    from mmu_jax.data import tiny

    folder, processor = tmp_path_factory.mktemp("llava"), tiny.processor()
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(tiny.config(processor.tokenizer, vision=VISION, text=TEXT))
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="60KB")
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    torch_qwen(folder, dtype="bfloat16", shard="60KB")
    return folder


@pytest.fixture
def kernel(monkeypatch):
    """The kernel of TPUs on this platform, interpreted, for any number of tokens; of what shapes a program took it."""
    from mmu_jax.models import attention

    taken = []

    def counted(*given):
        taken.append(given[0].shape)
        return attention.splash(*given, interpret=True)

    monkeypatch.setattr(attention, "KERNELS", {"cpu": attention.Kernel(counted, attention.splash_takes)})
    monkeypatch.setattr(attention, "LONG", 1)
    return taken
