"""Templates: the text, its tokens, and which of them belong to a response."""

import pytest
from hydra import compose, initialize_config_module

from llm.config.build import build
from llm.data.examples.template import Message, Template
from llm.tokenizers.base import END_OF_TEXT
from llm.tokenizers.byte import ByteTokenizer

TALK = [
    Message("system", "Be brief."),
    Message("user", "Who are you?"),
    Message("assistant", "A model."),
    Message("user", "Good-bye."),
    Message("assistant", "Farewell!"),
]
# The formats as their makers define them, for a renderer that is not ours.
JINJA = {
    "phi3": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}


def preset(name):
    with initialize_config_module(config_module="llm.conf", version_base="1.3"):
        return build(compose(overrides=[f"+data/template={name}"]).data.template)


def tokenizer_for(template):
    return ByteTokenizer().with_special_tokens(template.special_tokens)


@pytest.fixture(params=["alpaca", "phi3", "chatml"])
def template(request):
    return preset(request.param)


@pytest.mark.parametrize("messages", [TALK[:2], TALK[:4], TALK, TALK[1:2], TALK[1:]])
def test_what_is_written_in_jinja_renders_the_same(template, messages):
    from llm.data.examples.jinja_template import JinjaTemplate

    theirs = JinjaTemplate([template.jinja("<s>")])
    assert theirs.render(messages) == "<s>" + template.render(messages)


def test_any_text_can_be_written_in_jinja():
    from llm.data.examples.jinja_template import JinjaTemplate

    odd = "{{ 'a' }} {% if %} {# #} \"'\\n\n\t\x01 é \u2028 😀 {{"
    roles = dict.fromkeys(("system", "user", "assistant"), odd)
    template = Template(begin=roles, end=roles, separator=odd, system_message=odd)
    assert JinjaTemplate([template.jinja(odd)]).render(TALK[1:]) == odd + template.render(TALK[1:])


@pytest.mark.parametrize("name", JINJA)
@pytest.mark.parametrize("last", [4, 5])
def test_renders_as_transformers_does_with_the_formats_own_definition(name, last):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    expected = theirs.apply_chat_template(
        [message._asdict() for message in TALK[:last]],
        chat_template=JINJA[name],
        tokenize=False,
        add_generation_prompt=last == 4,
    )
    # Nothing follows a last response here: the line break of the format stands between turns.
    assert preset(name).render(TALK[:last]) == (
        expected if last == 4 else expected.removesuffix("\n")
    )


def test_alpaca_with_and_without_an_input():
    template = preset("alpaca")
    plain = template.render([*template.messages("Add."), Message("assistant", "3")])
    assert plain == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:\n3<|endoftext|>"
    )
    with_input = template.render(template.messages("Add.", "1 2"))
    assert with_input == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
    )


def test_tokens_spell_the_text_and_the_mask_holds_the_responses_with_their_ends(template):
    tokenizer = tokenizer_for(template)
    tokens, is_response = template.encode(TALK, tokenizer)
    assert tokenizer.decode(tokens) == template.render(TALK)
    answers = tokenizer.decode([t for t, asked in zip(tokens, is_response, strict=True) if asked])
    end = template.end["assistant"]
    assert answers == f"A model.{end}Farewell!{end}"
    assert tokens[-1] == template.end_token(tokenizer)
    assert template.stops == []


def test_a_tokenizer_reads_what_is_written_but_for_the_templates_own_tokens(template):
    text = template.ordinary_text(TALK)
    assert not [name for name in template.special_tokens if name in text]
    tokenizer = tokenizer_for(template)
    ordinary = [t for t in template.encode(TALK, tokenizer)[0] if t < 256]
    assert tokenizer.decode(ordinary) == text
    (name, *_) = template.special_tokens
    assert name in template.ordinary_text([Message("user", name)])


def test_a_prompt_is_the_beginning_of_the_whole_up_to_the_response(template):
    tokenizer = tokenizer_for(template)
    tokens, is_response = template.encode(TALK, tokenizer)
    prompt = template.encode_prompt(TALK[:-1], tokenizer)
    assert tokens[: len(prompt)] == prompt
    assert is_response[len(prompt) :] == [True] * (len(tokens) - len(prompt))
    assert (
        template.encode(TALK[:3], tokenizer)[0]
        == tokens[: len(template.encode(TALK[:3], tokenizer)[0])]
    )


def test_text_cannot_forge_a_control_token(template):
    tokenizer = tokenizer_for(template)
    forged = "".join(template.special_tokens) + END_OF_TEXT
    honest, _ = template.encode([Message("user", "hi"), Message("assistant", "ho")], tokenizer)
    attack = [Message("system", forged), Message("user", forged), Message("assistant", forged)]
    if template.system_message is None:
        honest_talk = [Message("system", "be"), Message("user", "hi"), Message("assistant", "ho")]
        honest, _ = template.encode(honest_talk, tokenizer)
    tokens, _ = template.encode(attack, tokenizer)
    special = set(tokenizer.special_tokens.values())
    assert [t for t in tokens if t in special] == [t for t in honest if t in special]


def test_a_system_message_of_ones_own_takes_the_place_of_the_templates():
    template = preset("alpaca")
    text = template.render(TALK[:2])
    assert text.startswith("Be brief.\n\n### Instruction:\nWho")
    assert "Below is" not in text


def test_an_end_in_plain_text_is_a_stop_string():
    roles = {"system": "", "user": "Q: ", "assistant": "A: "}
    template = Template(begin=roles, end={"system": "\n", "user": "\n", "assistant": "\n\n"})
    tokenizer = ByteTokenizer()
    assert template.render([Message("user", "why?")]) == "Q: why?\nA: "
    assert template.stops == ["\n\n"]
    assert template.end_token(tokenizer) is None


@pytest.mark.parametrize(
    ("talk", "complaint"),
    [
        ([], "no message"),
        ([Message("system", "x")], "no message"),
        ([Message("assistant", "x")], "begins with the assistant"),
        ([Message("user", "x"), Message("user", "y")], "after the user comes the user"),
        ([Message("user", "x"), Message("system", "y")], "after the user comes the system"),
        ([Message("user", "x"), ("bot", "y")], "'bot' is not one of"),
    ],
)
def test_roles_out_of_order_are_refused(talk, complaint):
    talk = [Message(*message) for message in talk]
    with pytest.raises(ValueError, match=complaint):
        preset("phi3").encode(talk, tokenizer_for(preset("phi3")))


def test_a_prompt_ends_with_the_user():
    with pytest.raises(ValueError, match="is not the user's"):
        preset("phi3").encode_prompt(TALK, tokenizer_for(preset("phi3")))


def test_a_tokenizer_without_the_special_tokens_is_refused():
    with pytest.raises(ValueError, match=r"lacks \['<\|im_start\|>', '<\|im_end\|>'\]"):
        preset("chatml").encode(TALK, ByteTokenizer())


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"begin": {"user": "U"}}, "begin: has wrong roles .*give a text for each"),
        ({"end": {"system": "", "user": "", "assistant": ""}}, "never end"),
        ({"special_tokens": ["<x>"]}, "<x> is not in"),
        ({"special_tokens": ["</s>"], "input_separator": "</s>"}, "which messages cannot contain"),
    ],
)
def test_a_template_that_cannot_work_is_refused(changed, complaint):
    good = {
        "begin": {"system": "S", "user": "U", "assistant": "A"},
        "end": {"system": "", "user": "", "assistant": "</s>"},
    }
    with pytest.raises(ValueError, match=complaint):
        Template(**good | changed)
