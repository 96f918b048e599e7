"""Published checkpoints: files in the form their authors gave them become backbones that compute the same."""

import argparse
import hashlib
import json
import os
import pickle
from copy import deepcopy
from pathlib import Path
from unittest import mock

import pytest
import timm
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scan_core.errors import ScanError
from scan_core.models.files import Preprocessing, load_backbone, save_backbone
from scan_core.models.networks import build_backbone
from scan_core.weights import convert
from scan_core.weights.checkpoint import read_checkpoint
from scan_core.weights.convert import KINDS, import_checkpoint, map_keys
from tests.hub import CLIP, clip_files
from tests.scan_core.data.little_files import Trap
from tests.tiny import assert_same_tensors, backbone_settings, change, refused

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def randomized(network, seed=0):
    """The network with every weight and buffer drawn anew, so that no two tensors are alike, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            drawn = torch.rand(value.shape, generator=generator)
            scale = 0.1 if value.dim() > 1 else 0.5
            value.copy_(drawn + 0.5 if name.endswith(("running_var", "gamma")) else scale * (drawn - 0.5))
    return network.eval()


def resnet(name="resnet18", seed=0):
    return randomized(getattr(torchvision.models, name)(), seed)


def transformer(name):
    return randomized(timm.create_model(name, num_classes=0, dynamic_img_size=True))


def backbone_of(state):
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def photos(side=32, count=2):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(3))


def features_of(network, images):
    """(B,D) of a torchvision ResNet, by its own layers."""
    with torch.no_grad(), mock.patch.object(network, "fc", torch.nn.Identity()):
        return network(images)


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def moco(network, wrapper="module.", v1=False):
    """What MoCo's script saves: encoders for queries and keys, each with a projector for its fc, and the queue."""
    state, width = (
        {"queue": torch.zeros(128, 64), "queue_ptr": torch.zeros(1, dtype=torch.int64)},
        network.fc.in_features,
    )
    layers = {"fc": (128, width)} if v1 else {"fc.0": (width, width), "fc.2": (128, width)}
    for number, encoder in enumerate(("encoder_q", "encoder_k")):
        for key, value in backbone_of(network.state_dict()).items():
            state[f"{encoder}.{key}"] = value + number if value.is_floating_point() else value
        for layer, shape in layers.items():
            state |= {f"{encoder}.{layer}.weight": torch.zeros(shape), f"{encoder}.{layer}.bias": torch.zeros(shape[0])}
    state = {f"{wrapper}{key}": value for key, value in state.items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.03, "params": [0]}]}
    return {"epoch": 800, "arch": "resnet50", "state_dict": state, "optimizer": optimizer}


def assert_imported(imported, expected, images, tmp_path):
    """The import, written, and read into the network that a stage builds, gives the features ``expected``."""
    path = tmp_path / "weights.safetensors"
    save_backbone(path, imported.tensors, imported.origin, imported.backbone, imported.preprocessing)
    torch.manual_seed(5)
    network = build_backbone(change(imported.backbone, weights=str(path)), 3)
    load_backbone(network, path)
    with torch.no_grad():
        features = network.eval()(images)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert features.std() > 1e-4, "features that are all the same would prove nothing"


# The published, which are of 2020, and MoCo v1's.
@pytest.mark.parametrize(("name", "wrapper", "v1"), [("resnet50", "module.", False), ("resnet18", "", True)])
@pytest.mark.slow
def test_moco_gives_the_query_encoder(tmp_path, name, wrapper, v1):
    source = resnet(name)
    path = saved(tmp_path / "a.pth.tar", moco(source, wrapper, v1), _use_new_zipfile_serialization=v1)
    imported = import_checkpoint(path, "moco_v2")
    backbone, (taken, projector) = imported.backbone, (120, 2) if v1 else (318, 4)
    assert (backbone.name, backbone.stem, backbone.weights) == (name, "imagenet", None)
    assert imported.left_out == {"projector": projector, "momentum encoder": taken + projector, "queue": 2}
    assert len(imported.tensors) == taken
    assert (imported.size, imported.preprocessing) == (256, Preprocessing(224, *IMAGENET))
    assert_imported(imported, features_of(source, photos()), photos(), tmp_path)


