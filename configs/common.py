"""What every config starts from. Keys are the keyword arguments of the functions they feed; an unknown key is an error."""

from ml_collections import ConfigDict

ALL = (
    "retain_ft",
    "ga",
    "npo",
    "npo_retain",
    "kl",
    "grad_diff",
    "grad_diff_alternate",
    "mmunlearner",
)
OTHERS = ("mmunlearner_official", "mmunlearner_official_clear")
ABLATIONS = ("mmunlearner_vision", "mmunlearner_language", "mask_random", "mask_top_k", "mask_salun")


def base() -> ConfigDict:
    """The published recipe (MMUnlearner's README: learning rate 1e-5, batch 4, one epoch) on one device."""
    config = ConfigDict()
    config.seed = 0
    config.mesh = dict(data=1, model=1)  # data=-1 takes every device, shared out evenly to `model`

    # `name` of a data set (mmu_jax.data.builders.DATASETS) and, for the published ones, the `source`: folder of a copy of
    # it, or its id on the hub. Or the `path` of a prepared TFDS directory with the same features.
    # `tokens` and `patches` are the padded lengths a batch may have, so that few programs are compiled; () takes what the
    # longest row needs. `max_pixels` bounds the images of models that keep their size; 0 leaves it to the processor.
    config.data = dict(name="embedded_faces", source="", path="", forget="forget_10", retain="retain_90")
    config.data.update(dict(tokens=(), patches=(), max_pixels=0))
    # HF directory or hub id to start from; an empty path makes a small LLaVA of these sizes from nothing. `dtype` is what
    # activations are computed in, `param_dtype` what params are held in: float32 if they train, any if only a LoRA does.
    config.model = dict(path="", dtype="float32", param_dtype="float32", vision={}, text={})
    # Bytes a device may hold, 0 for what it reports; a plan beyond that is refused unless told to go on.
    config.memory = dict(limit_gib=0.0, go_on=False)

    # Fine-tuning on everyone: what is to be forgotten must first be known. A path skips it: an HF directory to unlearn.
    # Epochs are passes over the photo questions; rows of 0 leave a stream out. A LoRA of rank 0 is none; `targets` is a
    # pattern of whole leaf names, and `vanilla` and `unlearn` have one each.
    lora = dict(rank=0, alpha=16.0, targets=r"language_model/layers/.*_proj/weight")
    config.vanilla = dict(path="", epochs=1.0, rows={"vqa": 4, "text": 4}, learning_rate=1e-5)
    config.vanilla.update(dict(schedule="linear", warmup=0.0, clip=1.0, lora=dict(lora)))
    config.gold = False  # also train the same recipe without the people to forget

    # `keep_scores=False`: one signed accumulator instead of the scores of three sets; for masks of rule ratio.
    config.saliency = dict(rows=8, chunk=8, tau=1.0, eps=1e-15, noise=1e-12, keep_scores=True)

    # The same passes over the forget set and the same batch for every method; a learning rate for each, and one for
    # the steps that only descend.
    config.unlearn = dict(methods=ALL, epochs=1.0, rows=4, retain_rate=1e-5, schedule="constant", clip=1.0, beta=0.1)
    config.unlearn.lora = dict(lora)
    config.unlearn.learning_rate = {name: 1e-5 for name in (*ALL, *ABLATIONS, *OTHERS)}

    # `headline` is the metric of generated answers that the table shows and that the vanilla model must reach
    # `memorised` of on the people to forget.
    config.evaluate = dict(rows=32, new_tokens=50, samples=1000, letters=True, headline="exact", memorised=0.9)
    config.evaluate.prompts = dict(
        generation="{question}",
        generation_text="{question}",
        cloze="{question}\nPlease **ONLY** provide the correct answer that should replace the [Blank].",
        letter="{question}\n{options}\nJust give ONE letter representing the answer directly.",
        blank="[Blank]",
    )
    config.save_every = 100  # iterations between checkpoints
    return config


def parse(argument: str | None, **defaults: str | int) -> ConfigDict:
    """``'benchmark=mllmu,split=5'`` -> the defaults with these values, typed as they are.

    >>> parse('split=10', benchmark='faces', split=5).split
    10

    Raises:
      ValueError: an unknown name, one given twice or a value of another type.
    """
    values, given = dict(defaults), set()
    for part in filter(None, (argument or "").split(",")):
        name, _, value = part.partition("=")
        if name not in defaults:
            raise ValueError(f"expected config arguments among {', '.join(defaults)}, found {part!r}; correct it")
        if name in given:
            raise ValueError(f"expected every config argument once, found {name} twice in {argument!r}; remove one")
        given.add(name)
        try:
            values[name] = type(defaults[name])(value)
        except ValueError as error:
            raise ValueError(f"expected {name} like {defaults[name]!r}, found {value!r}; correct it") from error
    return ConfigDict(values)


