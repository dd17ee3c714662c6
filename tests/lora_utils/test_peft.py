"""Test PEFT's own ways to store an adapter's scale."""

from __future__ import annotations

import json
import time

import pytest

from lora_utils.peft import first_unread, means

NAME = "transformer_blocks.0.attn.to_q"


@pytest.mark.parametrize(
    "pattern",
    [
        "to_q",
        NAME,
        f"^{NAME}",
        NAME.replace(".", r"\."),
        "transformer_blocks.0.*",
        r"attn\.to_[qk]",
        r"transformer_blocks\.\d\.attn\.to_q",
        "(single_)?transformer_blocks.0.attn.to_q",
        r"(.*\.)?attn\.to_q",
    ],
)
def test_a_pattern_is_a_regular_expression(pattern):
    """A pattern of alphas is a regular expression. Only plain ends of names were understood, and some layers acted several
    times too strongly."""
    assert means(pattern, NAME)


@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.transformer.", "diffusion_model.", "_orig_mod."])
def test_a_pattern_is_for_the_modules_own_name(prefix):
    """A pattern is matched with the module's own name; with the file's prefix before it, one that begins with ^ never
    matched."""
    assert means(f"^{NAME}", prefix + NAME) and not means("^attn.to_q", prefix + NAME)


@pytest.mark.parametrize("pattern", ["transformer_blocks.(0|1)+.attn.to_q", "(", "x?" + "x" * 200, ".*.*.*.*to_q"])
def test_a_pattern_that_is_not_read_is_told(pattern):
    """A pattern that cannot be read is found and told; its layers acted with another strength without a word."""
    metadata = {"lora_adapter_metadata": json.dumps({"lora_alpha": 8, "alpha_pattern": {"to_q": 1, pattern: 2}})}
    assert first_unread(metadata) == pattern and first_unread({}) is None


@pytest.mark.parametrize("pattern", ["o_q", "to_k", "transformer_blocks.1.*", "attn", "(", "to_q$x"])
def test_other_layers_are_not_meant(pattern):
    assert not means(pattern, NAME)


@pytest.mark.parametrize("pattern", ["(.+)+!", "(a|.)*" * 5, ".*" * 50 + "!", "x" * 1000, "(.*){9}!"])
def test_no_file_can_have_us_search_for_ever(pattern):
    began = time.perf_counter()
    assert not means(pattern, NAME)
    assert time.perf_counter() - began < 1
