"""Tiny random stock pipelines: real diffusers and transformers classes, built offline in a fraction of a second.

`build(name)` gives a pipeline of `NAMES`; `CALLS[name]` its smallest sensible call. All can be saved with
`save_pretrained` and loaded with `from_pretrained`.
"""

from tiny.pipelines import CALLS, NAMES, build
from tiny.tokenizers import clip_tokenizer, t5_tokenizer

__all__ = ["CALLS", "NAMES", "build", "clip_tokenizer", "t5_tokenizer"]
