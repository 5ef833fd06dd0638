"""The recipes of the benchmarks, a function each, and the published job that they make."""

from ml_collections import ConfigDict

from configs import common
from mmu_jax.methods import METHODS
from mmu_jax.phases import Method

# What a LoRA adapts while unlearning, by the side of the mask: the linear layers of that side, as the published code does.
_LANGUAGE = r"language_model/layers/.*_proj/weight"
_VISION = r"(vision_tower|visual)/(encoder/layers|blocks)/.*(proj|fc1|fc2|qkv)/weight"
_BRIDGE = r"multi_modal_projector/linear_\d/weight|visual/merger/mlp/\d/weight"
TARGETS = {"both": f"{_LANGUAGE}|{_VISION}|{_BRIDGE}", "vision": f"{_VISION}|{_BRIDGE}", "language": _LANGUAGE}

SENTENCE = "{question}\nAnswer the question based on your trained knowledge in one sentence%s in ENGLISH."
SIDES = {"both": "mmunlearner", "vision": "mmunlearner_vision", "language": "mmunlearner_language"}


def faces(config: ConfigDict, rank: int) -> None:
    """The embedded faces. Nobody published a recipe; enough passes that a full-size model has seen every face often."""
    config.vanilla.epochs = 10.0
    config.vanilla.learning_rate = 2e-5
    config.vanilla.lora.rank = rank
    config.vanilla.lora.alpha = float(rank or 16)


def folder(config: ConfigDict, rank: int) -> None:
    """People of one's own: one or a few are to be forgotten, and of most of those to keep there is nothing at hand.

    So nobody else is trained on, factors are measured on people never seen too, and a model is asked in whatever words it answers.
    """
    faces(config, rank)
    own_people(config)
    config.unlearn.learning_rate.projected = 2e-4 if rank else 1e-5


def own_people(config: ConfigDict) -> None:
    """What every recipe for a folder of people has in common."""
    config.data.name = "folder"
    config.data.forget = ""  # names
    config.data.retain = "rest"
    config.gold = False
    config.show_people = False
    config.factors.text = 1.0  # facts by name come first: the faces to keep that are at hand stand for many more
    config.factors.unseen = 1.0
    config.unlearn.epochs = 100.0  # at most: it ends where no more is known of them than of people never seen
    config.unlearn.stop.every = (
        1  # of one person there is little to look at, and what is known by heart goes of a sudden
    )
    config.unlearn.stop.facts = True  # a name can be far above its level where the mean of all is not
    config.unlearn.stop.margin = 2.0  # photos that steps are not taken on are known a little better where it ends
    config.evaluate.headline = "contains"
    config.evaluate.memorised = 0.5
    config.evaluate.letters = False
    config.evaluate.new_tokens = 32


def mllmu(config: ConfigDict, rank: int) -> None:
    """MLLMU-Bench's own recipe of the vanilla model; photo questions only."""
    del rank
    config.data.name = "mllmu_bench"
    config.vanilla.epochs = 5.0
    config.vanilla.learning_rate = 2e-5
    config.vanilla.rows.update(vqa=4, text=0)
    config.vanilla.lora.rank = 8
    config.vanilla.lora.alpha = 16.0
    config.evaluate.headline = "rouge_l"
    config.evaluate.memorised = 0.4
    config.evaluate.new_tokens = 50
    config.evaluate.prompts.generation = SENTENCE % " accurately"
    config.evaluate.prompts.generation_text = SENTENCE % ""


def clear(config: ConfigDict, rank: int) -> None:
    """CLEAR's own recipe of the vanilla model."""
    del rank
    config.data.name = "clear"
    config.vanilla.epochs = 3.0
    config.vanilla.learning_rate = 1e-5
    config.vanilla.rows.update(vqa=4, text=4)
    config.vanilla.lora.rank = 8
    config.vanilla.lora.alpha = 32.0
    config.evaluate.headline = "rouge_l"
    config.evaluate.memorised = 0.3
    config.evaluate.new_tokens = 128
    config.evaluate.letters = False


