"""The command line: fast answers, literal values, and completion."""

import json
import os
import subprocess
import sys
from pathlib import Path

import llm.conf as llm_conf
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from made_runs import make
from omegaconf import OmegaConf

import llm.__main__ as command
from llm import __version__
from llm.config.allowlist import ROOTS
from llm.config.command_info import CommandInfo
from llm.config.command_line import gather_folders, parse
from llm.config.texts import as_text

BERT_PREDICTS = (
    "model: BERT sees the tokens that it would have to predict; finetune it as a classifier "
    "(experiment=classify), or choose a causal model such as model=gpt"
)
NO_WEIGHTS = "weights: scratch has learned nothing; use weights=run weights.path=…"
# Rules that compare sections of a configuration: a command line that breaks each, and the error.
ACROSS = [
    ("train model=bert", BERT_PREDICTS),
    ("train model=bert dry_run=true", BERT_PREDICTS),
    ("plan model=bert tokenizer=byte trainer.max_steps=1", BERT_PREDICTS),
    ("train -m model=bert,gpt2", f"model=bert | {BERT_PREDICTS}"),
    ("train experiment=instruct model=bert", BERT_PREDICTS),
    ("train experiment=prefer model=bert", BERT_PREDICTS),
    ("train experiment=grpo model=bert", BERT_PREDICTS),
    (
        "train task=classification",
        "data: Classification needs data such as data=labelled, not TextDataModule; "
        "choose another data= or another task=",
    ),
    (
        "train data=labelled data.path=rows.csv dry_run=true",
        "data: Pretraining needs data such as data=text, not LabelledDataModule; "
        "choose another data= or another task=",
    ),
    (
        "train size=nano data.context_length=128",
        "data.context_length: 128 is more than the model's 64; set size.context_length, which sets both",
    ),
    (
        "train match=foo seed=x",
        "seed: 'x' is not an int; use a whole number such as 8\n"
        "match: 'foo' is not one of the choices; use parameters, active_parameters, flops, tokens or null",
    ),
    (
        "train +data=spam seed =3 size=[1",
        "seed: has no value; write seed=VALUE\n"
        "=3: has no key; write key=value\n"
        "size=[1: cannot be read; quote the value, twice for the shell: 'key=\"value\"'\n"
        "+data=spam: data has an option already; use data=spam to replace it",
    ),
    (
        "train model/layers=nope size=nano size.num_layers=1",
        "model.pattern=[3*rotary,nope]: needs 2 layers or more, and num_layers=1; use more layers",
    ),
    (
        "plan model/layers=nope model.pattern=[2*rotray,nope]",
        "model.pattern=[2*rotray,nope]: rotray is not in layers; did you mean rotary?",
    ),
    (
        "train model/layers=local_global size=nano model.pattern=[]",
        "model.pattern=[]: give a list of the kinds in layers, such as [local,full]",
    ),
    (
        "train model/layers=local_global size=nano model.pattern=5*local",
        "model.pattern=5*local: give a list of the kinds in layers, such as [local,full]",
    ),
    (
        "train model=llama +model.pattern=[local,full]",
        "model.pattern=[local,full]: there are no kinds of layers; choose some with model/layers=local_global, or "
        "define them in layers",
    ),
    (
        "train model=mistral size=nano model.mask.size=0",
        "model.mask.size=0: a window has at least one position, the query's own; give 1 or more",
    ),
    (
        "train model=mixtral size=nano model.feed_forward.num_experts=-2",
        "model.feed_forward.num_experts=-2: give 1 or more",
    ),
    (
        "train model=mamba2 model.attention.state_dim=0 model.attention.recurrence.chunk_size=0 "
        "model.attention.expand=0",
        "model.attention.expand: 0 is out of range; give 1 or more and at most 1048576\n"
        "model.attention.state_dim: 0 is out of range; give 1 or more and at most 1048576\n"
        "model.attention.recurrence.chunk_size: 0 is out of range; give 1 or more and at most 1048576",
    ),
    (
        "train model=gated_deltanet model.attention.value_head_dim=-1",
        "model.attention.value_head_dim: -1 is out of range; give 1 or more and at most 1048576",
    ),
    (
        "train model=llama model/attention=latent model.attention.latent_dim=0",
        "model.attention.latent_dim: 0 is out of range; give 1 or more and at most 1048576",
    ),
    (
        "train model=llama model/attention=mamba2",
        "model/attention=mamba2: has no qkv_bias, kernel, which model=llama sets; use model=mamba2, to which other "
        "options can be added",
    ),
    (
        "train model=gpt2 model/attention=lstm model.attention.bias=true",
        "model.attention.bias: no such key; there are dropout, recurrence\nmodel/attention=lstm: has no qkv_bias, "
        "kernel, which model=gpt2 sets; use model=lstm, to which other options can be added",
    ),
    (
        "train model=gru size=nano model.attention.recurrence._target_=llm.nn.lstm.naive_lstm",
        "model.attention.recurrence: naive_lstm does not compute what naive_gru does; use llm.nn.gru.naive_gru or "
        "llm.nn.gru.fused_gru, or a function of yours that takes input_weight, recurrent_weight, bias, real, starts",
    ),
    (
        "train model=lstm size=nano model.attention.recurrence._target_=llm.nn.gru.fused_gru",
        "model.attention.recurrence: fused_gru does not compute what naive_lstm does; use llm.nn.lstm.naive_lstm or "
        "llm.nn.lstm.fused_lstm, or a function of yours that takes input_weight, recurrent_weight, bias, real, starts",
    ),
    (
        "train model=mamba2 size=nano "
        "model.attention.recurrence._target_=llm.nn.gated_delta_rule.chunked_gated_delta_rule",
        "model.attention.recurrence: chunked_gated_delta_rule does not compute what recurrent_state_space does; use "
        "llm.nn.state_space_duality.recurrent_state_space or llm.nn.state_space_duality.chunked_state_space, or a "
        "function of yours that takes log_decay, b, c, state, starts",
    ),
    (
        "train model=gated_deltanet size=nano "
        "model.attention.recurrence._target_=llm.nn.state_space_duality.chunked_state_space",
        "model.attention.recurrence: chunked_state_space does not compute what recurrent_gated_delta_rule does; use "
        "llm.nn.gated_delta_rule.recurrent_gated_delta_rule or llm.nn.gated_delta_rule.chunked_gated_delta_rule, or a "
        "function of yours that takes log_decay, beta, state, starts",
    ),
    (
        "train model=lstm model/position=alibi size=nano",
        "model/position=alibi: needs model.attention.num_heads, which model/attention=lstm does not have; use "
        "model/position=none",
    ),
    (
        "train model=lstm model/attention=gru model/kernel=naive model/position=rotary size=nano",
        "model/kernel=naive: model/attention=gru has no kernel; leave it out, or use "
        "model.attention.recurrence._target_=llm.nn.gru.naive_gru\n"
        "model/position=rotary: needs model.attention.num_heads, model.attention.head_dim, which model/attention=gru "
        "does not have; use model/position=none",
    ),
    (
        "train model=lstm model/kernel=naive size=nano",
        "model/kernel=naive: model/attention=lstm has no kernel; leave it out, or use "
        "model.attention.recurrence._target_=llm.nn.lstm.naive_lstm",
    ),
    (
        "train model=mamba2 model.attention.kernel_size=0 model.attention.num_groups=0",
        "model.attention.num_groups: 0 is out of range; give 1 or more and at most 1048576\n"
        "model.attention.kernel_size: 0 is out of range; give 1 or more and at most 1048576",
    ),
    (
        "train model=gpt2 model/attention=value_residual size=nano size.num_layers=1",
        "model.attention: no layer has an earlier one whose values it could add to its own, so nothing changes; use "
        "more layers, or an attention without this part",
    ),
    (
        "train model=gpt2 model/attention=value_residual model/layers=shared_kv size=nano",
        "model.attention: no layer has an earlier one whose values it could add to its own, so nothing changes; use "
        "more layers, or an attention without this part",
    ),
    (
        "train model=lstm model/layers=local_global size=nano",
        "model.layers: local has a mask, and LSTM reads its tokens in order, without a mask; leave it out, or use "
        "model/layers=uniform",
    ),
    (
        "train model=lstm model/layers=nope size=nano",
        "model.layers: nope has a position, and LSTM reads its tokens in order, without a position; leave it out, "
        "or use model/layers=uniform",
    ),
    (
        "train model=bert model/layers=nope",
        "model/layers=nope: model=bert has no model/layers; leave it out",
    ),
    (
        "train -m model=bert,gpt2 model/layers=nope",
        "model=bert | model/layers=nope: model=bert has no model/layers; leave it out",
    ),
    (
        "train data=text data/template=chatml",
        "data/template=chatml: data=text has no data/template; leave it out",
    ),
    (
        "train experiment=instruct data/template=alpaca optimizer.lrr=2",
        "optimizer.lrr: no such key; did you mean optimizer.lr?",
    ),
    *(
        (
            f"train model=mamba2 model/residual={residual} size=nano",
            f"model.block.feed_forward: {block} arranges two sublayers; choose a feed-forward layer, or "
            "model/residual=pre_norm",
        )
        for residual, block in (("parallel", "ParallelBlock"), ("sandwich_norm", "SandwichBlock"))
    ),
    (
        "train model=mamba2 model/mask=sliding_window size=nano",
        "model.mask: no layer of this model uses it; leave it out",
    ),
    (
        "train model/layers=shared_kv model.pattern=[shared,own] size=nano",
        "model.layers: shared is layer 1, and no earlier layer has keys and values of its own with this layer's mask "
        "and position; put a kind that has them before it, such as model.pattern=[own,shared]",
    ),
    (
        "train model/layers=shared_kv size=nano data.batch_size=4 hardware=pipeline hardware.devices=2 "
        "hardware.accelerator=cpu",
        "hardware.strategy: pipeline parallelism sends the residual stream only, not the keys and values that layer 2 "
        "reads of layer 1: use hardware=fsdp",
    ),
    (
        "train adapter=lora",
        "adapter: it would freeze untrained weights; choose trained ones with weights=run "
        "weights.path=…, or use adapter=none",
    ),
    (
        "generate weights=scratch best_of=0",
        f"{NO_WEIGHTS}\nbest_of: 0 is not a number of responses; use 1, or more with a reward",
    ),
    (
        "generate weights=scratch best_of=3",
        f"{NO_WEIGHTS}\nbest_of: choosing among several responses needs a reward, and a reward needs several "
        "responses; set both, such as best_of=8 reward=run reward.path=outputs/reward/…",
    ),
]

