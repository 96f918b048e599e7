"""CLIP's text tower: words become vectors, with which projected features of images are compared (arXiv 2103.00020).

The layout is open_clip's, which timm's repositories of CLIP have: open_clip_model.safetensors holds both towers and
their projections, open_clip_config.json the sizes, and tokenizer.json a tokenizer of the library ``tokenizers``.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from scan_core.errors import ScanError
from scan_core.models.files import load_strictly
from scan_core.weights.words import vocabulary

PROMPTS = ("a photo of a {}.", "a close-up photo of a {}.", "a picture of the {}.")  # after CLIP's; chosen without data
BATCH = 64  # texts
MODEL_KEYS = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers"}
OTHERS = ("visual.", "logit_scale")  # tensors in a file that are not the text tower's


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a text tower."""

    embed_dim: int  # D
    width: int
    heads: int
    layers: int
    context_length: int  # tokens
    vocab_size: int
    quick_gelu: bool  # OpenAI's approximation


class Block(nn.Module):
    """Attention and MLP, each after its LayerNorm."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.attn = nn.MultiheadAttention(sizes.width, sizes.heads, batch_first=True)
        layers = {"c_fc": nn.Linear(sizes.width, 4 * sizes.width), "c_proj": nn.Linear(4 * sizes.width, sizes.width)}
        self.mlp = nn.ModuleDict(layers)
        self.quick_gelu = sizes.quick_gelu

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B,T,width) to the same; ``mask`` (T,T) is true where a token must not look."""
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, attn_mask=mask, need_weights=False)[0]
        hidden = self.mlp["c_fc"](self.ln_2(x))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick_gelu else F.gelu(hidden)
        return x + cast(Tensor, self.mlp["c_proj"](hidden))


class TextTower(nn.Module):
    """CLIP's transformer, under open_clip's keys. A text is what its last token has seen."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.token_embedding = nn.Embedding(sizes.vocab_size, sizes.width)
        self.positional_embedding = nn.Parameter(torch.zeros(sizes.context_length, sizes.width))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block(sizes) for _ in range(sizes.layers))})
        self.ln_final = nn.LayerNorm(sizes.width)
        self.text_projection = nn.Parameter(torch.zeros(sizes.width, sizes.embed_dim))

    def forward(self, tokens: Tensor, last: Tensor) -> Tensor:
        """Tokens (B,T), and the place (B,) of each text's last, to (B,D). What comes after the last does not count."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]  # (B,T,width)
        mask = torch.ones(2 * tokens.shape[1:], dtype=torch.bool).triu(1)
        for block in cast(nn.ModuleList, self.transformer["resblocks"]):
            x = block(x, mask)
        return cast(Tensor, self.ln_final(x[torch.arange(len(x)), last]) @ self.text_projection)


@dataclass(frozen=True)
class Text:
    """What turns words, and features of images, into vectors of the same space."""

    tower: TextTower
    projection: Tensor  # (F,D), of the image tower's features
    tokenizer: str  # tokenizer.json
    words: Tensor  # (V,D), of the vocabulary


def read_sizes(config: bytes) -> Sizes | None:
    """The sizes in open_clip_config.json; None of a tower of another design, such as SigLIP's."""
    try:
        model = json.loads(config)["model_cfg"]
        text = model["text_cfg"]
        if not (model.keys() <= MODEL_KEYS and text.keys() == TEXT_KEYS):
            return None
        numbers = {key: int(value) for key, value in text.items()}
        return Sizes(embed_dim=int(model["embed_dim"]), quick_gelu=bool(model.get("quick_gelu")), **numbers)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def read_text(checkpoint: Path, sizes: Sizes, tokenizer: str) -> Text:
    """The text tower in a file of open_clip, and what it makes of the vocabulary.

    Raises ``ScanError`` if it is not of these sizes, and as ``encode_words`` does.
    """
    with safe_open(checkpoint, framework="pt") as file:
        names = [name for name in file.keys() if not name.startswith(OTHERS)]  # noqa: SIM118 (no mapping)
        tensors = {name: file.get_tensor(name).float() for name in names}
        projection = file.get_tensor("visual.proj").float()
    tower = TextTower(sizes)
    load_strictly(tower, tensors, checkpoint, "its text tower is not that of its open_clip_config.json")
    if projection.shape[1] != sizes.embed_dim:
        raise ScanError(f"{checkpoint} projects images to {projection.shape[1]} numbers, texts to {sizes.embed_dim}")
    return Text(tower, projection, tokenizer, encode_words(tower, tokenizer, vocabulary()))


