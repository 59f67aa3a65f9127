"""Words of a prompt to rows of text encoders; tokenizers of stock transformers classes, trained on a few lines."""

import json
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, CLIPTokenizer, GemmaTokenizer, LlamaTokenizer, Qwen2Tokenizer, T5Tokenizer

from attnsteer.steering.parser.spans import Span
from attnsteer.steering.relations import parse_relations
from attnsteer.steering.tokens import match_text_rows, token_indices

CORPUS = [
    "a red circle to the left of a blue square",
    "a photo of a dog to the right of a teddy bear, studio light",
    "a photo of a dog above a table and a cat below a bench",
] * 3
TEMPLATE = "<|im_start|>system\nDescribe the image in detail:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n"


def trained_bpe(pre_tokenizer, alphabet, *, suffix=None, special=()):
    """Vocabulary and merges of a BPE model trained on the corpus."""
    ending = {"end_of_word_suffix": suffix} if suffix else {}
    tokenizer = Tokenizer(models.BPE(**ending))
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) * (2 if suffix else 1) + len(special) + 60,
        initial_alphabet=alphabet, special_tokens=list(special), show_progress=False, **ending,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def clip():
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), to_bytes])
    vocab, merges = trained_bpe(split, alphabet, suffix="</w>", special=("<|startoftext|>", "<|endoftext|>"))
    for letter in alphabet:
        vocab.setdefault(letter + "</w>", len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def t5():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    letters = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,.:!▁<>|_\n")
    trainer = trainers.UnigramTrainer(vocab_size=110, initial_alphabet=letters, show_progress=False, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    pieces = [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"] if piece[0] != "<unk>"]
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=specials + pieces, extra_ids=0, model_max_length=512)


def qwen():
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    vocab, merges = trained_bpe(split, pre_tokenizers.ByteLevel.alphabet(), special=("<|endoftext|>",))
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def sentencepiece_like(cls, specials):
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    vocab, merges = trained_bpe(metaspace, list("abcdefghijklmnopqrstuvwxyz,▁"), special=(*specials, *bytes_))
    return cls(vocab=vocab, merges=merges)


def llama():
    tokenizer = sentencepiece_like(LlamaTokenizer, ("<unk>", "<s>", "</s>"))
    tokenizer.pad_token = "</s>"
    return tokenizer


def gemma():
    return sentencepiece_like(GemmaTokenizer, ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"))


BUILDERS = {"clip": clip, "t5": t5, "qwen": qwen, "llama": llama, "gemma": gemma, "byt5": ByT5Tokenizer}


@pytest.fixture(scope="module", params=list(BUILDERS))
def tokenizer(request):
    return BUILDERS[request.param]()


@pytest.fixture(scope="module")
def tokenizers():
    return {name: build() for name, build in BUILDERS.items()}


def span_of(prompt, words, occurrence=0):
    start = -1
    for _ in range(occurrence + 1):
        start = prompt.index(words, start + 1)
    return Span(words, start, start + len(words))


def text_of(tokenizer, ids, rows):
    """The letters of the given rows, decoded token by token; independent of offsets."""
    return "".join(tokenizer.decode([ids[row]]) for row in rows).replace(" ", "").replace("</w>", "").lower()


def bare(text):
    return text.replace(" ", "").lower()


PROMPT = "a photo of a dog to the right of a teddy bear, studio light"


@pytest.mark.parametrize("words", ["dog", "teddy bear", "bear", "photo", "studio light", "light", "right"])
def test_rows_spell_the_words(tokenizer, words):
    ids = tokenizer(PROMPT)["input_ids"]
    rows = token_indices(tokenizer, PROMPT, span_of(PROMPT, words))
    assert rows == sorted(set(rows))
    assert text_of(tokenizer, ids, rows) == bare(words)


def test_rows_agree_with_counting_the_tokens_of_each_word(tokenizers):
    # These three split at spaces before merging, so the tokens of a prompt are those of its words, one after another.
    words = PROMPT.replace(",", "").split()
    for name, first, lead in (("clip", 1, ""), ("t5", 0, ""), ("qwen", 0, " ")):
        tokenizer, prompt, at = tokenizers[name], " ".join(words), first
        for index, word in enumerate(words):
            count = len(tokenizer((lead if index else "") + word, add_special_tokens=False)["input_ids"])
            start = len(" ".join(words[:index])) + (index > 0)
            span = Span(word, start, start + len(word))
            tokens = tokenizer.convert_ids_to_tokens(tokenizer(prompt)["input_ids"])
            expected = [row for row in range(at, at + count) if tokens[row] != "▁"]  # a space marker is no letter
            assert token_indices(tokenizer, prompt, span) == expected
            at += count


def test_multi_token_words_keep_all_their_tokens(tokenizer):
    prompt = "a zyzzyva to the left of a dog"
    rows = token_indices(tokenizer, prompt, span_of(prompt, "zyzzyva"))
    assert len(rows) > 1
    assert text_of(tokenizer, tokenizer(prompt)["input_ids"], rows) == "zyzzyva"


def test_repeated_words_are_told_apart(tokenizer):
    prompt = "a teddy bear left of a bear, a bear"
    ids = tokenizer(prompt)["input_ids"]
    rows = [token_indices(tokenizer, prompt, span_of(prompt, "bear", occurrence)) for occurrence in range(3)]
    assert rows[0][-1] < rows[1][0] <= rows[1][-1] < rows[2][0]
    assert [text_of(tokenizer, ids, group) for group in rows] == ["bear"] * 3
    relation = parse_relations(prompt)[0]
    assert token_indices(tokenizer, prompt, relation.object) == rows[1]


def test_case_spaces_and_composed_letters_do_not_shift_rows(tokenizers):
    # CLIP lower-cases, joins spaces and composes letters, so its own text is shorter than the prompt.
    tokenizer = tokenizers["clip"]
    prompt = "A   cafe\u0301   table \n left of a DOG"
    plain = "a caf\u00e9 table left of a dog"
    rows = token_indices(tokenizer, prompt, span_of(prompt, "DOG"))
    assert rows == token_indices(tokenizer, plain, span_of(plain, "dog"))
    table = token_indices(tokenizer, prompt, span_of(prompt, "table"))
    assert table == token_indices(tokenizer, plain, span_of(plain, "table"))


def test_letters_that_grow_in_lower_case(tokenizer):
    prompt = "an İİİ sign above a dog"
    rows = token_indices(tokenizer, prompt, span_of(prompt, "dog"))
    assert text_of(tokenizer, tokenizer(prompt)["input_ids"], rows) == "dog"


def test_korean_noun_before_its_particle(tokenizers):
    prompt = "개가 고양이 왼쪽에"
    for name in ("qwen", "clip", "llama", "gemma", "byt5"):
        tokenizer = tokenizers[name]
        ids = tokenizer(prompt)["input_ids"]
        rows = token_indices(tokenizer, prompt, Span("개", 0, 1))
        assert tokenizer.decode([ids[row] for row in rows]).strip().startswith("개")
        assert "고" not in tokenizer.decode([ids[row] for row in rows])
        assert token_indices(tokenizer, prompt, Span("개", 0, 1), input_ids=ids) == rows


@pytest.mark.parametrize("words", ["dog", "teddy bear"])
def test_template_shifts_the_rows(tokenizer, words):
    whole = TEMPLATE.format(PROMPT)
    rows = token_indices(tokenizer, PROMPT, span_of(PROMPT, words), text=whole)
    ids = tokenizer(whole)["input_ids"]
    assert text_of(tokenizer, ids, rows) == bare(words)
    cleaned = TEMPLATE.format(PROMPT.upper().replace(" ", "  "))  # what a pipeline's cleaning might leave
    rows = token_indices(tokenizer, PROMPT, span_of(PROMPT, words), text=cleaned)
    assert text_of(tokenizer, tokenizer(cleaned)["input_ids"], rows) == bare(words)


def test_template_errors():
    tokenizer = qwen()
    dog = span_of(PROMPT, "dog")
    with pytest.raises(ValueError, match="not in the text that was tokenised"):
        token_indices(tokenizer, PROMPT, dog, text="a zebra crossing")
    with pytest.raises(ValueError, match="more than once"):
        token_indices(tokenizer, PROMPT, dog, text=PROMPT + PROMPT)


def test_given_ids_with_template_and_padding_on_the_left(tokenizers):
    for name in ("qwen", "llama", "gemma"):
        tokenizer = tokenizers[name]
        tokenizer.padding_side = "left"
        whole = TEMPLATE.format(PROMPT)
        ids = tokenizer(whole, padding="max_length", max_length=300, return_tensors="pt").input_ids[0]
        rows = token_indices(tokenizer, PROMPT, span_of(PROMPT, "teddy bear"), input_ids=ids)
        assert text_of(tokenizer, ids.tolist(), rows) == "teddybear"
        unpadded = token_indices(tokenizer, PROMPT, span_of(PROMPT, "teddy bear"), text=whole)
        assert rows == [row + 300 - len(tokenizer(whole)["input_ids"]) for row in unpadded]


def test_given_ids_agree_with_offsets(tokenizer):
    for words in ("dog", "teddy bear", "studio light"):
        span = span_of(PROMPT, words)
        ids = tokenizer(PROMPT)["input_ids"]
        assert token_indices(tokenizer, PROMPT, span, input_ids=ids) == token_indices(tokenizer, PROMPT, span)


def test_given_ids_of_another_prompt_or_cut_short(tokenizer):
    ids = tokenizer(PROMPT)["input_ids"]
    bear = span_of(PROMPT, "bear")
    row = token_indices(tokenizer, PROMPT, bear)[0]
    with pytest.raises(ValueError, match="shorten the prompt"):
        token_indices(tokenizer, PROMPT, bear, input_ids=ids[:row])
    dog = span_of(PROMPT, "dog")
    assert token_indices(tokenizer, PROMPT, dog, input_ids=ids[:row]) == token_indices(tokenizer, PROMPT, dog)
    with pytest.raises(ValueError, match="do not hold the prompt"):
        token_indices(tokenizer, PROMPT, bear, input_ids=tokenizer("zzz qqq")["input_ids"])


def test_given_ids_of_a_template_that_goes_on_behind_a_prompt_cut_short(tokenizer):
    cut = TEMPLATE.format(PROMPT[: PROMPT.index(" of a teddy")])
    ids = tokenizer(cut)["input_ids"]
    dog = token_indices(tokenizer, PROMPT, span_of(PROMPT, "dog"), input_ids=ids)
    assert text_of(tokenizer, ids, dog) == "dog"
    with pytest.raises(ValueError, match=f"beyond the {len(ids)} tokens .* shorten the prompt"):
        token_indices(tokenizer, PROMPT, span_of(PROMPT, "bear"), input_ids=ids)


def test_characters_unknown_to_the_tokenizer(tokenizers):
    tokenizer = tokenizers["t5"]  # the piece of the unknown letters reads <unk>
    prompt = "ŭŭ a photo of a dog to the left of a teddy bear"
    span = span_of(prompt, "teddy bear")
    rows = token_indices(tokenizer, prompt, span)
    ids = tokenizer(prompt)["input_ids"]
    assert text_of(tokenizer, ids, rows) == "teddybear"
    assert token_indices(tokenizer, prompt, span, input_ids=ids) == rows


def test_padding_as_the_pipeline_does(tokenizer):
    span = span_of(PROMPT, "dog")
    plain = token_indices(tokenizer, PROMPT, span)
    padded = token_indices(tokenizer, PROMPT, span, max_length=200)
    ids = tokenizer(PROMPT, padding="max_length", truncation=True, max_length=200)["input_ids"]
    assert len(ids) == 200 and text_of(tokenizer, ids, padded) == "dog"
    if tokenizer.padding_side == "right":
        assert padded == plain


def test_words_behind_the_limit_are_an_error(tokenizer):
    span = span_of(PROMPT, "studio light")
    last = token_indices(tokenizer, PROMPT, span)[-1]
    with pytest.raises(ValueError, match="beyond the .* tokens .* shorten the prompt"):
        token_indices(tokenizer, PROMPT, span, max_length=last)
    dog = span_of(PROMPT, "dog")
    limit = token_indices(tokenizer, PROMPT, dog)[-1] + 2
    rows = token_indices(tokenizer, PROMPT, dog, max_length=limit)
    ids = tokenizer(PROMPT, truncation=True, max_length=limit)["input_ids"]
    assert text_of(tokenizer, ids, rows) == "dog"


def test_clip_limit_of_77_needs_no_setting():
    prompt = "very " * 80 + "big dog left of a cat"
    with pytest.raises(ValueError, match="beyond the 77 tokens"):
        token_indices(clip(), prompt, span_of(prompt, "dog"))


def test_spans_of_another_text_and_bad_lengths_are_errors(tokenizers):
    tokenizer = tokenizers["t5"]
    with pytest.raises(ValueError, match="not part of the prompt"):
        token_indices(tokenizer, PROMPT, Span("cat", 0, 3))
    with pytest.raises(ValueError, match="not part of the prompt"):
        token_indices(tokenizer, PROMPT, Span(" ", 1, 2))
    with pytest.raises(ValueError, match="at least 1"):
        token_indices(tokenizer, PROMPT, span_of(PROMPT, "dog"), max_length=0)


# Rows of the text encoder inside the denoiser's text input


def rows(tokens, channels, seed=0):
    return torch.randn(tokens, channels, generator=torch.Generator().manual_seed(seed))


def test_match_identity_and_dtype():
    encoder = rows(20, 32)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        match = match_text_rows(encoder.to(dtype), encoder)
        assert (match.shift, match.columns, match.encoder_rows) == (0, slice(0, 32), tuple(range(20)))


def test_match_cropped_template():
    encoder = rows(50, 16)
    match = match_text_rows(encoder[34:], encoder)
    assert match.shift == -34 and match.text_rows([40, 41]) == [6, 7]
    with pytest.raises(ValueError, match="cuts them"):
        match.text_rows([12])


def test_match_when_a_long_template_is_cropped_and_padding_is_nearly_alike():
    encoder = rows(120, 64)
    encoder[60:] = rows(1, 64, 7) + 1e-3 * encoder[60:]
    match = match_text_rows(encoder[40:], encoder)
    assert match.shift == -40 and match.encoder_rows == tuple(range(40, 120))


def test_match_two_encoders_along_channels_and_tokens():
    first, second, third = rows(77, 24, 1), rows(77, 40, 2), rows(64, 80, 3)
    joined = torch.zeros(77 + 64, 80)
    joined[:77, :24], joined[:77, 24:64], joined[77:] = first, second, third
    assert match_text_rows(joined, first).columns == slice(0, 24)
    assert match_text_rows(joined, second).columns == slice(24, 64)
    match = match_text_rows(joined, third)
    assert match.shift == 77 and match.columns == slice(0, 80)
    assert match.text_rows([5]) == [82]


def test_match_with_padding_masked_to_zero_and_repeated_rows():
    encoder = rows(512, 64)
    encoder[9:] = rows(1, 64, 5)  # all padding alike
    text = encoder.clone()
    text[9:] = 0
    match = match_text_rows(text, encoder)
    assert match.shift == 0 and match.encoder_rows == tuple(range(9))
    assert match_text_rows(encoder, encoder).shift == 0


def test_match_valid_rows_moved_to_the_front():
    encoder = torch.cat([torch.zeros(30, 16), rows(10, 16)])
    text = torch.cat([encoder[30:], torch.zeros(6, 16)])
    assert match_text_rows(text, encoder).shift == -30


def brute_force_match(text, encoder):
    """Every placement, compared entry by entry: the one with the most equal rows."""
    best = (0, None)
    for column in range(text.shape[1] - encoder.shape[1] + 1):
        part = text[:, column : column + encoder.shape[1]]
        for shift in range(1 - len(encoder), len(text)):
            rows = [
                r
                for r in range(len(encoder))
                if 0 <= r + shift < len(text) and torch.equal(part[r + shift], encoder[r])
            ]
            best = max(best, (len(rows), (shift, column, tuple(rows))), key=lambda entry: entry[0])
    return best[1]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_match_agrees_with_brute_force(seed, dtype):
    """Few different values, so that single entries recur everywhere; some rows cropped, some replaced."""
    draw = torch.Generator().manual_seed(seed)
    encoder = torch.randint(-3, 4, (9, 7), generator=draw).to(dtype)
    column, shift = int(torch.randint(0, 4, (1,), generator=draw)), int(torch.randint(-3, 5, (1,), generator=draw))
    text = torch.randint(-3, 4, (12, 10), generator=draw).to(dtype)
    kept = [row for row in range(9) if 0 <= row + shift < 12 and row % 4]
    for row in kept:
        text[row + shift, column : column + 7] = encoder[row]
    match = match_text_rows(text, encoder)
    assert (match.shift, match.columns.start, match.encoder_rows) == brute_force_match(text, encoder)
    assert match.shift == shift and match.columns == slice(column, column + 7) and set(kept) <= set(match.encoder_rows)


def test_match_errors():
    encoder = rows(8, 16)
    with pytest.raises(ValueError, match="hidden layer"):
        match_text_rows(rows(8, 16, 9), encoder)
    with pytest.raises(ValueError, match="hidden layer"):
        match_text_rows(encoder, torch.zeros(8, 16))
    with pytest.raises(ValueError, match="more than one place"):
        match_text_rows(torch.cat([encoder, encoder]), encoder)
    with pytest.raises(ValueError, match="projected"):
        match_text_rows(encoder[:, :8], encoder)
    with pytest.raises(ValueError, match="expected .tokens, channels."):
        match_text_rows(encoder[None], encoder)
    with pytest.raises(ValueError, match="floating"):
        match_text_rows(encoder.long(), encoder)


def test_module_loads_without_torch():
    code = "import sys, attnsteer.steering.tokens; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
