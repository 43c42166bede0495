"""The families of published models, and the one that has the parts of a given model."""

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llm.config.errors import ConfigError
from llm.models.gpt import GPT
from llm.nn.feed_forward import GatedFeedForward
from llm.weights.bert import BERTWeights
from llm.weights.gated_relu import with_gated_relu
from llm.weights.gemma2 import Gemma2Weights
from llm.weights.gemma3 import Gemma3Weights
from llm.weights.gpt2 import GPT2Weights
from llm.weights.gpt_neox import GPTNeoXWeights
from llm.weights.huggingface import HuggingFaceWeights, Settings
from llm.weights.llama import LlamaWeights
from llm.weights.mamba2 import Mamba2Weights
from llm.weights.mistral import MistralWeights
from llm.weights.mixtral import MixtralWeights
from llm.weights.model_comparison import differences, missing_biases
from llm.weights.model_parts import NoCounterpartError, name_of
from llm.weights.olmo2 import OLMo2Weights
from llm.weights.olmo3 import OLMo3Weights
from llm.weights.qwen2 import Qwen2Weights
from llm.weights.qwen3 import Qwen3Weights
from llm.weights.qwen3_moe import Qwen3MoEWeights
from llm.weights.qwen3_next import Qwen3NextWeights
from llm.weights.smollm3 import SmolLM3Weights

# The simplest first: a model that two of them describe is exported as the first.
DECODERS: tuple[type[HuggingFaceWeights], ...] = (
    *(GPT2Weights, LlamaWeights, MistralWeights, Qwen2Weights, Qwen3Weights),
    *(OLMo2Weights, OLMo3Weights, Gemma2Weights, Gemma3Weights, SmolLM3Weights),
    *(MixtralWeights, Qwen3MoEWeights, Qwen3NextWeights, GPTNeoXWeights, Mamba2Weights),
)
FAMILIES = {family.model_type: family for family in (*DECODERS, BERTWeights)}


# A part of a class that a family does not have counts as so many differences.
MANY = 1000


class Misfit(NamedTuple):
    """What a family lacks.

    Attributes:
        family: the family.
        number: number of differences, weighted.
        key: key of the most telling one in the configuration.
        part: what the model has there.
    """

    family: type[HuggingFaceWeights]
    number: int
    key: str
    part: Any


class Match(NamedTuple):
    """A family that has all parts of a model.

    Attributes:
        family: the family.
        settings: its config.json.
        model: the model with the parts of the family; it shares the parameters of the given one.
        zeros: shapes of biases that the family has and the model does not have, by our names.
    """

    family: type[HuggingFaceWeights]
    settings: Settings
    model: nn.Module
    zeros: dict[str, torch.Size]

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters by the published names."""
        state = {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
        any_tensor = state["embedding.weight"]
        state |= {name: any_tensor.new_zeros(shape) for name, shape in self.zeros.items()}
        settings = {**self.family.defaults, **self.settings}
        key_map = self.family.key_map(settings)
        tensors = key_map.to_theirs(state)
        tied = key_map.shared if settings["tie_word_embeddings"] else ()
        # A head on the device `meta` is that of a classifier, which has none.
        tensors = {n: t for n, t in tensors.items() if n not in tied and not t.is_meta}
        return _apart(tensors)


class NoFamilyError(ConfigError):
    """No family has all parts of a model.

    Args:
        reason: the most similar family, and a part that it does not have.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"{reason}, so this model cannot be exported; use its run folder, which llm generate, llm evaluate and "
            "weights=run read"
        )
        self.reason = reason


def match_family(model: nn.Module, *, avoided: Collection[type[HuggingFaceWeights]] = ()) -> Match:
    """Return the family with the parts of a model; biases may be missing, which count as 0.

    Args:
        model: a language model, with weights or on the device `meta`.
        avoided: families to take only if no other one has all parts.

    Raises:
        NoFamilyError: no family has all parts.
    """
    if not isinstance(model, GPT):
        raise NoFamilyError(
            f"model: a {type(model).__name__} has no counterpart among the decoders"
        )
    gated = with_gated_relu(model)  # once: it copies the modules
    found: list[Match] = []
    for family in DECODERS:
        match, _ = _try_family(family, model, gated=gated, only_likely=True)
        if match is not None:
            found.append(match)
            if not match.zeros and family not in avoided:
                break
    if found:
        return min(found, key=lambda match: (match.family in avoided, len(match.zeros)))
    tried = (_try_family(family, model, gated=gated) for family in DECODERS)
    misfits = [misfit for _, misfit in tried if misfit is not None]
    # Of two with as few differences, the one where the difference is deeper in the model.
    nearest = min(misfits, key=lambda misfit: (misfit.number, -misfit.key.count(".")))
    raise NoFamilyError(
        f"{nearest.key}: {name_of(nearest.part)} has no counterpart in {nearest.family.title}, the most similar family"
    )


def _try_family(
    family: type[HuggingFaceWeights], model: GPT, *, gated: GPT, only_likely: bool = False
) -> tuple[Match | None, Misfit | None]:
    """Return the model as one of a family, or why it is none; ReLU² counts as a gated layer if that helps.

    Args:
        family: the family.
        model: the model.
        gated: the same with gated layers for ReLU², or the model itself.
        only_likely: whether to leave out a family whose tensors have other names, without a reason. This saves the
            composition of its configuration.
    """
    match, misfit = _try_form(family, model, only_likely=only_likely)
    if match is not None or gated is model:
        return match, misfit
    match, other = _try_form(family, gated, only_likely=only_likely)
    # A part that the model itself does not have says nothing to the user.
    tells_more = other is not None and not isinstance(other.part, GatedFeedForward)
    return match, other if tells_more else misfit


def _try_form(
    family: type[HuggingFaceWeights], model: GPT, *, only_likely: bool
) -> tuple[Match | None, Misfit | None]:
    """Return the model as one of a family, or why it is none."""
    try:
        settings = family.describe(model)
    except NoCounterpartError as error:
        shared = sum(any(isinstance(m, kind) for m in model.modules()) for kind in family.classes)
        return None, Misfit(family, MANY - shared, error.key, error.found)
    if only_likely and not family.key_map({**family.defaults, **settings}).fits(model):
        return None, None
    outline = family.outline(settings)
    if found := differences(model, outline):
        telling = min(found, key=lambda each: each.key.count("."))
        # Another class of a part counts as several differences inside it.
        weights = (10 if isinstance(each.found, nn.Module) else 1 for each in found)
        return None, Misfit(family, sum(weights), telling.key, telling.found)
    return Match(family, settings, model, missing_biases(model, outline)), None


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with a copy of each that is in a dictionary twice, as safetensors requires."""
    seen: set[tuple[int, torch.Size]] = set()
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.shape)
        result[name] = tensor.clone() if place in seen and not tensor.is_meta else tensor
        seen.add(place)
    return result
