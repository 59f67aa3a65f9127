"""Which rows of the denoiser's text input are which words, in stock pipelines of every family."""

import pytest
import torch

from attnsteer.families import family_of
from attnsteer.pipeline.conditioning import Conditioning, captured, text_inputs, with_prompt
from attnsteer.steering import locate
from attnsteer.steering.locate import text_rows_of
from attnsteer.steering.relations import Relation, Span, parse_relations
from steered import CFG_ON, places
from tiny import CALLS, build

PROMPT = "a photo of a red circle to the left of a dog"


def located(pipe, name, prompts, spans, **options):
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    call = {**CALLS[name], **options, "prompt": prompts}
    contrast = text_inputs(family_of(denoiser), captured(pipe, [denoiser], with_prompt(call, "contrast")))
    capture = Conditioning(family_of(denoiser), contrast, lambda: captured(pipe, [denoiser], call))
    return text_rows_of(pipe, capture, [prompts] if isinstance(prompts, str) else prompts, spans)


def words(prompt, *phrases):
    return [Span(p, prompt.index(p), prompt.index(p) + len(p)) for p in phrases]


@pytest.mark.parametrize("name", ["sd", "sdxl", "flux", "wan", "wan_i2v"])
@pytest.mark.parametrize("cfg", [False, True], ids=["no cfg", "cfg"])
def test_phrases_and_heads_are_found(name, cfg):
    pipe = build(name)
    spans = words(PROMPT, "red circle", "circle", "dog")
    options = CFG_ON[name] if cfg else {} if name == "flux" else {"guidance_scale": 1.0}
    options = {**options, "max_sequence_length": 24} if name == "flux" else options
    (rows,), per_prompt = located(pipe, name, PROMPT, [spans], **options)
    assert per_prompt == 1
    tokenizer = pipe.tokenizer_2 if name == "flux" else pipe.tokenizer
    assert rows[spans[0]] == places(tokenizer, PROMPT, 4, 2)
    assert rows[spans[1]] == places(tokenizer, PROMPT, 5)
    assert rows[spans[2]] == places(tokenizer, PROMPT, 11)


@pytest.mark.parametrize("with_t5", [True, False])
def test_sd3_counts_the_rows_of_clip_and_of_t5(with_t5):
    pipe = build("sd3")
    if not with_t5:
        pipe.text_encoder_3 = None
    (span,) = words(PROMPT, "dog")
    (rows,), _ = located(pipe, "sd3", PROMPT, [[span]], max_sequence_length=24)
    clip = places(pipe.tokenizer, PROMPT, 11)
    t5 = [pipe.tokenizer.model_max_length + row for row in places(pipe.tokenizer_3, PROMPT, 11)]
    assert rows[span] == (clip + t5 if with_t5 else clip)


def test_a_word_that_clip_cuts_off_is_still_found_in_t5():
    pipe = build("sd3")
    prompt = "a photo of a cat " + "and a bird " * 7 + "above a dog"
    (span,) = words(prompt, "dog")
    (rows,), _ = located(pipe, "sd3", prompt, [[span]], max_sequence_length=48)
    last = places(pipe.tokenizer_3, prompt, len(prompt.split()) - 1)
    assert rows[span] == [pipe.tokenizer.model_max_length + row for row in last]


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_words_that_are_cut_off_are_an_error(name):
    pipe = build(name)
    prompt = "a photo of a cat " + "and a bird " * 8 + "above a dog"
    options = {"max_sequence_length": 16} if name == "flux" else {"guidance_scale": 1.0}
    with pytest.raises(ValueError, match="'dog'.*lies beyond the"):
        located(pipe, name, prompt, [words(prompt, "dog")], **options)


def test_each_text_is_compared_once_with_what_each_encoder_gave(monkeypatch):
    """Comparing costs a tenth of a second at FLUX's size, and some encoders give a state for each layer."""
    stock, seen = locate.match_text_rows, []

    def counting(text, states):
        seen.append((text.data_ptr(), states.data_ptr()))
        return stock(text, states)

    monkeypatch.setattr(locate, "match_text_rows", counting)
    prompt = "a red circle above a blue square, a dog above a cat, a bird near a star"
    spans = words(prompt, "red circle", "blue square", "dog", "cat", "bird", "star")
    for name, cut in (("flux", {"max_sequence_length": 40}), ("sdxl", {})):
        seen.clear()
        located(build(name), name, prompt, [spans[: 6 if cut else 4]], **cut)
        assert seen and len(seen) == len(set(seen))


