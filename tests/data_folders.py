"""Tiny folders in every published layout, with the quirks of the real ones."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (12, 16)  # height, width


def save(path: Path, levels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)
    return path


def save_image(path: Path) -> Path:
    """A colour image whose pixels depend on its path below the test's folder, so that no two are the same."""
    seed = list("/".join(path.parts[-4:]).encode())
    return save(path, np.random.default_rng(seed).integers(0, 256, size=(*SIZE, 3), dtype=np.uint8))


def save_mask(path: Path, rows: slice = slice(2, 5), level: int = 255) -> Path:
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[rows, 3:9] = level
    return save(path, mask)


def mvtec_ad(root: Path) -> Path:
    for name in ("train/good/000", "train/good/001", "train/good/002", "train/good/003", "test/good/000", "test/hole/000"):
        save_image(root / f"{name}.png")
    save_mask(root / "ground_truth/hole/000_mask.png")
    return root


def mvtec_loco(root: Path) -> Path:
    """Two masks for one image, with the levels that name kinds of defects."""
    for split, count in (("train", 4), ("validation", 2), ("test", 1)):
        for i in range(count):
            save_image(root / f"{split}/good/{i:03d}.png")
    save_image(root / "test/logical_anomalies/000.png")
    save_image(root / "test/structural_anomalies/000.png")
    save_mask(root / "ground_truth/logical_anomalies/000/000.png", slice(0, 2), 255)
    save_mask(root / "ground_truth/logical_anomalies/000/001.png", slice(6, 9), 240)
    save_mask(root / "ground_truth/structural_anomalies/000/000.png", slice(4, 5), 247)
    (root / "defects_config.json").write_text("[]")
    return root


def mvtec_ad2(root: Path) -> Path:
    for split, count in (("train", 4), ("validation", 3)):
        for i in range(count):
            save_image(root / f"{split}/good/{i:03d}_regular.png")
    save_image(root / "test_public/good/000_regular.png")
    save_image(root / "test_public/bad/000_regular.png")
    save_mask(root / "test_public/ground_truth/bad/000_regular_mask.png")
    for name in ("test_private", "test_private_mixed"):
        save_image(root / f"{name}/000_regular.png")
    return root


def visa(root: Path) -> Path:
    """Upper-case suffixes, the same names for normal and anomalous images, masks with levels 1 and 3, two kinds at once."""
    for i in range(20):
        save_image(root / f"Data/Images/Normal/{i:03d}.JPG")
    for i in range(2):
        save_image(root / f"Data/Images/Anomaly/{i:03d}.JPG")
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[1:3, 2:8], mask[6:9, 2:8] = 1, 3
    save(root / "Data/Masks/Anomaly/000.png", mask)
    save_mask(root / "Data/Masks/Anomaly/001.png", level=2)
    prefix = f"{root.name}/Data"
    (root / "image_anno.csv").write_text(
        "image,label,mask\n"
        f"{prefix}/Images/Normal/000.JPG,normal,\n"
        f'{prefix}/Images/Anomaly/000.JPG,"melt,scratch",{prefix}/Masks/Anomaly/000.png\n'
        f"{prefix}/Images/Anomaly/001.JPG,bent,{prefix}/Masks/Anomaly/001.png\n"
    )
    return root


def visa_split_table(root: Path, test: set[int]) -> Path:
    """`split_csv/1cls.csv` beside the category `root`, which also lists another category."""
    prefix = f"{root.name}/Data"
    lines = ["object,split,label,image,mask", "other,train,normal,other/Data/Images/Normal/000.JPG,"]
    for i in range(20):
        split = "test" if i in test else "train"
        lines.append(f"{root.name},{split},normal,{prefix}/Images/Normal/{i:03d}.JPG,")
    lines.append(f"{root.name},test,anomaly,{prefix}/Images/Anomaly/000.JPG,{prefix}/Masks/Anomaly/000.png")
    table = root.parent / "split_csv/1cls.csv"
    table.parent.mkdir(exist_ok=True)
    table.write_text("\n".join(lines) + "\n")
    return table


def btad(root: Path) -> Path:
    """Bitmaps as images; masks as PNG or, for the third product, as bitmaps."""
    for name in (
        "train/ok/0000",
        "train/ok/0001",
        "train/ok/0002",
        "train/ok/0003",
        "test/ok/0000",
        "test/ko/0000",
        "test/ko/0001",
    ):
        save_image(root / f"{name}.bmp")
    save_mask(root / "ground_truth/ko/0000.png")
    save_mask(root / "ground_truth/ko/0001.bmp")
    return root


def kolektor_sdd(root: Path, items: int = 5) -> Path:
    """Four parts per item, of which the last is defective in every other item."""
    for item in range(items):
        for part in range(4):
            save_image(root / f"kos{item + 1:02d}/Part{part}.jpg")
            defective = part == 3 and item % 2 == 0
            save_mask(root / f"kos{item + 1:02d}/Part{part}_label.bmp", level=255 if defective else 0)
    return root


def kolektor_sdd2(root: Path) -> Path:
    """Defective images in the training split, too, and the archive's stray pair of copies."""
    for split, first, defective in (("train", 10000, {10001}), ("test", 20000, {20000, 20002})):
        for i in range(first, first + 6):
            save_image(root / f"{split}/{i}.png")
            save_mask(root / f"{split}/{i}_GT.png", level=255 if i in defective else 0)
    save_image(root / "train/10001 (copy).png")
    save_mask(root / "train/10001_GT (copy).png")
    return root


FOLDERS = {
    "MVTec AD": mvtec_ad,
    "MVTec LOCO AD": mvtec_loco,
    "MVTec AD 2": mvtec_ad2,
    "VisA": visa,
    "BTAD": btad,
    "KolektorSDD": kolektor_sdd,
    "KolektorSDD2": kolektor_sdd2,
}
