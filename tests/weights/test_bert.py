"""BERT equals Hugging Face's: hidden states, predictions and gradients, imported and exported."""

import copy
import shutil
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from safetensors.torch import load_file, save_file
from small_runs import run_command
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertTokenizer

from llm.commands.classify import predict
from llm.config.check import check_nodes
from llm.config.deferred import Deferred
from llm.config.errors import ConfigError
from llm.models.classifier import Classifier, first_token
from llm.models.size import Size
from llm.tokenizers.base import load
from llm.weights.bert import KEY_MAP, BERTWeights
from llm.weights.run import RunWeights

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(33, 125))]
# Without 0: their embedding takes it for padding and has no gradient for it.
TOKENS = torch.randint(1, 97, (3, 40), generator=torch.Generator().manual_seed(0))
REAL = torch.arange(40) < torch.tensor([[40], [23], [1]])  # padded on the right
SEGMENTS = (torch.arange(40) >= torch.tensor([[9], [0], [40]])).long()
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-5)]
ODD = {
    "intermediate_size": 48,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-3,
    "type_vocab_size": 3,
    "tie_word_embeddings": False,
}


def drawn(kind: type, **changes: Any) -> Any:
    """Draw large weights (std 0.3), so that every part affects the logits."""
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 128}
    depth = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
    torch.manual_seed(0)
    model = kind(BertConfig(**{**sizes, **depth, **changes}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    # An untied model has this bias too, but does not use it.
    model.cls.predictions.bias.data = model.cls.predictions.decoder.bias.data.clone()
    return model.eval()


class Published(NamedTuple):
    """A Hugging Face model, and the reader of its folder."""

    theirs: Any
    weights: BERTWeights


@pytest.fixture(scope="module", params=[{}, ODD], ids=["base", "odd"])
def published(request, tmp_path_factory) -> Published:
    folder = tmp_path_factory.mktemp("bert")
    theirs = drawn(BertForMaskedLM, **request.param)
    theirs.save_pretrained(folder)
    BertTokenizer(vocab={piece: n for n, piece in enumerate(VOCABULARY)}).save_pretrained(folder)
    return Published(theirs, BERTWeights(str(folder)))


@pytest.fixture(params=PRECISIONS, ids=["float64", "float32"])
def pair(request, published):
    """Our model, theirs, and the tolerance."""
    dtype, tolerance = request.param
    ours = published.weights.model()
    return ours.to(dtype), copy.deepcopy(published.theirs).to(dtype), tolerance


@torch.no_grad()
@pytest.mark.parametrize("segments", [None, SEGMENTS])
def test_hidden_states_and_logits_of_a_padded_batch_are_equal(pair, segments):
    ours, theirs, tolerance = pair
    expected = theirs(
        TOKENS, attention_mask=REAL.long(), token_type_ids=segments, output_hidden_states=True
    )
    output = ours.hidden_states(TOKENS, attention_mask=REAL, segments=segments)
    hidden, logits = output, ours(TOKENS, attention_mask=REAL, segments=segments)
    near = {"rtol": 0, "atol": tolerance}
    torch.testing.assert_close(hidden[REAL], expected.hidden_states[-1][REAL], **near)
    torch.testing.assert_close(logits[REAL], expected.logits[REAL], **near)
    torch.testing.assert_close(ours(TOKENS), theirs(TOKENS).logits, **near)


@torch.no_grad()
def test_padding_on_either_side_changes_nothing(pair):
    ours, _, tolerance = pair
    text = TOKENS[:1, :23]
    filled = F.pad(text, (9, 8))
    real = F.pad(torch.ones_like(text), (9, 8)).bool()
    found = ours(filled, attention_mask=real)[:, 9:-8]
    torch.testing.assert_close(found, ours(text), rtol=0, atol=tolerance)


def test_gradients_are_equal(pair):
    ours, theirs, tolerance = pair
    for logits in (
        ours(TOKENS, attention_mask=REAL),
        theirs(TOKENS, attention_mask=REAL.long()).logits,
    ):
        F.cross_entropy(logits[REAL], TOKENS[REAL]).backward()
    gradients = {n: p.grad for n, p in ours.named_parameters(remove_duplicate=False)}
    found = KEY_MAP.to_theirs(gradients)
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:  # see `drawn`
            torch.testing.assert_close(found[name], parameter.grad, rtol=0, atol=tolerance)


def test_import_and_export_restore_the_weights(published):
    back = KEY_MAP.to_theirs(published.weights.model().state_dict())
    expected = published.theirs.state_dict()
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], expected[name]) for name in expected)


