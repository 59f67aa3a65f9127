"""A vision-language model as a judge of presence: it is asked, and its certainty is read off its first token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import torch
from PIL import Image

from attnsteer.evaluate.prompts.nouns import with_article
from attnsteer.evaluate.scoring.boxes import Box

QUESTION: Final = "Is there {thing} in this picture? Answer with yes or no only."
YES: Final = ("yes", "Yes", " yes", " Yes")
NO: Final = ("no", "No", " no", " No")


@dataclass(frozen=True)
class VisionLanguageModel:
    """Says whether a thing is in a picture, not where: its boxes are the whole picture.

    Attributes:
        network: A model of transformers that answers about pictures (AutoModelForImageTextToText).
        processor: Its processor, with a chat template.
        name: Printed beside figures.
        threshold: Boxes need a higher probability of yes against no.
    """

    network: Any
    processor: Any
    name: str
    threshold: float = 0.5
    places: ClassVar[bool] = False

    @classmethod
    def load(cls, model: str, device: str = "cpu") -> Self:
        """Load from a folder or the Hub, e.g. "Qwen/Qwen2.5-VL-7B-Instruct"."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        network = AutoModelForImageTextToText.from_pretrained(model, dtype="auto").to(device).eval()
        return cls(network, AutoProcessor.from_pretrained(model), f"vlm ({model})")

    def __call__(self, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> list[list[Box]]:
        """A box around the whole picture for each label that it shows."""
        found = []
        for picture, row in zip(pictures, labels, strict=True):
            shares = [(label, self.probability(picture, label)) for label in row]
            size = picture.size
            found.append([Box(label, share, 0, 0, *size) for label, share in shares if share > self.threshold])
        return found

    def probability(self, picture: Image.Image, label: str) -> float:
        """Probability of yes against no: p(yes) / (p(yes) + p(no)), over the spellings of both.

        Raises: ValueError if the tokenizer has no single token for either.
        """
        question = QUESTION.format(thing=with_article(label))
        content = [{"type": "image", "image": picture.convert("RGB")}, {"type": "text", "text": question}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        with torch.no_grad():
            logits = self.network(**inputs.to(self.network.device)).logits[0, -1].float()
        yes, no = (logits[self._tokens(words)].logsumexp(0) for words in (YES, NO))
        return float(torch.sigmoid(yes - no))

    def _tokens(self, words: Sequence[str]) -> list[int]:
        encoded = [self.processor.tokenizer.encode(word, add_special_tokens=False) for word in words]
        single = sorted({ids[0] for ids in encoded if len(ids) == 1})
        if not single:
            raise ValueError(f"{self.name} has no single token for {words[0]!r}; use another model")
        return single
