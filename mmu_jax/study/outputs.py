"""What stages left on disk, known by the hashes of its files: what is gone, what is no longer as it was made, what is half written."""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator

from mmu_jax.files import digest

LARGE = 64 * 2**20  # bytes: a larger file is read when a stage that reads it is made, not at every start


class Outputs:
    """The files of a workdir, each read once as long as its size and time stay."""

    def __init__(self, workdir: pathlib.Path):
        self.workdir = workdir
        self._digests: dict[tuple, str] = {}

    def hashed(self, paths: Iterable[pathlib.Path]) -> dict[str, str]:
        """File, from the workdir on, -> SHA-256, of files and of all that folders hold but hidden files and ``*.md`` in them.

        A card may be written into a folder; what is not there has none.
        """
        return {
            file.relative_to(self.workdir).as_posix(): self._digest(file) for path in paths for file in _files(path)
        }

    def changed(self, made: dict[str, str], away: Iterable[pathlib.Path], *, whole: bool) -> Iterator[pathlib.Path]:
        """The files of ``made`` that are no longer as they were, or gone, though not with one of the folders ``away``.

        Args:
          whole: whether those above :data:`LARGE` are read; if not, they are only missed where they are gone.
        """
        gone = {path for path in away if not path.exists()}
        for name, then in made.items():
            file = self.workdir / name
            if gone & {file, *file.parents}:
                continue
            if not file.is_file() or (whole or file.stat().st_size <= LARGE) and self._digest(file) != then:
                yield file

    def _digest(self, file: pathlib.Path) -> str:
        at = file.stat()
        key = (file, at.st_size, at.st_mtime_ns, at.st_ino)
        if key not in self._digests:
            self._digests[key] = digest(file)
        return self._digests[key]


def known_by(made: dict[str, str]) -> str:
    """One hash of all that a stage made."""
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if not path.is_dir():
        return [path] if path.is_file() else []
    found = (file for file in sorted(path.rglob("*")) if file.is_file() and not file.name.lower().endswith(".md"))
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]


def tidy(workdir: pathlib.Path, paths: Iterable[pathlib.Path]) -> None:
    """Removes what killed runs left half written where stages write ``paths``, and what orbax did."""
    own = {path.name.partition(".")[0] for path in paths if path.parent == workdir}
    for place in {path.parent for path in paths}:
        for left in place.glob("*.partial"):
            if place != workdir or left.name.partition(".")[0] in own:  # whatever else lies there is somebody's
                remove(left)
    for left in (workdir / "checkpoints").rglob("*.orbax-checkpoint-tmp*"):
        remove(left)


def remove(path: pathlib.Path) -> None:
    """A file or a folder with all that is in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
