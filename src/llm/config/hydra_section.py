"""Checks of Hydra's own section: where runs go, and how a sweep searches and launches.

Hydra uses this section before our code runs: it builds what `hydra.callbacks` names, opens the files of
`hydra.job_logging`, changes folders and sets environment variables. So a command line may set only the keys in TYPED,
and a user's file only plain values of known launchers and sweepers. All else must be as in our files or Hydra's.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override

from llm.config.allowlist import locate
from llm.config.errors import ConfigError, raise_all, suggestion
from llm.config.fingerprint import is_among
from llm.config.overrides import is_hydras, key_of
from llm.config.plain import nested_items

# Keys that a command line may set, with all keys below them. A single run uses only the first.
SWEEPS = ("hydra.launcher", "hydra.sweeper")
TYPED = ("hydra.run.dir", *SWEEPS)
# Keys that Hydra itself sets while it composes.
WRITTEN = (
    *("hydra.runtime", "hydra.overrides"),
    *("hydra.job.override_dirname", "hydra.job.config_name"),
)
# Texts that a file may pass to a scheduler or a study, besides numbers and booleans.
FREE_TEXT = (
    *(f"hydra.launcher.{key}" for key in ("partition", "qos", "constraint", "account", "comment")),
    *(f"hydra.launcher.{key}" for key in ("exclude", "gres", "mem_per_gpu", "mem_per_cpu")),
    *("hydra.sweeper.direction", "hydra.sweeper.study_name"),
)
# Tables whose keys are overrides.
WORDS = ("hydra.sweeper.params", "hydra.sweeper.search_space")
# Tables whose keys are copied unchanged into a batch script.
SCRIPTED = ("hydra.launcher.additional_parameters",)
SAMPLERS = ("Grid", "TPE", "Random", "CmaEs", "NSGAII", "MOTPE")
TARGETS = (
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
    *(f"optuna.samplers.{name}Sampler" for name in SAMPLERS),
)


def typed_problems(overrides: Sequence[Override], own: Collection[str]) -> Iterator[str]:
    """Yield a line for each key of Hydra's that a command line may not set, except in the program's `own` overrides."""
    for override in overrides:
        if override.input_line in own:
            continue
        key = key_of(str(override.input_line))
        package = str(override.package or "")
        if "hydra" in (key.split(".")[0], package.split(".")[0]) and (
            package or not is_among(key, TYPED)
        ):
            yield f"{package or key}: cannot be set; {_remedy(key)}"
        elif key == "hydra.run.dir" and (override.is_delete() or override.value() in (None, "")):
            yield f"{key}: is empty; set it to the folder of the run, or leave it out"


def require_used(words: Sequence[str], *, is_sweep: bool, has_directory: bool) -> None:
    """Refuse keys of Hydra's that only a sweep, or only a command with a run's directory, uses.

    Raises:
        ConfigError: a line for each key.
    """
    lines = []
    for key in map(key_of, filter(is_hydras, words)):
        if is_among(key, SWEEPS) and not is_sweep:
            lines.append(f"{key}: only a sweep uses it; add -m, or leave it out")
        elif is_among(key, ("hydra.run.dir",)) and not has_directory:
            lines.append(f"{key}: only llm train has the directory of a run; leave it out")
    raise_all(lines)


def _remedy(key: str) -> str:
    if key == "hydra.searchpath":
        return "add a folder of your own configs with --config-dir"
    return f"the keys of Hydra that a command line may set are {', '.join(TYPED)}"


def target_problems(section: Mapping[str, Any], trust: Sequence[str]) -> Iterator[str]:
    """Yield a line for each object that Hydra would call and that is neither allowed nor a trusted search space."""
    names = [target.rpartition(".")[2] for target in TARGETS]
    for name, key, value in nested_items(section, "hydra"):
        if name == "_target_" and value not in TARGETS:
            guess = suggestion(str(value).rpartition(".")[2], names)
            yield f"{key}: {value} is not a launcher, sweeper or sampler; {guess}"
        elif key == "hydra.sweeper.custom_search_space" and value is not None:
            try:
                locate(str(value), trust)
            except ConfigError as error:
                yield f"{key}: {error}"


def file_problems(
    section: Mapping[str, Any], references: Sequence[Mapping[str, Any]], typed: Collection[str]
) -> Iterator[str]:
    """Yield a line for each key of Hydra's that a file in the user's folder may not set.

    Args:
        section: Hydra's section, composed with the user's folder, as plain data.
        references: the same section from packaged files only.
        typed: full keys that the command line sets.
    """
    known = [dict(_values(reference, "hydra")) for reference in references]
    for key, value in _values(section, "hydra"):
        if is_among(key, (*WRITTEN, *typed)) or any(
            key in reference and reference[key] == value for reference in known
        ):
            continue
        if is_among(key, WORDS):
            table = next(table for table in WORDS if is_among(key, (table,)))
            word = key.removeprefix(f"{table}.")
            if "hydra" in word or "trust" in key_of(word).split("."):
                yield f"{key}: a file of a --config-dir may not set it; type it on the command line"
        elif not _is_free(key, value):
            yield f"{key}: a file of a --config-dir may not set this value; remove it there"


def _is_free(key: str, value: Any) -> bool:
    """Return whether a file may set a key to this value."""
    if key == "hydra.mode":
        return True
    if not is_among(key, ("hydra.launcher", "hydra.sweeper")) or is_among(key, SCRIPTED):
        return False
    if key.endswith("._target_"):
        return value in TARGETS
    if isinstance(value, str):  # a text with a line feed could add a line to the script for sbatch
        return key in FREE_TEXT and value.isprintable()
    return value is None or isinstance(value, bool | int | float)


def _values(plain: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield each value that is not a non-empty dictionary, with its full key."""
    if isinstance(plain, Mapping) and plain:
        for name, value in plain.items():
            yield from _values(value, f"{key}.{name}")
    else:
        yield key, plain
