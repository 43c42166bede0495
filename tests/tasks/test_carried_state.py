"""Truncated backpropagation through time: the state is carried, gradients stop at the start of a window."""

from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from ranks import on_ranks
from small_runs import run_command

from llm.config.build import build as build_node
from llm.config.errors import ConfigError, UserError
from llm.data.corpora.order import stream_bounds
from llm.generation.model_loading import load_language_model
from llm.hardware import Hardware
from llm.nn.kv_cache import Cache
from llm.nn.recurrent_mixer import RecurrentState
from llm.tasks.carried_state import CarriedStates
from llm.training.activation_checkpointing import checkpoint_activations
from llm.weights.run import RunWeights

MODELS = {
    "lstm": ["model=lstm"],
    "lstm-naive": [
        "model=lstm",
        "model.attention.recurrence._target_=llm.nn.lstm.naive_lstm",
    ],
    "gru": ["model=gru"],
    "gru-naive": ["model=gru", "model.attention.recurrence._target_=llm.nn.gru.naive_gru"],
    "mamba2": ["model=mamba2"],
    "gated-deltanet": ["model=gated_deltanet"],
    "mixed": ["model=lstm", "model/layers=gated_deltanet"],
}
ROWS, WINDOWS, LENGTH, VOCABULARY = 3, 4, 7, 23
SMALL = ["size=nano", "size.dim=16", "size.num_layers=4", "size.num_heads=2"]