@pytest.mark.parametrize("around", ["plain", "model", "state_dict", "half", "safetensors"])
@pytest.mark.slow
def test_torchvision(tmp_path, around):
    """Its own files, those of its training script, and those of PyTorch's ImageNet example."""
    source, path = resnet(seed=1).half().float(), tmp_path / "resnet18-f37072fd.pth"
    state = source.state_dict()
    contents = {  # the first from before BatchNorm counted batches
        "plain": {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
        "model": {"model": dict(state), "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        "state_dict": {"state_dict": {f"module.{key}": value for key, value in state.items()}, "arch": "resnet18"},
        "half": deepcopy(source).half().state_dict(),
    }
    if around == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file({key: value.clone() for key, value in state.items()}, path)
    else:
        saved(path, contents[around], _use_new_zipfile_serialization=around != "plain")
    imported = import_checkpoint(path, "torchvision")
    assert {value.dtype for value in imported.tensors.values()} == {torch.float32, torch.int64}
    assert imported.left_out == {"classifier": 2}
    assert_same_tensors(imported.tensors, backbone_of(state))
    if around == "plain":
        assert_imported(imported, features_of(source, photos()), photos(), tmp_path)


def test_deeper_torchvision_resnets(tmp_path):
    with torch.device("meta"):
        assert convert._resnet_name(torchvision.models.resnet34().state_dict(), tmp_path) == "resnet34"
        state = torchvision.models.resnet101().state_dict()
    refused(lambda: convert._resnet_name(state, tmp_path), tmp_path, "23 blocks in layer3", "--from timm --model")


@pytest.mark.parametrize("stem", ["small", "stl"])
@pytest.mark.slow
def test_a_stem_that_the_tensors_do_not_tell_must_be_given(tmp_path, stem):
    network = resnet()
    network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    if stem == "small":
        network.maxpool = torch.nn.Identity()
    path = saved(tmp_path / "a.pth", network.state_dict())
    refused(lambda: import_checkpoint(path, "torchvision"), path, "3x3 stem", "--stem stl", "--stem small")
    imported = import_checkpoint(path, "torchvision", stem=stem)
    assert_imported(imported, features_of(network, photos(16)), photos(16), tmp_path)
    refused(lambda: import_checkpoint(path, "torchvision", stem="imagenet"), "conv1.weight is (64, 3, 3, 3)")


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_resnet", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("around", ["safetensors", "model_ema"])
def test_timm(tmp_path, name, around):
    source = randomized(timm.create_model(name, num_classes=7))
    path = tmp_path / "model.safetensors"
    if around == "safetensors":
        save_file(source.state_dict(), path)
    else:  # its training script's, of which the average counts
        other = {key: torch.zeros_like(value) for key, value in source.state_dict().items()}
        path = saved(tmp_path / "model_best.pth.tar", {"state_dict": other, "state_dict_ema": source.state_dict()})
    imported = import_checkpoint(path, "timm", model=name)
    assert imported.left_out == {"classifier": 2}
    size = source.pretrained_cfg["input_size"][-1]
    images = photos(size if "vit" in name else 64)
    with torch.no_grad():
        expected = source.forward_head(source.forward_features(images), pre_logits=True)
    assert_imported(imported, expected, images, tmp_path)
    assert imported.preprocessing.side == size
    assert imported.preprocessing.mean == tuple(source.pretrained_cfg["mean"])


def test_clip_wants_its_own_normalization_and_leaves_its_projection_out():
    settings = backbone_settings(name="timm", width=64, model="vit_base_patch32_clip_224.openai")
    with torch.device("meta"):
        whole, network = timm.create_model(settings.model), timm.create_model(settings.model, num_classes=0)
    size, images, notes = convert._preprocessing(network, settings, {})
    assert (size, images.side, images.mean[0], images.std[0]) == (249, 224, 0.48145466, 0.26862954)
    assert "QuickGELU" in notes[0], "what timm says of these weights"
    taken, left_out = convert._without_classifier(whole.state_dict(), network)
    assert taken.keys() == network.state_dict().keys() and left_out == {"classifier": 2}


def test_the_image_tower_in_a_file_of_both_is_taken(tmp_path):
    path = tmp_path / "open_clip_model.safetensors"
    path.write_bytes(clip_files()["open_clip_model.safetensors"])
    name = CLIP.removeprefix("timm/")
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=8)  # of the same seed as the file's
    imported = import_checkpoint(path, "timm", model=name)
    assert imported.left_out == {"classifier": 2, "text tower": 30} and imported.text is None
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in imported.tensors.items())


