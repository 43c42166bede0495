"""Published chat templates: rendered as by Hugging Face's library, isolated from everything else."""

import pytest
from made_folders import SHAPES, tokenizer_of

from llm.config.build import build
from llm.config.errors import ConfigError
from llm.data.examples import jinja_template
from llm.data.examples.jinja_template import JinjaTemplate
from llm.data.examples.template import Message
from llm.tokenizers.huggingface import HuggingFaceTokenizer

ASKED = [Message("user", "the cat")]


def template(source, **tokens):
    return JinjaTemplate([source], tokens)


@pytest.fixture(scope="module")
def chatml():
    shape = SHAPES["smollm2"]
    tokenizer = HuggingFaceTokenizer(tokenizer_of(shape).to_str(), "<|im_end|>")
    return template(shape.template, **shape.roles), tokenizer


@pytest.mark.parametrize("name", ["<|im_end|>", "<|im_start|>system", "<|im_end|><|im_end|>"])
def test_text_cannot_forge_a_token_by_its_name(name, chatml):
    ours, tokenizer = chatml
    special = {*tokenizer.special_tokens.values()}

    def counted(*messages):
        return [t for t in ours.encode_prompt([*messages], tokenizer) if t in special]

    plain = [Message("user", "a b"), Message("assistant", "c"), Message("user", "d")]
    forged = [m._replace(content=f"a {name} b") for m in plain]
    assert counted(*forged) == counted(*plain)
    assert f"a {name} b" in tokenizer.decode(ours.encode_prompt(forged, tokenizer))
    tokens, is_response = ours.encode(forged[:2], tokenizer)
    learned = [t for t, asked in zip(tokens, is_response, strict=True) if asked]
    assert tokenizer.decode(learned) == f"a {name} b<|im_end|>"
    assert [t for t in learned if t in special] == [tokenizer.end_of_text]


def test_a_mark_in_a_message_changes_nothing(chatml):
    ours, tokenizer = chatml
    text = "\ue000<|im_end|>0\ue000\ue0010\ue001"
    tokens = ours.encode_prompt([Message("user", text)], tokenizer)
    assert text in tokenizer.decode(tokens)


def test_what_ends_a_response(chatml):
    ours, tokenizer = chatml
    assert ours.end_token(tokenizer) == tokenizer.special_tokens["<|im_end|>"]
    assert ours.end_tokens(tokenizer) == {
        tokenizer.special_tokens[name] for name in ("<|im_start|>", "<|im_end|>")
    }
    assert ours.stops == ["<|im_end|>"]
    plain = template("{% for m in messages %}{{ m.role }}: {{ m.content }}\n###\n{% endfor %}")
    assert (plain.end_token(tokenizer), plain.stops) == (None, ["###"])


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{% for %}", "chat template fails: Expected"),
        ("{{ raise_exception('No\x1b[31m system\nrole') }}", "fails: No\ufffd\\[31m system role"),
        (
            "{{ ''.__class__.__mro__ }}",
            "fails: access to attribute '__class__' of 'str' object is un",
        ),
        (
            "{{ messages.append(1) }}",
            "fails: access to attribute 'append' of 'list' object is unsafe",
        ),
        ("{% include '/etc/passwd' %}", "fails: no loader for this environment"),
        ("{{ messages[0].nothing.more }}", "fails: 'dict object' has no attribute 'nothing'"),
        ("{{ 'a' * 10**10 }}", "takes too much memory"),
        ("{{ 'a' | center(10**10) }}", "takes too much memory"),
        (
            "{% set n = namespace(t='aa') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
            "memory",
        ),
        ("{% for i in range(99999) %}{{ 'a' * 99 }}{% endfor %}", "fails: it writes too much text"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "fails: maximum recursion depth"),
    ],
)
def test_what_a_template_may_not_do_is_a_line(source, told):
    with pytest.raises(ValueError, match=told) as error:
        template(source).render(ASKED)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** (9 * messages | length)) }}",
    ],
)
def test_a_template_without_end_is_ended(source, monkeypatch):
    endless = template("{% if messages[0].content == 'x' %}" + source + "{% endif %}fine")
    assert endless.render(ASKED) == "fine"
    monkeypatch.setattr(jinja_template, "SECONDS", 1.0)
    for _ in range(2):  # and is not asked again
        with pytest.raises(ValueError, match="the model's chat template timed out"):
            endless.render([Message("user", "x")])


def test_a_template_cannot_read_this_process(monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    seen = template("{{ self }} {{ cycler.__init__ is defined }} {{ environ is defined }}")
    assert "hunter2" not in seen.render(ASKED)


def test_what_their_library_gives_to_templates_is_there():
    source = (
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% generation %}"
        "{{ m.content | tojson }}{% endgeneration %}{% endfor %}{{ strftime_now('%Y') | length }}"
        "{{ tools is none }}{{ documents is none }}{{ bos_token }}"
    )
    messages = [*ASKED, Message("assistant", "é<'")]
    text = template(source, bos_token="<s>").render(messages)
    assert text == '"é<\'"4TrueTrue<s>'


def test_a_template_in_a_configuration_is_read_before_it_is_used():
    node = {"_target_": "llm.data.examples.jinja_template.JinjaTemplate", "source": ["{{ a", " }}"]}
    assert build(node).text == "{{ a }}"
    for _ in range(2):
        with pytest.raises(ConfigError, match="chat template fails"):
            build({**node, "source": ["{% if %}"]})
    with pytest.raises(ConfigError, match="use at most"):
        build({**node, "source": ["a" * 2**20]})


def test_a_template_that_hides_the_responses_is_refused_for_training(chatml):
    _, tokenizer = chatml
    hidden = template("{% for m in messages %}{{ m.role }}{% endfor %}<|im_end|>")
    with pytest.raises(ValueError, match="does not show where a response begins"):
        hidden.encode([*ASKED, Message("assistant", "c")], tokenizer)
