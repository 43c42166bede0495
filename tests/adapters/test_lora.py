"""LoRA updates: they are zero at first, follow the equation of the paper, and can be merged."""

import copy
from functools import partial

import pytest
import torch
from hydra import compose, initialize_config_module
from ranks import on_ranks
from torch import nn

from llm.adapters.base import adapter_state, disabled
from llm.adapters.lora import LoRA, activate, merge_updates
from llm.adapters.lora_linear import LoRALinear
from llm.adapters.prefix import Prefix
from llm.config.build import build as build_node
from llm.models.classifier import Classifier
from llm.nn.recurrent_cell import RecurrentCell
from llm.optim.groups import decay_matrices
from llm.training.activation_checkpointing import checkpoint_activations

GROUPED = ["model=llama", "size.num_heads=4", "size.num_kv_heads=2"]
MODELS = {"gpt2": ["model=gpt2"], "gpt": ["model=gpt"], "grouped": GROUPED}
models = pytest.mark.parametrize("words", MODELS.values(), ids=MODELS)
# Matrices that are not linear layers: those of experts and of cells.
OTHERS = {
    "experts": ["model=mixtral", "model.feed_forward.num_experts=4"],
    "naive_experts": [
        "model=gpt2",
        "model/feed_forward=moe_naive",
        "model.feed_forward.num_experts=3",
    ],
    # torch's kernels round differently if they need no gradients, so most tests have the cells that are written out.
    "lstm": ["model=lstm", "model.attention.recurrence._target_=llm.nn.lstm.naive_lstm"],
    "gru": ["model=gru", "model.attention.recurrence._target_=llm.nn.gru.naive_gru"],
}
FUSED = {"fused_lstm": ["model=lstm"], "fused_gru": ["model=gru", "model/feed_forward=swiglu"]}
others = pytest.mark.parametrize("words", OTHERS.values(), ids=OTHERS)
KINDS = MODELS | OTHERS
kinds = pytest.mark.parametrize("words", KINDS.values(), ids=KINDS)
EVERYTHING = ["*"]


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def written_out(layer: LoRALinear, x: torch.Tensor, scale: float) -> torch.Tensor:
    """Return (W + scale · B A) x + b, computed row by row; each update changes only its own rows."""
    weight = layer.base.weight.clone()
    for update in layer.lora["default"].values():
        for row, b in zip(range(update.rows.start, update.rows.stop), update.up, strict=True):
            weight[row] += scale * sum(b[r] * update.down[r] for r in range(len(b)))
    return x @ weight.T + (0 if layer.base.bias is None else layer.base.bias)


@kinds
@pytest.mark.parametrize("autocast", [False, True])
def test_new_update_does_not_change_the_outputs(build, tokens, words, autocast):
    model = build(*words)
    dropout = 0.0 if isinstance(model.blocks[0].attention, RecurrentCell) else 0.3
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        before = model(tokens)
        LoRA(rank=4, dropout=dropout, targets=EVERYTHING).apply(model)
        assert torch.equal(model(tokens), before)


@models
def test_each_layer_computes_the_equation(build, randomize, words):
    model = build(*words).double()
    LoRA(rank=3, alpha=7.5).apply(model)
    randomize(model)
    layers = adapted_layers(model)
    assert {name.rpartition(".")[-1] for name in layers} >= {"query_key_value", "output", "input"}
    for layer in layers.values():
        x = torch.randn(2, 5, layer.base.in_features, dtype=torch.float64)
        torch.testing.assert_close(layer(x), written_out(layer, x, 7.5 / 3), rtol=0, atol=1e-12)


def matrices_written_out(
    model: nn.Module, updates: dict[str, torch.Tensor], scale: float
) -> dict[str, torch.Tensor]:
    """Return W + scale · B A of every adapted matrix, row by row, by the matrix's name in the base model."""
    found = {}
    for name, down in updates.items():
        if not name.endswith(".down"):
            continue
        layer, _, _ = name.partition(".lora.")
        up, base = updates[name.removesuffix("down") + "up"], f"{layer}.base.weight"
        plain = f"{layer}.weight"
        if ".parametrizations." in layer:
            owner, _, rest = layer.partition(".parametrizations.")
            matrix = rest.removesuffix(".0")
            base, plain = f"{owner}.parametrizations.{matrix}.original", f"{owner}.{matrix}"
        weight = found.get(plain, model.get_parameter(base)).to(down.dtype, copy=True)
        start = model.get_submodule(name.removesuffix(".down")).rows.start
        for index in range(len(weight)) if weight.ndim == 3 else [...]:
            for row, b in enumerate(up[index], start):
                weight[index][row] += scale * sum(b[r] * down[index][r] for r in range(len(b)))
        found[plain] = weight
    return found


