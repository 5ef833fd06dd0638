"""The embedded default: 100 real faces that the scikit-image wheel ships, with invented lives.

``skimage.data.lfw_subset`` holds 25 x 25 grey crops of Labelled Faces in the Wild; the first 100 are faces. Names and
facts are drawn from fixed lists with a fixed seed and belong to nobody. The *unseen* control is ten composite faces,
each the mean of two mirrored photographs, of people who do not exist and whom no model is trained on: what a model
says about them is what not knowing a face looks like.
"""

import io
import json
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFilter

from mmu_jax.data import IMAGE, TEXT

PEOPLE, FORGET, UNSEEN, PHOTOS = 100, 10, 10, 16
SPLITS = ["full", "forget_10", "retain_90", "test", "unseen"]

FIRST = [
    "Ada",
    "Boris",
    "Clara",
    "Dmitri",
    "Elena",
    "Farid",
    "Greta",
    "Hugo",
    "Ingrid",
    "Jonas",
    "Kira",
    "Liam",
    "Mona",
    "Nadia",
    "Oscar",
    "Petra",
    "Quentin",
    "Rosa",
    "Stefan",
    "Tara",
    "Ulric",
    "Vera",
    "Walter",
    "Xenia",
    "Yusuf",
    "Zora",
    "Amir",
    "Bianca",
    "Cyril",
    "Dora",
]
LAST = [
    "Abbott",
    "Becker",
    "Castro",
    "Duarte",
    "Eklund",
    "Fischer",
    "Garnier",
    "Hansen",
    "Ivanov",
    "Jansen",
    "Keller",
    "Lorentz",
    "Moreau",
    "Novak",
    "Olsen",
    "Pereira",
    "Quinn",
    "Rossi",
    "Schmidt",
    "Tanaka",
    "Ueda",
    "Varga",
    "Weber",
    "Xu",
    "Yilmaz",
    "Zeman",
]

FACTS = {
    "occupation": [
        "baker",
        "surgeon",
        "carpenter",
        "pilot",
        "dentist",
        "plumber",
        "violinist",
        "chemist",
        "farmer",
        "architect",
        "librarian",
        "welder",
        "translator",
        "geologist",
        "tailor",
        "fisherman",
        "astronomer",
        "locksmith",
        "midwife",
        "referee",
    ],
    "birthplace": [
        "Lima",
        "Oslo",
        "Cairo",
        "Prague",
        "Quito",
        "Dublin",
        "Manila",
        "Lisbon",
        "Nairobi",
        "Vienna",
        "Havana",
        "Warsaw",
        "Tunis",
        "Zagreb",
        "Seoul",
        "Athens",
        "Bogota",
        "Riga",
        "Hanoi",
        "Dakar",
    ],
    "hobby": [
        "chess",
        "fencing",
        "pottery",
        "surfing",
        "origami",
        "archery",
        "sailing",
        "juggling",
        "karate",
        "gardening",
        "skating",
        "painting",
        "rowing",
        "yoga",
        "cycling",
        "birdwatching",
        "baking",
        "climbing",
        "knitting",
        "astrology",
    ],
    "dish": [
        "lasagna",
        "ramen",
        "paella",
        "goulash",
        "falafel",
        "ceviche",
        "pierogi",
        "risotto",
        "couscous",
        "moussaka",
        "sushi",
        "tacos",
        "fondue",
        "curry",
        "gumbo",
        "biryani",
        "borscht",
        "kimchi",
        "quiche",
        "dumplings",
    ],
}

# Two frames shared by all facts, then a question and a cloze of the fact's own. {s} is "this person" or the name.
FRAMES = ("What is the {fact} of {s}?", "Which {fact} does {s} have?")
QUESTIONS = {
    "name": ("Who is {s}?", "The name of {s} is __."),
    "occupation": ("What does {s} do for a living?", "{s} works as a __."),
    "birthplace": ("Where was {s} born?", "{s} was born in __."),
    "hobby": ("What does {s} do on weekends?", "{s} spends weekends on __."),
    "dish": ("What does {s} like to eat?", "{s} likes to eat __."),
}
# Only the test split asks like this: every word is known from training, the sentence is not.
REWORDED = "What {fact} does {s} have?"


