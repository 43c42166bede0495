"""Exported GGUF files in llama.cpp itself, and beside those of its own converter.

`llama_cpp.py` says how llama.cpp is found.
LLM_TEST_LLAMA_CPP_SOURCE names a folder with llama.cpp's `convert_hf_to_gguf.py`, such as `vendor/llama.cpp` in the
source package of llama-cpp-python; it needs sentencepiece.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from llama_cpp import in_llama_cpp, needs_llama_cpp

from llm.tokenizers.bpe import train_bpe
from llm.tokenizers.huggingface import HuggingFaceTokenizer
from llm.weights.folder_export import write_folder
from llm.weights.gguf_export import MARK, ORIGIN, write_gguf
from llm.weights.gguf_families import settings_in
from llm.weights.gguf_file import read_gguf
from llm.weights.piece_rules import RULES
from llm.weights.tokenizer_files import as_huggingface

SOURCE = os.environ.get("LLM_TEST_LLAMA_CPP_SOURCE")
PROMPTS = ["The default model is a decoder", "  and don't 12345\n\n", "Größe 日本"]
NUMBER = 24
# A window shorter than the prompts, a width of the heads of its own, and grouped queries where a family allows it.
MODELS = {
    "llama": (),
    "llama-3": (
        "model=llama",
        "+model.position.scaling._target_=llm.nn.rotary_scaling.Llama3Scaling",
        "+model.position.scaling.context_length=16",
    ),
    "llama-yarn": (
        "model=llama",
        "+model.position.scaling._target_=llm.nn.rotary_scaling.YaRNScaling",
        "+model.position.scaling.context_length=32",
        "+model.position.scaling.factor=4.0",
    ),
    "mistral": ("model=mistral", "model/mask=causal"),
    "qwen2": (),
    "qwen3": ("model=qwen3", "model.attention.head_dim=24"),
    "qwen3_moe": ("model=qwen3_moe", "model.feed_forward.normalize=true"),
    "gemma3": ("model=gemma3", "model.layers.local.mask.size=6"),
    "olmo2": (),
    "olmo3": ("model=olmo3", "model.layers.local.mask.size=6"),
    "smollm3": (),
    "mixtral": (),
    "gpt2": ("model=gpt2", "size.num_kv_heads=null"),
    "mamba2": ("model=mamba2", "size.num_kv_heads=null"),
}
SIZE = "size.num_layers=4 size.num_heads=4 size.num_kv_heads=2 size.dim=64 size.context_length=128"


@pytest.fixture(scope="module")
def tokenizer():
    pages = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
    return train_bpe([page.read_text("utf-8") for page in pages], vocab_size=512)


@pytest.fixture(params=MODELS)
def model(request, build, tokenizer):
    """A model with weights drawn so wide that every part changes its tokens."""
    overrides = MODELS[request.param] or (f"model={request.param}",)
    given = {word.split("=")[0] for word in overrides}
    size = [word for word in SIZE.split() if word.split("=")[0] not in given]
    model = build(*overrides, *size, vocab_size=tokenizer.vocab_size).eval()
    is_tied = model.head.weight is model.embedding.weight
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
        else:
            is_embedding = parameter is model.embedding.weight
            wide = (0.05 if is_tied else 1.0) if is_embedding else 0.15
            torch.nn.init.normal_(parameter, std=wide)
    return model


@torch.no_grad()
def greedy(model, ids):
    """Return the tokens that follow, up to the first one that is nearly as probable as another."""
    tokens = list(ids)
    for _ in range(NUMBER):
        best = model(torch.tensor([tokens]))[0, -1].topk(2)
        if best.values[0] - best.values[1] < 1e-3:  # llama.cpp's GELU is a table in half precision
            break
        tokens.append(int(best.indices[0]))
    return tokens[len(ids) :]


@pytest.mark.slow
@needs_llama_cpp
def test_prompts_and_greedy_tokens_are_equal_in_llama_cpp(model, tokenizer, tmp_path):
    write_gguf(model, tokenizer, path=tmp_path / "model.gguf")
    prompts = [(prompt, tokenizer.encode(prompt)) for prompt in PROMPTS]
    cases = [{"prompt": prompt, "ids": ids, "number": NUMBER} for prompt, ids in prompts]
    results = in_llama_cpp(tmp_path / "model.gguf", cases)
    compared = 0
    for result, (_, ids) in zip(results, prompts, strict=True):
        assert result["ids"] == ids
        expected = greedy(model, ids)
        assert result["greedy"][: len(expected)] == expected
        compared += len(expected)
    assert compared >= NUMBER


# Runs the converter with the rule that cuts texts, which it knows for published vocabularies only.
CONVERT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import convert_hf_to_gguf
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer, rule=sys.argv.pop(1): rule
convert_hf_to_gguf.main()
"""
# It writes a context of its own for Mamba, and the default of transformers for a width that has no use.
OWN = ("mamba2.context_length", "qwen3moe.feed_forward_length")
# We say what is otherwise the default, and what the factors of the frequencies were made from.
SAID = (
    *("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"),
    *("gemma3.attention.sliding_window_pattern", "llama.rope.scaling.original_context_length"),
)


@pytest.mark.slow
@pytest.mark.skipif(SOURCE is None, reason="LLM_TEST_LLAMA_CPP_SOURCE names no folder")
def test_values_and_tensors_are_those_of_the_converter(model, tokenizer, tmp_path, request):
    rule = "gpt-2"
    if request.node.callspec.params["model"] == "qwen2":
        # With other pieces the folder has another family, since transformers cuts Qwen2's texts in its own way.
        rule = "qwen2"
        definition = json.loads(as_huggingface(tokenizer).to_str())
        definition["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": RULES[rule]}
        tokenizer = HuggingFaceTokenizer(json.dumps(definition), "<|endoftext|>")
    write_gguf(model, tokenizer, path=tmp_path / "ours.gguf")
    write_folder(model, tokenizer, folder=tmp_path / "folder")
    file = tmp_path / "folder" / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({"n_ctx": settings.get("n_positions"), **settings}))
    words = [str(SOURCE), rule, "folder", "--outfile", "theirs.gguf", "--outtype", "f32"]
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = (read_gguf(tmp_path / f"{name}.gguf") for name in ("ours", "theirs"))
    named = {*theirs.values, *ours.values} - {*OWN, *SAID, MARK, ORIGIN}
    for key in {key for key in named if not key.startswith("general.")}:
        assert ours.values.get(key) == theirs.values.get(key), key
    assert ours.tensors.keys() == theirs.tensors.keys()
    if (
        "rope_freqs.weight" not in theirs.tensors
    ):  # their file does not say how its factors were made
        assert settings_in(theirs).keys() == settings_in(ours).keys()
    for name, tensor in theirs.tensors.items():
        assert ours.tensors[name].kind == tensor.kind
        found, expected = (each.lazy().read() for each in (ours.tensors[name], tensor))
        # The converter computes the factors of the frequencies in float32.
        tolerance = 1e-6 if name == "rope_freqs.weight" else 0.0
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
