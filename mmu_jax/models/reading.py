"""What the families share to read a checkpoint's files with ``transformers``."""

import dataclasses
import pathlib
from typing import Any

from mmu_jax import InputError

BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, ArithmeticError)


class Translated:
    """What ``transformers`` and ``tokenizers`` raise on files that are not what they should be, as one line.

    Only their code may run inside. The Rust side of ``tokenizers`` raises ``Exception`` itself, which no class of ours or
    of Python's is.
    """

    def __init__(self, what: str):
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        from huggingface_hub.errors import StrictDataclassError

        if kind is Exception or isinstance(error, (*BROKEN, StrictDataclassError)):
            said = " ".join(str(error).split())[:300]
            said = f"no {said}" if isinstance(error, KeyError) else said
            raise InputError(f"expected {self.what}, found one that cannot be read ({said}); copy it again") from error


def options(path: pathlib.Path) -> dict[str, Any]:
    """What every reader of ``transformers`` is given: a folder, whose code is never run."""
    return {"pretrained_model_name_or_path": str(path), "trust_remote_code": False}


@dataclasses.dataclass(frozen=True)
class PlainProcessor:
    """Tokenizer, chat template and image processor of a checkpoint whose own processor also asks for video support."""

    tokenizer: Any
    image_processor: Any
    image_token: str

    def apply_chat_template(self, messages: list[dict], **options: Any) -> str:
        return self.tokenizer.apply_chat_template(messages, **options)


def default_template(template: Any, path: pathlib.Path) -> str:
    """The template that is used where none is named."""
    found = template.get("default") if isinstance(template, dict) else template
    if not found or not isinstance(found, str):
        named = f"only {', '.join(map(str, template))}" if isinstance(template, dict) else "none"
        raise InputError(
            f"expected a chat template beside the tokenizer, found {named} in {path}; copy chat_template.jinja (or .json) there"
        )
    return found
