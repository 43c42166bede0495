"""A language model of ours as a folder that Hugging Face's library reads."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from llm.config.errors import ConfigError
from llm.files import write_json
from llm.models.gpt import GPT
from llm.nn.norms import LayerNorm
from llm.nn.positions import Learned, Rotary
from llm.tokenizers.base import Tokenizer
from llm.weights import gpt2, llama
from llm.weights.compatibility import ModelPart, dtype_of, require
from llm.weights.folder_settings import CONFIG, GENERATION, SETTINGS_FILES, FolderSettings
from llm.weights.huggingface import DESCRIPTION, SAFETENSORS, Settings
from llm.weights.key_map import KeyMap
from llm.weights.tokenizer_files import settings_of, write_tokenizer

MARK = "exported_by"  # in config.json, by which a folder of ours is known
ORIGIN = "exported_from"  # and there, a digest that differs between models and runs


def write_folder(
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    folder: Path,
    max_shard_gb: float = 5.0,
    overwrite: bool = False,
    settings: FolderSettings | None = None,
    origin: str = "",
) -> list[Path]:
    """Write config.json, the weights, the tokenizer and the chat template of a model with GPT-2's or Llama's parts.

    They are written beside the folder and moved when all is there. A folder that was exported from the same
    weights before is written anew.

    Args:
        model: a language model; parameters keep their precision.
        tokenizer: its tokenizer.
        folder: where to.
        max_shard_gb: above so many gigabytes the weights are split into several files.
        overwrite: whether to write into a folder with other files in it.
        settings: special tokens, chat template and how to generate; by default those of a model that was
            trained from scratch on documents.
        origin: what tells these weights from others, see `require_room`.

    Returns:
        The files.

    Raises:
        ConfigError: a part of the model, or the tokenizer, has no counterpart there; or the folder holds
            something else.
    """
    if not isinstance(model, GPT):
        raise ConfigError(
            f"weights.path: a {type(model).__name__} has no counterpart in Hugging Face's library; "
            "only language models are exported"
        )
    architecture, key_map = describe_export(model)
    require_free_folder(folder, overwrite=overwrite, origin=origin)
    if max_shard_gb <= 0:
        raise ConfigError(f"max_shard_gb: {max_shard_gb} holds no weights; give a positive number")
    settings = settings or settings_of(tokenizer)
    length = architecture.get("n_positions", model.context_length)
    mark = {MARK: f"llm {metadata.version('llm-hydra')}", ORIGIN: origin}
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        try:
            write_tokenizer(tokenizer, partial, context_length=length, settings=settings)
        except ValueError as error:
            raise ConfigError(f"weights.path: {error}") from error
        config = {**architecture, **settings.ids, "dtype": dtype_of(model), **mark}
        _write_json(partial / CONFIG, config)
        generation = settings.ids if settings.generation is None else settings.generation
        _write_json(partial / GENERATION, generation)
        _write_shards(_their_state(model, key_map), partial, limit=int(max_shard_gb * 1e9))
        return _move(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def describe_export(model: GPT) -> tuple[Settings, KeyMap]:
    """The config.json of a model and the names of its parameters there.

    Raises:
        ConfigError: it has a part that neither GPT-2 nor Llama has; the line names it.
    """
    if isinstance(model.position, Learned):
        return gpt2.describe_gpt2(model)
    require(
        "GPT-2 or Llama",
        ModelPart("model.position", model.position, isinstance(model.position, Rotary)),
    )
    return llama.describe_llama(model)


def require_free_folder(folder: Path, *, overwrite: bool = False, origin: str = "") -> None:
    """Refuse to write in the place of a file, among files of someone else, or over another model.

    Args:
        folder: where an export is to go.
        overwrite: whether to write there in any case, unless it is a file.
        origin: what tells the exported weights from others.

    Raises:
        ConfigError: it is a file, or the folder holds other files than an export of the same weights wrote.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output: {folder} is a file; name a folder")
    if overwrite or not folder.exists() or not any(folder.iterdir()):
        return
    try:
        found = json.loads((folder / CONFIG).read_text("utf-8"))
        is_export, is_same = MARK in found, found.get(ORIGIN) == origin
    except (AttributeError, OSError, TypeError, ValueError):
        is_export = is_same = False
    if not is_export:
        raise ConfigError(
            f"output: {folder} holds files that no export wrote; name another folder, or overwrite=true"
        )
    if not is_same:
        raise ConfigError(
            f"output: {folder} holds the export of another model or run; name another folder, or "
            "replace it with overwrite=true"
        )


def _their_state(model: GPT, key_map: KeyMap) -> dict[str, Tensor]:
    """The parameters by their names; GPT-2 has biases everywhere, and where we have none theirs are 0."""
    state: dict[str, Tensor] = {n: p.detach() for n, p in model.state_dict().items()}
    if key_map is gpt2.KEY_MAP:
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | LayerNorm) and module is not model.head:
                state.setdefault(f"{name}.bias", module.weight.new_zeros(len(module.weight)))
    theirs = key_map.to_theirs(state)
    if model.head.weight is model.embedding.weight:
        theirs = {name: tensor for name, tensor in theirs.items() if name not in key_map.shared}
    return theirs


def _write_shards(state: Mapping[str, Tensor], folder: Path, *, limit: int) -> None:
    shards = list(_shards(state, limit))
    if len(shards) == 1:
        save_file(shards[0], folder / SAFETENSORS, metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / f"{SAFETENSORS}.index.json", index)


def _shards(state: Mapping[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    """The tensors in their order, each shard as full as the limit allows, none empty."""
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in state.items():
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _move(partial: Path, folder: Path) -> list[Path]:
    """Put the new files in the place of all that described a model there before."""
    folder.mkdir(exist_ok=True)
    patterns = ("model*.safetensors", f"{SAFETENSORS}.index.json", *DESCRIPTION, *SETTINGS_FILES)
    for old in {file for pattern in patterns for file in folder.glob(pattern)}:
        old.unlink()
    # config.json comes last: what has none is no model.
    files = sorted(partial.iterdir(), key=lambda file: (file.name == "config.json", file.name))
    for file in files:  # safetensors hides its files from others
        file.chmod(files[-1].stat().st_mode)
    return [file.replace(folder / file.name) for file in files]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_json(path, content)
