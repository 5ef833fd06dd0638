"""TFDS builders: array_record files of encoded image bytes; TensorFlow is never imported."""

import contextlib
import dataclasses
import io
import json
import pathlib
import re
import shutil
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format

from mmu_jax import Faults, InputError, hub
from mmu_jax.data import Benchmark, Person, groups, names, remarks, requests
from mmu_jax.data.schema import check, read_person
from mmu_jax.data.sets import clear, faces, folder, mllmu, parquet
from mmu_jax.files import read_json, read_object, refused, write_json

REST = "rest"  # everyone who is not to be forgotten
TOLD = "left_out.json"  # in the prepared directory
# A module of rows in one schema (``read_person``) each: what splits it has, and their rows, read from a source folder.
DATASETS: dict[str, ModuleType] = {"embedded_faces": faces, "mllmu_bench": mllmu, "clear": clear, "folder": folder}


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
            "Perturbed_Task": sequence(choice | {"Type": text}),
        }
    )


class EncodedImages(tfds.decode.SkipDecoding):
    """Leaves a sequence of images as encoded bytes (``SkipDecoding`` knows only single images)."""

    def decode_batch_example_np(self, example):
        return example


class People(tfds.core.GeneratorBasedBuilder):
    """The people of a benchmark, a row a person, in the MLLMU-Bench schema."""

    VERSION = tfds.core.Version("2.1.0")
    RELEASE_NOTES = {
        "2.0.0": "Any number of options; items about one photo.",
        "2.1.0": "Right answers in other words among wrong ones.",
    }

    def __init__(self, *, dataset: str, source: str = "", **options):
        self.name, self._rows = dataset, DATASETS[dataset]  # TFDS names the folder after the builder
        self._source = pathlib.Path(source)
        self.told: list[dict] = []  # remarks on the rows of all splits
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, description=self._rows.__doc__, features=_features())

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # the source is a folder, or nothing at all
        return {split: self._generate_examples(split) for split in self._rows.splits(self._source)}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        tally = remarks.Tally(split)
        for row in self._rows.rows(split, self._source):
            tally.add(row)
            row = {name: value for name, value in row.items() if name != "remarks"}
            if "image" not in row:
                continue  # nothing was left of it
            images = {"image": io.BytesIO(row["image"]), "images": [io.BytesIO(image) for image in row["images"]]}
            task = row["Classification_Task"]
            choices = {key: [_numbered(choice) for choice in task[key]] for key in task}
            rated = {"Perturbed_Task": [_numbered(choice) for choice in row.get("Perturbed_Task", [])]}
            tasks = {"Mask_Task", "Generation_Task"} & row.keys()
            answers = {key: [{"Photo": -1} | item for item in row[key]] for key in tasks}
            yield row["ID"], row | images | answers | rated | {"Classification_Task": choices}
        self.told += tally.told()
        if not tally.totals["people"]:
            raise InputError(
                f"expected people in split {split!r} of {self._source}, found none; download the data set again, or remove "
                "the folder of that split"
            )


def _numbered(choice: dict) -> dict:
    return {"Photo": -1} | choice | {"Options": json.dumps(choice["Options"])}


def prepare(name: str, path: str | pathlib.Path, source: str = "", what: str = "source") -> pathlib.Path:
    """Builds the data set ``name`` under ``path`` (array_record), or finds it built.

    Args:
      source: folder with a copy of the published data set, or its id on the hub; nothing for the embedded one.
      what: the name of ``source`` in messages.
    Raises:
      InputError: there is no such data set, its files cannot be read or do not belong together, or there is no room.
    """
    if name not in DATASETS:
        raise InputError(f"expected a data set among {sorted(DATASETS)}, found {name!r}; choose one of them")
    tfds.disable_progress_bar()
    built = pathlib.Path(path) / name / str(People.VERSION)
    if all((built / file).exists() for file in ("dataset_info.json", TOLD)):
        return built
    there, module = "", DATASETS[name]
    if hasattr(module, "HUB"):
        patterns = [f"{config}/*.parquet" for config in module.FETCHED]
        there = hub.fetch(source or module.HUB, what, kind="dataset", patterns=patterns)
    check_source(name, there)
    try:
        shutil.rmtree(built, ignore_errors=True)  # half built, or by a release that told nothing
        builder = People(dataset=name, source=str(there), data_dir=str(path), file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):  # it announces a download; there is none
            builder.download_and_prepare()
    except (OSError, RuntimeError) as error:  # the array_record writer knows RuntimeError alone
        if isinstance(error, RuntimeError) and not refused(error):
            raise
        raise InputError(
            f"expected room and permission to prepare the data set in {path}, found {_brief(error)}; free or change it"
        ) from error
    write_json(built / TOLD, builder.told)
    return built


