"""A run, loaded on another machine."""

from omegaconf import OmegaConf

from llm.hardware import Hardware
from llm.training.saved_run import restore_run
from llm.weights.run import RunWeights


def test_reward_model_runs_on_the_accelerator_of_the_run(train, pairs, tmp_path):
    few = ("trainer.max_steps=1", "trainer.val_every=1")
    reward = train("reward", "task=reward", "data=preference", f"data.path={pairs}", *few)
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        "\n".join(f'{{"instruction": "{n}?", "output": "{n}"}}' for n in range(20))
    )
    run = train(
        "policy",
        *("task=grpo", "data=instruction", f"data.path={questions}", *few),
        *("task.group_size=2", "task.max_tokens=2", "reward=run", f"reward.path={reward.path}"),
    )
    config = OmegaConf.load(run.config)
    assert config.task.reward.accelerator == "cpu"  # as hardware=cpu says
    config.task.reward.accelerator = "cuda"
    OmegaConf.save(config, run.config)
    _, task = restore_run(
        RunWeights(str(run.path)), Hardware(accelerator="cpu", precision=32), None
    )
    assert task.reward.accelerator == "cpu"  # pyright: ignore[reportAttributeAccessIssue]
