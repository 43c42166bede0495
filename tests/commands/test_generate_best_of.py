"""`llm generate best_of=…`: prompts in the chat template, the best response by the reward."""

import pytest
from hydra import compose, initialize_config_module
from small_runs import command_of, run_command

from llm.config.errors import ConfigError


def composed(*words):
    small = ["hardware.accelerator=cpu", "hardware.threads=1", "max_tokens=8"]
    with initialize_config_module("llm.conf", version_base="1.3"):
        return compose("generate", [*small, *words])


@pytest.fixture
def polite(train, pairs):
    """A reward model and the policy that it scores, both after a few steps."""
    data = ("data=preference", f"data.path={pairs}", "optimizer.lr=0.01")
    return train("policy", "task=dpo", *data), train("reward", "task=reward", *data)


def test_best_response_by_a_reward_model_is_returned_and_all_are_shown(polite, capsys):
    policy, reward = (str(run.path) for run in polite)
    capsys.readouterr()
    words = (f"weights.path={policy}", "reward=run", f"reward.path={reward}", "prompt='cat 1?'")
    (best,) = run_command(composed(*words, "best_of=4"))
    shown = capsys.readouterr().out
    scores = [float(line.split()[0]) for line in shown.splitlines() if line[:1] in "+-"]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    assert shown.split("  ", 1)[1].startswith(best.strip()[:3])


def test_a_reward_model_of_another_template_is_refused(polite, train, pairs):
    policy, _ = polite
    words = ("task=reward", "data=preference", f"data.path={pairs}", "data/template=alpaca")
    other = train("other", *words, "size.context_length=192")
    words = (f"weights.path={policy.path}", "reward=run", f"reward.path={other.path}")
    with pytest.raises(ConfigError, match=r"reward: .*in another template"):
        run_command(composed(*words, "prompt='cat 1?'", "best_of=4"))


def test_prompts_of_a_file_are_put_into_the_template(polite, tmp_path, capsys):
    policy, _ = polite
    capsys.readouterr()
    (tmp_path / "prompts.txt").write_text("cat 1?\ndog 2?\n")
    words = (f"weights.path={policy.path}", "reward=contains", "reward.text=a", "best_of=2")
    found = run_command(composed(*words, f"prompts_file={tmp_path / 'prompts.txt'}"))
    assert len(found) == 2
    shown = capsys.readouterr().out
    assert shown.index("=== cat 1?") < shown.index("=== dog 2?")


def test_several_responses_need_a_reward_and_vice_versa(polite):
    weights = f"weights.path={polite[0].path}"
    for words in (("best_of=4",), ("reward=length",), ("best_of=0",)):
        with pytest.raises(ConfigError, match=r"best_of: .*(use|set)"):
            command_of(composed(*words, weights))
    command_of(composed("best_of=2", "reward=length", weights))
