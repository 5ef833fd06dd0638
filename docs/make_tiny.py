"""The picture of the README: what the report of the demo shows first.

    python docs/make_tiny.py runs/tiny

writes ``docs/tiny.png`` from the figures of a finished run that shows people, and copies ``docs/attacks.png``.
"""

import pathlib
import shutil
import sys

from PIL import Image

from mmu_jax.report.figures import squeezed

HERE = pathlib.Path(__file__).parent
HEIGHT, GAP = 1010, 24


def main(workdir: pathlib.Path) -> None:
    figures = workdir / "figures"
    faces, *right = (Image.open(figures / f"{name}.png").convert("RGB") for name in ("faces", "trade_off", "change"))
    faces = faces.resize((round(faces.width * HEIGHT / faces.height), HEIGHT))
    width = round((HEIGHT - GAP) / sum(image.height / image.width for image in right))
    page, top = Image.new("RGB", (faces.width + GAP + width, HEIGHT), "white"), 0
    page.paste(faces, (0, 0))
    for image in right:
        image = image.resize((width, round(width * image.height / image.width)))
        page.paste(image, (faces.width + GAP, top))
        top += image.height + GAP
    (HERE / "tiny.png").write_bytes(squeezed(page))
    shutil.copy(figures / "attacks.png", HERE / "attacks.png")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
