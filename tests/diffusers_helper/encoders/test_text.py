"""Test the encoding of prompts against the unchanged language model with all its layers and padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextModel, LlamaModel, PreTrainedTokenizerFast

from diffusers_helper.encoders.text import (
    TEMPLATE,
    TextEncoders,
    encode_prompt,
    load_tokenizer,
    load_tokenizer_2,
    template_tokens,
    without_unused_layers,
)

CROP, LENGTH = 95, 351
PROMPT = "The girl dances gracefully, with clear movements, full of charm."


@pytest.fixture(scope="module")
def encoders(checkpoint: Path) -> TextEncoders:
    """Load the encoders as the model pool does."""
    tokenizer, tokenizer_2 = load_tokenizer(checkpoint / "tokenizer"), load_tokenizer_2(checkpoint / "tokenizer_2")
    llama = LlamaModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32)
    clip = CLIPTextModel.from_pretrained(checkpoint / "text_encoder_2", dtype=torch.float32)
    return TextEncoders(tokenizer, without_unused_layers(llama).eval(), tokenizer_2, clip.eval())


@pytest.fixture(scope="module")
def untouched(checkpoint: Path) -> LlamaModel:
    return LlamaModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32).eval()


@torch.inference_mode()
def original(tokenizer, llama: LlamaModel, prompt: str) -> torch.Tensor:
    """Encode as the original: pad to 351, run all layers, take the third last hidden state, cut template and padding off."""
    batch = tokenizer(
        TEMPLATE.replace("{}", prompt), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    hidden = llama(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True).hidden_states[-3]
    return hidden[:, CROP : int(batch.attention_mask.sum())]


def test_the_template_is_the_models_own():
    """The template is the model's own, with no space after some periods, as in the training data: "correcting" it changes
    every film."""
    assert TEMPLATE.count("{}") == 1
    assert TEMPLATE == (
        "<|start_header_id|>system<|end_header_id|>\n\nDescribe the video by detailing the following aspects: 1. The main "
        "content and theme of the video.2. The color, shape, size, texture, quantity, text, and spatial relationships of the "
        "objects.3. Actions, events, behaviors temporal relationships, physical movement changes of the objects.4. background "
        "environment, light, style and atmosphere.5. camera angles, movements, and transitions used in the "
        "video:<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    )


def test_the_template_is_95_tokens(encoders):
    """The template has 95 tokens with the begin-of-text that the tokenizer adds."""
    ids = encoders.tokenizer(TEMPLATE.split("{}")[0]).input_ids
    assert template_tokens(encoders.tokenizer) == len(ids) == CROP
    assert encoders.tokenizer.convert_ids_to_tokens(ids[0]) == "<|begin_of_text|>"


@pytest.mark.parametrize("text", [PROMPT, "a  b\n\nc", "Été 2024: 日本語 🙂 don't", "<|eot_id|> in it", " leading"])
def test_the_tokenizer_is_the_files_own(encoders, checkpoint, text):
    """transformers 5's LlamaTokenizerFast replaced the file's byte-level splitting and made other tokens in silence."""
    plain = Tokenizer.from_file(str(checkpoint / "tokenizer" / "tokenizer.json"))
    assert encoders.tokenizer(text).input_ids == plain.encode(text).ids


def other_tokenizer(folder: Path, splitting) -> Path:
    """Write a tokenizer that has all that a Llama needs but splits text in another way."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitting
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|eot_id|>", "<pad>"], show_progress=False)
    tokenizer.train_from_iterator([PROMPT], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "splitting",
    [pre_tokenizers.Metaspace(), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    ids=["metaspace", "other vocabulary"],
)
def test_a_tokenizer_that_counts_otherwise_is_refused(checkpoint, tmp_path, splitting):
    """A tokenizer with another template length is refused: the crop would cut into the prompt or keep the template, without
    an error."""
    folder = other_tokenizer(tmp_path, splitting)
    count = template_tokens(PreTrainedTokenizerFast.from_pretrained(folder))
    assert count != CROP
    with pytest.raises(ValueError, match=f"template is {count} tokens instead of 95"):
        load_tokenizer(folder)


@pytest.mark.parametrize("prompt", [PROMPT, "", "x", "{}", PROMPT * 4, PROMPT * 40], ids=lambda p: f"{len(p)} letters")
def test_tokens_equal_the_padded_run_of_the_whole_model(encoders, untouched, prompt):
    """Tokens without padding, the last two layers and the final norm equal those of the padded whole model, with less time
    and memory."""
    expected = original(encoders.tokenizer, untouched, prompt)
    tokens = encode_prompt(encoders, prompt).tokens
    assert tokens.shape == expected.shape
    assert (tokens - expected).abs().max() <= 2e-6 * max(1.0, expected.abs().max().item())


def test_the_last_two_layers_are_gone(encoders, untouched):
    """The last two layers are removed: at full size each has half a gigabyte of weights."""
    assert len(encoders.llama.layers) == len(untouched.layers) - 2
    assert encoders.llama.config.num_hidden_layers == len(encoders.llama.layers)


def test_an_empty_prompt_is_one_token(encoders):
    """An empty prompt is encoded as its end mark; without any token the transformer would have no text at all."""
    embedding = encode_prompt(encoders, "")
    assert embedding.tokens.shape[:2] == (1, 1) and (embedding.read, embedding.written) == (0, 0)


def test_a_prompt_has_its_tokens_and_an_end_mark(encoders):
    count = len(encoders.tokenizer(PROMPT, add_special_tokens=False).input_ids)
    embedding = encode_prompt(encoders, PROMPT)
    assert embedding.tokens.shape[1] == count + 1 and embedding.read == embedding.written == count


def numbered(encoders, count: int) -> str:
    """Return a prompt of `count` tokens."""
    prompt = "x" + " 1" * 400
    ids = encoders.tokenizer(prompt, add_special_tokens=False).input_ids[:count]
    return encoders.tokenizer.decode(ids)


@pytest.mark.parametrize(("count", "read", "tokens"), [(255, 255, 256), (256, 256, 256), (257, 256, 256), (380, 256, 256)])
def test_a_prompt_too_long_is_cut_and_says_so(encoders, count, read, tokens):
    """The original cut in silence; the page now tells how much was read."""
    embedding = encode_prompt(encoders, numbered(encoders, count))
    assert (embedding.written, embedding.read, embedding.tokens.shape[1]) == (count, read, tokens)
    assert (embedding.read < embedding.written) == (count > 256)


def test_what_is_cut_off_has_no_effect(encoders):
    one, other = (encode_prompt(encoders, numbered(encoders, 256) + rest) for rest in (" and more", " or less of it"))
    assert torch.equal(one.tokens, other.tokens)


@pytest.mark.parametrize("prompt", ["{}", "{0}", "a {girl} dances {}", "100 %s {", "}{"])
def test_braces_are_letters(encoders, prompt):
    """Braces in a prompt are plain letters: what looks like a placeholder is not filled."""
    ids = encoders.tokenizer(prompt, add_special_tokens=False).input_ids
    assert encode_prompt(encoders, prompt).written == len(ids)


def test_other_prompts_are_other_embeddings(encoders):
    one, other = encode_prompt(encoders, "a cat"), encode_prompt(encoders, "a dog")
    assert not torch.equal(one.tokens[:, : other.tokens.shape[1]], other.tokens[:, : one.tokens.shape[1]])
    assert not torch.equal(one.pooled, other.pooled)


@pytest.mark.parametrize("prompt", [PROMPT, "", PROMPT * 20], ids=["short", "empty", "over 77 tokens"])
@torch.inference_mode()
def test_the_pooled_vector_is_clips_at_the_first_end_mark(encoders, prompt):
    """The pooled vector is CLIP's at the first end mark of the raw prompt without the template, cut to 77 tokens."""
    tokenizer = encoders.tokenizer_2
    ids = tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    end = ids[0].tolist().index(tokenizer.eos_token_id)
    out = encoders.clip(ids)
    pooled = encode_prompt(encoders, prompt).pooled
    assert pooled.shape == (1, encoders.clip.config.hidden_size)
    assert torch.equal(pooled, out.pooler_output)
    assert torch.equal(pooled, out.last_hidden_state[:, end])


def test_embeddings_are_float32_on_the_cpu(encoders):
    """Embeddings are float32 on the CPU, because they outlive the encoders, which go back to the pool."""
    embedding = encode_prompt(encoders, PROMPT)
    for tensor in (embedding.tokens, embedding.pooled):
        assert tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.isfinite().all()