@pytest.fixture(params=MODELS.values(), ids=[*MODELS])
def model(request, build):
    torch.manual_seed(0)
    model = build(*request.param, *SMALL, vocab_size=VOCABULARY).double()
    for parameter in model.parameters():  # larger, so that the state matters
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def streams() -> torch.Tensor:
    """Three streams of four windows, and their last target."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (ROWS, WINDOWS * LENGTH + 1), generator=generator)


def windows(text: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    parts = zip(text[:, :-1].split(LENGTH, dim=1), text[:, 1:].split(LENGTH, dim=1), strict=True)
    return [
        {"tokens": t, "targets": y, "continues": torch.full((len(t),), n > 0)}
        for n, (t, y) in enumerate(parts)
    ]


def carried(model, batches, states: CarriedStates | None = None) -> list[torch.Tensor]:
    """Return the loss of each window, with the state carried."""
    states = states or CarriedStates()
    losses = []
    for batch in batches:
        with states.window(model, batch["continues"]) as cache:
            logits = model(batch["tokens"], cache=cache)
        losses.append(F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten()))
    return losses


def gradients(model, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [*model.parameters()]))


def written_out(model, text: torch.Tensor) -> list[torch.Tensor]:
    """Return the loss of each window: token by token through one long text, detached where a window starts."""
    cache, nats = model.new_cache(ROWS, text.shape[1]), []
    for t in range(text.shape[1] - 1):
        if t % LENGTH == 0:
            detach(cache)
        logits = model(text[:, t : t + 1], cache=cache)[:, 0]
        nats.append(F.cross_entropy(logits, text[:, t + 1]))
    return [torch.stack(nats[n : n + LENGTH]).mean() for n in range(0, len(nats), LENGTH)]


def detach(cache: Cache) -> None:
    for layer in cache.layers:
        assert isinstance(layer, RecurrentState)
        layer.parts = {name: part.detach() for name, part in layer.parts.items()}


def test_losses_and_gradients_equal_those_of_one_long_text_detached_at_each_window(model, streams):
    found, expected = carried(model, windows(streams)), written_out(model, streams)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for loss, other in zip(found, expected, strict=True):
        torch.testing.assert_close(
            gradients(model, loss), gradients(model, other), rtol=1e-9, atol=1e-12
        )


def test_losses_equal_one_forward_pass_without_a_cut_but_gradients_are_truncated(model, streams):
    logits = model(streams[:, :-1])
    nats = F.cross_entropy(logits.mT, streams[:, 1:], reduction="none")
    whole = nats[:, -LENGTH:].mean()
    last = carried(model, windows(streams))[-1]
    torch.testing.assert_close(last, whole, rtol=0, atol=1e-12)
    pairs = zip(gradients(model, last), gradients(model, whole), strict=True)
    assert not all(torch.allclose(some, other) for some, other in pairs)
    alone = carried(model, windows(streams)[-1:])[-1]
    assert (alone - last).abs() > 1e-4, "the state matters"


def test_gradients_with_activation_checkpointing_are_the_same(model, streams):
    expected = [gradients(model, loss) for loss in carried(model, windows(streams))]
    checkpoint_activations(model)
    states = CarriedStates()
    for batch, other in zip(
        windows(streams), expected, strict=True
    ):  # each backward pass runs at once
        found = gradients(model, carried(model, [batch], states)[0])
        torch.testing.assert_close(found, other, rtol=0, atol=1e-12)


def test_a_row_that_does_not_continue_begins_anew(model, streams):
    first, second = windows(streams)[:2]
    mixed = second | {"continues": torch.tensor([True, False, True])}
    states = CarriedStates()
    carried(model, [first, mixed], states)
    kept, alone = CarriedStates(), CarriedStates()
    carried(model, [first, second], kept)
    carried(model, [second], alone)
    for layer, continued, begun in zip(
        states.states[0], kept.states[0], alone.states[0], strict=True
    ):
        for name, part in layer.items():
            torch.testing.assert_close(part[[0, 2]], continued[name][[0, 2]], rtol=0, atol=1e-12)
            torch.testing.assert_close(part[1], begun[name][1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_that_overflowed_begins_anew(model, streams, value):
    first, second = windows(streams)[:2]
    states, expected = CarriedStates(), CarriedStates()
    for each in (states, expected):
        carried(model, [first], each)
    name = next(iter(states.states[0][0]))
    states.states[0][0][name][1] = value
    carried(model, [second], states)
    carried(model, [second | {"continues": torch.tensor([True, False, True])}], expected)
    torch.testing.assert_close(states.states, expected.states, rtol=0, atol=1e-12)


def test_states_hold_no_gradient_and_no_activations(model, streams):
    states = CarriedStates()
    carried(model, windows(streams)[:1], states)
    for part in (part for layer in states.states[0] for part in layer.values()):
        assert not part.requires_grad
        assert part.untyped_storage().nbytes() == part.nbytes


@pytest.mark.parametrize("ranks", [1, 2])
def test_saved_states_are_in_the_order_of_the_streams(ranks):
    """Two micro-batches of four rows: the state of stream s is s."""
    streams = [{"hidden": torch.arange(8.0)[:, None], "cell": torch.arange(8.0)[:, None] + 10}]
    held = []
    for rank in range(ranks):
        states = CarriedStates()
        states.restore(streams, rank=rank, ranks=ranks, micro_batches=2)
        held.append(states)
        for micro_batch in range(2):
            rows = torch.arange(4)[rank::ranks] + 4 * micro_batch
            assert torch.equal(states.states[micro_batch][0]["hidden"][:, 0], rows.float())
    if ranks == 1:
        torch.testing.assert_close(held[0].gathered(), streams, rtol=0, atol=0)


# Compilation


def compile_step() -> None:
    with initialize_config_module(config_module="llm.conf", version_base="1.3"):
        small = [*SMALL[:2], "size.num_layers=1", "size.num_heads=2"]
        words = ["model=mamba2", *small, "tokenizer=byte", f"model.vocab_size={VOCABULARY}"]
        task = build_node(compose("train", words).task)
    draw = torch.Generator().manual_seed(1)
    batches = windows(torch.randint(VOCABULARY, (ROWS, 3 * LENGTH + 1), generator=draw))
    expected = [gradients(task.model, loss) for loss in carried(task.model, batches)]
    step, states = torch.compile(task.step, backend="eager"), CarriedStates()
    for batch, other in zip(batches, expected, strict=True):
        with states.window(task.model, batch["continues"]) as cache:
            loss = step(batch | {"cache": cache})
        torch.testing.assert_close(gradients(task.model, loss), other, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.long
def test_compiled_step_is_one_graph_for_all_windows():
    # In another process: the shape checks of this one would be traced as well.
    on_ranks(1, compile_step, timeout=280)


# Through the command line

STREAMS = ("model=lstm", "data/order=contiguous", "trainer.val_every=3", "optimizer.lr=0.03")
# 24 streams of seven windows, so that a run of twelve steps begins two epochs.
MANY = (*STREAMS, "data.batch_size=12", "trainer.accumulate=2")


def saved(path: Path) -> dict:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(("kind", "step"), [("lstm", 8), ("gated_deltanet", 4)])
def test_resumed_run_equals_the_uninterrupted_one_to_the_bit(
    composed, tmp_path, stop_at, logged, kind, step
):
    config = composed(*MANY, f"model={kind}")
    whole = run_command(config.copy(), tmp_path / "whole")
    stop_at(step)
    with pytest.raises(SystemExit):
        run_command(config.copy(), tmp_path / "parts")
    stop_at(None)
    resumed = run_command(config.copy(), tmp_path / "parts")
    assert logged(resumed) == logged(whole)
    found, expected = saved(resumed.last), saved(whole.last)
    for key in ("state_dict", "carried_states"):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)
    assert len(next(iter(found["carried_states"][0].values()))) == 24
    assert "carried_states" not in saved(whole.best), "weights for inference need no state"


def test_validation_does_not_disturb_the_state_of_training(composed, tmp_path):
    often = run_command(composed(*STREAMS), tmp_path / "often")
    once = run_command(composed(*STREAMS, "trainer.val_every=12"), tmp_path / "once")
    for key in ("state_dict", "carried_states"):
        torch.testing.assert_close(saved(often.last)[key], saved(once.last)[key], rtol=0, atol=0)


def test_evaluation_equals_the_validation_and_one_forward_pass_per_stream(composed, tmp_path):
    run = run_command(composed(*STREAMS), tmp_path / "run")
    words = [f"weights.path={run.path}", "weights.checkpoint=last", "hardware.accelerator=cpu"]
    with initialize_config_module("llm.conf", version_base="1.3"):
        report = run_command(compose("evaluate", [*words, "hardware.threads=1"]))
    own = run.record["metrics"]["val/loss"]
    assert report["metrics"]["loss"] == pytest.approx(own, rel=1e-6)
    weights = RunWeights(str(run.path), checkpoint="last")
    model = load_language_model(weights, Hardware(accelerator="cpu", precision=32).resolve())
    [file] = (tmp_path / "cache").rglob("validation.bin")
    text = torch.from_numpy(np.fromfile(file, np.uint16).astype(np.int64))
    bounds = stream_bounds(-(-(len(text) - 1) // 16), 4) * 16
    carried_nats, fresh_nats = 0.0, 0.0
    for first, end in pairwise(bounds.tolist()):
        stream = text[first : end + 1]
        nats = partial(F.cross_entropy, target=stream[1:], reduction="sum")
        carried_nats += nats(model(stream[None, :-1])[0]).item()
        fresh = [model(window[None])[0] for window in stream[:-1].split(16)]
        fresh_nats += nats(torch.cat(fresh)).item()
    assert own == pytest.approx(carried_nats / (len(text) - 1), rel=1e-5)
    assert own != pytest.approx(fresh_nats / (len(text) - 1), rel=1e-4)


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        (("data.batch_size=8",), "data.batch_size: 4 → 8"),
        (("trainer.accumulate=2",), "data.order.accumulate: 1 → 2"),
    ],
)
def test_resume_with_another_number_of_streams_is_refused(composed, tmp_path, words, changed):
    run = run_command(composed(*STREAMS, "trainer.max_steps=3"), tmp_path / "run")
    with pytest.raises(UserError) as refusal:
        run_command(composed(*STREAMS, "resume=allow_changes", *words), run.path)
    header, *lines = str(refusal.value).splitlines()
    assert "resume from its last checkpoint" not in header
    assert changed in lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model=gpt2",), "model: GPT has attention or positions, and data/order=contiguous"),
        (("model/position=sinusoidal",), "model: GPT has attention or positions"),
        (("data.order.accumulate=2",), "data.order.accumulate: 2 is not trainer.accumulate=1"),
        (
            ("trainer.accumulate=2", "~data.order.accumulate"),
            "data.order.accumulate: 1 is not trainer.accumulate=2",
        ),
        (("hardware=pipeline",), "hardware: a pipeline does not carry the state"),
    ],
)
def test_what_cannot_carry_a_state_is_refused_before_anything_starts(
    composed, tmp_path, words, message
):
    with pytest.raises(ConfigError) as refusal:
        run_command(composed(*STREAMS, *words), tmp_path / "run")
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()
