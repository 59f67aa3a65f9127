"""Stock CLIP and T5 tokenizers with a vocabulary of a few dozen words and all printable characters."""

import string

from transformers import CLIPTokenizer, T5Tokenizer

WORDS = (
    "a an the of to and in with without left right above below near front behind dog cat bear bird red blue green "
    "yellow circle square triangle star photo picture blurry cartoon outline low quality on top next is"
).split()
CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation


def clip_tokenizer(model_max_length: int = 24) -> CLIPTokenizer:
    """Byte-pair tokenizer: one token per known word, one per character of an unknown one."""
    pieces = [*CHARACTERS, *(character + "</w>" for character in CHARACTERS)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        symbols = [*word[:-1], word[-1] + "</w>"]
        while len(symbols) > 1:
            pair = (symbols[0], symbols[1])
            symbols = [pair[0] + pair[1], *symbols[2:]]
            if pair not in merges:
                merges.append(pair)
                pieces.append(symbols[0])
    specials = ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate([*dict.fromkeys(pieces), *specials])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=model_max_length)


def t5_tokenizer(model_max_length: int = 512) -> T5Tokenizer:
    """Unigram tokenizer with the same words and characters."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab += [("▁" + word, -1.0) for word in dict.fromkeys(WORDS) if len(word) > 1]
    vocab += [(character, -10.0) for character in CHARACTERS]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=model_max_length)
