"""Published checkpoints: files in the form their authors gave them become backbones that compute the same."""

import argparse
import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scan_core.import_weights import (
    KINDS,
    _dino_name,
    _resnet_name,
    _wanted_images,
    _without_classifier,
    import_checkpoint,
    map_keys,
    read_checkpoint,
)
from scan_core.models.files import load_backbone, save_backbone
from scan_core.models.networks import build_backbone
from tests.tiny import backbone_settings, change, refused


def randomised(network, seed=0):
    """The network with every weight and buffer drawn anew, so that no two tensors are alike, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            drawn = torch.rand(value.shape, generator=generator)
            scale = 0.1 if value.dim() > 1 else 0.5
            value.copy_(drawn + 0.5 if name.endswith(("running_var", "gamma")) else scale * (drawn - 0.5))
    return network.eval()


def resnet(name="resnet18", seed=0):
    return randomised(getattr(torchvision.models, name)(), seed)


def features_of(network, images):
    """(B,D) of a torchvision ResNet, by its own layers."""
    with torch.no_grad():
        head, network.fc = network.fc, torch.nn.Identity()
        features = network(images)
        network.fc = head
    return features


def photos(side=64, count=2):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def without_counters(state):
    """As torchvision's files are, which come from before BatchNorm counted batches."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def moco(network, wrapper="module.", v1=False):
    """What MoCo's script saves: encoders for queries and keys, each with a projector for its fc, and the queue."""
    state = {}
    width = network.fc.in_features
    for number, encoder in enumerate(("encoder_q", "encoder_k")):
        for key, value in network.state_dict().items():
            if not key.startswith("fc."):
                state[f"{wrapper}{encoder}.{key}"] = value + number if value.is_floating_point() else value
        layers = {"fc": (128, width)} if v1 else {"fc.0": (width, width), "fc.2": (128, width)}
        for layer, shape in layers.items():
            state[f"{wrapper}{encoder}.{layer}.weight"] = torch.zeros(shape)
            state[f"{wrapper}{encoder}.{layer}.bias"] = torch.zeros(shape[0])
    state[f"{wrapper}queue"] = torch.zeros(128, 64)
    state[f"{wrapper}queue_ptr"] = torch.zeros(1, dtype=torch.int64)
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.03, "params": [0]}]}
    return {"epoch": 800, "arch": "resnet50", "state_dict": state, "optimizer": optimizer}


def assert_imported(found, wanted, images, tmp_path):
    """The import, written, and read into the network that a stage builds, gives the features ``wanted``."""
    path = tmp_path / "weights.safetensors"
    save_backbone(path, found.tensors, found.origin)
    torch.manual_seed(5)
    network = build_backbone(change(found.backbone, weights=str(path)), 3)
    load_backbone(network, path)
    with torch.no_grad():
        features = network.eval()(images)
    torch.testing.assert_close(features, wanted, rtol=1e-4, atol=1e-5)
    assert features.std() > 1e-4, "features that are all the same would prove nothing"


# --- MoCo


@pytest.mark.parametrize(
    ("name", "wrapper", "v1", "legacy"),
    [("resnet50", "module.", False, True), ("resnet18", "", True, False)],  # the published, which are of 2020; v1
)
def test_moco_gives_the_query_encoder(tmp_path, name, wrapper, v1, legacy):
    source = resnet(name)
    path = tmp_path / "moco_v2_800ep_pretrain.pth.tar"
    saved(path, moco(source, wrapper, v1), _use_new_zipfile_serialization=not legacy)
    found = import_checkpoint(path, "moco_v2")
    assert (found.backbone.name, found.backbone.stem, found.backbone.weights) == (name, "imagenet", None)
    taken, projector = (318, 4) if name == "resnet50" else (120, 2)
    assert found.left_out == {"projector": projector, "momentum encoder": taken + projector, "queue": 2}
    assert len(found.tensors) == taken
    assert (found.size, found.view) == (256, 224)
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert_imported(found, features_of(source, photos(32)), photos(32), tmp_path)


# --- torchvision


