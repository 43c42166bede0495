"""The objects that a configuration may call.

A `_target_` can name any importable object, and Hydra would call it. So each target is checked first. The object
itself is checked, not its path, because a path with an allowed prefix can lead to any object
(`torch.optim.optimizer.torch.load`).
"""

import gc
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

from llm.config.errors import ConfigError, suggestion

# Our own packages whose functions and classes only compute: none of them writes a file.
PARTS = (
    *("nn", "tokenizers", "models", "losses", "optim", "rewards", "tasks"),
    "generation.sampling",
    "hardware",
    *(
        "data.examples.template",
        "data.examples.jinja_template",
        "weights.base",
        "weights.auto",
        "loggers.wandb",
        "loggers.tensorboard",
    ),
)

# Packages allowed only at the root of a configuration.
ROOTS: dict[str, tuple[str, ...]] = {"llm.commands": ("llm.config.base.Command",)}

# Allowed packages, each with the base classes of its targets. If none is listed, all its functions and classes are
# allowed.
ALLOWED: dict[str, tuple[str, ...]] = {
    **{f"llm.{part}": () for part in PARTS},
    "llm.training.trainer": ("llm.training.trainer.TrainerSettings",),
    "llm.weights": ("llm.weights.base.Weights",),
    "llm.adapters": ("llm.adapters.base.Adapter",),
    "llm.evaluation.openai_client": ("llm.evaluation.openai_client.OpenAI",),
    "llm.evaluation": ("torchmetrics.Metric",),
    "llm.callbacks": ("lightning.pytorch.Callback",),
    "llm.parallel": ("llm.hardware.Strategy",),
    "llm.data.column": ("llm.data.column.Column",),
    "llm.data": (
        "lightning.pytorch.LightningDataModule",
        "llm.data.corpora.base.Source",
        "llm.data.corpora.order.Order",
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
        trust: further allowed packages.
        is_root: whether the path is at the root of a configuration: only there, commands are allowed.

    Raises:
        ConfigError: the object does not exist or is not on the allowlist.
    """
    allowed = ALLOWED | dict.fromkeys(trusted_packages(trust), ())
    allowed |= ROOTS if is_root else {}
    module_name, _, name = path.rpartition(".")
    if _package(module_name, allowed) is None or any(p.startswith("_") for p in path.split(".")):
        raise ConfigError(
            f"{path} is not on the allowlist of what a configuration may call; "
            "use a class or function of llm, an optimizer of torch, or add your own package to `trust`"
        )
    target = _attribute(_module(module_name, path), name, path)
    reason = _refusal(target, allowed)
    if reason:
        raise ConfigError(f"{path} {reason}; use the path of the module that defines the object")
    return target


def trusted_packages(packages: Sequence[str]) -> Sequence[str]:
    """Return the packages that a user trusts, if none of them weakens the allowlist.

    Raises:
        ConfigError: a name is not a plain package, or belongs to Python itself or to a package on the allowlist.
    """
    checked = {package.partition(".")[0] for package in ALLOWED} | {"hydra", "omegaconf"}
    for package in packages:
        root = str(package).partition(".")[0]
        if root in checked or root in sys.stdlib_module_names or not root.isidentifier():
            raise ConfigError(
                f"trust: {package} cannot be trusted as a whole; wrap what you need from it in a "
                "function of your own package and trust that package"
            )
    return packages


def _package(module: str, allowed: dict[str, tuple[str, ...]]) -> str | None:
    """Return the allowed package that contains a module."""
    return next((p for p in allowed if module == p or module.startswith(f"{p}.")), None)


def _module(name: str, path: str) -> Any:
    if name in sys.modules:
        return sys.modules[name]
    # Importing leaves no garbage, and searching for it takes a fifth of the time to import torch and Lightning.
    gc.disable()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{path} cannot be imported ({error}); install your module, or add its folder to PYTHONPATH"
        ) from error
    finally:
        gc.freeze()  # later collections then skip the modules
        gc.enable()


def _attribute(module: Any, name: str, path: str) -> Any:
    try:
        return getattr(module, name)
    except AttributeError:
        own = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(f"{path} does not exist; {suggestion(name, own)}") from None


def _refusal(target: Any, allowed: dict[str, tuple[str, ...]]) -> str | None:
    """Return why a configuration may not call this object; None if it may."""
    if not (inspect.isclass(target) or inspect.isfunction(target)):
        return "is neither a class nor a function"
    package = _package(target.__module__, allowed)
    if package is None:
        return f"is really {target.__module__}.{target.__qualname__}, which is not on the allowlist"
    bases = tuple(pkgutil.resolve_name(base) for base in allowed[package])
    if bases and not (inspect.isclass(target) and issubclass(target, bases)):
        return f"is not one of {', '.join(base.__name__ for base in bases)}"
    if inspect.isclass(target) and issubclass(target, BaseException):
        return "is an exception"
    return None
