"""Classifiers have the same logits in transformers, whichever side the padding is on."""

import json

import forked
import pytest
import torch
from float64_mode import Float64
from hydra import compose, initialize_config_module
from small_runs import run_command
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from llm.commands.classify import predict
from llm.config.errors import ConfigError
from llm.models.classifier import Classifier, mean
from llm.tokenizers.byte import ByteTokenizer
from llm.weights.folder_export import write_folder
from llm.weights.run import RunWeights

REAL = torch.arange(30) < torch.tensor([[30], [17], [1]])
# Without the token of the padding, 256.
TOKENS = torch.randint(256, (3, 30), generator=torch.Generator().manual_seed(0))
MODELS = {
    "gpt2": (["model=gpt2"], True),
    "gpt2 without biases": (["model=gpt2", "model.norm.bias=false"], True),
    "gpt_neox": (["model=gpt_neox"], True),
    "llama": (["model=llama"], False),
    "the default": (["model=gpt"], False),
    "ReLU²": (["model=gpt", "model/feed_forward=relu_squared"], False),
    "gemma3": (["model=gemma3"], False),
    "mixtral": (["model=mixtral"], False),
    "qwen3_next": (["model=qwen3_next", "model.feed_forward.num_experts=10"], False),
}


def classifier(build, words, *, bias=True, num_classes=3, **settings):
    """Return a classifier with large weights in float64."""
    model = Classifier(build(*words, vocab_size=257), num_classes, bias=bias, **settings)
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_equal_in_transformers(build, name, tmp_path):
    words, has_bias = MODELS[name]
    model = classifier(build, words, bias=has_bias)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    write_folder(model, ByteTokenizer(), folder=tmp_path / "out", labels=["a", "b", "c"])
    with Float64():
        theirs, report = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "out",
            dtype=torch.float64,
            output_loading_info=True,
            attn_implementation="eager",
            experts_implementation="eager",
        )
        right = theirs(torch.where(REAL, TOKENS, 256), attention_mask=REAL.long()).logits
        flipped = torch.where(REAL, TOKENS, 256).flip(1)
        left = theirs(flipped, attention_mask=REAL.flip(1).long()).logits
    assert {key: found for key, found in report.items() if found} == {}
    torch.testing.assert_close(right, model(TOKENS, REAL), rtol=0, atol=1e-9)
    if name not in ("gpt2", "gpt2 without biases"):  # theirs counts the padding on the left
        expected = model(TOKENS.flip(1), REAL.flip(1))
        torch.testing.assert_close(left, expected, rtol=0, atol=1e-9)
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (["model=llama"], {}, r"task.model.bias: .*\+task.model.bias=false"),
        (["model=gpt2"], {"pooling": mean}, r"task.model.pooling: mean .* task/pooling=last_token"),
        (["model=gpt2"], {"distinct": True}, r"task.model.distinct: True .*distinct=false"),
        (["model=bert"], {}, r"model: BERT has no counterpart .* such as model=gpt2"),
        (["model=mamba2"], {"bias": False}, r"model: Mamba-2 has no classifiers in "),
    ],
)
def test_what_their_classifiers_do_not_have_is_refused(build, words, settings, message, tmp_path):
    model = classifier(build, words, **settings)
    with pytest.raises(ConfigError, match=message) as error:
        write_folder(model, ByteTokenizer(), folder=tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not [*tmp_path.iterdir()]


def test_a_tokenizer_without_a_token_for_padding_is_refused(build, tmp_path):
    model = classifier(build, ["model=gpt2"])
    with pytest.raises(ConfigError, match=r"has no token for padding, .* tokenizer=bpe"):
        write_folder(model, ByteTokenizer([]), folder=tmp_path / "out")
    assert not [*tmp_path.iterdir()]


@torch.no_grad()
def test_a_trained_classifier_predicts_the_same_in_transformers(tmp_path):
    """Through the commands, with the tokenizer of the folder and texts of several lengths."""
    rows = [
        {
            "text": f"a {'meow' if n % 2 else 'bark'} {'x' * (n % 7)}",
            "label": "cat" if n % 2 else "dog",
        }
        for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = [
        *("experiment=classify", f"data.path={tmp_path / 'rows.jsonl'}", "weights=scratch"),
        *("model=gpt2", "size=nano", "size.dim=32", "tokenizer=byte", "hardware=cpu"),
        *("hardware.precision=32", "hardware.threads=1", "trainer.max_epochs=null"),
        *("trainer.max_steps=20", "task/pooling=last_token", "task.model.distinct=false"),
    ]
    with initialize_config_module("llm.conf", version_base="1.3"):
        with torch.enable_grad():
            run_command(compose("train", words), tmp_path / "run")
        run_command(
            compose("export", [f"weights.path={tmp_path / 'run'}", f"output={tmp_path / 'out'}"])
        )
    weights = RunWeights(str(tmp_path / "run"))
    texts = [row["text"] for row in rows[:6]]
    expected = predict(weights.model(), weights.tokenizer(), ["cat", "dog"], texts)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    given = tokenizer(texts, return_tensors="pt", padding=True)
    found = theirs(**given).logits.softmax(dim=-1).max(dim=-1)
    assert [theirs.config.id2label[int(n)] for n in found.indices] == [e.label for e in expected]
    probabilities = torch.tensor([each.probability for each in expected])
    torch.testing.assert_close(found.values, probabilities, rtol=0, atol=1e-5)
    assert "text-classification" in (tmp_path / "out" / "README.md").read_text("utf-8")
    for words, told in (
        (["export", f"weights.path={tmp_path / 'run'}", "format=gguf"], "are not exported as GGUF"),
        (
            ["generate", "weights=auto", f"weights.path={tmp_path / 'out'}", "prompt=a"],
            "(it has score.weight)",
        ),
    ):
        words += [f"output={tmp_path / 'model.gguf'}"] if words[0] == "export" else []
        done = forked.run(words)
        assert done.returncode == 2, done.stderr
        assert told in done.stderr
        assert len(done.stderr.splitlines()) == 1
