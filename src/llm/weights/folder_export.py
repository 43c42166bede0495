"""Export of a language model as a folder that Hugging Face's library reads."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn

from llm.config.build import config_errors_at
from llm.config.errors import ConfigError
from llm.files import write_json
from llm.models.classifier import Classifier
from llm.tokenizers.base import Tokenizer
from llm.weights.classifier_export import (
    CLASSES,
    classifier_settings,
    split_classifier,
    with_padding,
)
from llm.weights.families import match_family
from llm.weights.folder_settings import CONFIG, GENERATION, IDS, SETTINGS_FILES, FolderSettings
from llm.weights.huggingface import DESCRIPTION, SAFETENSORS
from llm.weights.model_card import CHAT, CLASSIFY, CONTINUE, EAGER, model_card
from llm.weights.model_parts import dtype_of
from llm.weights.piece_rules import QWEN2_RULES, piece_rule
from llm.weights.qwen2 import Qwen2Weights
from llm.weights.tokenizer_files import as_huggingface, settings_of, write_tokenizer

# Keys of config.json: the program that wrote the folder, and a digest of the model or run.
MARK = "exported_by"
ORIGIN = "exported_from"
CARD = "README.md"


def write_folder(
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    folder: Path,
    max_shard_gb: float = 5.0,
    overwrite: bool = False,
    settings: FolderSettings | None = None,
    origin: str = "",
    record: Mapping[str, Any] | None = None,
    labels: Sequence[str] = ("reward",),
) -> list[Path]:
    """Write config.json, the weights, the tokenizer, the chat template and the card of a model.

    Writes into a temporary folder and then moves the complete files. Replaces an earlier export of the same weights.

    Args:
        model: a language model, or a classifier over one; parameters keep their dtype.
        tokenizer: its tokenizer.
        folder: the folder to write.
        max_shard_gb: maximum size of a file of weights, in gigabytes.
        overwrite: whether the folder may contain other files.
        settings: special tokens, chat template and generation; None for those of `settings_of`.
        origin: identifies the weights, see `require_free_folder`.
        record: the record of the run that trained the model, for the card.
        labels: names of the classes, if the model is a classifier.

    Returns:
        The files.

    Raises:
        ConfigError: the library has no counterpart for a part of the model or for the tokenizer, or the folder
            contains something else.
    """
    body, classes = split_classifier(model) if isinstance(model, Classifier) else (model, None)
    # transformers cuts the texts of this family by Qwen's rule, whatever tokenizer.json says.
    has_other_pieces = not _has_pieces_of_qwen(tokenizer)
    match = match_family(body, avoided=[Qwen2Weights] if has_other_pieces else [])
    if match.family is Qwen2Weights and has_other_pieces:
        print(
            "note: transformers cuts texts for Qwen2 in its own way, so a prompt may get other tokens than in "
            "training; read tokenizer.json with the library tokenizers"
        )
    require_free_folder(folder, overwrite=overwrite, origin=origin)
    if max_shard_gb <= 0:
        raise ConfigError(f"max_shard_gb: {max_shard_gb} is not positive; use a number such as 5")
    settings = settings or settings_of(tokenizer)
    settings = settings if classes is None else with_padding(settings, tokenizer)
    length = match.settings.get("n_positions", match.model.context_length)
    mark = {MARK: f"llm {metadata.version('llm-hydra')}", ORIGIN: origin}
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with config_errors_at("weights.path"):
            write_tokenizer(tokenizer, partial, context_length=length, settings=settings)
        ids = {**dict.fromkeys(IDS), **settings.ids}  # the families have other defaults
        config = {**match.settings, **ids, "dtype": dtype_of(model), **mark}
        tensors = match.tensors()
        if classes is not None:
            config |= classifier_settings(match.settings["architectures"][0], labels)
            tensors[CLASSES] = classes
        write_json(partial / CONFIG, config)
        generation = settings.ids if settings.generation is None else settings.generation
        write_json(partial / GENERATION, generation)
        use = CLASSIFY if classes is not None else CHAT if settings.chat_template else CONTINUE
        is_capped = match.settings.get("attn_logit_softcapping") is not None
        card = model_card(
            folder.name,
            size=sum(tensor.numel() for tensor in tensors.values()),
            title=match.family.title,
            record=record or {},
            use=use._replace(options=EAGER) if is_capped else use,
        )
        (partial / CARD).write_text(card, encoding="utf-8")
        _write_weights(tensors, partial, max_bytes=int(max_shard_gb * 1e9))
        return _move(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _has_pieces_of_qwen(tokenizer: Tokenizer) -> bool:
    try:
        return piece_rule(json.loads(as_huggingface(tokenizer).to_str())) in QWEN2_RULES
    except ValueError:
        return False


def require_free_folder(folder: Path, *, overwrite: bool = False, origin: str = "") -> None:
    """Require a folder that is missing, empty, or an earlier export of the same weights.

    Args:
        folder: the folder to write.
        overwrite: whether a folder may contain anything.
        origin: identifies the weights.

    Raises:
        ConfigError: the path is a file, or the folder contains other files or an export of other weights.
    """
    if folder.suffix == ".gguf":
        raise ConfigError(
            f"output: {folder} is the name of a GGUF file; add format=gguf, or name a folder"
        )
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
            f"output: {folder} contains files that no export wrote; name another folder, or overwrite=true"
        )
    if not is_same:
        raise ConfigError(
            f"output: {folder} contains the export of another model or run; name another folder, or "
            "replace it with overwrite=true"
        )


def _write_weights(state: Mapping[str, Tensor], folder: Path, *, max_bytes: int) -> None:
    """Write tensors into one file, or into several with an index if they exceed `max_bytes`."""
    # Tensors that share a storage would have to be in one file. On the device `meta`, slices of one tensor count as
    # separate tensors.
    shapes = {name: tensor.to("meta") for name, tensor in state.items()}
    pattern = SAFETENSORS.replace(".", "{suffix}.")
    split = split_torch_state_dict_into_shards(
        shapes, filename_pattern=pattern, max_shard_size=max_bytes
    )
    for file, names in split.filename_to_tensors.items():
        shard = {name: state[name] for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / f"{SAFETENSORS}.index.json", index)


def _move(partial: Path, folder: Path) -> list[Path]:
    """Replace the model's files in the folder."""
    folder.mkdir(exist_ok=True)
    patterns = (
        "model*.safetensors",
        f"{SAFETENSORS}.index.json",
        *DESCRIPTION,
        *SETTINGS_FILES,
        CARD,
    )
    for old in {file for pattern in patterns for file in folder.glob(pattern)}:
        old.unlink()
    # config.json comes last: a folder without one is not a model.
    files = sorted(partial.iterdir(), key=lambda file: (file.name == "config.json", file.name))
    for file in files:  # safetensors makes its files readable by the user only
        file.chmod(files[-1].stat().st_mode)
    return [file.replace(folder / file.name) for file in files]
