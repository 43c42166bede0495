"""An exported folder is the same model for Hugging Face's library and when imported again."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm.config.errors import ConfigError
from llm.tokenizers import word
from llm.tokenizers.base import END_OF_TEXT
from llm.tokenizers.byte import ByteTokenizer
from llm.weights.folder_export import write_folder
from llm.weights.gpt2 import GPT2Weights
from llm.weights.llama import LlamaWeights
from llm.weights.tokenizer_files import settings_of

TOKENS = torch.randint(257, (2, 40), generator=torch.Generator().manual_seed(0))
MODELS = {
    "gpt2": ("model=gpt2",),
    "gpt2 without biases": (
        "model=gpt2",
        "model/attention=no_bias",
        "model.norm.bias=false",
        "model/feed_forward=gelu_exact",
        "model.feed_forward.bias=false",
        "model.feed_forward.hidden_dim=80",
        "model.norm.eps=1e-3",
        "model.tie_weights=false",
    ),
    "llama": ("model=llama",),
    "llama, grouped and tied": (
        "model=llama",
        "size.num_kv_heads=1",
        "model.attention.head_dim=24",
        "model/feed_forward=geglu",
        "model.norm.eps=1e-3",
        "model.position.theta=500.0",
        "model.tie_weights=true",
    ),
    "llama 3": (
        "model=llama",
        "+model.position.scaling._target_=llm.nn.positions.Llama3Scaling",
        "+model.position.scaling.context_length=16",
    ),
}


@pytest.fixture(params=list(MODELS))
def ours(request, build):
    model = build(*MODELS[request.param], vocab_size=257).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def gpt2(build):
    return build("model=gpt2", vocab_size=257).eval()


@torch.no_grad()
def test_exported_logits_are_equal_in_transformers(ours, tmp_path, precise):
    write_folder(ours.double(), ByteTokenizer(), folder=tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    expected = ours(TOKENS)
    torch.testing.assert_close(theirs(TOKENS).logits, expected, rtol=0, atol=1e-10)
    real = torch.arange(40) >= torch.tensor([[0], [25]])
    positions = (real.cumsum(1) - 1).clamp(min=0)
    padded = theirs(TOKENS, attention_mask=real.long(), position_ids=positions).logits
    torch.testing.assert_close(
        padded[real], ours(TOKENS, attention_mask=real)[real], rtol=0, atol=1e-10
    )
    first = theirs(TOKENS[:, :30], use_cache=True)
    rest = theirs(TOKENS[:, 30:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(rest, expected[:, 30:], rtol=0, atol=1e-10)


@torch.no_grad()
def test_exported_logits_are_equal_in_transformers_in_float32(ours, tmp_path):
    write_folder(ours, ByteTokenizer(), folder=tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.float32
    torch.testing.assert_close(theirs(TOKENS).logits, ours(TOKENS), rtol=0, atol=1e-5)


def test_exported_model_is_imported_unchanged(ours, tmp_path):
    write_folder(ours, ByteTokenizer(), folder=tmp_path / "out", max_shard_gb=1e-4)
    assert len([*(tmp_path / "out").glob("*.safetensors")]) > 1
    family = json.loads((tmp_path / "out" / "config.json").read_text())["model_type"]
    weights = {"gpt2": GPT2Weights, "llama": LlamaWeights}[family](str(tmp_path / "out"))
    back = weights.model()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)
    assert torch.equal(back(TOKENS), ours(TOKENS))
    assert weights.tokenizer().end_of_text == 256


def test_transformers_reports_no_problem_of_the_weights(ours, tmp_path):
    write_folder(ours, ByteTokenizer(), folder=tmp_path / "out", max_shard_gb=1e-4)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {name: found for name, found in report.items() if found} == {}


def test_exported_model_and_tokenizer_generate_in_transformers(gpt2, tmp_path):
    write_folder(gpt2, ByteTokenizer(), folder=tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.model_max_length == 64
    given = tokenizer("né", return_tensors="pt")
    made = theirs.generate(**given, max_new_tokens=5, do_sample=False)
    assert made[0, :3].tolist() == list("né".encode())
    assert theirs.generation_config.eos_token_id == 256


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=gpt",), r"model.attention.qk_norm: RMSNorm has no counterpart in Llama"),
        (("model=gpt2", "model/position=alibi"), r"model.position: ALiBi .* in GPT-2 or Llama"),
        (("model=llama", "model/position=rotary_partial"), r"model.position.fraction: 0.25 "),
        (("model=mixtral",), r"model.feed_forward: MixtureOfExperts has no counterpart in Llama"),
        (("model=llama", "model/position=rotary_yarn"), r"model.position.scaling: YaRNScaling "),
        (("model=gpt2", "model/norm=rms"), r"model.norm: RMSNorm has no counterpart in GPT-2"),
        (("model=gpt2", "model/mask=sliding_window"), r"model.mask: "),
        (
            ("model=llama", "model/layers=nope", "model.pattern=[rotary,nope]"),
            r"model.layers: 1 rotary, 1 nope has no counterpart in Llama",
        ),
        (("model=llama", "model/layers=shared_kv"), r"model.layers: 1 own, 1 shared has no "),
        (
            ("model=llama", "model/attention=value_residual"),
            r"model.attention.value_residual: ValueResidual has no counterpart in Llama",
        ),
        (
            ("model=llama", "model/attention=latent"),
            r"model.attention: LatentAttention has no count",
        ),
        (
            ("model=gpt2", "model/attention=latent"),
            r"model.attention: LatentAttention has no count",
        ),
        (
            (
                "model=llama",
                "model/layers=gated_deltanet",
                "model.pattern=[gated_deltanet,attention]",
            ),
            r"model.layers: 1 gated_deltanet, 1 attention has no counterpart in Llama",
        ),
        (("model=lstm",), r"model.position: NoPosition has no counterpart in GPT-2 or Llama"),
        (("model=gpt2", "model/head=soft_capped"), r"model.head: SoftCappedHead "),
        (("model=gpt2", "model/embedding=scaled"), r"model.embedding: ScaledEmbedding "),
        (("model=gpt2", "model/kernel=soft_capped"), r"model.attention.kernel.softcap: 50.0 "),
        (
            ("model=gpt2", "model/kernel=flex", "model.attention.kernel.softcap=3.0"),
            r"model.attention.kernel.softcap: 3.0 ",
        ),
        (("model=gpt2", "model/residual=parallel"), r"model.block: ParallelBlock "),
        (("model=llama", "model/attention=sinks"), r"model.attention.sinks: Sinks has no count"),
        (
            ("model=llama", "model/attention=gated", "model.attention.qk_norm=null"),
            r"model.attention.output_gate: SigmoidGate has no counterpart in Llama",
        ),
        (("model=gpt2", "model/residual=post_norm"), r"model.residual: post_norm "),
        (("model=gpt2", "size.num_kv_heads=1"), r"model.attention.num_kv_heads: 1 "),
        (("model=gpt2", "model.attention.head_dim=8"), r"model.attention.head_dim: 8 "),
        (("model=gpt2", "model/feed_forward=swiglu"), r"model.feed_forward: GatedFeedForward "),
        (("model=gpt2", "model/feed_forward=relu_squared"), r"activation: relu_squared "),
        (("model=llama", "model/feed_forward=gelu"), r"model.feed_forward: FeedForward "),
        (("model=llama", "model.attention.qkv_bias=true"), r"model.attention.query_key_value.bias"),
        (("model=llama", "model.final_norm.eps=1e-3"), r"model.final_norm.eps"),
    ],
)
def test_a_part_without_counterpart_is_named(build, overrides, message, tmp_path):
    if "model.final_norm.eps=1e-3" in overrides:  # refers to model.norm
        model = build(*overrides[:1])
        model.final_norm.eps = 1e-3
    else:
        model = build(*overrides)
    with pytest.raises(ConfigError, match=message) as error:
        write_folder(model, ByteTokenizer(), folder=tmp_path / "out")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(
        "; use its run folder, which llm generate, llm evaluate and weights=run read"
    )
    assert not [*tmp_path.iterdir()]


def test_other_models_and_tokenizers_are_refused(gpt2, tmp_path):
    with pytest.raises(ConfigError, match=r"a Linear has no counterpart"):
        write_folder(torch.nn.Linear(2, 2), ByteTokenizer(), folder=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"kind word has no counterpart"):
        write_folder(gpt2, word.train_word(["one two"]), folder=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"max_shard_gb: 0 is not positive"):
        write_folder(gpt2, ByteTokenizer(), folder=tmp_path / "out", max_shard_gb=0)
    assert not [*tmp_path.iterdir()]


def test_folder_with_other_files_is_not_overwritten_without_request(gpt2, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match=r"contains files that no export wrote; .*overwrite=true"):
        write_folder(gpt2, ByteTokenizer(), folder=folder)
    assert [file.name for file in folder.iterdir()] == ["thesis.txt"]
    write_folder(gpt2, ByteTokenizer(), folder=folder, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "years of work"
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"is a file; name a folder"):
            write_folder(gpt2, ByteTokenizer(), folder=folder / "thesis.txt", overwrite=overwrite)


def test_the_export_of_another_model_is_replaced_only_on_request(gpt2, tmp_path):
    folder = tmp_path / "out"
    talking = settings_of(ByteTokenizer()).with_chat_template(
        "{{ messages }}", 256, name=END_OF_TEXT
    )
    before = write_folder(gpt2, ByteTokenizer(), folder=folder, settings=talking, origin="one")
    content = {file: file.read_bytes() for file in before}
    with pytest.raises(ConfigError, match=r"another model or run; name another .*overwrite=true"):
        write_folder(gpt2, ByteTokenizer(), folder=folder, origin="two")
    assert {file: file.read_bytes() for file in folder.iterdir()} == content
    assert (
        write_folder(gpt2, ByteTokenizer(), folder=folder, settings=talking, origin="one") == before
    )
    after = write_folder(gpt2, ByteTokenizer(), folder=folder, overwrite=True, origin="two")
    assert {*folder.iterdir()} == {*after}
    assert "chat_template.jinja" not in {file.name for file in after}


def test_end_token_of_a_response_ends_generation(gpt2, tmp_path):
    tokenizer = ByteTokenizer(["<|endoftext|>", "<|end|>"])
    talking = settings_of(tokenizer).with_chat_template("{{ messages }}", 257, name="<|end|>")
    write_folder(gpt2, tokenizer, folder=tmp_path / "out", settings=talking)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.generation_config.eos_token_id == theirs.config.eos_token_id == [257, 256]
    assert theirs.generation_config.bos_token_id == 256
    found = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (found.eos_token, found.bos_token) == ("<|end|>", "<|endoftext|>")
    assert found.chat_template == "{{ messages }}"


def test_earlier_export_is_replaced_completely(gpt2, tmp_path):
    first = write_folder(gpt2, ByteTokenizer(), folder=tmp_path / "out", max_shard_gb=1e-4)
    assert any("00001-of" in file.name for file in first)
    second = write_folder(gpt2, ByteTokenizer(), folder=tmp_path / "out")
    assert {*(tmp_path / "out").iterdir()} == {*second}
    assert len({file.stat().st_mode for file in second}) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