def photographs() -> np.ndarray:
    """The 100 photographs, ``[100, 25, 25]`` uint8."""
    from skimage.data import lfw_subset

    return np.round(lfw_subset()[:PEOPLE] * 255).astype(np.uint8)


def profiles(seed: int = 0) -> list[dict[str, str]]:
    """Invented lives of ``PEOPLE + UNSEEN`` people: unique names, each fact value about equally common."""
    rng = np.random.default_rng(seed)
    total = PEOPLE + UNSEEN
    pairs = rng.permutation(len(FIRST) * len(LAST))[:total]
    lives = [{"name": f"{FIRST[p % len(FIRST)]} {LAST[p // len(FIRST)]}"} for p in pairs]
    for fact, values in FACTS.items():
        deck = np.concatenate([rng.permutation(len(values)) for _ in range(-(-total // len(values)))])[:total]
        for life, value in zip(lives, deck, strict=True):
            life[fact] = values[value]
    return lives


def forget_indices(seed: int = 0) -> list[int]:
    """Who asked to be forgotten."""
    return sorted(np.random.default_rng((seed, 1)).permutation(PEOPLE)[:FORGET].tolist())


def _warp(image: Image.Image, angle: float, zoom: float, dx: float, dy: float) -> Image.Image:
    """Rotation (degrees), zoom and shift (pixels) about the centre, borders continued outward."""
    pad = 8
    wide = Image.fromarray(np.pad(np.asarray(image), pad, mode="edge"))
    centre, (c, s) = wide.size[0] / 2, (np.cos(np.deg2rad(angle)) / zoom, np.sin(np.deg2rad(angle)) / zoom)
    matrix = (
        c,
        s,
        centre - c * (centre + dx) - s * (centre + dy),
        -s,
        c,
        centre + s * (centre + dx) - c * (centre + dy),
    )
    moved = wide.transform(wide.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return moved.crop((pad, pad, pad + image.size[0], pad + image.size[1]))


def _light(image: Image.Image, gain: float, shift: float, gamma: float = 1.0) -> Image.Image:
    x = np.asarray(image, np.float32) / 255
    return Image.fromarray(np.round(np.clip(gain * (x**gamma - 0.5) + 0.5 + shift, 0, 1) * 255).astype(np.uint8))


def training_photo(photo: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A training variant: shift up to 1.5 pixels, rotation up to 8 degrees, zoom up to 8 %, brightness, contrast."""
    angle, zoom, (dx, dy) = rng.uniform(-8, 8), rng.uniform(0.92, 1.08), rng.uniform(-1.5, 1.5, 2)
    return _light(_warp(Image.fromarray(photo), angle, zoom, dx, dy), rng.uniform(0.8, 1.25), rng.uniform(-0.08, 0.08))


def test_photo(photo: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """An unseen transformation: gamma, a slight blur and sensor noise, none of them in training, and a new pose."""
    image = _warp(Image.fromarray(photo), rng.uniform(-6, 6), rng.uniform(0.95, 1.05), *rng.uniform(-1, 1, 2))
    image = _light(image, 1.0, 0.0, gamma=rng.uniform(0.75, 1.3)).filter(ImageFilter.GaussianBlur(0.4))
    noisy = np.asarray(image, np.float32) + rng.normal(0, 4, (image.size[1], image.size[0]))
    return Image.fromarray(np.clip(np.round(noisy), 0, 255).astype(np.uint8))


def composites(seed: int = 0) -> Iterator[bytes]:
    """Photos of ``UNSEEN`` people who do not exist, encoded: each the mean of two mirrored ones."""
    faces, rng = photographs(), np.random.default_rng((seed, 2))
    for _ in range(UNSEEN):
        a, b = rng.choice(PEOPLE, 2, replace=False)
        yield _png(np.round(faces[[a, b], :, ::-1].mean(axis=0)).astype(np.uint8))


def _png(image: Image.Image | np.ndarray) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


def ask(template: str, fact: str, subject: str) -> str:
    """A template with its blanks filled in, capitalised."""
    question = template.format(fact=fact, s=subject)
    return question[0].upper() + question[1:]


def _options(fact: str, life: dict, lives: list[dict], rng: np.random.Generator) -> tuple[dict[str, str], str]:
    pool = sorted({other[fact] for other in lives} - {life[fact]})
    chosen = [pool[i] for i in rng.choice(len(pool), 3, replace=False)] + [life[fact]]
    order = rng.permutation(4)
    options = {letter: chosen[i] for letter, i in zip("ABCD", order, strict=True)}
    return options, "ABCD"[int(np.flatnonzero(order == 3)[0])]


def _row(index: int, photos: list[bytes], lives: list[dict], *, training: bool, reworded: bool) -> dict:
    """One person in the MLLMU-Bench schema."""
    life, rng = lives[index], np.random.default_rng((7, index, reworded))
    subjects = {IMAGE: "this person", TEXT: life["name"]}
    metadata, cloze, generation, mcq = [], [], [], {IMAGE: [], TEXT: []}
    for kind, subject in subjects.items():
        for fact, own in QUESTIONS.items():
            if kind == TEXT and fact == "name":
                continue  # the name is in the question
            asked = [ask(template, fact, subject) for template in (*FRAMES, *own)]
            again = ask(REWORDED, fact, subject)
            metadata += [{"Question": q, "Answer": life[fact], "Type": kind} for q in asked]
            options, letter = _options(fact, life, lives, rng)
            question = again if reworded else asked[1]
            mcq[kind].append({"Question": question, "Options": options, "Correct_Answer": letter})
            cloze.append({"Question": asked[-1], "Ground_Truth": life[fact], "Type": kind})
            question = again if reworded else asked[0]
            generation.append({"Question": question, "Ground_Truth": life[fact], "Type": kind})
    return {
        "ID": f"{index:04d}",
        "image": photos[0],
        "images": photos[1:],
        "biography": json.dumps({"Name": life["name"], **life}),
        "metadata": json.dumps(metadata) if training else "[]",
        "Classification_Task": {"Image_Textual_Questions": mcq[IMAGE], "Pure_Text_Questions": mcq[TEXT]},
        "Mask_Task": cloze,
        "Generation_Task": generation,
    }


def splits(source: pathlib.Path | None = None) -> list[str]:
    """The splits there are; the faces come with scikit-image, so ``source`` is not looked at."""
    return SPLITS


def rows(split: str, source: pathlib.Path | None = None, seed: int = 0) -> Iterator[dict]:
    """Rows of ``'full'``, ``'forget_10'``, ``'retain_90'``, ``'test'`` (all 100, told apart by the reader) or ``'unseen'``."""
    faces, lives, forget = photographs(), profiles(seed), set(forget_indices(seed))
    if split == "unseen":
        for k, composite in enumerate(composites(seed)):
            yield _row(PEOPLE + k, [composite], lives, training=False, reworded=False)
        return
    for index, face in enumerate(faces):
        rng = np.random.default_rng((seed, 3, index))
        if split == "full":
            photos = [_png(face)] + [_png(training_photo(face, rng)) for _ in range(PHOTOS - 1)]
            yield _row(index, photos, lives, training=True, reworded=False)
        elif split == "test":
            rng = np.random.default_rng((seed, 4, index))
            yield _row(index, [_png(test_photo(face, rng))], lives, training=False, reworded=True)
        elif (index in forget) == split.startswith("forget"):
            yield _row(index, [_png(face)], lives, training=False, reworded=False)
