"""Checks what docs/extending.md adds, in a copy of the project that holds it: FOLDER, a folder to write to, cases."""

from __future__ import annotations

import importlib.machinery
import json
import math
import shutil
import sys
import types
from pathlib import Path

COPY, OUT, *CASES = sys.argv[1:]
sys.path.insert(0, str(Path(__file__).resolve().parent))
for name in [name for name in sys.modules if name.split(".")[0] == "adadistill"]:
    del sys.modules[name]  # of the project itself, where this process is a fork of one that has imported it
package = types.ModuleType("adadistill")
package.__path__ = [COPY]
package.__spec__ = importlib.machinery.ModuleSpec("adadistill", None, is_package=True)
sys.modules["adadistill"] = package

import numpy as np
import torch
from hopper_code import compiled_without_spill
from safetensors.torch import save_file
from tiny_training import tiny_recipe, write_tiny_records

from adadistill.core.backbones import BackboneConfig, backbone_skeleton, build_backbone
from adadistill.core.backbones.public_formats import recognise_backbone, resolve_publisher
from adadistill.core.backbones.public_weights import load_public_weights, public_names
from adadistill.core.checkpoints import load_checkpoint
from adadistill.core.checkpoints.network_checkpoint import load_network
from adadistill.core.distributed import Ranks
from adadistill.core.method.centre_softmax import class_softmax
from adadistill.core.method.geometry_margin import GeometryMarginConfig
from adadistill.core.method.heads import HeadConfig
from adadistill.core.recipe import parse_recipe, recipe_hash
from adadistill.core.teachers import load_source
from adadistill.core.training.run import run_training
from adadistill.kernels.augment_parameters import resample_tables
from adadistill.kernels.head_prologue import CentreStore, directions, head_prologue
from adadistill.kernels.planar_augment import BLOCK, DeviceTables, planar_augment_reference, planar_augment_u8
from adadistill.loaders.augment.augment_image import augment_image
from adadistill.loaders.augment.augment_policy import Augmentation, AugmentConfig
from adadistill.loaders.pipelines.pipeline import DataConfig, build_pipeline
from adadistill.loaders.pipelines.sample_order import SampleOrder
from adadistill.loaders.records.image_records import ImageRecords
from adadistill.recipes.evaluate import main as evaluate

DALI = importlib.util.find_spec("nvidia.dali") is not None


def head() -> None:
    """Loss and gradient of the embeddings by the public path, against the formula in float64."""
    draw = torch.Generator().manual_seed(0)
    config = HeadConfig(kind="norm_ramp", margin=0.3)
    labels = torch.tensor([1, 4, 4, 0, 2])
    embeddings = torch.randn(5, 16, generator=draw, dtype=torch.float64) * torch.tensor([[1], [3], [6], [9], [20]])
    centres = torch.nn.functional.normalize(torch.randn(6, 16, generator=draw, dtype=torch.float64))

    wanted_rows = embeddings.clone().requires_grad_()
    norms = wanted_rows.detach().norm(dim=1)
    mean = 0.01 * norms.mean() + 0.99 * 20.0
    margin = 0.3 * (norms / (2.0 * mean)).clamp(0.0, 1.0)
    logits = torch.nn.functional.normalize(wanted_rows) @ centres.T
    logits[torch.arange(5), labels] = logits[torch.arange(5), labels] - margin
    wanted = torch.nn.functional.cross_entropy(64.0 * logits, labels, reduction="none")
    wanted.mean().backward()

    for dtype, allowed in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
        rows = embeddings.to(dtype, copy=True).requires_grad_()
        student = directions(rows)
        units = centres.to(dtype)
        made = head_prologue(
            student, labels, confidence=None, global_quality=student.quality, global_labels=labels,
            norm_mean=torch.tensor(20.0, dtype=dtype), norm_std=torch.tensor(4.0, dtype=dtype),
            store=CentreStore(units, unit=True), head=config, geometry=GeometryMarginConfig(),
        )  # fmt: skip
        loss = class_softmax(config, units, student.unit_embeddings, labels, made.margins, prologue=made).loss
        loss.mean().backward()
        assert rows.grad is not None
        assert wanted_rows.grad is not None
        assert ((loss - wanted).abs() / wanted.abs().max()).max() <= allowed, (dtype, loss, wanted)
        assert ((rows.grad - wanted_rows.grad).abs() / wanted_rows.grad.abs().max()).max() <= allowed, dtype
        assert made.margins.additive.min() > 0