def check_source(name: str, folder: str | pathlib.Path, forget: str = "", retain: str = "") -> None:
    """Raises InputError unless ``folder`` has the people of the data set ``name``, those to forget and to keep among them.

    A data set whose module finds every fault (``faults``) tells of all of them (``Faults``).
    """
    module = DATASETS[name]
    if hasattr(module, "faults"):  # it tells all at once
        if faults := module.faults(pathlib.Path(folder), forget, retain):
            raise Faults(faults)
        return
    if "full" not in (there := module.splits(pathlib.Path(folder))):
        raise InputError(
            f"expected a copy of the data set {name} in {folder}, a folder of Parquet files for every config, found "
            f"{'only those of ' + ', '.join(there) if there else 'none of them'}; download the whole data set and give its "
            "folder as the source"
        )


def not_read(name: str, source: str | pathlib.Path) -> list[str]:
    """What lies in the source of a data set and is not read, a line each, where its module looks for that (``remarks``)."""
    module = DATASETS[name]
    return list(module.remarks(pathlib.Path(source))) if source and hasattr(module, "remarks") else []


def number(path: str | pathlib.Path, split: str) -> int:
    """How many people a split of a prepared directory holds.

    Raises:
      InputError: there is no such directory, or it is damaged.
    """
    return _open(pathlib.Path(path)).info.splits[split].num_examples


def left_out(path: str | pathlib.Path) -> list[str]:
    """What :func:`prepare` left out of a directory and why, a line each; empty for one prepared by others.

    Raises:
      InputError: the file that says so is damaged.
    """
    file = pathlib.Path(path) / TOLD
    if not file.exists():
        return []
    told = read_json(file, "what was left out of the data set")
    if not isinstance(told, list) or not all(isinstance(r, dict) and r.keys() >= set(remarks.KEYS) for r in told):
        raise InputError(
            f"expected a list of remarks in {file}, found something else; delete the folder, it is made again"
        )
    return [remarks.line(remark) for remark in told]


def name_of(path: str | pathlib.Path) -> str:
    """The name of the data set in a prepared directory, of :data:`DATASETS` where :func:`prepare` made it.

    Raises:
      InputError: there is none, or what describes it is damaged.
    """
    return _open(pathlib.Path(path)).name


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _open(path: pathlib.Path) -> tfds.core.DatasetBuilder:
    """The builder of a prepared directory.

    Raises:
      InputError: there is none, it is damaged, or its files are of another format.
    """
    if not (path / "dataset_info.json").exists():
        raise InputError(
            f"expected a prepared TFDS directory, found no dataset_info.json in {path}; give the folder of one"
        )
    info = read_object(path / "dataset_info.json", "the description of a TFDS directory")
    features = read_object(path / "features.json", "the features of a TFDS directory")
    try:
        return tfds.builder_from_directory(str(path))
    except (json_format.ParseError, ValueError, TypeError, OSError) as error:
        raise InputError(
            f"expected a prepared TFDS directory in {path}, found one that tfds does not read ({_brief(error)}; version "
            f"{info.get('version')}, features {features.get('pythonClassName')}); prepare or copy it again"
        ) from error


