"""One composition, one check and one build of each object per process."""

import sys
from collections import Counter

import pytest
import torch
from hydra._internal.config_loader_impl import ConfigLoaderImpl

import llm.__main__ as command
from llm.config import build as building
from llm.config import check as checks
from llm.launch import sweep_job
from llm.training import summary

SMALL = [
    *("size=nano", "size.dim=32", "size.context_length=16", "tokenizer=byte", "data=text"),
    *("model=gpt2", "hardware=cpu", "hardware.threads=1", "hardware.precision=32"),
    *("trainer.max_steps=1", "callbacks.samples=null", "callbacks.picture=null"),
]
HARDWARE, TRAINER = "llm.hardware.Hardware", "llm.training.trainer.TrainerSettings"
DATA, TOKENIZER = "llm.data.corpora.text_files.FilesDataModule", "llm.tokenizers.byte.ByteTokenizer"
GPT = "llm.models.gpt.GPT"


@pytest.fixture
def counts(monkeypatch):
    """Count compositions, checks and builds from now on; models on `meta` are counted separately."""
    found = Counter()
    compose, build = ConfigLoaderImpl._load_configuration_impl, building._build
    command_class = checks.command_class

    def composing(*given, **named):
        found["compositions"] += 1
        return compose(*given, **named)

    def checking(*given):
        found["checks"] += 1
        return command_class(*given)

    def builds(plain, key, targets, extra):
        if isinstance(plain, dict) and "_target_" in plain and not plain.get("_partial_"):
            on_meta = torch.empty(0).device.type == "meta"
            found[plain["_target_"] + (" on meta" if on_meta else "")] += 1
        return build(plain, key, targets, extra)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", composing)
    monkeypatch.setattr(checks, "command_class", checking)
    monkeypatch.setattr(building, "_build", builds)
    # The note on the export composes and builds a published model, to compare the run's with it.
    monkeypatch.setattr(summary, "exported_as", lambda model: "")
    return found


@pytest.fixture
def llm(tmp_path, monkeypatch):
    """llm("train", …): run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_CACHE", str(tmp_path / "cache"))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["llm", *words])
        try:
            command.main()
        except SystemExit as error:
            return error.code or 0
        return 0

    return call


def test_a_run_and_a_command_that_reads_it_compose_check_and_build_once(llm, text, counts):
    assert llm("train", *SMALL, f"data.path={text}", "name=run") == 0
    once = [HARDWARE, TRAINER, DATA, TOKENIZER, GPT, f"{GPT} on meta"]
    assert {name: counts[name] for name in once} == dict.fromkeys(once, 1)
    assert (counts["compositions"], counts["checks"]) == (1, 1)
    counts.clear()
    assert llm("generate", "weights.path=outputs/pretraining/run", "max_tokens=1") == 0
    assert (counts["compositions"], counts["checks"], counts[GPT]) == (1, 1, 1)


def test_a_sweep_composes_each_point_once_and_its_jobs_nothing(llm, text, counts, monkeypatch):
    jobs = []
    monkeypatch.setattr(
        sweep_job, "run_process", lambda job, words, *_: jobs.append(words[3:]) or 130
    )
    words = [*SMALL, f"data.path={text}", "seed=1,2", "optimizer.lr=0.1,0.2"]
    llm("train", "-m", *words)
    assert len(jobs) == 4
    assert (counts["compositions"], counts["checks"]) == (5, 4)
    assert counts[GPT] == 0
    assert counts[f"{GPT} on meta"] == 4
    counts.clear()
    assert llm(*jobs[0]) == 0
    assert (counts["compositions"], counts["checks"], counts[GPT]) == (0, 1, 1)
