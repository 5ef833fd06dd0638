"""Multimodal machine unlearning in JAX: forget a face, keep the facts."""

__version__ = "0.1.0"


class InputError(ValueError):
    """Something given to the library is not what it needs.

    The message is one line: what was expected, what was found, what to do. Programs print it and exit with code 2.
    """
