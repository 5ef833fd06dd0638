"""TFDS builders: array_record files of encoded image bytes; TensorFlow is never imported."""

import contextlib
import io
import json
import pathlib
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import tensorflow_datasets as tfds

from mmu_jax import InputError, hub
from mmu_jax.data import Benchmark, Person, check, clear, faces, mllmu, read_person

# A module of rows in one schema (``read_person``) each: what splits it has, and their rows, read from a source folder.
DATASETS: dict[str, ModuleType] = {"embedded_faces": faces, "mllmu_bench": mllmu, "clear": clear}


def _features() -> tfds.features.FeaturesDict:
    text, image = tfds.features.Text(), tfds.features.Image(encoding_format="png")
    photo = tfds.features.Scalar(np.int32)
    sequence = tfds.features.Sequence
    # Options are JSON, letter to text: TFDS needs TensorFlow for sequences in sequences.
    choice = {"Question": text, "Options": text, "Correct_Answer": text, "Photo": photo}
    answer = {"Question": text, "Ground_Truth": text, "Type": text, "Photo": photo}
    return tfds.features.FeaturesDict(
        {
            "ID": text,
            "image": image,
            "images": sequence(image),
            "biography": text,
            "metadata": text,
            "Classification_Task": {
                "Image_Textual_Questions": sequence(choice),
                "Pure_Text_Questions": sequence(choice),
            },
            "Mask_Task": sequence(answer),
            "Generation_Task": sequence(answer),
        }
    )


class EncodedImages(tfds.decode.SkipDecoding):
    """Leaves a sequence of images as encoded bytes (``SkipDecoding`` knows only single images)."""

    def decode_batch_example_np(self, example):
        return example


class People(tfds.core.GeneratorBasedBuilder):
    """The people of a benchmark, a row a person, in the MLLMU-Bench schema."""

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {"2.0.0": "Any number of options; items about one photo."}

    def __init__(self, *, dataset: str, source: str = "", **options):
        self.name, self._rows = dataset, DATASETS[dataset]  # TFDS names the folder after the builder
        self._source = pathlib.Path(source)
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, description=self._rows.__doc__, features=_features())

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # the source is a folder, or nothing at all
        return {split: self._generate_examples(split) for split in self._rows.splits(self._source)}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        for row in self._rows.rows(split, self._source):
            images = {"image": io.BytesIO(row["image"]), "images": [io.BytesIO(image) for image in row["images"]]}
            task = row["Classification_Task"]
            choices = {key: [_numbered(choice) for choice in task[key]] for key in task}
            tasks = {"Mask_Task", "Generation_Task"} & row.keys()
            answers = {key: [{"Photo": -1} | item for item in row[key]] for key in tasks}
            yield row["ID"], row | images | answers | {"Classification_Task": choices}


def _numbered(choice: dict) -> dict:
    return {"Photo": -1} | choice | {"Options": json.dumps(choice["Options"])}


def prepare(name: str, path: str | pathlib.Path, source: str = "") -> pathlib.Path:
    """Builds the data set ``name`` under ``path`` (array_record), or finds it built.

    Args:
      source: folder with a copy of the published data set, or its id on the hub; nothing for the embedded one.
    """
    if name not in DATASETS:
        raise InputError(f"expected config.data.name in {sorted(DATASETS)}, found {name!r}; choose one of them")
    tfds.disable_progress_bar()
    built = pathlib.Path(path) / name / str(People.VERSION)
    if (built / "dataset_info.json").exists():
        return built
    folder, module = "", DATASETS[name]
    if hasattr(module, "HUB"):
        patterns = [f"{config}/*.parquet" for config in module.FETCHED]
        folder = hub.fetch(source or module.HUB, "config.data.source", kind="dataset", patterns=patterns)
    if not module.splits(pathlib.Path(folder)):
        raise InputError(
            f"expected a copy of the data set {name} in {folder}, a folder of Parquet files for every config, found none "
            "of them; download the whole data set and give its folder in config.data.source"
        )
    builder = People(dataset=name, source=str(folder), data_dir=str(path), file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):  # it announces a download; there is none
        builder.download_and_prepare()
    return built


def _people(builder: tfds.core.DatasetBuilder, split: str) -> tuple[Person, ...]:
    try:
        size = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise InputError(
            f"expected one of the splits {', '.join(sorted(builder.info.splits))}, or a part of one as in 'full[:5]', "
            f"found {split!r}; correct config.data"
        ) from error
    if size == 0:
        return ()
    keep = {
        name: EncodedImages() if isinstance(feature, tfds.features.Sequence) else tfds.decode.SkipDecoding()
        for name, feature in builder.info.features.items()
        if name in ("image", "images")
    }
    source = builder.as_data_source(split=split, decoders=keep)
    return tuple(sorted((read_person(row, split) for row in source), key=lambda person: person.id))


def read(path: str | pathlib.Path, *, forget: str, retain: str) -> Benchmark:
    """Reads a prepared TFDS directory; ``forget`` and ``retain`` name its splits or parts of them (``full[:5]``).

    The ``test`` split is filtered to the people to forget, as the benchmark prescribes.

    Raises:
      InputError: there is no data set, a split or column is absent, forget or retain is empty, or a person is in both.
    """
    if not (pathlib.Path(path) / "dataset_info.json").exists():
        raise InputError(
            f"expected a prepared TFDS directory, found no dataset_info.json in {path}; correct config.data.path"
        )
    builder = tfds.builder_from_directory(str(path))
    forgotten = _people(builder, forget)
    ids = {person.id for person in forgotten}
    there = set(builder.info.splits)

    def optional(split):
        return _people(builder, split) if split in there else ()

    benchmark = Benchmark(
        full=_people(builder, "full"),
        forget=forgotten,
        retain=_people(builder, retain),
        test=tuple(person for person in optional("test") if person.id in ids),
        unseen=optional("unseen"),
        celebrity=optional("celebrity"),
    )
    check(benchmark)
    return benchmark
