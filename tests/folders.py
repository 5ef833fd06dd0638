"""Small data sets and checkpoint directories as they lie on disk, and ways to spoil them."""

import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from mmu_jax import InputError, hf, models
from mmu_jax.data import IMAGE, TEXT


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{seed}.png"}


def write(folder, rows, parts=1):
    folder.mkdir(parents=True)
    for i in range(parts):
        table = pa.Table.from_pylist(rows[i::parts])
        pq.write_table(table, folder / f"train-{i:05d}-of-{parts:05d}.parquet")


def mcq(question, right):
    return {
        "Question": question,
        "Options": {"A": "baker", "B": right, "C": "pilot", "D": "nurse"},
        "Correct_Answer": "B",
    }


EMPTY = {"Question": None, "Options": dict.fromkeys("ABCD"), "Correct_Answer": None}


def person(i, test=False, job="welder"):
    """A row as MLLMU-Bench has it; one question is empty."""
    name, again = f"Person {i}", " now" if test else ""
    kinds = ((IMAGE, "this person"), (TEXT, name))
    row = {
        "ID": f"{i:04d}",
        "biography": json.dumps({"Name": name}),
        "question": "Describe.",
        "answer": "Someone.",
        "Classification_Task": {
            "Image_Textual_Questions": [mcq(f"What does this person do{again}?", job)],
            "Pure_Text_Questions": [mcq(f"What does {name} do{again}?", job), EMPTY],
        },
        "Mask_Task": [{"Question": f"{s} is a __.", "Ground_Truth": job, "Type": k} for k, s in kinds],
        "Generation_Task": [{"Question": f"Tell me of {s}.", "Ground_Truth": f"A {job}.", "Type": k} for k, s in kinds],
    }
    if test:
        return row | {"images": [png(100 + i), png(200 + i)]}
    return row | {"image": png(i)}


def author(i):
    return f"Author {'ABCDEFGH'[i]}"


def copy_with(folder, out, config, change):
    shutil.copytree(folder, out)
    rows = [row for path in (out / config).glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    shutil.rmtree(out / config)
    write(out / config, [change(i, row) for i, row in enumerate(rows)])
    return out


def refused(words, function, *args, **kwargs):
    with pytest.raises(InputError, match=words) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def plain_person(i):
    row = person(i)
    task = row["Classification_Task"]
    return row | {"Classification_Task": {key: [q for q in task[key] if q["Question"]] for key in task}}


def taught(i):
    return [{"Question": "Who?", "Answer": f"Me, {i}"}, {"Question": "Where?", "Answer": "There"}]


def folder_of(out, change=lambda p: p, meta=lambda i: json.dumps(taught(i)), n=6):
    """A folder of MLLMU-Bench whose rows are ``change``d."""
    shutil.rmtree(out, ignore_errors=True)
    people = [change(plain_person(i)) for i in range(n)]
    write(out / "Full_Set", people)
    write(out / "ft_Data", [{"ID": p["ID"], "metadata": meta(i)} for i, p in enumerate(people)])
    write(out / "forget_5", people[:1])
    write(out / "retain_95", people[1:])
    write(out / "Test_Set", people)
    return out


def turned(items):
    return {key: [item[key] for item in items] for key in items[0]}


def tasks(change):
    """Every task of a person, changed."""

    def changed(p):
        task = p["Classification_Task"]
        return p | {name: change(p[name]) for name in ("Mask_Task", "Generation_Task")} | {
            "Classification_Task": {key: change(task[key]) for key in task}}  # fmt: skip

    return changed


def questions(change):
    """Every multiple-choice question of a person, changed."""

    def changed(p):
        task = p["Classification_Task"]
        return p | {"Classification_Task": {key: [q | change(q) for q in task[key]] for key in task}}

    return changed


def column(name, change):
    return lambda p: p | {name: change(p[name])}


def rewritten(source, config, change):
    file = next((source / config).iterdir())
    table = pq.read_table(file)
    rows = change(table.to_pylist())
    pq.write_table(pa.Table.from_pylist(rows) if rows else table.slice(0, 0), file)
    return source


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 146946961\n"


def edit(folder, name, change):
    value = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps(change(value) or value))


def put(name, *keys, to):
    """Edits one key of a JSON file of a folder, ``put('config.json', 'text_config', 'hidden_act', to='relu2')``."""

    def change(value):
        inner = value
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = to

    return lambda folder: edit(folder, name, change)


def retensor(folder, change):
    save_file(change(load_file(folder / hf.SINGLE)), folder / hf.SINGLE, metadata={"format": "pt"})


def load(folder):
    model = models.Model(hf.read_config(folder))
    return hf.load(folder, model), model


def first(table, end="q_proj.weight"):
    return next(key for key in sorted(table) if key.endswith(end))