@pytest.mark.parametrize("around", ["plain", "model", "state_dict", "safetensors"])
def test_torchvision(tmp_path, around):
    """Its own files, those of its training script, and those of PyTorch's ImageNet example."""
    source = resnet(seed=1)
    state = source.state_dict()
    path = tmp_path / "resnet18-f37072fd.pth"
    if around == "plain":
        saved(path, without_counters(state), _use_new_zipfile_serialization=False)
    elif around == "model":
        saved(path, {"model": dict(state), "epoch": 3, "args": argparse.Namespace(lr=0.1)})
    elif around == "state_dict":
        saved(path, {"state_dict": {f"module.{key}": value for key, value in state.items()}, "arch": "resnet18"})
    else:
        path = path.with_suffix(".safetensors")
        save_file({key: value.clone() for key, value in state.items()}, path)
    found = import_checkpoint(path, "torchvision")
    assert found.left_out == {"classifier": 2}
    assert found.tensors.keys() == {key for key in state if not key.startswith("fc.")}
    assert all(torch.equal(value, state[key]) for key, value in found.tensors.items())
    if around == "plain":
        assert_imported(found, features_of(source, photos(32)), photos(32), tmp_path)


def test_torchvisions_resnet34_is_told_from_18(tmp_path):
    with torch.device("meta"):
        state = torchvision.models.resnet34().state_dict()
    assert _resnet_name(state, tmp_path) == "resnet34"


@pytest.mark.parametrize("stem", ["small", "stl"])
def test_a_stem_that_the_tensors_do_not_tell_must_be_given(tmp_path, stem):
    network = resnet()
    network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    if stem == "small":
        network.maxpool = torch.nn.Identity()
    path = saved(tmp_path / "a.pth", network.state_dict())
    refused(lambda: import_checkpoint(path, "torchvision"), path, "--stem stl or --stem small")
    found = import_checkpoint(path, "torchvision", stem=stem)
    assert_imported(found, features_of(network, photos(16)), photos(16), tmp_path)
    refused(lambda: import_checkpoint(path, "torchvision", stem="imagenet"), "conv1.weight is (64, 3, 3, 3)")


def test_half_precision_becomes_single(tmp_path):
    source = resnet()
    found = import_checkpoint(saved(tmp_path / "a.pth", source.half().state_dict()), "torchvision")
    assert {value.dtype for value in found.tensors.values()} == {torch.float32, torch.int64}
    assert all(
        torch.equal(value, found.tensors[key]) for key, value in source.float().state_dict().items() if "fc" not in key
    )


# --- timm


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_resnet", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("around", ["safetensors", "model_ema"])
def test_timm(tmp_path, name, around):
    source = randomised(timm.create_model(name, num_classes=7))
    path = tmp_path / "model.safetensors"
    if around == "safetensors":
        save_file(source.state_dict(), path)
    else:  # its training script's, of which the average counts
        other = {key: torch.zeros_like(value) for key, value in source.state_dict().items()}
        path = saved(tmp_path / "model_best.pth.tar", {"state_dict": other, "state_dict_ema": source.state_dict()})
    found = import_checkpoint(path, "timm", model=name)
    assert found.left_out == {"classifier": 2}
    size = source.pretrained_cfg["input_size"][-1]
    images = photos(size if "vit" in name else 64)
    with torch.no_grad():
        wanted = source.forward_head(source.forward_features(images), pre_logits=True)
    assert_imported(found, wanted, images, tmp_path)
    assert (found.view, found.mean) == (size, tuple(source.pretrained_cfg["mean"]))


def test_clip_wants_its_own_normalisation_and_leaves_its_projection_out():
    settings = backbone_settings(name="timm", width=64, model="vit_base_patch32_clip_224.openai")
    with torch.device("meta"):
        whole, network = timm.create_model(settings.model), timm.create_model(settings.model, num_classes=0)
    size, view, mean, std, notes = _wanted_images(network, settings)
    assert (size, view, mean[0], std[0]) == (249, 224, 0.48145466, 0.26862954)
    assert "QuickGELU" in notes[0], "what timm says of these weights"
    taken, left_out = _without_classifier(whole.state_dict(), network)
    assert taken.keys() == network.state_dict().keys() and left_out == {"classifier": 2}