def test_a_name_without_a_tag_is_noted_and_a_distilled_network_has_two_classifiers(tmp_path):
    for name, notes, classifier in (("vit_tiny_patch16_224", 1, 2), ("deit_tiny_distilled_patch16_224", 0, 4)):
        path = saved(tmp_path / "a.pth", timm.create_model(name).state_dict())
        imported = import_checkpoint(path, "timm", model=name)
        assert len(imported.notes) == notes and imported.left_out == {"classifier": classifier}
        assert not notes or "vit_tiny_patch16_224.augreg" in imported.notes[0]


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
    source = transformer(name)
    state = official(source, second=True)
    assert state["pos_embed"].shape == (1, 1370, 384) and state["register_tokens"].shape == (1, 4, 384), "as published"
    imported = import_checkpoint(saved(tmp_path / "a.pth", state), "dino")
    assert imported.backbone.model == name and imported.left_out == {"mask token": 1}
    assert (imported.size, imported.preprocessing) == (256, Preprocessing(224, *IMAGENET))
    with torch.no_grad():
        assert_imported(imported, source(photos(28)), photos(28), tmp_path)


@pytest.mark.parametrize(
    "name",
    ["vit_small_patch8_224.dino", "vit_base_patch16_224.dino", "vit_small_patch14_dinov2.lvd142m"]
    + [f"vit_{size}_patch14{reg}_dinov2.lvd142m" for size in ("base", "large", "giant") for reg in ("", "_reg4")],
)
@pytest.mark.slow
def test_names_keys_and_shapes_of_the_others(name):
    """On no memory: a published file's keys, mapped, are exactly those of timm's network, and they tell which it is."""
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
    state = official(network, second="dinov2" in name)
    if "giant" in name:
        renamed = {key: key.replace("mlp.fc1.", "mlp.w12.").replace("mlp.fc2.", "mlp.w3.") for key in state}
        state = {renamed[key]: value for key, value in state.items()}
        assert "blocks.39.mlp.w12.weight" in state
    assert state["pos_embed"].shape[1] == {8: 785, 16: 197, 14: 1370}[network.patch_embed.patch_size[0]]
    taken, left_out = map_keys(state, "dino")
    expected = {key: value.shape for key, value in network.state_dict().items()}
    assert {key: value.shape for key, value in taken.items()} == expected
    assert left_out == ({"mask token": 1} if "dinov2" in name else {})
    assert convert._dino_name(taken, Path("a.pth")) == name


@pytest.mark.slow
def test_a_whole_dino_checkpoint_gives_the_teacher(tmp_path):
    name = "vit_small_patch16_224.dino"
    source = transformer(name)
    head = {"head.mlp.0.weight": torch.zeros(2, 384), "head.last_layer.weight_g": torch.ones(2, 1)}
    teacher = {f"backbone.{key}": value for key, value in source.state_dict().items()} | head
    student = {f"module.{key}": torch.zeros_like(value) for key, value in teacher.items()}
    whole = {"student": student, "teacher": teacher, "epoch": 100, "args": argparse.Namespace(arch="vit_small")}
    imported = import_checkpoint(saved(tmp_path / "checkpoint.pth", whole), "dino")
    assert imported.backbone.model == name and imported.left_out == {"projector": 2}
    with torch.no_grad():
        assert_imported(imported, source(photos()), photos(), tmp_path)
    bare = import_checkpoint(saved(tmp_path / "bare.pth", source.state_dict()), "dino")  # its smaller, usual file
    assert bare.backbone == imported.backbone and bare.left_out == {}
    assert_same_tensors(bare.tensors, imported.tensors)


