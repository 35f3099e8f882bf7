"""`mmprod parity selftest` on the device, without torch, and `accept` where its report arrives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmprod.cli.command import BundleArg
from mmprod.cli.output import Fields, Output, shown
from mmprod.cli.parity_page import parity_page
from mmprod.cli.paths import check_file_target
from mmprod.cli.progress import parity_tick, progress
from mmprod.cli.verdicts import parity_data, parity_views, require_engines, require_ok

Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        min=1,
        help="For one answer of a graph or engine, which runs in a process of its own.",
    ),
]


def selftest(
    out: Output,
    bundle: BundleArg,
    timeout: Timeout = 300,
    key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Sign the report with this private key."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the report here and leave the bundle as it is."),
    ] = None,
) -> None:
    """On the device, without torch: run every graph and engine on the stored reference cases.

    Writes reports/selftest-DEVICE.json into the bundle. Demands the engines built for this device:
    exit 3 when there is none or it cannot run them, 5 when an answer is wrong.
    """
    from mmprod.bundle import open_bundle
    from mmprod.parity.selftest import run_selftest

    if output:
        check_file_target(output)
    opened = open_bundle(bundle)
    with progress(out, parity_tick) as on_event:
        done = run_selftest(
            opened,
            timeout_s=timeout,
            key=key,
            output=output,
            on_event=on_event,
            page=parity_page,
        )
    device = done.device
    facts = {
        "device": f"{device.name} ({device.target})" if device.found else f"none: {device.reason}",
        "driver": device.driver or "-",
        "report": shown(done.path),
        "signature": shown(done.signature) if done.signature else "none: --key FILE signs it",
    }
    data = {
        **parity_data(done.report),
        "device": vars(device),
        "report": str(done.path),
        "signature": str(done.signature) if done.signature else None,
    }
    out.result(data, *parity_views(done.report), Fields("", facts))
    require_ok(done.report, opened.root)
    require_engines(done.report)


def accept(
    out: Output,
    report: Annotated[
        Path, typer.Argument(metavar="REPORT", help="What selftest wrote; its .sig beside it.")
    ],
    bundle: BundleArg,
    trusted: Annotated[
        list[Path],
        typer.Option("--trusted", metavar="KEY.pub", help="Keys of your devices; repeatable."),
    ],
) -> None:
    """Is a self-test report by a trusted key, of this bundle, and did all engines pass?

    Exit 4 for another signer, other files, cases or limits, 5 for a failure on the device, 3 when
    an engine that the bundle holds for that device was not run.
    """
    from mmprod.bundle import open_bundle
    from mmprod.parity.accept import accept as read

    opened = open_bundle(bundle)
    found = read(report, opened, trusted)
    device = found.device
    facts = {
        "device": f"{device['name']} ({device['target']}), driver {device['driver'] or 'unknown'}",
        "engines": f"{len(found.engines)} passed",
        "signed": f"key {found.signer.key}, {found.signer.signed_at}",
    }
    data = {
        "ok": True,
        "device": dict(device),
        "made_at": found.made_at,
        "engines": list(found.engines),
        **found.signer.as_dict(),
    }
    out.result(data, Fields(f"accepted: {shown(report)}", facts))
