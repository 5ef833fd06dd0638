"""Copies of general benchmarks in the layouts in which they are published, a few items each."""

import base64
import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq

from folders import png


def photo(seed):
    return png(seed)["bytes"]


def parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def tsv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


# ---- POPE: two files, two images

POPE = [("random", 0, 1, "a dog", "yes"), ("random", 1, 1, "a cat", "no"), ("popular", 0, 2, "a tie", "yes")]


def pope_json(folder):
    lines = {}
    for kind, i, seed, what, label in POPE:
        row = {"question_id": i, "image": f"COCO_val2014_{seed:012d}.jpg", "image_id": seed, "text": f"Is there {what} in the image?"}  # fmt: skip
        lines.setdefault(kind, []).append(json.dumps(row | {"label": label}))
        put(folder / "val2014" / row["image"], photo(seed))
    for kind, found in lines.items():
        put(folder / "coco" / f"coco_pope_{kind}.json", "\n".join(found) + "\n")
    return folder


def pope_rows():
    return [
        {"id": str(k), "question_id": str(i), "question": f"Is there {what} in the image?", "answer": label,
         "image_source": f"COCO_val2014_{seed:012d}", "image": png(seed), "category": kind}
        for k, (kind, i, seed, what, label) in enumerate(POPE)]  # fmt: skip


def pope_parquet(folder):
    parquet(folder / "data" / "test-00000-of-00002.parquet", pope_rows()[:2])
    parquet(folder / "data" / "test-00001-of-00002.parquet", pope_rows()[2:])
    parquet(folder / "Full" / "random-00000-of-00001.parquet", pope_rows()[:1])  # the same again, by category
    return folder


# ---- MMBench: a question with its rotations, one that stands once, with a hint and the image of the first


def mmbench_rows():
    head = {"category": "action", "source": "x", "l2-category": "y", "comment": "", "split": "dev"}
    turned = [("cat", "dog", "cow"), ("dog", "cow", "cat"), ("cow", "cat", "dog")]
    rows = [
        {"index": 7 + 10**6 * k, "question": "Which animal?", "hint": "nan"}
        | dict(zip("ABC", options, strict=True))
        | {"D": "", "answer": "BAC"[k], "image": base64.b64encode(photo(1)).decode() if k == 0 else "7"}
        for k, options in enumerate(turned)
    ]
    once = {
        "index": 9,
        "question": "Which\tside?",
        "hint": "Look at\nthe lamp.",
        "A": "left",
        "B": "right",
        "C": "nan",
        "D": "",
    }
    return [row | head for row in (*rows, once | {"answer": "B", "image": base64.b64encode(photo(2)).decode()})]


def mmbench_tsv(folder):
    tsv(folder / "mmbench_dev_20230712.tsv", mmbench_rows())
    return folder


def mmbench_parquet(folder):
    seeds = {7: 1, 9: 2}
    rows = [row | {"image": png(seeds[row["index"] % 10**6]), "index": str(row["index"])} for row in mmbench_rows()]
    parquet(folder / "en" / "dev-00000-of-00001.parquet", rows)
    parquet(folder / "en" / "test-00000-of-00001.parquet", [rows[0] | {"answer": "nan"}])
    parquet(folder / "cn" / "dev-00000-of-00001.parquet", rows[:1])
    return folder


# ---- ScienceQA: two with an image and one without

PROBLEMS = {
    "12": {"question": "How many?", "choices": ["2", "1", "0"], "answer": 1, "hint": "", "image": "image.png"},
    "5": {"question": "What is ice?", "choices": ["solid", "gas"], "answer": 0, "hint": "", "image": None},
    "30": {"question": "Which is larger?", "choices": ["A", "B"], "answer": 0, "hint": "See the picture.", "image": "image.png"},
    "2": {"question": "Which?", "choices": ["x", "y"], "answer": 0, "hint": "", "image": "image.png"},
}  # fmt: skip


def scienceqa_json(folder):
    put(folder / "problems.json", json.dumps({i: p | {"split": "train" if i == "2" else "test"} for i, p in PROBLEMS.items()}))  # fmt: skip
    put(folder / "pid_splits.json", json.dumps({"train": ["2"], "test": ["12", "5", "30"]}))
    for name in ("12", "30"):
        put(folder / "images" / "test" / name / "image.png", photo(int(name)))
    return folder


