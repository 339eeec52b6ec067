"""The options of the commands that measure: evaluate, analyze, report, bench, compare (see `command_options.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rcdm_fast.solver_quality import SolverCase
from tests import command_calls
from tests.command_rows import (
    GONE,
    LAST,
    READ,
    Row,
    Usage,
    again,
    all_of,
    gone,
    of_device,
    of_engine,
    of_file,
    path,
    row,
    switch,
    writes,
)  # fmt: skip

CPU = torch.device("cpu")
HALF = {"value": 0.5, "low": 0.5, "high": 0.5}
NOTHING = dict.fromkeys(("flags", "encoder", "device", "convention", "pooling"))
AS_FIRST: dict[str, Any] = {**NOTHING, "engine": "auto", "precision": "auto"}
SECOND = again("load#2", source="b", engine_file=None, sha256=None, **AS_FIRST)
THIRD = again("load#3", source="third", engine_file=None, sha256=None, **AS_FIRST)
ABOUT = "Measured on {}, seed {}. Intervals are 95 % intervals."
TASKS, RANKED = "page.tasks[0].job page.tasks[1].job", "evaluate evaluate#2"
TASK = "name job.model job.data job.photos job.training job.against job.wanted job.progress job.settings.seed"

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
                    ("draw__data", "faithfulness__drawn__real", "distribution__drawn__real"), "images of E"
                ),
            ),
            row("--sources", 3, *all_of("draw faithfulness", "config.sources"), check_distribution__sources=3),
            row("--per", 2, *all_of("draw faithfulness", "config.per")),
            row(
                "--gallery",
                5,
                *all_of("draw faithfulness", "config.gallery"),
                "check_distribution.gallery",
                check_distribution__sources=5,
            ),
            row("--steps", 7, *all_of("draw faithfulness", "config.steps")),
            row("--solver", "ancestral", *all_of("draw faithfulness", "config.solver")),
            row("--eta", 0.5, *all_of("draw faithfulness", "config.eta")),
            row("--guidance", 2.5, *all_of("draw faithfulness", "config.guidance")),
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
                build__layer=None,
                build__pooling=None,
                build__stored=None,
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
                "--reference-npz",
                "r.npz",
                "read_npz.path",
                distribution__reference=[9, 3, 8, 8],
                check_distribution__reference=9,
            ),
            Row("--npz", "s.npz", {"files": ["s.npz"], "arrays.arr_0": [2, 8, 8, 3], "arrays.arr_1": [2]}),
            writes("--json", "mrr.json"),
            *of_engine(),
        ),
    ),
    Usage(
        "evaluate bare --data D --representations h.npy",
        (row("--representations", Path("g.npy"), "aligned.given"),),
    ),
    Usage(
        "evaluate bare --data D --representations h.npy --guidance 2.5 --guide weak",
        (row("--guide", "other", "load#2.source", unranked__guide="model other"),),
        {
            "load#2.device": "cpu",
            "unranked.guide": "model weak",
            "unranked.config.guidance": 2.5,
            "measured.config.guidance": 2.5,
        },
    ),
    Usage(
        "evaluate m --data D --guidance 2.5 --guide weak",
        (row("--guide", "other", "load#2.source", draw__guide="model other"),),
        {
            "load#2.device": "cpu",
            "draw.guide": "model weak",
            **dict.fromkeys(all_of("draw.config faithfulness.config", "guidance"), 2.5),
        },
    ),
    Usage(
        "evaluate m --data D --seed 4",
        (
            Row(
                "--denoising",
                None,
                again(
                    "x0_errors",
                    model="model m",
                    data="images of D",
                    index=[2],
                    timesteps=None,
                    seed=4,
                    batch_size=64,
                    resamples=2000,
                    h=None,
                ),
            ),
        ),
        dict.fromkeys((*all_of("draw.config faithfulness.config", "seed"), "distribution.seed"), 4),
    ),
    Usage(
        "evaluate m --data D --rank-by bundled:a",
        (row("--rank-by", "bundled:b", "build.source", draw__rank_by="encoder bundled:b"),),
        {"draw.rank_by": "encoder bundled:a", "draw.gallery": None, "build.device": CPU},
    ),
    Usage(
        "evaluate m --data D --probe bundled:a --probe-data F",
        (
            row("--probe", "bundled:b", "build.source", recognized__encoder="encoder bundled:b"),
            row(
                "--probe-data",
                "G",
                "open_data#2.source",
                **dict.fromkeys(("recognized__known", "check_classes__known", "check_unseen__known"), "images of G"),
            ),
        ),
        {
            "recognized.drawn.real": "images of D",
            "check_classes.data": "images of D",
            "check_unseen.asked": "images of D",
            "build.device": CPU,
        },
    ),
    Usage(
        "analyze m layers --data D --out o --against other",
        (
            row(1, "attack", "experiment.name", files=["o/attack.json"]),
            row(0, "new", "load.source", experiment__job__model="model new"),
            Row("--out", "found", {"files": ["found/layers.json"]}),
            row("--data", "E", "open_data.source", experiment__job__data="images of E"),
            Row("--against", "third", {"experiment.job.against[1]": "model third", **THIRD}),
            row("--against-encoder", "file:net", "load#2.encoder"),
            *(row(f"--{name}", 7, f"experiment.job.settings.{name}") for name in ("sources", "per", "steps")),
            row("--solver", "ancestral", "experiment.job.settings.solver"),
            row("--seed", 9, "experiment.job.settings.seed"),
            Row("--set", 'kinds=["hue"]', {"experiment.job.settings.kinds": ["hue"]}),
            *of_file(),
            *of_engine("load load#2"),
        ),
        {"experiment.job.data": "images of D", "load.source": "m", "load#2.source": "other"},
    ),
    Usage(
        "analyze m layers --data D --layers a,b --out o",
        (
            Row("--layers", "a,c.d", {"experiment.job.wanted.layers": ("a", "c.d")}),
            Row("--encoders", "onnx:x,file:y", {"experiment.job.wanted.encoders": ("onnx:x", "file:y")}),
        ),
        {
            "experiment.job.data": "images of D",
            "experiment.job.wanted.decoder": "m",
            "experiment.job.wanted.folder": Path("o/adapted"),
            "experiment.job.wanted.layers": ("a", "b"),
        },
    ),
    Usage(
        "analyze m neighbors --data D --train-data T --photograph [A-D] --out o",
        (
            row("--train-data", "U", "open_data#2.source", experiment__job__training="images of U"),
            row("--photograph", "D", "cut_from.pattern"),
        ),
        {"experiment.job.data": "images of D", "experiment.job.training": "images of T"},
    ),
    Usage(
        "analyze m unfamiliar --data D --photos P --out o",
        (row("--photos", "Q", "open_data#2.source", experiment__job__photos="images of Q"),),
        {"experiment.job.data": "images of D", "experiment.job.photos": "images of P"},
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
                    **dict.fromkeys(all_of(TASKS, "photos"), "images of P"),
                    "open_data.source": "P",
                    **again("open_data#2", source="D", **READ),
                    "page.about": ABOUT.format("6 images and 6 photographs", 0),
                },
            ),
            Row("--data", "E", {"open_data.source": "E", **dict.fromkeys(all_of(TASKS, "data"), "images of E")}),
            Row("--against", "third", {"page.tasks[0].job.against[1]": "model third", **THIRD}),
            row("--against-encoder", "file:net", "load#2.encoder"),
            Row("--experiments", "layers", gone("page.tasks[1]", TASK)),
            Row("--methods", None, gone("page", "methods")),  # a function that is told the paragraph
            row("--sources", 4, *all_of(TASKS, "settings.sources")),
            row("--steps", 7, *all_of(TASKS, "settings.steps"), page__about=ABOUT.format("6 images, 7 steps", 0)),
            row("--solver", "heun", *all_of(TASKS, "settings.solver")),
            row("--seed", 9, *all_of(TASKS, "settings.seed"), page__about=ABOUT.format("6 images", 9)),
            *of_file(),
            *of_engine("load load#2"),
        ),
        {**dict.fromkeys(all_of(TASKS, "data"), "images of D")},
    ),
    Usage(
        "report m --data D --train-data T --photograph [A-D] --experiments neighbors,faithfulness --out r.html",
        (
            row("--train-data", "U", "open_data#2.source", **{"page.tasks[0].job.training": "images of U"}),
            row("--photograph", "D", "cut_from.pattern"),
        ),
        {
            **dict.fromkeys(all_of(TASKS, "data"), "images of D"),
            "page.tasks[0].job.training": "images of T",
        },
    ),
    Usage(
        "report m --photos P --sources 4 --out r.html",
        other={
            "page.tasks[0].name": "photos",
            "page.tasks[0].job.photos": "images of P",
            "page.tasks[0].job.settings.steps": GONE,  # every experiment has its own
            "page.tasks[0].job.settings.sources": GONE,
            "page.tasks[1].name": GONE,
        },
    ),
    Usage(
        "bench m --steps 7",
        (
            row(0, "new", "load.source", measure__model="model new"),
            row("--steps", 8, "measure.plan.cases[0].steps"),
            row("--solver", "ancestral", "measure.plan.cases[0].solver"),
            row("--engine", "eager", "measure.plan.cases[0].engine"),
            row("--precision", "bf16", "measure.plan.cases[0].precision"),
            row("--batch-size", 4, "measure.plan.batch"),
            row("--images", 32, "measure.plan.images"),
            row("--rounds", 3, "measure.plan.rounds"),
            row("--budget", 2.5, "measure.plan.budget_s"),
            switch("--no-published", "measure.plan.published", False),
            *of_file(),
            of_device(),
            writes("--json", "rates.json"),
        ),
        {"measure.plan.cases[0].steps": 7, "measure.plan.cases[0].solver": "deis"},
    ),
    Usage(
        "bench m --steps 7 --data D",
        (
            row("--data", "E", "open_data.source", **dict.fromkeys(("can__data", "quality__data"), "images of E")),
            *(row(f"--{name}", 21, *all_of("can quality", f"config.{name}")) for name in ("sources", "references")),
            row("--per", 3, *all_of("can quality", "config.per")),
            row("--gallery", 5, *all_of("can quality", "config.gallery")),
            row("--baseline", "ancestral:6", quality__first_case=SolverCase("ancestral", 6)),
            row("--seed", 9, *all_of("can quality", "config.seed")),
            writes("--plot", "p.svg"),
        ),
        {
            "measure.plan.cases[0].steps": 7,
            "measure.plan.cases[0].solver": "deis",
            **dict.fromkeys(("can.data", "quality.data"), "images of D"),
        },
    ),
    Usage(
        "tune m --data D --trajectories 6",
        (
            row(0, "new", "load.source", fit__model="model new"),
            row("--data", "E", "open_data.source"),
            Row("--nfe", "7", {"fit.config.nfe": (7,)}),
            row("--solver", "deis", "fit.config.solver"),
            row("--trajectories", 5, "fit.trajectories", fit__h=[5, 6]),
            row("--candidates", 30, "fit.config.candidates"),
            row("--seed", 9, "fit.config.seed"),
            Row("--masked-parts", "4,1", {**again("hide", h=[6, 6], parts=(4, 1), seed=0)}),
            row("--batch-size", 4, "fit.config.batch_size"),
            *of_file(),
            *of_engine(),
            writes("--json", "steps.json"),
        ),
        {"fit.h": [6, 6], "fit.trajectories": 6, "fit.config.nfe": (4, 5, 6, 8, 10)},
    ),
    Usage(
        "tune m --data D --trajectories 6 --out t.safetensors",
        (
            row("--minutes", 5.0, "learn.config.minutes"),
            Row(
                "--init",
                "old",
                {
                    "learn.begin": ("solvers of old",),
                    **again("begin", model="model m", name="old", nfe=[4, 5, 6, 8, 10]),
                },
            ),
            row("--data", "E", "open_data.source"),
            Row("--nfe", "7", {"learn.config.nfe": (7,)}),
            row("--trajectories", 5, "learn.trajectories", learn__h=[5, 6]),
            row("--candidates", 30, "learn.config.candidates"),
            row("--seed", 9, "learn.config.seed"),
            row("--batch-size", 4, "learn.config.evaluation_batch"),
            Row(
                "--out",
                "u.safetensors",
                {"learn.state": Path("u.safetensors.learning"), "tuned.path": Path("u.safetensors")},
            ),
        ),
        {
            "learn.h": [6, 6],
            "learn.trajectories": 6,
            "learn.config.nfe": (4, 5, 6, 8, 10),
            "learn.state": Path("t.safetensors.learning"),
        },
    ),
    Usage(
        "bench m",
        other={f"measure.plan.cases[{k}].steps": n for k, n in enumerate((10, 25, 50, 100))}
        | {f"measure.plan.cases[{k}].solver": "deis" for k in range(4)},  # what auto is for this model
    ),
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
                {"compare.h": [1, 6], "encode.images": [Path("given/a.png")], "encode.on_bad": None},
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
            row("--per", 3, "compare.settings.per", *all_of(RANKED, "config.per")),
            row("--seed", 9, "compare.settings.seed", *all_of(RANKED, "config.seed")),
            row("--batch-size", 5, "compare.settings.batch_size"),
            row("--rounds", 3, "compare.settings.rounds"),
            row(
                "--data",
                "E",
                "open_data.source",
                evaluate__data="images of E",
                **{"evaluate#2__data": "images of E"},
            ),
            row("--sources", 3, *all_of(RANKED, "config.sources")),
            row("--gallery", 5, *all_of(RANKED, "config.gallery")),
            row("--min-psnr", 31.5, "failures.min_psnr"),
            row("--max-mrr-loss", 1.5, "failures.max_mrr_loss"),
            *of_file(),
            of_device(),
            Row(
                "--json",
                "numbers.json",
                {
                    "files": ["numbers.json"],
                    "numbers.rows": [
                        {**command_calls.drift(name).row(), "mrr": HALF, "mrr_change": HALF}
                        for name in ("eager", "native")
                    ],
                },
            ),
        ),
        {
            "load.engine": "eager",
            "load.precision": "fp32",
            **dict.fromkeys(all_of(RANKED, "config.steps"), 10),
            **dict.fromkeys(("with_engine.encoder", "with_engine#2.encoder"), "encoder module"),
            "compare.cases[0].engine": "native",
            "compare.cases[1].engine": "native",
            "compare.cases[1].precision": "bf16",
            "failures.min_psnr": 0.0,
            "failures.max_mrr_loss": 100.0,
        },
    ),
    Usage(
        "calibrate a",
        (
            Row(LAST, "late=b", {"calibrate.decoders.late": "model b", **SECOND}),
            Row("--quick", None, {"calibrate.config.subsets": 4, "calibrate.config.sources": 128}),
            row("--reader", "other", "file_of.name"),
            row("--steps", 7, "calibrate.config.steps"),
            row("--solver", "ddim", "calibrate.config.solver"),
            row("--seed", 9, "calibrate.config.seed"),
            Row("--set", "fraction=2", {"calibrate.config.fraction": 2}),
            Row("--max-wrong", "3", {}),
            *of_engine(),
            writes("--json", "x.json"),
        ),
        {"load.source": "a", "file_of.name": "shapes-reader"},
    ),
)
