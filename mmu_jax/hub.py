"""The Hugging Face hub: a folder here, or a repository there, fetched once."""

import pathlib
import re

from mmu_jax import InputError

CHECKPOINT = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]


def fetch(
    where: str | pathlib.Path, what: str, *, kind: str = "model", patterns: list[str] = CHECKPOINT
) -> pathlib.Path:
    """``where`` itself if it is a folder, else the snapshot of the hub repository of that id (``org/name``).

    Args:
      what: the config key, for messages.
      kind: ``'model'`` or ``'dataset'``.
      patterns: of the files to download.
    Raises:
      InputError: it is neither a folder nor a repository that can be reached.
    """
    path = pathlib.Path(where)
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(where)):
        raise InputError(f"expected a folder or a hub id (org/name) in {what}, found {str(where)!r}; correct {what}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return pathlib.Path(snapshot_download(str(where), repo_type=kind, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise InputError(
            f"expected a folder {where} here, or a {kind} of that name on the Hugging Face hub, found neither "
            f"({type(error).__name__}); download it where there is a network and give the folder in {what}"
        ) from error
