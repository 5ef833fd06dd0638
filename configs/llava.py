"""LLaVA-1.5-7B, MLLMU-Bench, five per cent of its people forgotten: the published job, by the published recipe.

    python -m experiments.run --config=configs/llava.py
    python -m experiments.run --config=configs/llava.py --config.model.path=DIR --config.data.source=FOLDER
    python -m experiments.run --config=configs/llava.py:benchmark=clear,split=5,method=mmunlearner
    python -m experiments.run --config=configs/llava.py:benchmark=faces
    python -m experiments.run --config=configs/llava.py:benchmark=folder --config.data.source=PEOPLE --config.data.forget="Ada Berg"

The model is ``llava-hf/llava-1.5-7b-hf`` from the Hugging Face hub, or DIR, a copy of it (or of 13b); the data set is read
from the hub, or from FOLDER, a copy of it. Arguments after the colon: ``benchmark`` (mllmu, clear, faces, the embedded
ones, or folder, one's own people), ``split`` (per cent of people to forget), ``method`` (all, or one), ``side`` of the mask (both, vision, language),
``lora`` (rank, by default 16; 0 trains the params). A vanilla model of your own skips fine-tuning:
``--config.vanilla.path=DIR``. Every device there is takes part.

What is reproduced: MMUnlearner (arXiv 2502.11051) and its baselines at the published rate, batch and passes (1e-5, 4, one),
with LoRA of rank 16 on every linear layer, after fine-tuning as the benchmark prescribes (MLLMU-Bench: five epochs at 2e-5,
LoRA of rank 8; CLEAR: three at 1e-5). Loss on the answer and the end of turn only, saliency by example in one signed
accumulator.

Before any weight is fetched, the checkpoint's config and processor are, and the data set; a plan is made from shapes, and
what cannot fit is refused. GiB per device, for scoring / unlearning with mmunlearner
(``python -m experiments.bench --only=plan``; activations estimated)::

                 devices (data x model)   params, float32    LoRA of rank 16
    7B           1 x 1                         78 / 168            52 / 25
                 8 x 1                         33 / 21             18 / 5
    13B          8 x 1                         62 / 40             35 / 8
                 8 x 4                         16 / 10              9 / 4

(making factors for ``projected``: 47, 6, 12 and 3 with LoRA) so the defaults fit one card of 80 GB (with ``XLA_PYTHON_CLIENT_MEM_FRACTION=0.95``), and training the params takes eight of
40 GB or more. Rows that do not divide by ``config.mesh.data`` are done by every device. One H100 held the defaults (55.8 GiB at
the most, docs/memory.md) and scored 3.2 rows a second. Steps were not timed; expect, at 8 FLOPs per parameter and token and 40 %
of peak, for one of 4 rows of 640 tokens at 7B: H100 0.4 s, A100 1.2 s, eight chips of TPU v5e 0.25 s; MLLMU-Bench has about
1,800 retain and 100 forget steps.
"""

from configs import benchmarks


def get_config(argument: str | None = None):
    config = benchmarks.published(argument)
    config.model.path = "llava-hf/llava-1.5-7b-hf"
    # 576 image tokens and a question; text alone is short. Every size compiles once.
    config.data.tokens = (64, 128, 256, 640, 704, 768, 1024)
    return config
