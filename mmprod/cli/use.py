"""`mmprod generate` and `mmprod caption`: pictures from words or out of nothing, and back."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mmprod.cli.command import Seed, SourceArg
from mmprod.cli.ensemble import together
from mmprod.cli.output import Output, Table, Text, shown
from mmprod.cli.sheet import (
    DenoiseOption,
    SeparateOption,
    SharpenOption,
    Sheet,
    read_picture,
)
from mmprod.cli.source import Backend, Source, open_source
from mmprod.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from mmprod.sampling import Drawn

BackendOption = Annotated[
    Backend | None,
    typer.Option(help="torch for a run, ort for a bundle; chosen by itself.", show_default=False),
]
PrecisionOption = Annotated[str, typer.Option(help="Of a bundle's graphs: fp32, fp16 ... or auto.")]
StepsOption = Annotated[
    int | None,
    typer.Option("--steps", help="Denoising steps; of a run only.", show_default=False),
]
GuidanceOption = Annotated[
    float | None,
    typer.Option("--guidance", help="Weight of the caption; of a run only.", show_default=False),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        "--temperature", help="Below 1: likelier pictures; of a run only.", show_default=False
    ),
]
Judgement = Literal["likelihood", "similarity"]
BestOption = Annotated[
    int, typer.Option("--best-of", metavar="N", min=1, help="Draw N for each, keep the best.")
]
JudgeOption = Annotated[
    Judgement, typer.Option("--by", help="What is best, as the model itself sees it.")
]


def generate(
    out: Output,
    source: SourceArg,
    captions: Annotated[
        list[str] | None, typer.Argument(metavar="[CAPTION...]", help="What the pictures show.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Pictures each.")] = 4,
    joint: Annotated[
        bool, typer.Option("--joint", help="No caption: draw picture and caption together.")
    ] = False,
    unconditional: Annotated[
        bool, typer.Option("--unconditional", help="No caption: draw pictures of anything.")
    ] = False,
    ensemble: Annotated[
        list[Path] | None,
        typer.Option("--ensemble", metavar="RUN", help="Draw with this run, too; repeatable."),
    ] = None,
    best: BestOption = 1,
    judge: JudgeOption = "likelihood",
    seed: Seed = 0,
    target: Annotated[
        Path, typer.Option("--out", metavar="PNG", help="Grid to write, a row per caption.")
    ] = Path("generated.png"),
    separate: SeparateOption = None,
    denoise: DenoiseOption = False,
    sharpen: SharpenOption = False,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    temperature: TemperatureOption = None,
    backend: BackendOption = None,
    precision: PrecisionOption = "fp32",
) -> None:
    """Draw pictures for captions, or out of nothing."""
    given = list(captions or ())
    _check_request(given, joint=joint, unconditional=unconditional)
    check_judge(judge, captioned=not unconditional)
    sheet = Sheet(target, separate, denoise, sharpen)
    sheet.check()
    changes = sampler_changes(steps, guidance, temperature)
    opened = open_source(source, backend, precision, changes)
    opened = together(opened, source, ensemble, changes) if ensemble else opened
    wanted = [caption for caption in given for _ in range(count * best)]
    drawn, executed = _draw(opened, wanted, count * best, seed, joint=joint)
    drawn = keep_best(opened, drawn, best, judge)
    files = sheet.write(sheet.finish(drawn.pixels), count)
    data: dict[str, Any] = {
        "pictures": len(drawn.pixels),
        "captions": opened.tokenizer.decode(drawn.tokens) if joint else given,
        "seed": seed,
        "best_of": best,
        "file": target,
        "files": files,
        "backend": executed,
    }
    if best > 1:
        data["by"] = judge
    row = "a row per caption" if given else f"{count} in a row"
    views: list[Text | Table] = [
        Text(f"{len(drawn.pixels)} pictures: {shown(target)} ({row}; {executed})")
    ]
    if joint:
        views.append(Table("", ("picture", "caption"), list(enumerate(data["captions"], 1))))
    out.result(data, *views)


def caption(
    out: Output,
    source: SourceArg,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures to describe.")],
    tidy: Annotated[
        bool, typer.Option("--tidy", help="Single spaces, and a capital letter at the start.")
    ] = False,
    seed: Seed = 0,
    backend: BackendOption = None,
    precision: PrecisionOption = "fp32",
) -> None:
    """Describe pictures in words."""
    import numpy as np

    opened = open_source(source, backend, precision)
    pictures = np.stack([read_picture(path, opened.dims.image_size) for path in images])
    texts, executed = describe(opened, pictures, seed)
    texts = [tidied(text) for text in texts] if tidy else texts
    rows = [(shown(path), text) for path, text in zip(images, texts, strict=True)]
    found = [{"image": path, "caption": text} for path, text in zip(images, texts, strict=True)]
    data: dict[str, Any] = {"captions": found, "seed": seed, "backend": executed}
    out.result(data, Table("", ("picture", "caption"), rows))


def sampler_changes(
    steps: int | None, guidance: float | None, temperature: float | None
) -> dict[str, float]:
    """The options that were given, as keys of the configuration's section."""
    given = {"image_steps": steps, "guidance": guidance, "image_temperature": temperature}
    return {key: value for key, value in given.items() if value is not None}


