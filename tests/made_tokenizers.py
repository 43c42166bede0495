"""Small tokenizers in the formats of published models, for several packages."""

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

PROSE = "The cat sat on the mat; the dog, too, sat on the mat. Don't they (both) sit? 123 4567 "


def sentencepiece_like(vocab_size=300):
    """A tokenizer like Llama 2's: spaces are ▁, unknown characters are bytes, one token before each text."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    alphabet = sorted({*PROSE.replace(" ", "▁")})
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    for token in ("th", "at", "▁m", "the", "▁mat"):
        vocabulary[token] = len(vocabulary)
    merges = [("t", "h"), ("a", "t"), ("▁", "m"), ("th", "e"), ("▁m", "at")]
    backend = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return backend


def byte_level(**changes):
    """A byte-level BPE tokenizer like GPT-2's, trained on `PROSE`."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        **{"add_prefix_space": False, "use_regex": True, **changes}
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([PROSE * 3], trainer)
    backend.add_special_tokens(["<|endoftext|>"])
    return backend
