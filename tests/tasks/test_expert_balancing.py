"""Losses, biases and metrics of mixtures of experts, in runs."""

import csv
import json

import divided
import pytest
import torch
from divided import MUON, assert_learn_as_one, write_messages, write_text
from hydra import compose, initialize_config_module
from ranks import on_ranks
from small_runs import run_command

from llm.config.build import build as build_node
from llm.runs import Run
from llm.tasks.base import Task
from llm.tasks.expert_balancing import ExpertBalancing
from llm.weights.run import RunWeights

MOE = ("model=mixtral", "model.feed_forward.num_experts=4", "trainer.log_every=1")
BALANCING = "model.feed_forward.balancing"
LOSS_FREE = (f"{BALANCING}.load_balancing=0", f"{BALANCING}.bias_rate=0.01")


def rows(run):
    """Return the metrics of each step, without those that depend on the clock and the machine."""
    with run.metrics.open(newline="") as file:
        return [
            {k: v for k, v in row.items() if not k.startswith(("speed/", "memory/", "tokens"))}
            for row in csv.DictReader(file)
        ]


def column(run, name):
    return [float(row[name]) for row in rows(run) if row.get(name)]


def weights(run):
    return torch.load(run.last, weights_only=True)["state_dict"]


def balancing_of(build, *words, total=lambda tensor: tensor):
    """Return a model of two mixtures, and what balances them."""
    torch.manual_seed(0)
    model = build("model=mixtral", "model.feed_forward.num_experts=4", *words).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model, ExpertBalancing(model, total)


def draw(rows=3):
    return torch.randint(97, (rows, 8), generator=torch.Generator().manual_seed(0))


def test_loss_is_the_mean_of_the_layers_losses(build):
    model, balancing = balancing_of(build, f"{BALANCING}.load_balancing=0.5")
    logits = []
    for layer in balancing.layers:
        layer.router.register_forward_hook(lambda module, inputs, output: logits.append(output))
    with balancing.recording():
        model(draw())
    expected = 0
    for each in logits:
        p = each.softmax(-1)
        chosen = torch.nn.functional.one_hot(p.topk(2).indices, 4).sum(-2).double()
        balance = 4 * (chosen.mean(0) * p.mean(0)).sum()
        expected += 0.5 * balance + 0.001 * each.logsumexp(-1).square().mean()
    torch.testing.assert_close(balancing.loss(), expected / 2)


def test_loss_has_a_gradient_for_the_routers_only_through_the_layers(build):
    model, balancing = balancing_of(build)
    with balancing.recording():
        model(draw())
    balancing.loss().backward()
    assert all(layer.router.weight.grad.any() for layer in balancing.layers)
    assert balancing.layers[-1].experts.gate.weight.grad is None


def test_padding_changes_neither_loss_nor_sums(build):
    model, balancing = balancing_of(build)
    real = torch.ones(3, 8, dtype=torch.bool)
    real[1:, 5:] = False
    found = []
    for tokens in (draw(), torch.where(real, draw(), 3)):
        balancing.start_step()
        with balancing.recording():
            model(tokens, attention_mask=real)
        found.append([balancing.loss(), *(sums.packed for sums in balancing.sums)])
    assert balancing.sums[0].tokens == 18
    torch.testing.assert_close(found[0], found[1])


def test_micro_batches_of_a_step_are_summed_and_a_step_begins_at_zero(build):
    model, balancing = balancing_of(build)
    for parts in ([draw(4)], draw(4).split(2)):
        balancing.start_step()
        for part in parts:
            with balancing.recording():
                model(part)
            balancing.loss()
        found = torch.stack([sums.packed for sums in balancing.sums])
        assert (found[:, -1] == 32).all()
        assert (found[:, :4].sum(1) == 64).all()


def test_shares_of_choices_are_those_of_all_ranks(build):
    """The gradients of two ranks, averaged, are those of one rank with both batches."""
    gradients = []
    model, one = balancing_of(build)
    with one.recording():
        model(draw(4))
    whole = torch.autograd.grad(one.loss(), one.layers[0].router.weight)
    total = torch.cat([sums.packed.detach() for sums in one.sums])
    two = ExpertBalancing(model, lambda tensor: total)
    for part in draw(4).split(2):
        with two.recording():
            model(part)
        gradients.append(*torch.autograd.grad(two.loss(), two.layers[0].router.weight))
    torch.testing.assert_close(torch.stack(gradients).mean(0), *whole)


