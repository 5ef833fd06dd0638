"""Qwen2-VL-7B, MLLMU-Bench, five per cent of its people forgotten: the published job, by the published recipe.

    python -m experiments.run --config=configs/qwen2_vl.py
    python -m experiments.run --config=configs/qwen2_vl.py --config.model.path=DIR --config.data.source=FOLDER
    python -m experiments.run --config=configs/qwen2_vl.py:benchmark=clear,split=5,method=mmunlearner

The model is ``Qwen/Qwen2-VL-7B-Instruct`` from the Hugging Face hub, or DIR, a copy of it or of another size (2B, 72B;
``Qwen/Qwen2.5-VL-7B-Instruct``). Arguments and recipes are those of ``configs/llava.py``. Images keep their shape:
``config.data.max_pixels`` bounds them, and a batch is padded to the smallest of ``config.data.patches`` and
``config.data.tokens`` that holds it, so few programs are compiled; the plan of a stage says how much of them is padding.

Memory, GiB per device, for scoring / unlearning with mmunlearner (``python -m experiments.bench --only=plan``; worked out
from shapes, activations estimated)::

                 devices (data x model)   params, float32    LoRA of rank 16
    2B           1 x 1                         25 / 60             17 / 16
    7B           1 x 1                         87 / 202            58 / 34
                 8 x 1                         36 / 27             21 / 7
    72B          8 x 4                         85 / 55             48 / 15

so the defaults fit one card of 80 GB (with ``XLA_PYTHON_CLIENT_MEM_FRACTION=0.95``), and training the params takes
eight of 40 GB or more. Rows that do not divide by ``config.mesh.data`` are done by every device. Time was not measured on an
accelerator. Expect, at 8 FLOPs per parameter and token and 40 % of peak, for a step of 4 rows of 640 tokens at 7B: H100 0.4 s,
A100 1.4 s, eight chips of TPU v5e 0.3 s; CLEAR has about 900 retain and 50 forget steps.
"""

from configs import benchmarks


def get_config(argument: str | None = None):
    config = benchmarks.published(argument)
    config.model.path = "Qwen/Qwen2-VL-7B-Instruct"
    config.data.max_pixels = 512 * 28 * 28  # 512 image tokens of 28 x 28 pixels, 2048 patches
    config.data.patches = (256, 512, 1024, 2048)
    config.data.tokens = (64, 128, 256, 384, 640, 768, 1024)
    return config