def test_comparisons_grow_with_the_number_of_prompts_and_not_with_its_square(monkeypatch):
    """FLUX's CLIP is never in the text input, so that a prompt that looked among all others would look in vain."""
    stock, seen = locate.match_text_rows, []
    monkeypatch.setattr(locate, "match_text_rows", lambda *given: seen.append(1) or stock(*given))
    counts = []
    for number in (1, 5):
        prompts = [f"{PROMPT} and a {colour} cat" for colour in ("red", "green", "blue", "white", "black")[:number]]
        seen.clear()
        rows, _ = located(build("flux"), "flux", prompts, [words(p, "dog") for p in prompts], max_sequence_length=40)
        assert len(rows) == number
        counts.append(len(seen))
    assert counts[1] == 5 * counts[0]


def test_the_same_noun_twice_has_two_places():
    prompt = "a dog above a dog"
    relation = Relation.of(prompt, "dog", "above", "dog")
    (rows,), _ = located(build("sd"), "sd", prompt, [[relation.subject, relation.object]], guidance_scale=1.0)
    assert rows[relation.subject] == [2] and rows[relation.object] == [5]


def test_a_noun_inside_another_phrase_is_told_apart():
    prompt = "a red dog above a dog"
    (relation,) = parse_relations(prompt)
    pipe = build("wan")
    (rows,), _ = located(pipe, "wan", prompt, [[relation.subject, relation.object]])
    assert rows[relation.subject] == places(pipe.tokenizer, prompt, 1, 2)
    assert rows[relation.object] == places(pipe.tokenizer, prompt, 5)


@pytest.mark.parametrize("name", ["sd", "wan"])
def test_batches_with_several_images_per_prompt(name):
    prompts = ["a dog above a cat", "a photo of a bird", "a red circle below a dog"]
    spans = [words(prompts[0], "dog", "cat"), [], words(prompts[2], "red circle", "dog")]
    more = "num_videos_per_prompt" if name == "wan" else "num_images_per_prompt"
    pipe = build(name)
    rows, per_prompt = located(pipe, name, prompts, spans, **CFG_ON[name], **{more: 2})
    assert per_prompt == 2 and len(rows) == 6

    def at(prompt, first, count=1):
        return places(pipe.tokenizer, prompts[prompt], first, count)

    assert rows[0] == rows[1] == {spans[0][0]: at(0, 1), spans[0][1]: at(0, 4)}
    assert rows[2] == rows[3] == {}
    assert rows[4] == rows[5] == {spans[2][0]: at(2, 1, 2), spans[2][1]: at(2, 5)}


def test_the_hidden_layer_that_the_pipeline_uses_does_not_matter():
    """SDXL reads a layer before the last one, further back with clip_skip."""
    spans, pipe = words(PROMPT, "dog"), build("sdxl")
    plain, _ = located(pipe, "sdxl", PROMPT, [spans])
    skipped, _ = located(pipe, "sdxl", PROMPT, [spans], clip_skip=1)
    assert plain == skipped


def test_learned_words_of_several_vectors():
    """Textual inversion writes "<cat-toy> <cat-toy>_1" for one word; what stands behind it moves."""
    pipe = build("sd")
    pipe.load_textual_inversion(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)), token="<cat-toy>")
    prompt = "a <cat-toy> above a dog"
    (rows,), _ = located(pipe, "sd", prompt, [words(prompt, "<cat-toy>", "dog")], guidance_scale=1.0)
    assert list(rows.values()) == [[2], [6]]  # <start> a <cat-toy> <cat-toy>_1 above a dog
    assert parse_relations(prompt)[0].subject == words(prompt, "<cat-toy>")[0]


def test_embeddings_instead_of_words_are_an_error():
    pipe = build("sd")
    embeds = pipe.encode_prompt(PROMPT, "cpu", 1, False)[0]
    denoiser = pipe.unet
    call = {**CALLS["sd"], "guidance_scale": 1.0, "prompt_embeds": embeds}
    contrast = text_inputs(family_of(denoiser), captured(pipe, [denoiser], {**call, "prompt_embeds": embeds + 1}))
    capture = Conditioning(family_of(denoiser), contrast, lambda: captured(pipe, [denoiser], call))
    with pytest.raises(ValueError, match="no text encoder of the pipeline ran"):
        text_rows_of(pipe, capture, [PROMPT], [words(PROMPT, "dog")])


def test_a_prompt_of_another_encoder_is_an_error():
    """FLUX reads the second prompt where there is one, and that one has no dog."""
    pipe = build("flux")
    with pytest.raises(ValueError, match="cannot find 'dog' in the denoiser's text input"):
        located(pipe, "flux", PROMPT, [words(PROMPT, "dog")], prompt_2="a green triangle")


def test_encoders_and_the_pipeline_are_as_before():
    pipe = build("sdxl")
    hooks = [len(e._forward_hooks) for e in (pipe.text_encoder, pipe.text_encoder_2)]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    located(pipe, "sdxl", PROMPT, [words(PROMPT, "dog")])
    assert torch.equal(torch.get_rng_state(), state)
    assert hooks == [len(e._forward_hooks) for e in (pipe.text_encoder, pipe.text_encoder_2)]
