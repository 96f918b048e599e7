"""CLIP's text tower computes what open_clip's does, and turns words into vectors one by one or in batches alike.

``open_clip_text.npz`` has random weights of a tiny text tower under open_clip 3.3's keys, tokens of four texts, each of
which ends in the largest, and what ``encode_text`` gives for them, with OpenAI's activation and with the exact one.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scan_core.errors import ScanError
from scan_core.weights import text
from scan_core.weights.text import PROMPTS, Sizes, Text, TextTower, encode_words, load_words, read_sizes
from scan_core.weights.words import vocabulary
from tests.hub import TEXT, tokenizer_json

SIZES = Sizes(embed_dim=8, quick_gelu=True, **TEXT)


def reference(quick_gelu):
    """open_clip's weights in our tower, tokens, the places of their last, and open_clip's output."""
    with np.load(Path(__file__).with_name("open_clip_text.npz")) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    tokens, quick, exact = (arrays.pop(key) for key in ("tokens", "quick_gelu", "gelu"))
    sizes = Sizes(embed_dim=6, width=8, heads=2, layers=2, context_length=10, vocab_size=40, quick_gelu=quick_gelu)
    tower = TextTower(sizes)
    tower.load_state_dict(arrays)
    return tower, tokens, tokens.argmax(dim=1), quick if quick_gelu else exact


@pytest.mark.parametrize("quick_gelu", [True, False])
@torch.no_grad()
def test_the_tower_is_open_clips(quick_gelu):
    tower, tokens, last, expected = reference(quick_gelu)
    torch.testing.assert_close(tower(tokens, last), expected)
    longest = int(last[:2].max()) + 1
    torch.testing.assert_close(tower(tokens[:2, :longest], last[:2]), expected[:2])


def test_random_weights_again_if_open_clip_is_installed():
    open_clip = pytest.importorskip("open_clip")
    vision = {"layers": 1, "width": 8, "patch_size": 8, "image_size": 16, "head_width": 4}
    torch.manual_seed(3)
    whole = open_clip.model.CLIP(8, vision, TEXT, quick_gelu=True).eval()
    tower = TextTower(SIZES)
    state = {key: torch.randn(value.shape) for key, value in tower.state_dict().items()}
    tower.load_state_dict(state)
    assert set(whole.load_state_dict(state, strict=False).unexpected_keys) == set()
    tokens = torch.randint(1, 190, (5, 20))
    tokens[torch.arange(5), torch.tensor([3, 19, 7, 1, 4])] = 192
    with torch.no_grad():
        torch.testing.assert_close(tower(tokens, tokens.argmax(dim=1)), whole.encode_text(tokens))


def test_words_are_the_mean_over_prompts_whatever_batch_they_are_in(monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    tower = TextTower(SIZES)
    tower.load_state_dict({key: torch.randn(value.shape) for key, value in tower.state_dict().items()})
    words = ["dog", "a long word", "do"]
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json().decode())
    assert tokenizer.encode("do DOG").ids == [191, *tokenizer.encode("do").ids[1:-1], 189, 192], "189 is dog"
    expected = []
    for word in words:
        rows = [torch.tensor(tokenizer.encode(prompt.format(word)).ids) for prompt in PROMPTS]
        rows = [torch.cat([row[:19], row[-1:]]) if len(row) > 20 else row for row in rows]  # as CLIP truncates
        with torch.no_grad():
            vectors = [F.normalize(tower(row[None], torch.tensor([len(row) - 1])), dim=1) for row in rows]
        expected.append(F.normalize(torch.cat(vectors).mean(dim=0), dim=0))
    for batch in (1, 2, 64):
        monkeypatch.setattr(text, "BATCH", batch)
        found = encode_words(tower, tokenizer_json().decode(), words)
        torch.testing.assert_close(found, torch.stack(expected))


def test_sizes_of_clip_are_read_and_those_of_other_towers_are_not():
    openai = {"embed_dim": 512, "quick_gelu": True, "vision_cfg": {"layers": 12}, "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12,
    }}  # fmt: skip
    found = read_sizes(json.dumps({"model_cfg": openai, "preprocess_cfg": {}}).encode())
    assert found == Sizes(
        embed_dim=512, quick_gelu=True, context_length=77, vocab_size=49408, width=512, heads=8, layers=12
    )
    exact = {key: value for key, value in openai.items() if key != "quick_gelu"}
    assert read_sizes(json.dumps({"model_cfg": exact}).encode()).quick_gelu is False
    siglip = openai | {"custom_text": True, "init_logit_bias": -10}
    bert = openai | {"text_cfg": {"hf_model_name": "roberta-base"}}
    pooled = openai | {"text_cfg": openai["text_cfg"] | {"no_causal_mask": True, "pool_type": "last"}}
    for other in (siglip, bert, pooled, openai | {"embed_dim": "wide"}, [], None):
        assert read_sizes(json.dumps({"model_cfg": other}).encode()) is None
    assert read_sizes(b"{") is None and read_sizes(b"[]") is None


def test_words_are_computed_again_if_the_vocabulary_has_changed(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers")
    weights = tmp_path / "a.safetensors"
    weights.write_bytes(b"weights")
    words = torch.ones(len(vocabulary()), 8)
    text.save_text(weights, Text(TextTower(SIZES), torch.eye(4, 8), tokenizer_json().decode(), words))
    assert torch.equal(load_words(text.text_file(weights))[1], words)
    monkeypatch.setattr(text, "vocabulary", lambda: ("dog", "cat"))
    projection, found = load_words(text.text_file(weights))
    assert found.shape == (2, 8) and torch.equal(projection, torch.eye(4, 8))


def test_files_of_text_towers_are_found_by_the_weights_they_belong_to(tmp_path):
    assert text.text_towers(tmp_path) == {}
    weights = tmp_path / "a.safetensors"
    weights.write_bytes(b"weights")
    text.save_text(weights, Text(TextTower(SIZES), torch.eye(4, 8), "", torch.ones(2, 8)))
    (tmp_path / "b.text.safetensors").write_bytes(b"damaged")
    ((features, path),) = text.text_towers(tmp_path).values()
    assert (features, path.name) == (4, "a.text.safetensors")
    with pytest.raises(ScanError, match=r"b\.text\.safetensors is not a text tower .*get again"):
        load_words(tmp_path / "b.text.safetensors")
