"""`llm classify`: a file, a text, a pipe, and models that are not classifiers."""

import csv
import io
import json
import random
import shlex
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from small_runs import run_command

from llm.config.errors import ConfigError
from llm.tokenizers.byte import ByteTokenizer

# The first test that trains the classifier gets this warning: some texts are longer than the context.
pytestmark = pytest.mark.filterwarnings("ignore:data.context_length")

TEXTS = [
    ("cat" if n % 2 else "dog", f"a {'meow' if n % 2 else 'bark'} {'x' * n}") for n in range(60)
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train a small classifier."""
    folder = tmp_path_factory.mktemp("classifier")
    lines = [json.dumps({"text": text, "label": label}) for label, text in TEXTS]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    words = [
        *("experiment=classify", f"data.path={folder / 'rows.jsonl'}", "weights=scratch"),
        *("size=nano", "size.dim=32", "size.context_length=16", "tokenizer=byte", "hardware=cpu"),
        *("hardware.precision=32", "hardware.threads=1", "trainer.max_epochs=null"),
        *("trainer.max_steps=120", "optimizer.lr=5e-3", "schedule.warmup_steps=10"),
    ]

    def train_it(name: str, *more: str):
        with initialize_config_module("llm.conf", version_base="1.3"):
            run_command(compose("train", [*words, *more]), folder / name)
        return folder / name

    return train_it


@pytest.fixture(scope="module")
def run(trained):
    """A small classifier."""
    return trained("run")


@pytest.fixture
def ask(run, capsys):
    def asked(**settings):
        with initialize_config_module("llm.conf", version_base="1.3"):
            config = compose("classify", [f"weights.path={run}", "hardware.threads=1"])
        OmegaConf.update(config, "hardware.accelerator", "cpu")
        for name, value in settings.items():
            OmegaConf.update(config, name, value)
        capsys.readouterr()
        run_command(config)
        return [line.split("\t", 2) for line in capsys.readouterr().out.splitlines()]

    return asked


def test_run_directory_has_everything_to_classify(run):
    config = OmegaConf.load(run / "config.yaml")
    assert list(config.data.classes) == ["cat", "dog"]
    assert config.task.model.num_classes == 2
    assert (run / "predictions.csv").is_file()
    assert not (run / "samples.txt").exists()
    metrics = json.loads((run / "run.json").read_text())["metrics"]
    assert metrics["test/accuracy"] > 0.95


def test_validation_is_on_a_subset_in_training_and_on_all_rows_before_the_test(
    run, trained, capsys
):
    bounded = trained("bounded", "trainer.val_bytes=20")
    out = capsys.readouterr().out
    assert "note      validated on a fixed 1 of 6 rows, spread over the part (trainer.val_" in out
    assert "whole validation part: loss " in out
    record = json.loads((bounded / "run.json").read_text())
    validated = [
        {row["step"]: float(row["val/loss"]) for row in csv.DictReader(lines) if row["val/loss"]}
        for lines in ((each / "metrics.csv").read_text().splitlines() for each in (run, bounded))
    ]
    step = str(record["best_step"])
    assert validated[0].keys() == validated[1].keys()
    assert validated[0][step] != validated[1][step], "only a subset was validated"
    assert record["metrics"]["whole/loss"] == pytest.approx(validated[0][step], rel=1e-6)
    assert len((bounded / "predictions.csv").read_text().splitlines()) == 13, (
        "a header and the 12 rows of the test part"
    )


def test_lines_of_a_file_get_label_and_probability(ask, tmp_path):
    file = tmp_path / "lines.txt"
    file.write_bytes("\ufeffa meow xx\r\n\r\na bark\tyy\r\na meow".encode())
    answers = ask(file=str(file), batch_size=2)
    assert [text for *_, text in answers] == ["a meow xx", "a bark\tyy", "a meow"]
    assert [label for label, *_ in answers] == ["cat", "dog", "cat"]
    assert all(0.5 < float(probability) <= 1 for _, probability, _ in answers)
    alone = [ask(file=str(file), batch_size=1)]
    assert alone == [answers]  # the batch size does not change the answers


def test_single_text_and_one_longer_than_the_context_are_classified(ask):
    ((label, _, text),) = ask(text="a bark zz")
    assert (label, text) == ("dog", "a bark zz")
    ((label, *_),) = ask(text="a meow " + "x" * 100)
    assert label == "cat"


def test_standard_input_is_classified_line_by_line(ask, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a bark xxx\n\n  \na meow xxx\n"))
    assert [label for label, *_ in ask()] == ["dog", "cat"]


ROWS = {
    "a.csv": "id,text\n1,a meow xx\n2,a bark yy\n3,\n",
    "b.csv": "id;text\n1;a meow xx\n2;a bark yy\n",
    "a.json": '[{"text": "a meow xx"}, {"text": null}, {"text": "a bark yy"}]',
    "a.jsonl": '{"text": "a meow xx"}\n{"text": "a bark yy"}\n',
}


@pytest.mark.parametrize("name", ROWS)
def test_texts_are_read_from_rows_of_a_file(ask, tmp_path, name):
    (tmp_path / name).write_text(ROWS[name])
    answers = ask(file=str(tmp_path / name))
    assert [(label, text) for label, _, text in answers] == [
        ("cat", "a meow xx"),
        ("dog", "a bark yy"),
    ]


def test_column_and_encoding_can_be_set(ask, tmp_path):
    file = tmp_path / "reviews.csv"
    file.write_bytes('Nr,review\n1,"a meow é\nxx"\n'.encode("cp1252"))
    with pytest.raises(ConfigError, match=r"file: .*line 2: no column 'text' .*rows\.text="):
        ask(file=str(file), **{"rows.encoding": "cp1252"})
    named = {"rows.text": "review", "rows.encoding": "cp1252"}
    assert [text for *_, text in ask(file=str(file), **named)] == ["a meow é xx"]
    with pytest.warns(UserWarning, match=r"rows\.encoding "):
        ask(file=str(file), **{"rows.text": "review"})
    (tmp_path / "lines.txt").write_bytes("a meow é\n".encode("cp1252"))
    with pytest.warns(UserWarning, match=r"not UTF-8 .*rows\.encoding "):
        ask(file=str(tmp_path / "lines.txt"))


@pytest.mark.slow
def test_pipe_is_classified_before_it_is_closed(run):
    command = [sys.executable, "-m", "llm", "classify", f"weights.path={run}", "hardware.threads=1"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        assert process.stdin
        assert process.stdout
        for word, label in (("bark", "dog"), ("meow", "cat")):
            process.stdin.write(f"a {word} xxx\n")
            process.stdin.flush()
            assert process.stdout.readline().startswith(f"{label}\t")
        process.stdin.close()
    assert process.returncode == 0


def test_impossible_requests_are_refused(ask, run, tmp_path):
    with pytest.raises(ConfigError, match="both are given"):
        ask(text="a", file="b")
    with pytest.raises(ConfigError, match="text: is blank"):
        ask(text=" ")
    with pytest.raises(ConfigError, match=r"file: .*none\.txt: cannot be read"):
        ask(file=str(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match="batch_size: 0 is out of range; give 1 or more"):
        ask(file=str(tmp_path / "none.txt"), batch_size=0)


def test_a_line_without_a_token_is_named(ask, monkeypatch, tmp_path):
    encode = ByteTokenizer.encode_ordinary
    monkeypatch.setattr(
        ByteTokenizer, "encode_ordinary", lambda self, text: encode(self, text.strip("?"))
    )
    (tmp_path / "lines.txt").write_text("a meow\n??\n")
    with pytest.raises(ConfigError, match=r"text: the tokenizer encodes '\?\?' to no token"):
        ask(file=str(tmp_path / "lines.txt"))


def test_language_model_is_refused_as_a_classifier(ask, run, tmp_path):
    config = OmegaConf.load(run / "config.yaml")
    config.task.model = config.model
    other = tmp_path / "other [1]"
    other.mkdir()
    OmegaConf.save(config, other / "config.yaml")
    with pytest.raises(ConfigError, match="is not a classifier; train one from it with ") as caught:
        ask(**{"weights.path": str(other), "text": "a"})
    _, _, line = str(caught.value).partition("train one from it with ")
    assert shlex.split(line)[1:] == [
        *("train", "experiment=classify", "weights=run", f"weights.path={other}", "data.path=…")
    ]


WORDS = [f"w{n}" for n in range(40)]


def test_classifier_learns_from_scratch_with_the_defaults(tmp_path, capsys):
    """The texts are random words, 30 % of them typical of the class, so that a bag of words separates the classes."""
    draw = random.Random(0)
    lines = []
    for n in range(400):
        label = n % 2
        own = WORDS[5 * label : 5 * label + 5]
        words = [draw.choice(own if draw.random() < 0.3 else WORDS[10:]) for _ in range(20)]
        lines.append(json.dumps({"text": " ".join(words), "label": f"class {label}"}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    words = [
        *("task=classification", "data=labelled", f"data.path={tmp_path / 'rows.jsonl'}"),
        *("tokenizer=word", "size=nano", "size.context_length=16", "hardware=cpu"),
        *("hardware.precision=32", "hardware.threads=1", "trainer.max_steps=90"),
    ]
    with (
        initialize_config_module("llm.conf", version_base="1.3"),
        pytest.warns(UserWarning, match="400 of 400 texts have more than 16 .*context_length=20"),
    ):
        run = run_command(compose("train", words), tmp_path / "run")
    assert run.record["metrics"]["test/accuracy"] > 0.95
    with run.metrics.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val/loss"]]
    best = max(rows, key=lambda row: (float(row["val/balanced_accuracy"]), -float(row["val/loss"])))
    assert run.record["best_step"] == int(best["step"])
    assert "warning" not in capsys.readouterr().out
