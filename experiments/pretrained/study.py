"""A pretrained model through every format: is its text the same at each point?

    python experiments/pretrained/study.py FOLDER --data instruction-data.json
    python experiments/pretrained/study.py FOLDER --data instruction-data.json --llama-cpp NODE

FOLDER is a chat model in Hugging Face's format. It is imported, generates and chats; an adapter is trained on it; the
result is exported to a folder and to a GGUF file, and read from both. Everything runs through `llm`, greedily.
NODE is a folder in which `npm install --ignore-scripts node-llama-cpp@3.22.1` was run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from llm.data.examples.template import Message
from llm.weights.gguf import GGUFWeights

HERE = Path(__file__).parent
BRIDGE = HERE.parents[1] / "tests" / "weights" / "llama_cpp.mjs"
PROMPT = "The capital of France is"
QUESTION = "Name three colours of the rainbow."
GREEDY = ["sampler.temperature=0", "hardware.accelerator=cpu"]


class Text(NamedTuple):
    """What a program wrote, and where it ended, if the program tells: "itself", or at "the limit" of new tokens."""

    text: str
    ended: str = ""

    @staticmethod
    def of(text: str, *, written: int, number: int) -> "Text":
        """Return a text of so many tokens, of at most `number`."""
        return Text(text.strip(), "itself" if written < number else "the limit")


class Row(NamedTuple):
    """A point of the way, and its text beside the one that it must equal.

    Attributes:
        point: what was done.
        made: the text.
        expected: the text of an earlier point, or of another program.
    """

    point: str
    made: Text
    expected: Text

    def line(self) -> str:
        """Return the row in Markdown."""
        is_same = "yes" if self.made.text == self.expected.text else "**no**"
        text = json.dumps(self.made.text, ensure_ascii=False)
        return f"| {self.point} | {is_same} | {text} | {self.made.ended or self.expected.ended} |"


def llm(*words: str, given: str | None = None) -> str:
    """Run a command and return what it prints.

    Raises:
        SystemExit: it fails.
    """
    command = [sys.executable, "-m", "llm", *words]
    done = subprocess.run(command, input=given, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"llm {' '.join(words)}: failed")
    return done.stdout


def written(path: Path, number: int) -> list[Text]:
    """Return the text after `PROMPT`, and the response to `QUESTION` with the model's own template."""
    return [Text(continued(path, number)), Text(answered(path, number))]


def continued(path: Path, number: int) -> str:
    """Return the text after `PROMPT`."""
    words = ["generate", "weights=auto", f"weights.path={path}", f"prompt={PROMPT}", *GREEDY]
    return llm(*words, f"max_tokens={number}").removeprefix(PROMPT).strip()


def answered(path: Path, number: int) -> str:
    """Return the response to `QUESTION` with the model's own template."""
    words = ["chat", "weights=auto", f"weights.path={path}", *GREEDY, f"max_tokens={number}"]
    return llm(*words, given=f"{QUESTION}\n").strip()


def by_transformers(folder: Path, number: int) -> list[Text]:
    """Return the same two texts, from Hugging Face's library."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "user", "content": QUESTION}]
    chat = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    texts = []
    for inputs in (tokenizer(PROMPT, return_tensors="pt"), chat):
        made = model.generate(**inputs, max_new_tokens=number, do_sample=False)
        new = made[0, inputs["input_ids"].shape[1] :]
        text = tokenizer.decode(new, skip_special_tokens=True)
        has_ended = bool(torch.isin(new[-1], torch.tensor(model.generation_config.eos_token_id)))
        texts.append(Text.of(text, written=len(new) - has_ended, number=number))
    return texts


def by_llama_cpp(node: Path, file: Path, number: int) -> list[Text]:
    """Return the same two texts, from llama.cpp."""
    weights = GGUFWeights(str(file))
    tokenizer, template = weights.tokenizer(), chat_template(weights)
    prompts = [
        tokenizer.encode(PROMPT),
        template.encode_prompt([Message("user", QUESTION)], tokenizer),
    ]
    cases = [{"prompt": PROMPT, "ids": ids, "number": number, "stops": True} for ids in prompts]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as given:
        given.write(json.dumps(cases))
        given.flush()
        command = ["node", str(BRIDGE), str(node), str(file), given.name]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    tokens = [each["greedy"] for each in found]
    return [Text.of(tokenizer.decode(new), written=len(new), number=number) for new in tokens]


def chat_template(weights: GGUFWeights):
    """Return the chat template of a file."""
    from llm.config.build import build

    return build(weights.config.data.template)


def study(
    folder: Path, output: Path, *, data: Path, steps: int, number: int, node: Path | None
) -> list[Row]:
    """Return a row for each point."""
    theirs = by_transformers(folder, number)
    ours = written(folder, number)
    rows = [
        Row("imported, `llm generate`; transformers", ours[0], theirs[0]),
        Row("imported, `llm chat`; transformers with the same template", ours[1], theirs[1]),
    ]
    run = output / "sft" / "lora"
    llm(
        *("train", "experiment=instruct", "weights=auto", f"weights.path={folder}", "adapter=lora"),
        *(
            f"data.path={data}",
            "data.test_fraction=0",
            "data.batch_size=2",
            f"trainer.max_steps={steps}",
            "seed=0",
        ),
        *("trainer.max_epochs=null", f"trainer.val_every={steps}", "trainer.val_batches=4"),
        *("hardware=cpu", "hardware.precision=32", "callbacks.response_samples=null"),
        *("callbacks.picture=null", f"output_dir={output}", "name=lora", "rerun=true"),
    )
    tuned = written(run, number)
    exported, file = output / "exported", output / "exported.gguf"
    source = ["weights=auto", f"weights.path={run}", "overwrite=true"]
    llm("export", *source, f"output={exported}")
    llm("export", *source, f"output={file}", "format=gguf", "dtype=float32")
    theirs = by_transformers(exported, number)
    again = output / "again"
    llm("export", "weights=auto", f"weights.path={file}", f"output={again}", "overwrite=true")
    points = {
        "exported folder, read here": written(exported, number),
        "exported folder, transformers": theirs,
        "GGUF file, read here": written(file, number),
        "folder made of the GGUF file": written(again, number),
    }
    if node is not None:
        points["GGUF file, llama.cpp"] = by_llama_cpp(node, file, number)
    for point, texts in points.items():
        rows += [
            Row(f"{point}: {kind}", made, expected)
            for kind, made, expected in zip(("generate", "chat"), texts, tuned, strict=True)
        ]
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("outputs/pretrained"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--llama-cpp", type=Path)
    given = parser.parse_args()
    rows = study(
        given.folder,
        given.output,
        data=given.data,
        steps=given.steps,
        number=given.tokens,
        node=given.llama_cpp,
    )
    print("\n| point | same text | text | ended by |\n|---|---|---|---|")
    print("\n".join(row.line() for row in rows))


if __name__ == "__main__":
    main()
