"""The Hugging Face hub: a folder here, or a repository there, fetched once."""

import os
import pathlib
import re

from mmu_jax import InputError

SMALL = ["*.json", "*.txt", "*.model", "*.jinja"]  # config, tokenizer, processor: what a plan is made from
CHECKPOINT = [*SMALL, "*.safetensors"]
NEWER = (
    "RevisionResolutionError",
    "XetDownloadError",
    "CorruptedCacheException",
)  # of newer releases of the hub's client


def is_id(where: str | pathlib.Path) -> bool:
    """Whether it is spelled as a repository of the hub, ``org/name``, and is no folder here."""
    return not os.path.isdir(where) and re.fullmatch(r"[\w.-]+/[\w.-]+", str(where)) is not None


def push(folder: pathlib.Path, where: str) -> str:
    """Uploads a folder as a private model repository of the hub, which is made if it is not there; its address.

    Raises:
      InputError: ``where`` is no id, or the hub cannot be reached or will not have it; the folder stays.
    """
    from huggingface_hub import HfApi, errors

    again = f"the model is in {folder}: hf upload {where} {folder} tries again"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", where):
        raise InputError(f"expected a hub id (org/name) to push to, found {where!r}; {again}")
    api = HfApi()
    try:
        address = api.create_repo(where, private=True, exist_ok=True)
        api.upload_folder(repo_id=where, folder_path=folder)
    except (errors.HTTPError, errors.HFValidationError, errors.LocalTokenNotFoundError, OSError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(
            f"expected the Hugging Face hub to take {where}, found that it does not ({why}); log in (hf auth login), and {again}"
        ) from error
    return str(address)


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
    if os.path.isdir(where):
        return pathlib.Path(where)
    if not is_id(where):
        there = "a file" if os.path.exists(where) else "nothing there"
        shown = str(where) if len(str(where)) <= 200 else f"{str(where)[:200]}..."
        raise InputError(
            f"expected a folder or a hub id (org/name) in {what}, found {shown!r} ({there}); correct {what}"
        )
    from huggingface_hub import errors, snapshot_download

    # HTTPError is the transport's own; without a network LocalEntryNotFoundError comes, an OSError, as a full disk is.
    faults = (errors.HTTPError, errors.EntryNotFoundError, OSError)
    faults += tuple(getattr(errors, name) for name in NEWER if hasattr(errors, name))
    advice = f"download it where there is a network and give the folder, --{what}=FOLDER"
    try:
        return pathlib.Path(snapshot_download(str(where), repo_type=kind, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise InputError(
            f"expected a {kind} that may be read, found {where} gated on the Hugging Face hub; ask for access on its page and "
            f"log in (hf auth login), or {advice}"
        ) from error
    except errors.HFValidationError as error:
        raise InputError(
            f"expected a hub id (org/name) in {what}, found {str(where)!r} ({error}); correct {what}"
        ) from error
    except faults as error:
        raise InputError(
            f"expected a folder {where} here, or a {kind} of that name on the Hugging Face hub ({what}), found neither "
            f"({type(error).__name__}); {advice}"
        ) from error
