"""Every setting is judged before anything is made: what is wrong is said at once, in one line, with its key."""

import math

import pytest

from configs import common, llava, qwen2_vl, tiny
from mmu_jax import InputError, methods
from mmu_jax.study import settings

NAN, INF = math.nan, math.inf
BAD = {
    "seed": [-1, 2**32, 1.5, True],
    "mesh.data": [0, -2, 64, 1.0],
    "mesh.model": [0, -1, 64],
    "mesh.kernels": [1, "no", None],
    "data.name": ["mllmu", ""],
    "data.forget": ["", " "],
    "data.retain": [""],
    "data.group": [-1, 1.5, True, "1", 2**25],
    "data.tokens": [(0,), (-8, 64), (64.0,), ("64",)],
    "data.patches": [(0,), (10**20,)],
    "data.max_pixels": [-1],
    "model.system": [None, "no", 1],
    "model.dtype": ["float8", "fp32", ""],
    "model.param_dtype": ["int8"],
    "model.vision.hidden_size": [0, 97, -96],
    "model.vision.image_size": [25, 0],
    "model.vision.num_hidden_layers": [1, 0],
    "model.text.num_key_value_heads": [3, 0],
    "model.text.hidden_size": [130, 10**20],
    "model.text.num_hidden_layers": [10**20],
    "model.text.hiden_size": [128],
    "model.text.vocab_size": [10],
    "model.vision.hidden_act": ["gelu"],
    "memory.limit_gib": [-1.0, NAN, INF],
    "vanilla.epochs": [0.0, -1.0, NAN, INF, 1e12],
    "vanilla.rows.vqa": [-1],
    "vanilla.learning_rate": [0.0, -1e-5, NAN, INF],
    "vanilla.schedule": ["cosin", ""],
    "vanilla.warmup": [-0.1, 1.1, NAN],
    "vanilla.clip": [0.0, NAN],
    "vanilla.lora.rank": [-1, 99999999],
    "vanilla.lora.alpha": [0.0, INF],
    "vanilla.lora.targets": ["(", ""],
    "saliency.rows": [0, -4],
    "saliency.chunk": [0, -1, 10**20],
    "saliency.tau": [0.0, -1.0, NAN, INF],
    "saliency.eps": [-1e-15, NAN],
    "saliency.noise": [-1.0, NAN],
    "unlearn.methods": [(), ("ga", "ga"), ("nonsense",), "", (1,)],
    "unlearn.epochs": [0.0, NAN],
    "unlearn.rows": [0, -1],
    "unlearn.retain_rate.mmunlearner": [0.0, NAN],
    "unlearn.schedule": ["step"],
    "unlearn.clip": [-1.0, INF],
    "unlearn.lora.targets": ["["],
    "unlearn.learning_rate.ga": [0.0, NAN, INF, -1.0, 1e40, 1e-50],
    "evaluate.rows": [0, -1],
    "evaluate.new_tokens": [0],
    "evaluate.samples": [0, -5, 10**20],
    "evaluate.headline": ["accuracy", "", "letter", "exact_memorisation"],
    "evaluate.memorisation": [1, "no"],
    "evaluate.clear_compat": [1, "yes"],
    "evaluate.shots": [-1, 1.5],
    "evaluate.memorised": [-0.1, 1.5, NAN],
    "evaluate.prompts.generation": ["Who is this?", ""],
    "evaluate.prompts.letter": ["{options}"],
    "evaluate.prompts.blank": [""],
    "save_every": [0, -1],
    "save_minutes": [-1.0, NAN, INF],
    "attack.names": [("nonsense",), ("int4", "int4"), "int4", (4,), "", 4, ("all", "int4"), ("all", "all")],
    "attack.steps": [0, 2.5],
    "attack.rows": [0],
    "attack.learning_rate": [0.0, NAN],
    "general.drawn": [-1, 1.5, True],
    "general.pope": [4, ("pope",)],
}


