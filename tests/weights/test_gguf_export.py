"""Exported GGUF files: what is in them, and which files they replace."""

import gguf
import pytest
import torch

from llm.config.errors import ConfigError
from llm.tokenizers.base import END_OF_TEXT
from llm.tokenizers.byte import ByteTokenizer
from llm.tokenizers.word import train_word
from llm.weights.gguf import GGUFWeights
from llm.weights.gguf_export import write_gguf
from llm.weights.tokenizer_files import settings_of

TOKENS = torch.randint(257, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def qwen3(build):
    return build("model=qwen3", "size.dim=64", vocab_size=257).eval()


def kinds_of(path):
    return {each.name: each.tensor_type.name for each in gguf.GGUFReader(path).tensors}


def test_the_library_reads_the_same_values_and_tensors(qwen3, tmp_path):
    path = tmp_path / "model.gguf"
    written = write_gguf(qwen3, ByteTokenizer(), path=path)
    assert written == [path, path.with_suffix(".Modelfile")]
    reader = gguf.GGUFReader(path)
    values = {key: reader.fields[key].contents() for key in reader.fields}
    assert values["general.architecture"] == "qwen3"
    assert values["qwen3.block_count"] == len(qwen3.blocks)
    assert values["qwen3.context_length"] == qwen3.context_length
    assert values["tokenizer.ggml.eos_token_id"] == 256
    assert values["tokenizer.ggml.tokens"][256] == END_OF_TEXT
    assert values["tokenizer.ggml.token_type"][256] == gguf.TokenType.CONTROL
    tensors = {each.name: torch.tensor(each.data) for each in reader.tensors}
    assert torch.equal(tensors["token_embd.weight"], qwen3.state_dict()["embedding.weight"])
    output = qwen3.state_dict()["blocks.0.feed_forward.output.weight"]
    assert torch.equal(tensors["blk.0.ffn_down.weight"], output)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0"])
def test_matrices_have_the_type_and_vectors_are_exact(qwen3, dtype, tmp_path):
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "Q8_0": "q8_0"}
    path = tmp_path / "model.gguf"
    write_gguf(qwen3, ByteTokenizer(), path=path, dtype=names[dtype])
    for name, kind in kinds_of(path).items():
        assert kind == ("F32" if "norm" in name else dtype), name


def test_rows_that_blocks_do_not_divide_are_in_half_precision(build, tmp_path):
    model = build("model=qwen3", "size.dim=48", vocab_size=257)
    path = tmp_path / "model.gguf"
    write_gguf(model, ByteTokenizer(), path=path, dtype="q8_0")
    assert kinds_of(path)["blk.0.ffn_up.weight"] == "F16"
    assert GGUFWeights(str(path)).model().state_dict()["embedding.weight"].shape == (257, 48)


def test_tied_head_is_written_where_llama_cpp_needs_it(build, tmp_path):
    for name, needs in (("olmo2", True), ("llama", False)):
        model = build(f"model={name}", "model.tie_weights=true", vocab_size=257)
        path = tmp_path / name / "model.gguf"
        write_gguf(model, ByteTokenizer(), path=path)
        assert ("output.weight" in kinds_of(path)) == needs
        back = GGUFWeights(str(path)).model()
        assert torch.equal(back(TOKENS), model(TOKENS))


def test_nothing_is_written_for_a_tokenizer_without_counterpart(qwen3, tmp_path):
    with pytest.raises(ConfigError, match=r"weights.path: a tokenizer of kind word has no"):
        write_gguf(qwen3, train_word(["one two"]), path=tmp_path / "out" / "model.gguf")
    assert not [*tmp_path.iterdir()]


def test_nothing_stays_if_writing_fails(qwen3, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf, "quantize", fail)
    with pytest.raises(OSError, match="No space left"):
        write_gguf(qwen3, ByteTokenizer(), path=tmp_path / "model.gguf")
    assert not [*tmp_path.iterdir()]


def test_other_files_are_replaced_only_on_request(qwen3, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_text("years of work")
    with pytest.raises(ConfigError, match=r"a file that no export wrote; .*overwrite=true"):
        write_gguf(qwen3, ByteTokenizer(), path=path)
    assert path.read_text() == "years of work"
    write_gguf(qwen3, ByteTokenizer(), path=path, overwrite=True, origin="one")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"the export of another model or run; .*overwrite=true"):
        write_gguf(qwen3, ByteTokenizer(), path=path, origin="two")
    assert path.read_bytes() == before
    write_gguf(qwen3, ByteTokenizer(), path=path, origin="one")
    path.with_suffix(".Modelfile").write_text("FROM scratch")
    with pytest.raises(ConfigError, match=r"Modelfile is of another model"):
        write_gguf(qwen3, ByteTokenizer(), path=path, origin="one")
    for name in ("model", "model.bin"):
        with pytest.raises(ConfigError, match=r"is not the name of a GGUF file"):
            write_gguf(qwen3, ByteTokenizer(), path=tmp_path / name)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.Modelfile", "model.gguf"]


def test_end_of_a_response_is_the_first_end(qwen3, tmp_path):
    tokenizer = ByteTokenizer([END_OF_TEXT])
    talking = settings_of(tokenizer).with_chat_template("{{ messages }}", 10, name="\n")
    write_gguf(qwen3, tokenizer, path=tmp_path / "model.gguf", settings=talking)
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 10
    assert fields["tokenizer.ggml.eot_token_id"].contents() == 256
    assert fields["tokenizer.chat_template"].contents() == "{{ messages }}"
