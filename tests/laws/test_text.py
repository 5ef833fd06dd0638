"""Templates and answers of every kind: what is trained is the answer and the end of its turn, and that end stops it."""

import re
import time

import numpy as np
import pytest
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from mmu_jax import InputError
from mmu_jax.data import Choice, Example, Person, loader, picture, streams, text, tiny
from mmu_jax.data.sizes import Sizes
from mmu_jax.models import reading
from twins import CHATML, qwen_processor

TRIM = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The template of llava-1.5: a blank after every text, no end of turn.
VICUNA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ c['text'] + ' ' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
OWN = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% if m['role'] == 'assistant' %} ###{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
ADDED = ["<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"]


def make(template, *, eos="</s>", pad="<pad>", after=None, image="<image>", trim=False):
    """A processor whose tokenizer is the embedded one with another template, post-processor or special tokens."""
    backend = Tokenizer.from_str(tiny.tokenizer().backend_tokenizer.to_str())
    backend.add_special_tokens(ADDED)
    if after is not None:
        backend.post_processor = processors.TemplateProcessing(single=after, special_tokens=[("<s>", 1), ("</s>", 2)])
    if trim:
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    options = {} if eos is None else {"eos_token": eos}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", unk_token="<unk>", pad_token=pad, chat_template=template, **options
    )
    return reading.PlainProcessor(tokenizer, None, image)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return reading.PlainProcessor(qwen_processor(tmp_path_factory.mktemp("qwen")), None, "<|image_pad|>")


@pytest.fixture(scope="module")
def families(qwen):
    return {"llava": tiny.processor(), "qwen": qwen, "trim": make(TRIM), "vicuna": make(VICUNA), "own": make(OWN)}


ENDS = {"llava": "</s>", "qwen": "<|im_end|>", "trim": "<|im_end|>", "vicuna": "</s>", "own": "###</s>"}
PAIRS = {
    "in the question": ("Is Lima in Lima?", "Lima"),
    "the whole question": ("Who?", "Who?"),
    "a letter": ("Is it a or b?", "a"),
    "the user's header": ("Who?", "USER:"),
    "the assistant's header": ("Who?", "ASSISTANT"),
    "the role": ("Who?", "assistant"),
    "the system prompt": ("Who?", "You are kind."),
    "part of the end of turn": ("Who?", "im_end"),
    "a sign of the end of turn": ("Who?", ">"),
    "the start of the end of turn": ("Who?", "</s"),
    "the end of the answer": ("Who?", "###"),
    "twice itself": ("Who?", "na na na"),
    "lines": ("Who?", "Ada\n\nBecker\n  of Lima"),
    "braces": ("Fill {name} and {{ name }}", '{"answer": "{0} %s {{ x }} {% if %}"}'),
    "quotes": ('What\'s "this"?', "It's a <b>\"bold\"</b> & 'plain' \\ word"),
    "the mark": ("answer0mark and answer1mark", "answer2mark answer0mark"),
    "other scripts": ("Wer? 谁?", "Zoë 阿达 👩\u200d🔬 e\u0301"),
    "a date": ("When?", "1.1.1970"),
}


@pytest.mark.parametrize("family", ENDS)
@pytest.mark.parametrize("images", [0, 1])
@pytest.mark.parametrize("name", PAIRS)
def test_the_answer_and_its_end_are_learnt_wherever_they_also_stand(families, family, images, name):
    processor, (question, answer) = families[family], PAIRS[name]
    rows = text.encode(processor, [PAIRS["a date"], (question, answer)], images)
    tokens, weights = rows.tokens[1], rows.weights[1]
    start = int(weights.argmax())
    assert weights[:start].sum() == 0 and weights[start:].all()
    assert processor.tokenizer.decode(tokens[start:]).replace(" ###", "###").strip() == answer + ENDS[family]
    prompt = text.encode_prompts(processor, [question], images).tokens[0]
    if family == "llava":
        np.testing.assert_array_equal(tokens[:start], prompt)
    shown = processor.tokenizer.decode(tokens[:start]).rstrip()
    assert shown == processor.tokenizer.decode(prompt).rstrip() and question in shown
    assert int((tokens == rows.image).sum()) == images


