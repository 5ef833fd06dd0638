"""Qwen2-VL or Qwen2.5-VL from a Hugging Face directory or hub id, unlearned by the published recipes.

    python -m experiments.run --config=configs/qwen2_vl.py --config.model.path=DIR                 the embedded faces
    python -m experiments.run --config=configs/qwen2_vl.py:benchmark=clear,split=5 --config.model.path=DIR
    python -m experiments.run --config=configs/qwen2_vl.py:benchmark=mllmu,split=5 --config.model.path=DIR

DIR is a copy of ``Qwen/Qwen2-VL-7B-Instruct`` (2B, 72B; ``Qwen/Qwen2.5-VL-7B-Instruct``), or that id. Arguments and recipes
are those of ``configs/llava.py``. Images keep their shape: ``config.data.max_pixels`` bounds them, and a batch is padded to
the smallest of ``config.data.patches`` and ``config.data.tokens`` that holds it, so few programs are compiled; the plan of
a stage says how much of them is padding.

{memory}
"""

from configs import common


def get_config(argument: str | None = None):
    config = common.published(common.base(), argument)
    config.data.max_pixels = 512 * 28 * 28  # 512 image tokens of 28 x 28 pixels, 2048 patches
    config.data.patches = (256, 512, 1024, 2048)
    config.data.tokens = (64, 128, 256, 384, 640, 768, 1024)
    return config