HEAVY = ("torch", "lightning", "hydra", "omegaconf", "numpy")
HYDRA_ONLY = ("torch", "lightning", "numpy")


@pytest.fixture
def llm(monkeypatch, capsys):
    """Run a command line in this process; return status, output and errors."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["llm", *words])
        status = 0
        try:
            command.main()
        except SystemExit as error:
            status = error.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def imported(words, environment=None, names=HEAVY):
    """Return which of `names` a process has imported at the end of a command."""
    code = (
        "import sys, contextlib, io\n"
        "from llm.__main__ import main\n"
        f"sys.argv = ['llm', *{words!r}]\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main()\n"
        f"print([name for name in {names!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return json.loads(done.stdout.replace("'", '"'))


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"]])
def test_help_imports_nothing_heavy(words):
    assert imported(words) == []


@pytest.mark.parametrize(
    "words", [["train", "--cfg", "job"], ["train", "--help"], ["generate", "--help"]]
)
def test_showing_a_configuration_does_not_import_torch(words):
    assert imported(words, names=HYDRA_ONLY) == []


def test_misspelt_path_is_reported_with_all_other_problems(llm, tmp_path):
    (tmp_path / "notes").mkdir()
    path = tmp_path / "notse"
    words = ["data=text", f"data.path={path}", "optimizer.lr=fast", "+model.n_layers=3"]
    status, _, err = llm("train", *words)
    assert status == 2
    assert err.splitlines() == [
        f"data.path: {path} does not exist; did you mean {tmp_path / 'notes'}?",
        "model.n_layers: no such key; did you mean model.num_layers?",
        "optimizer.lr: 'fast' is not a float; use a number such as 0.1",
    ]


def test_wrong_key_is_reported_with_all_other_problems(llm):
    status, _, err = llm("train", "data.path=nowhere", "optimizer.lr=fast", "+model.n_layers=3")
    assert status == 2
    keys = [line.partition(": ")[0] for line in err.splitlines()]
    assert keys == ["data.path", "model.n_layers", "optimizer.lr"]


@pytest.mark.parametrize("words", [["model=gtp"], ["-m", "model=gtp"]])
def test_a_wrong_option_alone_does_not_import_torch(words):
    assert imported(["train", *words], names=HYDRA_ONLY) == []


def test_completion_does_not_import_torch(monkeypatch):
    monkeypatch.setenv("COMP_LINE", "llm train model=")
    assert imported(["-sc", "query=bash"], names=HYDRA_ONLY) == []


def test_help_lists_every_command_with_an_example(llm):
    status, out, _ = llm("--help")
    assert status == 0
    assert llm()[1] == out
    for name, each in command.COMMANDS.items():
        assert name in out
        assert each.example in out
        assert each.example.startswith(f"llm {name} ")


def test_version_is_printed(llm):
    assert llm("--version") == (0, f"llm {__version__}\n", "")


def test_unknown_command_gets_the_nearest_name(llm):
    assert llm("trian") == (2, "", "llm trian: no such command; did you mean train?\n")


@pytest.mark.parametrize("sweep", [(), ("-m",)])
def test_wrong_option_is_reported_with_wrong_keys_and_values(llm, sweep):
    """Values for the group whose option is wrong are not checked against the default option."""
    words = ("model=gtp", "model.dim=x", "trainer.mx_steps=3", "optimizer.lr=fast", "seed=x")
    status, out, err = llm("train", *sweep, *words)
    assert (status, out) == (2, "")
    assert [line.partition("; ")[0] for line in err.splitlines()] == [
        "model=gtp: no such option",
        "trainer.mx_steps: no such key",
        "seed: 'x' is not an int",
        "optimizer.lr: 'fast' is not a float",
    ]


def test_point_with_a_wrong_value_is_reported_with_a_wrong_key(llm):
    err = llm("train", "-m", "seed=1,x", "trainer.mx_steps=3")[2]
    assert [line.partition("; ")[0] for line in err.splitlines()] == [
        "trainer.mx_steps: no such key",
        "seed=x | seed: 'x' is not an int",
    ]


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("task=sfft data=instruction data.path=nowhere", ["task=sfft", "data.path"]),
        ("weights=gpt2x weights.path=nope", ["weights=gpt2x"]),
        ("model=llamma model.rope_base=3", ["model=llamma"]),
        ("experiment=instructt data.template=alpaca", ["experiment=instructt"]),
        ("task=sft data=shakespeare optimizer.lrr=1", ["optimizer.lrr", "data"]),
        ("model.dim.x=4 optimizer.lrr=1", ["model.dim.x", "optimizer.lrr"]),
        ("-m model.dim.x=4 seed=1,x", ["model.dim.x", "seed=x | seed"]),
        ("trainer.max_steps=inf", ["trainer.max_steps"]),
    ],
)
def test_each_mistake_is_one_line_and_causes_no_others(llm, words, keys):
    err = llm("train", *words.split())[2]
    assert [line.partition(": ")[0] for line in err.splitlines()] == keys


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_untrained_weights_and_an_empty_stop_text_are_reported_together(llm, command):
    status, out, err = llm(command, "weights=scratch", "stop=['.','']", "seed=x")
    assert (status, out) == (2, "")
    assert err.splitlines() == [
        "seed: 'x' is not an int; use a whole number such as 8",
        NO_WEIGHTS,
        "stop: one of the texts is empty; give at least one character, or leave it out",
    ]


@pytest.mark.parametrize("command", ["classify", "evaluate", "export"])
def test_command_that_needs_trained_weights_refuses_scratch(llm, command):
    words = {"classify": ("text=x",), "export": ("output=x",)}.get(command, ())
    assert llm(command, "weights=scratch", *words) == (2, "", f"{NO_WEIGHTS}\n")


def test_wrong_override_is_reported_in_one_line(llm):
    status, out, err = llm("train", "model=gpt3")
    assert (status, out) == (2, "")
    assert err.startswith("model=gpt3: no such option; did you mean gpt2?")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("line", "told"), ACROSS, ids=[line for line, _ in ACROSS])
def test_rules_across_sections_are_checked_on_the_command_line(
    llm, tmp_path, monkeypatch, line, told
):
    monkeypatch.chdir(tmp_path)
    assert llm(*line.split()) == (2, "", f"{told}\n")
    assert list(tmp_path.iterdir()) == []


def test_bert_can_be_trained_as_a_classifier(llm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("experiment=classify", "data.path=rows.csv", "tokenizer=byte", "model=bert")
    status, out, err = llm("train", *words, "dry_run=true")
    assert (status, err) == (0, "")
    assert "point" in out


def test_group_set_to_null_is_reported_in_one_line(llm):
    status, out, err = llm("generate", "+judge=null")
    assert (status, out) == (2, "")
    assert err == "judge=null: is not an option; choose one of none, openai\n"


@pytest.mark.parametrize("content", [b"\xd3\xff\x00 not text", b"model: [", b"\x00\x01"])
def test_config_that_is_not_text_is_reported_in_one_line_with_its_name(llm, tmp_path, content):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "broken.yaml").write_bytes(content)
    status, out, err = llm("train", "--config-dir", str(tmp_path), "model=broken")
    assert (status, out) == (2, "")
    assert "broken.yaml" in err
    assert err.count("\n") == 1


def test_failed_check_creates_no_files(llm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = llm("train", "+model.n_layers=3", "seed=x")
    assert status == 2
    assert "model.n_layers: no such key; did you mean model.num_layers?" in err.splitlines()
    assert "seed: 'x' is not an int; use a whole number such as 8" in err.splitlines()
    assert list(tmp_path.iterdir()) == []


def test_help_of_a_command_lists_groups_and_an_example(llm):
    status, out, _ = llm("train", "--help")
    assert status == 0
    assert command.COMMANDS["train"].example in out
    presets = sorted(path.stem for path in Path(llm_conf.__file__).parent.glob("model/*.yaml"))
    assert f"\nmodel: {', '.join(presets)}\n" in out
    assert "\nmodel/position: " in out


def test_help_of_a_command_omits_groups_that_it_does_not_use(llm):
    out = llm("generate", "--help")[1]
    assert "\nreward: contains, format, length, none, run\n" in out
    assert "\nmodel: " not in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["generate", "hardware=cpu"],
            "hardware=cpu: this command has keys of hardware, but not its options; set hardware.accelerator=cpu",
        ),
        (
            ["classify", "hardware=ddp"],
            "hardware=ddp: this command has keys of hardware, but not its options; set hardware.accelerator=… or "
            "hardware.precision=… or hardware.threads=…",
        ),
        (
            ["export", "foo=1"],
            "foo: no such group or key; there are dtype, format, max_shard_gb, output, overwrite, trust, weights",
        ),
        (
            ["generate", "data=text"],
            "data=text: this command does not use data; leave it out",
        ),
        (
            ["train", "name=a/b"],
            "name: a/b has a slash, which a folder name must not contain; leave it out",
        ),
        (
            ["train", "name=a\\b"],
            "name: a\\b has a backslash, which a folder name must not contain; leave it out",
        ),
        (
            ["train", "--experimental-rerun", "x.pickle"],
            "--experimental-rerun: is not supported; run the same command again to resume its run",
        ),
        (
            ["train", "--config-name", "nosuch"],
            "Cannot find primary config 'nosuch'. Check that it's in your config search path.",
        ),
        (
            ["generate", "hydra.run.dir=x"],
            "hydra.run.dir: only llm train has the directory of a run; leave it out",
        ),
        (
            ["train", "hydra.launcher.n_jobs=3"],
            "hydra.launcher.n_jobs: only a sweep uses it; add -m, or leave it out",
        ),
        (
            ["train", "trust=7"],
            "trust: 7 is not a Sequence[str]; use a list such as [word]",
        ),
        (
            ["train", "trust=os"],
            "trust: 'os' is not a Sequence[str]; use a list such as [word]",
        ),
        (
            ["train", "seed=x"],
            "seed: 'x' is not an int; use a whole number such as 8",
        ),
        (
            ["chat", "_partial_=true"],
            "_partial_: no such group or key; there are hardware, max_tokens, sampler, seed, stop, system, template, "
            "trust, weights",
        ),
        (
            ["compare", "prompt=hello"],
            "prompt: no such group or key; there are by, confidence, output, runs, seeds, trust, watch",
        ),
        (["train", "~model"], "~model: model is needed here; leave ~model out"),
        (
            ["train", "~model.dropout"],
            "~model.dropout: model.dropout is needed here; leave ~model.dropout out",
        ),
        (
            ["train", "~trainer.max_steps=3"],
            "~trainer.max_steps=3: trainer.max_steps is 1000; use ~trainer.max_steps to delete it",
        ),
        (
            ["train", "~optimizer=sgd"],
            "~optimizer=sgd: the option of optimizer is muon; use ~optimizer to delete it",
        ),
        *(
            (
                ["train", word],
                "hydra.run.dir: is empty; set it to the folder of the run, or leave it out",
            )
            for word in ("hydra.run.dir=null", "hydra.run.dir=", "~hydra.run.dir")
        ),
        (["compare", "x", "by=y"], "x: no such folder; name a sweep, a run, or a folder of runs"),
    ],
)
def test_user_error_is_one_line_and_status_2(llm, tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    assert llm(*words) == (2, "", line + "\n")


def test_missing_folder_of_configs_is_named(llm):
    assert llm("train", "--config-dir", "/nowhere")[2] == (
        "--config-dir /nowhere: no such folder; pass the folder of your configs\n"
    )


def test_folder_of_configs_is_passed_on_to_jobs_as_typed(tmp_path, monkeypatch):
    """A command with an absolute path works in every folder."""
    monkeypatch.chdir(tmp_path.parent)
    for typed in (str(tmp_path), tmp_path.name):
        line = parse("train", ["--config-dir", typed, "seed=1"])
        assert line.flags == ["--config-dir", typed]


def test_folders_need_no_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = "runs/python_docs,model=llama"  # a path that looks like an override but exists
    (tmp_path / run).mkdir(parents=True)
    words = ["--config-dir", "mine", "runs", "by=val/loss", run, "it's"]
    *others, gathered = gather_folders(words, "runs")
    assert others == ["--config-dir", "mine", "by=val/loss"]
    value = OverridesParser.create().parse_override(gathered).value()
    assert OmegaConf.create({"runs": value}).runs == ["runs", run, "it's"]
    assert gather_folders(["--help"], "runs") == ["--help"]


def test_runs_are_compared_without_torch(llm, tmp_path):
    make(tmp_path / "a")
    assert imported(["compare", str(tmp_path)], names=("torch", "lightning", "matplotlib")) == []


def test_runs_are_compared_from_the_command_line(llm, tmp_path):
    make(tmp_path / "a", [4.0], settings={"model": "gpt"})
    make(tmp_path / "b", [3.0], settings={"model": "llama"})
    status, out, _ = llm("compare", str(tmp_path), f"output={tmp_path}/out,=1")
    assert status == 0
    assert out.index("llama") < out.index("gpt")
    assert (tmp_path / "out,=1" / "table.csv").is_file()
    assert llm("compare", str(tmp_path / "c"))[::2] == (
        2,
        f"{tmp_path}/c: no such folder; name a sweep, a run, or a folder of runs\n",
    )


TEXTS = [
    "Hello, world (yes) = {ok}",
    "",
    "plain",
    "null",
    "a=b,c",
    'She said "no", twice',
    "it's",
    "'half",
    '"One" and "two"',
    "[not a list",
    "[also] not [one]",
    "back\\slash \\",
    "costs ${price} or $5",
    "two\nlines\tand a tab",
    "ünï — 日本語",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_is_taken_literally(text):
    override = OverridesParser.create().parse_override(as_text(f"prompt={text}"))
    assert OmegaConf.create({"prompt": override.value()}).prompt == text


@pytest.mark.parametrize(
    "word",
    ["prompt='quoted already'", 'prompt="a, b"', 'prompt=["a","b"]', "seed=(", "--cfg", "prompt"],
)
def test_quoted_texts_lists_and_other_keys_are_unchanged(word):
    assert as_text(word) == word


APP = """
import json, pathlib
from dataclasses import dataclass
from llm.config.base import Command
from llm.config.errors import ConfigError

