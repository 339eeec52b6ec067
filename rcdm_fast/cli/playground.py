"""`rcdm app`: the playground on this machine.

Knows nothing about the page (`app/page.py`).
"""

from __future__ import annotations

from typing import Annotated

import typer

from rcdm_fast.cli import common


def app(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Model to offer, the first one at the start; repeatable. "
            f"Default: {common.DEFAULT_MODEL} and the other bundled ones.",
        ),
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            help="Other encoder of the --model in the same place, such as python:vit.py:MyViT?trust=1, '' for its own; "
            "repeatable."
        ),
    ] = None,
    data: Annotated[str | None, common.data("Whose properties and components become directions")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than 127.0.0.1 let other machines in.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 7860,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait.")] = 8,
    upload_mib: Annotated[int, typer.Option(min=1, help="Largest upload in MiB.")] = 16,
    quota_mib: Annotated[
        int, typer.Option(min=1, help="MiB of uploads and drawings that are kept, for an hour.")
    ] = 1024,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name by which the page may be reached beside this machine's, as through a proxy; repeatable."
        ),
    ] = None,
    device: common.Device = None,
    engine: common.EngineName = "auto",
    precision: common.Precision = "auto",
) -> None:
    """Open a page that draws samples of a photo dropped on it.

    Example: rcdm app --model cifar10-simclr-trunk --model cifar10-simclr-head
    """
    from rcdm_fast.app import guard, page
    from rcdm_fast.app.playground import Playground
    from rcdm_fast.config import ConfigError
    from rcdm_fast.models import checkpoint

    if encoder and not model:
        raise ConfigError("--encoder is another encoder of a --model, and none is given")
    named = common.with_encoders(model or (), encoder or (), "--model")
    if len(dict(named)) < len(named):
        raise ConfigError("a model is offered once: each --model has another name")
    offered = model or dict.fromkeys((common.DEFAULT_MODEL, *checkpoint.list_bundled()))
    common.check_alone(precision, list(offered)[1:])
    others = {name: spec for name, spec in named if spec is not None}
    playground = Playground(tuple(offered), device, engine, precision, data, others)
    playground.model(playground.models[0])
    if data is not None:
        playground.from_data(playground.models[0])
    if not guard.is_loopback(host):
        common.report(f"{host}: anybody who reaches this address can use the page")
    common.report(f"http://{host}:{port}  (ctrl-c ends it)")
    page.launch(
        playground,
        host=host,
        port=port,
        queue=queue,
        upload_mib=upload_mib,
        quota_mib=quota_mib,
        allow_hosts=tuple(allow_host or ()),
    )
