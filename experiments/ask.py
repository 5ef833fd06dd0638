"""Asks a model questions, about a photo or about none, and prints what it answers.

    python -m experiments.ask --model=DIR --image=FILE "Who is this?" "Where was this person born?"
    python -m experiments.ask --model=DIR "Who is Ada Berg?"

DIR is a Hugging Face directory or an id on the hub: one that was given, or one that forgot. With several --image each question is
asked about each.
"""

from absl import app, flags

from experiments import command
from mmu_jax import InputError
from mmu_jax.study import request

MODEL = flags.DEFINE_string("model", None, "The model: a Hugging Face directory, or an id on the hub.")
IMAGE = flags.DEFINE_multi_string("image", [], "A photo; may be given several times.")
NEW_TOKENS = flags.DEFINE_integer("new_tokens", 64, "The longest answer, in tokens.", 1)


def run(questions: list[str]) -> None:
    """Asks the questions of the command line."""
    if not MODEL.value or not questions:
        raise InputError(f"expected {'a question' if MODEL.value else '--model=DIR'}, found none; see --help")
    shown = IMAGE.value
    said = request.answers(MODEL.value, questions, shown, NEW_TOKENS.value)
    for index, answer in enumerate(said):
        photo, place = divmod(index, len(questions))
        if len(shown) > 1 and place == 0:
            print(shown[photo])
        print(f"{questions[place]}\n  {answer}")


def main(argv: list[str]) -> None:
    command.quiet()
    command.spoken(run, argv[1:])


if __name__ == "__main__":
    app.run(main, flags_parser=command.parse_with_words)
