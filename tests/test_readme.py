"""The README's commands run: each as it stands there, with a few words more that make it small."""

import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llm import __main__ as command_line

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")
BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = [line.split("  #")[0].strip() for line in BLOCKS.splitlines() if line.strip()]
ALL = [line for line in COMMANDS if line.startswith("llm train") and "weights=" not in line]
# Sweeps and several devices have tests of their own: here it is seen that every point could run.
CHECKED = [line for line in ALL if re.search(" -m | sweep=| hardware=(?!zero)", line)]
TRAIN = [line for line in ALL if line not in CHECKED and "hardware=zero" not in line]
FINETUNING = [
    line for line in COMMANDS if line.startswith("llm ") and ("weights" in line or " name=" in line)
]
SMALL = [
    *("size=nano", "trainer.max_steps=2", "trainer.val_batches=1", "hardware=cpu"),
    *("hardware.compile=false", "hardware.precision=32", "hardware.threads=1"),
    *("data.batch_size=2", "callbacks.samples.max_tokens=2", "output_dir=outputs"),
]


def test_there_are_commands():
    assert len(TRAIN) >= 8
    assert len(CHECKED) >= 8
    assert {"make train", "make test"} <= set(COMMANDS)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with the files that the commands speak of."""
    prose = "It was a dark and stormy night; the rain fell in torrents.\n" * 60
    (tmp_path / "notes").mkdir()
    for name in ("notes/a.txt", "notes/b.md", "book.txt"):
        (tmp_path / name).write_text(prose)
    (tmp_path / "chat.jsonl").write_text('{"body": "Hello there, how are you today?"}\n' * 200)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return tmp_path


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the training text of")  # which is short
@pytest.mark.parametrize("line", TRAIN)
def test_a_training_command_runs(line, folder, cache, monkeypatch, request):
    monkeypatch.setenv("LLM_CACHE", str(cache))
    if "tokenizer=gpt2" in line:
        ranks = request.getfixturevalue("shared_data") / "tiktoken"
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(ranks))
    monkeypatch.setattr(sys, "argv", ["llm", *shlex.split(line)[1:], *SMALL])
    command_line.main()
    (run,) = folder.glob("outputs/pretraining/*/run.json")
    assert '"status": "done"' in run.read_text()


@pytest.mark.parametrize("line", CHECKED)
def test_every_point_of_a_command_could_run(line, folder, cache, monkeypatch, capsys):
    monkeypatch.setenv("LLM_CACHE", str(cache))
    few = ["hardware.accelerator=cpu", "hardware.precision=32", "dry_run=true"]
    if " hardware=" in line:
        few += ["hardware.devices=2", "data.batch_size=8"]
    monkeypatch.setattr(sys, "argv", ["llm", *shlex.split(line)[1:], *few])
    command_line.main()
    assert "parameters" in capsys.readouterr().out
    assert not list(folder.glob("outputs/**/run.json"))


# What a command of this kind needs besides, to be small.
FEW = [
    *(
        "trainer.max_steps=2",
        "trainer.max_epochs=null",
        "trainer.val_batches=1",
        "data.batch_size=2",
    ),
    *("hardware=cpu", "hardware.precision=32", "hardware.threads=1"),
]
ANSWERS = ["callbacks.responses.max_tokens=2", "callbacks.response_samples.max_tokens=2"]
SMALLER = {
    "experiment=instruct": ANSWERS,
    "experiment=grpo": ["task.max_tokens=2", "callbacks.response_samples.max_tokens=2"],
    "llm generate": ["max_tokens=2"],
    "llm chat": ["max_tokens=2"],
    "llm evaluate": ["max_tokens=2"],
}
ELSEWHERE = (
    "openai-community/",
    "Llama-3.2",
    "HuggingFaceTB/",
    "judge=",
)  # what a test cannot have


@pytest.mark.slow
def test_finetuning_leads_from_command_to_command(folder, shared_data, monkeypatch):
    """Each line begins from what the ones before it trained."""
    monkeypatch.setenv("LLM_CACHE", str(shared_data))
    rows = ["review,stars", *(f"film number {n},{n % 3}" for n in range(60))]
    (folder / "reviews.csv").write_text("\n".join(rows))
    (folder / "messages.csv").write_text("day,body\n1,You have won a prize\n")
    question = '{"instruction": "Say yes.", "output": "Yes."}\n'
    (folder / "questions.jsonl").write_text(question * 60)
    text = ["data=text", "data.path=book.txt", "tokenizer=byte", "size.context_length=640", *SMALL]
    for line in ["llm train name=python_docs", *FINETUNING]:
        if any(name in line for name in ELSEWHERE):
            continue
        words = shlex.split(line)[1:]
        words += [word for kind, more in SMALLER.items() if kind in line for word in more]
        if "llm train" in line:
            words += FEW if "weights" in line else text
        monkeypatch.setattr(sys, "argv", ["llm", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
        command_line.main()
    done = {
        f"{run.parent.parent.name}/{run.parent.name}" for run in folder.glob("outputs/*/*/run.json")
    }
    assert {
        "classification/spam",
        "sft/instruct",
        "dpo/prefer",
        "reward/reward",
    } <= done
    assert (folder / "llama" / "model.safetensors").is_file()


def test_make_knows_the_targets_that_are_named():
    named = {line for line in COMMANDS if line.startswith("make ")}
    for line in named | {"make help", "make check", "make format", "make clean"}:
        done = subprocess.run([*line.split(), "-n"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_files_that_are_named_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_the_tree_names_every_package_and_module():
    tree = TEXT[TEXT.index("## The tree") :]
    named = set(re.findall(r"^  (\w+(?:/|\.py))", tree, re.MULTILINE))
    there = {
        path.name + ("/" if path.is_dir() else "")
        for path in (ROOT / "src/llm").iterdir()
        if path.name not in ("__init__.py", "__pycache__", "py.typed")
    }
    assert named == there


def test_groups_and_options_are_those_of_conf():
    rows = re.findall(r"^\| `([\w/]+)` \| (.*) \|$", TEXT, re.MULTILINE)
    assert len(rows) >= 10
    for group, options in rows:
        folder = ROOT / "conf" / group
        for option in re.findall(r"`([\w]+)`", options):
            is_option = (folder / f"{option}.yaml").is_file()
            assert is_option or (folder / option).is_dir(), f"{group}={option}"


@pytest.mark.parametrize(
    "command", re.findall(r"^\$ (llm .*?)\n(.*?)```", TEXT, re.MULTILINE | re.DOTALL)
)
def test_what_a_command_is_said_to_print_is_what_it_prints(command):
    line, printed = command
    words = [sys.executable, "-m", "llm", *shlex.split(line)[1:]]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.stdout + done.stderr).strip() == printed.strip()
