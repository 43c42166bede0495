"""`dry_run=true`: a row per point without training, and points that cannot be counted."""

from itertools import islice
from pathlib import Path

import pytest
from made_folders import SHAPES, make_folder
from omegaconf import OmegaConf
from small_runs import checked_points

from llm.__main__ import main
from llm.config.composition import compose
from llm.config.errors import ConfigError
from llm.config.loader import open_loader
from llm.planning.cost import context
from llm.planning.matching import match
from llm.training import dry_run, lifecycle
from llm.training.forecast import forecast


@pytest.fixture(scope="module")
def loader():
    return open_loader("pkg://llm.conf")


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """A published chat model with a context of 256 tokens."""
    return make_folder(SHAPES["smollm2"], tmp_path_factory.mktemp("published"))


@pytest.fixture(autouse=True)
def rate(monkeypatch):
    """Skip the measurement of the machine: one TFLOP/s, and no bfloat16."""
    monkeypatch.setattr("llm.planning.device.matmul_rate", lambda dtype: 1e12)
    monkeypatch.setattr("llm.planning.device.faster_precision", lambda accelerator: 32)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def rows(text: str) -> list[list[str]]:
    """Return the cells of the printed table, without notes."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("·")]
    return [[cell for cell in line.split("  ") if cell.strip()] for line in lines[2:]]


def test_each_point_is_a_row(loader, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["model=gpt2,llama", "size=nano", "seed=1,2", "tokenizer=byte", "trainer.max_steps=100"]
    dry_run.show_dry_run(checked_points(loader, "train", words, is_sweep=True))
    table = rows(capsys.readouterr().out)
    labels = [line[0].strip() for line in table]
    assert labels == [
        f"model={model} seed={seed}" for model in ("gpt2", "llama") for seed in (1, 2)
    ]
    parameters, per_token, tokens, flops, memory, time = map(str.strip, table[0][1:])
    assert (parameters, tokens) == ("121 k", "51.2 k")
    assert (per_token, flops) == ("7.98e05", "4.08e10")
    assert memory.endswith("MiB")
    assert time == "0.10 s"  # 4.08e10 FLOPs at 40 % of 1e12 a second
    assert table[0][1:] == table[1][1:] != table[2][1:]
    assert list(tmp_path.iterdir()) == []  # nothing was trained, nothing written


def test_values_that_need_the_data_are_marked(loader, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_CACHE", str(tmp_path))
    words = ["size=nano", "tokenizer=byte", "trainer.max_steps=null", "trainer.max_epochs=1"]
    dry_run.show_dry_run(checked_points(loader, "train", words))
    output = capsys.readouterr().out
    assert "needs data" in output
    assert rows(output)[0][-1].strip() == "–"  # the time is unknown too


CASE = Path(__file__).parents[1] / "cases" / "prompt_completion.json"
FINETUNE = [
    *("experiment=instruct", "weights=scratch", "model=gpt2", "size=nano", "tokenizer=byte"),
    *("size.context_length=1024", "hardware=cpu", "trainer.max_epochs=3"),
]


def test_a_finetune_is_counted_with_the_lengths_of_its_rows(loader, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_CACHE", str(tmp_path))  # an empty cache, without the published rows
    memory, printed = [], []
    for words in ([f"data.path={CASE}"], [], ["data.malformed=skip", f"data.path={CASE}"]):
        points = checked_points(loader, "train", [*FINETUNE, *words])
        dry_run.show_dry_run(points)
        printed.append(capsys.readouterr().out)
        memory.append(forecast(points[0]).memory.total)
    assert memory[0] < memory[1] / 10
    assert ["upper bound" in each for each in printed] == [False, True, False]
    assert memory[0] == memory[2]
    cost = forecast(points[0]).cost
    data = lifecycle.prepare_data(points[0].composed.config, None)
    assert cost.steps == 3 * data.batches_per_epoch
    assert cost.tokens_per_step == round(data.tokens_per_batch)
    batch = max(batch["tokens"].shape[1] for batch in islice(data.train_dataloader(), 5))
    assert context(points[0].composed.config) == batch


def test_pairs_are_counted_as_two_rows(loader):
    words = [*FINETUNE[1:], "experiment=prefer", f"data.path={CASE.with_name('pref_prompt.json')}"]
    (point,) = checked_points(loader, "train", words)
    data = lifecycle.prepare_data(point.composed.config, None)
    longest = max(batch["tokens"].shape[1] for batch in islice(data.train_dataloader(), 5))
    assert context(point.composed.config) == longest


def test_several_devices_share_the_memory(loader, capsys):
    words = ["size=nano", "tokenizer=byte", "data.batch_size=64", "hardware.precision=32"]
    held = []
    for more in (
        [],
        ["hardware=ddp", "hardware.devices=4"],
        ["hardware=fsdp", "hardware.devices=4"],
    ):
        [point] = checked_points(loader, "train", [*words, *more])
        held.append(dry_run.forecast(point).memory.total)
    assert held[0] > held[1] > held[2]


def test_ranks_on_a_cpu_share_the_machine(loader):
    """Two machines with two ranks are as fast as two with one."""
    words = ["size=nano", "tokenizer=byte", "data.batch_size=8", "hardware.precision=32"]
    found = []
    for devices in (1, 2):
        shape = ["hardware=ddp", f"hardware.devices={devices}", "hardware.num_nodes=2"]
        [point] = checked_points(loader, "train", [*words, *shape])
        found.append(dry_run.forecast(point))
    alone, shared = found
    assert shared.device.memory == alone.device.memory / 2 == shared.room(shared.strategy)
    assert shared.room(None) == alone.device.memory
    assert shared.seconds() == alone.seconds()


def test_batch_that_cannot_be_divided_is_refused_in_one_line(loader):
    words = ["size=nano", "hardware=ddp", "hardware.devices=3", "tokenizer=byte"]
    with pytest.raises(ConfigError, match="cannot be divided into 3 equal parts") as refusal:
        dry_run.show_dry_run(checked_points(loader, "train", words))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("experiment", ["shakespeare", "instruct"])
def test_a_batch_without_rows_is_refused_in_a_line(experiment, loader):
    words = [f"experiment={experiment}", "size=nano", "data.batch_size=0", "tokenizer=byte"]
    with pytest.raises(ConfigError, match=r"^data.batch_size: 0 is out of range; give 1 or more$"):
        dry_run.show_dry_run(checked_points(loader, "train", words))


def test_an_invalid_optimizer_is_refused_by_its_key(loader):
    words = ["size=nano", "tokenizer=byte", "optimizer.betas=[0.9]"]
    with pytest.raises(ConfigError, match=r"^optimizer: betas=\[0.9\]: is not a pair"):
        dry_run.show_dry_run(checked_points(loader, "train", words))


def test_data_of_a_function_are_counted(loader, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # so that the long name of the point stays in one line
    words = ["size=nano", "tokenizer=byte", "data=text", "data.path=x.txt", "trust=[made_data]"]
    words += ["data._target_=made_data.my_data", "trainer.max_steps=10"]
    keys = [key for key in compose(loader, "train", words).config.data if key != "_target_"]
    (tmp_path / "made_data.py").write_text(
        "from llm.data.base import DataModule\n"
        f"def my_data({', '.join(keys)}) -> DataModule:\n"
        "    raise NotImplementedError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    dry_run.show_dry_run(checked_points(loader, "train", words))
    [row] = rows(capsys.readouterr().out)
    assert row[3].strip() == "needs data"
    assert row[5].strip().endswith("MiB")


@pytest.mark.parametrize("command", ["train", "train -m dry_run=true", "plan"])
def test_data_of_a_function_need_a_batch_size(command, tmp_path, monkeypatch, capsys):
    (tmp_path / "sized_data.py").write_text(
        "from llm.data.base import DataModule\ndef my_data() -> DataModule: ...\n"
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "own.yaml").write_text("_target_: sized_data.my_data\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--config-dir", str(tmp_path), "data=own", "trust=[sized_data]", "size=nano"]
    monkeypatch.setattr("sys.argv", ["llm", *command.split(), *words])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == (
        "data.batch_size: sized_data.my_data has no such argument, which is the number of rows in a batch; add it to "
        "the function and to its config\n"
    )


UNSUITABLE = {
    "hardware=tensor_parallel hardware.devices=3 data.batch_size=6": "num_heads=2 .*hardware.strategy.size",
    "model=mamba2 hardware=tensor_parallel hardware.devices=2 data.batch_size=6": (
        "hardware.strategy: blocks.0.attention.A_log: .* cannot divide Mamba2: use hardware=fsdp"
    ),
    "hardware=pipeline hardware.devices=3 data.batch_size=6": "3 stages need a block each",
    "hardware=pipeline hardware.devices=2 data.batch_size=3": "3 rows cannot be divided into 2",
    "hardware=fsdp hardware.devices=2 hardware.precision=fp16": "precision=fp16: sharded weights",
}


@pytest.mark.parametrize("words", UNSUITABLE)
def test_settings_that_devices_cannot_divide_are_refused_before_anything_runs(loader, words):
    """By dry_run=true, and by a sweep before its first job."""
    common = ["size=nano", "tokenizer=byte", "hardware.accelerator=cpu"]
    if "model=" not in words:
        common.append("model=llama")
    points = checked_points(loader, "train", [*common, *words.split(), "seed=1,2"], is_sweep=True)
    with pytest.raises(ConfigError, match=UNSUITABLE[words]) as refusal:
        dry_run.show_dry_run(points)
    assert "\n" not in str(refusal.value)
    with pytest.raises(ConfigError, match=UNSUITABLE[words]) as refusal:
        dry_run.require_divisible(points)
    assert [line.split(" | ")[0] for line in refusal.value.problems] == ["seed=1", "seed=2"]


def test_missing_deepspeed_is_reported_if_it_is_needed(loader, monkeypatch):
    monkeypatch.setattr("llm.parallel.zero.find_spec", lambda name: None)
    words = ["size=nano", "tokenizer=byte", "hardware=zero2", "hardware.accelerator=cpu"]
    with pytest.raises(ConfigError, match="needs DeepSpeed"):
        dry_run.show_dry_run(checked_points(loader, "train", words))


def test_matching_is_shown_with_the_remaining_differences(loader, capsys):
    words = ["model=gpt2,llama", "size=micro", "tokenizer=byte", "match=parameters"]
    points = checked_points(loader, "train", words, is_sweep=True)
    dry_run.show_matched(points, match([point.composed.config for point in points], "parameters"))
    output = capsys.readouterr().out
    assert "model.feed_forward.hidden_dim=" in output
    assert rows(output)[0][1:] == ["  0 %"] * 4 or "0 %" in output
    assert "size.dim" not in output


def test_changed_width_of_the_model_is_reported(loader, capsys):
    """An untied head of 4,096 tokens has more parameters than the feed-forward layers can lose."""
    words = ["model=gpt,llama", "size=nano", "tokenizer=bpe", "match=parameters"]
    points = checked_points(loader, "train", words, is_sweep=True)
    dry_run.show_matched(points, match([point.composed.config for point in points], "parameters"))
    output = capsys.readouterr().out
    assert "  size.dim=40 (for 64)" in output
    assert (
        "become less than 0.5 or more than 2 times as wide, so the width of the whole model was changed"
        in output
    )


def test_experts_shrunk_by_matching_are_reported_with_the_measure_that_counts_active_ones(
    loader, capsys
):
    words = ["model=llama,qwen3_moe", "size=nano", "tokenizer=byte", "name=moe"]
    points = checked_points(loader, "train", [*words, "match=parameters"], is_sweep=True)
    dry_run.show_matched(points, match([point.composed.config for point in points], "parameters"))
    output = capsys.readouterr().out
    assert "match=active_parameters" in output
    assert dry_run.labels(points) == ["model=llama", "model=qwen3_moe"], "without names"


def test_run_from_weights_has_their_size(loader, tmp_path):
    [base] = checked_points(loader, "train", ["model=llama", "size=nano"])
    base.tree.model.vocab_size = 300
    OmegaConf.save(OmegaConf.to_container(base.tree, resolve=True), tmp_path / "config.yaml")
    words = ["experiment=spam", "weights=run", f"weights.path='{tmp_path}'", "adapter=lora"]
    [point] = checked_points(loader, "train", words)
    found = dry_run.forecast(point)
    assert found.cost.embedding == 300 * 64 + 2 * 64 + 2  # with the head of a classifier
    assert found.cost.trained < found.cost.parameters / 2
    assert found.memory.optimizer < found.memory.weights  # only LoRA's parameters have a state


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.context_length=200", None),
        ("weights.context_length=200", None),
        ("data.context_length=512", r"data.context_length: 512 is more than the 256 tokens of "),
        ("size.context_length=200", r"for shorter examples: weights.context_length=200"),
        ("weights.context_length=512", r"weights.context_length: 512 is more than the 256 tokens"),
    ],
)
def test_context_of_published_weights_is_kept(word, message, chat_model, loader, capsys):
    words = ["experiment=instruct", "weights=llama", f"weights.path={chat_model}", "hardware=cpu"]

    def show():
        dry_run.show_dry_run(checked_points(loader, "train", [*words, word]))

    if message is None:
        show()
        assert "parameters" in capsys.readouterr().out
    else:
        with pytest.raises(ConfigError, match=message):
            show()
