"""Make the other files of this folder: a GPT-2 in OpenAI's format, written by TensorFlow, and in Hugging Face's.

    pip install tensorflow-cpu==2.21.0 safetensors && python make.py

The tests do not run this file, because it needs TensorFlow. The numbers are those that TensorFlow reads back.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf
from safetensors.numpy import save_file

HERE = Path(__file__).parent
OPENAI, HUGGINGFACE = HERE / "original", HERE / "converted"
SIZES = {"n_ctx": 24, "n_embd": 16, "n_head": 4, "n_layer": 2}
MERGES = ["t h", "th e", "i n", "Ġ the", "e r", "a n", "Ġ a", "in g"]

tf1 = tf.compat.v1
tf1.disable_eager_execution()


def vocabulary() -> dict[str, int]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = sorted({*range(256)} - {*printable})
    tokens = [chr(b) for b in printable] + [chr(256 + n) for n in range(len(others))]
    tokens += [merge.replace(" ", "") for merge in MERGES] + ["<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}


def write_checkpoint(vocab_size: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)

    def variable(name: str, *shape: int) -> None:
        tf1.get_variable(name, initializer=draw.normal(0, 0.3, shape).astype(np.float32))

    context, width = SIZES["n_ctx"], SIZES["n_embd"]
    with tf1.variable_scope("model"):
        variable("wpe", context, width)
        variable("wte", vocab_size, width)
        for layer in range(SIZES["n_layer"]):
            with tf1.variable_scope(f"h{layer}"):
                for norm in ("ln_1", "ln_2"):
                    variable(f"{norm}/g", width)
                    variable(f"{norm}/b", width)
                for name, rows, columns in (
                    ("attn/c_attn", width, 3 * width),
                    ("attn/c_proj", width, width),
                    ("mlp/c_fc", width, 4 * width),
                    ("mlp/c_proj", 4 * width, width),
                ):
                    variable(f"{name}/w", 1, rows, columns)
                    variable(f"{name}/b", columns)
        variable("ln_f/g", width)
        variable("ln_f/b", width)
    prefix = str(OPENAI / "model.ckpt")
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        saver = tf1.train.Saver(save_relative_paths=True)
        saver.save(session, prefix, write_meta_graph=False)
    reader = tf1.train.NewCheckpointReader(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def write_huggingface(tensors: dict[str, np.ndarray], vocab_size: int) -> None:
    ends = {"w": "weight", "g": "weight", "b": "bias"}
    state = {}
    for name, tensor in tensors.items():
        words = name.split("/")[1:]
        if words[0][0] == "h":
            words[:1] = ["h", words[0][1:]]
        words = [*words, "weight"] if len(words) == 1 else [*words[:-1], ends[words[-1]]]
        tensor = tensor[0] if tensor.ndim == 3 else tensor
        state["transformer." + ".".join(words)] = np.ascontiguousarray(tensor)
    save_file(state, HUGGINGFACE / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": vocab_size}
    sizes = {key: size for key, size in SIZES.items() if key != "n_ctx"}
    config |= {"n_positions": SIZES["n_ctx"], "eos_token_id": vocab_size - 1, **sizes}
    (HUGGINGFACE / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def main() -> None:
    for folder in (OPENAI, HUGGINGFACE):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    ids = vocabulary()
    (OPENAI / "hparams.json").write_text(json.dumps({"n_vocab": len(ids), **SIZES}) + "\n")
    (OPENAI / "encoder.json").write_text(json.dumps(ids))
    (OPENAI / "vocab.bpe").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n", "utf-8")
    write_huggingface(write_checkpoint(len(ids)), len(ids))


main()
