"""Every option of every group in conf/ composes and passes the check."""

import pytest
import torch
from hydra.core.object_type import ObjectType
from omegaconf import OmegaConf

from llm.config.build import build
from llm.config.check import check
from llm.config.composition import compose
from llm.config.errors import ConfigError
from llm.config.loader import open_loader
from llm.models.classifier import AttentionPooling, first_token, last_token, mean

GROUPS = [
    "model",
    "size",
    "tokenizer",
    "data",
    "task",
    "weights",
    "adapter",
    "optimizer",
    "schedule",
]
PARTS = ["position", "norm", "attention", "kernel", "feed_forward", "residual", "mask", "init"]
REST = ["hardware", "logger", "callbacks", "experiment"]


# Data for the tasks other than pretraining; two tasks may use the same data.
DATA_OF_TASK = {
    "classification": ["labelled", "spam"],
    "grpo": ["instruction", "instruction_1100"],
    "sft": ["instruction", "instruction_1100"],
    "dpo": ["preference", "preference_1100"],
    "reward": ["preference", "preference_1100"],
}


@pytest.mark.parametrize("group", [*GROUPS, *(f"model/{part}" for part in PARTS), *REST])
def test_every_option_passes(group):
    loader = open_loader("pkg://llm.conf")
    options = loader.get_group_options(group, ObjectType.CONFIG)
    assert options
    # Six layers, so that the pattern of every preset fits.
    words = ["size=nano", "size.num_layers=6"] if group != "size" else []
    # Further overrides that some options need to pass.
    only = {"bert": ["experiment=classify"]}
    if group == "data":
        only |= {option: [f"task={task}"] for task, own in DATA_OF_TASK.items() for option in own}
    if group == "task":
        only |= {task: [f"data={own[0]}"] for task, own in DATA_OF_TASK.items()}
    if group == "model/attention":  # a recurrence has a preset of its own
        only |= {name: [f"model={name}"] for name in ("gated_deltanet", "mamba2", "lstm", "gru")}
    if group == "adapter":
        only |= {option: ["weights=run"] for option in options}
    problems = {
        option: _problems(loader, [*words, *only.get(option, []), f"{group}={option}"])
        for option in options
    }
    # Values that only the user knows may be missing; nothing else may be wrong.
    wrong = [
        line for lines in problems.values() for line in lines if "has no value; set" not in line
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "group", ["data", "hardware", "callbacks", "logger", "tokenizer", "schedule"]
)
def test_every_option_instantiates(group, tmp_path):
    """The test above builds the parts of a model, and the tests of training build optimizers."""
    (tmp_path / "text.txt").write_text("text")
    loader = open_loader("pkg://llm.conf")
    for option in loader.get_group_options(group, ObjectType.CONFIG):
        if option == "gpt2":
            continue  # reads published files: tests/tokenizers/test_gpt2.py
        config = compose(loader, "train", [f"{group}={option}"]).config
        if group == "data":
            config.tokenizer = {"_target_": "llm.tokenizers.byte.ByteTokenizer"}
            for node in (config.data, config.data.get("source") or {}):
                for key in node:  # files and names that only the user knows
                    if OmegaConf.is_missing(node, key):
                        node[key] = str(tmp_path / "text.txt")
        assert build(config[group]) is not None


@pytest.mark.parametrize(
    ("group", "task"),
    [
        *(("reward", "grpo"), ("task/reference", "dpo"), ("task/reference", "grpo")),
        ("task/pooling", "classification"),
    ],
)
def test_every_node_of_a_task_passes(group, task):
    """Groups that exist only with a task that uses them."""
    loader = open_loader("pkg://llm.conf")
    for option in loader.get_group_options(group, ObjectType.CONFIG):
        if option != "none":  # `none` is only for llm generate
            words = [f"task={task}", f"data={DATA_OF_TASK[task][0]}"]
            problems = _problems(loader, ["size=nano", *words, f"{group}={option}"])
            assert [line for line in problems if "has no value; set" not in line] == [], option


@pytest.mark.parametrize("pooling", [last_token, first_token, mean])
def test_classifier_pools_as_configured(pooling):
    loader = open_loader("pkg://llm.conf")
    words = ["size=nano", "task=classification", f"task/pooling={pooling.__name__}"]
    node = compose(loader, "train", words).config.task.model
    model = build(node.body, vocab_size=256)
    assert build(node, body=model, num_classes=2).pooling is pooling


@pytest.mark.parametrize("model", ["gpt", "bert"])
def test_untrained_classifier_weighs_each_distinct_token(model):
    loader = open_loader("pkg://llm.conf")
    node = compose(
        loader, "train", ["size=nano", "task=classification", f"model={model}"]
    ).config.task
    classifier = build(node.model, body=build(node.model.body, vocab_size=256), num_classes=2)
    assert classifier.distinct
    assert isinstance(classifier.pooling, AttentionPooling)
    vector = next(
        group for group in build(node.parameter_groups)(classifier) if group["name"] == "vector"
    )
    assert any(parameter is classifier.pooling.query for parameter in vector["params"])


@pytest.mark.parametrize("model", ["gpt", "llama"])
def test_untrained_classifier_begins_as_a_bag_of_words(model):
    loader = open_loader("pkg://llm.conf")
    words = ["size=nano", "task=classification", f"model={model}"]
    node = compose(loader, "train", words).config.task.model
    torch.manual_seed(0)
    classifier = build(node, body=build(node.body, vocab_size=256), num_classes=2).eval()
    tokens = torch.randint(256, (4, 32))
    shuffled = tokens[:, torch.randperm(32)]
    torch.testing.assert_close(classifier(shuffled), classifier(tokens))


def _problems(loader, words):
    try:
        check(compose(loader, "train", words))
    except ConfigError as error:
        return error.problems
    return ()
