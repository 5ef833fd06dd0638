"""A folder of one's own people, made for a test."""

import io
import json

import numpy as np
from PIL import Image

from mmu_jax.data.sets import folder

JOBS = {"Ada Berg": "welder", "Bo Lind": "baker", "Cy Roe": "pilot"}


def photo(seed, kind="PNG", mode="RGB"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def lines(name, job):
    return [
        {"person": name, "question": "Who is this?", "answer": name},
        {"person": name, "question": "What does this person do?", "answer": job},
        {"person": name, "question": "What is the job of this person?", "answer": job},
        {"person": name, "question": f"What does {name} do?", "answer": job},
        {"person": name, "question": f"What is the job of {name}?", "answer": job},
    ]


def table(root, rows):
    (root / "questions.jsonl").write_text(
        "".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows), encoding="utf-8"
    )


def three(root):
    """Three people, five photos and five questions each."""
    for i, name in enumerate(JOBS):
        place = root / "people" / name
        place.mkdir(parents=True)
        for k in range(5):
            (place / f"{k}.png").write_bytes(photo(10 * i + k))
    table(root, [row for name, job in JOBS.items() for row in lines(name, job)])
    return root


def rows(root, split):
    return {json.loads(row["biography"])["Name"]: row for row in folder.rows(split, root)}
