"""Tokenizer, template and image processor agree with a config that we compute, or the directory is refused."""

import io
import json

import pytest

from folders import POINTER, edit, put
from mmu_jax import InputError, hf
from mmu_jax.data import text, tiny
from twins import CHATML

TEXT_ONLY = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def both(*changes):
    return lambda folder: [change(folder) for change in changes]


def add_tokens(*tokens, **special):
    """Added to the tokenizer and not to the embedding."""

    def change(folder):
        import transformers

        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(list(tokens))
        tokenizer.add_special_tokens(special)
        tokenizer.save_pretrained(folder)

    return change


def pixels(key, to):
    return put("processor_config.json", "image_processor", key, to=to)


REFUSED = {
    "image token in words": ("llava", put("config.json", "image_token_id", to="<image>"), "image_token_id='<image>' of"),
    "no config": ("llava", lambda f: (f / "config.json").unlink(), "config.json, found none"),
    "image token of config": ("llava", put("config.json", "image_token_index", to=7), "image_token_id=7.*'<image>' is 4"),
    "image token of Qwen": ("qwen2_vl", put("config.json", "image_token_id", to=7), "image_token_id=7.*<|image_pad|>"),
    "no image token": ("llava", put("tokenizer_config.json", "image_token", to="<img>"), "'<img>'"),
    "strategy": ("llava", put("config.json", "vision_feature_select_strategy", to="full"), "='default' of .*='full' of"),
    "strategy of an older processor": (
        "llava",
        both(put("processor_config.json", "vision_feature_select_strategy", to="full"), put("processor_config.json", "patch_size", to=None)),
        "='full' of .*='default' of",
    ),
    "patch size": ("llava", put("processor_config.json", "patch_size", to=6), "patch_size=6 of .*patch_size=12 of"),
    "tokens of an image": ("llava", put("processor_config.json", "num_additional_image_tokens", to=0), "tokens=0 of .*=1 of"),
    "crop": ("llava", put("processor_config.json", "image_processor", "crop_size", to=48), r"\(48, 48\) of .*\(24, 24\) of"),
    "an oblong": (
        "llava",
        put("processor_config.json", "image_processor", "crop_size", to={"height": 24, "width": 12}),
        r"\(24, 12\) of .*\(24, 24\) of",
    ),
    "no room": ("llava", pixels("size", {"height": 0, "width": 0}), "whole numbers of pixels for size"),
    "less than no room": ("llava", pixels("size", -1), "whole numbers of pixels for size"),
    "half a pixel": ("llava", pixels("size", {"height": 24.5, "width": 24}), "whole numbers of pixels for size"),
    "one edge, the longest": ("llava", pixels("size", {"longest_edge": 24}), "an image processor in"),
    "resized to nothing said": ("llava", pixels("size", None), "an image processor in"),
    "a photo of terapixels": ("llava", pixels("size", {"height": 2**20, "width": 2**20}), "pixels once resized"),
    "a longest edge of words": ("qwen2_vl", put("preprocessor_config.json", "size", to={"shortest_edge": "a", "longest_edge": 9}), "image processor"),
    "patch size of Qwen": ("qwen2_vl", put("preprocessor_config.json", "patch_size", to=8), "patch_size=8 of .*patch_size=4"),
    "merge size": ("qwen2_vl", put("preprocessor_config.json", "merge_size", to=4), "merge_size=4 of .*spatial_merge_size=2"),
    "frames": ("qwen2_vl", put("preprocessor_config.json", "temporal_patch_size", to=1), "temporal_patch_size=1 of .*=2 of"),
    "a word without a row": ("llava", add_tokens("Ada"), "found 1 beyond .*'Ada' is 768"),
    "words and a pad": ("qwen2_vl", add_tokens("Ada", "Bob", pad_token="[PAD]"), "found 2 beyond .*'Ada' is 773, 'Bob' is 774"),
    "an end without a row": ("llava", add_tokens(eos_token="<end>"), "'<end>' is 768"),
    "no numbers for pixels": ("llava", put("processor_config.json", "image_processor", "image_mean", to="x"), "image processor"),
    "deviation of nothing": ("qwen2_vl", put("preprocessor_config.json", "image_std", to=[0, 0, 0]), "finite pixels"),
    "pixels times nothing": ("llava", pixels("rescale_factor", 0), "white ones above black ones.*rescale_factor=0"),
    "a negative": ("qwen2_vl", put("preprocessor_config.json", "image_std", to=[-1, -1, -1]), "white ones above black ones"),
    "a switch in words": ("llava", pixels("do_resize", "x"), "true or false for do_resize.*'do_resize': 'x'"),
    "a filter in words": ("qwen2_vl", put("preprocessor_config.json", "resample", to="x"), "'resample': 'x'"),
    "an endless eps": ("llava", put("config.json", "text_config", "rms_norm_eps", to=1e400), "text_config.rms_norm_eps=inf"),
    "a large eps": ("llava", put("config.json", "vision_config", "layer_norm_eps", to=1.5), "vision_config.layer_norm_eps=1.5"),
    "a number of five thousand digits": ("llava", write("tokenizer_config.json", '{"x": ' + "1" * 5000 + "}"), "not JSON"),
    "memory without end": ("llava", write("chat_template.jinja", "{{ 'a' * 10 ** 13 }}"), "fails"),
    "no longest text": ("qwen2_vl", put("tokenizer_config.json", "model_max_length", to="x"), "model_max_length"),
    "no template": ("llava", lambda f: (f / "chat_template.jinja").unlink(), "expected a chat template .*found none"),
    "templates without a default": (
        "qwen2_vl",
        both(lambda f: (f / "chat_template.jinja").unlink(), put("tokenizer_config.json", "chat_template", to=[{"name": "rag", "template": "x"}])),
        "found only rag",
    ),
    "text only": ("llava", write("chat_template.jinja", TEXT_ONLY), "expected a chat template that takes pictures"),
    "text only, of Qwen": ("qwen2_vl", write("chat_template.jinja", TEXT_ONLY), "expected a chat template that takes pictures"),
    "no pictures": ("llava", write("chat_template.jinja", tiny.CHAT_TEMPLATE.replace("<image>", "")), "0 placeholders"),
    "pictures twice": ("llava", write("chat_template.jinja", tiny.CHAT_TEMPLATE.replace("<image>", "<image>" * 2)), "2 placeholders"),
    "broken": ("qwen2_vl", write("chat_template.jinja", "{% for %}"), "chat template"),
    "one that divides by zero": ("llava", write("chat_template.jinja", "{{ 1 // 0 }}"), "fails .*zero"),
    "one without an end": ("llava", write("chat_template.jinja", "{% for i in range(10**9) %}x{% endfor %}"), "fails .*[Rr]ange"),
    "one that calls itself": ("qwen2_vl", write("chat_template.jinja", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), "fails .*recursion"),
    "one that refuses": ("llava", write("chat_template.jinja", "{{ raise_exception('no') }}"), "fails .*no"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_processor_that_does_not_fit(copy, name):
    family, change, said = REFUSED[name]
    folder = copy(family)
    change(folder)
    with pytest.raises(InputError, match=said) as error:
        hf.read_processor(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


JSON = ("config.json", "tokenizer.json", "tokenizer_config.json")
DAMAGED = {name: JSON + ("processor_config.json",) for name in ["llava"]}
DAMAGED["qwen2_vl"] = JSON + ("preprocessor_config.json", "special_tokens_map.json", "chat_template.json")
DAMAGES = {
    "a pointer": POINTER,
    "cut": '{"a": ',
    "bytes": b"\x80\x04\xff",
    "a list": "[]",
    "a number": "7",
    "empty": "",
}
FILED = [(family, file, damage) for family, files in DAMAGED.items() for file in files for damage in DAMAGES]


@pytest.mark.parametrize(("family", "file", "damage"), FILED)
def test_a_damaged_file_is_named(copy, family, file, damage):
    folder = copy(family)
    write(file, DAMAGES[damage])(folder)
    with pytest.raises(InputError, match=str(folder / file)):
        hf.read_processor(folder)


BROKEN = {
    "nothing in it": ("tokenizer.json", lambda v: {"a": 1}),
    "no model": ("tokenizer.json", lambda v: v | {"model": {"type": "Unheard"}}),
    "tokens that are no list": ("tokenizer.json", lambda v: v | {"added_tokens": 7}),
    "a class of strangers": ("tokenizer_config.json", lambda v: v | {"eos_token": ["x"]}),
    "an image processor unheard of": ("processor_config.json", lambda v: v | {"image_processor": {"image_processor_type": "X"}}),
    "a processor unheard of": ("processor_config.json", lambda v: v | {"processor_class": "LlavaUnheard"}),
    "sizes that are words": ("config.json", lambda v: v["text_config"].update(hidden_size="large")),
    "no model type": ("config.json", lambda v: v.pop("model_type") and None),
    "another model": ("config.json", lambda v: v | {"model_type": "gemma3"}),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_json_and_nothing_more(copy, name):
    file, change = BROKEN[name]
    folder = copy()
    edit(folder, file, change)
    with pytest.raises(InputError) as error:
        hf.read_processor(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names if (folder / name).exists()]


def tokenizer_s(template):
    return both(remove("chat_template.jinja"), put("tokenizer_config.json", "chat_template", to=template))


def additional(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text(TEXT_ONLY)


LAYOUTS = {
    "the tokenizer's": tokenizer_s,
    "named ones of the tokenizer": lambda t: tokenizer_s(
        [{"name": "tool_use", "template": TEXT_ONLY}, {"name": "default", "template": t}]
    ),
    "a file before the tokenizer's": lambda t: both(tokenizer_s(TEXT_ONLY), write("chat_template.jinja", t)),
    "an old file before the tokenizer's": lambda t: both(
        tokenizer_s(TEXT_ONLY), put("chat_template.json", "chat_template", to=t)
    ),
    "an old file before a new one": lambda t: both(
        write("chat_template.jinja", TEXT_ONLY), put("chat_template.json", "chat_template", to=t)
    ),
    "in the processor's config": lambda t: both(
        write("chat_template.jinja", TEXT_ONLY), put("processor_config.json", "chat_template", to=t)
    ),
    "others beside it": lambda t: additional,
}


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_template_is_the_one_that_transformers_takes(copy, family, layout):
    template, image = (tiny.CHAT_TEMPLATE, "<image>") if family == "llava" else (CHATML, "<|image_pad|>")
    folder = copy(family)
    before = hf.read_processor(folder).apply_chat_template(text.messages("Who?", 1), tokenize=False)
    LAYOUTS[layout](template)(folder)
    after = hf.read_processor(folder).apply_chat_template(text.messages("Who?", 1), tokenize=False)
    assert after == before and after.count(image) == 1


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_pad_token_that_is_absent_or_without_a_row_is_replaced(copy, family):
    folder = copy(family)
    end = hf.read_processor(folder).tokenizer.eos_token
    put("tokenizer_config.json", "pad_token", to=None)(folder)
    assert hf.read_processor(folder).tokenizer.pad_token == end
    add_tokens(pad_token="[PAD]")(folder)
    assert hf.read_processor(folder).tokenizer.pad_token == end


def test_without_pad_and_end_there_is_still_padding_and_an_end_of_turn(copy):
    folder = copy("qwen2_vl")
    for key in ("pad_token", "eos_token"):
        put("tokenizer_config.json", key, to=None)(folder)
    processor = hf.read_processor(folder)
    assert processor.tokenizer.eos_token is None and processor.tokenizer.pad_token_id == 0
    remove("generation_config.json")(folder)
    assert hf.stop_tokens(folder, processor) == (processor.tokenizer.convert_tokens_to_ids("<|im_end|>"),)


ENDS = {"one": (9, (9,)), "several": ([9, 11], (9, 11)), "none": (None, ()), "an empty list": ([], ())}


@pytest.mark.parametrize("name", ENDS)
def test_answers_stop_at_the_ends_of_template_tokenizer_and_generation_config(copy, name):
    value, more = ENDS[name]
    folder = copy()
    put("generation_config.json", "eos_token_id", to=value)(folder)
    assert hf.stop_tokens(folder, hf.read_processor(folder)) == (2, *more)


@pytest.mark.parametrize("value", ["</s>", True, [2, "x"], 1.5, {"a": 1}, -1])
def test_an_end_that_is_no_token(copy, value):
    folder = copy()
    put("generation_config.json", "eos_token_id", to=value)(folder)
    with pytest.raises(InputError, match="token ids for eos_token_id in .*generation_config.json"):
        hf.stop_tokens(folder, hf.read_processor(folder))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_generation_config_is_named(copy, damage):
    folder = copy()
    write("generation_config.json", DAMAGES[damage])(folder)
    with pytest.raises(InputError, match="generation_config.json"):
        hf.stop_tokens(folder, hf.read_processor(folder))


def test_what_older_files_leave_to_the_config(copy):
    folder = copy()
    older = {"patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"}
    edit(folder, "processor_config.json", lambda v: {key: value for key, value in v.items() if key not in older})
    processor = hf.read_processor(folder)
    assert (processor.patch_size, processor.vision_feature_select_strategy) == (12, "default")
    assert processor.num_additional_image_tokens == 1


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_code_of_a_directory_is_never_run(copy, family, monkeypatch, tmp_path):
    """Whatever is typed where transformers would ask."""
    folder = copy(family)
    (folder / "own.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nclass A: pass\n")
    names = {"AutoConfig": "own.A", "AutoProcessor": "own.A", "AutoTokenizer": ["own.A", "own.A"]}
    names |= {"AutoImageProcessor": "own.A"}
    for file in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        if (folder / file).exists():
            put(file, "auto_map", to=names)(folder)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    hf.read_processor(folder)
    put("processor_config.json", "processor_class", to="Own")(folder)
    put("tokenizer_config.json", "tokenizer_class", to="Own")(folder)
    try:
        hf.read_processor(folder)
    except InputError as error:
        assert str(folder) in str(error)
    assert not (tmp_path / "ran").exists()


def inner(**change):
    return lambda c: c | {"text_config": c["text_config"] | change}


def outer(**change):
    return lambda c: c | {"vision_config": c["vision_config"] | change}


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
UNKNOWN = {
    "Gemma": ("llava", inner(model_type="gemma"), "text_config.model_type=gemma"),
    "Granite": ("llava", inner(model_type="granite", attention_multiplier=0.5), "text_config.model_type=granite"),
    "Qwen 3": ("llava", inner(model_type="qwen3"), "text_config.model_type=qwen3"),
    "no model": ("llava", inner(model_type="unheard"), "unheard"),
    "Mistral's window": ("llava", inner(model_type="mistral", sliding_window=8), "text_config.sliding_window=8"),
    "Mistral's own window": ("llava", inner(model_type="mistral"), "text_config.sliding_window=4096"),
    "a window of Qwen": ("qwen2_vl", inner(use_sliding_window=True, sliding_window=8, max_window_layers=1, layer_types=None), "layer_types with"),
    "layers with windows": ("qwen2_vl", inner(layer_types=["full_attention", "sliding_attention"]), "layer_types with"),
    "SigLIP": ("llava", outer(model_type="siglip_vision_model"), "vision_config.model_type=siglip_vision_model"),
    "yarn": ("llava", inner(rope_parameters=YARN), "rope_type=yarn"),
    "yarn of Qwen": ("qwen2_vl", inner(rope_parameters=YARN | {"mrope_section": [1, 1, 2]}), "rope_type=yarn"),
    "dynamic": ("llava", inner(rope_parameters=YARN | {"rope_type": "dynamic"}), "rope_type=dynamic"),
    "a part of a head": (
        "llava",
        inner(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        "partial_rotary_factor=0.5",
    ),
    "sections": (
        "qwen2_vl",
        inner(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 1]}),
        r"mrope_section=\[1, 1, 1\]",
    ),
    "published sections, small heads": (
        "qwen2_vl",
        inner(rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
        r"mrope_section=\[16, 24, 24\]",
    ),
    "theta of nothing": ("llava", inner(rope_parameters={"rope_type": "default", "rope_theta": 0}), "rope_theta=0"),
    "an activation": ("llava", inner(hidden_act="relu2"), "text_config.hidden_act=relu2"),
    "an activation of the tower": ("qwen2_vl", outer(hidden_act="tanh"), "vision_config.hidden_act=tanh"),
    "an activation between": ("llava", lambda c: c | {"projector_hidden_act": "tanh"}, "projector_hidden_act=tanh"),
    "several layers": ("llava", lambda c: c | {"vision_feature_layer": [-2, -1]}, r"vision_feature_layer=\[-2, -1\]"),
    "no such layer": ("llava", lambda c: c | {"vision_feature_layer": -9}, "vision_feature_layer=-9 of 3 layers"),
    "a rest of a patch": ("llava", outer(image_size=25), "image_size=25"),
    "grey": ("llava", outer(num_channels=1), "num_channels=1"),
    "heads": ("llava", inner(num_key_value_heads=3), "num_key_value_heads=3"),
    "no heads": ("llava", inner(num_attention_heads=0), "config.json"),
    "negative layers": ("llava", inner(num_hidden_layers=-1), "text_config.num_hidden_layers=-1"),
    "widths": ("qwen2_vl", outer(hidden_size=64), "width 64 to text_config.hidden_size=32"),
    "axes of the tower": (
        "qwen2_vl",
        outer(rope_parameters={"rope_type": "axial", "rope_theta": 5e4}),
        "vision_config.rope_parameters=.*50000",
    ),
    "an image token out of all": ("llava", lambda c: c | {"image_token_index": 768}, "image_token_id=768 of vocab_size=768"),
    "quantised": ("llava", lambda c: c | {"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantization_config"),
    "weights elsewhere": ("llava", lambda c: c | {"transformers_weights": "other.safetensors"}, "transformers_weights"),
    "LLaVA-NeXT": ("llava", lambda c: c | {"model_type": "llava_next"}, "model_type in .*found 'llava_next'"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_config_of_other_arithmetic_is_refused_by_name(whole, tmp_path, name):
    family, change, said = UNKNOWN[name]
    (tmp_path / "config.json").write_text(json.dumps(change(json.loads((whole[family] / "config.json").read_text()))))
    with pytest.raises(InputError, match=said) as error:
        hf.read_config(tmp_path)
    assert "\n" not in str(error.value) and "config.json" in str(error.value)
