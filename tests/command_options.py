"""Every option of every command, with a value that it does not have by itself, and all that changes then.

Names of what changes are those of `command_calls`: ``call.argument.field``.
"""

from __future__ import annotations

from pathlib import Path

import torch

from tests import small
from tests.command_rows import (
    GONE,
    LAST,
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

CPU = torch.device("cpu")
HUB = "torchhub:a/b:c"  # whose code is trusted with the option behind it
TRUSTED = f"{HUB}?trust_repo=1"
DEFAULT = {"load.source": "cifar10-simclr-trunk"}
BUILT = {"device": "cpu", "config": None, "trust_repo": False}
READ = {"size": 8, "store": None, "workers": 8}
AS_FIRST = {"flags": None, "encoder": None, "device": None, "engine": "auto", "precision": "auto"}
THIRD = again("load#3", source="third", engine_file=None, sha256=None, **AS_FIRST)
NUMBERS = gone("numbers", "model engine nfe pictures left_out solver seed")
ABOUT = "Measured on {}, {} steps, seed {}. Intervals are 95 % bootstrap intervals."
TASKS, RANKED, PAGE = "page.tasks[0].job page.tasks[1].job", "evaluate evaluate#2", "playground launch.playground"
TASK = "name job.model job.data job.photos job.against job.progress job.settings.steps job.settings.seed"

DRAWING = (
    Usage(
        "sample given/a.png --json numbers.json",
        (
            Row(0, "given/b.png", {"open_image.source": Path("given/b.png")}),
            row("--model", "other", "load.source", "numbers.model", check__model="model other"),
            row("--per", 3, "check.config.per", "request.per", "numbers.pictures"),
            row("--steps", 7, "check.config.steps", "request.steps", "numbers.nfe"),
            row("--solver", "ancestral", *all_of("check.config request numbers", "solver")),
            row("--eta", 0.5, "check.config.eta", "request.eta"),
            row("--guidance", 2.5, "check.config.guidance", "request.guidance"),
            row("--seed", 9, *all_of("check.config request numbers", "seed")),
            writes("--out", "a.webp", beside="numbers.json"),
            writes("--pictures", "p", beside="numbers.json sheet.png", folder=[f"00000-a-00{k}.png" for k in range(8)]),
            row("--batch-size", 5, "batches.batch_size"),
            Row("--json", "x.json", {"files": ["sheet.png", "x.json"], **NUMBERS}),
            *of_file(),
            *of_engine(),
        ),
        {**DEFAULT, "request.h": [1, 6], "request.items": [0]},
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
            row("--per", 2, "interpolate.per"),
            row("--mode", "spherical", "interpolate.mode"),
            row("--steps", 7, "interpolate.steps"),
            row("--seed", 9, "interpolate.seed"),
            writes("--out", "a.webp"),
            *of_file(),
            *of_engine(),
        ),
        {**DEFAULT, "interpolate.per": 4},
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
            row("--data", "E", "open_data.source", train__data="pictures of E"),
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
            row("--pictures", 640, "train.config.pictures"),
            switch("--no-compile", "train.config.compile", False),
            Row("--set", "loss.gamma=3", {"train.config.loss.gamma": 3}),
            path("--store", "kept", "open_data.store"),
            row("--minutes", 1.5, "train.minutes"),
            Row("--trust-repo", None, {"train.trusted": ["timm:resnet18"]}),
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
            Row(0, "other", {"pretrain.out": Path("runs/other")}),
            row("--data", "E", "open_data.source", pretrain__train="pictures of E"),
            Row("--config", "given/pretrain2.json", {"pretrain.config.batch_size": 32}),
            path("--out", "other", "pretrain.out"),
            Row(
                "--test",
                "T",
                {"pretrain.test": "pictures of T", **again("open_data#2", source="T", **READ | {"size": 32})},
            ),
            row("--pictures", 640, "pretrain.config.pictures"),
            switch("--no-compile", "pretrain.config.compile", False),
            of_device("pretrain"),
            writes("--json", "knn.json"),
        ),
    ),
    Usage(
        "adapt m --encoder timm:resnet18 --data D --out runs/new",
        (
            row(0, "other", "load_model.source", "adapt.config.model"),
            Row(
                "--encoder",
                TRUSTED,
                {"build.source": TRUSTED, "adapt.config.encoder.source": HUB, "adapt.trusted": [HUB]},
            ),
            row("--data", "E", "open_data.source", adapt__data="pictures of E"),
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
            row("--steps", 7, "adapt.config.steps"),
            row("--batch-size", 5, "adapt.config.batch_size"),
            row("--learning-rate", 0.01, "adapt.config.learning_rate"),
            row("--rank", 2, "adapt.config.rank"),
            row("--updated", "all", "adapt.config.updated"),
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
)
MEASURING = (
    Usage(
        "evaluate m --data D",
        (
            row(0, "other", "load.source", draw__model="model other"),
            row(
                "--data",
                "E",
                "open_data.source",
                **dict.fromkeys(
                    ("draw__data", "faithfulness__drawn__real", "distribution__drawn__real"), "pictures of E"
                ),
            ),
            row("--sources", 3, *all_of("draw faithfulness", "config.sources"), check_counts__samples=12),
            row("--samples", 2, *all_of("draw faithfulness", "config.samples"), check_counts__samples=12),
            row(
                "--gallery",
                5,
                *all_of("draw faithfulness", "config.gallery"),
                "check_counts.real",
                check_counts__samples=20,
            ),
            row("--steps", 7, *all_of("draw faithfulness", "config.steps")),
            row("--solver", "ancestral", *all_of("draw faithfulness", "config.solver")),
            row("--seed", 9, *all_of("draw faithfulness", "config.seed"), "distribution.seed"),
            *of_file(),
            row(
                "--features",
                "timm:resnet18",
                "build.source",
                of_encoder__encoder="encoder timm:resnet18",
                build__device=CPU,
                build__config=None,
                build__trust_repo=False,
            ),
            path(
                "--inception",
                "i.pth",
                "of_inception.weights",
                of_inception__device=CPU,
                distribution__space="features of Inception",
                of_encoder__encoder=GONE,
            ),
            path(
                "--reference-npz", "r.npz", "read_npz.path", distribution__reference=[9, 3, 8, 8], check_counts__real=9
            ),
            writes("--npz", "drawn.npz"),
            writes("--json", "mrr.json"),
            *of_engine(),
        ),
    ),
    Usage(
        "analyze layers m --data D --out o --against other",
        (
            row(0, "attack", "experiment.name", files=["o/attack.json"]),
            row(1, "new", "load.source", experiment__job__model="model new"),
            Row("--out", "found", {"files": ["found/layers.json"]}),
            row("--data", "E", "open_data.source", experiment__job__data="pictures of E"),
            Row("--against", "third", {"experiment.job.against[1]": "model third", **THIRD}),
            *(row(f"--{name}", 7, f"experiment.job.settings.{name}") for name in ("sources", "samples", "steps")),
            row("--solver", "ancestral", "experiment.job.settings.solver"),
            row("--seed", 9, "experiment.job.settings.seed"),
            Row("--set", 'kinds=["hue"]', {"experiment.job.settings.kinds": ["hue"]}),
            *of_file(),
            *of_engine("load load#2"),
        ),
        {"experiment.job.data": "pictures of D", "load.source": "m", "load#2.source": "other"},
    ),
    Usage(
        "analyze unfamiliar m --data D --photos P --out o",
        (row("--photos", "Q", "open_data#2.source", experiment__job__photos="pictures of Q"),),
        {"experiment.job.data": "pictures of D", "experiment.job.photos": "pictures of P"},
    ),
    Usage(
        "report m --data D --against other --experiments layers,faithfulness --out r.html",
        (
            Row(
                0,
                "new",
                {
                    "load.source": "new",
                    "page.title": "What the representation of new keeps",
                    **dict.fromkeys(all_of(TASKS, "model"), "model new"),
                },
            ),
            path("--out", "new.html", "page.file"),
            Row(
                "--photos",
                "P",
                {
                    **dict.fromkeys(all_of(TASKS, "photos"), "pictures of P"),
                    "open_data.source": "P",
                    **again("open_data#2", source="D", **READ),
                    "page.about": ABOUT.format("6 pictures and 6 photographs", 25, 0),
                },
            ),
            Row("--data", "E", {"open_data.source": "E", **dict.fromkeys(all_of(TASKS, "data"), "pictures of E")}),
            Row("--against", "third", {"page.tasks[0].job.against[1]": "model third", **THIRD}),
            Row("--experiments", "layers", gone("page.tasks[1]", TASK)),
            row("--sources", 4, *all_of(TASKS, "settings.sources")),
            row("--steps", 7, *all_of(TASKS, "settings.steps"), page__about=ABOUT.format("6 pictures", 7, 0)),
            row("--seed", 9, *all_of(TASKS, "settings.seed"), page__about=ABOUT.format("6 pictures", 25, 9)),
            *of_file(),
            *of_engine("load load#2"),
        ),
        {**dict.fromkeys(all_of(TASKS, "data"), "pictures of D"), "page.command": "rcdm ..."},
    ),
    Usage(
        "report m --photos P --sources 4 --out r.html",
        other={
            "page.tasks[0].name": "photos",
            "page.tasks[0].job.photos": "pictures of P",
            "page.tasks[0].job.settings.steps": 25,
            "page.tasks[0].job.settings.sources": GONE,
            "page.tasks[1].name": GONE,
            "page.command": "rcdm ...",
        },
    ),
    Usage(
        "bench m --steps 7",
        (
            row(0, "new", "load.source", measure__model="model new"),
            row("--steps", "8", "measure.plan.cases[0].steps"),
            row("--solver", "ancestral", "measure.plan.cases[0].solver"),
            row("--engine", "eager", "measure.plan.cases[0].engine"),
            row("--precision", "bf16", "measure.plan.cases[0].precision"),
            row("--batch", 4, "measure.plan.batch"),
            row("--pictures", 32, "measure.plan.pictures"),
            row("--rounds", 3, "measure.plan.rounds"),
            row("--budget", 2.5, "measure.plan.budget_s"),
            switch("--no-published", "measure.plan.published", False),
            *(each for each in of_file() if each.option != "--encoder"),
            of_device(),
            writes("--json", "rates.json"),
        ),
        {"measure.plan.cases[0].steps": "7"},
    ),
    Usage("bench m", other={f"measure.plan.cases[{k}].steps": n for k, n in enumerate(("10", "25", "50", "100"))}),
    Usage(
        "compare m --data D",
        (
            row(
                0,
                "new",
                "load.source",
                compare__model="model new",
                **dict.fromkeys(
                    ("with_engine__model", "with_engine#2__model", "evaluate__model", "evaluate#2__model"), "model new"
                ),
            ),
            Row(
                LAST,
                "given/a.png",
                {"compare.h": [1, 6], "encode.pictures": [Path("given/a.png")], "encode.on_bad": None},
            ),
            Row(
                "--engines",
                "eager:fp16",
                {
                    "compare.cases[0].engine": "eager",
                    "compare.cases[0].precision": "fp16",
                    **gone("compare.cases[1]", "engine precision file"),
                },
            ),
            writes("--out", "sheet.webp"),
            row("--steps", 7, "compare.settings.steps", *all_of(RANKED, "config.steps")),
            row("--solver", "ancestral", "compare.settings.solver", *all_of(RANKED, "config.solver")),
            row("--per", 3, "compare.settings.per", *all_of(RANKED, "config.samples")),
            row("--seed", 9, "compare.settings.seed", *all_of(RANKED, "config.seed")),
            row("--batch", 5, "compare.settings.batch_size"),
            row("--rounds", 3, "compare.settings.rounds"),
            row(
                "--data",
                "E",
                "open_data.source",
                evaluate__data="pictures of E",
                **{"evaluate#2__data": "pictures of E"},
            ),
            row("--sources", 3, *all_of(RANKED, "config.sources")),
            row("--gallery", 5, *all_of(RANKED, "config.gallery")),
            row("--min-psnr", 31.5, "failures.min_psnr"),
            row("--max-mrr-loss", 1.5, "failures.max_mrr_loss"),
            *of_file(),
            of_device(),
            writes("--json", "rows.json"),
        ),
        {
            "load.engine": "eager",
            "load.precision": "fp32",
            **dict.fromkeys(all_of(RANKED, "config.steps"), 25),
            **dict.fromkeys(("with_engine.encoder", "with_engine#2.encoder"), "encoder module"),
            "compare.cases[0].engine": "native",
            "compare.cases[1].engine": "native",
            "compare.cases[1].precision": "bf16",
            "failures.min_psnr": 0.0,
            "failures.max_mrr_loss": 100.0,
        },
    ),
)
OTHERS = (
    Usage(
        "app --model m",
        (
            Row("--model", "new", dict.fromkeys(all_of(PAGE, "models"), ("m", "new"))),
            row("--data", "D", *all_of(PAGE, "data"), from_data__name="m"),
            row("--host", "0.0.0.0", "launch.host"),
            *(row(f"--{name}", 19, f"launch.{name.replace('-', '_')}") for name in (
                "port", "queue", "upload-mib", "quota-mib")),
            Row("--allow-host", "a.example", {"launch.allow_hosts": ("a.example",)}),
            *of_engine(PAGE),
        ),
        {"launch.host": "127.0.0.1", "launch.port": 7860, "launch.queue": 8, "launch.upload_mib": 16},
    ),
    Usage("app", other=dict.fromkeys(
        all_of(PAGE, "models"), ("cifar10-simclr-head", "cifar10-simclr-trunk", "cifar10-supervised"))),
    Usage(
        "export m --to onnx --out e",
        (
            row(0, "new", "load.source"),
            row("--to", "openvino", "export.to"),
            path("--out", "f", "export.out"),
            row("--precision", "fp16", "export.precision"),
            Row("--target", "sm86,sm89", {"export.targets": ("sm86", "sm89")}),
            Row("--batch", "1,4", {"export.batches": (1, 4)}),
            switch("--dynamic", "export.dynamic"),
            switch("--no-encoder", "export.encoder", False),
            Row("--calibrate", "given", {"export.calibrate": [Path(f"given/{name}.png") for name in "abc"]}),
            *of_file(),
            of_device(),
        ),
        {"load.device": "cpu", "load.engine": "eager"},
    ),
    Usage("models"),
    Usage("info", (writes("--json", "info.json"),)),
)  # fmt: skip
USAGES = (*DRAWING, *TRAINING, *MEASURING, *OTHERS)
