"""What every config starts from. Keys are the keyword arguments of the functions they feed; an unknown key is an error."""

from ml_collections import ConfigDict

ALL = (
    "retain_ft",
    "ga",
    "npo",
    "kl",
    "grad_diff",
    "grad_diff_alternate",
    "mmunlearner",
)
ABLATIONS = ("mmunlearner_vision", "mmunlearner_language", "mask_random", "mask_top_k", "mask_salun")


def base() -> ConfigDict:
    """The published recipe (MMUnlearner's README: learning rate 1e-5, batch 4, one epoch) on one device."""
    config = ConfigDict()
    config.seed = 0
    config.mesh = dict(data=1, model=1)  # data=-1 takes every device

    # TFDS builder by name, or path of a prepared TFDS directory with the same features.
    # `tokens` and `patches` are the padded lengths a batch may have, so that few programs are compiled; () takes what the
    # longest row needs. `max_pixels` bounds the images of models that keep their size; 0 leaves it to the processor.
    config.data = dict(name="embedded_faces", path="", forget="forget_10", retain="retain_90")
    config.data.update(dict(tokens=(), patches=(), max_pixels=0))
    # HF directory to start from; an empty path makes a small LLaVA of these sizes from nothing.
    config.model = dict(path="", dtype="float32", vision={}, text={})

    # Fine-tuning on everyone: what is to be forgotten must first be known. A path skips it: an HF directory to unlearn.
    config.vanilla = dict(
        path="", steps=1000, rows={"vqa": 4, "text": 4}, learning_rate=1e-5, schedule="linear", warmup=0.0, clip=1.0
    )
    config.gold = False  # also train the same recipe without the people to forget

    config.saliency = dict(rows=8, chunk=8, tau=1.0, eps=1e-15, noise=1e-12)

    # The same passes over the forget set and the same batch for every method; a learning rate for each, and one for
    # the steps that only descend.
    config.unlearn = dict(methods=ALL, epochs=1.0, rows=4, retain_rate=1e-5, schedule="constant", clip=1.0, beta=0.1)
    config.unlearn.learning_rate = {name: 1e-5 for name in (*ALL, *ABLATIONS, "mmunlearner_official")}

    config.evaluate = dict(rows=32, new_tokens=50, samples=1000, letters=True, memorised=0.9)
    config.evaluate.prompts = dict(
        generation="{question}",
        cloze="{question}\nPlease **ONLY** provide the correct answer that should replace the [Blank].",
        letter="{question}\n{options}\nJust give ONE letter representing the answer directly.",
        blank="[Blank]",
    )
    config.save_every = 100  # iterations between checkpoints
    return config
