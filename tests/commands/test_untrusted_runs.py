"""A run from an untrusted source: no command reads or writes anything outside it."""

import json
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from llm import __main__ as command_line
from llm.checkpoints.checkpoint_file import load_checkpoint, save_checkpoint
from llm.config.build import build
from llm.files import FileError, sha256_of_file
from llm.runs import FORMAT, Run
from llm.tokenizers.byte import ByteTokenizer
from llm.tokenizers.char import CharTokenizer
from llm.weights.tokenizer_files import write_tokenizer

# A model with this vocabulary generates almost only control characters, which a terminal would execute.
CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"]
TOKENIZER = CharTokenizer("".join(CONTROLS) + "a")
NANO = ["size=nano", "size.dim=16", f"model.vocab_size={TOKENIZER.vocab_size}", "hardware=cpu"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run directory with a nano model, as training leaves it."""
    with initialize_config_module("llm.conf", version_base="1.3"):
        config = compose("train", NANO)
    run = Run(tmp_path_factory.mktemp("untrusted") / "run")
    run.update(status="done", steps=3)
    OmegaConf.save(OmegaConf.create(OmegaConf.to_container(config, resolve=True)), run.config)
    TOKENIZER.save(run.tokenizer)
    model = build(config.model)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    save_checkpoint({"state_dict": state, "global_step": 3}, run.best)
    return run.path


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy of the run, for tests that damage it."""
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """refused("generate", …): return the error message of a command, which must be one line."""

    def refused(*words: str, status: int = 2) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["llm", *words])
        with pytest.raises(SystemExit) as end:
            command_line.main()
        told = capsys.readouterr().err
        assert end.value.code == status, told
        assert told.count("\n") == 1, told
        return told

    return refused


COMMANDS = {
    "generate": ("generate", "max_tokens=2", "hardware.accelerator=cpu", "weights.path=RUN"),
    "export": ("export", "output=exported", "weights.path=RUN"),
    "evaluate": ("evaluate", "hardware.accelerator=cpu", "weights.path=RUN"),
    "train": ("train", "weights=run", "hardware=cpu", "name=new", "weights.path=RUN"),
}


def words(command: str, run: Path) -> list[str]:
    return [word.replace("RUN", str(run)) for word in COMMANDS[command]]


@pytest.mark.parametrize("command", ["generate", "export", "evaluate", "train", "again"])
def test_run_of_another_format_is_refused_and_not_changed(command, run, refused):
    record = json.loads((run / "run.json").read_text())
    assert record.pop("format") == FORMAT
    (run / "run.json").write_text(json.dumps(record))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    again = ["train", "rerun=true", "name=run", f"output_dir={run.parents[1]}", "hardware=cpu"]
    if command == "again":  # the path at which `llm train` finds the run by its name
        (run.parents[1] / "pretraining").mkdir()
        run = run.rename(run.parents[1] / "pretraining" / "run")
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    told = refused(*(again if command == "again" else words(command, run)))
    assert f"run.json: has format 1, and this version of llm reads format {FORMAT}; use " in told
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("generate", "config.yaml"),
        ("generate", "run.json"),
        ("export", "tokenizer.json"),
        ("evaluate", "responses.json"),
        ("evaluate", "evaluation.json"),
        ("train", "checkpoints"),
    ],
)
def test_link_that_leads_out_of_a_run_is_not_followed(command, place, run, refused, tmp_path):
    mine = tmp_path / "mine"
    if (run / place).exists():
        shutil.move(run / place, mine)
    else:
        mine.write_text("mine")
    (run / place).symlink_to(mine)
    assert f"{place}: is a link that leads out of its folder" in refused(*words(command, run))
    if mine.is_file() and place not in ("config.yaml", "run.json", "tokenizer.json"):
        assert mine.read_text() == "mine"


@pytest.mark.parametrize("place", ["config.yaml", "run.json", "checkpoints/best.ckpt"])
def test_pipe_in_a_run_is_refused_without_waiting(place, run, refused):
    (run / place).unlink()
    os.mkfifo(run / place)
    assert f"{place}: is neither a file nor a folder" in refused(*words("generate", run))


