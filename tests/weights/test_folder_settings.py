"""The settings of a folder: read as Hugging Face's library does, and exported unchanged."""

import json
import shutil

import pytest
import torch
from hydra import compose, initialize_config_module
from made_folders import SHAPES, make_folder, settings_in
from small_runs import run_command
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm.config.build import build
from llm.data.examples.template import Message
from llm.generation.generation_settings import GenerationSettings
from llm.generation.sampling import Sampler
from llm.generation.text_generation import complete_prompts, first_tokens
from llm.weights.auto import open_weights
from llm.weights.folder_settings import read_settings

TALK = [
    Message("user", "the cat"),
    Message("assistant", "sat on the mat."),
    Message("user", " Don't they? "),
    Message("assistant", "123 (both)"),
]
SYSTEM = Message("system", "Be kind.")
TEXTS = ["the cat sat", " on the mat ", "📚 né\n\n", ""]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    return {name: make_folder(shape, root / name) for name, shape in SHAPES.items()}


@pytest.fixture(params=SHAPES)
def folder(request, folders):
    return folders[request.param]


@pytest.fixture
def weights(folder):
    return open_weights(str(folder))


def plain(messages):
    return [{"role": message.role, "content": message.content} for message in messages]


def export(*overrides):
    with initialize_config_module("llm.conf", version_base="1.3"):
        return run_command(compose("export", ["weights=auto", *overrides]))


@pytest.mark.parametrize("messages", [TALK[:1], TALK[:3], [SYSTEM, TALK[0]]])
def test_prompt_tokens_equal_those_of_transformers(folder, weights, messages):
    theirs = AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(plain(messages), add_generation_prompt=True)["input_ids"]
    template, tokenizer = build(weights.config.data.template), weights.tokenizer()
    assert template.encode_prompt(messages, tokenizer) == expected
    text = theirs.apply_chat_template(plain(messages), add_generation_prompt=True, tokenize=False)
    assert template.render(messages) == text


@pytest.mark.parametrize("messages", [TALK[:2], TALK, [SYSTEM, *TALK]])
def test_only_responses_and_their_end_tokens_are_trained(folder, weights, messages):
    theirs = AutoTokenizer.from_pretrained(folder)
    template, tokenizer = build(weights.config.data.template), weights.tokenizer()
    tokens, is_response = template.encode(messages, tokenizer)
    whole = theirs.apply_chat_template(plain(messages))["input_ids"]
    assert tokens == whole[: len(tokens)]
    assert theirs.decode(whole[len(tokens) :]).strip() == ""
    prompt = template.encode_prompt(messages[:-1], tokenizer)
    assert tokens[: len(prompt)] == prompt
    assert is_response[len(prompt) :] == [True] * (len(tokens) - len(prompt))
    end = template.end_token(tokenizer)
    assert tokens[-1] == end
    learned = tokenizer.decode([t for t, asked in zip(tokens, is_response, strict=True) if asked])
    answers = [part.strip() for part in learned.split(tokenizer.decode([end])) if part.strip()]
    said = [message.content for message in messages if message.role == "assistant"]
    assert [answer.replace("<think>\n\n</think>\n\n", "") for answer in answers] == said


def test_text_tokens_equal_those_of_transformers(folder, weights):
    theirs, ours = AutoTokenizer.from_pretrained(folder), weights.tokenizer()
    for text in TEXTS:
        found = [*ours.ends[0], *ours.encode(text)]
        assert theirs(text)["input_ids"] == found
    assert ours.end_of_text == theirs.eos_token_id


def test_each_end_token_of_the_generation_settings_is_read(folder, weights):
    expected = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    ends = {*expected} if isinstance(expected, list) else {expected}
    tokenizer = weights.tokenizer()
    assert tokenizer.end_tokens == ends | {tokenizer.end_of_text}
    more = tokenizer.with_special_tokens(["<|another|>"])
    assert more.end_tokens == tokenizer.end_tokens
    assert type(more)(**more.state()).end_tokens == tokenizer.end_tokens


def test_special_tokens_are_not_text_and_each_end_token_ends_it(folders):
    weights = open_weights(str(folders["llama3"]))
    tokenizer, model = weights.tokenizer(), weights.model()
    header = tokenizer.special_tokens["<|start_header_id|>"]
    for end in SHAPES["llama3"].ends:
        script = [*tokenizer.encode("at"), header, *tokenizer.encode("on")]
        script += [tokenizer.special_tokens[end], *tokenizer.encode("not this")]

        class Scripted(Sampler):
            def __call__(self, logits, uniform, *, seen=None, script=script):
                return torch.tensor([script.pop(0)])

        assert complete_prompts(
            model,
            tokenizer,
            prompts=["the c"],
            settings=GenerationSettings(max_tokens=20, sampler=Scripted()),
        ) == ["aton"]