def describe(source: Source, pictures: npt.NDArray[np.uint8], seed: int) -> tuple[list[str], str]:
    """Captions of pictures, and what executed the graph."""
    from mmprod.sampling import caption_images

    with closing(source.runner("image_to_text")) as runner:
        return caption_images(runner, source.tokenizer, pictures, seed), runner.backend


def check_judge(judge: Judgement, *, captioned: bool) -> None:
    """Raise ConfigError where pictures without words should be similar to them."""
    if judge == "similarity" and not captioned:
        raise ConfigError(
            "without a caption there is nothing to be similar to", hint="--by likelihood"
        )


def keep_best(source: Source, drawn: Drawn, best: int, judge: Judgement) -> Drawn:
    """Of every `best` pictures in a row the one that the model itself finds best."""
    if best == 1:
        return drawn
    from mmprod.sampling import best_of

    return best_of(drawn, _scores(source, drawn, judge), best)


def tidied(text: str) -> str:
    """The words with single spaces between them, the first letter a capital."""
    words = " ".join(text.split())
    return words[:1].upper() + words[1:]


def _check_request(captions: list[str], *, joint: bool, unconditional: bool) -> None:
    """Captions, or one of the two ways without. Raises ConfigError."""
    if joint and unconditional:
        raise ConfigError(
            "--joint draws captions and --unconditional draws without", hint="give one of them"
        )
    if captions and (joint or unconditional):
        raise ConfigError(
            f"{'--joint' if joint else '--unconditional'} takes no captions",
            hint="leave the captions out, or the option",
        )
    if not (captions or joint or unconditional):
        raise ConfigError(
            "no caption was given",
            hint='mmprod generate SOURCE "what the picture shows", or --joint, or --unconditional',
        )


def _draw(
    source: Source, captions: list[str], count: int, seed: int, *, joint: bool
) -> tuple[Drawn, str]:
    """A picture for each caption, or `count` of them out of nothing; what executed the graph."""
    from mmprod.sampling import draw_images, draw_joint, draw_unconditional, encode_captions

    name = "text_to_image" if captions else "joint" if joint else "edit"
    with closing(source.runner(name)) as runner:
        if captions:
            tokens = encode_captions(runner, source.tokenizer, captions)
            drawn = draw_images(runner, tokens, seed)
        elif joint:
            drawn = draw_joint(runner, count, seed)
        else:
            drawn = draw_unconditional(runner, source.dims, count, seed)
        return drawn, runner.backend


def _scores(source: Source, drawn: Drawn, judge: Judgement) -> npt.NDArray[np.float64]:
    """How good the model itself finds each picture, likely or similar to its words."""
    from mmprod.sampling import likelihood, similarity

    if judge == "likelihood":
        with closing(source.runner("fusion_step")) as runner:
            return likelihood(runner, source.dims, drawn.codes, drawn.tokens)
    with (
        closing(source.runner("embed_image")) as images,
        closing(source.runner("embed_text")) as texts,
    ):
        return similarity(images, texts, drawn.codes, drawn.tokens)
