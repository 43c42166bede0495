"""The family that has all parts of a model, or the part that the most similar one does not have."""

import forked
import pytest
from published_families import VARIANTS

from llm.config.errors import ConfigError
from llm.tokenizers.byte import ByteTokenizer
from llm.weights.families import DECODERS, match_family
from llm.weights.folder_export import write_folder

PRESETS = ["gpt2", "llama", "mistral", "qwen2", "qwen3", "olmo2", "olmo3", "gemma2", "gemma3"]
PRESETS += ["smollm3", "mixtral", "qwen3_moe", "qwen3_next", "gpt_neox", "mamba2"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_own_family(build, preset):
    assert (
        match_family(build(f"model={preset}")).family is VARIANTS[preset].weights("gpt2").__class__
    )


def test_every_decoder_has_a_preset_and_a_variant():
    assert len(PRESETS) == len(DECODERS)
    assert {family.model_type for family in DECODERS} == {
        each.model_type for each in VARIANTS.values()
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=gpt2", "model/position=alibi"), r"model.position: ALiBi .* in GPT-2"),
        (("model=gpt_neox", "model/norm=rms"), r"model.block: ParallelBlock .* in Llama"),
        (("model=llama", "model/position=rotary_ntk"), r"model.position.scaling: NTKScaling "),
        (("model=gpt2", "model/norm=rms"), r"model.norm: RMSNorm has no counterpart in GPT-2"),
        (("model=gpt", "model/norm=rms_weightless"), r"model.norm: WeightlessRMSNorm "),
        (("model=gpt2", "model/mask=sliding_window"), r"model.mask: SlidingWindow .* in GPT-2"),
        (("model=llama", "model/mask=sparse_strided"), r"model.mask: sparse_strided .* in Llama"),
        (("model=llama", "model/layers=shared_kv"), r"model.attention: SharedKVAttention "),
        (
            ("model=llama", "model/attention=value_residual"),
            r"model.attention.value_residual: ValueResidual has no counterpart in Llama",
        ),
        (("model=llama", "model/attention=latent"), r"model.attention: LatentAttention "),
        (
            ("model=llama", "model/layers=gated_deltanet"),
            r"model.attention: GatedDeltaNet has no counterpart in Llama",
        ),
        (("model=lstm",), r"model.attention: LSTM has no counterpart in Llama"),
        (("model=gpt2", "model/head=soft_capped"), r"model.head: SoftCappedHead .* in GPT-2"),
        (("model=gpt2", "model/embedding=scaled"), r"model.embedding: ScaledEmbedding "),
        (("model=gpt2", "model/kernel=soft_capped"), r"model.attention.kernel.softcap: 50.0 "),
        (
            ("model=gpt2", "model/kernel=flex", "model.attention.kernel.softcap=3.0"),
            r"model.attention.kernel.softcap: 3.0 ",
        ),
        (("model=gpt2", "model/residual=parallel"), r"model.block: ParallelBlock .* in GPT-2"),
        (("model=gpt", "model/residual=layer_scale"), r"model.block: ScaledBlock .* in Qwen3"),
        (("model=llama", "model/attention=sinks"), r"model.attention.sinks: Sinks .* in Llama"),
        (
            ("model=llama", "model/attention=gated", "model.attention.qk_norm=null"),
            r"model.attention.output_gate: SigmoidGate has no counterpart in Llama",
        ),
        (("model=gpt2", "model/residual=post_norm"), r"model.residual: post_norm "),
        (("model=gpt2", "size.num_kv_heads=1"), r"model.attention.num_kv_heads: 1 .* in GPT-2"),
        (("model=gpt2", "model.attention.head_dim=8"), r"model.attention.head_dim: 8 "),
        (("model=gpt2", "model/feed_forward=swiglu"), r"model.feed_forward: GatedFeedForward "),
        (("model=gpt2", "model/feed_forward=relu_squared"), r"activation: relu_squared .* GPT-2"),
        (("model=llama", "model/feed_forward=gelu"), r"model.feed_forward: FeedForward .* Llama"),
        (("model=llama", "model.final_norm.eps=1e-3"), r"model.final_norm.eps: 0.001 .* in Llama"),
        (("model=mixtral", "model/feed_forward=moe_loss_free"), r"selection_bias: .* in Mixtral"),
        (("model=mixtral", "model/feed_forward=moe_shared"), r"shared: GatedFeedForward .*Mixtral"),
        (
            ("model=gemma3", "model/kernel=soft_capped"),
            r"model.attention.kernel.softcap: 50.0 has no counterpart in Gemma 3",
        ),
        (("model=mixtral", "model.feed_forward.bias=true"), r"model.feed_forward.* in Mixtral"),
        (
            ("model=qwen3_next", "model/feed_forward=moe_fine"),
            r"model.feed_forward.shared: None has no counterpart in Qwen3-Next",
        ),
        (
            ("model=qwen3_next", "model/layers=gated_deltanet"),
            r"model.attention.norm.eps: 1e-06 has no counterpart in Qwen3-Next",
        ),
        (
            (
                "model=qwen3_next",
                "model.feed_forward.activation._target_=llm.nn.activations.relu",
            ),
            r"model.feed_forward.*activation: relu has no counterpart in Qwen3-Next",
        ),
        (("model=qwen3_next", "model/attention=qk_norm_as_model"), r"output_gate: None .*-Next"),
        (
            ("model=qwen3_next", "model/feed_forward=swiglu"),
            r"model.feed_forward: GatedFeedForward has no counterpart in Qwen3-Next",
        ),
        (("model=qwen3", "model.attention.qk_norm.eps=1e-3"), r"model.attention.qk_norm.eps: "),
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


def test_a_run_notes_that_it_cannot_be_exported(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [
        *("size=nano", "data=text", f"data.path={text}", "tokenizer=byte", "data.batch_size=2"),
        *("hardware=cpu", "hardware.precision=32", "trainer.max_steps=1", "callbacks.samples=null"),
    ]
    for words, expected in (
        (["model=llama", "model/attention=sinks"], True),
        (["model=llama", "name=llama"], False),
    ):
        done = forked.run(["train", *small, *words])
        assert done.returncode == 0, done.stderr
        note = (
            "note      llm export refuses this model: model.attention.sinks: Sinks has no counterpart in Llama, the "
            "most similar family"
        )
        assert (note in done.stdout.splitlines()) == expected
