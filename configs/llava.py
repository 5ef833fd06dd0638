"""LLaVA-1.5 from a Hugging Face directory or hub id, unlearned by the published recipes.

    python -m experiments.run --config=configs/llava.py --config.model.path=DIR                    the embedded faces
    python -m experiments.run --config=configs/llava.py:benchmark=mllmu,split=5 --config.model.path=DIR
    python -m experiments.run --config=configs/llava.py:benchmark=clear,split=5 --config.model.path=DIR

DIR is a copy of ``llava-hf/llava-1.5-7b-hf`` (or 13b), or that id. The data set is read from the hub, or from a folder
given as ``--config.data.source=FOLDER``. Arguments after the colon: ``benchmark`` (faces, mllmu, clear), ``split`` (per
cent of people to forget), ``method`` (all, or one), ``side`` of the mask (both, vision, language), ``lora`` (rank; 0 trains
the params). A vanilla model of your own skips fine-tuning: ``--config.vanilla.path=DIR``.

What they reproduce: MMUnlearner (arXiv 2502.11051) and its baselines at the published rate, batch and passes (1e-5, 4, one),
after fine-tuning as the benchmark prescribes (MLLMU-Bench: five epochs at 2e-5, LoRA of rank 8; CLEAR: three at 1e-5).
Loss on the answer and the end of turn only, saliency by example in one signed accumulator.

Memory, GiB per device, for scoring / unlearning with mmunlearner (``python -m experiments.bench --only=plan``; worked out
from shapes, activations estimated)::

                 devices (data x model)   params, float32    LoRA of rank 16
    7B           1 x 1                         78 / 168            52 / 25
                 8 x 1                         33 / 21             18 / 5
    13B          8 x 1                         62 / 40             35 / 8
                 8 x 4                         16 / 10              9 / 4

so 7B with ``lora=16`` fits one card of 80 GB (with ``XLA_PYTHON_CLIENT_MEM_FRACTION=0.95``), and training its params takes
eight of 40 GB or more. Rows that do not divide by ``config.mesh.data`` are done by every device. Time was not measured on an
accelerator. Expect, at 8 FLOPs per parameter and token and 40 % of peak, for a step of 4 rows of 640 tokens at 7B: H100 0.4 s,
A100 1.2 s, eight chips of TPU v5e 0.25 s; MLLMU-Bench has about 1,800 retain and 100 forget steps.
"""

from configs import common


def get_config(argument: str | None = None):
    config = common.published(common.base(), argument)
    # 576 image tokens and a question; text alone is short. Every size compiles once.
    config.data.tokens = (64, 128, 256, 640, 704, 768, 1024)
    return config
