"""A run says which options change nothing in its model."""

import forked
import pytest


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (
            ["model=mistral"],
            "model.mask: hides nothing in a context of 64 tokens; use fewer tokens in the mask, or a longer "
            "size.context_length",
        ),
        (["model=mistral", "model.mask.size=63"], None),
        (
            ["model=olmo3"],
            "model.layers.local.mask: hides nothing in a context of 64 tokens; use fewer tokens in the mask, or a "
            "longer size.context_length",
        ),
        (
            ["model=mixtral", "model/layers=dense_moe"],
            "model.layers: moe and dense are the same, so their order in model.pattern changes nothing",
        ),
        (["model=llama", "model/layers=dense_moe"], None),
        (
            ["model=smollm3", "model/position=none"],
            "model.layers: rotary and nope are the same, so their order in model.pattern changes nothing",
        ),
        (
            ["model=llama", "model/attention=latent", "size.num_kv_heads=1"],
            "size.num_kv_heads: no layer of this model depends on it",
        ),
        (
            ["model=lstm", "size.num_heads=1"],
            "size.num_heads: no layer of this model depends on it",
        ),
        (["model=llama", "size.num_kv_heads=1", "size.num_heads=2"], None),
        (["model=lstm"], None),
    ],
)
def test_run_notes_what_changes_nothing(text, tmp_path, monkeypatch, words, note):
    monkeypatch.chdir(tmp_path)
    small = [
        *("size=nano", "data=text", f"data.path={text}", "tokenizer=byte", "data.batch_size=2"),
        *("hardware=cpu", "hardware.precision=32", "trainer.max_steps=1", "callbacks.samples=null"),
    ]
    done = forked.run(["train", *small, *words])
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stdout.splitlines() if "model.layers:" in line]
    found += [
        line for line in done.stdout.splitlines() if "hides nothing" in line or "depends on" in line
    ]
    assert found == ([] if note is None else [f"note      {note}"])
