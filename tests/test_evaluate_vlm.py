"""The vision-language judge on a tiny random LLaVA: its own processor, chat template and forward."""

import numpy as np
import pytest
import torch
from PIL import Image

from attnsteer.evaluate.detectors.vision_language import VisionLanguageModel

WORDS = "<unk> <image> Is there a an in this picture ? Answer with yes or no only . dog wheel".split()


@pytest.fixture(scope="module")
def judge():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"size": {"height": 16, "width": 16}, "crop_size": {"height": 16, "width": 16}}
    template = (
        "{% for m in messages %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(**size), tokenizer, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**tower, image_size=16, patch_size=8),
        text_config=LlamaConfig(**tower, vocab_size=len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-2,
    )  # fmt: skip
    torch.manual_seed(0)
    return VisionLanguageModel(LlavaForConditionalGeneration(config).eval(), processor, "vlm (tiny)", threshold=0.0)


def test_a_random_model_answers_about_pictures(judge):
    pictures = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)) for seed in (1, 2)
    ]
    (first,), (second,) = judge(pictures, [["wheel"], ["wheel"]])
    assert 0 < first.score < 1 and (first.right, first.bottom) == (30, 20)
    # It sees the picture, and reads what is asked for.
    assert first.score != second.score != judge.probability(pictures[1], "dog")
