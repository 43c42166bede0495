"""Modelfiles of Ollama."""

import pytest

from llm.config.errors import ConfigError
from llm.weights.ollama import modelfile, require_free_modelfile, write_modelfile


def test_content_names_the_file_its_context_and_its_ends(tmp_path):
    content = modelfile(tmp_path / "a.gguf", context_length=64, stops=["<|end|>"], is_chat=False)
    assert content.splitlines()[1:] == [
        "FROM ./a.gguf",
        "PARAMETER num_ctx 64",
        'PARAMETER stop "<|end|>"',
        'TEMPLATE """{{ .Prompt }}"""',
    ]
    assert "TEMPLATE" not in modelfile(tmp_path / "a", context_length=64, stops=[], is_chat=True)


def test_modelfile_of_another_file_is_replaced_only_on_request(tmp_path):
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    require_free_modelfile(one, overwrite=False)
    write_modelfile(one, modelfile(one, context_length=64, stops=[], is_chat=True))
    require_free_modelfile(one, overwrite=False)
    require_free_modelfile(two, overwrite=False)  # each file has its own
    for content in (b"FROM other", b"\xff"):
        (tmp_path / "one.Modelfile").write_bytes(content)
        with pytest.raises(ConfigError, match=r"Modelfile is of another model; .* overwrite=true"):
            require_free_modelfile(one, overwrite=False)
        require_free_modelfile(one, overwrite=True)