def test_text_of_a_run_is_printed_escaped(run, refused, capsys, monkeypatch):
    record = json.loads((run / "run.json").read_text())
    record |= {"status": "failed", "error": "\x1b]0;owned\x07", "overrides": {"\x1b[2Jx": "\x9b1m"}}
    (run / "run.json").write_text(json.dumps(record))
    (run / "metrics.csv").write_text("step,val/loss\n1,2.0\n")
    for line in (["compare", str(run)], [*words("generate", run), "max_tokens=30"]):
        monkeypatch.setattr(sys, "argv", ["llm", *line])
        command_line.main()
        told = capsys.readouterr().out
        assert not set(told) & set(CONTROLS)
        assert set(told) & set("␛�")


def rewrite(run: Path, **nodes: Any) -> None:
    config = OmegaConf.load(run / "config.yaml")
    for key, node in nodes.items():
        OmegaConf.update(config, key, node, merge=False, force_add=True)
    OmegaConf.save(config, run / "config.yaml")


LORA = {"_target_": "llm.adapters.lora.LoRA", "rank": 2, "alpha": 4.0, "targets": ["query"]}


def test_weights_named_by_the_run_are_not_downloaded(run, refused, monkeypatch):
    asked = []

    def snapshot_download(name: str, **how: Any) -> str:
        asked.append((name, how["local_files_only"]))
        raise FileNotFoundError("no such snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    hub = {"_target_": "llm.weights.gpt2.GPT2Weights", "path": "somebody/model"}
    rewrite(run, adapter=LORA, weights=hub)
    told = refused(*words("generate", run))
    assert "somebody/model on Hugging Face's hub is named by" in told
    assert "not by you, so it is not downloaded" in told
    assert "+weights.base=" in told
    refused(*words("generate", run), "+weights.base=somebody/model")
    assert asked == [("somebody/model", True), ("somebody/model", False)]


def test_data_named_by_the_run_are_not_downloaded(run, refused, monkeypatch, tmp_path):
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pooch.retrieve", lambda *_, **__: pytest.fail("fetched"))
    url = "http://127.0.0.1:9/text.txt"
    published = {"url": url, "sha256": "0" * 64, "file_name": "text.txt"}
    rewrite(run, **{"data.source": {"_target_": "llm.data.download.Download", **published}})
    told = refused(*words("evaluate", run))
    assert f"{url} is named by {run}, not by you, so it is not downloaded" in told


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_wrong_type_of_a_runs_weights_is_not_built(command, run, refused, tmp_path):
    logger = {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(tmp_path / "log")}
    rewrite(run, adapter=LORA, weights=logger)
    assert "CSVLogger" in refused(*words(command, run))
    assert not (tmp_path / "log").exists()


def test_a_run_that_begins_from_itself_is_refused(run, refused):
    itself = {"_target_": "llm.weights.run.RunWeights", "path": str(run)}
    rewrite(run, adapter=LORA, weights=itself)
    assert "starts from itself" in refused(*words("generate", run))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            "num_layers",
            10**9,
            "model.num_layers: 1000000000 is out of range; give 1 or more and at most 1024",
        ),
        ("dim", 2**18, "GiB of this machine; choose a smaller size"),
        ("feed_forward.hidden_dim", 10**18, "hidden_dim: 1000000000000000000 is out of range"),
    ],
)
def test_sizes_are_checked_before_anything_is_built(key, value, told, run, refused):
    rewrite(run, **{f"{node}.{key}": value for node in ("model", "task.model")})
    if key == "dim":
        rewrite(run, **{f"{node}.position.dim": value for node in ("model", "task.model")})
    assert told in refused(*words("generate", run))


