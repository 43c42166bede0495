"""`llm export`: a run or published files, written to a folder."""

import json
import sys
from pathlib import Path

import forked
import pytest
import torch
from hydra import compose, initialize_config_module
from llama_cpp import in_llama_cpp, needs_llama_cpp
from made_folders import SHAPES, make_folder, settings_in, tokenizer_of
from small_runs import command_of, run_command
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from llm import __main__ as command_line
from llm.commands import export
from llm.config.build import build
from llm.config.errors import ConfigError
from llm.data.examples.template import Message, stored_template
from llm.tokenizers.huggingface import HuggingFaceTokenizer
from llm.weights.auto import open_weights
from llm.weights.run import RunWeights
from llm.weights.tokenizer_files import as_huggingface

TOKENS = torch.randint(257, (2, 16), generator=torch.Generator().manual_seed(0))
ORIGINAL = Path(__file__).parents[1] / "weights" / "openai" / "original"


def exported(*overrides):
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("export", list(overrides))
    return run_command(config)


@pytest.fixture
def base(composed, tmp_path):
    return run_command(composed("model=gpt2", "trainer.max_steps=2"), tmp_path / "base")


@torch.no_grad()
def test_a_run_is_exported_and_trained_further(base, composed, tmp_path, capsys):
    folder = tmp_path / "out"
    exported(f"weights.path={base.path}", f"output={folder}")
    printed = capsys.readouterr().out
    assert "model.safetensors" in printed
    assert f"AutoTokenizer.from_pretrained('{folder}')" in printed
    assert f"llm train weights=auto weights.path={folder}" in printed
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    state = torch.load(base.best, weights_only=True)["state_dict"]
    expected = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    assert torch.equal(theirs.transformer.wte.weight, expected["embedding.weight"])

    overrides = ["weights=gpt2", f"weights.path={folder}", "trainer.max_steps=1"]
    config = composed(*overrides)
    config.optimizer.lr = 0.0
    with torch.enable_grad():
        further = run_command(config, tmp_path / "further", ["weights=gpt2"])
    after = torch.load(further.last, weights_only=True)["state_dict"]
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())


def test_export_of_another_run_is_not_overwritten(base, composed, tmp_path, capsys):
    words = [f"weights.path={base.path}", f"output={tmp_path / 'out'}"]
    exported(*words)
    exported(*words)  # the same run may be exported again
    other = run_command(composed("model=gpt2", "trainer.max_steps=1"), tmp_path / "other")
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="contains the export of another model or run"):
        exported(f"weights.path={other.path}", words[1])
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    exported(f"weights.path={other.path}", words[1], "overwrite=true")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    """Questions with answers."""
    rows = [{"instruction": f"the {word}?", "output": f"a {word}."} for word in "abcdefghijkl"]
    path = tmp_path_factory.mktemp("talk") / "talk.json"
    path.write_text(json.dumps(rows))
    return path


def instructed(folder, talk, directory, *words):
    """A run that finetuned a published chat model."""
    words = [
        *("experiment=instruct", "weights=auto", f"weights.path={folder}"),
        *("data=instruction", f"data.path={talk}", "data.test_fraction=0", "data.batch_size=4"),
        *("hardware=cpu", "hardware.precision=32", "hardware.threads=1"),
        *("callbacks.picture=null", "callbacks.response_samples=null"),
        *("trainer.max_epochs=null", "trainer.max_steps=1", *words),
    ]
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("train", words)
    with torch.enable_grad():
        return run_command(config, directory, words)


ASKED = [{"role": "user", "content": "the c?"}]


