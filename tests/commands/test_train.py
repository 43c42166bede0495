"""`llm train` from the command line: the printed command resumes a stopped run."""

import re
import sys

import forked
import pytest
from pasted_lines import pasted

import llm.__main__ as command
from llm.runs import Run
from llm.terminal import shell

SMALL = (
    "size=nano size.dim=32 size.context_length=16 tokenizer=byte data=text data.batch_size=4 optimizer=adamw "
    "schedule=constant hardware=cpu hardware.precision=32 hardware.threads=1 trainer.max_steps=6 "
    "trainer.val_every=6 callbacks.samples.max_tokens=2 callbacks.picture=null"
).split()


def test_command_printed_on_ctrl_c_resumes_the_run(tmp_path, monkeypatch, text, stop_at, capsys):
    """The command has values with brackets, a folder of configs, and a trusted module on PYTHONPATH."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "modules")
    (tmp_path / "br[").mkdir()
    text.rename(tmp_path / "br[" / "x].txt")
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "own.yaml").write_text("defaults: [gpt2, _self_]\n")
    own = ["--config-dir", "mine", "model=own", "data.path=br[/x].txt", "trust=[mine]"]
    lists = ["data/preprocessing=[lowercase]", "callbacks.samples.prompts=['[/x] :smile:']"]
    stop_at(3)
    monkeypatch.setattr(
        sys,
        "argv",
        ["llm", "train", *SMALL, *own, *lists, "hydra.run.dir=outputs/pretraining/stopped"],
    )
    with pytest.raises(SystemExit):
        command.main()
    captured = capsys.readouterr()
    assert "data      br[/x].txt: " in captured.out
    line = captured.err.partition("To resume: ")[2].strip()
    places, program, rest = line.split(" ", 2)
    assert (places, program) == ("PYTHONPATH=modules", shell.program())

    stop_at(None)
    monkeypatch.setattr(sys, "argv", ["llm", *pasted(f"llm {rest}")])
    command.main()
    run = Run(tmp_path / "outputs/pretraining/stopped")
    assert run.status == "done"
    assert run.record["command"] == f"PYTHONPATH=modules llm {rest}"
    out = capsys.readouterr().out
    assert "[/x] :smile:" in out
    assert f"  then      PYTHONPATH=modules {shell.program()} generate weights.path=outputs/" in out
    assert next(line for line in out.splitlines() if "  then " in line).endswith(" 'trust=[mine]'")
    assert [path.name for path in run.path.parent.glob("[!.]*")] == ["stopped"]


@pytest.mark.parametrize(
    ("model", "size", "layers"),
    [
        ("gemma3", "mini", "3 local, 1 full"),
        ("olmo3", "nano", "1 local, 1 full"),
        ("smollm3", "nano", "1 rotary, 1 nope"),
    ],
)
def test_model_shorter_than_its_pattern_prints_the_layers_that_it_has(
    text, tmp_path, monkeypatch, model, size, layers
):
    monkeypatch.chdir(tmp_path)
    words = [
        *(f"model={model}", f"size={size}", "data=text", f"data.path={text}", "tokenizer=byte"),
        *("trainer.max_steps=1", "data.batch_size=2", "hardware=cpu", "hardware.precision=32"),
    ]
    done = forked.run(["train", *words])
    assert done.returncode == 0, done.stderr
    assert re.search(rf"\nmodel     GPT, [\d,]+ parameters; layers: {layers}\n", done.stdout)
