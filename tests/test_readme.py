"""The commands of the README and of docs/ run as written, with overrides that make them small."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm import __main__ as command_line

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
# In the order of the README's table: the commands of a page may use the runs of the pages before it.
NAMES = re.findall(r"^\| \[[^\]]+\]\((docs/\w+\.md)\)", README, re.MULTILINE)
PAGES = {"README.md": README} | {name: (ROOT / name).read_text("utf-8") for name in NAMES}


def commands_of(text: str) -> Iterator[str]:
    """Return the lines of the shell blocks of a page, without comments."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", "").splitlines():
            if command := re.split(r"\s{2,}#", line)[0].strip():
                yield re.sub(r"\s+", " ", command)


COMMANDS = list(dict.fromkeys(command for text in PAGES.values() for command in commands_of(text)))
# Commands that a test cannot run: they install, upload, or set up a shell.
OTHERS = ("pipx install ", "wandb sync ", "eval ")
# Words of commands that are only composed, because they need the network, a library or hardware that tests lack.
ELSEWHERE = (
    *("openai-community/", "Llama-3.2", "HuggingFaceTB/", "judge=", "hardware=zero"),
    *("NODE_RANK=", "hydra/sweeper=optuna"),
)
STRATEGY = re.compile(r" hardware=(ddp|fsdp|tensor_parallel|pipeline|zero)")


def kind_of(line: str) -> str:
    """Return how a command is tested."""
    if line.startswith(OTHERS) or line.startswith("make "):
        return "other"
    if any(word in line for word in ELSEWHERE):
        return "composed"
    if re.search(r"^llm plan|--help|--cfg", line):
        return "shown"
    if "weights" in line or "llm compare" in line or makes_what_others_use(line):
        return "chained"
    return "checked" if re.search(" -m | sweep=", line) or STRATEGY.search(line) else "trained"


def makes_what_others_use(line: str) -> bool:
    """Return whether a later command reads the run or sweep that this one makes."""
    name = re.search(r" name=(\w+)", line)
    return bool(name and any(re.search(rf"outputs/\w+/{name[1]}\b", each) for each in COMMANDS))


def words_of(line: str) -> list[str]:
    """Return the arguments of `llm` in a command, however it is started."""
    return shlex.split(re.split(r"(?:^|(?<= ))llm ", line, maxsplit=1)[1])


def lines(*kinds: str) -> list[str]:
    return [line for line in COMMANDS if kind_of(line) in kinds]


SMALL = [
    *("size=nano", "trainer.max_steps=2", "trainer.max_tokens=null", "trainer.val_batches=1"),
    *("hardware=cpu", "hardware.compile=false", "hardware.precision=32", "hardware.threads=1"),
    *("data.batch_size=2", "callbacks.samples.max_tokens=2", "output_dir=outputs"),
]


def test_every_page_is_in_the_table_of_the_readme():
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} == set(NAMES)


