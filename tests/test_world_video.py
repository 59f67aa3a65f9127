"""The embedded video model: autoencoder, clips, captions, clip detector, training, guidance."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from diffusers import WanPipeline

from attnsteer import NAG, guide
from attnsteer.world import clip_measure
from attnsteer.world.blocks import SCALE, without_blocks
from attnsteer.world.calls import call_keywords, side_of
from attnsteer.world.clip_captions import CLIP_WORDS, clip_caption, clip_phrase
from attnsteer.world.clip_detect import consistency, detect_clips, shows
from attnsteer.world.clip_measure import Mean, Sampling, base_clip_figures, draw_clips, negative_clip_figures
from attnsteer.world.clips import DIRECTIONS, Actor, random_clip, render_clips, scenes, training_clip
from attnsteer.world.measure import load_pipeline
from attnsteer.world.render import render
from attnsteer.world.scene import Shape
from attnsteer.world.text import MAX_TOKENS
from attnsteer.world.train import Run, Training, build_recipe, train
from attnsteer.world.umt5 import build_clip_tokenizer, build_umt5_encoder, content_targets, train_umt5_encoder
from attnsteer.world.video import VideoRecipe, VideoSize
from attnsteer.world.video_autoencoder import pack_frames, packing_autoencoder, unpack_frames

pytestmark = pytest.mark.filterwarnings("ignore:There are modules", "ignore:Mismatch dtype")
TINY = VideoSize(picture=16, frames=5, heads=1, head_dim=24, blocks=1)
SAMPLING = Sampling(steps=2, size=16, frames=5)
RED = Shape("circle", "red", 0.3, 0.6, 0.14)


def tiny_recipe():
    torch.manual_seed(0)
    return VideoRecipe(TINY)


@pytest.fixture(scope="module")
def pipe():
    made = tiny_recipe().pipeline
    made.set_progress_bar_config(disable=True)
    return made


def traits(objects):
    return sorted(map(str, objects))


def seen(tracks):
    return traits((t.colour, t.shape, t.attribute, t.direction, t.flickering) for t in tracks)


def meant(clip):
    return traits((a.shape.colour, a.shape.shape, a.shape.attribute, a.direction, a.flickering) for a in clip)


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_blocks_of_pixels_pass_through_the_autoencoder(frames):
    clips = 2 * torch.rand(2, frames, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
    video = clips.transpose(1, 2).repeat_interleave(SCALE, -1).repeat_interleave(SCALE, -2)
    autoencoder = packing_autoencoder().half().float()  # as it is stored
    latents = autoencoder.encode(video).latent_dist.sample(torch.Generator().manual_seed(0))
    assert latents.shape == (2, 12, 1 + frames // 4, 8, 8)
    assert torch.allclose(latents, pack_frames(clips), atol=1e-4)
    assert torch.allclose(autoencoder.decode(pack_frames(clips)).sample, video, atol=1e-4)
    assert torch.equal(unpack_frames(pack_frames(clips)), clips)


def test_a_clip_of_another_length_cannot_be_packed():
    with pytest.raises(ValueError, match="1 \\+ 4 k frames, got 4"):
        pack_frames(torch.zeros(1, 4, 3, 8, 8))


def test_frames_show_the_object_where_it_has_moved_to():
    clip = (Actor(RED, "right", 0.05, hidden=1),)
    frames = render_clips([clip], 4, 24)[0]
    for frame in (0, 2):
        moved = replace(RED, x=0.3 + 0.05 * frame)
        assert torch.allclose(frames[frame], render([(moved,)], 24)[0], atol=1e-6)
    for frame in (1, 3):
        assert torch.equal(frames[frame], render([()], 24)[0])


def test_objects_stay_inside_and_apart():
    random = Random(1)
    for _ in range(60):
        clip = random_clip(random, 2)
        for scene in scenes(tuple(replace(actor, hidden=None) for actor in clip), 9):
            assert all(o.radius < min(o.x, o.y, 1 - o.x, 1 - o.y) for o in scene)
            first, second = scene
            assert ((first.x - second.x) ** 2 + (first.y - second.y) ** 2) ** 0.5 > first.radius + second.radius


@pytest.mark.parametrize("bad", [{"direction": "sideways"}, {"hidden": 2}])
def test_unknown_behaviour_is_an_error(bad):
    with pytest.raises(ValueError, match="must be None"):
        Actor(RED, **bad)


def test_a_clip_of_three_objects_is_an_error():
    with pytest.raises(ValueError, match="1 or 2 objects"):
        random_clip(Random(0), 3)


def test_captions_say_nothing_false():
    random, said = Random(2), set()
    for _ in range(300):
        clip = training_clip(random)
        words = " ".join(clip_caption(clip, random)).split()
        said |= set(words)
        assert set(words) <= set(CLIP_WORDS)
        assert len(words) < MAX_TOKENS
        actors = [a for a in clip if a.shape.colour in words] or list(clip)
        assert all(any(a.direction == word for a in actors) for word in set(words) & set(DIRECTIONS))
        assert "flickering" not in words or any(a.flickering for a in actors)
        assert "static" not in words or any(a.direction is None for a in actors)
        assert "moving" not in words or any(a.direction for a in actors)
    assert {*DIRECTIONS, "flickering", "static", "moving", "outline", "blurry", "red", "circle"} <= said


def test_phrases_name_all_that_an_actor_is():
    actor = Actor(replace(RED, attribute="outline"), "left", 0.04, hidden=0)
    assert clip_phrase(actor) == "a flickering red outline circle moving left"
    assert clip_phrase(actor, flicker=False, colour=False, motion=False) == "an outline circle"
    assert clip_phrase(Actor(RED)) == "a static red circle"


def test_content_words_are_taught_what_is_said_of_their_object():
    rows, columns, targets = content_targets(
        [["a flickering red circle moving left", "and", "a blurry square"], ["up"]]
    )
    assert rows.tolist() == [0] * 7 + [1]
    assert columns.tolist() == [1, 2, 3, 4, 5, 8, 9, 0]
    # red is the 1st colour, circle the 1st shape, left after "static" and "moving"; blurry the 2nd attribute
    assert targets.tolist() == [[1, 1, 0, 3, 1]] * 5 + [[0, 2, 2, 0, 0]] * 2 + [[0, 0, 0, 5, 0]]


def test_every_word_is_one_token_and_the_encoder_learns_them():
    tokenizer = build_clip_tokenizer()
    assert all(len(tokenizer(word).input_ids) == 2 for word in CLIP_WORDS if word.isalpha())
    torch.manual_seed(0)
    encoder = build_umt5_encoder(tokenizer, width=64, layers=2)
    early = train_umt5_encoder(tokenizer, encoder, iterations=1, seed=0, batch=32)
    late = train_umt5_encoder(tokenizer, encoder, iterations=80, seed=0, batch=32)
    assert early < 0.2
    assert late > 0.4


def test_the_clip_detector_reads_rendered_clips():
    random = Random(7)
    clips = [random_clip(random, 1 + i % 2) for i in range(30)]
    found = detect_clips(render_clips(clips, 9, 24))
    right = sum(seen(tracks) == meant(clip) for tracks, clip in zip(found, clips, strict=True))
    assert right / len(clips) >= 0.99


def test_tracks_measure_way_presence_and_flicker():
    clips = [(Actor(RED, "right", 0.04),), (Actor(RED, hidden=0),), (Actor(RED),), ()]
    moving, flickering, still, empty = detect_clips(render_clips(clips, 9, 24))
    assert moving[0].travel == (pytest.approx(8 * 0.04, abs=0.02), pytest.approx(0, abs=0.02))
    assert (moving[0].direction, moving[0].flickering) == ("right", False)
    assert flickering[0].presence == pytest.approx(4 / 9)
    assert flickering[0].flicker == pytest.approx(1, abs=0.01)
    assert (still[0].travel, still[0].flicker) == ((0, 0), 0)
    assert (consistency(still), consistency(empty)) == (1, 0)
    assert consistency(flickering) == pytest.approx(4 / 9)
    assert empty == []
    assert [shows(moving, word) for word in ("moving", "moving right", "moving left", "static", "red")] == [
        True, True, False, False, True,
    ]  # fmt: skip
    assert shows(flickering, "flickering")
    assert shows(flickering, "static")


def test_videos_of_blocks_are_judged_at_the_size_of_the_blocks():
    clips = render_clips([random_clip(Random(4), 2)], 2, 24)
    video = clips.repeat_interleave(SCALE, -1).repeat_interleave(SCALE, -2)
    eight_bits = (video * 255).round() / 255
    assert torch.allclose(without_blocks(eight_bits), clips, atol=1 / 255)
    assert seen(detect_clips(eight_bits)[0]) == seen(detect_clips(clips)[0])
    smooth = torch.nn.functional.interpolate(video[0], scale_factor=0.5, mode="bilinear")
    assert without_blocks(smooth) is smooth


def test_an_object_that_changes_its_shape_is_not_consistent():
    square = replace(RED, shape="square")
    frames = render([(RED,)] * 6 + [(square,)] * 3, 24)
    (track,) = detect_clips(frames[None])[0]
    assert (track.shape, track.presence) == ("circle", 1)
    assert track.uniformity == pytest.approx(6 / 9)


@pytest.mark.parametrize("shape", [(1, 1, 3, 24, 24), (9, 3, 24, 24)])
def test_the_clip_detector_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="frames >= 2"):
        detect_clips(torch.zeros(shape))


def test_training_sees_the_text_that_the_pipeline_feeds():
    recipe, texts = tiny_recipe(), ["a flickering red circle moving left", ""]
    fed = []
    recipe.denoiser.register_forward_pre_hook(
        lambda _module, args, kwargs: fed.append(kwargs.get("encoder_hidden_states", args[2] if args else None)),
        with_kwargs=True,
    )
    recipe.loss(torch.zeros(2, 5, 3, 16, 16), texts, torch.Generator().manual_seed(0))
    recipe.pipeline.set_progress_bar_config(disable=True)
    draw_clips(recipe.pipeline, texts, replace(SAMPLING, steps=1))
    assert torch.equal(fed[0], fed[1])
    assert fed[0].shape == (2, MAX_TOKENS, 96)
    assert fed[0][0, 7:].abs().max() == 0  # six words and the end
    assert fed[0][0, :7].abs().amax(-1).min() > 0


def test_a_transformer_that_knows_the_clip_makes_the_pipeline_show_it(pipe):
    clips = render_clips([(Actor(RED, "up", 0.05),)], 5, 16)
    handle = pipe.transformer.register_forward_hook(lambda *_: (pack_frames(2 * clips - 1),))
    try:
        drawn = draw_clips(pipe, ["a red circle moving up"], replace(SAMPLING, steps=5))
        side = 16 * SCALE
        video = pipe("a red circle", height=side, width=side, num_frames=5, num_inference_steps=2, output_type="pt",
                     guidance_scale=1.0, max_sequence_length=MAX_TOKENS).frames  # fmt: skip
    finally:
        handle.remove()
    assert torch.allclose(drawn, clips, atol=1e-3)
    shown = clips.repeat_interleave(SCALE, -1).repeat_interleave(SCALE, -2)
    assert torch.allclose(video, shown, atol=1e-3)


def test_the_loss_is_the_weighted_error_of_the_clip():
    recipe = tiny_recipe()
    clips = render_clips([(Actor(RED),)] * 400, 5, 16)
    recipe.denoiser.register_forward_hook(lambda *_: (pack_frames(2 * clips - 1) + 0.5,))
    losses = recipe.loss(2 * clips - 1, [""] * 400, torch.Generator().manual_seed(0))
    # 1/4 times a weight of 1 / sigma^2, which lies between 1 and 5
    assert 0.25 < losses.min() < 0.27
    assert losses.max() == pytest.approx(1.25, abs=1e-4)


def test_steps_lower_the_loss_on_one_batch():
    recipe = tiny_recipe()
    clips, texts = recipe.draw(Random(0), 4)
    optimizer = torch.optim.AdamW(recipe.denoiser.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = recipe.loss(2 * clips - 1, texts, torch.Generator().manual_seed(0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("video")
    train(folder, Training(batch=2, iterations=4, warmup=2, text_iterations=1, optimizer="muon"), tiny_recipe())
    return folder


def test_training_resumes_to_the_same_weights(trained, tmp_path: Path):
    settings = Training(batch=2, iterations=4, warmup=2, text_iterations=1, optimizer="muon")
    first = Run(tmp_path, settings, tiny_recipe())
    first.step()
    first.step()
    first.save()
    train(tmp_path, settings, tiny_recipe())
    states = [torch.load(run / "checkpoint.pt", weights_only=True) for run in (trained, tmp_path)]
    assert states[0]["iteration"] == states[1]["iteration"] == 4
    for name, value in states[0]["average"].items():
        assert torch.equal(value, states[1]["average"][name]), name
    assert json.loads((trained / "log.jsonl").read_text().splitlines()[0])["size"]["architecture"] == "video"


def test_a_run_starts_from_a_model_of_another_size(trained):
    recipe = VideoRecipe(replace(TINY, picture=24, frames=9))
    recipe.start_from(trained / "model")
    earlier = WanPipeline.from_pretrained(trained / "model")
    for name, value in earlier.transformer.state_dict().items():
        assert torch.equal(value, recipe.denoiser.state_dict()[name]), name
    assert torch.equal(recipe.text_encoder.shared.weight, earlier.text_encoder.shared.weight)


def test_the_training_script_knows_the_architecture():
    recipe = build_recipe("video", 0, 24)
    weights = sum(p.numel() for module in (recipe.denoiser, recipe.text_encoder, recipe.pipeline.vae)
                  for p in module.parameters())  # fmt: skip
    assert 2 * weights < 8_000_000  # bytes in float16
    with pytest.raises(ValueError, match="video"):
        build_recipe("film", 0, 24)


def test_the_folder_loads_and_draws_without_attnsteer(trained, tmp_path: Path):
    code = (
        "import sys; from diffusers import WanPipeline; "
        f"pipe = WanPipeline.from_pretrained({str(trained / 'model')!r}); "
        "video = pipe('a red circle', height=64, width=64, num_frames=5, num_inference_steps=2, "
        "max_sequence_length=32).frames; "
        "assert 'attnsteer' not in sys.modules; print(video.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "(1, 5, 64, 64, 3)"


def test_nag_changes_a_clip_and_leaves_the_pipeline_as_it_was(pipe):
    def draw(generate, **keywords):
        return draw_clips(generate, ["a circle"], SAMPLING, **keywords)

    processors = [module.processor for module in pipe.transformer.modules() if hasattr(module, "processor")]
    before = draw(pipe)
    guided = draw(guide(pipe, NAG(scale=5.0)), nag_negative_prompt="red flickering")
    assert (guided - before).abs().max() > 1e-3
    assert torch.equal(draw(pipe), before)
    after = [module.processor for module in pipe.transformer.modules() if hasattr(module, "processor")]
    assert all(one is other for one, other in zip(processors, after, strict=True))
    assert torch.equal(draw(guide(pipe, NAG(scale=1.0)), nag_negative_prompt="red"), before)


def test_figures_count_every_clip(pipe):
    lines = negative_clip_figures(pipe, 3, SAMPLING, NAG(), 2.0, unwanted=("red",))
    names = ("unguided", "CFG 2", "NAG")
    shares, means = lines[:6], lines[6:]
    assert [share.name for share in shares][::2] == [f"{name}: red shows" for name in names]
    assert all(share.of == 3 for share in shares)
    assert [(mean.name, len(mean.values)) for mean in means] == [(f"{name}: consistency", 3) for name in names]
    assert [share.of for share in base_clip_figures(pipe, 3, SAMPLING)][::4] == [3, 3]


def test_a_wan_pipeline_is_called_in_its_own_words(pipe):
    sizes = {"num_inference_steps": 3, "height": 96, "width": 96, "num_frames": 9, "max_sequence_length": 32}
    assert side_of(pipe) == 96
    assert call_keywords(pipe, 2, 3, 1.0) == {**sizes, "guidance_scale": 1.0}
    assert call_keywords(guide(pipe, NAG()), 2, 3, 4.0, "red") == {
        **sizes, "guidance_scale": 4.0, "negative_prompt": ["red", "red"],
    }  # fmt: skip


def test_traits_are_what_captions_would_say():
    clips = [(Actor(replace(RED, attribute="blurry"), "up", 0.04, hidden=1),), (Actor(replace(RED, shape="square")),)]
    (moving,), (still,) = detect_clips(render_clips(clips, 9, 24))
    assert moving.traits == {"red", "blurry", "flickering", "moving", "moving up"}
    assert still.traits == {"red", "static"}
    assert replace(moving, recognised=False).traits == {"red", "flickering", "moving", "moving up"}


def test_a_mean_is_written_with_its_interval():
    row = clip_measure.row_of(Mean("NAG: consistency", [0.5, 1.0, 0.75, 0.75]))
    assert (row["name"], row["value"], row["of"]) == ("NAG: consistency", 0.75, 4)
    assert 0.5 <= row["interval"][0] < 0.75 < row["interval"][1] <= 1


def test_what_is_for_pictures_refuses_clips(trained):
    with pytest.raises(ValueError, match="draws clips"):
        load_pipeline(str(trained / "model"))
