"""Which objects a configuration may call.

A `_target_` names any importable object, and Hydra would call it: a configuration from a stranger is
a program. So a target is judged before it is called, and it is the object that is judged, not its
name, for a harmless prefix leads anywhere (`torch.optim.optimizer.torch.load`).
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

from llm.config.errors import ConfigError, suggestion

# Our own packages all of whose functions and classes compute and no more: none writes a file.
PARTS = (
    *("nn", "tokenizers", "models", "losses", "optim", "rewards", "tasks"),
    "generation.sampling",
    "hardware",
    *(
        "data.examples.template",
        "data.examples.jinja_template",
        "weights.base",
        "weights.run",
        "weights.gpt2",
        "weights.llama",
        "weights.bert",
        "loggers.wandb",
        "loggers.tensorboard",
    ),
)

# What a configuration may name at its root, and nowhere else.
ROOTS: dict[str, tuple[str, ...]] = {"llm.commands": ("llm.config.base.Command",)}

# Packages that are importable from a configuration, each with the base classes that its targets must
# have; where there are none named, the package's own functions and classes are all welcome.
ALLOWED: dict[str, tuple[str, ...]] = {
    **{f"llm.{part}": () for part in PARTS},
    "llm.training.trainer": ("llm.training.trainer.TrainerSettings",),
    "llm.adapters": ("llm.adapters.base.Adapter",),
    "llm.evaluation.openai_client": ("llm.evaluation.openai_client.OpenAI",),
    "llm.evaluation": ("torchmetrics.Metric",),
    "llm.callbacks": ("lightning.pytorch.Callback",),
    "llm.parallel": ("llm.hardware.Strategy",),
    "llm.data.column": ("llm.data.column.Column",),
    "llm.data": (
        "lightning.pytorch.LightningDataModule",
        "llm.data.corpora.base.Source",
        "llm.data.corpora.preprocessing.Preprocessing",
        "llm.data.examples.template.ChatTemplate",
        "llm.data.examples.collation.Padding",
    ),
    "torch.optim": ("torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler"),
    "lightning.pytorch": (
        "lightning.pytorch.Callback",
        "lightning.pytorch.LightningModule",
        "lightning.pytorch.LightningDataModule",
        "lightning.pytorch.loggers.Logger",
    ),
    "torchmetrics": ("torchmetrics.Metric",),
}


def locate(path: str, trust: Sequence[str] = (), *, is_root: bool = False) -> Callable[..., Any]:
    """Return the class or function named by `path`, if a configuration may call it.

    Nothing is imported outside the allowed packages, because importing executes code.

    Args:
        path: dotted path, `package.module.name`.
        trust: further packages whose functions and classes are welcome.
        is_root: whether the path stands at the root of a configuration, where a command may.

    Raises:
        ConfigError: the name leads nowhere, or to something that is not on the whitelist.
    """
    allowed = ALLOWED | dict.fromkeys(trusted_packages(trust), ())
    allowed |= ROOTS if is_root else {}
    module_name, _, name = path.rpartition(".")
    if _package(module_name, allowed) is None or any(p.startswith("_") for p in path.split(".")):
        raise ConfigError(
            f"{path} is not on the whitelist of what a configuration may call; "
            "name parts of llm, optimizers of torch, or list your own package under `trust`"
        )
    target = _attribute(_module(module_name, path), name, path)
    reason = _refusal(target, allowed)
    if reason:
        raise ConfigError(f"{path} {reason}; name the part itself, by the module that defines it")
    return target


def trusted_packages(packages: Sequence[str]) -> Sequence[str]:
    """The packages that a user trusts, none of which may widen what is already judged.

    Raises:
        ConfigError: a name is not a plain package, or belongs to Python itself or to a judged package.
    """
    judged = {package.partition(".")[0] for package in ALLOWED} | {"hydra", "omegaconf"}
    for package in packages:
        root = str(package).partition(".")[0]
        if root in judged or root in sys.stdlib_module_names or not root.isidentifier():
            raise ConfigError(
                f"trust: {package} cannot be trusted as a whole; wrap what you need of it in a "
                "function of your own package and trust that"
            )
    return packages


def _package(module: str, allowed: dict[str, tuple[str, ...]]) -> str | None:
    """The allowed package that holds the module of this name."""
    return next((p for p in allowed if module == p or module.startswith(f"{p}.")), None)


def _module(name: str, path: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{path} cannot be imported ({error}); a module of yours has to be installed, or in a folder "
            "that PYTHONPATH names"
        ) from error


def _attribute(module: Any, name: str, path: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        own = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(f"{path} does not exist; {suggestion(name, own)}") from None


def _refusal(target: Any, allowed: dict[str, tuple[str, ...]]) -> str | None:
    """Why this object may not be called from a configuration; None if it may."""
    if not (inspect.isclass(target) or inspect.isfunction(target)):
        return "is neither a class nor a function"
    package = _package(target.__module__, allowed)
    if package is None:
        return f"is really {target.__module__}.{target.__qualname__}, which is not on the whitelist"
    bases = tuple(_constant(base) for base in allowed[package])
    if bases and not (inspect.isclass(target) and issubclass(target, bases)):
        return f"is not one of {', '.join(base.__name__ for base in bases)}"
    if inspect.isclass(target) and issubclass(target, BaseException):
        return "is an exception"
    return None


def _constant(path: str) -> type:
    """The class behind a dotted path written in this package."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