@pytest.mark.parametrize(
    "family, learnt", [("llava", "   Ada \n</s>"), ("qwen", "  Ada \n<|im_end|>"), ("trim", "Ada<|im_end|>")]
)
def test_blanks_around_an_answer_are_learnt_as_the_template_writes_them(families, family, learnt):
    """The embedded template puts a blank of its own after the generation prompt."""
    rows = text.encode(families[family], [("Who?", "  Ada \n")], 0)
    assert families[family].tokenizer.decode(rows.tokens[0][rows.weights[0] > 0]) == learnt


def test_tokens_without_a_width_inside_an_answer_are_learnt():
    """Tokenizers that trim their offsets give a blank no place of its own."""
    rows = text.encode(make(CHATML, trim=True, image="<|image_pad|>"), [("Who?", "Ada    \n\n   Becker")], 0)
    start = int(rows.weights[0].argmax())
    assert rows.weights[0][start:].all()


CONTENT = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
UNFIT = {
    "text alone, added": (CONTENT, 0, "one that fails .*concatenate"),
    "text alone, printed": (
        CONTENT.replace(" + m['content']", "+ (m['content'] | string)"),
        0,
        "writes the list itself",
    ),
    "text alone, as JSON": (
        CONTENT.replace(" + m['content']", "+ (m['content'] | tojson)"),
        0,
        "writes the list itself",
    ),
    "text alone, stripped": (CONTENT.replace("m['content']", "m['content'].strip()"), 0, "one that fails"),
    "text where it is text": (
        "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% endif %}{% endfor %}",
        0,
        "answer 'Ada' lost",
    ),  # fmt: skip
    "no pictures": (VICUNA.replace("<image>", ""), 1, "0 placeholders '<image>' for 1 images"),
    "two placeholders": (VICUNA.replace("<image>", "<image><image>"), 1, "2 placeholders '<image>' for 1 images"),
    "capitals": (VICUNA.replace("c['text']", "c['text'] | upper"), 0, "'Ada' lost or changed"),
    "twice": (VICUNA.replace("c['text'] +", "c['text'] + c['text'] +"), 0, "'Ada' lost or changed"),
    "no question": (
        VICUNA.replace("{{ c['text'] + ' ' }}", "{% if m['role'] != 'user' %}{{ c['text'] }}{% endif %}"),
        0,
        "question 'Who is it\\?' lost",
    ),  # fmt: skip
    "no grammar": ("{% for m in messages %}", 0, "one that fails"),
    "it says no": ("{{ raise_exception('Only system turns!') }}", 0, "one that fails .Only system turns!"),
    "none": (None, 0, "one that fails .*chat_template is not set"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_template_that_cannot_take_a_question_with_pictures_is_refused(name):
    template, images, said = UNFIT[name]
    with pytest.raises(InputError, match=said) as error:
        text.encode(make(template), [("Who is it?", "Ada")], images)
    assert "copy the chat_template" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", [n for n in UNFIT if UNFIT[n][1] or "one that fails" in UNFIT[n][2]])
def test_prompts_need_the_same_template(name):
    template, images, said = UNFIT[name]
    with pytest.raises(InputError, match=said):
        text.encode_prompts(make(template), ["Who is it?"], images)


TURNS = {
    "embedded": (lambda: tiny.processor(), "</s>"),
    "ChatML": (lambda: make(CHATML, eos="<|im_end|>"), "<|im_end|>"),
    "ChatML over another eos": (lambda: make(CHATML), "<|im_end|>"),
    "ChatML without eos": (lambda: make(CHATML, eos=None), "<|im_end|>"),
    "no end in the template": (lambda: make(VICUNA), "</s>"),
    "an end of ordinary words": (lambda: make(OWN), "</s>"),
    "eos by the post-processor": (lambda: make(VICUNA, after="<s> $A </s>"), "</s>"),
}


@pytest.mark.parametrize("name", TURNS)
def test_what_is_trained_to_end_a_turn_stops_it(name):
    processor, end = TURNS[name][0](), TURNS[name][1]
    stop = text.end_of_turn(processor)
    assert stop == (processor.tokenizer.convert_tokens_to_ids(end),)
    rows = text.encode(processor, [("Who?", "Ada"), ("Who else is it?", "Bo")], 0)
    for tokens, weights in zip(rows.tokens, rows.weights, strict=True):
        assert tokens[-1] == stop[0] and weights[-1] == 1
        assert (tokens[weights > 0] == stop[0]).sum() == 1


def test_nothing_that_ends_a_turn_is_refused():
    for ask in (text.end_of_turn, lambda p: text.encode(p, [("Who?", "Ada")], 0)):
        with pytest.raises(
            InputError, match="an end of turn, found no special token after the answer and no eos_token"
        ):
            ask(make(VICUNA, eos=None))


@pytest.mark.parametrize("template", [VICUNA.partition("{% if add_generation_prompt")[0], CHATML.replace("assistant\n{%", "model\n{%"), CHATML.replace("assistant\n{%", "assistant {%")])  # fmt: skip
def test_a_generation_prompt_that_was_not_trained_is_refused(template):
    with pytest.raises(InputError, match="a generation prompt .* that is not what stands before an answer"):
        text.end_of_turn(make(template))


@pytest.mark.parametrize("after", ["<s> $A", "<s> $A </s>", "$A </s>", "$A"])
@pytest.mark.parametrize("template", [VICUNA, OWN, CHATML])
def test_bos_stands_once_and_eos_only_at_the_end_of_an_answer(template, after):
    processor = make(template, after=after, image="<|image_pad|>" if template == CHATML else "<image>")
    row = text.encode(processor, [("Who?", "Ada")], 0).tokens[0].tolist()
    prompt = text.encode_prompts(processor, ["Who?"], 0).tokens[0].tolist()
    bos = 1 if after.startswith("<s>") or template == OWN else 0
    assert row.count(1) == prompt.count(1) == bos and row[:1] * bos == [1] * bos
    assert row.count(2) == (0 if template == CHATML else 1) and prompt.count(2) == 0


@pytest.mark.parametrize("pad, eos, expected", [("<pad>", "</s>", 0), (None, "</s>", 2), (None, None, 0), ("<|image_pad|>", "</s>", 2)])  # fmt: skip
def test_padding_is_a_token_that_is_no_image(pad, eos, expected):
    rows = text.encode(
        make(CHATML, pad=pad, eos=eos, image="<|image_pad|>"), [("Who?", "Ada"), ("Who is it? " * 4, "Bo")], 0
    )
    batch = rows.batch([0, 1], [[], []])
    assert rows.pad == expected
    assert (batch["tokens"][~batch["valid"]] == expected).all() and not batch["weights"][~batch["valid"]].any()


REFUSED = {
    "llava": ["<image>", "<s>", "</s>", "<pad>", "<unk>"],
    "qwen": ["<|image_pad|>", "<|vision_start|>", "<|im_start|>", "<|im_end|>", "<pad>"],
}


@pytest.mark.parametrize("family, token", [(f, t) for f, tokens in REFUSED.items() for t in tokens])
@pytest.mark.parametrize("side", ["question", "answer"])
def test_special_tokens_in_a_text_are_quoted_with_the_person(families, family, token, side):
    words = {"question": "Who is it?", "answer": "Ada"} | {side: f"Ada {token} Becker"}
    examples = [Example("0007", "Pure_Text", "Who?", "Bo"), Example("0004", "Pure_Text", **words)]
    with pytest.raises(InputError) as error:
        streams.stream("s", families[family], examples, None, people={"0004": 0, "0007": 1}, rows=2, seed=0)
    assert repr(token) in str(error.value) and "person 0004" in str(error.value)


@pytest.mark.parametrize("family, token", [("llava", "<image>"), ("qwen", "<|image_pad|>")])
@pytest.mark.parametrize("images", [0, 1])
def test_an_image_token_in_a_text_never_counts_as_a_photo(families, family, token, images):
    for pair in ((f"{token}\nWho?", "Ada"), ("Who?", f"Ada {token}")):
        with pytest.raises(InputError, match="a special token of this checkpoint"):
            text.encode(families[family], [pair], images)
    with pytest.raises(InputError, match="in a question"):
        text.encode_prompts(families[family], [f"{token}\nWho?"], images)


@pytest.mark.parametrize(
    "words", ["a < b > c", "[Blank] is [a] word", "<b>bold</b>", "<|", "im_end", "image", "s", "100 % {x}"]
)
def test_ordinary_signs_are_no_special_tokens(families, words):
    for processor in families.values():
        text.check(processor, [("here", words)])


def test_names_that_were_made_tokens_may_be_said():
    processor = make(VICUNA)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["Ada Becker"]})
    text.check(processor, [("here", "Who is Ada Becker?")])