def test_wrong_epsilon_changes_the_logits(published):
    ours = published.weights.model()
    for module in ours.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-5
    assert (ours(TOKENS) - published.theirs(TOKENS).logits).abs().max() > 1e-5


def test_next_sentence_head_is_ignored_and_old_names_of_norms_are_read(tmp_path):
    theirs = drawn(BertForPreTraining)
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(file).items()
    }
    assert any(name.startswith("cls.seq_relationship") for name in tensors)
    assert "bert.pooler.dense.weight" in tensors
    save_file({**tensors, "bert.embeddings.position_ids": torch.arange(64)[None]}, file)
    ours = BERTWeights(str(tmp_path)).model()
    expected = theirs(TOKENS).prediction_logits
    torch.testing.assert_close(ours(TOKENS), expected, rtol=0, atol=1e-5)


def test_classifier_loads_the_body_alone_and_pools_the_first_token(published, tmp_path):
    theirs, weights = published
    theirs.bert.save_pretrained(tmp_path)
    body = BERTWeights(str(tmp_path))
    with pytest.raises(ConfigError, match=r"missing: cls\.predictions\.transform\.dense\.weight"):
        body.model()
    for source in (weights, body):
        classifier = Classifier(weights.model(), num_classes=2).eval()
        for parameter in classifier.body.parameters():
            nn.init.zeros_(parameter)
        source.load(classifier.body)
        expected = theirs.bert(TOKENS, attention_mask=REAL.long()).last_hidden_state[:, 0]
        found = classifier(TOKENS, REAL)
        torch.testing.assert_close(found, classifier.head(expected), rtol=0, atol=1e-5)


def test_config_has_the_nodes_that_training_adopts(published):
    config = published.weights.config
    assert set(config) == {"model", "size", "tokenizer"}
    check_nodes(config, {"size": Size, "model": Deferred[nn.Module], "tokenizer": Deferred[Any]})
    short = BERTWeights(published.weights.path, context_length=16)
    assert short.config.model.context_length == 16
    assert short.model()(TOKENS[:, :16]).shape == (3, 16, 97)


def test_tokenizer_equals_that_of_transformers(published):
    tokenizer = published.weights.tokenizer()
    ids = BertTokenizer.from_pretrained(published.weights.path)("a b, C")["input_ids"]
    assert tokenizer.with_ends(tokenizer.encode("a b, C"), most=64) == ids


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"is_decoder": True}, "is_decoder"),
        ({"hidden_act": "tanh"}, "hidden_act"),
        ({"model_type": "roberta"}, "a model of type roberta, not bert"),
        ({"hidden_size": None}, "hidden_size=None is not a positive integer"),
    ],
)
def test_another_architecture_is_refused(published, tmp_path, changes, problem):
    import json

    folder = shutil.copytree(published.weights.path, tmp_path / "bert")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changes))
    with pytest.raises(ConfigError, match=problem):
        _ = BERTWeights(str(folder)).config


def test_experiment_classify_finetunes_bert(published, tmp_path):
    weights = published.weights
    rows = (f"{word} {word} {number},{word}" for number in range(30) for word in "ab")
    (tmp_path / "rows.csv").write_text("text,label\n" + "\n".join(rows))
    words = [
        *("experiment=classify", "weights=bert", f"weights.path={weights.path}", "hardware=cpu"),
        *(f"data.path={tmp_path / 'rows.csv'}", "hardware.precision=32", "trainer.max_epochs=10"),
        *("optimizer.lr=0.003", "schedule.warmup_steps=0"),
    ]
    with initialize_config_module("llm.conf", version_base="1.3"):
        run = run_command(compose("train", words), tmp_path / "run", words)
    assert run.record["metrics"]["test/accuracy"] == 1
    trained: Any = RunWeights(str(run.path)).model()
    tokenizer = load(run.tokenizer)
    assert trained.pooling is first_token
    (row,) = predict(trained, tokenizer, ["a", "b"], ["b b 7"])
    assert row.label == "b"
    ids = torch.tensor([tokenizer.with_ends(tokenizer.encode("b b 7"), most=64)])
    expected = BertTokenizer.from_pretrained(weights.path)("b b 7")["input_ids"]
    assert ids.tolist() == [expected]
    assert trained(ids).softmax(-1).max().item() == pytest.approx(row.probability, abs=1e-6)