def changed(key, value, config=None):
    """The embedded default's config with another value, type not looked at, as a config file of one's own may have it."""
    config = config or tiny.get_config()
    *path, last = key.split(".")
    section = config
    for name in path:
        section = section[name]
    with config.unlocked(), config.ignore_type():
        section[last] = value
    return config


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BAD.items() for value in values])
def test_a_bad_setting_is_named(key, value):
    with pytest.raises(InputError) as said:
        settings.judge(changed(key, value), {})
    named = (
        key if "methods" in key or "evaluate" in key else key.replace("mesh.data", "mesh").replace("mesh.model", "mesh")
    )
    text = str(said.value)
    assert (
        "\n" not in text
        and "expected" in text
        and named in text
        and ("found" in text or key == "evaluate.prompts.letter")
    )


def test_every_problem_is_said_at_once():
    config = changed("saliency.tau", NAN, changed("seed", -1, changed("unlearn.rows", 0)))
    with pytest.raises(InputError, match=r"saliency\.tau.*config\.seed.*unlearn\.rows.*\(3 problems in the config\)"):
        settings.judge(config, {})


def test_a_key_too_many_or_too_few_is_named():
    config = tiny.get_config()
    with config.unlocked():
        config.unlearn.epoch = 2.0
        del config.saliency.tau
    with pytest.raises(InputError, match=r"config\.saliency\.tau, found none.*found config\.unlearn\.epoch"):
        settings.judge(config, {})


def test_relearning_trains_in_full_precision():
    coarse = changed("model.param_dtype", "bfloat16", changed("unlearn.lora.rank", 4, changed("vanilla.lora.rank", 4)))
    coarse.unlearn.methods = ("ga",)
    with pytest.raises(
        InputError, match="to relearn in, found bfloat16.*relearn_own, relearn_benign out of config.att"
    ):
        settings.judge(coarse, {})
    settings.judge(changed("attack.names", ("int4",), coarse), {})


def test_every_method_needs_a_rate():
    config = tiny.get_config()
    with config.unlocked():
        del config.unlearn.learning_rate.ga
    with pytest.raises(InputError, match=r"config\.unlearn\.learning_rate\.ga, found none"):
        settings.judge(config, {})


@pytest.mark.parametrize(
    "config",
    [
        tiny.get_config(),
        llava.get_config(),
        qwen2_vl.get_config("benchmark=clear"),
        llava.get_config("benchmark=faces,lora=0"),
    ]
    + [llava.get_config(f"method={name}") for name in methods.METHODS if not name.startswith("mask_")],
)
def test_the_configs_that_ship_are_good(config):
    settings.judge(config, {})


UNREAD = {
    "data.source": ("/photos", {}),
    "data.name": ("clear", {"data.path": "/tfds"}),
    "model.path": ("/model", {"vanilla.path": "/vanilla"}),
    "model.vision.hidden_size": (32, {"model.path": "/model"}),
}


@pytest.mark.parametrize("key", UNREAD)
def test_what_a_user_brings_and_nothing_reads_is_refused(key):
    value, others = UNREAD[key]
    config = changed(key, value)
    for other, there in others.items():
        changed(other, there, config)
    with pytest.raises(InputError, match=rf"config\.{key}=.*which nothing reads"):
        settings.judge(config, {key: value} | others)
    settings.judge(config, others)  # a default of the config file is no wish of the user's


def test_numbers_of_steps_that_are_not_taken_are_said():
    config = changed("vanilla.path", "/vanilla")
    given = {"vanilla.epochs": 3.0, "unlearn.learning_rate.ga": 1e-3, "vanilla.path": "/vanilla"}
    assert settings.unused(config, given) == ["config.vanilla.epochs is not read: nothing is trained before unlearning"]
    assert settings.unused(changed("unlearn.methods", ("npo",)), {"saliency.tau": 2.0}) == [
        "config.saliency.tau is not read: no method has a mask"
    ]


