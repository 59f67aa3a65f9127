"""Collecting a classifier's maps from the embedded architectures: labels, steps, and how each pipeline is called."""

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from attnsteer.families import family_of
from attnsteer.seam.layers import text_layers
from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.dataset import Manifest
from attnsteer.steering.recording import Recording
from attnsteer.world import steering
from attnsteer.world.calls import call_keywords, denoiser_of, side_of, text_keywords
from attnsteer.world.mmdit import MMDiTRecipe, MMDiTSize
from attnsteer.world.scene import RELATIONS
from attnsteer.world.unet import UNetRecipe, UNetSize

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
RECORDING = Recording(size=8)


@pytest.fixture(scope="module", params=["unet", "mmdit"])
def pipe(request):
    torch.manual_seed(0)
    if request.param == "unet":
        recipe = UNetRecipe(UNetSize(16, (8, 8, 16), 2))
        recipe.denoiser.set_attn_processor(AttnProcessor2_0())  # as a pipeline that is loaded has it
    else:
        recipe = MMDiTRecipe(MMDiTSize(16, heads=2, head_dim=16, double_blocks=1, single_blocks=1, rope=(4, 6, 6)))
    recipe.pipeline.set_progress_bar_config(disable=True)
    return recipe.pipeline


def channels_of(pipe):
    denoiser = denoiser_of(pipe)
    return sum(layer.module.heads for layer in text_layers(denoiser, family_of(denoiser)))


def test_rendered_maps_come_with_the_true_and_a_wrong_word(pipe):
    batch = steering.rendered_batch(pipe, RECORDING, seed=3, size=2)
    steps = len(steering.COLLECTED[1::2])
    assert batch.maps.shape == (4 * steps, 2, channels_of(pipe), 8, 8)
    assert torch.isfinite(batch.maps.float()).all()
    words, labels = batch.prompt_relation.view(steps, 4), batch.label.view(steps, 4)
    assert torch.equal(words[:, :2], labels[:, :2])
    assert (words[:, 2:] != labels[:, 2:]).all()


def test_sampled_maps_are_of_every_collected_step(pipe, monkeypatch):
    monkeypatch.setattr(steering, "_clear_relation", lambda scene, found: "above")
    batch = steering.sampled_batch(pipe, RECORDING, 5, steering.Collection(batch=2), steps=(6, 9))
    assert batch.maps.shape == (4, 2, channels_of(pipe), 8, 8)
    assert batch.timestep.tolist() == [6, 6, 9, 9]
    assert set(batch.label.tolist()) == {RELATIONS.index("above")}


def test_keywords_of_a_call_draw_pictures_of_the_models_size(pipe):
    for scale, negative in ((1.0, None), (2.0, "red")):
        keywords = call_keywords(pipe, 2, 2, scale, negative)
        images = pipe(["a circle", "a square"], output_type="pt", **keywords).images
        assert images.shape == (2, 3, side_of(pipe), side_of(pipe))
    assert text_keywords(pipe) in ({}, {"max_sequence_length": 32})


def test_guidance_goes_by_the_name_that_the_pipeline_knows(pipe):
    keywords = call_keywords(pipe, 2, 4, 3.0, "red")
    name = "guidance_scale" if hasattr(pipe, "unet") else "true_cfg_scale"
    assert keywords[name] == 3.0
    assert keywords["negative_prompt"] == ["red", "red"]
    torch.manual_seed(1)
    plain, guided = (
        pipe(["a circle"], output_type="pt", latents=None, generator=torch.Generator().manual_seed(0),
             **call_keywords(pipe, 1, 2, scale, "red")).images
        for scale in (1.0, 3.0)
    )  # fmt: skip
    assert not torch.equal(plain, guided)


def test_the_classifiers_width_sets_the_size_of_all_its_parts():
    manifest = Manifest("m", RELATIONS, channels=4, map_size=8)
    wide, narrow = (steering.architecture_for(manifest, width) for width in (64, 40))
    assert wide == steering.architecture_for(manifest) and wide.antisymmetric and wide.lean == steering.LEAN
    assert (narrow.extractor.width, narrow.head.feedforward, narrow.head_widths) == (40, 80, (160, 80))
    sizes = [sum(p.numel() for p in RelationClassifier(one).parameters()) for one in (wide, narrow)]
    assert sizes[1] < 0.55 * sizes[0]
