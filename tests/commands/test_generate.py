"""`llm generate`: needs only a run directory."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from small_runs import run_command

from llm.commands import generate
from llm.config.errors import ConfigError
from llm.generation.prompts import read_prompts
from llm.runs import Run
from llm.tokenizers.base import load as load_tokenizer

# The first test that trains the tokenizer gets this warning: the text has too few pairs for 300 tokens.
pytestmark = pytest.mark.filterwarnings("ignore:the training text of")

CASES = Path(__file__).parents[1] / "cases"


@pytest.fixture(scope="module")
def run(tmp_path_factory, module_text) -> Run:
    """A trained run whose text and cache were deleted."""
    folder = tmp_path_factory.mktemp("writing")
    words = [
        *("size=nano", "tokenizer=bpe", "tokenizer.vocab_size=300", "data=text"),
        *(f"data.path={module_text}", "hardware=cpu", "hardware.precision=32"),
        *(
            "trainer.max_steps=60",
            "callbacks.samples=null",
            "callbacks.picture=null",
            "optimizer.lr=0.01",
        ),
    ]
    with (
        pytest.MonkeyPatch.context() as patch,
        initialize_config_module("llm.conf", version_base="1.3"),
    ):
        patch.setenv("LLM_CACHE", str(folder / "cache"))
        trained = run_command(compose("train", words), folder / "run")
    module_text.unlink()
    return trained


@pytest.fixture(scope="module")
def module_text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on the mat. the dog ran under the house.\n" * 200)
    return path


@pytest.fixture
def written(run):
    """Run `llm generate` with overrides, and return the continuations."""

    def write(*overrides: str) -> list[str]:
        with initialize_config_module("llm.conf", version_base="1.3"):
            config = compose(
                "generate", [f"weights.path={run.path}", "hardware.accelerator=cpu", *overrides]
            )
        return run_command(config)

    return write


def test_generate_continues_the_prompt_in_learned_words(written, capsys):
    (text,) = written("prompt='the cat'", "max_tokens=30", "sampler.temperature=0")
    assert capsys.readouterr().out == f"the cat{text}\n"
    learned = set("the cat sat on mat. dog ran under house.".split())
    assert len(set(text.split()) & learned) >= 3


def test_prompt_longer_than_the_context_is_reported(written, capsys):
    written(f"prompt='{'the cat sat. ' * 80}'", "max_tokens=1")
    assert "more than the model's context of" in capsys.readouterr().err


def test_same_seed_generates_the_same_text(written):
    words = ("prompt='the'", "max_tokens=40", "sampler.temperature=1.5", "sampler.top_k=null")
    assert written(*words, "seed=1") == written(*words, "seed=1")
    assert written(*words, "seed=1") != written(*words, "seed=2")


def test_generation_stops_before_a_stop_string(written, capsys):
    (text,) = written("prompt='the cat'", "max_tokens=60", "sampler.temperature=0", "stop=['.']")
    assert "." not in text
    assert "." not in capsys.readouterr().out


def test_one_stop_string_needs_no_list(written):
    words = ("prompt='the cat'", "max_tokens=60", "sampler.temperature=0")
    assert written(*words, "stop=at.") == written(*words, "stop=['at.']")


def test_file_of_prompts_is_continued_as_one_batch(written, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("the cat\n\nthe dog ran\n")
    words = ("max_tokens=10", "sampler.temperature=0")
    texts = written(f"prompts_file={tmp_path / 'prompts.txt'}", *words)
    assert len(texts) == 2
    assert "=== 2\nthe dog ran" in capsys.readouterr().out
    assert texts[0] == written("prompt='the cat'", *words)[0], "a row does not depend on the others"
    assert texts == written("prompt=['the cat','the dog ran']", *words), (
        "prompts of a file equal a list"
    )


def test_a_list_of_no_prompts_is_refused(written):
    with pytest.raises(ConfigError, match=r"^prompt: \[\] has no prompts"):
        written("prompt=[]")


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        (b"\xef\xbb\xbfone\r\ntwo", ["one", "two"]),
        ("one\ftwo\u2028three\rfour\n".encode(), ["one\ftwo\u2028three\rfour"]),
        ("é\n日本".encode("utf-16"), ["é", "日本"]),
        ((CASES / "prompts_bom.txt").read_bytes(), ["one", "two"]),
    ],
    ids=["mark", "feeds", "utf-16", "case"],
)
def test_only_line_feeds_end_a_prompt(tmp_path, content, prompts):
    (tmp_path / "prompts.txt").write_bytes(content)
    assert read_prompts("", str(tmp_path / "prompts.txt")) == prompts


def test_prompts_file_that_is_not_text_is_reported_in_one_line(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    (tmp_path / "x.parquet").write_bytes((CASES / "x.parquet").read_bytes())
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n")
    for name, problem in [
        ("latin.txt", "1 bytes are not UTF-8; save it as UTF-8, or with a byte-order mark"),
        ("binary.txt", "has NUL characters, .*; save it as UTF-8, or with a byte-order mark"),
        ("x.parquet", "is a Parquet file, not text; name a text file with one prompt a line"),
        ("picture.png", "is a PNG image, not text; name a text file with one prompt a line"),
    ]:
        with pytest.raises(ConfigError, match=rf"prompts_file: .*{name}.* {problem}$"):
            read_prompts("", str(tmp_path / name))


def test_an_empty_prompt_begins_a_document(written, capsys):
    (text,) = written("max_tokens=5", "sampler.temperature=0")
    assert capsys.readouterr().out == f"{text}\n"


def test_a_missing_prompts_file_is_named(written, tmp_path):
    with pytest.raises(ConfigError, match=r"prompts_file: .*nowhere\.txt does not exist"):
        written(f"prompts_file={tmp_path / 'nowhere.txt'}")


def test_flipped_byte_in_the_weights_is_detected(run, written):
    original = run.best.read_bytes()
    damaged = bytearray(original)
    damaged[len(damaged) // 2] ^= 1
    run.best.write_bytes(damaged)
    try:
        with pytest.raises(ConfigError, match=r"best\.ckpt is damaged.*SHA-256"):
            written("prompt='the'")
    finally:
        run.best.write_bytes(original)


def test_a_run_without_a_checkpoint_is_named(run, written, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in (run.config, run.tokenizer):
        (bare / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match=r"weights\.path: .*bare.*there is no such checkpoint"):
        written(f"weights.path={bare}", "prompt='the'")


def test_error_names_the_wrong_key(run, written, monkeypatch):
    load = generate.load_language_model

    def broken(*arguments):
        model = load(*arguments)
        torch.nn.init.constant_(model.final_norm.weight, torch.nan)
        return model

    monkeypatch.setattr(generate, "load_language_model", broken)
    with pytest.raises(ConfigError, match=r"^weights: the model's logits are NaN"):
        written("prompt='the'")
    monkeypatch.setattr(type(load_tokenizer(run.tokenizer)), "end_of_text", None)
    with pytest.raises(ConfigError, match=r"^prompt: an empty prompt"):
        written()