def backbone() -> None:
    """It is recognised by public names, converted, and leaves the recognition of the others as it was."""
    config = BackboneConfig(arch="strided", embedding_dim=16)
    network = build_backbone(config, 112, generator=0)
    public = {name: network.state_dict()[own] for own, name in public_names(network).items()}
    assert recognise_backbone(public) == config
    assert resolve_publisher("auto", config, public) == "insightface"
    again = build_backbone(config, 112, generator=1)
    load_public_weights(again, public)
    assert all(map(torch.equal, network.state_dict().values(), again.state_dict().values()))
    other = BackboneConfig(arch="iresnet18")
    names = public_names(backbone_skeleton(other, 112)).values()
    assert recognise_backbone({name: torch.empty(1, device="meta") for name in names}) == other


def optimiser() -> None:
    """A run that stopped half-way and went on ends with the bits of one that did not; hashes of others stay."""
    faces = _faces()
    recipe = tiny_recipe(faces, optim__kind="lion", optim__lr=0.001, checkpoint__every_steps=6, checkpoint__keep=5)
    run_training(recipe, Path(OUT) / "whole", ranks=Ranks())
    (Path(OUT) / "resumed").mkdir()
    shutil.copytree(Path(OUT) / "whole", Path(OUT) / "resumed", dirs_exist_ok=True)
    for folder in (Path(OUT) / "resumed" / "checkpoints").glob("step-*"):
        if folder.name != "step-00000006":
            shutil.rmtree(folder)
    run_training(recipe, Path(OUT) / "resumed", ranks=Ranks(), resume="auto")
    ends = [load_checkpoint(Path(OUT) / run / "checkpoints" / "step-00000012") for run in ("whole", "resumed")]
    assert {name.split(".")[0] for name in ends[0].optimiser} >= {"momentum"}
    for one, other in ((ends[0].model, ends[1].model), (ends[0].optimiser, ends[1].optimiser)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not all(torch.equal(ends[0].model[name], start) for name, start in _start(recipe).items())


def _start(recipe) -> dict[str, torch.Tensor]:
    return build_backbone(recipe.student, 32, generator=0).state_dict()


def teacher() -> None:
    path = Path(OUT) / "linear.safetensors"
    weight = torch.randn(16, 3 * 32 * 32, generator=torch.Generator().manual_seed(1))
    save_file({"weight": weight}, path)
    recipe = tiny_recipe(_faces(), teacher__embeddings="null", teacher__linear_map=path)
    assert recipe.teacher is not None
    loaded = load_source(recipe.teacher, image_size=32, ranks=Ranks())
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(loaded.network()(images), images.flatten(1) @ weight.T, rtol=1e-4, atol=1e-4)


def augmentation() -> None:
    """The same images through CPU threads, DALI and torch, and only where the rectangle was drawn."""
    faces = _faces()
    records = ImageRecords(faces / "train.rec", num_classes=6)
    augment = Augmentation(AugmentConfig(erase=0.6, policy="adaface"), mirror_probability=0.5, seed=3, image_size=32)
    seen = {}
    for decoder in ("cpu", "dali") if DALI else ("cpu",):
        config = DataConfig(records=str(faces / "train.rec"), decoder=decoder, image_size=32, workers=1)
        pipeline = build_pipeline(
            config, records, SampleOrder(48, 8, 0), rank=0, world_size=1, device=torch.device("cpu"),
            augmentation=augment,
        )  # fmt: skip
        seen[decoder] = torch.cat([batch.images for batch in pipeline.epoch(0)])
        pipeline.close()
    assert torch.equal(seen["cpu"], seen[list(seen)[-1]])
    _compare_with_torch(planar_augment_reference)
    text = "name: a\ndata: {records: a.rec}\noptim: {epochs: 1}\ncentres: {kind: trainable}\n"
    assert recipe_hash(parse_recipe(text)) != recipe_hash(parse_recipe(text, overrides=["augment.erase=0.1"]))


def triton_augmentation() -> None:
    """The kernel in Triton's interpreter."""
    _compare_with_torch(planar_augment_u8)


def hopper() -> None:
    """The kernel with the rule in it, compiled for compute capability 9.0 without a spill.

    On RGB and with two of eight taps, a fifth of the work: test_planar_augment.py compiles all of it, without a rule.
    """
    import triton.language as tl

    from adadistill.kernels import planar_augment_triton
    from adadistill.kernels.planar_augment_triton import RULES, RULES_KEY, augment_kernel

    planar_augment_triton._TAPS = tl.constexpr(2)

    pointers = {
        "out": "*bf16", "store": "*u8", "rows": "*i64", "mirrored": "*u8", "parameters": "*i32", "slots": "*i32",
        "index": "*i16", "weight": "*i16", "pixels_a": "*u8", "pixels_b": "*u8", "middle": "*i32",
    }  # fmt: skip
    constants = {"S": 112, "PLANES": False, "AUGMENTS": True, "NORMALISES": True, "WIDE": False, "BLOCK": BLOCK,
                 "RULES": RULES, "RULES_KEY": RULES_KEY}  # fmt: skip
    compiled_without_spill(augment_kernel, pointers, constants, Path(OUT))


def _compare_with_torch(form) -> None:
    size, count = 16, 8
    augment = Augmentation(AugmentConfig(erase=0.5, grey=0.3), mirror_probability=0.5, seed=3, image_size=size)
    rows = augment.parameters(0, np.arange(count))
    assert rows is not None
    drawn = rows[:, 25:31].any(axis=1)
    assert 0 < drawn.sum() < count
    stored = np.random.RandomState(0).randint(0, 256, (count, size, size, 3), dtype=np.uint8)
    wanted = np.empty_like(stored)
    for number in range(count):
        augment_image(stored[number], rows[number], resample_tables(size), wanted[number])
        top, left, bottom, right, level = rows[number, 25:30]
        if drawn[number]:
            columns = slice(size - right, size - left) if rows[number, 0] else slice(left, right)
            assert (wanted[number, top:bottom, columns] == level).all()
    found = form(
        torch.from_numpy(stored.reshape(count, -1)), torch.arange(count), layout="rgb", image_size=size,
        mirrored=torch.zeros(count, dtype=torch.bool), parameters=torch.from_numpy(rows),
        tables=DeviceTables.of(resample_tables(size), torch.device("cpu")),
    )  # fmt: skip
    assert np.array_equal(found.numpy(), wanted)


def together() -> None:
    """Everything in one recipe: two epochs with their scores, then the student is read back and scored again."""
    recipe = tiny_recipe(
        _faces(), head="{kind: norm_ramp, margin: 0.3}", geometry_margin="{mode: off}", student__arch="strided",
        optim__kind="lion", optim__lr=0.001, augment__erase=0.5, teacher__embeddings="null",
        teacher__linear_map=f"{OUT}/linear.safetensors", teacher__check="false",
        evaluation__mirror=f"[{OUT}/faces/pairs.bin]",
    )  # fmt: skip
    run = Path(OUT) / "all"
    result = run_training(recipe, run, ranks=Ranks())
    assert math.isfinite(result.metrics["loss"])
    assert load_network(run, device=torch.device("cpu")).backbone.arch == "strided"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [row["scores"]["mirror.pairs.cosine"] for row in rows if row["event"] == "evaluation"]
    assert len(scores) == recipe.optim.epochs
    own = ["--mirror", f"{OUT}/faces/pairs.bin", "--device", "cpu", "--report"]
    assert evaluate([str(run), "--all", *own, "--best-by", "mirror.pairs.cosine"]) == 0
    table = next((run / "report").glob("verification-step-*.csv")).read_text().splitlines()
    assert table[1].startswith("mirror.pairs.cosine,")
    assert "mirror.pairs.cosine" in (run / "report" / "report.html").read_text()


def _faces() -> Path:
    folder = Path(OUT) / "faces"
    if not folder.exists():
        write_tiny_records(folder)
    return folder


for case in CASES:
    globals()[case]()
print(json.dumps(CASES))
