"""Docstrings are plain text with a few signs of Sphinx; the pages are Markdown. This turns the one into the other."""

import re

import griffe

ROLE = re.compile(r":(?:func|class|meth|data|attr|mod):`~?")
EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\n).+)*", re.MULTILINE)  # with what it prints, up to a blank line
TABLE = re.compile(r"^=+(?: +=+)+\n(?:.*\n)*?=+(?: +=+)+$(?!\n.+)", re.MULTILINE)
SECTION = re.compile(r"(?<!\n)\n(?=(?:Args|Attributes|Returns|Yields|Raises):$)", re.MULTILINE)


def markdown(text: str) -> str:
    """Names without roles; examples and tables as code; a colon before what is indented; sections apart."""
    text = ROLE.sub("`", text)
    text = EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
    text = TABLE.sub(lambda found: f"```text\n{found[0]}\n```", text)
    text = SECTION.sub("\n\n", text)
    return re.sub(r"(?<=\S)::$", ":", text, flags=re.MULTILINE)


class Docstrings(griffe.Extension):
    """Translates the docstring of everything that is shown."""

    def on_instance(self, *, obj: griffe.Object | griffe.Alias, **kwargs: object) -> None:
        del kwargs
        if not obj.is_alias and obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
