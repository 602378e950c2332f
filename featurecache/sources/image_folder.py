"""Images in class folders: the folder right below the root is the label."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from featurecache.errors import SourceError
from featurecache.fingerprint import hash_rows
from featurecache.sources.listing import LabelColumn, check_keys
from featurecache.sources.packed import Keys
from featurecache.types import Modality, Reason, Sample

__all__ = ["IMAGE_SUFFIXES", "ImageFolder", "find_images"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif")


class ImageFolder:
    """Every image below `root` in sorted order; its key is the path relative to the root, with forward slashes.

    Classes are the sub-folders that hold images, sorted, unless `class_names` gives them; images right in the root have
    no label. Hidden files and folders are left out. Raises SourceError where there is no image, where a class is not
    among `class_names`, and at a link that leads out of the root; links to folders inside it are not followed, since
    their images are listed once already.
    """

    modality: Modality = "image"

    def __init__(self, root: str | Path, *, class_names: Sequence[str] | None = None) -> None:
        self.root = Path(root).resolve()
        try:
            keys = Keys.of(sorted(find_images(self.root)))
        except OSError as error:
            raise SourceError(
                f"cannot list {root}: {error.strerror}", hint="choose a folder that can be read"
            ) from None
        if not keys:
            raise SourceError(
                f"no images below {root}", hint=f"files of these kinds are used: {' '.join(IMAGE_SUFFIXES)}"
            )
        check_keys(keys, lambda index: str(self.root), hint="rename one of them")
        folders = LabelColumn(key.partition("/")[0] if "/" in key else None for key in keys)
        self.labels, self.class_names = folders.indices(class_names, keys.__getitem__)
        self.keys: Sequence[str] = keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        """Read one image file; one that cannot be read gives a sample with a problem."""
        key, label = self.keys[index], int(self.labels[index])
        try:
            encoded, problem = (self.root / key).read_bytes(), Reason.VALID
        except OSError:
            encoded, problem = b"", Reason.UNREADABLE
        return Sample(key, encoded, label if label >= 0 else None, problem)

    def iter(self, start: int, stop: int) -> Iterator[Sample]:
        """Samples [start, stop) in order."""
        return map(self.__getitem__, range(start, stop))

    def fingerprint(self) -> str:
        """Hash of every (key, file size); a file that has gone counts as empty."""
        return hash_rows(self.keys, (_size(self.root / key) for key in self.keys))


def find_images(folder: Path) -> Iterator[str]:
    """Relative paths of the images below a folder, in no order. Raises SourceError at a link that leads out of it."""
    root = folder.resolve()
    folders = [""]
    while folders:
        prefix = folders.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                is_link = entry.is_symlink()
                is_folder = os.path.isdir(entry.path) if is_link else entry.is_dir()  # a link to itself is no folder
                is_image = (
                    not is_folder and entry.name.lower().endswith(IMAGE_SUFFIXES) and (is_link or entry.is_file())
                )
                if entry.name.startswith(".") or not (is_folder or is_image):
                    continue
                if is_link:
                    _check_link(Path(entry.path), root)
                if is_image:
                    yield f"{prefix}{entry.name}"  # a dangling link too: it is a sample that cannot be read
                elif not is_link:
                    folders.append(f"{prefix}{entry.name}/")


def _check_link(link: Path, root: Path) -> None:
    try:
        target = link.resolve()
    except (OSError, RuntimeError):  # a loop of links: Python 3.11 and 3.12 raise RuntimeError
        target = link
    if not target.is_relative_to(root):
        raise SourceError(
            f"{link} is a link out of the data folder, to {target}",
            hint="put a copy in its place, or open the folder that holds both",
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