@pytest.mark.parametrize("words", (KINDS | FUSED).values(), ids=KINDS | FUSED)
def test_model_computes_with_the_sum_of_weights_and_updates(build, tokens, randomize, words):
    plain = build(*words).double()
    model = copy.deepcopy(plain)
    LoRA(rank=2, alpha=5.0, targets=["*", "router"] if "experts" in str(words) else ["*"]).apply(
        model
    )
    updates = dict(adapter_state(randomize(model)))
    for update in updates.values():
        update.requires_grad_()
    matrices = matrices_written_out(model, updates, 5 / 2)
    expected = torch.func.functional_call(plain, matrices, tokens, tie_weights=False)
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-11)
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad(
        (model(tokens) * weights).sum(), [model.get_parameter(n) for n in updates]
    )
    torch.testing.assert_close(
        gradients, torch.autograd.grad((expected * weights).sum(), [*updates.values()])
    )


@models
def test_update_of_a_part_changes_only_its_rows(build, randomize, words):
    for part in ("query", "key", "value"):
        model = build(*words)
        attention = model.blocks[0].attention
        x = torch.randn(2, 5, 64)
        before = attention.query_key_value(x)
        LoRA(targets=[part]).apply(model)
        randomize(model)
        changed = (attention.query_key_value(x) != before).any(dim=(0, 1))
        changed = changed.unflatten(0, (-1, attention.head_dim))
        q, k = attention.num_heads, attention.num_kv_heads
        heads = {"query": range(q), "key": range(q, q + k), "value": range(q + k, q + 2 * k)}[part]
        expected = torch.zeros_like(changed)
        expected[list(heads)] = True
        assert torch.equal(changed, expected)


@pytest.mark.parametrize("named", ["query_key_value", "blocks.*.query_key_value"])
def test_name_of_a_fused_projection_selects_it_as_one_layer(build, named):
    model = build("model=gpt2")
    LoRA(rank=4, targets=[named]).apply(model)
    (parts,) = {tuple(layer.lora["default"]) for layer in adapted_layers(model).values()}
    assert parts == ("query_key_value",)
    assert adapter_state(model)[
        "blocks.0.attention.query_key_value.lora.default.query_key_value.up"
    ].shape == (192, 4)


def names_of_updates(model: nn.Module) -> set[str]:
    """Return the last words of what has updates."""
    return {name.split(".")[-2] for name in adapter_state(model)}


@pytest.mark.parametrize(
    ("words", "patterns", "parts"),
    [
        (["model=mixtral"], ["*blocks.*"], {"query", "key", "value", "output", "gate", "input"}),
        (["model=mixtral"], ["*experts*"], {"gate", "input", "output"}),
        (["model=mixtral"], ["*.experts.g*"], {"gate"}),
        (["model=mixtral"], ["*"], {"query", "key", "value", "output", "gate", "input", "head"}),
        (["model=mixtral"], ["router"], {"router"}),
        (["model=mixtral"], ["*.0.*.router"], {"router"}),
        (["model=lstm"], ["*blocks.*"], {"input_weight", "recurrent_weight"}),
        (["model=gru"], ["recurrent*"], {"recurrent_weight"}),
    ],
)  # fmt: skip
def test_patterns_select_experts_and_cells_but_routers_only_by_name(build, words, patterns, parts):
    model = build(*words)
    LoRA(targets=patterns).apply(model)
    assert names_of_updates(model) == parts


def test_each_expert_has_an_update_of_its_own(build, tokens):
    model = build("model=mixtral", "model.feed_forward.num_experts=4", "size.num_layers=1")
    LoRA(rank=3, targets=["*experts*"]).apply(model)
    state = adapter_state(model)
    assert {tensor.shape[0] for tensor in state.values()} == {4}
    stack, before = model.blocks[0].feed_forward.experts.gate, model(tokens)
    x = torch.randn(5, 64)
    outputs = [stack.one(index, x) for index in range(4)]
    with torch.no_grad():
        stack.lora["default"]["gate"].up[2] += 1
    changed = [not torch.equal(stack.one(index, x), outputs[index]) for index in range(4)]
    assert changed == [False, False, True, False]
    assert not torch.equal(model(tokens), before)


