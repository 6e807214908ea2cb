"""`refold predict`: what a trained network says of images."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refold.cli import options
from refold.cli.console import complain, note, print_json, say, step, table
from refold.errors import InputError
from refold.files import atomic_path, require_apart

if TYPE_CHECKING:
    from refold.training.run.prediction import Answer

Place = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|FILE",
        help="Folder of a run, or its deploy.onnx, .pt2, .xml, .pte or .tflite file.",
    ),
]
Images = Annotated[
    list[str],
    typer.Argument(metavar="IMAGE...", help="Image files, folders of them, or 'photos/*.jpg'."),
]
Top = Annotated[int, typer.Option("--top", min=1, help="How many classes to name.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FOLDER",
        help="Segmentation: where masks are written. Default: masks.",
    ),
]


def predict(
    place: Place,
    images: Images,
    top: Top = 5,
    output: Output = None,
    as_csv: Csv = False,
    as_json: options.Json = False,
) -> int:
    """Say what a trained network sees in images, prepared exactly as its evaluation did.

    Classification names the likeliest classes; segmentation writes a coloured mask for each image;
    embeddings are printed by --json and --csv, else how similar each image is to the first. --csv
    begins with a line of the columns' names.

    Images that cannot be read are named, and the exit code is 1 where there are others, else 2.
    """
    from refold.training.run.prediction import predict as run

    if as_csv and as_json:
        raise InputError("give either --csv or --json")
    with step(f"run {place} on the images"):
        answers = list(run(place, images))
    for answer in answers:
        if answer.error:
            complain(f"{answer.image} cannot be read: {answer.error}")
    good = [answer for answer in answers if answer.output is not None]
    if not good:
        raise InputError("none of the images can be read")
    if output is not None and good[0].task != "segment":
        raise InputError("-o is where masks are written, and this network makes none: leave it out")
    if good[0].task == "segment":
        _write_masks(good, output or Path("masks"))
    records = [_record(answer, good[0], top) for answer in answers]
    answered = [record for record in records if "error" not in record]
    if as_json:
        print_json(records)
    elif as_csv:
        say(*_csv_lines(answered))
    else:
        _say(answered, good[0].task)
    return int(len(good) < len(answers))


def _record(answer: Answer, first: Answer, top: int) -> dict[str, Any]:
    import torch

    known: dict[str, Any] = {"image": answer.image}
    output, other = answer.output, first.output
    if output is None or other is None:
        return known | {"error": answer.error}
    if answer.task == "embed":
        alike = torch.nn.functional.cosine_similarity(output.flatten(), other.flatten(), 0)
        return known | {"likeness": float(alike), "vector": output.flatten().tolist()}
    if answer.task == "segment":
        counts = torch.bincount(answer.mask().flatten().long(), minlength=len(answer.classes))
        shares = [int(number) / max(int(counts.sum()), 1) for number in counts]
        order = sorted(range(len(answer.classes)), key=lambda number: -shares[number])[:top]
        rows = [(answer.classes[number], shares[number]) for number in order]
    else:
        rows = answer.best(top)
    return known | {"classes": [{"class": name, "share": share} for name, share in rows]}


def _csv_lines(records: Sequence[dict[str, Any]]) -> list[str]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    width = len(records[0].get("vector", ()))
    writer.writerow(["image", *(map("v{}".format, range(width)) if width else ("class", "share"))])
    for record in records:
        if "vector" in record:
            writer.writerow([record["image"], *record["vector"]])
        else:
            for row in record["classes"]:
                writer.writerow([record["image"], row["class"], f"{row['share']:.6f}"])
    return text.getvalue().splitlines()


def _say(records: Sequence[dict[str, Any]], task: str) -> None:
    if task == "embed":
        rows = [[record["image"], f"{record['likeness']:.4f}"] for record in records]
        table("", ["image", "similarity to the first"], rows)
        return
    rows = [
        [record["image"], *(f"{row['class']} {row['share']:.1%}" for row in record["classes"])]
        for record in records
    ]
    width = max(map(len, rows))
    rows = [[*row, *[""] * (width - len(row))] for row in rows]
    table("", ["image", *(str(number + 1) for number in range(width - 1))], rows)


def _write_masks(answers: Sequence[Answer], folder: Path) -> None:
    """Write the mask of each image as a PNG whose palette gives every class a colour."""
    from PIL import Image

    places = _places(answers, folder)
    for place in places:
        require_apart(place, [answer.image for answer in answers])
    folder.mkdir(parents=True, exist_ok=True)
    for answer, place in zip(answers, places, strict=True):
        mask = Image.fromarray(answer.mask().numpy(), "P")
        mask.putpalette(_palette())
        with atomic_path(place) as temporary:
            mask.save(temporary)
    high, wide = answers[0].mask().shape
    note(
        f"wrote {len(answers)} mask{'s' * (len(answers) > 1)} to {folder}: {wide}x{high}, as the "
        "network saw the images; a pixel's value is the number of its class"
    )


def _places(answers: Sequence[Answer], folder: Path) -> list[Path]:
    """Return where the mask of each image goes: under its name, each under another."""
    taken: dict[str, None] = {}
    for answer in answers:
        name = Path(answer.image).stem
        while name in taken:
            name += "_"
        taken[name] = None
    return [folder / f"{name}.png" for name in taken]


def _palette() -> list[int]:
    """Return 256 colours, far from each other for the first ones; as PASCAL VOC has them."""
    colours: list[int] = []
    for number in range(256):
        rgb, rest = [0, 0, 0], number
        for bit in range(7, -1, -1):
            for channel in range(3):
                rgb[channel] |= (rest >> channel & 1) << bit
            rest >>= 3
        colours += rgb
    return colours