@pytest.mark.parametrize("whole", [False, True])
def test_dinos_resnet(tmp_path, whole):
    """Its ResNet-50, in small."""
    source = resnet()
    state = backbone_of(source.state_dict())
    if whole:  # with BatchNorm the teacher is wrapped too
        state = {"teacher": {f"module.backbone.{key}": value for key, value in state.items()}, "student": {}}
    imported = import_checkpoint(saved(tmp_path / "dino_resnet50_pretrain.pth", state), "dino")
    assert (imported.backbone.name, imported.backbone.stem, imported.left_out) == ("resnet18", "imagenet", {})
    assert_imported(imported, features_of(source, photos()), photos(), tmp_path)


def test_a_dino_that_timm_does_not_have_needs_its_name(tmp_path):
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    path = saved(tmp_path / "a.pth", state)
    refused(lambda: import_checkpoint(path, "dino"), path, "with --model")
    assert import_checkpoint(path, "dino", model="test_vit").backbone.model == "test_vit"
    saved(path, state | {"cls_token": torch.zeros(1, 1, 1024)})
    refused(lambda: import_checkpoint(path, "dino"), "vit_large_patch16_224.dino", "give --model")


# --- what is refused


@pytest.fixture
def published(tmp_path):
    """The path and the tensors of a small file of timm's."""
    state = timm.create_model("test_resnet").state_dict()
    return saved(tmp_path / "test.pth", state), dict(state)


@pytest.mark.parametrize("key", ["layer1.0.conv1.weight", "bn1.num_batches_tracked"])  # counters may lack only together
def test_a_difference_is_named_with_the_network_that_was_expected(published, key):
    path, state = published
    del state[key]
    said = path, f"the network alone has {key}", "timm as timm test_resnet was expected"
    refused(lambda: import_checkpoint(saved(path, state), "timm", model="test_resnet"), *said)


@pytest.mark.parametrize(("made", "kind", "hint"), [
    ("moco_v2", "torchvision", "no ResNet"), ("moco_v2", "timm", "it looks like --from moco_v2"),
    ("moco_v2", "dino", "with --model"), ("torchvision", "moco_v2", "it looks like --from torchvision"),
    ("torchvision", "timm", "it looks like --from torchvision"), ("dino", "moco_v2", "it looks like --from dino"),
    ("dino", "timm", "it looks like --from dino"), ("dino", "torchvision", "no ResNet"),
])  # fmt: skip
@pytest.mark.slow
def test_another_kinds_file_is_refused(tmp_path, made, kind, hint):
    network = resnet()
    dino = {"mask_token": torch.zeros(1, 64), **timm.create_model("test_vit", num_classes=0).state_dict()}
    content = {"moco_v2": moco(network), "torchvision": network.state_dict(), "dino": dino}[made]
    path = saved(tmp_path / "a.pth", content)
    model = {"model": "test_vit" if made == "dino" else "test_resnet"} if kind == "timm" else {}
    refused(lambda: import_checkpoint(path, kind, **model), path, hint)


