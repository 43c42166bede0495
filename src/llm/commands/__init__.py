"""The commands of `llm`: `llm/commands/NAME.py` runs one, `conf/NAME.yaml` configures it.

This table is read without importing any of them, so that `llm --help` answers at once.
"""

from llm.config.command_info import CommandInfo

CONVERSING = ("sft", "dpo", "grpo")
WRITING = ("pretraining", *CONVERSING)

COMMANDS = {
    "train": CommandInfo(
        "pretrain a model and watch it speak",
        "llm train model=llama size=micro trainer.max_steps=500",
        is_heavy=True,
    ),
    "plan": CommandInfo(
        "say what a run would take, on hardware that need not be here",
        "llm plan size=124m tokenizer=gpt2 trainer.max_tokens=2.5e9 hardware=fsdp hardware.devices=8 gpu=h100",
    ),
    "generate": CommandInfo(
        "let a trained model go on with a text",
        'llm generate weights.path=outputs/pretraining/python_docs prompt="The class statement"',
        reads=WRITING,
    ),
    "chat": CommandInfo(
        "talk with a model that was trained on conversations",
        "llm chat weights.path=outputs/sft/instruct",
        reads=CONVERSING,
    ),
    "classify": CommandInfo(
        "name the class of each line with a trained classifier",
        'llm classify weights.path=outputs/classification/spam text="You have won a prize"',
        reads=("classification",),
    ),
    "evaluate": CommandInfo(
        "measure what a run has learned, and let a model judge its answers",
        "llm evaluate weights.path=outputs/sft/instruct judge=openai judge.model=llama3.1",
    ),
    "compare": CommandInfo(
        "put runs beside one another, in a table and a picture",
        "llm compare outputs/pretraining output=comparison",
        folders="runs",
    ),
    "export": CommandInfo(
        "write a model as a folder that Hugging Face's library reads",
        "llm export weights.path=outputs/pretraining/my_gpt2 output=my_gpt2",
        reads=WRITING,
    ),
}
