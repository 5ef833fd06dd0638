"""What is fetched from the Hugging Face hub, and when: small files first, a weight only after the plan has said that it fits."""

import fnmatch
import pathlib
import shutil

import huggingface_hub
import pytest
from huggingface_hub import errors

from configs import llava
from mmu_jax import InputError, hub
from mmu_jax.study.study import Study

MODEL, DATA = "llava-hf/llava-1.5-7b-hf", "MLLMMU/MLLMU-Bench"


class FakeHub:
    """Repositories on the hub; ``asked`` lists ``(id, file)`` in the order in which files went over the wire."""

    def __init__(self, cache: pathlib.Path, repositories: dict[str, pathlib.Path]):
        self.cache, self.repositories, self.asked = cache, repositories, []

    def snapshot_download(self, repo_id, *, repo_type, allow_patterns):
        source, out = self.repositories.get(repo_id), self.cache / repo_id
        if source is None:
            raise errors.LocalEntryNotFoundError("no such thing here")
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            name = file.relative_to(source).as_posix()
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns) and not (out / name).exists():
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, out / name)
                self.asked.append((repo_id, name))
        out.mkdir(parents=True, exist_ok=True)
        return str(out)

    def weights(self):
        return [name for _, name in self.asked if name.endswith(".safetensors")]


@pytest.fixture
def online(llava_folder, mllmu_folder, tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "cache", {MODEL: llava_folder, DATA: mllmu_folder})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def published(**memory):
    """The mission's command, as it is, but for the arithmetic that two cores can afford."""
    config = llava.get_config()
    config.memory.update(memory)
    return config


def test_what_cannot_fit_is_refused_before_data_or_weights_are_fetched(online, tmp_path, capsys):
    study = Study(published(limit_gib=1e-6), tmp_path / "w")
    with pytest.raises(InputError, match="fit into .* per device.*config.memory.allow_too_large=True"):
        study.run()
    assert "memory plan, per device" in capsys.readouterr().out
    assert not online.weights() and not any(name.endswith(".parquet") for _, name in online.asked)
    assert {name for _, name in online.asked} >= {"config.json", "processor_config.json", "tokenizer.json"}
    assert not (tmp_path / "w").exists()


def test_the_plan_is_printed_before_a_weight_is_fetched(online, tmp_path, capsys, monkeypatch):
    study, seen = Study(published(), tmp_path / "w"), []
    real = huggingface_hub.snapshot_download

    def watched(repo_id, **options):
        if repo_id == MODEL and "*.safetensors" in options["allow_patterns"]:
            seen.append(capsys.readouterr().out)
        return real(repo_id, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", watched)
    study.run(["data", "base"])
    assert len(seen) == 1 and "memory plan, per device" in seen[0] and online.weights()
    order = [name.rpartition(".")[2] for _, name in online.asked]
    assert order.index("safetensors") > order.index("parquet") > order.index("json")


FAULTS = {
    "gated": (lambda: errors.GatedRepoError("no", response=_response(403)), "ask for access"),
    "not there": (lambda: errors.RepositoryNotFoundError("no", response=_response(404)), "found neither"),
    "no network": (lambda: errors.LocalEntryNotFoundError("no"), "found neither"),
    "offline": (lambda: errors.OfflineModeIsEnabled("no"), "found neither"),
    "cut off": (lambda: errors.HTTPError("the line went dead"), "found neither"),
    "disk full": (lambda: OSError(28, "No space left on device"), "found neither"),
}


def _response(status):
    transport = __import__(errors.Response.__module__.split(".")[0])
    return errors.Response(status, request=transport.Request("GET", "http://localhost/x"))


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_hub_raises_is_one_line(fault, monkeypatch):
    raised, word = FAULTS[fault]

    def fail(*_, **__):
        raise raised()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=word) as said:
        hub.fetch(MODEL, "config.model.path")
    assert MODEL in str(said.value) and "--config.model.path=FOLDER" in str(said.value)


def test_a_folder_that_is_no_whole_checkpoint_is_refused_before_anything_is_made(
    llava_folder,
    mllmu_folder,
    tmp_path,
):
    folder = pathlib.Path(shutil.copytree(llava_folder, tmp_path / "model"))
    next(folder.glob("*.safetensors")).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    config = published()
    config.model.path, config.data.source = str(folder), str(mllmu_folder)
    with pytest.raises(InputError, match=r"\.safetensors.*git lfs pull"):
        Study(config, tmp_path / "w").run()
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("section", ["vanilla", "unlearn"])
def test_lora_targets_that_match_nothing_are_named(section, online, tmp_path):
    config = published()
    config[section].lora.targets = "nothing/at/all"
    with pytest.raises(InputError, match=rf"config\.{section}\.lora\.targets.*'nothing/at/all'"):
        Study(config, tmp_path / "w").run()
    assert not online.weights() and not (tmp_path / "w").exists()