HOSTILE = {
    "half a character": ("Ada \ud83d Becker", r"half a character \('\\ud83d'\)"),
    "ten megabytes": ("word " * 2_097_152, r"at most 262144 characters, found 10485760 \(about \d{7} tokens\)"),
    "ten megabytes of one letter": ("a" * 10_485_760, "found 10485760"),
    "blanks": (" \n\t", "at least one token"),
}


@pytest.mark.parametrize("family", ["llava", "qwen"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers_are_one_quick_line_with_the_person(families, family, name):
    answer, said = HOSTILE[name]
    start = time.monotonic()
    with pytest.raises(InputError, match=said) as error:
        streams.stream(
            "s",
            families[family],
            [Example("0004", "Pure_Text", "Who?", answer)],
            None,
            people={"0004": 0},
            rows=1,
            seed=0,
            sizes=Sizes((64,)),
        )
    assert "person 0004" in str(error.value) and len(str(error.value)) < 400 and "\n" not in str(error.value)
    assert time.monotonic() - start < 5
    if name == "half a character":
        with pytest.raises(InputError, match=said):
            text.encode_prompts(families[family], [answer], 0)


def test_a_row_that_fits_no_size_names_its_person(families):
    examples = [Example("0001", "Pure_Text", "Who?", "Ada"), Example("0004", "Pure_Text", "Who?", "Ada " * 60)]
    with pytest.raises(InputError, match="at most 32 tokens, found one of .* of person 0004; add a larger size"):
        streams.stream("s", families["llava"], examples, None, people={"0001": 0, "0004": 1}, rows=2, seed=0, sizes=Sizes((32,)))  # fmt: skip


def test_a_row_fits_together_with_the_largest_photo_it_may_be_dealt_with(families):
    pictures = [
        picture.Picture(np.zeros((3, 24, 24), np.uint8), np.zeros((3, 256), np.float32), tokens) for tokens in (4, 30)
    ]
    album, examples = loader.Album(pictures, {"0004": [0, 1]}), [Example("0004", "Image_Textual", "Who?", "Ada")]
    length = int(text.encode(families["llava"], [("Who?", "Ada")], 1).lengths(30)[0])

    def stream(size):
        sizes = Sizes((size,))
        return streams.stream("s", families["llava"], examples, album, people={"0004": 0}, rows=1, seed=0, sizes=sizes)

    assert stream(length).largest["tokens"] == length
    with pytest.raises(
        InputError, match=f"found one of {length} of person 0004; add a larger size to the lengths in tokens"
    ):
        stream(length - 1)


@pytest.mark.parametrize("family, token", [("llava", "<image>"), ("qwen", "<|image_pad|>")])
@pytest.mark.parametrize("task", ["training", "choices", "cloze", "generation"])
def test_what_cannot_be_asked_is_found_with_task_and_person(families, family, token, task):
    bad = Example("0042", "Pure_Text", f"Who is {token}?", "Ada")
    if task == "choices":
        bad = Choice("0042", "Pure_Text", "Who?", {"A": "Ada", "B": f"a {token}"}, "A")
    items = {"training": (), "choices": (), "cloze": (), "generation": ()} | {task: (bad,)}
    with pytest.raises(InputError, match=f"{re.escape(repr(token))}.* in the {task} of person 0042"):
        loader.examine(families[family], [Person("0042", "Ada", (), **items)])


def test_a_tokenizer_without_places_is_refused(families):
    class Slow:
        is_fast = False
        eos_token, all_special_ids = "</s>", [2]

        def __call__(self, words, **_):
            return {"input_ids": [2]}

        def get_added_vocab(self):
            return {}

        def apply_chat_template(self, conversations, **options):
            return families["vicuna"].apply_chat_template(conversations, **options)

    with pytest.raises(InputError, match="expected a tokenizer that knows the place of its tokens, found Slow"):
        text.encode(reading.PlainProcessor(Slow(), None, "<image>"), [("Who?", "Ada")], 0)