def test_every_command_is_tested():
    assert {"make train", "make test"} <= set(COMMANDS)
    assert len(lines("trained")) >= 8
    assert len(lines("checked")) >= 8
    assert len(lines("chained")) >= 25
    for line in lines("composed", "shown", "chained", "checked", "trained"):
        assert re.search(r"(^|\s)llm [a-z-]", line), line


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with the files that the commands name."""
    prose = "It was a dark and stormy night; the rain fell in torrents.\n" * 60
    (tmp_path / "notes").mkdir()
    for name in ("notes/a.txt", "notes/b.md", "book.txt"):
        (tmp_path / name).write_text(prose)
    (tmp_path / "chat.jsonl").write_text('{"body": "Hello there, how are you today?"}\n' * 200)
    for name, text in shown_files():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # for the modules that a page shows
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return tmp_path


def shown_files() -> Iterator[tuple[str, str]]:
    """Return the files that a page shows in full: blocks that begin with a path as a comment, after a package."""
    for text in PAGES.values():
        for block in re.findall(r"```(?:python|yaml)\n(.*?)```", text, re.DOTALL):
            if found := re.match(r"(?:# @package \S+\n)?# (\S+\.(?:py|yaml))\n", block):
                yield found[1], block


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(monkeypatch):
    """run(words) runs `llm` in this process and fails with the command if its exit status is not 0."""

    def run(words: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["llm", *words])
        try:
            command_line.main()
        except SystemExit as end:
            if end.code:
                pytest.fail(f"exit status {end.code}: llm {shlex.join(words)}")

    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the training text of")  # it is short
@pytest.mark.parametrize("line", lines("trained"))
def test_a_training_command_runs(line, folder, cache, run, monkeypatch, request):
    monkeypatch.setenv("LLM_CACHE", str(cache))
    if "tokenizer=gpt2" in line:
        ranks = request.getfixturevalue("shared_data") / "tiktoken"
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(ranks))
    present = [word for word in SMALL if "samples" not in word or "~callbacks.samples" not in line]
    run([*words_of(line), *present])
    (record,) = folder.glob("outputs/pretraining/*/run.json")
    assert '"status": "done"' in record.read_text()


@pytest.mark.parametrize("line", lines("checked"))
def test_every_point_of_a_command_passes_a_dry_run(line, folder, cache, run, monkeypatch, capsys):
    monkeypatch.setenv("LLM_CACHE", str(cache))
    few = ["hardware.accelerator=cpu", "hardware.precision=32", "dry_run=true"]
    if STRATEGY.search(line):
        few += ["hardware.devices=2", "data.batch_size=8"]
    run([*words_of(line), *few])
    assert "parameters" in capsys.readouterr().out
    assert not list(folder.glob("outputs/**/run.json"))


@pytest.mark.parametrize("line", lines("composed", "shown"))
def test_a_command_composes(line, folder, run, capsys):
    # A search space becomes one of its values, and -m is dropped, because only a sweep can have them.
    words = [re.sub(r"=(tag|choice)\(.*", "=0.1", word) for word in words_of(line) if word != "-m"]
    run(words if kind_of(line) == "shown" else [*words, "--cfg", "job"])
    assert len(capsys.readouterr().out.splitlines()) > 5


# Further overrides that make a finetune small.
FEW = [
    *("trainer.max_steps=2", "trainer.max_epochs=null", "trainer.val_batches=1"),
    *("data.batch_size=16", "hardware=cpu", "hardware.precision=32", "hardware.threads=1"),
]
ANSWERS = ["callbacks.responses.max_tokens=2", "callbacks.response_samples.max_tokens=2"]
SMALLER = {
    "experiment=instruct": ANSWERS,
    "experiment=spam": ["data.batch_size=64"],
    "experiment=grpo": ["data.batch_size=2", "task.max_tokens=2", ANSWERS[1]],
    "llm generate": ["max_tokens=2"],
    "llm chat": ["max_tokens=2"],
    "llm evaluate": ["max_tokens=2"],
}
BOOK = ["data=text", "data.path=book.txt", "tokenizer=byte", "size.context_length=640"]


def made_small(line: str) -> list[str]:
    """Return a command of the chain with the overrides that make it small."""
    words = words_of(line.replace("seed=1,2", "seed=1"))
    if "llm train" in line:
        points = [word for word in SMALL if not (" -m " in line and word.startswith("size="))]
        words += FEW if "weights" in line else [*BOOK, *points]
    return words + [word for part, more in SMALLER.items() if part in line for word in more]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_commands_of_the_pages_run_in_their_order(folder, shared_data, run, forks, monkeypatch):
    """Each command uses the runs of the commands before it."""
    monkeypatch.setenv("LLM_CACHE", str(shared_data))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken"))
    rows = ["review,stars", *(f"film number {n},{n % 3}" for n in range(60))]
    (folder / "reviews.csv").write_text("\n".join(rows))
    (folder / "messages.csv").write_text('day,body\n1,"You have won a prize"\n')
    (folder / "messages.txt").write_text("You have won a prize\n")
    (folder / "prompts.txt").write_text("The class\nReturn the\n")
    question = '{"instruction": "Say yes.", "output": "Yes."}\n'
    (folder / "questions.jsonl").write_text(question * 60)
    for line in ["llm train name=python_docs", *lines("chained")]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
        run(made_small(line))
    done = {
        f"{file.parent.parent.name}/{file.parent.name}"
        for file in folder.glob("outputs/*/*/run.json")
    }
    tasks = ("classification/spam", "sft/instruct", "dpo/prefer", "reward/reward", "grpo/vowels")
    assert {*tasks, "pretraining/strided"} <= done
    assert (folder / "llama" / "model.safetensors").is_file()
    assert (folder / "comparison" / "table.csv").is_file()


def test_make_has_the_targets_that_are_named():
    named = {line for line in COMMANDS if line.startswith("make ")}
    for line in named | {"make help", "make check", "make format", "make clean"}:
        done = subprocess.run([*line.split(), "-n"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def headings(text: str) -> set[str]:
    """Return the anchors of a page."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            file = (ROOT / page).parent / name if name else ROOT / page
            assert file.exists(), target
            assert not anchor or anchor in headings(file.read_text("utf-8")), target


def test_the_tree_names_every_package_and_module():
    tree = README[README.index("## The tree") :]
    named = set(re.findall(r"^  (\w+(?:/|\.py))", tree, re.MULTILINE))
    there = {
        path.name + ("/" if path.is_dir() else "")
        for path in (ROOT / "src/llm").iterdir()
        if path.name not in ("__init__.py", "__pycache__", "py.typed")
    }
    assert named == there


def test_groups_and_options_are_those_of_conf():
    section = PAGES["docs/options.md"].partition("## Groups")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w/]+)` \| (.*) \|$", section, re.MULTILINE)
    for group, options in rows:
        named = {each for each in re.findall(r"`(\w+)`", options) if not each.endswith("chat")}
        assert named == {file.stem for file in (ROOT / "conf" / group).glob("*.yaml")}, group
    folders = {file.parent.relative_to(ROOT / "conf") for file in (ROOT / "conf").rglob("*.yaml")}
    groups = {str(folder) for folder in folders} - {".", "hydra/help"}
    assert {group for group, _ in rows} == groups


PRINTED = [
    found
    for text in PAGES.values()
    for found in re.findall(r"^\$ (llm .*?)\n(.*?)```", text, re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize(("line", "shown"), PRINTED)
def test_a_command_prints_what_a_page_shows(line, shown, tmp_path, monkeypatch, capsys):
    """A page may show the first lines only, followed by three dots."""
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["llm", *words_of(line)])
    with contextlib.suppress(SystemExit):
        command_line.main()
    printed, expected = (
        [each.rstrip() for each in text.splitlines() if each.strip()]
        for text in ("".join(capsys.readouterr()), shown)
    )
    if expected[-1] == "...":
        expected.pop()
        printed = printed[: len(expected)]
    assert printed == expected
