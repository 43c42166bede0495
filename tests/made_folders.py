"""Small folders with random weights in the format of published chat models, written by Hugging Face's library."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import tokenizers
import torch
from made_tokenizers import PROSE, byte_level, sentencepiece_like
from tokenizers import Regex, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from llm.weights.piece_rules import QWEN2

CHATML = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are brief.<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}
{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}
{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}
{% for message in rest %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' }}
{%- else %}
{{- ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}
{%- endfor %}"""

LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{% endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}
{%- if tools is not none %}{{- 'Environment: ipython\n' }}{%- endif %}
{{- 'Today: ' + date_string + '\n\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""

# Only the newest response begins with a thought, an empty one if it has none.
QWEN3 = """\
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
        {{- content + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""

GEMMA3 = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\n\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}{{ message['content'] | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""


class Shape(NamedTuple):
    """Properties of a published model, except its weights.

    Attributes:
        names: special tokens of the tokenizer, in the order of their ids.
        template: in Jinja.
        roles: which token begins, ends and pads a text.
        ends: names of the tokens at which generation stops.
        sampling: further generation settings.
        dtype: of the weights.
        is_sentencepiece: whether the tokenizer is like Llama 2's.
        model_type: the family in config.json.
        sizes: settings of the family, besides those that all have.
    """

    names: list[str]
    template: str
    roles: dict[str, str]
    ends: list[str]
    sampling: dict[str, Any]
    dtype: torch.dtype = torch.float32
    is_sentencepiece: bool = False
    model_type: str = "llama"
    sizes: Mapping[str, Any] = MappingProxyType({})


SHAPES = {
    "smollm2": Shape(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        CHATML,
        {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
        },
        ["<|im_end|>"],
        {},
        torch.bfloat16,
    ),
    "llama2": Shape(
        ["<unk>", "<s>", "</s>"],
        LLAMA2,
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        ["</s>"],
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096},
        torch.float16,
        is_sentencepiece=True,
    ),
    "llama3": Shape(
        [
            *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"),
            *("<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
        ],
        LLAMA3,
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        torch.bfloat16,
    ),
    "qwen3": Shape(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        QWEN3,
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        ["<|im_end|>", "<|endoftext|>"],
        {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
        model_type="qwen3",
    ),
    "gemma3": Shape(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        GEMMA3,
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
        ["<eos>", "<end_of_turn>"],
        {"do_sample": True, "top_k": 64, "top_p": 0.95},
        is_sentencepiece=True,
        model_type="gemma3_text",
    ),
}

SHAPES |= {
    "mistral": SHAPES["llama2"]._replace(model_type="mistral"),
    "mixtral": SHAPES["llama2"]._replace(model_type="mixtral"),
    "qwen2": SHAPES["qwen3"]._replace(model_type="qwen2"),
    "qwen3_moe": SHAPES["qwen3"]._replace(model_type="qwen3_moe"),
    "qwen3_next": SHAPES["qwen3"]._replace(
        model_type="qwen3_next",
        sizes={"num_hidden_layers": 2, "full_attention_interval": 2, "num_experts": 16},
    ),
    "olmo2": SHAPES["smollm2"]._replace(model_type="olmo2"),
    "olmo3": SHAPES["smollm2"]._replace(model_type="olmo3"),
    "gemma2": SHAPES["gemma3"]._replace(model_type="gemma2"),
    "smollm3": SHAPES["llama3"]._replace(model_type="smollm3"),
    "gpt_neox": SHAPES["smollm2"]._replace(model_type="gpt_neox"),
}


def tokenizer_of(shape: Shape) -> tokenizers.Tokenizer:
    """Return the tokenizer of a shape; it puts the begin token of Llama and Gemma before each text."""
    if shape.is_sentencepiece:
        backend = sentencepiece_like()
        if shape.names[1] != "<s>":
            backend.normalizer = normalizers.Replace(" ", "▁")
    else:
        backend = byte_level()
    if (
        shape.model_type == "qwen2"
    ):  # transformers cuts the texts of this family so, whatever the file says
        pieces = [
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
        backend.pre_tokenizer = pre_tokenizers.Sequence(pieces)
        backend.normalizer = normalizers.NFC()
    backend.add_special_tokens(shape.names)
    begin = shape.roles.get("bos_token")
    if begin in ("<s>", "<bos>", "<|begin_of_text|>"):
        ids = [(begin, backend.token_to_id(begin))]
        backend.post_processor = processors.TemplateProcessing(f"{begin} $A", None, ids)
    return backend


def make_folder(shape: Shape, folder: Path, **sizes: Any) -> Path:
    """Write the folder of a small model, as Hugging Face's library does."""
    backend = tokenizer_of(shape)
    ids = {role: backend.token_to_id(name) for role, name in shape.roles.items()}
    ends = [backend.token_to_id(name) for name in shape.ends]
    config = AutoConfig.for_model(
        shape.model_type,
        **{
            "vocab_size": backend.get_vocab_size(),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 256,
            **shape.sizes,
            **sizes,
        },
        bos_token_id=ids.get("bos_token"),
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=ids.get("pad_token"),
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).to(shape.dtype)
    for name, value in shape.sampling.items():
        setattr(model.generation_config, name, value)
    model.generation_config.eos_token_id = config.eos_token_id
    model.save_pretrained(folder)
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=256, chat_template=shape.template, **shape.roles
    )
    theirs.save_pretrained(folder)
    return folder


def settings_in(folder: Path) -> dict[str, Any]:
    """Read the settings that import and export must keep from the files."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    generation.pop("transformers_version", None)
    return {
        "ids": {k: config.get(k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")},
        "dtype": config["dtype"],
        "generation": generation,
        "tokens": {k: v for k, v in tokenizer.items() if k.endswith("_token")},
        "length": tokenizer["model_max_length"],
        "template": (folder / "chat_template.jinja").read_text("utf-8"),
    }


__all__ = ["PROSE", "SHAPES", "Shape", "make_folder", "settings_in", "tokenizer_of"]
