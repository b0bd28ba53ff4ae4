"""Small archives in the exact form of CUB-200-2011: `CUB_200_2011/` and, beside it, `attributes.txt` in a tgz."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

PARTS = (
    "back beak belly breast crown forehead left_eye left_leg left_wing nape right_eye right_leg right_wing tail throat"
)
PARTS = [name.replace("_", " ") for name in PARTS.split()]
KINDS = ["Black_footed_Albatross", "Laysan_Albatross", "Sooty_Albatross", "Groove_billed_Ani", "Crested_Auklet"]


def ramp(width: int, height: int, blue: int) -> Image.Image:
    """An image that tells where it is: red is the column, green the row, both from 0 to 255 over the whole side."""
    pixels = np.empty((height, width, 3))
    pixels[..., 0] = (np.arange(width) + 0.5) / width * 255
    pixels[..., 1] = ((np.arange(height) + 0.5) / height * 255)[:, None]
    pixels[..., 2] = blue
    return Image.fromarray(pixels.round().astype(np.uint8))


def write_cub(root: Path, classes: int = 4, training: int = 5, test: int = 3, seed: int = 0) -> Path:
    """A folder `root/CUB_200_2011` with so many images of each class; its path.

    The images are ramps of varying size; the last of class 1 is grey, that of class 2 is CMYK. Training and test images
    take turns as far as they go. A third of the parts is not visible.
    """
    folder, draws = root / "CUB_200_2011", np.random.RandomState(seed)
    lines = {name: [] for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes", "part_locs")}
    number = 0
    for label in range(1, classes + 1):
        kind = f"{label:03}.{KINDS[label - 1]}"
        (folder / "images" / kind).mkdir(parents=True)
        for i in range(training + test):
            number += 1
            name = f"{kind}/{KINDS[label - 1]}_{i:04}_{draws.randint(1, 999999)}.jpg"
            width, height = map(int, draws.randint(70, 200, 2))
            image = ramp(width, height, blue=number)
            if i == training + test - 1:
                image = image.convert({1: "L", 2: "CMYK"}.get(label, "RGB"))
            image.save(folder / "images" / name, quality=95, subsampling=0)
            left, top = draws.randint(0, width // 2), draws.randint(0, height // 2)
            box = left, top, draws.randint(1, width - left), draws.randint(1, height - top)
            lines["images"].append(f"{number} {name}")
            lines["image_class_labels"].append(f"{number} {label}")
            for_training = i % 2 == 0 if i < 2 * min(training, test) else training > test
            lines["train_test_split"].append(f"{number} {int(for_training)}")
            lines["bounding_boxes"].append(f"{number} {' '.join(f'{value:.1f}' for value in box)}")
            for part in range(1, len(PARTS) + 1):
                visible = (number + part) % 3 > 0
                place = (draws.randint(0, width), draws.randint(0, height)) if visible else (0, 0)
                lines["part_locs"].append(f"{number} {part} {place[0]:.1f} {place[1]:.1f} {int(visible)}")
    lines["classes"] = [f"{label} {label:03}.{KINDS[label - 1]}" for label in range(1, classes + 1)]
    lines["parts"] = [f"{number} {name}" for number, name in enumerate(PARTS, 1)]
    (folder / "parts").mkdir()
    for name, text in lines.items():
        path = folder / ("parts" if name.startswith("part") else "") / f"{name}.txt"
        path.write_text("\n".join(text) + "\n")
    (folder / "README").write_text("The Caltech-UCSD Birds-200-2011 Dataset\n")
    (folder / "attributes").mkdir()
    (folder / "attributes" / "certainties.txt").write_text("1 not visible\n")
    return folder


def pack(folder: Path, archive: Path) -> Path:
    """The folder as an archive of the official form."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        _add(tar, "attributes.txt", b"1 has_bill_shape::curved_(up_or_down)\n")
        _add(tar, f"{folder.name}/", None)
        for path in sorted(folder.rglob("*"), reverse=True):  # an order that is not the table's
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            _add(tar, name + "/" * path.is_dir(), None if path.is_dir() else path.read_bytes())
    return archive


def _add(tar: tarfile.TarFile, name: str, content: bytes | None) -> None:
    """A file, or with None a folder."""
    member = tarfile.TarInfo(name)
    member.type, member.mode = (tarfile.DIRTYPE, 0o755) if content is None else (tarfile.REGTYPE, 0o644)
    member.size = len(content or b"")
    tar.addfile(member, io.BytesIO(content or b""))