@pytest.mark.parametrize("words", [["model=lstm"], ["model=gru"]])
def test_matrices_of_cells_have_no_dropout(build, words):
    with pytest.raises(
        ValueError, match=r"^dropout=0\.1: blocks\.0\.attention\.input_weight is updated as a whole"
    ):
        LoRA(dropout=0.1).apply(build(*words))


@pytest.mark.parametrize(
    ("patterns", "parts"),
    [
        (["query", "value"], {"query", "value"}),
        (["*.0.attention.*"], {"query", "key", "value", "output"}),
        (["blocks.*.feed_forward.*"], {"input", "output"}),
        (["[kv]*"], {"key", "value"}),
        (["*blocks.*"], {"query", "key", "value", "output", "input"}),
        (["*"], {"query", "key", "value", "output", "input", "head"}),
        (["head", "head"], {"head"}),
    ],
)
def test_patterns_select_layers(build, patterns, parts):
    model = build("model=gpt2")
    LoRA(targets=patterns).apply(model)
    assert names_of_updates(model) == parts


def test_head_that_bounds_its_outputs_is_not_a_target(build):
    model = build("model=gpt2", "model/head=soft_capped")
    LoRA(targets=EVERYTHING).apply(model)
    assert not any(name.startswith("head") for name in adapter_state(model))
    with pytest.raises(ValueError, match="targets: head matches no frozen matrix"):
        LoRA(targets=["head"]).apply(build("model=gpt2", "model/head=soft_capped"))


def test_parameter_names_contain_the_adapter_and_the_part(build):
    model = build("model=gpt2")
    plain = {name.rpartition(".")[::2] for name in model.state_dict()}
    LoRA(name="spam").apply(model)
    names = model.state_dict().keys()
    assert {
        n.replace(".base.", ".").rpartition(".")[::2] for n in names if "lora" not in n
    } == plain
    assert "blocks.0.attention.output.base.weight" in names
    assert "blocks.0.attention.query_key_value.lora.spam.query.down" in names


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("querry", r"targets: querry matches no .*did you mean query\?"),
        ("blocks.*.atention.query", r"did you mean blocks\.\*\.attention\.query\?"),
        ("7", "there are .*head.*value"),
    ],
)
def test_a_pattern_that_matches_nothing_is_named(build, pattern, message):
    with pytest.raises(ValueError, match=message):
        LoRA(targets=["query", pattern]).apply(build("model=gpt2"))


def test_new_head_is_trained_in_full_and_gets_no_update(build):
    model = Classifier(build("model=gpt2"), 2)
    LoRA(targets=EVERYTHING).apply(model, new=["head.weight", "head.bias"])
    assert type(model.head) is nn.Linear
    assert any(name.startswith("body.blocks.1.") for name in adapter_state(model))


@pytest.mark.parametrize(
    "setting",
    [{"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": []}, {"name": "a.b"}],
)
def test_settings_out_of_range_are_named(setting):
    with pytest.raises(ValueError, match=f"^{next(iter(setting))}=.*: give"):
        LoRA(**setting)


@pytest.mark.parametrize(("size", "classes", "count"), [("124m", 2, 2_666_528), ("355m", None, 7_898_384)])  # fmt: skip
def test_counts_at_rank_16_over_every_linear_layer(build, size, classes, count):
    with torch.device("meta"):
        model = build("model=gpt2", f"size={size}", vocab_size=50257)
        base = sum(p.numel() for p in model.parameters())
        model = Classifier(model, classes) if classes else model
        LoRA(rank=16, targets=EVERYTHING).apply(model)
    state = adapter_state(model)
    assert sum(tensor.numel() for tensor in state.values()) == count
    # The file of an adapter has a few megabytes, and the file of the model has hundreds.
    stored = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert stored == 4 * count < 0.03 * 4 * base