@pytest.mark.parametrize(("kind", "options", "said"), [
    *((kind, options, said) for kind in ("moco_v2", "torchvision") for options, said in (
        ({"model": "resnet18"}, ["--model is resnet18", "--backbone"]),
        ({"name": "resnet101"}, ["--backbone is resnet101", "resnet50"]),
        ({"stem": "7x7"}, ["--stem 7x7", "imagenet"]),
        ({"name": "resnet34"}, ["the network alone has layer1.2."]),
    )),
    ("timm", {}, ["with --model"]),
    ("timm", {"name": "resnet18"}, ["--backbone", "use --model"]),
    ("timm", {"model": "test_resnt"}, ["test_resnt", "did you mean test_resnet"]),
    ("dino", {"model": "test_vit", "stem": "stl"}, ["--stem", "use --model"]),
    ("simsiam", {}, ["--from is simsiam", *KINDS]),
])  # fmt: skip
def test_options_that_do_not_fit_are_refused(published, kind, options, said):
    path, _ = published
    if kind in ("moco_v2", "torchvision"):
        saved(path, moco(resnet()) if kind == "moco_v2" else resnet().state_dict())
    refused(lambda: import_checkpoint(path, kind, **options), *said)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_not_run(tmp_path, new):
    mark = tmp_path / "ran"
    path = saved(tmp_path / "evil.pth", {"state_dict": Trap(mark)}, _use_new_zipfile_serialization=new)
    refused(lambda: import_checkpoint(path, "torchvision"), path, "would run", "mkdir", "weights alone")
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "it would have"
    mark.rmdir()
    path.write_bytes(pickle.dumps({"a": Trap(mark)}))  # without torch's format around it
    refused(lambda: read_checkpoint(path), path, "not loaded")
    assert not mark.exists()


def test_a_torchscript_program_and_what_is_no_file_are_refused(tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    refused(lambda: import_checkpoint(path, "timm", model="test_vit"), path, "TorchScript")
    for path in (tmp_path / "a.pth", tmp_path):
        refused(lambda path=path: import_checkpoint(path, "dino"), path, "is not a file")


@pytest.mark.parametrize("content", [0.0, 0.3, 0.99, b"<html>not found</html>", b"\x89PNG" + bytes(99), b"a,b\n1,2\n"])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_file_that_is_cut_off_or_not_a_checkpoint_is_refused(published, form, content):
    path, state = published
    if form == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    else:
        saved(path, state, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else whole[: int(content * len(whole))])
    refused(lambda: import_checkpoint(path, "timm", model="test_resnet"), path, "not loaded", "damaged")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "code", [eval, exec, getattr, print, open, __import__, os.system], ids=lambda code: code.__name__
)
def test_a_checkpoint_that_calls_code_is_refused_as_such_and_runs_nothing(tmp_path, code, protocol):
    class Evil:
        def __reduce__(self):
            return code, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    path = tmp_path / "a.pth"
    torch.save({"state_dict": Evil()}, path, pickle_protocol=protocol)
    refused(lambda: import_checkpoint(path, "torchvision"), path, "give a file of the weights alone")
    with pytest.raises(ScanError) as error:
        import_checkpoint(path, "torchvision")
    assert "damaged" not in str(error.value) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {}, {"state_dict": {}}, {"epoch": 3}, 7])
def test_a_checkpoint_without_tensors_by_name_is_refused(tmp_path, content):
    path = saved(tmp_path / "a.pth", content)
    refused(lambda: import_checkpoint(path, "torchvision"), path, "no tensors by name")


def test_the_same_file_gives_the_same_bytes_and_every_tensor_is_the_files(tmp_path, published):
    path, state = published
    written = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    for number, to in enumerate(written):
        torch.manual_seed(number)  # the network is made with new weights, of which none may stay
        imported = import_checkpoint(path, "timm", model="test_resnet")
        save_backbone(to, imported.tensors, imported.origin, imported.backbone, imported.preprocessing)
    assert written[0].read_bytes() == written[1].read_bytes()
    with safe_open(written[0], framework="pt") as file:
        metadata = file.metadata()
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    origin = {"from": "timm", "file": "test.pth", "sha256": sha256, "network": "timm test_resnet"}
    assert metadata.keys() == {"scan"} and json.loads(metadata["scan"])["origin"] == origin
    assert sorted(tmp_path.iterdir()) == [*written, path]
    assert_same_tensors(load_file(written[0]), backbone_of(state))