@dataclass(frozen=True, kw_only=True)
class Toy(Command):
    seed: int
    prompt: str

    def run(self):
        if self.seed == 13:
            raise ConfigError("seed: is unlucky; choose another")
        if self.seed == 14:
            raise RuntimeError("crashed")
        with pathlib.Path("out").open("a") as file:
            file.write(json.dumps([self.seed, self.prompt]) + "\\n")
"""


@pytest.fixture
def toy(tmp_path, monkeypatch, llm):
    """toy(*words): run a command whose config is in a user's folder; return its status, output, errors and calls."""
    (tmp_path / "toy_app.py").write_text(APP)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "toy.yaml").write_text(
        "defaults: [_self_, override hydra/job_logging: none, override hydra/hydra_logging: none]\n"
        "_target_: toy_app.Toy\nseed: 0\nprompt: ''\ntrust: []\nhydra: {run: {dir: .}, output_subdir: null}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(command.COMMANDS, "toy", CommandInfo("plays", "llm toy"))
    monkeypatch.setitem(ROOTS, "toy_app", ("llm.config.base.Command",))
    monkeypatch.delitem(sys.modules, "toy_app", raising=False)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.delenv("HYDRA_FULL_ERROR")

    def call(*words):
        result = llm("toy", "--config-dir", str(tmp_path / "conf"), *words)
        out = tmp_path / "out"
        calls = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        return *result, calls

    return call


def test_command_gets_its_configuration(toy):
    assert toy("seed=3", "prompt=Hello, world (yes) = {ok}") == (
        0,
        "",
        "",
        [[3, "Hello, world (yes) = {ok}"]],
    )


def test_error_of_a_command_is_one_line(toy):
    assert toy("seed=13") == (2, "", "seed: is unlucky; choose another\n", [])


def test_a_crash_keeps_its_traceback(toy):
    with pytest.raises(RuntimeError, match="crashed"):
        toy("seed=14")


def test_a_sweep_runs_each_point(toy):
    assert toy("-m", "seed=1,2", "prompt=a,b")[3] == [[1, "a,b"], [2, "a,b"]]


def test_no_point_runs_when_one_is_wrong(toy):
    status, _, err, calls = toy("-m", "seed=1,x,y")
    assert (status, calls) == (2, [])
    assert err.splitlines() == [
        f"seed={bad} | seed: {bad!r} is not an int; use a whole number such as 8" for bad in "xy"
    ]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("llm ", " ".join(command.COMMANDS)),
        ("llm tr", "train"),
        ("llm train mode", "model model."),
        ("llm train model=ll", "model=llama"),
        ("llm train model=gpt2 trainer.max_s", "trainer.max_steps="),
        ("llm train --cfg job model=ll", "model=llama"),
        ("/usr/bin/llm train model=ll", "model=llama"),
        ("llm generate sampler.temp", "sampler.temperature="),
        ("llm nothing mo", ""),
        ("llm train --cf", ""),
    ],
)
def test_completion_works_after_the_command(llm, monkeypatch, line, offered):
    monkeypatch.setenv("COMP_LINE", line)
    status, out, err = llm("-sc", "query=bash")
    assert (status, err) == (0, "")
    assert out.split() == offered.split()


