"""The rules of `llm evaluate` and `llm generate` report all mistakes at once, before anything is read."""

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from llm import __main__ as command_line
from llm.data.examples.instruction import InstructionDataModule
from llm.evaluation.evaluation_rules import trained_data

DATA = {
    "text": "llm.data.corpora.text_files.FilesDataModule",
    "labelled": "llm.data.examples.labelled.LabelledDataModule",
    "instruction": "llm.data.examples.instruction.InstructionDataModule",
}
TEXT = "test_path: a text has no parts and no responses; leave out"
JUDGE = "judge=openai judge.model=m judge.address=http://127.0.0.1:9/v1"


@pytest.fixture
def problems(tmp_path, monkeypatch, capsys):
    """problems(words): return the error lines of a command, in a folder that has a run for each kind of data."""
    monkeypatch.chdir(tmp_path)
    for name, target in DATA.items():
        (tmp_path / name).mkdir()
        nodes = {"task": "llm.tasks.sft.SFT", "model": "llm.models.gpt.GPT", "data": target}
        lines = (f"{key}: {{_target_: {node}}}\n" for key, node in nodes.items())
        (tmp_path / name / "config.yaml").write_text("".join(lines))
    (tmp_path / "rows.csv").write_text("text\na\n")

    def refuse(words: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["llm", *words.split()])
        with pytest.raises(SystemExit) as left:
            command_line.main()
        assert left.value.code == 2
        return capsys.readouterr().err.splitlines()

    return refuse


def test_mistakes_of_different_kinds_are_reported_at_once(problems):
    assert problems(
        "evaluate weights.path=labelled part=validation test_path=rows.csv output=rows.csv "
        f"against=nowhere max_tokens=-1 {JUDGE}"
    ) == [
        "output: rows.csv exists; choose another name",
        "part, test_path: a file in test_path is a test part; leave part out",
        "against: nowhere/responses.json: does not exist; run llm evaluate on that run, which writes it",
        "weights.path: labelled was not trained on instructions; leave out judge, against",
        "max_tokens: -1 is out of range; give 0 or more",
    ]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("text output=nowhere/x.json", "output: nowhere is not a folder; create it first"),
        ("text test_path=rows.csv part=test", f"{TEXT} part"),
        (f"text test_path=rows.csv part=test {JUDGE}", f"{TEXT} part, judge"),
        (f"text {JUDGE}", "weights.path: text was not trained on instructions; leave out judge"),
        (f"instruction part=train {JUDGE}", "part: 'train' is not one of the choices; use test, validation or null"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_the_run_are_refused(problems, words, problem):
    assert problems(f"evaluate weights.path={words}") == [problem]


def test_data_made_by_a_function_are_those_of_the_task():
    nodes = {"task": "llm.tasks.sft.SFT", "data": "llm.rewards.contains.contains"}
    config = OmegaConf.create({name: {"_target_": node} for name, node in nodes.items()})
    assert trained_data(OmegaConf.merge(config, {"trust": []})) is InstructionDataModule


def test_weights_without_data_need_a_text_file(problems):
    (Path("folder")).mkdir()
    assert problems(f"evaluate weights=gpt2 weights.path=folder part=test {JUDGE}")[:2] == [
        "test_path: folder has no data of its own; pass a text file or a folder of text files",
        f"{TEXT} part, judge",
    ]


def test_wrong_prompts_are_reported_with_all_other_mistakes(problems):
    words = "generate weights.path=text prompt=a prompts_file=nowhere.txt best_of=3 max_tokens=-1"
    assert [line.split(":")[0] for line in problems(words)] == [
        *("best_of", "prompt, prompts_file", "prompts_file", "max_tokens"),
    ]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("prompt=[]", "prompt: [] has no prompts; leave it out to begin a document"),
        ("prompts_file=text", "prompts_file: text is a folder; name a file with one prompt a line"),
    ],
)
def test_prompts_need_one_source(problems, words, problem):
    assert problems(f"generate weights.path=text {words}") == [problem]
