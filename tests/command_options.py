"""Every option of every command, with a value that it does not have by itself, and all that changes then.

Names of what changes are those of `command_calls`: ``call.argument.field``.
"""

from __future__ import annotations

from pathlib import Path

import torch

from tests import small
from tests.command_measures import AS_FIRST, MEASURING
from tests.command_rows import (
    GONE,
    READ,
    Row,
    Usage,
    again,
    all_of,
    encoder,
    gone,
    job,
    of_device,
    of_engine,
    of_file,
    path,
    row,
    switch,
    writes,
)  # fmt: skip

HUB = "torchhub:a/b:c"  # whose code is trusted with the option behind it
TRUSTED = f"{HUB}?trust=1"
DEFAULT = {"load.source": "cifar10-simclr-wide"}
OFFERED = (
    "cifar10-simclr-wide", "cifar10-simclr-head", "cifar10-simclr-map", "cifar10-simclr-trunk", "cifar10-supervised",
    "shapes-oracle",
)  # fmt: skip
LOADED = again("load", source="m", engine_file=None, sha256=None, **AS_FIRST)
BUILT = {"device": "cpu", "config": None, "layer": None, "pooling": None, "stored": None, "trust_repo": True}
NUMBERS = gone("numbers", "model engine nfe images left_out solver guide seed")
PAGE = "playground launch.playground"
DRAWING = (
    Usage(
        "sample given/a.png --json numbers.json",
        (
            Row(0, "given/b.png", {"open_image.source": Path("given/b.png")}),
            row("--model", "other", "load.source", "numbers.model", check__model="model other"),
            row("--per", 3, "check.config.per", "request.config.per", "numbers.images"),
            row("--steps", 7, "check.config.steps", "request.config.steps", "numbers.nfe"),
            row("--solver", "ancestral", *all_of("check.config request.config numbers", "solver")),
            row("--eta", 0.5, "check.config.eta", "request.config.eta", numbers__solver="ddim"),
            row("--guidance", 2.5, "check.config.guidance", "request.config.guidance", numbers__nfe=20),
            row("--seed", 9, *all_of("check.config request.config numbers", "seed")),
            writes("--out", "a.webp", beside="numbers.json"),
            writes("--images", "p", beside="numbers.json sheet.png", folder=[f"00000-a-00{k}.png" for k in range(8)]),
            row("--batch-size", 5, "batches.batch_size"),
            Row("--json", "x.json", {"files": ["sheet.png", "x.json"], **NUMBERS}),
            *of_file(),
            *of_engine(),
        ),
        {**DEFAULT, "request.h": [1, 6], "request.items": [0]},
    ),
    Usage(
        "sample given/a.png --guidance 2.5 --guide weak",
        (
            row(
                "--guide",
                "other",
                "load#2.source",
                **dict.fromkeys(("check__guide", "request__guide", "batches__guide"), "model other"),
            ),
        ),
        {
            **DEFAULT,
            **dict.fromkeys(all_of("check request batches", "guide"), "model weak"),
            **dict.fromkeys(all_of("check.config request.config", "guidance"), 2.5),
            "load#2.source": "weak",
            "load#2.device": "cpu",
            "request.h": [1, 6],
            "request.items": [0],
        },
    ),
    Usage(
        "encode given/a.png",
        (
            Row(0, "given/b.png", {"open_image.source": Path("given/b.png")}),
            row("--model", "other", "load.source"),
            writes("--out", "h.safetensors"),
            *of_file(),
            of_device(),
        ),
        DEFAULT,
    ),
    Usage(
        "interpolate given/a.png given/b.png",
        (
            Row(0, "given/c.png", {"open_image.source": Path("given/c.png")}),
            Row(1, "given/c.png", {"open_image#2.source": Path("given/c.png")}),
            row("--model", "other", "load.source"),
            row("--frames", 3, "interpolate.frames"),
            row("--per", 2, "interpolate.config.per"),
            row("--mode", "spherical", "interpolate.mode"),
            row("--steps", 7, "interpolate.config.steps"),
            row("--solver", "ancestral", "interpolate.config.solver"),
            row("--seed", 9, "interpolate.config.seed"),
            writes("--out", "a.webp"),
            *of_file(),
            *of_engine(),
        ),
        {**DEFAULT, "interpolate.config.per": 4},
    ),
    Usage(
        "sequence given/h.npy",
        (
            Row(0, "given/k.npy", {"read_sequence.file": Path("given/k.npy")}),
            row("--model", "other", "load.source"),
            row("--fps", 5, "film_check.fps", "film.fps"),
            Row(
                "--per",
                "2",
                {"sequence.config.per": 2, "film_check.shape": (1, 2, 3), "film.images": [1, 2, 3, 3, 8, 8]},
            ),
            row("--steps", 7, "sequence.config.steps"),
            row("--solver", "ancestral", "sequence.config.solver"),
            row("--seed", 9, "sequence.config.seed"),
            path("--out", "a.png", "film_check.path", "film.path", files=["a.png"]),
            row("--sha256", "ab" * 32, "load.sha256"),
            *of_engine(),
        ),
        {**DEFAULT, "sequence.config.per": 1},
    ),
    Usage(
        "generate 5",
        (*job("job"), row("--model", "other", "load.source", job__model="model other"), *of_file(), *of_engine()),
        DEFAULT,
    ),
    Usage(
        "generate 5 --ray local",
        (
            *job("cluster"),
            row("--model", "other", "cluster.spec.name"),
            row("--ray", "10.0.0.1:6379", "cluster.address"),
            row("--workers", 2, "cluster.workers"),
            *of_file("cluster.spec", str),
            *of_engine("cluster.spec"),
        ),
    ),
    Usage(
        "generate --verify",
        (Row("--verify", None, {}), path("--out", "other", "verify.folder"), writes("--json", "found.json")),
        {"verify.folder": Path("job"), "load.source": GONE, "job.folder": GONE},
    ),
)
TRAINING = (
    Usage(
        "train mine --data D --config given/train.json",
        (
            row(0, "other", "train.config.name", train__out=Path("runs/other")),
            row("--data", "E", "open_data.source", train__data="images of E"),
            Row("--config", "given/train2.json", {"train.config.batch_size": 32}),
            path("--out", "other", "train.out"),
            row("--init", "old.safetensors", "train.config.init"),
            Row(
                "--encoder",
                TRUSTED,
                {
                    "train.config.encoder.source": HUB,
                    "train.config.encoder.dim": small.DIM,
                    "train.trusted": [HUB],
                    **again("build", source=TRUSTED, **BUILT),
                },
            ),
            Row(
                "--representations",
                "h.npy",
                {"train.h": [6, small.DIM], **again("aligned", given=Path("h.npy"), data="images of D")},
            ),
            row("--images", 640, "train.config.images"),
            switch("--no-compile", "train.config.compile", False),
            Row("--set", "loss.gamma=3", {"train.config.loss.gamma": 3}),
            path("--store", "kept", "open_data.store"),
            row("--minutes", 1.5, "train.minutes"),
            Row("--trust", None, {"train.trusted": ["timm:resnet18"]}),
            of_device("train"),
        ),
        {
            "train.config.encoder": GONE,
            "train.config.encoder.image_size": 8,
            "train.trusted": [],
            "train.config.unet.attention_resolutions": (),
        },
    ),
    Usage(
        "pretrain mine --data D --config given/pretrain.json",
        (
            Row(0, "other-encoder", {"pretrain.out": Path("runs/other-encoder"), "pretrain.config.name": "other"}),
            row("--data", "E", "open_data.source", pretrain__train="images of E"),
            Row("--config", "given/pretrain2.json", {"pretrain.config.batch_size": 32}),
            path("--out", "other", "pretrain.out"),
            Row(
                "--test-data",
                "T",
                {"pretrain.test": "images of T", **again("open_data#2", source="T", **READ | {"size": 32})},
            ),
            row("--images", 640, "pretrain.config.images"),
            switch("--no-compile", "pretrain.config.compile", False),
            Row("--set", "augment.hue=0.3", {"pretrain.config.augment.hue": 0.3}),
            row("--minutes", 1.5, "pretrain.minutes"),
            of_device("pretrain"),
            writes("--json", "knn.json"),
        ),
    ),
    Usage(
        "train-reader mine --config given/reader.json",
        (
            row(0, "other", "reader.config.name", reader__out=Path("runs/other")),
            Row("--config", "given/reader2.json", {"reader.config.batch_size": 32}),
            path("--out", "other", "reader.out"),
            row("--images", 640, "reader.config.images"),
            Row("--set", "learning_rate=0.01", {"reader.config.learning_rate": 0.01}),
            row("--minutes", 1.5, "reader.minutes"),
            of_device("reader"),
            writes("--json", "scores.json"),
        ),
        {"reader.config.name": "mine", "reader.device": "cpu"},
    ),
    Usage(
        "adapt m --encoder timm:resnet18 --data D --out runs/new",
        (
            row(0, "other", "load_model.source", "adapt.config.model"),
            Row(
                "--encoder",
                TRUSTED,
                {
                    "build.source": TRUSTED,
                    "build.trust_repo": True,
                    "adapt.config.encoder.source": HUB,
                    "adapt.trusted": [HUB],
                },
            ),
            row("--data", "E", "open_data.source", adapt__data="images of E"),
            path("--out", "runs/other", "adapt.out", adapt__config__name="other"),
            row("--name", "mine", "adapt.config.name"),
            Row(
                "--old-encoder",
                TRUSTED,
                {
                    **encoder("adapt.config.old_encoder", HUB),
                    "adapt.trusted": [HUB],
                    **again("build#2", source=TRUSTED, **BUILT),
                },
            ),
            Row("--trust", None, {"adapt.trusted": ["timm:resnet18"], "build.trust_repo": True}),
            Row("--set", "steps=7", {"adapt.config.steps": 7}),
            Row("--set", "learning_rate=0.01", {"adapt.config.learning_rate": 0.01}),
            Row("--set", "lora_targets=all", {"adapt.config.lora_targets": "all"}),
            row("--minutes", 1.5, "adapt.minutes"),
            row("--seed", 9, "adapt.config.seed"),
            row("--sha256", "ab" * 32, "load_model.sha256"),
            of_device("adapt build"),
        ),
        {
            "adapt.config.encoder": GONE,
            "adapt.config.encoder.image_size": 8,
            "adapt.config.encoder.dim": small.DIM,
            "adapt.trusted": [],
        },
    ),
    Usage(
        f"adapt m --encoder {TRUSTED} --data D --out runs/new",
        (
            Row(  # takes no trust away from the new one
                "--old-encoder",
                "timm:resnet18",
                {
                    **encoder("adapt.config.old_encoder", "timm:resnet18"),
                    **again("build#2", source="timm:resnet18", **{**BUILT, "trust_repo": False}),
                },
            ),
        ),
        {
            "adapt.config.encoder": GONE,
            "adapt.config.encoder.image_size": 8,
            "adapt.config.encoder.dim": small.DIM,
            "adapt.trusted": [HUB],
            "build.trust_repo": True,
        },
    ),
)
DISTILLING = Usage(
    "distill m --data D --out runs/few",
    (
        row(0, "other", "load_model.source", "distill.config.model"),
        row("--data", "E", "open_data.source", distill__data="images of E"),
        path("--out", "runs/other", "distill.out", distill__config__name="other"),
        row("--nfe", 3, "distill.config.nfe"),
        row("--name", "mine", "distill.config.name"),
        Row(
            "--encoder",
            TRUSTED,
            {
                **encoder("distill.config.encoder", HUB),
                "distill.trusted": [HUB],
                **again("build", source=TRUSTED, **BUILT),
            },
        ),
        Row("--set", "trajectories=64", {"distill.config.trajectories": 64}),
        row("--minutes", 1.5, "distill.minutes"),
        row("--seed", 9, "distill.config.seed"),
        row("--sha256", "ab" * 32, "load_model.sha256"),
        of_device("distill"),
    ),
    {"distill.trusted": []},
)
OTHERS = (
    Usage(
        "app --model m",
        (
            Row("--model", "new", dict.fromkeys(all_of(PAGE, "models"), ("m", "new"))),
            row("--data", "D", *all_of(PAGE, "data"), from_data__name="m"),
            Row("--encoder", "file:net", dict.fromkeys(all_of(PAGE, "encoders.m"), "file:net")),
            row("--host", "0.0.0.0", "launch.host"),
            *(row(f"--{name}", 19, f"launch.{name.replace('-', '_')}") for name in (
                "port", "queue", "upload-mib", "quota-mib")),
            Row("--allow-host", "a.example", {"launch.allow_hosts": ("a.example",)}),
            *of_engine(PAGE),
        ),
        {"launch.host": "127.0.0.1", "launch.port": 7860, "launch.queue": 8, "launch.upload_mib": 16},
    ),
    Usage("app", other=dict.fromkeys(all_of(PAGE, "models"), OFFERED)),
    Usage(
        "export m --to onnx --out e",
        (
            Row(0, "new", {"load.source": "new", "export.model": "model new"}),
            row("--to", "openvino", "export.to"),
            path("--out", "f", "export.out"),
            row("--precision", "fp16", "export.precision"),
            Row("--target", "sm86,sm89", {"export.targets": ("sm86", "sm89")}),
            Row("--batch-size", "1,4", {"export.batches": (1, 4)}),
            switch("--dynamic", "export.dynamic"),
            switch("--no-encoder", "export.encoder", False),
            Row("--data", "E", {"export.calibrate": [6, 3, 8, 8], **again("open_data", source="E", **READ)}),
            *of_file(),
            of_device(),
        ),
        {"load.engine": "eager"},
    ),
    Usage(
        "adapt m --representations h.npy --data D --out runs/new",
        (row("--representations", Path("g.npy"), "aligned.given"),),
        {"adapt.config.encoder": None, "adapt.h": [6, small.DIM], "adapt.trusted": []},
    ),
    Usage(
        "encoders bundled:cifar10-simclr",
        (
            row(0, "bundled:cifar10-supervised", "build.source"),
            Row(1, "given/a.png", {}),
            writes("--out", "seen.png"),
            switch("--trust", "build.trust_repo"),
            row("--device", "cpu"),
            Row("--json", "layers.json", {"files": ["layers.json"], "facts.device": torch.device("cpu")}),
        ),
        {"build.source": "bundled:cifar10-simclr", "build.device": "cpu"},
    ),
    Usage(
        "encoders bundled:cifar10-simclr --data D --test-data E",
        (
            row("--data", "F", "open_data.source", class_accuracy__known="images of F"),
            row("--test-data", "F", "open_data#2.source", class_accuracy__test="images of F"),
        ),
        {
            "build.source": "bundled:cifar10-simclr",
            "build.device": "cpu",
            "open_data.source": "D",
            "open_data#2.source": "E",
        },
    ),
    Usage("models", (writes("--json", "models.json"),)),
    Usage("info", (writes("--json", "info.json"), Row("--model", "m", LOADED), row("--device", "cpu"))),
    Usage("info --model m", (of_device(),), {"load.source": "m"}),
)  # fmt: skip
USAGES = (*DRAWING, *TRAINING, DISTILLING, *MEASURING, *OTHERS)