def test_sizes_of_a_published_model_are_checked_before_it_is_built(refused, tmp_path):
    sizes = {"num_hidden_layers": 10**9, "hidden_size": 16, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "vocab_size": 257, "max_position_embeddings": 64}
    write_tokenizer(ByteTokenizer(), tmp_path, context_length=64)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))
    told = refused("generate", "weights=llama", f"weights.path={tmp_path}")
    assert "num_layers: 1000000000 is out of range; give 1 or more and at most 1024" in told


BROKEN = {
    "empty": b"",
    "truncated": b'{"kind": "byte", "sta',
    "list": b"[1, 2]",
    "other": b'{"a": "b"}',
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("place", ["config.yaml", "run.json", "tokenizer.json"])
def test_a_broken_file_of_a_run_is_named_in_one_line(place, content, run, refused):
    if (place, content) == ("run.json", BROKEN["other"]):
        return  # a record with unknown entries is valid
    (run / place).write_bytes(content)
    assert place in refused(*words("generate", run))


def test_folder_at_the_path_of_a_file_is_named(run, refused):
    (run / "tokenizer.json").unlink()
    (run / "tokenizer.json").mkdir()
    assert "tokenizer.json: cannot be read (Is a directory)" in refused(*words("generate", run))


def test_compressed_checkpoint_is_not_read(run, refused):
    """Its pickle could be a thousand times as large as the file."""
    path = run / "checkpoints" / "best.ckpt"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content + bytes(2**20) * name.endswith("data.pkl"))
    record = path.with_name("sha256.json")
    record.write_text(json.dumps({"best.ckpt": [sha256_of_file(path)]}))
    assert "best.ckpt: is compressed" in refused(*words("generate", run))
    with pytest.raises(FileError, match="is compressed"):
        load_checkpoint(path)


def test_merges_that_double_a_token_do_not_fill_the_memory(run, refused):
    merges = [[97, 97], *([256 + n, 256 + n] for n in range(50))]
    (run / "tokenizer.json").write_text(json.dumps({"kind": "bpe", "merges": merges}))
    assert "the tokens have more than 67,108,864 bytes" in refused(*words("generate", run))


READERS = {
    **COMMANDS,
    "evaluate": (*COMMANDS["evaluate"], "test_path=RUN/text.txt"),
    "train": (*COMMANDS["train"], "data=text", "data.path=RUN/text.txt"),
    "chat": ("chat", "hardware.accelerator=cpu", "template=plain", "weights.path=RUN"),
    "classify": ("classify", "hardware.accelerator=cpu", "text=a", "weights.path=RUN"),
    "plan": ("plan", "weights=run", "weights.path=RUN"),
}
WAYS = ["truncated", "empty", "binary", "pipe", "folder", "link"]
READ = ["run.json", "config.yaml", "tokenizer.json", "checkpoints/best.ckpt"]
READS_LESS = {"classify": 2, "plan": 2}  # commands that need only the first files of these


def break_file(file: Path, way: str, outside: Path) -> None:
    content = file.read_bytes()
    file.unlink()
    if way == "pipe":
        os.mkfifo(file)
    elif way == "folder":
        file.mkdir()
    elif way == "link":
        outside.write_bytes(content)
        file.symlink_to(outside)
    else:
        broken = {
            "truncated": content[: len(content) // 2],
            "empty": b"",
            "binary": b"\x00\xff\x80",
        }
        file.write_bytes(broken[way])


@pytest.mark.parametrize("number", range(len(READERS)), ids=READERS)
def test_every_command_names_a_broken_file_of_a_run(number, made, refused, tmp_path):
    """Every command, every file and every kind of damage, but not every combination of the three."""
    command = list(READERS)[number]
    for place, name in enumerate(READ[: READS_LESS.get(command, len(READ))]):
        way = WAYS[(number + place) % len(WAYS)]
        run = Path(shutil.copytree(made, tmp_path / f"{place}" / "run"))
        (run / "text.txt").write_text("a" * 5_000)
        break_file(run / name, way, tmp_path / "outside")
        told = refused(*(word.replace("RUN", str(run)) for word in READERS[command]))
        assert name in told, (command, name, way)