def test_passes_without_gradients_and_frozen_routers_do_not_count(build):
    model, balancing = balancing_of(build)
    with balancing.recording(), torch.no_grad():
        model(draw())
    assert balancing.loss() == 0
    assert balancing.sums[0].tokens == 0
    balancing.layers[0].router.requires_grad_(requires_grad=False)
    assert ExpertBalancing(model, lambda tensor: tensor).layers == balancing.layers[1:]


def test_a_model_without_experts_has_no_loss_and_no_metrics(build):
    balancing = ExpertBalancing(build("model=llama"), lambda tensor: tensor)
    with balancing.recording():
        pass
    assert balancing.loss() is None
    assert balancing.metrics() == {}


def test_losses_of_the_task_stay_cross_entropies(composed, tmp_path):
    still = (*MOE, "optimizer.lr=0", "model.dropout=0", "trainer.max_steps=4")
    without = run_command(composed(*still, f"{BALANCING}.load_balancing=0"), tmp_path / "without")
    strong = run_command(composed(*still, f"{BALANCING}.load_balancing=100"), tmp_path / "strong")
    for name in ("train/loss", "val/loss", "val/bits_per_byte"):
        assert column(strong, name) == column(without, name) != [], name
    for norm, other in zip(
        *(column(r, "train/gradient_norm") for r in (strong, without)), strict=True
    ):
        assert norm > 2 * other
    assert 1 <= column(strong, "moe/load")[0] <= 4
    assert 0 < column(strong, "moe/router_entropy")[0] <= torch.tensor(4.0).log() + 1e-6
    assert column(strong, "moe/load_balancing_loss")[0] >= 2 - 1e-3
    assert column(strong, "moe/router_z_loss")[0] > 0


def test_the_loss_balances_the_loads(composed, tmp_path):
    words = (*MOE, "trainer.max_steps=40", "optimizer.lr=0.003", "model.dropout=0")
    loads = []
    for coefficient in (0, 1):
        config = composed(*words, f"{BALANCING}.load_balancing={coefficient}")
        loads.append(column(run_command(config, tmp_path / str(coefficient)), "moe/load"))
    assert sum(loads[1][-10:]) < sum(loads[0][-10:])


def test_activation_checkpointing_counts_nothing_twice(composed, tmp_path):
    runs = [
        run_command(
            composed(
                *MOE, *LOSS_FREE, f"hardware.activation_checkpointing={on}", "model.dropout=0"
            ),
            tmp_path / on,
        )
        for on in ("false", "true")
    ]
    assert rows(runs[0]) == rows(runs[1])
    expected, found = map(weights, runs)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_accumulation_changes_the_biases_as_one_batch_does(composed, tmp_path):
    words = (*MOE, *LOSS_FREE, "model.dropout=0", "trainer.max_steps=6")
    sizes = {
        "whole": ("data.batch_size=4",),
        "parts": ("data.batch_size=2", "trainer.accumulate=2"),
    }
    runs = {n: run_command(composed(*words, *size), tmp_path / n) for n, size in sizes.items()}
    for name in ("moe/load", "moe/router_entropy", "moe/router_z_loss"):
        assert column(runs["parts"], name) == pytest.approx(column(runs["whole"], name), rel=1e-4)
    names = [name for name in weights(runs["whole"]) if name.endswith("selection_bias")]
    assert len(names) == 2
    for name in names:
        whole, parts = (weights(run)[name] for run in runs.values())
        # In six optimizer steps at most six times 0.01, and not once more for each micro-batch.
        assert 0 < whole.abs().max() < 0.061
        torch.testing.assert_close(parts, whole)


def test_resumed_run_has_the_biases_of_the_whole_one(composed, tmp_path, stop_at):
    config = composed(*MOE, *LOSS_FREE)
    whole = run_command(config.copy(), tmp_path / "whole")
    stop_at(5)
    with pytest.raises(SystemExit):
        run_command(config.copy(), tmp_path / "parts")
    stop_at(None)
    resumed = run_command(config.copy(), tmp_path / "parts")
    assert rows(whole) == rows(resumed)
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_two_ranks_learn_as_one(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))
    words = (write_text(tmp_path), *MOE)
    runs = {"losses": words, "biases": (*words, *LOSS_FREE, *MUON, "trainer.max_steps=2")}
    words = {"losses": ("hardware=ddp",), "biases": ("hardware=fsdp",)}
    assert_learn_as_one(tmp_path, runs, {2: words})