@torch.no_grad()
def encode_words(tower: TextTower, tokenizer: str, words: Sequence[str]) -> Tensor:
    """(V,D) of length 1: for each word the mean of its vectors in ``PROMPTS``.

    Raises ``ScanError`` if the tokenizer cannot be read, or has more tokens than the tower.
    """
    encoded = _tokens(tower.sizes, tokenizer, [prompt.format(word) for prompt in PROMPTS for word in words])
    vectors = torch.empty(len(encoded), tower.sizes.embed_dim)
    order = sorted(range(len(encoded)), key=lambda each: len(encoded[each]))  # of about one length in a batch
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        rows = [encoded[each] for each in batch]
        last = torch.tensor([len(row) - 1 for row in rows])
        vectors[batch] = F.normalize(tower(pad_sequence(rows, batch_first=True), last), dim=1)
    return F.normalize(vectors.view(len(PROMPTS), len(words), -1).mean(dim=0), dim=1)


def _tokens(sizes: Sizes, content: str, texts: list[str]) -> list[Tensor]:
    """The tokens of each text, with those of its start and end."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content)
        tokenizer.no_padding()
        tokenizer.enable_truncation(sizes.context_length)
        encoded = [torch.tensor(each.ids) for each in tokenizer.encode_batch(texts)]
    except Exception as error:  # noqa: BLE001 (the library raises Exception itself)
        what = " ".join(str(error).split())[:150]
        raise ScanError(f"tokenizer.json of the weights is not read by tokenizers ({what}); get them again") from None
    # OpenAI's encoder finds the end as the largest token; a tokenizer of another model would end elsewhere.
    ends = {int(row[-1]) if len(row) else None for row in encoded}
    if ends != {sizes.vocab_size - 1} or any(row.max() > row[-1] for row in encoded):
        raise ScanError(
            f"tokenizer.json of the weights does not end texts in token {sizes.vocab_size - 1}, the last of its "
            f"text tower: it is of another model; get them again"
        )
    return encoded


def text_file(weights: Path) -> Path:
    """Where the text tower of a file of weights is."""
    return weights.with_name(f"{weights.stem}.text.safetensors")


def save_text(weights: Path, text: Text) -> None:
    """Writes the text tower beside the file of its image tower, with the vectors of the vocabulary."""
    with weights.open("rb") as file:
        image = hashlib.file_digest(file, "sha256").hexdigest()
    tensors = {f"tower.{name}": value for name, value in text.tower.state_dict().items()}
    tensors |= {"projection": text.projection, "words": text.words}
    description = {
        "image": image,
        "features": len(text.projection),
        "sizes": asdict(text.tower.sizes),
        "tokenizer": text.tokenizer,
        "words": _words_key(),
    }
    unfinished = text_file(weights).with_name(f".{text_file(weights).name}.{os.getpid()}")
    try:
        whole = {name: value.contiguous() for name, value in tensors.items()}
        save_file(whole, unfinished, metadata={"text": json.dumps(description, sort_keys=True)})
        os.replace(unfinished, text_file(weights))
    finally:
        unfinished.unlink(missing_ok=True)


def text_towers(folder: Path) -> dict[str, tuple[int, Path]]:
    """SHA-256 of weights → F and the file of their text tower, of the files of ``save_text`` that can be read."""
    found = {}
    for path in sorted(folder.glob("*.text.safetensors")):
        with suppress(ScanError):
            description, _ = _read(path, ())
            found[description["image"]] = (int(description["features"]), path)
    return found


def load_words(path: Path) -> tuple[Tensor, Tensor]:
    """The projection (F,D) of features and the vectors (V,D) of the vocabulary, in a file of ``save_text``.

    They are computed again if it was written with another vocabulary. Raises ``ScanError`` if it is no such file.
    """
    description, tensors = _read(path, ("projection", "words"))
    if description["words"] == _words_key():
        return tensors["projection"], tensors["words"]
    _, whole = _read(path, None)
    tower = TextTower(Sizes(**description["sizes"]))
    tower.load_state_dict({name: whole[f"tower.{name}"] for name in tower.state_dict()})
    return tensors["projection"], encode_words(tower, description["tokenizer"], vocabulary())


def _read(path: Path, names: Sequence[str] | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and some of the tensors, or all."""
    try:
        with safe_open(path, framework="pt") as file:
            description = json.loads((file.metadata() or {})["text"])
            return description, {name: file.get_tensor(name) for name in names or file.keys()} if names != () else {}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        what = " ".join(str(error).split())
        raise ScanError(f"{path} is not a text tower ({what}); use scan weights get again") from None


def _words_key() -> str:
    return hashlib.sha256(json.dumps([PROMPTS, vocabulary()]).encode()).hexdigest()