def _rows(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[dict]:
    """The rows of a split or of a part of one, images as encoded bytes."""
    try:
        size = builder.info.splits[split].num_examples
    except (KeyError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"expected one of the splits {', '.join(sorted(builder.info.splits))}, or a part of one as in 'full[:5]', "
            f"found {split!r} ({_brief(error).split('/splits ')[-1]}); correct forget or retain"
        ) from error
    if size < 0:
        raise InputError(f"expected a part of a split as in 'full[:5]', found {split!r}, which ends before it begins")
    if size == 0:
        return
    keep = {
        name: EncodedImages() if isinstance(feature, tfds.features.Sequence) else tfds.decode.SkipDecoding()
        for name, feature in builder.info.features.items()
        if name in ("image", "images")
    }
    try:
        source = builder.as_data_source(split=split, decoders=keep)
        for index in range(len(source)):
            yield source[index]
    except (RuntimeError, ValueError, OSError) as error:  # the array_record reader knows RuntimeError alone
        where = builder.data_path
        pointers = [file.name for file in where.glob("*.array_record*") if parquet.is_pointer(pathlib.Path(file))]
        why = f"{pointers[0]} is a pointer of git-lfs; run 'git lfs pull' there" if pointers else None
        raise InputError(
            f"expected the files of split {split!r} in {where} whole, found that "
            f"{why or f'they cannot be read ({_brief(error)}); prepare or copy it again'}"
        ) from error


def _people(builder: tfds.core.DatasetBuilder, split: str) -> tuple[Person, ...]:
    return tuple(sorted((read_person(row, split) for row in _rows(builder, split)), key=lambda person: person.id))


def read(
    path: str | pathlib.Path, *, forget: str, retain: str, group: int = 0, before: str = "", others: bool = True
) -> Benchmark:
    """Reads a prepared TFDS directory.

    The people of the ``test`` split are told apart into those to forget and those to keep; others in it are left out. People
    never seen of whom nothing is asked are asked what those to forget are.

    Args:
      forget, retain: splits or parts of them (``full[:5]``), or names or ids of people, separated by commas; ``retain`` may be
        ``REST``, everyone else, which may be nobody.
      before: names or ids of people whom an earlier request made the model forget.
      others: whether people of ``full`` whom none of these names are trained on too, as people to keep; else they are left out.
      group: whom to forget: 0 the people of ``forget``, 1 and above as many others (:func:`mmu_jax.data.groups.deal`).
    Raises:
      InputError: there is no data set or it is damaged, a split or column is absent, its people do not belong together
        (:func:`mmu_jax.data.schema.check`), or there is no such group.
    """
    builder = _open(pathlib.Path(path))
    there, full = set(builder.info.splits), _people(builder, "full")

    def optional(split):
        return _people(builder, split) if split in there else ()

    def chosen(said, what):
        parts = {re.split(r"[\[%]", part)[0].strip() for part in said.split("+")}
        return _people(builder, said) if parts & there or not said.strip() else _named(full, said, what, there)

    earlier = _named(full, before, "before", there)
    asked = chosen(forget, "forget")
    gone = {person.id for person in (*asked, *earlier)}
    benchmark = Benchmark(
        forget=asked,
        retain=tuple(p for p in full if p.id not in gone) if retain == REST else chosen(retain, "retain"),
        full=full,
        test=optional("test"),
        unseen=optional("unseen"),
        celebrity=optional("celebrity"),
    )
    check(benchmark, may_lack=("retain",) if retain == REST else ())
    dealt = requests.asked_of_strangers(groups.deal(requests.forgotten_before(benchmark, earlier), group))
    if others:
        return dealt
    named = {person.id for person in (*dealt.forget, *dealt.retain, *dealt.before)}
    return dataclasses.replace(dealt, full=tuple(person for person in dealt.full if person.id in named))


def _named(full: tuple[Person, ...], said: str, what: str, splits: set[str]) -> tuple[Person, ...]:
    """The people whose names or ids are ``said``."""
    ids, unknown = names.resolve(said, {person.id: person.name for person in full})
    if unknown:
        near = names.nearest(unknown[0], [person.name for person in full])
        raise InputError(
            f"expected one of the splits {', '.join(sorted(splits))}, or a part of one as in 'full[:5]', or names or ids of people, "
            f"found {unknown[0]!r}{near}; correct {what}"
        )
    return tuple(person for person in full if person.id in ids)
