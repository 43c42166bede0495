"""How a model leaves for Hugging Face's library."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from llm import shell
from llm.apps.loading import open_weights
from llm.config.check import check
from llm.config.errors import ConfigError
from llm.console import printable
from llm.files import read_object
from llm.nn.init import Undrawn
from llm.weights.export import require_room, write
from llm.weights.weights import Weights


def export(config: DictConfig) -> list[Path]:
    """Write the folder that a composed configuration of `llm export` asks for, and say how to load it.

    An adapter is folded into the weights that it was trained on.

    Returns:
        The files.

    Raises:
        ConfigError: the configuration is wrong, the model has no counterpart in Hugging Face's library,
            or the folder holds something else.
    """
    check(config)
    weights = open_weights(config)
    folder = Path(config.output)
    require_room(folder, config.overwrite)
    require_language_model(weights)
    with Undrawn():
        model = weights.language_model()
    tokenizer = weights.tokenizer()
    files = write(model, tokenizer, folder, config.max_shard_gb, config.overwrite)
    for file in files:
        print(f"{file.stat().st_size:>15,} bytes  {printable(str(file))}")
    quoted = repr(str(folder))
    family = read_object(folder / "config.json")["model_type"]
    print(
        "\nto load it:\n"
        "  from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"  model = AutoModelForCausalLM.from_pretrained({quoted})\n"
        f"  tokenizer = AutoTokenizer.from_pretrained({quoted})\n"
        "or, to train it further here:\n"
        f"  {shell.line(shell.program(), 'train', f'weights={family}', f'weights.path={folder}')}"
    )
    return files


def require_language_model(weights: Weights) -> None:
    """Let pass what was trained to write.

    Raises:
        ConfigError: it is a classifier or a reward model.
    """
    config = weights.config
    whole = OmegaConf.select(config, "task.model._target_")
    if whole not in (None, config.model._target_):
        raise ConfigError(
            f"weights.path: {weights.path} holds a {whole.rpartition('.')[2]}; only language models are exported"
        )
