"""Export of a language model as a GGUF file, which llama.cpp and Ollama run."""

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm.config.build import config_errors_at
from llm.config.errors import ConfigError
from llm.files import replacing
from llm.models.classifier import Classifier
from llm.tokenizers.base import Tokenizer
from llm.weights.families import match_family
from llm.weights.folder_settings import FolderSettings
from llm.weights.gguf_families import family_for_export, gguf_values
from llm.weights.gguf_file import read_gguf
from llm.weights.gguf_library import gguf_library
from llm.weights.gguf_tensors import Planned, plan
from llm.weights.gguf_tokenizer import describe_tokenizer
from llm.weights.ollama import modelfile, require_free_modelfile, write_modelfile
from llm.weights.piece_rules import has_unknown_bytes
from llm.weights.tokenizer_files import settings_of

# Keys: the program that wrote the file, and a digest of the model or run.
MARK, ORIGIN = "llm.exported_by", "llm.exported_from"
# Types of the matrices by our names of dtypes: llama.cpp's names of a tensor's type and of a file's.
TYPES = {
    "float32": ("F32", "ALL_F32"),
    "float16": ("F16", "MOSTLY_F16"),
    "bfloat16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}
# Matrices that llama.cpp needs in float32, besides vectors and norms.
EXACT = ("ffn_gate_inp.weight", "position_embd.weight", "ssm_conv1d.weight", "ssm_a", "ssm_d")


def write_gguf(
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    path: Path,
    dtype: str = "float32",
    overwrite: bool = False,
    settings: FolderSettings | None = None,
    origin: str = "",
) -> list[Path]:
    """Write a model, its tokenizer and its chat template into one file, and a Modelfile beside it.

    Writes a temporary file and then renames it. Replaces an earlier export of the same weights.

    Args:
        model: a language model.
        tokenizer: its tokenizer.
        path: the file to write.
        dtype: type of the matrices: float32, float16, bfloat16 or q8_0, which is 8 bits and a scale for each 32 values.
            Vectors are written in float32.
        overwrite: whether to replace other files.
        settings: special tokens and chat template; None for those of `settings_of`.
        origin: identifies the weights, see `require_free_file`.

    Returns:
        The files.

    Raises:
        ConfigError: llama.cpp has no counterpart of the model or the tokenizer, or the path is another file.
    """
    if isinstance(model, Classifier):
        raise ConfigError(
            "weights.path: classifiers and reward models are not exported as GGUF; export format=folder"
        )
    match = match_family(model)
    family = family_for_export(match)
    require_free_file(path, overwrite=overwrite, origin=origin)
    settings = settings or settings_of(tokenizer)
    values = gguf_values(match, family)
    with config_errors_at("weights.path"):
        described = describe_tokenizer(tokenizer, settings, vocab_size=match.settings["vocab_size"])
    if has_unknown_bytes(tokenizer):
        print(
            "note: this tokenizer has no token for some bytes, such as control characters; llama.cpp leaves them out"
        )
    mark = {MARK: f"llm {metadata.version('llm-hydra')}", ORIGIN: origin}
    tensors = list(plan(match, family))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        named = {f"{family.arch}.{key}": value for key, value in values.items()}
        _write(partial, family.arch, named | described | mark, tensors, dtype=dtype)
    stops = [name for name, token in tokenizer.special_tokens.items() if token in settings.end_ids]
    content = modelfile(
        path,
        context_length=values["context_length"],
        stops=stops,
        is_chat=settings.chat_template is not None,
    )
    return [path, write_modelfile(path, content)]


def require_free_file(path: Path, *, overwrite: bool = False, origin: str = "") -> None:
    """Require a path without a file, or with an earlier export of the same weights.

    Args:
        path: the file to write.
        overwrite: whether it may be any file.
        origin: identifies the weights.

    Raises:
        ConfigError: the path is a folder, or a file that may not be replaced.
    """
    if path.suffix != ".gguf" or path.is_dir():
        raise ConfigError(
            f"output: {path} is not the name of a GGUF file; name one such as model.gguf"
        )
    require_free_modelfile(path, overwrite=overwrite)
    if overwrite or not path.exists():
        return
    try:
        found: Mapping[str, Any] = read_gguf(path).values
    except ConfigError:
        found = {}
    if MARK not in found:
        raise ConfigError(
            f"output: {path} is a file that no export wrote; name another file, or overwrite=true"
        )
    if found.get(ORIGIN, "") != origin:
        raise ConfigError(
            f"output: {path} is the export of another model or run; name another file, or replace it with "
            "overwrite=true"
        )


def _write(
    path: Path, arch: str, values: Mapping[str, Any], tensors: list[Planned], *, dtype: str
) -> None:
    """Write the header, and then one tensor after the other."""
    gguf = gguf_library()
    kind, file_type = TYPES[dtype]
    writer = gguf.GGUFWriter(path, arch)
    try:
        writer.add_type("model")
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(gguf.LlamaFileType[file_type])
        for key, value in values.items():
            writer.add_key_value(key, value, *_type_of(value))
        kinds = [_kind(planned, gguf.GGMLQuantizationType[kind]) for planned in tensors]
        for planned, stored in zip(tensors, kinds, strict=True):
            shape = tuple(planned.tensor("meta").shape)
            size = gguf.quant_shape_to_byte_shape(shape, stored)
            writer.add_tensor_info(
                planned.name, size, np.dtype(np.uint8), int(np.prod(size)), raw_dtype=stored
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for planned, stored in zip(tensors, kinds, strict=True):
            writer.write_tensor_data(gguf.quantize(_array(planned.tensor()), stored))
    finally:
        writer.close()


def _kind(planned: Planned, kind: Any) -> Any:
    """Return the type of a tensor: float32 for vectors, norms and small matrices."""
    types = type(kind)
    shape = planned.tensor("meta").shape
    if len(shape) == 1 or planned.name.endswith(("_norm.weight", *EXACT)):
        return types.F32
    if kind == types.Q8_0 and shape[-1] % 32:  # as llama.cpp's own converter
        return types.F16
    return kind


def _type_of(value: Any) -> tuple[Any, ...]:
    """Return the type of a value, and that of its items."""
    types = gguf_library().GGUFValueType
    match value:
        case bool():
            return (types.BOOL,)
        case int():
            return (types.UINT32,)
        case float():
            return (types.FLOAT32,)
        case str():
            return (types.STRING,)
        case list():
            first = value[0]
            is_plain = isinstance(first, int) and not isinstance(first, bool)
            return (types.ARRAY, types.INT32 if is_plain else _type_of(first)[0])
        case _:
            raise TypeError(f"{value!r} cannot be written")


def _array(tensor: Tensor) -> Any:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()
