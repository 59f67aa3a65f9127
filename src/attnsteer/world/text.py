"""Tokenizer and text encoder of the shapes world: stock CLIP classes, one token a word, trained in two minutes.

A text encoder is trained on its own, before any picture is drawn, to know at each noun which object the caption
means: its colour, shape and attribute. Starting the image model from words that are
already bound together saves it the slowest part of its training.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from attnsteer.world.captions import WORDS, random_pair
from attnsteer.world.scene import ATTRIBUTES, COLOURS, SHAPES

MAX_TOKENS = 32
START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer() -> CLIPTokenizer:
    """A stock CLIPTokenizer in which every word of the world is one token; other letters are tokens of their own."""
    letters = [chr(code) for code in range(33, 127)]
    alphabet = [*letters, *(letter + "</w>" for letter in letters)]
    merges = _merges(WORDS)
    tokens = dict.fromkeys([START, END, *alphabet, *("".join(pair) for pair in merges)])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def _merges(words: tuple[str, ...] | list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that join every word to one token: the most frequent pair first, ties by spelling.

    The library's trainer breaks ties differently at every run, and token ids must not change when a run is resumed.
    """
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for word in pieces for pair in pairwise(word)):
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        for word in pieces:
            for place in range(len(word) - 2, -1, -1):
                if place < len(word) - 1 and (word[place], word[place + 1]) == best:
                    word[place : place + 2] = ["".join(best)]
    return merges


def build_text_encoder(tokenizer: CLIPTokenizer, width: int = 96, layers: int = 2, heads: int = 4) -> CLIPTextModel:
    """A small random CLIPTextModel. Token embeddings start at unit variance: smaller ones drown in the positions."""
    configuration = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=MAX_TOKENS, projection_dim=width,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    encoder = CLIPTextModel(configuration)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "token_embedding" in name:
                parameter.normal_(std=1.0)
            elif "position_embedding" in name:
                parameter.normal_(std=0.3)
    return encoder


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Tensor:
    """Token ids (texts, MAX_TOKENS), padded and cut as the stock pipelines do it."""
    return tokenizer(
        texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids  # fmt: skip


def train_text_encoder(
    tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, iterations: int, seed: int, batch: int = 128
) -> float:
    """Teach the encoder at every noun which object it names; returns the accuracy of the last 20 batches (0 to 1).

    The targets of a noun are colour, shape and attribute of its object, with "not said" as a class of its own. Words
    other than nouns and adjectives carry no loss.
    """
    random = Random(seed)
    sizes = (len(COLOURS) + 1, len(SHAPES) + 1, len(ATTRIBUTES) + 1)
    heads = nn.Linear(encoder.config.hidden_size, sum(sizes))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=1e-3)
    encoder.train()
    hits: list[float] = []
    for _ in range(iterations):
        texts = [random_pair(random)[1] for _ in range(batch)]
        ids = tokenize(tokenizer, texts)
        rows, columns, targets = _noun_targets(tokenizer, ids)
        logits = heads(encoder(ids).last_hidden_state[rows, columns]).split(sizes, dim=-1)
        loss = torch.stack([nn.functional.cross_entropy(z, t) for z, t in zip(logits, targets.T, strict=True)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right = torch.stack([z.argmax(-1) == t for z, t in zip(logits, targets.T, strict=True)]).all(0)
        hits = [*hits[-19:], right.float().mean().item()]
    encoder.eval()
    return sum(hits) / len(hits)


def _noun_targets(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and targets (nouns, 3) of all content words: what has been said of the object so far."""
    words = {index: token.removesuffix("</w>").lstrip("▁") for token, index in tokenizer.get_vocab().items()}
    found: list[tuple[int, int, tuple[int, int, int]]] = []
    for row, sequence in enumerate(ids.tolist()):
        colour = shape = attribute = 0
        for column, index in enumerate(sequence):
            word = words[index]
            if word in COLOURS:
                colour = 1 + list(COLOURS).index(word)
            elif word in ATTRIBUTES:
                attribute = 1 + ATTRIBUTES.index(word)
            elif word in (*SHAPES, "shape"):
                shape = 1 + SHAPES.index(word) if word in SHAPES else 0
            else:
                continue
            found.append((row, column, (colour, shape, attribute)))
            if word in (*SHAPES, "shape"):
                colour = shape = attribute = 0
    rows, columns, targets = zip(*found, strict=True)
    return torch.tensor(rows), torch.tensor(columns), torch.tensor(targets)