@torch.no_grad()
def test_a_chat_model_is_trained_and_exported_with_its_own_template(talk, tmp_path, capsys):
    folder = make_folder(SHAPES["llama3"], tmp_path / "folder")
    run = instructed(folder, talk, tmp_path / "run", "adapter=lora")
    assert "new tokens" not in capsys.readouterr().out
    exported(f"weights.path={run.path}", f"output={tmp_path / 'out'}", "dtype=bfloat16")
    assert settings_in(tmp_path / "out") == settings_in(folder)
    further = instructed(
        folder, talk, tmp_path / "further", "weights=run", f"weights.path={run.path}"
    )
    exported(f"weights.path={further.path}", f"output={tmp_path / 'again'}")
    assert settings_in(tmp_path / "again") == {**settings_in(folder), "dtype": "float32"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    state = torch.load(further.best, weights_only=True)["state_dict"]
    assert torch.equal(model.lm_head.weight, state["model.head.weight"])
    prompt = AutoTokenizer.from_pretrained(tmp_path / "again").apply_chat_template(
        ASKED, add_generation_prompt=True
    )["input_ids"]
    weights = RunWeights(str(further.path))
    template, tokenizer = stored_template(weights.config), weights.tokenizer()
    assert template.encode_prompt([Message("user", "the c?")], tokenizer) == prompt
    assert {*model.generation_config.eos_token_id} == tokenizer.end_tokens


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A chat model that learned to answer every question with "a fish."."""
    base = tmp_path_factory.mktemp("taught")
    folder = make_folder(SHAPES["smollm2"]._replace(dtype=torch.float32), base / "folder")
    rows = [{"instruction": f"the {word}?", "output": "a fish."} for word in "abcdefghijkl"]
    (base / "talk.json").write_text(json.dumps(rows))
    words = ("optimizer.lr=0.01", "trainer.max_steps=80")
    return instructed(folder, base / "talk.json", base / "run", *words)


@torch.no_grad()
def test_finetuned_chat_model_stops_in_transformers(taught, tmp_path):
    exported(f"weights.path={taught.path}", f"output={tmp_path / 'out'}")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer.apply_chat_template(
        ASKED, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(**prompt, do_sample=False, max_new_tokens=40)
    new = made[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(new) == "a fish.<|im_end|>"


@needs_llama_cpp
def test_finetuned_chat_model_stops_in_llama_cpp(taught, tmp_path):
    file = tmp_path / "model.gguf"
    exported(f"weights.path={taught.path}", "format=gguf", f"output={file}")
    weights = RunWeights(str(taught.path))
    template, tokenizer = stored_template(weights.config), weights.tokenizer()
    ids = template.encode_prompt([Message("user", "the c?")], tokenizer)
    (result,) = in_llama_cpp(file, [{"prompt": "the", "ids": ids, "number": 40, "stops": True}])
    assert tokenizer.decode(result["greedy"]) == "a fish."


@torch.no_grad()
def test_our_template_is_exported_with_its_end_token(talk, tmp_path, capsys):
    folder = make_folder(SHAPES["smollm2"], tmp_path / "folder")
    run = instructed(folder, talk, tmp_path / "run", "data/template=phi3", "adapter=lora")
    names = "<|system|>, <|user|>, <|assistant|>, <|end|>"
    assert f"note      {names}: new tokens" in capsys.readouterr().out
    exported(f"weights.path={run.path}", f"output={tmp_path / 'out'}")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert end == tokenizer.eos_token_id
    # The end token of our template, and that of the folder.
    assert model.generation_config.eos_token_id == [end, 294]
    weights = RunWeights(str(run.path))
    ours = stored_template(weights.config).encode_prompt(
        [Message("user", "the c?")], weights.tokenizer()
    )
    theirs = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True)["input_ids"]
    assert ours == theirs


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["chatml", "phi3", "alpaca"])
def test_exported_template_encodes_a_prompt_as_in_training(shape, name, capsys):
    """This includes tokenizers that put a space before each text, and so before each piece of a template."""
    with initialize_config_module("llm.conf", version_base="1.3"):
        template = build(compose("chat", [f"template={name}", "weights.path=none"]).template)
    before = HuggingFaceTokenizer(tokenizer_of(SHAPES[shape]).to_str())
    tokenizer = before.with_special_tokens(template.special_tokens)
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=as_huggingface(tokenizer),
        chat_template=export.as_jinja(template, tokenizer, {}),
    )
    assert "note" not in capsys.readouterr().out
    messages = [
        *(Message("system", "the (mat)"), Message("user", "the c?")),
        *(Message("assistant", "Don't."), Message("user", "on the mat")),
    ]
    for given in (messages, messages[1:], messages[1:2]):
        asked = [{"role": message.role, "content": message.content} for message in given]
        found = theirs.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
        assert found == template.encode_prompt(given, tokenizer)


@pytest.mark.parametrize("experiment", ["instruct", "prefer", "reward", "grpo"])
def test_finetuned_chat_model_is_exported_with_the_template_of_its_base(experiment, tmp_path):
    folder = make_folder(SHAPES["qwen3"], tmp_path / "folder")
    words = [f"experiment={experiment}", "weights=auto", f"weights.path={folder}"]
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("train", words + ["reward=length"] * (experiment == "grpo"))
    template = build(command_of(config, ".", words).tree.data.template)
    assert template.text == SHAPES["qwen3"].template
    chosen = [*words, "data/template=alpaca"]
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("train", chosen + ["reward=length"] * (experiment == "grpo"))
    tree = command_of(config, ".", chosen).tree
    assert tree.data.template.separator == "\n\n"


def test_openai_weights_are_exported_for_hugging_face(tmp_path):
    exported("weights=gpt2", f"weights.path={ORIGINAL}", f"output={tmp_path / 'out'}")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = AutoModelForCausalLM.from_pretrained(ORIGINAL.with_name("converted"))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)


def test_export_fails_with_one_line_before_anything_is_read(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    words = ["weights=gpt2", f"weights.path={ORIGINAL}", f"output={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["llm", "export", *words])
    with pytest.raises(SystemExit) as left:
        command_line.main()
    assert left.value.code == 2
    printed = capsys.readouterr().err
    assert "contains files that no export wrote" in printed
    assert "Traceback" not in printed
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


@torch.no_grad()
def test_adapter_is_merged_into_the_export(base, composed, tmp_path):
    overrides = ["weights=run", f"weights.path={base.path}", "adapter=lora"]
    config = composed(*overrides, "trainer.max_steps=3", "optimizer.lr=0.1")
    with torch.enable_grad():
        run = run_command(config, tmp_path / "lora", overrides)
    exported(f"weights.path={run.path}", f"output={tmp_path / 'out'}")
    adapted = RunWeights(str(run.path)).model()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(theirs(TOKENS).logits, adapted(TOKENS), rtol=0, atol=1e-5)
    before = RunWeights(str(base.path)).model()
    assert not torch.allclose(before(TOKENS), adapted(TOKENS), atol=1e-3)


@torch.no_grad()
def test_default_model_and_finetunes_of_it_are_exported(talk, tmp_path, monkeypatch, capsys):
    """The model of `make train`, an instruction run on it, and an adapter on that."""
    monkeypatch.chdir(tmp_path)
    short = ["trainer.max_steps=2", "trainer.val_batches=1", "callbacks.samples=null"]
    done = forked.run(["train", "name=base", "hardware=cpu", "hardware.precision=32", *short])
    assert done.returncode == 0, done.stderr
    base = tmp_path / "outputs" / "pretraining" / "base"
    chat = instructed(base, talk, tmp_path / "chat", "weights=run", f"weights.path={base}")
    words = ["weights=run", f"weights.path={chat.path}", "adapter=lora"]
    adapted = instructed(chat.path, talk, tmp_path / "adapted", *words)
    for path in (base, chat.path, adapted.path):
        folder = tmp_path / f"{path.name}_out"
        exported(f"weights.path={path}", f"output={folder}")
        ours, theirs = RunWeights(str(path)).model(), AutoModelForCausalLM.from_pretrained(folder)
        tokens = TOKENS % ours.vocab_size
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), rtol=0, atol=1e-5)
        assert theirs.config.model_type == "qwen3"
        assert theirs.config.hidden_act == "silu"
        asked = AutoTokenizer.from_pretrained(folder)("def train(", return_tensors="pt")
        made = theirs.generate(**asked, max_new_tokens=12, do_sample=False)[0, -12:]
        cache = ours.new_cache(1)
        step = ours(asked["input_ids"], cache=cache)
        found = []
        for _ in range(12):
            found.append(step[:, -1].argmax(dim=-1, keepdim=True))
            step = ours(found[-1], cache=cache)
        assert torch.equal(torch.cat(found, dim=1)[0], made)
    assert (tmp_path / "adapted_out" / "chat_template.jinja").is_file()


@pytest.fixture
def refused(monkeypatch, capsys):
    """refused(*words) runs `llm export`, which must fail with one line, and returns it."""

    def refused(*words):
        monkeypatch.setattr(sys, "argv", ["llm", "export", *words])
        with pytest.raises(SystemExit) as left:
            command_line.main()
        printed = capsys.readouterr().err
        assert left.value.code == 2, printed
        assert "Traceback" not in printed
        return printed

    return refused


@torch.no_grad()
def test_a_run_is_exported_as_gguf_and_read_again(composed, tmp_path, capsys):
    words = ("size.dim=32", "trainer.max_steps=2")
    run = run_command(composed(*words), tmp_path / "run")
    file = tmp_path / "out" / "model.gguf"
    exported("format=gguf", f"weights.path={run.path}", f"output={file}")
    printed = capsys.readouterr().out
    assert "Modelfile" in printed
    assert f"llm train weights=gguf weights.path={file}" in printed
    back = open_weights(str(file))
    expected = RunWeights(str(run.path)).model()(TOKENS)
    assert torch.equal(back.model()(TOKENS), expected)
    exported("format=gguf", "weights=gguf", f"weights.path={file}", f"output={tmp_path / 'b.gguf'}")
    exported("weights=auto", f"weights.path={file}", f"output={tmp_path / 'folder'}")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    torch.testing.assert_close(theirs(TOKENS).logits, expected, rtol=0, atol=1e-5)


def test_what_a_gguf_file_cannot_hold_is_refused_in_one_line(composed, tmp_path, refused):
    given = composed("model/feed_forward=relu_squared", "trainer.max_steps=2")
    run = run_command(given, tmp_path / "run")
    words = (f"weights.path={run.path}", f"output={tmp_path / 'out' / 'model.gguf'}")
    assert "hidden_act=relu is not what llama.cpp computes" in refused("format=gguf", *words)
    assert "train with model/feed_forward=swiglu" in refused("format=gguf", *words)
    assert "dtype: q8_0 is a type of GGUF files; add format=gguf" in refused("dtype=q8_0", *words)
    folder = refused("format=gguf", words[0], f"output={tmp_path / 'out'}")
    assert "is not the name of a GGUF file; name one such as model.gguf" in folder
    assert not (tmp_path / "out").exists()


def test_a_missing_library_is_named(composed, tmp_path, refused, monkeypatch):
    run = run_command(composed("trainer.max_steps=2"), tmp_path / "run")
    monkeypatch.setitem(sys.modules, "gguf", None)
    words = (f"weights.path={run.path}", f"output={tmp_path / 'out' / 'model.gguf'}")
    printed = refused("format=gguf", *words)
    assert "GGUF: needs gguf; run pip install 'llm-hydra[gguf]'" in printed
    assert not (tmp_path / "out").exists()