def test_a_name_without_a_tag_is_noted(tmp_path):
    path = saved(tmp_path / "a.pth", timm.create_model("vit_tiny_patch16_224").state_dict())
    (note,) = import_checkpoint(path, "timm", model="vit_tiny_patch16_224").notes
    assert "vit_tiny_patch16_224.augreg" in note


def test_the_classifier_of_a_distilled_network_has_two_parts(tmp_path):
    path = saved(tmp_path / "a.pth", timm.create_model("deit_tiny_distilled_patch16_224").state_dict())
    assert import_checkpoint(path, "timm", model="deit_tiny_distilled_patch16_224").left_out == {"classifier": 4}


# --- DINO


def official(network, second):
    """A timm transformer's weights under the names of DINO's repositories: with registers as published, or without."""
    state = dict(network.state_dict())
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        token = torch.full_like(state["cls_token"], 0.25)  # any split of the sum between token and position will do
        state["pos_embed"] = torch.cat([state["cls_token"] - token, state["pos_embed"]], dim=1)
        state["cls_token"] = token
    return state | ({"mask_token": torch.zeros(1, network.embed_dim)} if second else {})


def test_dinov2_with_registers(tmp_path):
    """The class token's position goes into the token, and registers have none."""
    name = "vit_small_patch14_reg4_dinov2.lvd142m"
    source = randomised(timm.create_model(name, num_classes=0, dynamic_img_size=True))
    state = official(source, second=True)
    assert state["pos_embed"].shape == (1, 1370, 384) and state["register_tokens"].shape == (1, 4, 384), "as published"
    found = import_checkpoint(saved(tmp_path / "a.pth", state), "dino")
    assert found.backbone.model == name and found.left_out == {"mask token": 1}
    assert (found.size, found.view, found.mean) == (256, 224, (0.485, 0.456, 0.406))
    with torch.no_grad():
        assert_imported(found, source(photos(28)), photos(28), tmp_path)


@pytest.mark.parametrize(
    "name",
    ["vit_small_patch8_224.dino", "vit_base_patch16_224.dino", "vit_small_patch14_dinov2.lvd142m"]
    + [f"vit_{size}_patch14{reg}_dinov2.lvd142m" for size in ("base", "large", "giant") for reg in ("", "_reg4")],
)
def test_names_keys_and_shapes_of_the_others(name):
    """On no memory: a published file's, mapped, are exactly those of timm's network, and they tell which it is."""
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
    state = official(network, second="dinov2" in name)
    if "giant" in name:
        state = {
            key.replace("mlp.fc1.", "mlp.w12.").replace("mlp.fc2.", "mlp.w3."): value for key, value in state.items()
        }
        assert "blocks.39.mlp.w12.weight" in state
    assert state["pos_embed"].shape[1] == {8: 785, 16: 197, 14: 1370}[network.patch_embed.patch_size[0]]
    taken, left_out = map_keys(state, "dino")
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    assert {key: value.shape for key, value in taken.items()} == wanted
    assert left_out == ({"mask token": 1} if "dinov2" in name else {})
    assert _dino_name(taken, Path("a.pth")) == name


def test_a_whole_dino_checkpoint_gives_the_teacher(tmp_path):
    name = "vit_small_patch16_224.dino"
    source = randomised(timm.create_model(name, num_classes=0, dynamic_img_size=True))
    head = {"head.mlp.0.weight": torch.zeros(2, 384), "head.last_layer.weight_g": torch.ones(2, 1)}
    teacher = {f"backbone.{key}": value for key, value in source.state_dict().items()} | head
    student = {f"module.{key}": torch.zeros_like(value) for key, value in teacher.items()}
    whole = {"student": student, "teacher": teacher, "epoch": 100, "args": argparse.Namespace(arch="vit_small")}
    found = import_checkpoint(saved(tmp_path / "checkpoint.pth", whole), "dino")
    assert found.backbone.model == name and found.left_out == {"projector": 2}
    with torch.no_grad():
        assert_imported(found, source(photos(32)), photos(32), tmp_path)
    bare = import_checkpoint(saved(tmp_path / "bare.pth", source.state_dict()), "dino")  # its smaller, usual file
    assert bare.backbone == found.backbone and bare.left_out == {}
    assert all(torch.equal(value, bare.tensors[key]) for key, value in found.tensors.items())