def test_completion_works_in_bash(tmp_path):
    """Install the completion in bash, call its function as the tab key does, and print the replies."""
    shim = tmp_path / "llm"
    shim.write_text(f'#!/bin/bash\nexec {sys.executable} -m llm "$@"\n')
    shim.chmod(0o755)
    script = (
        f"export PATH={tmp_path}:$PATH\n"
        'eval "$(llm -sc install=bash)"\n'
        'COMP_LINE="llm train model=ll"; COMP_POINT=${#COMP_LINE}; COMP_CWORD=2\n'
        "hydra_bash_completion\n"
        'echo "${COMPREPLY[@]}"\n'
        "complete -p llm\n"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[0] == "model=llama", done.stderr
    assert "hydra_bash_completion llm" in done.stdout


def test_a_path_with_commas_is_one_path(llm, tmp_path):
    """Names of runs contain commas, and the commands that training prints contain these names."""
    path = tmp_path / "spam,adapter=lora,seed=1"
    status, _, err = llm("generate", f"weights.path={path}")
    assert status == 2
    assert err.startswith(f"weights.path: {path} is not a run directory")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "classify weights.path=x",
            "weights.path: x is not a run directory (it has no config.yaml); {}",
        ),
        (
            "chat weights.path=x",
            "weights.path: x is not a run directory (it has no config.yaml); {}",
        ),
        (
            "export weights.path=x output=y",
            "weights.path: x is not a run directory (it has no config.yaml); {}",
        ),
    ],
)
def test_error_lists_the_usable_runs_newest_first(llm, tmp_path, monkeypatch, line, told):
    monkeypatch.chdir(tmp_path)
    for age, task in enumerate(("classification", "pretraining", "sft", "sft", "reward")):
        run = make(tmp_path / "outputs" / task / f"run{age}", task=task)
        os.utime(run.path / "run.json", (age, age))
    (tmp_path / "outputs" / "pretraining" / "broken").mkdir()
    (tmp_path / "outputs" / "pretraining" / "broken" / "run.json").write_text("{")
    here = {
        "classify": "classification runs here: outputs/classification/run0",
        "chat": "sft or dpo or grpo runs here: outputs/sft/run3, outputs/sft/run2",
        "export": "runs here: outputs/reward/run4, outputs/sft/run3, outputs/sft/run2, "
        "outputs/pretraining/run1, outputs/classification/run0",
    }
    assert llm(*line.split()) == (2, "", told.format(here[line.split()[0]]) + "\n")
    reward = "generate weights.path=outputs/sft/run2 best_of=2 reward=run reward.path=x"
    (tmp_path / "outputs" / "sft" / "run2" / "config.yaml").touch()
    assert llm(*reward.split())[2] == (
        "reward.path: x is not a run directory (it has no config.yaml); reward runs here: outputs/reward/run4\n"
    )


def test_flags_may_be_anywhere(toy, tmp_path):
    assert toy("seed=3", "--config-dir", str(tmp_path / "conf"), "prompt=hi")[3] == [[3, "hi"]]