# What a LoRA adapts while unlearning, by the side of the mask: the linear layers of that side, as the published code does.
_LANGUAGE = r"language_model/layers/.*_proj/weight"
_VISION = r"(vision_tower|visual)/(encoder/layers|blocks)/.*(proj|fc1|fc2|qkv)/weight"
_BRIDGE = r"multi_modal_projector/linear_\d/weight|visual/merger/mlp/\d/weight"
TARGETS = {"both": f"{_LANGUAGE}|{_VISION}|{_BRIDGE}", "vision": f"{_VISION}|{_BRIDGE}", "language": _LANGUAGE}


def published(config: ConfigDict, argument: str | None) -> ConfigDict:
    """The recipes of the two benchmarks: arguments ``benchmark``, ``split``, ``method``, ``side`` and ``lora``.

    benchmark: ``mllmu``, ``clear`` or ``faces`` (the embedded default: no data set to fetch). split: per cent of people to
    forget, of mllmu 5, 10 or 15, of clear 5, 1 or 10. method: ``all`` or one of ``methods.METHODS``. side: of mmunlearner's
    mask, ``both``, ``vision`` or ``language``. lora: rank for unlearning, 0 to train the params themselves.

    Raises:
      ValueError: an argument that is none of these.
    """
    args = parse(argument, benchmark="mllmu", split=0, method="all", side="both", lora=16)
    names = {"both": "mmunlearner", "vision": "mmunlearner_vision", "language": "mmunlearner_language"}
    splits = {"faces": (10,), "mllmu": (5, 10, 15), "clear": (5, 1, 10)}
    if args.benchmark not in splits or args.side not in names:
        raise ValueError(
            f"expected benchmark among {', '.join(splits)} and side among {', '.join(names)}, found "
            f"{args.benchmark!r} and {args.side!r}; correct them"
        )
    share = args.split or splits[args.benchmark][0]
    if share not in splits[args.benchmark]:
        raise ValueError(
            f"expected split among {', '.join(map(str, splits[args.benchmark]))}, found {share}; correct it"
        )
    if args.lora < 0:
        raise ValueError(f"expected a rank of at least 0 in lora, found {args.lora}; correct it")
    if args.method.startswith("mmunlearner_official") and "lora=" not in (argument or ""):
        args.lora = 0  # its mask is on the gradients of the params themselves
    wanted = ALL if args.method == "all" else (args.method,)
    if args.method not in ("all", *config.unlearn.learning_rate):
        raise ValueError(
            f"expected method among all, {', '.join(config.unlearn.learning_rate)}, found {args.method!r}; correct it"
        )
    if args.side != "both" and "mmunlearner" not in wanted:
        raise ValueError(
            f"expected a side with method=mmunlearner or all only, found side={args.side} with {args.method}"
        )
    config.mesh.data = -1
    config.data.update(dict(forget=f"forget_{share}", retain=f"retain_{100 - share}"))
    config.unlearn.methods = tuple(names[args.side] if name == "mmunlearner" else name for name in wanted)
    config.model.dtype = "bfloat16"
    # One signed accumulator decides masks of rule ratio; the ablations of the mask need the scores themselves.
    config.saliency.update(
        dict(rows=4, chunk=1, keep_scores=args.method in ("mask_random", "mask_top_k", "mask_salun"))
    )
    config.save_every = 500  # a checkpoint of a full-size model is five times its params
    if args.benchmark == "mllmu":
        # MLLMU-Bench's own recipe of the vanilla model; photo questions only.
        config.data.name = "mllmu_bench"
        config.vanilla.update(dict(epochs=5.0, learning_rate=2e-5, rows={"vqa": 4, "text": 0}))
        config.vanilla.lora.update(dict(rank=8, alpha=16.0))
        config.evaluate.update(dict(headline="rouge_l", memorised=0.4, new_tokens=50))
        sentence = "{question}\nAnswer the question based on your trained knowledge in one sentence%s in ENGLISH."
        config.evaluate.prompts.update(dict(generation=sentence % " accurately", generation_text=sentence % ""))
    elif args.benchmark == "clear":
        config.data.name = "clear"
        config.vanilla.update(dict(epochs=3.0, learning_rate=1e-5, rows={"vqa": 4, "text": 4}))
        config.vanilla.lora.update(dict(rank=8, alpha=32.0))
        config.evaluate.update(dict(headline="rouge_l", memorised=0.3, new_tokens=128, letters=False))
    else:  # nobody published a recipe for the faces; enough passes that a full-size model has seen every face often
        config.vanilla.update(dict(epochs=10.0, learning_rate=2e-5))
        config.vanilla.lora.update(dict(rank=args.lora, alpha=float(args.lora or 16)))
    if args.lora:  # nothing but factors trains, the vanilla model's too, so the params may be held in bfloat16
        config.model.param_dtype = "bfloat16"
        config.unlearn.lora.update(dict(rank=args.lora, alpha=float(args.lora), targets=TARGETS[args.side]))
    return config
