"""A folder that diffusers loads: ``UNet2DModel`` and ``DDIMScheduler`` with the same numbers.

UNet2DModel takes its class embedding as it is ("identity"), so the folder also holds the linear layer that makes it of
a representation: class_labels = W h + b. ``rcdm_pipeline.py`` puts the parts together without rcdm_fast.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from rcdm_fast import config as configs
from rcdm_fast import storage
from rcdm_fast.config import ConfigError, ModelConfig, ScheduleConfig
from rcdm_fast.exporters.graph import example_inputs
from rcdm_fast.exporters.job import Job
from rcdm_fast.exporters.onnx import ExportError
from rcdm_fast.models import diffusers_folder, diffusers_pipeline
from rcdm_fast.models.diffusers_folder import CONFIG
from rcdm_fast.models.diffusers_pipeline import EMBEDDING, RcdmPipeline
from rcdm_fast.models.diffusers_unet import convert, reasons_unavailable
from rcdm_fast.models.unet import UNet
from rcdm_fast.storage import StorageError

PRECISIONS = ("fp32",)
PIPELINE = "rcdm_pipeline.py"
TOLERANCE = 1e-5  # relative L2 error of eps

missing_packages = diffusers_folder.missing_packages


def write(out: Path, job: Job) -> list[Path]:
    """Write ``unet/``, ``scheduler/``, the embedding of representations, our configuration, a pipeline and a README.

    Raises:
        ConfigError: a network that UNet2DModel cannot be, with the reasons.
        ExportError: eps differs from ours by more than `TOLERANCE`; nothing is left at `out`.
        StorageError: `out` cannot be written, or holds something else.
    """
    reasons = reasons_unavailable(job.config.unet)
    schedule = job.config.schedule
    if schedule.rescale_timesteps and schedule.diffusion_steps != 1000:
        reasons.append("it sees the scheduler's timesteps, this network rescaled ones (rescale_timesteps)")
    if reasons:
        raise ConfigError(f"this network cannot be diffusers' UNet2DModel: {'; '.join(reasons)}")
    try:
        strange = out.exists() and any(out.iterdir()) and not (out / CONFIG).exists()
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror or error})") from error
    if strange:
        raise StorageError(f"{out}: not empty, and no earlier export")
    network = UNet(job.config.unet).eval()
    network.load_state_dict(job.network.state_dict())
    job.report("network: converting and checking")
    embedding = dict(network.ssl_emb.state_dict()) if job.config.unet.representation_dim else {}
    pipeline = RcdmPipeline(convert(network), scheduler(schedule), embedding)
    _check(pipeline, network, schedule)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            place = Path(folder)
            pipeline.unet.save_pretrained(place / "unet")
            pipeline.scheduler.save_pretrained(place / "scheduler")
            if embedding:
                storage.save_tensors(place / EMBEDDING, embedding, {})
            shutil.copyfile(diffusers_pipeline.__file__, place / PIPELINE)
            (place / CONFIG).write_text(configs.to_json(job.config), encoding="utf-8")
            (place / "README.md").write_text(_readme(job.config, pipeline.unet), encoding="utf-8")
            files = sorted(path.relative_to(place) for path in place.rglob("*") if path.is_file())
            for file in files:
                (out / file).parent.mkdir(parents=True, exist_ok=True)
                os.replace(place / file, out / file)
            if not embedding:  # of an earlier export, whose network took representations
                (out / EMBEDDING).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror or error})") from error
    return [out / file for file in files]


def scheduler(schedule: ScheduleConfig) -> Any:
    """DDIMScheduler with the same betas; N steps that divide T visit the timesteps of our ``steps="ddimN"``.

    Its other spacings do not fit: `step` always goes back by T // N.
    """
    from diffusers import DDIMScheduler

    linear = schedule.noise_schedule == "linear"
    scale = 1000 / schedule.diffusion_steps
    return DDIMScheduler(
        num_train_timesteps=schedule.diffusion_steps,
        beta_start=scale * 1e-4,
        beta_end=scale * 2e-2,
        beta_schedule="linear" if linear else "squaredcos_cap_v2",
        clip_sample=True,
        set_alpha_to_one=True,
        prediction_type={"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[schedule.prediction],
        timestep_spacing="leading",
    )


@torch.inference_mode()
def _check(pipeline: RcdmPipeline, network: UNet, schedule: ScheduleConfig) -> None:
    config = network.config
    x, t, _, *given = example_inputs(config, schedule, 3, torch.Generator().manual_seed(0))
    condition = given[0] if given else None
    h, label = (condition, None) if config.representation_dim else (None, condition)
    want = network(x, t, h, label)
    got = pipeline.unet(x, t, class_labels=pipeline.class_labels(condition), return_dict=False)[0]
    error = float((got - want).norm() / want.norm())
    if not error <= TOLERANCE:
        raise ExportError(f"diffusers gives another eps: relative L2 error {error:.1e}, allowed {TOLERANCE:.0e}")


def _readme(config: ModelConfig, unet: Any) -> str:
    """What lies in the folder and how it is used."""
    given = {True: "representations", False: "labels" if config.unet.num_classes else "nothing"}
    takes = given[bool(config.unet.representation_dim)]
    encoder = config.encoder
    h = {
        "representations": f"h = torch.randn(8, {config.unet.representation_dim})  # in place of the encoder's output",
        "labels": f"h = torch.arange(8) % {config.unet.num_classes}",
        "nothing": "h = None",
    }[takes]
    seen = f" of {encoder.source} ({encoder.layer})" if encoder is not None and takes == "representations" else ""
    plain = isinstance(unet.config.attention_head_dim, int)
    loads = (
        '`UNet2DModel.from_pretrained("unet")` loads the network'
        if plain
        else "Its attention heads have several widths, which `UNet2DModel.from_pretrained` rejects (TypeError):\n"
        'load the network with `rcdm_pipeline.load_unet(".")`, which returns a UNet2DModel'
    )
    variance = ", the last 3 of its 6 channels are a learned variance" if config.unet.learn_sigma else ""
    return f"""# {config.name or "RCDM"} for diffusers

A diffusion network for {config.unet.image_size}-pixel images that takes {takes}{seen}.

```python
import torch
from rcdm_pipeline import RcdmPipeline  # beside this file

pipeline = RcdmPipeline.load(".")
{h}
images = pipeline(h, steps=50)  # [N, 3, {config.unet.image_size}, {config.unet.image_size}] in [-1, 1]
```

{loads}; it predicts {config.schedule.prediction}{variance}.
`class_labels` of a representation h are W h + b with the tensors of `{EMBEDDING}`.
`scheduler.step` needs `use_clipped_model_output=True`. With the same noise and a number of steps N that divides
{config.schedule.diffusion_steps}, these are the images of rcdm_fast with `steps="ddimN"`.
`rcdm_fast.load` reads this folder back, bit for bit, and `{CONFIG}` says everything about the model.
"""