def scienceqa_parquet(folder):
    rows = [PROBLEMS[i] | {"image": png(int(i)) if PROBLEMS[i]["image"] else None, "task": ""} for i in ("12", "5", "30")]  # fmt: skip
    parquet(folder / "ScienceQA-FULL" / "test-00000-of-00001.parquet", rows)
    shown = [row for row in rows if row["image"]]
    parquet(folder / "ScienceQA-IMG" / "test-00000-of-00001.parquet", shown)
    parquet(folder / "ScienceQA-IMG" / "validation-00000-of-00001.parquet", shown[:1])
    return folder


# ---- GQA: two questions about one image, one about another

GQA = {
    "201307251": {"imageId": "n161313", "question": "Is it overcast?", "answer": "no", "isBalanced": True},
    "201640614": {"imageId": "n161313", "question": "Who is wearing the dress?", "answer": "woman", "isBalanced": True},
    "202225914": {"imageId": "n235859", "question": "Which side is the lamp on?", "answer": "left", "isBalanced": True},
}


def gqa_json(folder):
    put(folder / "questions1.2" / "testdev_balanced_questions.json", json.dumps(GQA))
    for seed, name in enumerate(("n161313", "n235859")):
        put(folder / "images" / f"{name}.jpg", photo(seed))
    return folder


def gqa_parquet(folder):
    shown = [{"id": name, "image": png(seed)} for seed, name in enumerate(("n161313", "n235859"))]
    parquet(folder / "testdev_balanced_images" / "testdev-00000-of-00001.parquet", shown)
    asked = [{"id": name, "fullAnswer": "x"} | row for name, row in GQA.items()]
    parquet(folder / "testdev_balanced_instructions" / "testdev-00000-of-00001.parquet", asked)
    parquet(folder / "train_balanced_instructions" / "train-00000-of-00001.parquet", asked[:1])
    return folder


# ---- MME: a subtask of either layout, an image each

MME = {("artwork", "10002"): ("Is it a painting?", "Is it a vase?"), ("color", "0001"): ("Is the bus red?", "Is the bus blue?")}  # fmt: skip
ASK = "{} Please answer yes or no."


def mme_folders(folder):
    for seed, ((task, name), (yes, no)) in enumerate(MME.items()):
        apart = task == "artwork"
        text, image = ("questions_answers_YN", "images") if apart else ("", "")
        lines = f"{ASK.format(yes)}\tYes\n{ASK.format(no)}\tNo\n"
        put(folder / "MME_Benchmark" / task / text / f"{name}.txt", lines)
        put(folder / "MME_Benchmark" / task / image / f"{name}.{'jpg' if apart else 'png'}", photo(seed))
    put(folder / "MME_Benchmark" / "eval_tool" / "Your_Results" / "color.txt", "0001.png\tIs it?\tYes\n")
    put(folder / "readme.txt", "MME")
    return folder


def mme_rows():
    return [
        {"question_id": f"{task}/{name}.png", "question": ASK.format(asked), "answer": answer, "category": task, "seed": seed}
        for seed, ((task, name), pair) in enumerate(MME.items())
        for asked, answer in zip(pair, ("Yes", "No"), strict=True)]  # fmt: skip


def mme_parquet(folder):
    parquet(folder / "data" / "test-00000-of-00001.parquet", [row | {"image": png(row["seed"])} for row in mme_rows()])
    return folder


def mme_tsv(folder):
    rows = []
    for index, row in enumerate(mme_rows()):
        image = "0" if index == 1 else base64.b64encode(photo(row["seed"])).decode()
        rows.append({"index": index, "image": image, "image_path": row["question_id"]} | {k: row[k] for k in ("question", "answer", "category")})  # fmt: skip
    tsv(folder / "MME.tsv", rows)
    return folder


LAYOUTS = {
    "pope": (pope_json, pope_parquet),
    "mmbench": (mmbench_tsv, mmbench_parquet),
    "scienceqa": (scienceqa_json, scienceqa_parquet),
    "gqa": (gqa_json, gqa_parquet),
    "mme": (mme_folders, mme_parquet, mme_tsv),
}
CASES = [(name, write) for name, writes in LAYOUTS.items() for write in writes]