@pytest.mark.parametrize("whole", [False, True])
def test_dinos_resnet(tmp_path, whole):
    """Its ResNet-50, in small."""
    source = resnet()
    state = {key: value for key, value in source.state_dict().items() if not key.startswith("fc.")}
    if whole:  # with BatchNorm the teacher is wrapped too
        state = {"teacher": {f"module.backbone.{key}": value for key, value in state.items()}, "student": {}}
    found = import_checkpoint(saved(tmp_path / "dino_resnet50_pretrain.pth", state), "dino")
    assert (found.backbone.name, found.backbone.stem, found.left_out) == ("resnet18", "imagenet", {})
    assert_imported(found, features_of(source, photos(32)), photos(32), tmp_path)


def test_a_dino_that_timm_does_not_have_needs_its_name(tmp_path):
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    path = saved(tmp_path / "a.pth", state)
    refused(lambda: import_checkpoint(path, "dino"), path, "give --model")
    assert import_checkpoint(path, "dino", model="test_vit").backbone.model == "test_vit"
    wide = state | {"cls_token": torch.zeros(1, 1, 1024)}
    refused(lambda: import_checkpoint(saved(path, wide), "dino"), "vit_large_patch16_224.dino", "give --model")


# --- What is refused


@pytest.fixture
def published(tmp_path):
    """The path and the tensors of a small file of timm's."""
    state = timm.create_model("test_resnet").state_dict()
    return saved(tmp_path / "test.pth", state), dict(state)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda state: state.pop("layer1.0.conv1.weight"), "layer1.0.conv1.weight is missing"),
        (lambda state: state.update({"extra.weight": torch.zeros(2)}), "extra.weight is unexpected"),
        (lambda state: state.update({"bn1.bias": torch.zeros(3)}), "bn1.bias is (3,), not (32,)"),
        (lambda state: state.pop("bn1.num_batches_tracked"), "bn1.num_batches_tracked is missing"),
        (lambda state: state.update({"bn1.bias": torch.zeros(1)}), "bn1.bias is (1,)"),
    ],
)
def test_a_difference_is_named(published, damage, said):
    path, state = published
    damage(state)
    refused(lambda: import_checkpoint(saved(path, state), "timm", model="test_resnet"), path, said, "timm test_resnet")


def test_three_differences_are_named_and_the_rest_counted(published):
    path, state = published
    state = {f"net.{key}": value for key, value in state.items()}
    refused(lambda: import_checkpoint(saved(path, state), "timm", model="test_resnet"), "is missing; ", "more")


@pytest.mark.parametrize(
    ("made", "kind", "hint"),
    [
        ("moco_v2", "torchvision", "no ResNet"),
        ("moco_v2", "timm", "it looks like --from moco_v2"),
        ("moco_v2", "dino", "give --model"),
        ("torchvision", "moco_v2", "it looks like --from torchvision"),
        ("torchvision", "timm", "it looks like --from torchvision"),  # where it is not timm's network too
        ("dino", "moco_v2", "it looks like --from dino"),
        ("dino", "timm", "it looks like --from dino"),
        ("dino", "torchvision", "no ResNet"),
    ],
)
def test_another_kinds_file_is_refused(tmp_path, made, kind, hint):
    network = resnet()
    dino = {"mask_token": torch.zeros(1, 64), **timm.create_model("test_vit", num_classes=0).state_dict()}
    content = {"moco_v2": moco(network), "torchvision": network.state_dict(), "dino": dino}[made]
    path = saved(tmp_path / "a.pth", content)
    model = {"model": "test_vit" if made == "dino" else "test_resnet"} if kind == "timm" else {}
    refused(lambda: import_checkpoint(path, kind, **model), path, hint)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_refused_that_the_options_do_not_fit(published, kind):
    path, _ = published
    if kind in ("moco_v2", "torchvision"):
        content = moco(resnet()) if kind == "moco_v2" else resnet().state_dict()
        saved(path, content)
        refused(lambda: import_checkpoint(path, kind, model="resnet18"), "--model is resnet18", "--backbone")
        refused(lambda: import_checkpoint(path, kind, name="resnet101"), "--backbone is resnet101", "resnet50")
        refused(lambda: import_checkpoint(path, kind, stem="7x7"), "--stem 7x7", "imagenet")
        refused(lambda: import_checkpoint(path, kind, name="resnet34"), "layer1.2.bn1", "is missing")
    elif kind == "timm":
        refused(lambda: import_checkpoint(path, kind), path, "give --model")
        refused(lambda: import_checkpoint(path, kind, name="resnet18"), "--backbone", "use --model")
        refused(lambda: import_checkpoint(path, kind, model="test_resnt"), "test_resnt", "did you mean test_resnet")
    else:
        refused(lambda: import_checkpoint(path, kind, model="test_vit", stem="stl"), "--stem", "use --model")
    refused(lambda: import_checkpoint(path, "simsiam"), "--from is simsiam", *KINDS)