@pytest.mark.parametrize("shape", ["smollm2", "llama2", "llama3"])
def test_import_and_export_keep_the_settings(shape, folders, tmp_path):
    folder, out = folders[shape], tmp_path / "out"
    export(f"weights.path={folder}", f"output={out}")
    assert settings_in(out) == settings_in(folder)
    theirs = [AutoModelForCausalLM.from_pretrained(each, dtype="auto") for each in (folder, out)]
    assert theirs[0].dtype == theirs[1].dtype == SHAPES[shape].dtype
    for name, tensor in theirs[0].state_dict().items():
        assert torch.equal(tensor, theirs[1].state_dict()[name])
    tokenizers = [AutoTokenizer.from_pretrained(each) for each in (folder, out)]
    assert tokenizers[0].special_tokens_map == tokenizers[1].special_tokens_map
    prompts = [
        each.apply_chat_template(
            plain(TALK[:1]), add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        for each in tokenizers
    ]
    assert torch.equal(prompts[0]["input_ids"], prompts[1]["input_ids"])
    made = [
        model.generate(
            **prompt, max_new_tokens=8, do_sample=False, top_k=None, temperature=None, top_p=None
        )
        for model, prompt in zip(theirs, prompts, strict=True)
    ]
    assert torch.equal(*made)
    again = tmp_path / "again"
    export(f"weights.path={out}", f"output={again}", "dtype=float32")
    assert settings_in(again) == {**settings_in(folder), "dtype": "float32"}


def test_exported_model_stops_at_each_of_several_end_tokens(folders, tmp_path):
    out = tmp_path / "out"
    export(f"weights.path={folders['llama3']}", f"output={out}")
    model = AutoModelForCausalLM.from_pretrained(out)
    ends = model.generation_config.eos_token_id
    assert len(ends) == 3
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        for end in ends:
            model.lm_head.weight.zero_()
            model.lm_head.weight[end] = model.model(torch.tensor([[0]])).last_hidden_state[0, 0]
            made = model.generate(torch.tensor([[0]]), max_new_tokens=5, do_sample=False)
            assert made[0, 1:].tolist() == [end]


def change(folder, name, **values):
    file = folder / name
    found = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({k: v for k, v in (found | values).items() if v is not None}))


@pytest.fixture
def copied(folders, tmp_path):
    return shutil.copytree(folders["smollm2"], tmp_path / "copied")


def test_files_have_the_same_precedence_as_in_transformers(copied):
    (copied / "generation_config.json").unlink()
    change(copied, "config.json", eos_token_id=[2, 0])
    assert read_settings(copied).end_ids == [2, 0]
    change(copied, "generation_config.json", eos_token_id=1)
    assert read_settings(copied).end_ids == [1]

    (copied / "chat_template.jinja").unlink()
    change(copied, "tokenizer_config.json", chat_template="{{ 'one' }}")
    assert read_settings(copied).chat_template == "{{ 'one' }}"
    named = [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]
    change(copied, "tokenizer_config.json", chat_template=named)
    assert read_settings(copied).chat_template == "b"
    assert AutoTokenizer.from_pretrained(copied).get_chat_template() == "b"
    (copied / "chat_template.jinja").write_text("c")
    assert read_settings(copied).chat_template == "c"
    assert AutoTokenizer.from_pretrained(copied).get_chat_template() == "c"

    change(
        copied, "special_tokens_map.json", eos_token={"content": "<|endoftext|>", "lstrip": False}
    )
    theirs = AutoTokenizer.from_pretrained(copied)
    assert read_settings(copied).tokens["eos_token"] == theirs.eos_token == "<|endoftext|>"
    change(copied, "tokenizer_config.json", added_tokens_decoder={})
    theirs = AutoTokenizer.from_pretrained(copied)
    assert read_settings(copied).tokens["eos_token"] == theirs.eos_token == "<|im_end|>"


def test_a_token_with_a_role_is_special(copied):
    """Even if tokenizer.json lists it as an ordinary token, or only in the vocabulary."""
    file = copied / "tokenizer.json"
    definition = json.loads(file.read_text())
    end = next(t for t in definition["added_tokens"] if t["content"] == "<|im_end|>")
    end["special"] = False
    file.write_text(json.dumps(definition))
    tokenizer = open_weights(str(copied)).tokenizer()
    assert tokenizer.end_of_text == end["id"]
    assert tokenizer.encode("<|im_end|>") != [end["id"]]
    definition["added_tokens"].remove(end)
    definition["model"]["vocab"]["<|im_end|>"] = end["id"]
    file.write_text(json.dumps(definition))
    assert open_weights(str(copied)).tokenizer().end_of_text == end["id"]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("config.json", {"eos_token_id": "two"}, r"ids.eos_token_id: 'two' is not a token id"),
        (
            "generation_config.json",
            {"eos_token_id": [1, "a"]},
            r"generation.eos_token_id: \[1, 'a'\]",
        ),
        ("tokenizer_config.json", {"eos_token": {"content": 5}}, "eos_token: 5 is not the name"),
        ("tokenizer_config.json", {"eos_token": "${oc.env:HOME}"}, "eos_token: .* is not the name"),
    ],
)
def test_a_setting_of_another_type_is_named(name, values, message, copied):
    change(copied, name, **values)
    with pytest.raises(ValueError, match=message):
        read_settings(copied)


def test_interpolations_in_a_template_are_not_resolved(copied, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    (copied / "chat_template.jinja").write_text(
        "${oc.env:SECRET}\n{{ messages[0].content }}<|im_end|>"
    )
    template = build(open_weights(str(copied)).config.data.template)
    assert template.render(TALK[:1]) == "${oc.env:SECRET}\nthe cat<|im_end|>"


def test_empty_prompt_starts_with_the_first_token_of_a_text(folders):
    for name, expected in {"llama2": [1], "smollm2": None}.items():
        tokenizer = open_weights(str(folders[name])).tokenizer()
        assert first_tokens(tokenizer, "") == (expected or [tokenizer.end_of_text])