WORDS = "cat dog hen cow pig fox owl ant bee elk ape rat".split()
TASKS = {
    "dpo": ("data=preference",),
    "reward": ("data=preference",),
    "sft": ("data=instruction",),
    "grpo": (
        *("data=instruction", "data/collation=padding", "tokenizer=char", "reward=contains"),
        *("reward.text=e", "task.max_tokens=3"),
    ),
}


@pytest.fixture
def examples(tmp_path):
    """A file of examples for all the tasks."""
    path = tmp_path / "examples.jsonl"
    line = "the quick brown fox jumps over a lazy dog"
    rows = [
        {"instruction": f"{word}?", "output": line, "chosen": line, "rejected": "no"}
        for word in WORDS
    ]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


@pytest.mark.filterwarnings("ignore:.*fields that are not used")
@pytest.mark.parametrize("task", TASKS)
def test_other_tasks_balance_the_loads_too(train, examples, task):
    words = (f"task={task}", *TASKS[task], f"data.path={examples}", "trainer.max_steps=1")
    run = train("run", *words, *MOE, *LOSS_FREE, "trainer.val_every=1")
    assert min(column(run, "moe/load")) >= 1
    biases = [value for name, value in weights(run).items() if name.endswith("selection_bias")]
    assert len(biases) == 2
    assert all(bias.any() for bias in biases)


def test_classification_balances_the_loads_too(tmp_path):
    words = ("task=classification", "data=labelled", f"data.path={write_messages(tmp_path)}")
    small = ("data.test_fraction=0.1", "trainer.max_steps=1", "trainer.val_every=1")
    divided.train(tmp_path / "run", (*words, *small, *MOE, *LOSS_FREE))
    run = Run(tmp_path / "run")
    assert column(run, "moe/load")[0] >= 1
    assert any(bias.any() for name, bias in weights(run).items() if name.endswith("selection_bias"))


@pytest.mark.filterwarnings("ignore:.*fields that are not used")
@pytest.mark.parametrize("adapter", ["lora", "lora adapter.targets=[router]", "last_block"])
def test_an_adapter_leaves_the_biases_as_they_are(train, examples, monkeypatch, adapter):
    models = []
    original = Task.optimizer_step
    monkeypatch.setattr(
        Task,
        "optimizer_step",
        lambda task, *given: (original(task, *given), models.append(task.model)),
    )
    words = ("task=sft", *TASKS["sft"], f"data.path={examples}", "trainer.max_steps=1")
    words = (*words, "trainer.val_every=1", "trainer.log_every=1")
    base = train("base", *words, *MOE, *LOSS_FREE)
    adapted = f"adapter={adapter}".split()
    run = train("run", *words, "weights=run", f"weights.path={base.path}", *adapted)
    before = weights(base)
    # The checkpoint has no biases: if the run changed its own, the model that it evaluated would not be the saved one.
    for model in (models[-1], RunWeights(str(run.path)).model()):
        biases = [each for each in model.named_buffers() if each[0].endswith("selection_bias")]
        assert len(biases) == 2
        for name, bias in biases:
            assert torch.equal(bias, before[f"model.{name}"])
            assert bias.any()


def compile_recorded(words):
    """Compare a compiled training step that is recorded with an uncompiled one."""
    with initialize_config_module(config_module="llm.conf", version_base="1.3"):
        config = compose(overrides=[*words, "model.vocab_size=97"]).model
    model, tokens = build_node(config), draw(4)
    balancing = ExpertBalancing(model, lambda tensor: tensor)

    def step():
        return model(tokens).logsumexp(-1).square().mean()

    found = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        balancing.start_step()
        with balancing.recording():
            loss = run()
        gradients = torch.autograd.grad(loss + balancing.loss(), [*model.parameters()])
        found.append([loss.detach(), *gradients, *(sums.packed for sums in balancing.sums)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_recording_does_not_break_the_compiled_graph():
    # In another process: the shape checks of this one would be traced as well.
    on_ranks(1, compile_recorded, ["+model=mixtral", "+size=nano"], timeout=280)
