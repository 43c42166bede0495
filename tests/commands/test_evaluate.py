"""`llm evaluate` reproduces the metrics of training, compares responses with references and asks a judge."""

import json
import os
import random
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from small_runs import run_command

from llm import __main__ as command_line
from llm.config.errors import ConfigError
from llm.runs import RESULTS, Run

SMALL = [
    *("model=gpt2", "size=nano", "size.dim=32", "size.context_length=192", "tokenizer=byte"),
    *("hardware=cpu", "hardware.precision=32", "hardware.threads=1", "data.batch_size=8"),
    *("optimizer=adamw", "optimizer.lr=0.003", "schedule=cosine", "schedule.warmup_steps=2"),
    *("trainer.max_epochs=null", "trainer.max_steps=6", "trainer.val_every=3"),
]
CPU = ["hardware.accelerator=cpu", "hardware.threads=1"]
WORDS = "red blue green hat cup dog pen box".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Data of four kinds."""
    folder = tmp_path_factory.mktemp("evaluating")
    drawn = random.Random(0)
    lines = [" ".join(drawn.choices(WORDS, k=8)) + "." for _ in range(200)]
    (folder / "text.txt").write_text("\n".join(lines))
    rows = [{"instruction": f"Say {a} {b}.", "output": f"{a} {b}"} for a in WORDS for b in WORDS]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "more.json").write_text(json.dumps(rows[:5]))
    pairs = [
        {"instruction": row["instruction"], "chosen": row["output"], "rejected": "no"}
        for row in rows
    ]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    labels = [{"text": f"{n} {line}", "label": line.split()[0]} for n, line in enumerate(lines)]
    (folder / "labels.json").write_text(json.dumps([x for x in labels if x["label"] < "d"]))
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """trained(name, *overrides): return a run, trained once; an `experiment` starts from the run `text`."""
    runs: dict[str, Run] = {}

    def train(name: str, *overrides: str) -> Run:
        if name not in runs:
            words = [*SMALL, *overrides]
            with (
                pytest.MonkeyPatch.context() as patch,
                initialize_config_module("llm.conf", version_base="1.3"),
            ):
                patch.setenv("LLM_CACHE", str(folder / "cache"))
                config = compose("train", words)
                runs[name] = run_command(config, folder / name)
        return runs[name]

    return train


@pytest.fixture
def text(trained, folder) -> Run:
    return trained(
        "text",
        "data=text",
        f"data.path={folder / 'text.txt'}",
        "callbacks.samples=null",
        "callbacks.picture=null",
    )


@pytest.fixture
def finetuned(trained, folder, text):
    def finetune(name: str, *overrides: str) -> Run:
        weights = ["weights=run", f"weights.path={text.path}"]
        return trained(name, *overrides, *weights)

    return finetune


@pytest.fixture
def instructed(finetuned, folder) -> Run:
    return finetuned(
        *("instruct", "experiment=instruct", "data=instruction", "data.test_fraction=0.2"),
        *(f"data.path={folder / 'rows.json'}", "callbacks.responses.max_tokens=12"),
    )


@pytest.fixture
def evaluated(folder, monkeypatch):
    """evaluated(run, *overrides): return the report."""
    monkeypatch.setenv("LLM_CACHE", str(folder / "cache"))

    def run(run: Run, *overrides: str) -> dict:
        words = [f"weights.path={run.path}", *CPU, *overrides]
        with initialize_config_module("llm.conf", version_base="1.3"):
            report = run_command(compose("evaluate", words))
        kept = max(run.path.glob("evaluation*.json"), key=lambda file: file.stat().st_mtime_ns)
        assert json.loads(kept.read_text()) == report
        return report

    return run


def assert_same_metrics(report, run: Run, part: str):
    recorded = {
        name.removeprefix(f"{part}/"): value
        for name, value in run.record["metrics"].items()
        if name.startswith(f"{part}/") and name.partition("/")[2] in report["metrics"]
    }
    assert "loss" in recorded
    assert report["metrics"] == pytest.approx(recorded, rel=1e-5)


def test_text_run_is_measured_on_its_validation_part(text, evaluated, capsys):
    report = evaluated(text, "weights.checkpoint=last")
    assert report["part"] == "validation"
    assert_same_metrics(report, text, "val")
    assert {"perplexity", "bits_per_byte"} <= report["metrics"].keys()
    assert report["versions"]["torch"]
    assert report["date"]
    out = capsys.readouterr().out
    assert "bits_per_byte" in out
    assert "evaluation.json" in out


def test_a_text_file_is_measured_as_the_validation_part_is(text, evaluated, folder, tmp_path):
    """The held-out text of the run, given as a file, has the same metrics as the last validation."""
    (tokens,) = (folder / "cache" / "tokens").glob("*/validation.bin")
    held_out = tmp_path / "held_out.txt"
    held_out.write_bytes(np.fromfile(tokens, np.uint16).astype(np.uint8).tobytes())
    report = evaluated(text, "weights.checkpoint=last", f"test_path={held_out}")
    assert report["part"] == str(held_out)
    assert_same_metrics(report, text, "val")


def test_imported_weights_are_measured_on_a_text_file(text, evaluated, folder, tmp_path):
    (tmp_path / "few.txt").write_text("red blue green. hat cup.\n" * 20)
    few = f"test_path={tmp_path / 'few.txt'}"
    own = evaluated(text, "weights.checkpoint=last", few)
    with initialize_config_module("llm.conf", version_base="1.3"):
        words = [f"weights.path={text.path}", "weights.checkpoint=last"]
        run_command(compose("export", [*words, f"output={tmp_path / 'exported'}"]))
        template = "{% for message in messages %}{{ message.content }}{% endfor %}"
        (tmp_path / "exported" / "chat_template.jinja").write_text(template)
        words = ["weights=gpt2", f"weights.path={tmp_path / 'exported'}", *CPU]
        imported = run_command(compose("evaluate", [*words, few]))
        with pytest.raises(ConfigError, match=r"test_path: .* has no data of its own; pass a text"):
            run_command(compose("evaluate", words))
    assert imported["metrics"] == pytest.approx(own["metrics"], rel=1e-5)
    assert json.loads((tmp_path / "exported" / "evaluation.json").read_text()) == imported


def test_text_file_is_preprocessed_as_the_training_text(text, evaluated, tmp_path):
    """A run that learned lower-case text is measured on lower-case text."""
    for name, content in {"upper": "RED Blue. " * 30, "lower": "red blue. " * 30}.items():
        (tmp_path / f"{name}.txt").write_text(content)
    config = text.config.read_text()
    lowercase = "preprocessing: {lowercase: {_target_: llm.data.corpora.preprocessing.Lowercase}}"
    text.config.write_text(config.replace("\ndata:\n", f"\ndata:\n  {lowercase}\n"))
    try:
        upper, lower = (
            evaluated(text, f"test_path={tmp_path / name}.txt") for name in ("upper", "lower")
        )
    finally:
        text.config.write_text(config)
    assert upper["metrics"] == lower["metrics"]


def test_keys_of_the_command_set_how_text_files_are_read(text, evaluated, tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\xe9 red blue. ".encode("cp1252") * 20)
    (tmp_path / "utf8.txt").write_text("caf\xe9 red blue. " * 20, "utf-8")
    with pytest.warns(UserWarning, match=r"[^.]files\.encoding "):
        evaluated(text, f"test_path={tmp_path / 'latin.txt'}")
    latin = evaluated(text, f"test_path={tmp_path / 'latin.txt'}", "files.encoding=cp1252")
    assert latin["metrics"] == evaluated(text, f"test_path={tmp_path / 'utf8.txt'}")["metrics"]


def test_no_evaluation_overwrites_another(text, evaluated, tmp_path):
    first = text.path / "evaluation.json"
    evaluated(text)
    before = {file: file.read_bytes() for file in text.path.glob("evaluation*.json")}
    assert first in before
    evaluated(text, "weights.checkpoint=last")
    after = {file: file.read_bytes() for file in text.path.glob("evaluation*.json")}
    assert before.items() < after.items()
    asked = tmp_path / "results.json"
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("evaluate", [f"weights.path={text.path}", *CPU, f"output={asked}"])
        assert run_command(config) == json.loads(asked.read_text())
        with pytest.raises(
            ConfigError, match=r"output: .*results\.json exists; choose another name"
        ):
            run_command(config)
    assert {file: file.read_bytes() for file in text.path.glob("evaluation*.json")} == after


def test_a_text_file_has_no_parts(text, evaluated, folder):
    with pytest.raises(
        ConfigError, match=r"test_path: a text has no parts and no responses; leave out part$"
    ):
        evaluated(text, f"test_path={folder / 'text.txt'}", "part=validation")


def test_a_classifier_is_measured_on_its_test_part(finetuned, folder, evaluated):
    run = finetuned(
        *("classify", "experiment=classify", f"data.path={folder / 'labels.json'}"),
        *("data.batch_size=4", "adapter=lora"),
    )
    report = evaluated(run)
    assert report["part"] == "test"
    assert_same_metrics(report, run, "test")
    assert "accuracy" in report["metrics"]
    assert "quality" not in report


@pytest.mark.parametrize(
    ("name", "words"),
    [("copy", ["task/reference=frozen_copy"]), ("off", ["task/reference=adapter_off", "adapter=lora"])],
)  # fmt: skip
def test_preferences_are_measured_against_the_base_weights(
    finetuned, folder, evaluated, name, words
):
    run = finetuned(
        *(name, "task=dpo", "data=preference", f"data.path={folder / 'pairs.json'}"),
        *("callbacks.samples=null", "callbacks.picture=null", "optimizer.lr=0.01", *words),
    )
    assert abs(run.record["metrics"]["test/margin"]) > 1e-3, "training has changed the policy"
    assert_same_metrics(evaluated(run), run, "test")


def test_responses_are_compared_with_their_references(instructed, evaluated):
    report = evaluated(instructed)
    assert_same_metrics(report, instructed, "test")
    metrics, quality = instructed.record["metrics"], report["quality"]
    rows = json.loads((instructed.path / RESULTS["responses"]).read_text())
    assert quality["answers"] == len(rows)
    assert quality["rouge_l"]["mean"] == pytest.approx(metrics["test/rouge_l"])
    assert quality["rouge_l"]["low"] <= quality["rouge_l"]["mean"] <= quality["rouge_l"]["high"]
    assert quality["exact_match"]["mean"] == pytest.approx(metrics["test/exact_match"])


def test_missing_responses_are_generated(instructed, evaluated):
    file = instructed.path / RESULTS["responses"]
    before = file.read_text()
    file.unlink()
    evaluated(instructed, "max_tokens=12")
    assert file.read_text() == before


def test_responses_of_an_earlier_state_are_not_measured(instructed, evaluated):
    """A run that was trained further and interrupted has responses that are older than its weights."""
    file = instructed.path / RESULTS["responses"]
    before = file.read_text()
    file.write_text(before.replace('"response": "', '"response": "stale '))
    assert evaluated(instructed)["quality"]["answers"] == before.count('"response"')
    os.utime(file, (0, 0))
    evaluated(instructed, "max_tokens=12")
    assert file.read_text() == before


def test_responses_are_kept_without_the_last_checkpoint(instructed, evaluated):
    before = (instructed.path / RESULTS["responses"]).read_text()
    aside = instructed.last.rename(instructed.last.with_name("aside"))
    try:
        assert evaluated(instructed)["quality"]["answers"] == before.count('"response"')
    finally:
        aside.rename(instructed.last)


@pytest.mark.filterwarnings("ignore:.*are in the training part too")  # on purpose
def test_another_part_and_another_file_have_their_own_responses(instructed, evaluated, folder):
    before = (instructed.path / RESULTS["responses"]).read_bytes()
    whole = evaluated(instructed, "part=validation", "max_tokens=4")
    assert whole["quality"]["answers"] != len(json.loads(before))
    assert whole["metrics"]["loss"] != evaluated(instructed)["metrics"]["loss"]
    other = evaluated(instructed, f"test_path={folder / 'more.json'}", "max_tokens=4")
    assert other["quality"]["answers"] == 5
    assert other["part"].endswith("more.json")
    assert (instructed.path / RESULTS["responses"]).read_bytes() == before


def verdicts(request) -> str:
    """A judge for tests that prefers long answers."""
    shown = request["messages"][1]["content"]
    texts = re.findall(r" (response[ AB]*) begins\]\n(.*?)\n\[\w+ \1 ends\]", shown, re.DOTALL)
    if len(texts) == 1:
        return f'{{"score": {min(100, len(texts[0][1]))}}}'
    (_, first), (_, second) = texts
    better = "tie" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return f'{{"better": "{better}"}}'


def test_a_judge_scores_answers_and_compares_runs(instructed, evaluated, stand_in, tmp_path):
    server = stand_in(verdicts)
    other = tmp_path / "other"
    shutil.copytree(instructed.path, other)
    rows = json.loads((other / RESULTS["responses"]).read_text())
    for row in rows[:3]:
        row["response"] += " and quite a few words more"
    for row in rows[3:5]:
        row["response"] = ""
    (other / RESULTS["responses"]).write_text(json.dumps(rows[::-1]))
    words = ["judge=openai", "judge.model=judge-1", f"judge.address={server.address}"]
    report = evaluated(instructed, *words, f"against={other}")
    assert report["judge"]["judge"] == "judge-1"
    assert report["judge"]["scored"] == len(rows)
    assert report["judge"]["unparsed"] == 0
    against = report["against"]
    assert against["compared"] == len(rows)
    counts = [against[name] for name in ("wins", "ties", "losses")]
    assert counts == [2, len(rows) - 5, 3]
    assert against["rouge_l_gain"]["low"] <= against["rouge_l_gain"]["mean"]
    lines = (instructed.path / "judgements.jsonl").read_text().splitlines()
    assert len(lines) == len(server.requests) == 3 * len(rows)
    assert evaluated(instructed, *words, f"against={other}")["judge"] == report["judge"]
    assert len(server.requests) == 3 * len(rows), "no question is sent twice"


def test_unreachable_judge_is_one_line(instructed, monkeypatch, capsys):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    words = [
        *("llm", "evaluate", f"weights.path={instructed.path}", *CPU, "judge=openai"),
        *("judge.model=judge-1", "judge.address=http://127.0.0.1:9/v1", "judge.retries=0"),
    ]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as left:
        command_line.main()
    assert left.value.code == 1
    told = capsys.readouterr().err.strip()
    assert told.startswith("judge.address: http://127.0.0.1:9/v1 does not answer")
    assert "\n" not in told


def test_full_finetune_does_not_need_its_base_weights(instructed, text, evaluated, capsys):
    expected = evaluated(instructed)["metrics"]
    aside = text.path.rename(text.path.with_name("aside"))
    capsys.readouterr()
    try:
        assert evaluated(instructed)["metrics"] == expected
        assert (
            "is missing: it cannot be checked whether the data are the same"
            in capsys.readouterr().out
        )
    finally:
        aside.rename(text.path)


def test_changed_data_are_refused(instructed, evaluated, folder):
    file = folder / "rows.json"
    before = file.read_text()
    file.write_text(json.dumps([*json.loads(before), {"instruction": "Say no.", "output": "no"}]))
    try:
        with pytest.raises(ConfigError, match=r"have changed, so.*test_path="):
            evaluated(instructed)
    finally:
        file.write_text(before)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["part=test"], "part=test: these data have no such part"),
        (["part=train"], "part: 'train'"),
        (
            ["test_path=x.txt"],
            "test_path: x.txt does not exist; name a file, a folder or a pattern",
        ),
        (["judge=openai", "judge.model=m"], "was not trained on instructions"),
        (["judge=openai"], "judge.model: has no value"),
        (
            ["judge=openai", "judge.model=m", "judge.address=here"],
            "judge.address: 'here' is not an http URL",
        ),
        (["against=nowhere"], r"nowhere/responses.json: does not exist"),
    ],
)
def test_wrong_part_file_or_judge_is_refused(text, evaluated, words, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        evaluated(text, *words)
