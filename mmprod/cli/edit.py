"""`mmprod edit`: parts of a picture drawn anew, from a mask or from words.

mask picture ------------------------------------> places --+
old and new caption -> loss of likelihood -------> places --+-> graph `edit` -> pictures
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmprod.cli.command import Seed, SourceArg
from mmprod.cli.output import Fields, Output, shown
from mmprod.cli.sheet import (
    DenoiseOption,
    SeparateOption,
    SharpenOption,
    Sheet,
    read_mask,
    read_picture,
)
from mmprod.cli.source import Source, open_source
from mmprod.cli.use import (
    BackendOption,
    BestOption,
    GuidanceOption,
    JudgeOption,
    PrecisionOption,
    StepsOption,
    TemperatureOption,
    check_judge,
    describe,
    keep_best,
    sampler_changes,
)
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ids = npt.NDArray[np.int32]
    Pixels = npt.NDArray[np.uint8]

STRENGTH = 0.4
"""Share of the places that a text-driven edit draws anew, unless told."""


def edit(
    out: Output,
    source: SourceArg,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The picture to change.")],
    caption: Annotated[
        str,
        typer.Argument(metavar="[CAPTION]", help="What it shall show; optional with --mask."),
    ] = "",
    mask: Annotated[
        Path | None,
        typer.Option("--mask", metavar="PNG", help="White is drawn anew, black is kept."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            "--strength",
            help=f"Without a mask: share of the places drawn anew [default: {STRENGTH}]",
            show_default=False,
        ),
    ] = None,
    before: Annotated[
        str,
        typer.Option(
            "--from", metavar="CAPTION", help="What it shows now; the model says so if not given."
        ),
    ] = "",
    paste: Annotated[
        bool, typer.Option("--paste", help="Where the mask is black, the picture's own pixels.")
    ] = False,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Versions to draw.")] = 3,
    best: BestOption = 1,
    judge: JudgeOption = "likelihood",
    seed: Seed = 0,
    target: Annotated[
        Path, typer.Option("--out", metavar="PNG", help="Row to write, the original first.")
    ] = Path("edited.png"),
    separate: SeparateOption = None,
    denoise: DenoiseOption = False,
    sharpen: SharpenOption = False,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    temperature: TemperatureOption = None,
    backend: BackendOption = None,
    precision: PrecisionOption = "fp32",
) -> None:
    """Draw parts of a picture anew: where a mask is white, or what a new caption contradicts."""
    import numpy as np

    from mmprod.sampling import edit_images, no_words, places_outside

    _check_request(caption, mask, strength, before, paste=paste)
    check_judge(judge, captioned=bool(caption))
    sheet = Sheet(target, separate, denoise, sharpen)
    sheet.check()
    changes = sampler_changes(steps, guidance, temperature)
    opened = open_source(source, backend, precision, changes)
    original = read_picture(image, opened.dims.image_size)[None]
    tokens = _tokens(opened, caption) if caption else no_words(opened.dims, 1)
    white = None if mask is None else _read_mask(mask, opened.dims.image_size)
    if white is not None:
        keep = places_outside(white, opened.dims)[None]
    else:
        before = before or describe(opened, original, seed)[0][0]
        share = STRENGTH if strength is None else strength
        keep = _contradicted(opened, original, (_tokens(opened, before), tokens), share)
    with closing(opened.runner("edit")) as runner:
        total = count * best
        each = original.repeat(total, 0), keep.repeat(total, 0), tokens.repeat(total, 0)
        drawn, executed = edit_images(runner, *each, seed), runner.backend
    pictures = sheet.finish(keep_best(opened, drawn, best, judge).pixels)
    if paste and white is not None:
        pictures = np.where(white[..., None], pictures, original)
    files = sheet.write(np.concatenate([original, pictures]), count + 1)
    data: dict[str, Any] = {
        "caption": caption,
        "from": before,
        "places": keep.size,
        "drawn": keep.size - int(keep.sum()),
        "pictures": count,
        "seed": seed,
        "best_of": best,
        "file": target,
        "files": files,
        "backend": executed,
    }
    if best > 1:
        data["by"] = judge
    told = {
        "from": before or "(not asked)",
        "to": caption or "(no words)",
        "drawn anew": f"{data['drawn']} of {data['places']} places",
        "original and versions": f"{shown(target)} ({executed})",
    }
    out.result(data, Fields("", told))


def _check_request(
    caption: str, mask: Path | None, strength: float | None, before: str, *, paste: bool
) -> None:
    """Options that go together. Raises ConfigError."""
    if mask is None and not caption:
        raise ConfigError(
            "neither a new caption nor a mask was given",
            hint='mmprod edit SOURCE IMAGE "what it shall show", or --mask PNG',
        )
    given = {"--strength": strength is not None, "--from": bool(before)}
    unheeded = [name for name, is_given in given.items() if is_given]
    if mask is not None and unheeded:
        raise ConfigError(
            f"{unheeded[0]} has no effect beside --mask, which says what is drawn anew",
            hint="leave one of them out",
        )
    if paste and mask is None:
        raise ConfigError("--paste needs a mask to say where", hint="add --mask PNG")
    if strength is not None and not 0 < strength <= 1:
        raise ConfigError(f"--strength {strength} is no share", hint="give 0.1 to 1")


def _tokens(source: Source, caption: str) -> Ids:
    return source.tokenizer.encode([caption], source.dims.text_length)


def _read_mask(mask: Path, size: int) -> npt.NDArray[np.bool_]:
    """Where a mask file is white (H, W). Raises ConfigError for a mask without any white."""
    white = read_mask(mask, size)
    if not white.any():
        raise ConfigError(
            f"{mask} has no white within the square that the model sees: nothing would change",
            hint="paint white what is to be drawn anew",
        )
    return white


def _contradicted(
    source: Source, original: Pixels, captions: tuple[Ids, Ids], strength: float
) -> Ids:
    """keep (1, N): all but the places that fit the new caption less than the old."""
    from mmprod.sampling import places_that_agree

    with closing(source.runner("codec_encode")) as encode:
        codes = encode({"pixels": original})["codes"]
    with closing(source.runner("fusion_step")) as step:
        return places_that_agree(step, source.dims, codes, captions, strength)