@kinds
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_merged_model_has_plain_layers_and_the_same_outputs(
    build, tokens, randomize, words, dtype, tolerance
):
    model = build(*words).to(dtype).eval()
    names = list(model.state_dict())
    plain = model(tokens)
    LoRA(rank=4).apply(model)
    adapted = randomize(model)(tokens)
    with disabled(model):
        assert torch.equal(model(tokens), plain)
    assert torch.equal(model(tokens), adapted)
    merge_updates(model)
    assert {*model.state_dict()} == {*names}
    torch.testing.assert_close(model(tokens), adapted, rtol=0, atol=tolerance)
    assert not torch.allclose(model(tokens), plain, atol=1e-3)


def test_merging_unties_a_tied_head(build, tokens, randomize):
    model = build("model=gpt2").eval()
    embedding = model.embedding.weight.clone()
    LoRA(targets=["head"]).apply(model)
    assert model.head.weight is model.embedding.weight
    adapted = randomize(model)(tokens)
    merge_updates(model)
    assert torch.equal(model.embedding.weight, embedding)
    assert not torch.allclose(model.head.weight, embedding)
    torch.testing.assert_close(model(tokens), adapted, rtol=0, atol=1e-5)


def test_merge_without_an_active_update_keeps_the_layer_objects(build):
    model = build("model=gpt2")
    LoRA(targets=EVERYTHING).apply(model)
    head = model.head.base
    activate(model, None)
    merge_updates(model)
    assert model.head is head
    assert model.head.weight is model.embedding.weight


@others
def test_merging_experts_and_cells_into_bfloat16_loses_no_precision(
    build, randomize, tokens, words
):
    model = build(*words)
    LoRA(rank=2, alpha=6.0, frozen_dtype="bfloat16").apply(model)
    updates = adapter_state(randomize(model))
    frozen = [
        parameter
        for name, parameter in model.named_parameters()
        if name not in updates and "norm" not in name
    ]
    assert {parameter.dtype for parameter in frozen} == {torch.bfloat16}
    expected = matrices_written_out(model, updates, 3)
    merge_updates(model)
    merged = {name: model.get_parameter(name).data for name in expected}
    torch.testing.assert_close(merged, expected)


def test_merging_into_bfloat16_loses_no_precision(build, randomize):
    model = build("model=gpt2")
    LoRA(frozen_dtype="bfloat16").apply(model)
    randomize(model)
    layer = model.blocks[0].feed_forward.input
    x = torch.randn(3, 64).bfloat16().float()
    expected = written_out(copy.deepcopy(layer).float(), x, 2.0)
    merge_updates(model)
    torch.testing.assert_close(model.blocks[0].feed_forward.input(x), expected)


@kinds
def test_two_adapters_can_be_switched_on_one_base(build, tokens, randomize, words):
    model = build(*words).eval()
    base = model(tokens)
    weights = {id(p) for p in model.parameters()}
    outputs = {}
    has_cells = isinstance(model.blocks[0].attention, RecurrentCell)
    kinds = {True: (["*weight"], ["input*"]), False: (["query", "value"], ["query", "output"])}[
        has_cells
    ]
    for name, targets in zip(("first", "second"), kinds, strict=True):
        alone = copy.deepcopy(model)
        activate(alone, None)
        assert torch.equal(alone(tokens), base)
        LoRA(rank=2, targets=targets, name=name).apply(model)
        outputs[name] = randomize(model)(tokens)
    assert weights <= {id(p) for p in model.parameters()}
    for name in ("first", "second", "first"):
        activate(model, name)
        assert torch.equal(model(tokens), outputs[name])
        assert all(f".lora.{name}." in learning for learning in adapter_state(model))
    assert not torch.allclose(outputs["first"], outputs["second"], atol=1e-3)
    activate(model, None)
    assert torch.equal(model(tokens), base)
    with pytest.raises(ValueError, match=r"no adapter is called frist; did you mean first\?"):
        activate(model, "frist")
    with pytest.raises(
        ValueError, match="name=first: the model already has an adapter of this name"
    ):
        LoRA(name="first").apply(model)


def test_dropout_applies_only_to_inputs_of_updates_in_training(build, tokens, randomize):
    model = build("model=gpt2")
    LoRA(dropout=0.5).apply(model)
    randomize(model)
    assert not torch.equal(model(tokens), model(tokens))
    with disabled(model):
        assert torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_update_is_scaled_by_alpha_over_rank(build):
    layer = nn.Linear(4, 4)
    holder = nn.Sequential(layer)
    LoRA(rank=2, alpha=6.0, targets=EVERYTHING).apply(holder)
    update = adapted_layers(holder)["0"].lora["default"]["0"]
    nn.init.ones_(update.up)
    torch.testing.assert_close(update.delta(), 3 * update.down.sum(dim=0).expand(4, 4))