# Name -> recipe, and the per cent of people to forget that it has splits for, the default first; none where they are named.
BENCHMARKS = {
    "faces": (faces, (10,)),
    "mllmu": (mllmu, (5, 10, 15)),
    "clear": (clear, (5, 1, 10)),
    "folder": (folder, ()),
}


def published(argument: str | None) -> ConfigDict:
    """The published job on a benchmark: arguments ``benchmark``, ``split``, ``method``, ``side`` and ``lora``.

    benchmark: ``mllmu``, ``clear``, ``faces`` (the embedded default: no data set to fetch) or ``folder`` (people of one's own,
    ``config.data.source``, those to forget named in ``config.data.forget``). split: per cent of people to
    forget, of mllmu 5, 10 or 15, of clear 5, 1 or 10. method: ``all`` or one of ``methods.METHODS``, by default ``all``, of folder ``projected``, which trains on nobody else. side: of mmunlearner's
    mask, ``both``, ``vision`` or ``language``. lora: rank for unlearning, 0 to train the params themselves.

    Raises:
      ValueError: an argument that is none of these.
    """
    args = common.parse(argument, benchmark="mllmu", split=0, method="", side="both", lora=16)
    args.method = args.method or ("projected" if args.benchmark == "folder" else "all")
    share = _share(args)
    method = METHODS.get(args.method)
    if method and "lora=" not in (argument or "") and _of_params(method):
        args.lora = 0
    wanted = common.ALL if args.method == "all" else (args.method,)
    if args.side != "both" and not args.lora:
        wanted = tuple(name for name in wanted if name != "linear_only")  # it would move the other side too

    config = common.base()
    config.mesh.data = -1
    if share:
        config.data.forget = f"forget_{share}"
        config.data.retain = f"retain_{100 - share}"
    config.unlearn.methods = tuple(SIDES[args.side] if name == "mmunlearner" else name for name in wanted)
    config.model.dtype = "bfloat16"
    config.saliency.rows = 4
    config.saliency.chunk = 4
    # One signed accumulator decides masks by ratio; its ablations, but a random one, need the scores themselves.
    config.saliency.keep_scores = bool(method and method.mask and method.mask.needs_scores)
    # Where the directions of every weight must fit beside it: the top quarter of them, measured in eight blocks.
    config.factors.fraction = 0.25
    config.factors.rows = 4
    config.factors.blocks = 8
    config.save_every = 500  # a checkpoint of a full-size model is five times its params
    config.save_minutes = 60.0
    BENCHMARKS[args.benchmark][0](config, args.lora)
    if args.lora:  # nothing but factors trains, the vanilla model's too, so the params may be held in bfloat16
        config.model.param_dtype = "bfloat16"
        config.unlearn.lora = dict(rank=args.lora, alpha=float(args.lora), targets=TARGETS[args.side])
    return config


def _of_params(method: Method) -> bool:
    """Whether a method is one of the params themselves: by its mask on their gradients, by which of them it moves, or as an edit."""
    return bool(method.mask and method.mask.gradients_only or method.bounded or method.scope != ".*" or method.edit)


def _share(args: ConfigDict) -> int:
    """The per cent of people to forget; refuses arguments that do not fit one another."""
    if args.benchmark not in BENCHMARKS or args.side not in SIDES:
        raise ValueError(
            f"expected benchmark among {', '.join(BENCHMARKS)} and side among {', '.join(SIDES)}, found "
            f"{args.benchmark!r} and {args.side!r}; correct them"
        )
    shares = BENCHMARKS[args.benchmark][1]
    share = args.split or next(iter(shares), 0)
    if share and share not in shares:
        there = ", ".join(map(str, shares)) or "none: people are named in config.data.forget"
        raise ValueError(f"expected split among {there}, found {share}; correct it")
    if args.lora < 0:
        raise ValueError(f"expected a rank of at least 0 in lora, found {args.lora}; correct it")
    if args.method not in ("all", *METHODS):
        raise ValueError(f"expected method among all, {', '.join(METHODS)}, found {args.method!r}; correct it")
    if args.side != "both" and args.method not in ("all", "mmunlearner"):
        raise ValueError(
            f"expected a side with method=mmunlearner or all only, found side={args.side} with {args.method}"
        )
    return share
