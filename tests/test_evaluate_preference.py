"""Preference models on tiny random networks, ImageReward's published names, and figures of clips by hand."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from attnsteer.evaluate.metrics.clip_score import ClipModel
from attnsteer.evaluate.metrics.image_reward import CHECKPOINT, DEVIATION, MEAN, ImageReward, prepared
from attnsteer.evaluate.metrics.preference import ClipScore, Preference, make_scorer
from attnsteer.evaluate.metrics.video import consistency, steadiness
from attnsteer.evaluate.painted import Painted
from attnsteer.evaluate.scores import Scores


def picture(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


class Directions:
    """Stands in for a CLIP model: the features of pictures and texts are given."""

    def __init__(self, pictures, texts, scale=0.0):
        self.pictures, self.texts = torch.tensor(pictures), torch.tensor(texts)
        self.model = type("Model", (), {"logit_scale": torch.tensor(scale)})

    def picture_features(self, pictures):
        return self.pictures

    def text_features(self, texts):
        return self.texts


def test_preference_by_hand():
    clip = Directions([[1.0, 0.0], [0.6, 0.8]], [[0.8, 0.6], [-1.0, 0.0]], scale=2.0)
    two = [picture(), picture()], ["a", "b"]
    assert ClipScore(clip, "x/vit")(*two) == pytest.approx([80.0, 0.0])
    assert Preference(clip, "PickScore", "x/p")(*two) == pytest.approx([0.8 * np.e**2, -0.6 * np.e**2], rel=1e-6)
    assert Preference(clip, "HPS", "x/h")(*two) == pytest.approx([80.0, -60.0])
    names = ClipScore(clip, "x/vit").name, Preference(clip, "HPS", "x/h").name
    assert names == ("CLIP score [vit]", "HPS [h]")
    with pytest.raises(ValueError, match="1 texts for 2 pictures"):
        Preference(clip, "HPS", "h")(two[0], ["a"])


def test_scorers_by_name():
    for name in ("clip", "hps", "imagereward", "taste:x"):
        with pytest.raises(ValueError, match="a score is"):
            make_scorer(name)
    with pytest.raises(FileNotFoundError, match=r"ImageReward\.pt"):
        make_scorer("imagereward:/nowhere")


VISION = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**VISION, "vocab_size": 12, "encoder_hidden_size": 8, "max_position_embeddings": 40}


def published_name(name: str) -> str:
    """A weight's name in BLIP's own checkpoints, written down from those by hand."""
    parts = name.split(".")
    if parts[0] == "text_encoder":
        return name
    if parts[1] == "post_layernorm":
        return f"visual_encoder.norm.{parts[2]}"
    if parts[1] == "embeddings":
        return "visual_encoder." + {
            "class_embedding": "cls_token", "position_embedding": "pos_embed",
            "patch_embedding": f"patch_embed.proj.{parts[-1]}",
        }[parts[2]]  # fmt: skip
    module = {"layer_norm1": "norm1", "layer_norm2": "norm2"}.get(parts[4], ".".join(parts[4:-1]))
    module = {"self_attn.qkv": "attn.qkv", "self_attn.projection": "attn.proj"}.get(module, module)
    return f"visual_encoder.blocks.{parts[3]}.{module}.{parts[-1]}"


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    """A folder like the published one, with a tiny network; and the network."""
    from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval

    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    config = BlipConfig(vision_config={**VISION, "image_size": 16, "patch_size": 8}, text_config=TEXT)
    network = BlipForImageTextRetrieval(config).eval()
    weights = {
        f"blip.{published_name(name)}": value for name, value in network.state_dict().items()
        if name.startswith(("vision_model", "text_encoder"))
    }  # fmt: skip
    head = {0: (6, 8), 2: (4, 6), 6: (1, 4)}
    for number, size in head.items():
        weights |= {
            f"mlp.layers.{number}.weight": torch.randn(size),
            f"mlp.layers.{number}.bias": torch.randn(size[0]),
        }
    torch.save(weights, folder / CHECKPOINT)
    config.save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog"]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)
    return folder, network, weights


def test_image_reward_is_blip_and_a_linear_head(reward):
    folder, network, weights = reward
    scorer = ImageReward.load(str(folder))
    two = picture(1), picture(2)
    found = scorer(two, ["a red dog", "a dog"])
    for image, ids, reward_found in zip(two, ([2, 5, 6, 7, 3], [2, 5, 7, 3]), found, strict=True):
        # Each picture by itself, without padding, through the network that was saved.
        with torch.no_grad():
            seen = network.vision_model(pixel_values=prepared(image, 16)).last_hidden_state
            features = network.text_encoder(
                input_ids=torch.tensor([ids]), encoder_hidden_states=seen,
                encoder_attention_mask=torch.ones(seen.shape[:2]).long(),
            ).last_hidden_state[0, 0]  # fmt: skip
        for number in (0, 2, 6):
            features = weights[f"mlp.layers.{number}.weight"] @ features + weights[f"mlp.layers.{number}.bias"]
        assert reward_found == pytest.approx((float(features[0]) - MEAN) / DEVIATION, abs=1e-4)
    assert abs(found[0] - found[1]) > 1e-4


def test_another_checkpoint_is_no_image_reward(reward, tmp_path):
    folder, _, weights = reward
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    torch.save({name: value for name, value in weights.items() if "blocks.1.norm1" not in name}, tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match=r"lacks vision_model\.encoder\.layers\.1\.layer_norm1"):
        ImageReward.load(str(tmp_path))
    torch.save({name: value for name, value in weights.items() if not name.startswith("mlp")}, tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match="chain of linear layers"):
        ImageReward.load(str(tmp_path))


def test_pictures_are_cut_from_the_middle():
    wide = Image.new("RGB", (40, 20), (255, 0, 0))
    wide.paste((0, 0, 255), (10, 0, 30, 20))
    pixels = prepared(wide, 10)
    assert tuple(pixels.shape) == (1, 3, 10, 10)
    blue, none = (1 - 0.40821073) / 0.27577711, -0.48145466 / 0.26862954
    assert pixels[0, 2, :, 2:8].flatten().tolist() == pytest.approx([blue] * 60, abs=0.02)
    assert pixels[0, 0, :, 2:8].flatten().tolist() == pytest.approx([none] * 60, abs=0.02)


def test_clips_by_hand():
    grey = [Image.new("RGB", (4, 4), (level,) * 3) for level in (0, 51, 51)]
    assert steadiness(grey) == pytest.approx(1 - (51 + 0) / 2 / 255)
    assert steadiness(grey[1:]) == 1.0
    # Third frame: cosine 0 with the first, 1/sqrt(2) with the second; second: 1/sqrt(2) with the first, twice.
    features = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    assert consistency(features) == pytest.approx((0.5**0.5 + 0.5**0.5 / 2) / 2)
    with pytest.raises(ValueError, match="two or more"):
        steadiness(grey[:1])
    with pytest.raises(ValueError, match="two or more"):
        consistency(features[:1])


def test_scores_of_clips_and_pictures():
    none = Scores(None, None, "cpu")
    still = Painted((picture(),), 0, 1.0, 1, 1.0, 1)
    clip = Painted((picture(1), picture(1), picture(2), picture(3)), 0, 1.0, 1, 1.0, 1)
    assert none([still, clip], ["a", "b"]) == [{}, {"steadiness": steadiness(clip.frames)}]
    scores = Scores(None, "pixels:2", "cpu")
    assert set(scores([clip], ["b"])[0]) == {"steadiness", "consistency [pixels-2x2]"}

    class Brightness:
        name = "brightness"

        def __call__(self, pictures, texts):
            assert texts == ["a", "b", "b", "b"]
            return [float(np.asarray(one).mean()) for one in pictures]

    scores.scorers = [Brightness()]
    first, second = scores([still, clip], ["a", "b"])
    assert first == {"brightness": float(np.asarray(picture()).mean())}
    # First, middle and last frame.
    assert second["brightness"] == pytest.approx(np.mean([np.asarray(picture(n)).mean() for n in (1, 2, 3)]))


def test_clip_models_load_from_a_folder(tmp_path):
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from tiny import clip_tokenizer

    tokenizer = clip_tokenizer(16)
    tokenizer.pad_token = tokenizer.eos_token
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {**tower, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(tmp_path)
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPProcessor(CLIPImageProcessorPil(**size), tokenizer).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "clip"
    pick, score = make_scorer(f"pickscore:{tmp_path}"), make_scorer(f"clip:{tmp_path}")
    (logit,), (cosine,) = pick([picture()], ["a red dog"]), score([picture()], ["a red dog"])
    clip = ClipModel.load(str(tmp_path))
    seen, read = clip.picture_features([picture()])[0], clip.text_features(["a red dog"])[0]
    assert logit == pytest.approx(float(clip.model.logit_scale.detach().exp() * seen @ read), rel=1e-5)
    assert cosine == pytest.approx(max(0.0, 100 * logit / float(clip.model.logit_scale.detach().exp())), rel=1e-4)