def test_numbers_of_steps_that_no_attack_takes_are_said():
    (line,) = settings.unused(changed("attack.names", ("int8",)), {"attack.steps": 8, "attack.names": ("int8",)})
    assert line == "config.attack.steps is not read: no attack trains"
    rows = {"attack.rows": 4, "attack.steps": 8}
    (line,) = settings.unused(changed("attack.names", ("membership_gradients",)), rows)
    assert line == "config.attack.steps is not read: no attack trains"
    said = settings.unused(changed("attack.names", ("membership",)), rows)
    assert "config.attack.rows is not read: no attack takes gradients" in said and len(said) == 2
    assert settings.unused(tiny.get_config(), {"attack.steps": 8}) == []


def test_arguments_after_the_colon():
    config = llava.get_config("benchmark=mllmu,split=10,method=mmunlearner,side=vision,lora=8")
    assert config.data.name == "mllmu_bench" and config.data.forget == "forget_10" and config.data.retain == "retain_90"
    assert config.unlearn.methods == ("mmunlearner_vision",) and config.unlearn.lora.rank == 8
    assert "vision_tower" in config.unlearn.lora.targets and "language" in config.vanilla.lora.targets
    assert config.model.param_dtype == "bfloat16" and config.vanilla.lora.rank == 8
    assert qwen2_vl.get_config("benchmark=clear").data.forget == "forget_5"
    for wrong in (
        "nonsense=1",
        "split=x",
        "benchmark=none",
        "benchmark=clear,split=7",
        "side=left",
        "side=vision,method=ga",
        "method=nonsense",
        "lora=-1",
    ):
        with pytest.raises(ValueError, match="expected"):
            llava.get_config(wrong)


def test_the_published_job_is_the_default():
    config = llava.get_config()
    assert config.model.path == "llava-hf/llava-1.5-7b-hf" and config.mesh.to_dict() == {
        "data": -1,
        "model": 1,
        "kernels": True,
    }
    assert (config.data.name, config.data.forget, config.data.retain) == ("mllmu_bench", "forget_5", "retain_95")
    assert config.unlearn.lora.rank == 16 and config.model.param_dtype == "bfloat16"
    assert config.unlearn.methods == common.ALL
    assert qwen2_vl.get_config().model.path == "Qwen/Qwen2-VL-7B-Instruct"
    for side, lora, there in (("both", 16, True), ("both", 0, True), ("vision", 16, True), ("vision", 0, False)):
        chosen = llava.get_config(f"side={side},lora={lora}").unlearn.methods
        assert ("linear_only" in chosen) == there, "what moves the other side too is not beside the mask of one"
    assert llava.get_config("lora=0").unlearn.lora.rank == 0
    assert llava.get_config("lora=0").model.param_dtype == "float32"
    assert llava.get_config("method=mmunlearner_official").unlearn.lora.rank == 0


@pytest.mark.parametrize(
    ("names", "key", "why"),
    [
        (("retain_ft",), "unlearn.learning_rate.retain_ft", "its steps only descend"),
        (("ga",), "unlearn.retain_rate.ga", "no step of this method only descends"),
        (("ga", "mmunlearner_official"), "unlearn.retain_rate.mmunlearner", "the method is not run"),
        (("mmunlearner_official",), "saliency.eps", "every mask has its own"),
        (("mmunlearner_official",), "saliency.rows", "every mask is scored by batch"),
    ],
)
def test_a_number_that_no_step_takes_is_said(names, key, why):
    (line,) = settings.unused(changed("unlearn.methods", names), {key: 0.5})
    assert f"config.{key} is not read: {why}" in line
    read = "unlearn.retain_rate.mmunlearner" if key.endswith((".retain_ft", ".ga")) else key
    assert settings.unused(changed("unlearn.methods", ("mmunlearner",)), {read: 0.5}) == []
