"""`llm chat`: needs only a run directory; Ctrl-C stops the response, not the chat."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import torch
from hydra import compose, initialize_config_module
from made_folders import SHAPES, make_folder
from omegaconf import OmegaConf
from small_runs import run_command

from llm.checkpoints.checkpoint_file import save_checkpoint
from llm.config.build import build
from llm.config.errors import ConfigError
from llm.runs import Run
from llm.tokenizers.byte import ByteTokenizer

WORDS = ("hardware.accelerator=cpu", "hardware.threads=1", "sampler.temperature=0")
CONTEXT = 2048


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run whose model always generates the letter a and never the end."""
    return constant_run(tmp_path_factory.mktemp("chatting"), f"size.context_length={CONTEXT}")


def constant_run(folder: Path, *words: str) -> Run:
    """Make a run whose model always generates the letter a and never the end."""
    run = Run(folder)
    words = ("size=nano", "model.vocab_size=257", "model.tie_weights=false", *words)
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("train", [*words])
    OmegaConf.save(config, run.config, resolve=True)
    ByteTokenizer().save(run.tokenizer)
    model = build(config.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(0.0 if name.startswith(("blocks", "head")) else 1.0)
        model.head.weight[ord("a")] = 1.0
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_checkpoint({"state_dict": state}, run.best)
    return run


def trained_on(run: Run, template: str) -> None:
    """Set the template in the config of a run."""
    with initialize_config_module("llm.conf", version_base="1.3"):
        node = compose("chat", [f"template={template}"]).template
    config = OmegaConf.load(run.config)
    config.data.template = node
    OmegaConf.save(config, run.config)


def talk(run: Run, lines: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Return the output of `llm chat` for lines from a pipe."""
    return forked.run(["chat", f"weights.path={run.path}", *WORDS, *words], lines)


def test_pipe_contains_only_responses(run, tmp_path):
    saved = tmp_path / "talk.json"
    done = talk(run, f"Grüße\n/nothing\nb\n/save {saved}\n", "template=plain", "max_tokens=9")
    assert done.stdout == "aaaaaaaaa\naaaaaaaaa\n"
    assert done.returncode == 0
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == [
        "/nothing",
        f"4 messages are in {saved}",
    ]
    (row,) = json.loads(saved.read_text("utf-8"))
    assert row["messages"][0] == {"role": "user", "content": "Grüße"}


DROPPED = "the conversation is longer than the context of 64 tokens: from now on its oldest turns are left out\n"


@pytest.mark.parametrize(
    ("words", "notes"),
    [
        (["model=lstm"], ""),
        (["model=mamba2"], ""),
        (["model=mistral", "model.mask.size=8"], ""),
        (["model=gpt2", "model/mask=sliding_window", "model.mask.size=8"], DROPPED),
        (["model=llama"], DROPPED),
    ],
)
def test_model_with_a_bounded_state_reads_all_turns(words, notes, tmp_path):
    run = constant_run(tmp_path, "size.context_length=64", *words)
    done = talk(run, "one\ntwo\nthree\nfour\n", "template=plain", "max_tokens=20")
    assert (done.stdout, done.stderr) == (4 * f"{20 * 'a'}\n", notes)


@pytest.mark.filterwarnings("ignore:.*are in the training part too")  # on purpose
def test_saved_conversation_is_instruction_data(run, tmp_path):
    saved = tmp_path / "talk.jsonl"
    lines = f"/system Be brief.\none\ntwo\n/save {saved}\n"
    talk(run, lines, "template=plain", "max_tokens=3")
    paths = [f"data.{part}path={saved}" for part in ("", "validation_", "test_")]
    words = ["experiment=instruct", "data=instruction", "tokenizer=byte", *paths]
    with initialize_config_module("llm.conf", version_base="1.3"):
        data = build(compose("train", words).data)
    data.prepare_data()
    (conversation,) = data.raw["validation"]
    assert [(message.role, message.content) for message in conversation.messages] == [
        ("system", "Be brief."),
        *(("user", "one"), ("assistant", "aaa"), ("user", "two"), ("assistant", "aaa")),
    ]


def test_lightning_is_not_imported(run):
    code = (
        "import sys; from llm.__main__ import main\n"
        f"sys.argv = ['llm', 'chat', 'weights.path={run.path}', 'template=plain', *{WORDS!r}]\n"
        "main(); print('lightning' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input="", capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_run_without_conversations_is_refused_with_a_remedy(run):
    done = talk(run, "hello\n")
    assert done.returncode == 2
    assert done.stderr.startswith(f"template: {run.path} was not trained on conversations; ")
    assert "experiment=instruct" in done.stderr
    assert "template=plain" in done.stderr


def test_template_with_unknown_tokens_is_refused(run):
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("chat", [f"weights.path={run.path}", *WORDS, "template=phi3"])
    with pytest.raises(ConfigError, match=r"template: the tokenizer has no <\|system\|>, <\|user"):
        run_command(config)


def test_the_runs_own_template_and_its_system_message_are_used(run, tmp_path, monkeypatch):
    original = run.config.read_bytes()
    trained_on(run, "alpaca")
    prompts = []

    def stream(model, tokenizer, **given):
        prompts.append(tokenizer.decode(given["prompts"][0]))
        yield 0, "yes"

    monkeypatch.setattr("llm.commands.chat.stream_tokens", stream)
    monkeypatch.setattr(sys, "stdin", (tmp_path / "in").open("w+"))
    sys.stdin.write("hello\n/system Be brief.\nagain\n")
    sys.stdin.seek(0)
    with initialize_config_module("llm.conf", version_base="1.3"):
        run_command(compose("chat", [f"weights.path={run.path}", *WORDS]))
        sys.stdin.seek(0)
        run_command(compose("chat", [f"weights.path={run.path}", *WORDS, "system=''"]))
    run.config.write_bytes(original)
    assert prompts[0].startswith("Below is an instruction")
    assert prompts[0].endswith("\n\n### Instruction:\nhello\n\n### Response:\n")
    assert prompts[2].startswith("\n\n### Instruction:"), "an empty system message is sent"
    assert prompts[1].startswith("Be brief.\n\n### Instruction:\nhello\n\n### Response:\nyes<|end")


def test_published_chat_model_uses_its_own_template(tmp_path, monkeypatch):
    folder = make_folder(SHAPES["smollm2"], tmp_path / "folder")
    asked = []

    def stream(model, tokenizer, *, prompts, settings, memory):
        ends = {*settings.end_tokens, *tokenizer.end_tokens}
        asked.append((tokenizer.decode(prompts[0]), ends))
        yield 0, "yes"

    monkeypatch.setattr("llm.commands.chat.stream_tokens", stream)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n/system Be loud.\nagain\n"))
    with initialize_config_module("llm.conf", version_base="1.3"):
        run_command(compose("chat", ["weights=auto", f"weights.path={folder}", *WORDS]))
    (first, ends), (second, _) = asked
    begin = "<|im_start|>system\nYou are brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
    assert first == begin + "<|im_start|>assistant\n"
    assert second == begin.replace("You are brief", "Be loud") + (
        "<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\nagain<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert ends >= {293, 294}


@pytest.mark.parametrize("source", ["{% for %}", "{{ raise_exception('no') }}"])
def test_failing_chat_template_is_reported_in_one_line(source, tmp_path):
    folder = make_folder(SHAPES["smollm2"]._replace(template=source), tmp_path / "folder")
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("chat", ["weights=auto", f"weights.path={folder}", *WORDS])
    with pytest.raises(ConfigError, match=r"^template: the model's chat template fails: ") as error:
        run_command(config)
    assert len(str(error.value).splitlines()) == 1


@pytest.fixture
def terminal(run):
    """Start `llm chat` in a pseudo-terminal."""
    main, other = pty.openpty()
    words = [f"weights.path={run.path}", *WORDS, "template=plain", f"max_tokens={CONTEXT // 2}"]
    code = (
        "import fcntl, sys, termios; from llm.__main__ import main\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that its keys send signals to this process\n"
        f"sys.argv = ['llm', 'chat', *{words!r}]; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=other,
        stdout=other,
        stderr=other,
        start_new_session=True,
    )
    os.close(other)
    yield Terminal(main, process)
    process.kill()
    process.wait()
    os.close(main)


class Terminal:
    """The user's side of a pseudo-terminal."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self.descriptor = descriptor
        self.process = process
        self.unread = ""

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def wait_for(self, text: str, key: str = "") -> None:
        """Read the output up to and including a text, and press a key from time to time."""
        end, next_key = time.monotonic() + 60, 0.0
        while text not in self.unread:
            # Once a second: a key may ring the bell, which is output, and that would cause the next key at once.
            if key and time.monotonic() > next_key:
                self.type(key)
                next_key = time.monotonic() + 1
            ready = select.select([self.descriptor], [], [], 0.5)[0]
            assert time.monotonic() < end, f"{text!r} never came, but {self.unread!r}"
            if ready:
                self.unread += os.read(self.descriptor, 1024).decode("utf-8", "replace")
        self.unread = self.unread.partition(text)[2]


def test_ctrl_c_stops_the_response_and_the_next_message_gets_one(terminal, tmp_path):
    saved = tmp_path / "talk.json"
    terminal.wait_for("> ")
    terminal.type("one\n")
    terminal.wait_for("aaaa")
    terminal.type("\x03")
    terminal.wait_for("> ")
    terminal.type("\x1b[200~two\nlines\x1b[201~\n")  # as terminals mark what is pasted
    terminal.wait_for("aaaa")
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait_for("> ")
    terminal.type(f"/save {saved}\n")
    terminal.wait_for("4 messages are in ")
    terminal.wait_for("> ")
    # An interrupt between the prompt and the wait for a key is noticed only at the next key, so Ctrl-C is
    # repeated.
    terminal.wait_for("Ctrl-D or /quit leaves", key="\x03")
    terminal.wait_for("> ")
    terminal.type("/quit\n")
    assert terminal.process.wait(timeout=30) == 0
    (row,) = json.loads(Path(saved).read_text("utf-8"))
    messages, responses = row["messages"][::2], row["messages"][1::2]
    assert [message["content"] for message in messages] == ["one", "two\nlines"]
    for message in responses:
        assert set(message["content"]) == {"a"}
        assert 4 <= len(message["content"]) < CONTEXT // 2, "the response was stopped early"
