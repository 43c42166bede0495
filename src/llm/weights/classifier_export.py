"""Classifiers and reward models as Hugging Face's library has them: a decoder, and a matrix over its last state.

Theirs has no bias. If the last norm has one, as GPT-2's has, it takes over that of our head: the logits of the state
n + β are W (n + β) + b = W (n + β + W⁺ b). W⁺ is the pseudoinverse, and W W⁺ = 1 for fewer classes than columns.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llm.config.errors import ConfigError
from llm.models.classifier import Classifier, last_token
from llm.models.gpt import GPT
from llm.nn.norms import LayerNorm
from llm.tokenizers.base import Tokenizer
from llm.weights.families import NoFamilyError, match_family
from llm.weights.folder_settings import FolderSettings
from llm.weights.huggingface import Settings
from llm.weights.model_parts import name_of, unwrap_partial
from llm.weights.tokenizer_files import token_name

CLASSES = "score.weight"  # their name of the matrix of the classes


class Parts(NamedTuple):
    """What a classifier consists of in Hugging Face's library.

    Attributes:
        body: the decoder, with a head on the device `meta`, which is not exported.
        classes: the matrix of the classes, (N, C).
    """

    body: GPT
    classes: Tensor


def split_classifier(model: Classifier) -> Parts:
    """Return the parts of a classifier; it stays as it is, and shares its parameters with them.

    Raises:
        ConfigError: Hugging Face's library pools the states in another way, or its head has no bias.
    """
    if not isinstance(model.body, GPT):
        _refuse("model", model.body, "export a classifier of a decoder, such as model=gpt2")
    pooling = unwrap_partial(model.pooling)
    if pooling is not last_token:
        _refuse("task.model.pooling", pooling, "train with task/pooling=last_token")
    if model.distinct:
        _refuse("task.model.distinct", model.distinct, "train with task.model.distinct=false")
    body: Any = copy.copy(model.body)  # the modules are shared; those that change are replaced
    body._modules = {**model.body._modules}
    rows, dim = body.embedding.weight.shape
    body.head = nn.Linear(dim, rows, bias=False, device="meta")
    bias = model.head.bias
    if bias is not None and (bias.is_meta or bias.any()):
        body.final_norm = _with_bias(body.final_norm, model.head)
    return Parts(body, model.head.weight.detach())


def exported_as(model: nn.Module) -> str:
    """Return the family as which a model is exported, such as "Llama, a classifier".

    Args:
        model: a language model or a classifier, with weights or on the device `meta`.

    Raises:
        NoFamilyError: it is not exported.
    """
    if not isinstance(model, Classifier):
        return match_family(model).family.title
    try:
        match = match_family(split_classifier(model).body)
        classifier_settings(match.settings["architectures"][0], [])
    except NoFamilyError:
        raise
    except ConfigError as error:
        raise NoFamilyError(str(error)) from None
    return f"{match.family.title}, a classifier"


def with_padding(settings: FolderSettings, tokenizer: Tokenizer) -> FolderSettings:
    """Return the settings of a folder with a token for padding, at which their library recognizes the end of a text.

    Args:
        settings: those of the language model.
        tokenizer: the tokenizer.

    Raises:
        ConfigError: no token can be the padding.
    """
    if "pad_token" in settings.tokens and settings.ids.get("pad_token_id") is not None:
        return settings
    pad = tokenizer.end_of_text
    if pad is None or pad in tokenizer.ends[1]:
        raise ConfigError(
            "weights.path: the tokenizer has no token for padding, at which Hugging Face's library recognizes the end "
            "of a text; use a tokenizer with <|endoftext|>, such as tokenizer=bpe"
        )
    return replace(
        settings,
        ids={**settings.ids, "pad_token_id": pad},
        tokens={**settings.tokens, "pad_token": token_name(tokenizer, pad)},
    )


def classifier_settings(their_class: str, labels: Sequence[str]) -> Settings:
    """Return the keys of config.json that a classifier has besides those of its decoder.

    Args:
        their_class: the class of the decoder in their library.
        labels: names of the classes; a reward model has one, without a meaning.

    Raises:
        ConfigError: their library has no classifiers of this family.
    """
    if their_class == "Mamba2ForCausalLM":
        raise ConfigError(
            "model: Mamba-2 has no classifiers in Hugging Face's library; use the run folder, which llm classify reads"
        )
    stem = their_class.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    stem = "Gemma3Text" if stem == "Gemma3" else stem  # Gemma3 is the class with images
    return {
        "architectures": [f"{stem}ForSequenceClassification"],
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": "single_label_classification" if len(labels) > 1 else "regression",
    }


def _with_bias(norm: nn.Module, head: nn.Linear) -> LayerNorm:
    """Return a norm with a bias that adds that of the head to the logits."""
    if not isinstance(norm, LayerNorm):
        raise ConfigError(
            "task.model.bias: the head of Hugging Face's classifiers has none, and this model has no LayerNorm to take "
            "it over; train with +task.model.bias=false, or with model=gpt2"
        )
    changed = copy.copy(norm)
    changed._parameters = {**norm._parameters}
    if head.weight.is_meta:  # a model without weights has no numbers to add
        changed.bias = nn.Parameter(torch.empty_like(norm.weight))
        return changed
    matrix, bias = (tensor.detach().double() for tensor in (head.weight, head.bias))
    shift = torch.linalg.pinv(matrix) @ bias
    before = 0.0 if norm.bias is None else norm.bias.detach().double()
    changed.bias = nn.Parameter((shift + before).to(norm.weight.dtype))
    return changed


def _refuse(key: str, found: Any, advice: str) -> None:
    raise ConfigError(
        f"{key}: {name_of(found)} has no counterpart in the classifiers of Hugging Face's library; {advice}"
    )