def test_a_deeper_resnet_is_refused(tmp_path):
    with torch.device("meta"):
        state = torchvision.models.resnet101().state_dict()
    path = saved(tmp_path / "resnet101.pth", {key: torch.zeros(1) for key in state})
    refused(lambda: import_checkpoint(path, "torchvision"), path, "23 blocks in layer3", "--from timm --model")


class Evil:
    """A pickle that runs a command where it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_not_run(tmp_path, new):
    mark = tmp_path / "ran"
    path = saved(tmp_path / "evil.pth", {"state_dict": Evil(mark)}, _use_new_zipfile_serialization=new)
    refused(lambda: import_checkpoint(path, "torchvision"), path, "would run", "mkdir", "weights alone")
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "it would have"


def test_a_bare_pickle_is_refused(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"a": Evil(tmp_path / "ran")}))
    refused(lambda: read_checkpoint(path), path, "not loaded")
    assert not (tmp_path / "ran").exists()


def test_a_torchscript_program_is_refused(tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    refused(lambda: import_checkpoint(path, "timm", model="test_vit"), path, "TorchScript")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_file_that_is_cut_off_is_refused(published, form, share):
    path, state = published
    if form == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    else:
        saved(path, state, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(lambda: import_checkpoint(path, "timm", model="test_resnet"), path, "not loaded", "damaged")


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"\x89PNG\r\n\x1a\n" + bytes(99), b"a,b\n1,2\n"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_checkpoint_is_refused(tmp_path, content, suffix):
    path = (tmp_path / "a").with_suffix(suffix)
    path.write_bytes(content)
    refused(lambda: import_checkpoint(path, "torchvision"), path, "not loaded")


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {}, {"state_dict": {}}, {"epoch": 3}, 7])
def test_a_checkpoint_without_tensors_by_name_is_refused(tmp_path, content):
    path = saved(tmp_path / "a.pth", content)
    refused(lambda: import_checkpoint(path, "torchvision"), path, "no tensors by name")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    refused(lambda: import_checkpoint(tmp_path / "a.pth", "dino"), tmp_path / "a.pth", "is no file")
    refused(lambda: import_checkpoint(tmp_path, "dino"), tmp_path, "is no file")


# --- What is written


def test_the_same_file_gives_the_same_bytes(tmp_path, published):
    path, _ = published
    written = []
    for number in range(2):
        torch.manual_seed(number)  # the network is made with new weights, of which none may stay
        found = import_checkpoint(path, "timm", model="test_resnet")
        save_backbone(tmp_path / f"{number}.safetensors", found.tensors, found.origin)
        written.append((tmp_path / f"{number}.safetensors").read_bytes())
    assert written[0] == written[1]
    with safe_open(tmp_path / "0.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata.keys() == {"scan"}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    origin = {"from": "timm", "file": "test.pth", "sha256": sha256, "network": "timm test_resnet"}
    assert json.loads(metadata["scan"]) == {"origin": origin}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["0.safetensors", "1.safetensors", "test.pth"]


def test_every_tensor_is_the_files(published, tmp_path):
    path, state = published
    found = import_checkpoint(path, "timm", model="test_resnet")
    save_backbone(tmp_path / "a.safetensors", found.tensors, found.origin)
    written = load_file(tmp_path / "a.safetensors")
    assert written.keys() == state.keys() - {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, state[key]) for key, value in written.items())