def test_optimizer_groups_updates_of_blocks_as_hidden_and_of_the_head_as_embedding(build):
    model = build("model=gpt2")
    LoRA(targets=EVERYTHING).apply(model)
    groups = {group["name"]: len(group["params"]) for group in decay_matrices(model)}
    assert groups == {"hidden": 2 * 2 * 6, "embedding": 2}


@kinds
def test_cached_equals_uncached(build, tokens, randomize, words):
    model = build(*words).double().eval()
    LoRA(targets=EVERYTHING).apply(model)
    randomize(model)
    cache = model.new_cache(2)
    cached = torch.cat([model(part, cache=cache) for part in tokens.split([5, 1, 6], dim=1)], dim=1)
    torch.testing.assert_close(cached, model(tokens), rtol=0, atol=1e-12)


@kinds
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_recomputed_activations_give_the_same_gradients(build, tokens, randomize, words, dtype):
    """The input of the first block needs no gradient if the embedding is frozen."""
    model = build(*words)
    LoRA(frozen_dtype=dtype).apply(model)
    randomize(model)
    recomputing = copy.deepcopy(model)
    checkpoint_activations(recomputing)
    for each in (model, recomputing):
        each(tokens).square().sum().backward()
    for one, other in zip(model.parameters(), recomputing.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None) == (not one.requires_grad)
        assert one.grad is None or torch.equal(one.grad, other.grad)


def test_adapter_learns_a_new_task_and_keeps_the_base(build, train):
    torch.manual_seed(0)
    model = build("model=gpt")
    before = train(model, 1, rate=3e-3, steps=60)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = (torch.arange(4)[:, None] + torch.arange(12)) % 97
    known = model(rows)

    LoRA(rank=8).apply(model)
    after = train(model, 3, rate=1e-2, steps=60)
    assert before < 0.2
    assert after < 0.3
    for name, tensor in model.state_dict().items():
        if ".lora." not in name:
            assert torch.equal(tensor, base[name.replace(".base.", ".")]), name
    assert not torch.allclose(model(rows), known, atol=0.1)
    with disabled(model):
        assert torch.equal(model(rows), known)


@others
def test_updates_of_experts_and_cells_learn_one_batch_and_keep_the_base(build, tokens, words):
    torch.manual_seed(0)
    model = build(*words)
    base = copy.deepcopy(model.state_dict())
    targets = ["*experts*"] if "experts" in str(words) else ["*_weight"]
    LoRA(rank=8, alpha=64, targets=targets).apply(model)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.03)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).mT, tokens[:, 1:])
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (
        losses[-1] < 0.85 * losses[0]
    )  # the frozen head of a new model is small, which bounds the logits
    activate(model, None)
    merge_updates(model)
    assert all(torch.equal(tensor, base[name]) for name, tensor in model.state_dict().items())


def compile_adapted() -> None:
    with initialize_config_module(config_module="llm.conf", version_base="1.3"):
        small = ["+size=nano", "size.num_layers=1", "model.vocab_size=97"]
        gpt, mixtral = (
            compose(overrides=[f"+model={name}", *small]).model for name in ("gpt", "mixtral")
        )
    cases = ((mixtral, LoRA(frozen_dtype="bfloat16"), True), (gpt, Prefix(3), False))
    for config, adapter, low in cases:
        model, tokens = build_node(config), torch.arange(32).view(2, 16)
        adapter.apply(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        for parameter in trained:
            torch.nn.init.normal_(parameter, std=0.1)
        step = partial(difference, model)
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            expected = torch.autograd.grad(step(tokens), trained)
            actual = torch.autograd.grad(compiled(tokens), trained)
        for a, e in zip(actual, expected, strict=True):
            assert (a - e).norm() <= (0.05 if low else 1e-4) * e.norm()


def difference(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return a loss like that of DPO, whose reference is the model with its adapter disabled."""
    with torch.no_grad(), disabled(model):
        reference = model(tokens)
    return (model(tokens) - reference).square().sum()


@pytest.mark.slow
def test_a_step_compiles_into_one_graph():
    # In another process, because torch.compile would also trace the shape checks of this one.
    on_ranks(1, compile_adapted, timeout=280)
