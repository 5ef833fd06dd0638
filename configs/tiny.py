"""The whole story on 100 real faces, in minutes, on a laptop, with no download.

    python -m experiments.run --config=configs/tiny.py

A LLaVA of one million parameters is trained from nothing to know 100 people by face and by name, then each method
makes it forget ten faces. Learning rates were chosen on another seed than the one reported, from one grid for all: first
the rate of the steps that only descend, by the strongest baseline, then the rate of every method.

    python -m experiments.sweep --config=configs/tiny.py --seeds=1 --methods=grad_diff_alternate --retain_rates=1e-4,2e-4,5e-4
    python -m experiments.sweep --config=configs/tiny.py --seeds=1
"""

from configs import common
from mmu_jax.methods import METHODS

# Printed by the sweep. Ablations run at mmunlearner's rate, so that only the mask differs; fine-tuning on the retain set
# forgets nothing and has no rate but config.unlearn.retain_rate. Methods that are not in config.unlearn.methods were swept with
# --methods naming them.
RATES = {
    "retain_ft": 2e-4,
    "ga": 1e-4,
    "npo": 1e-4,
    "npo_retain": 2e-4,
    "kl": 2e-4,
    "grad_diff": 2e-4,
    "grad_diff_alternate": 5e-4,
    "mmunlearner": 8e-4,
    "mmunlearner_official": 5e-4,
    "mmunlearner_official_clear": 8e-4,
    **dict.fromkeys(common.ABLATIONS, 8e-4),
}


def get_config():
    config = common.base()
    config.gold = True
    config.model.vision = dict(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,  # the last is never read, as in LLaVA-1.5
        num_attention_heads=4,
        image_size=24,
        patch_size=12,  # four image tokens: a face this small needs no more, and the demo stays quick
        projection_dim=64,
    )
    config.model.text = dict(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    config.vanilla.epochs = 14.28
    config.vanilla.rows = {"vqa": 48, "text": 24}
    config.vanilla.learning_rate = 1e-3
    config.vanilla.schedule = "cosine"
    config.vanilla.warmup = 0.1
    config.saliency.rows = 32
    config.saliency.chunk = 8
    config.unlearn.methods = (*common.ALL, "mmunlearner_official", *common.ABLATIONS)
    config.unlearn.epochs = 1.0
    config.unlearn.rows = 8
    config.unlearn.retain_rate = 2e-4
    # A method that was not swept has the rate of the strongest baseline.
    config.unlearn.learning_rate = {name: RATES.get(name, RATES["grad_diff"]) for name in METHODS}
    # The model was never taught the letter format, so letters are not asked for; a blank is asked for as it was taught.
    config.evaluate.rows = 64
    config.evaluate.new_tokens = 8
    config.evaluate.letters = False
    config.evaluate.prompts.cloze = "{question}"
    config.evaluate.prompts.blank = "__"
    # Of 1e-4, 3e-4, 1e-3 the one at which the vanilla model still knows the other facts after 32 steps (p 0.94 and 0.93 of
    # 0.95) and gold has guessed none of them (0.16 of 0.16); at 1e-3 relearning destroys what it would bring back.
    config.attack.names = ("relearn_own", "relearn_benign", "int4")
    config.attack.learning_rate = 1e-4
    return config
