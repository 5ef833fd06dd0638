"""TFDS builders: array_record files of encoded image bytes; TensorFlow is never imported."""

import contextlib
import io
import pathlib
from collections.abc import Iterator

import tensorflow_datasets as tfds

from mmu_jax import InputError
from mmu_jax.data import Benchmark, Person, check, faces, read_person

SPLITS = ("full", "forget_10", "retain_90", "test", "unseen")


def _features() -> tfds.features.FeaturesDict:
    text, image = tfds.features.Text(), tfds.features.Image(encoding_format="png")
    choice = {"Question": text, "Options": {letter: text for letter in "ABCD"}, "Correct_Answer": text}
    answer = {"Question": text, "Ground_Truth": text, "Type": text}
    sequence = tfds.features.Sequence
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


class EmbeddedFaces(tfds.core.GeneratorBasedBuilder):
    """100 real faces with invented lives in the MLLMU-Bench schema; see ``mmu_jax.data.faces``."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "100 people, 10 to forget, 10 unseen."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=faces.__doc__,
            features=_features(),
            homepage="https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.lfw_subset",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # nothing to download
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        for row in faces.rows(split):
            images = {"image": io.BytesIO(row["image"]), "images": [io.BytesIO(image) for image in row["images"]]}
            yield row["ID"], row | images


DATASETS = {"embedded_faces": EmbeddedFaces}


def prepare(name: str, path: str | pathlib.Path) -> pathlib.Path:
    """Builds the data set ``name`` under ``path`` (array_record), or finds it built."""
    if name not in DATASETS:
        raise InputError(f"expected config.data.name in {sorted(DATASETS)}, found {name!r}; choose one of them")
    tfds.disable_progress_bar()
    builder = DATASETS[name](data_dir=str(path), file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):  # it announces a download; there is none
        builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


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
    benchmark = Benchmark(
        full=_people(builder, "full"),
        forget=forgotten,
        retain=_people(builder, retain),
        test=tuple(person for person in _people(builder, "test") if person.id in ids),
        unseen=_people(builder, "unseen"),
    )
    check(benchmark)
    return benchmark
