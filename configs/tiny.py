"""The whole story on 100 real faces, in minutes, on a laptop, with no download.

    python -m experiments.run --config=configs/tiny.py

A LLaVA of one million parameters is trained from nothing to know 100 people by face and by name, then each method
makes it forget ten faces. Learning rates were chosen on another seed than the one reported, from one grid for all: first
the rate of the steps that only descend, by the strongest baseline, then the rate of every method.

    python -m experiments.sweep --config=configs/tiny.py --seeds=1 --methods=grad_diff_alternate --retain_rates=1e-4,2e-4,5e-4
    python -m experiments.sweep --config=configs/tiny.py --seeds=1
"""

from configs import common

# Printed by the sweep. Ablations run at mmunlearner's rate, so that only the mask differs; fine-tuning on the retain set
# forgets nothing and has no rate but config.unlearn.retain_rate. Methods that are not in config.unlearn.methods were swept with
# --methods and --config.unlearn.methods naming them.
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
}


def get_config():
    config = common.base()
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
    config.vanilla.update(
        dict(epochs=14.28, rows={"vqa": 48, "text": 24}, learning_rate=1e-3, schedule="cosine", warmup=0.1)
    )
    config.gold = True
    config.saliency.update(dict(rows=32, chunk=8))
    config.unlearn.update(dict(epochs=1.0, rows=8, retain_rate=2e-4))
    config.unlearn.methods = common.ALL + ("mmunlearner_official",) + common.ABLATIONS
    config.unlearn.learning_rate = RATES | {name: RATES["mmunlearner"] for name in common.ABLATIONS}
    # The model was never taught the letter format, so letters are not asked for; a blank is asked for as it was taught.
    config.evaluate.update(dict(rows=64, new_tokens=8, letters=False))
    config.evaluate.prompts.update(dict(cloze="{question}", blank="__"))
    return config
