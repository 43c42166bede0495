"""The commands of `llm`: `llm/commands/NAME.py` runs one, `conf/NAME.yaml` configures it.

This table imports none of these modules, so `llm --help` is fast.
"""

from llm.config.command_info import CommandInfo

CONVERSING = ("sft", "dpo", "grpo")
WRITING = ("pretraining", *CONVERSING)

COMMANDS = {
    "train": CommandInfo(
        "pretrain or finetune a model",
        "llm train model=llama size=micro trainer.max_steps=500",
        is_heavy=True,
    ),
    "plan": CommandInfo(
        "estimate the time and memory of a run, also for other hardware",
        "llm plan size=124m tokenizer=gpt2 trainer.max_tokens=2.5e9 hardware=fsdp hardware.devices=8 gpu=h100",
    ),
    "generate": CommandInfo(
        "continue a text with a trained model",
        'llm generate weights.path=outputs/pretraining/python_docs prompt="The class statement"',
        reads=WRITING,
    ),
    "chat": CommandInfo(
        "chat with a model that was trained on conversations",
        "llm chat weights.path=outputs/sft/instruct",
        reads=CONVERSING,
    ),
    "classify": CommandInfo(
        "classify each line of text with a trained classifier",
        'llm classify weights.path=outputs/classification/spam text="You have won a prize"',
        reads=("classification",),
    ),
    "evaluate": CommandInfo(
        "measure a run on its test data, and have a model judge its responses",
        "llm evaluate weights.path=outputs/sft/instruct judge=openai judge.model=llama3.1",
    ),
    "compare": CommandInfo(
        "compare runs in a table and a picture",
        "llm compare outputs/pretraining output=comparison",
        folders="runs",
    ),
    "export": CommandInfo(
        "export a model as a folder for Hugging Face's library",
        "llm export weights.path=outputs/pretraining/my_gpt2 output=my_gpt2",
    ),
}
