"""The command line: flags, the config file they name, and every mistake in them as one line."""

import errno
import functools
import importlib.util
import inspect
import io
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from mmu_jax import Faults, InputError, Stopped
from mmu_jax.files import read_json, write_json
from mmu_jax.study.stopping import Stopping

CONFIG = config_flags.DEFINE_config_file("config", None, "Path of the config file.", lock_config=True)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where everything is kept; default runs/<config name>, of a sweep runs/sweep, of a deletion request <out>.work.",
)

SEEDS = flags.DEFINE_list(
    "seeds", [], "Of a run: one workdir each, compared at the end; of a sweep: those to choose on, default 1."
)

HELP = {"--help", "-help", "-h", "-?", "--helpshort", "--helpfull"}
# What a file system says when it will not: no room, no right, no such place.
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # said of an open file, without its name
REFUSALS |= {errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG, errno.EMFILE, errno.EEXIST}


def parse(argv: list[str]) -> list[str]:
    """Flags; a mistake is one line and exit code 2."""
    return spoken(_parse, argv)


def parse_without_config(argv: list[str], reads: tuple[str, ...] = ()) -> list[str]:
    """Flags of a program that has no config, and of those of every program ``reads``; a mistake is one line and exit code 2."""
    return spoken(_parse_without_config, argv, False, reads)


def parse_with_words(argv: list[str]) -> list[str]:
    """Flags of a program that has no config, and its words, which it returns after its name; a mistake is one line and exit code 2."""
    return spoken(_parse_without_config, argv, True)


def spoken(program: Callable[..., Any], *args: Any) -> Any:
    """``program(*args)``; what a user can mend is printed on stderr, and the process ends with exit code 2.

    That is one line, or a list of all that is wrong (``Faults``).

    An interrupt ends it with 130, SIGTERM with 143. Everything else is a fault of ours and keeps its traceback.
    """
    _any_terminal()
    try:
        with Stopping().listening():
            return program(*args)
    except Faults as error:
        faults = [f"  {' '.join(fault.split())}" for fault in error.faults]
        message, code = "\n".join([f"error: {len(faults)} found", *faults]), 2
    except InputError as error:
        message, code = f"error: {' '.join(str(error).split())}", 2
    except OSError as error:
        if error.errno not in REFUSALS or error.filename is None and error.errno not in FULL:
            raise
        place = error.filename or "the workdir"
        message = f"error: expected a file system that lets us write and read {place}, found {error.strerror}"
        message, code = f"{message}; free that place, or name another", 2
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = str(error).splitlines()[0]
        message = "error: expected batches that fit into the memory of the devices, found that they do not"
        message, code = f"{message} ({found}); lower the rows of this stage, or use more devices (config.mesh)", 2
    except KeyboardInterrupt:
        message, code = "stopped; the same command resumes from here", 130
    except Stopped as stopped:
        message, code = str(stopped), stopped.code
    print(message, file=sys.stderr)
    sys.exit(code)


def _any_terminal() -> None:
    """What a terminal has no letter for is printed as a question mark: a table must not end in a traceback for an arrow."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def ending(program: Callable[[], int]) -> Callable[[list[str]], None]:
    """A main function that ends with the exit code that ``program()`` returns, as :func:`spoken` speaks."""

    def main(argv: list[str]) -> None:
        del argv
        quiet()
        sys.exit(spoken(program))

    return main


def _parse(argv: list[str]) -> list[str]:
    if _asks_for_help(argv):
        print(_usage())
        sys.exit(0)
    named = last(argv, "config")
    if named is None:
        raise InputError("expected --config=configs/NAME.py, found none; name a config")
    load(named)
    try:
        return _flags(argv)
    except (AttributeError, KeyError, IndexError, TypeError) as error:  # of ml_collections, for a key that is not there
        raise InputError(
            f"expected --config.KEY=VALUE for keys that {named} has, found another ({' '.join(str(error).split())}); correct it"
        ) from error


def _flags(argv: list[str]) -> list[str]:
    """The program's name; InputError for what is no flag."""
    name, *words = _with_words(argv)
    if words:
        raise InputError(
            f"expected flags, --NAME=VALUE, found {', '.join(map(repr, words))}, which nothing reads; write --{words[0]} if that "
            "is what you mean"
        )
    return [name]


def _with_words(argv: list[str]) -> list[str]:
    """The program's name and what is no flag, wherever it stands."""
    try:
        flags.FLAGS.set_gnu_getopt()
        return flags.FLAGS(argv)
    except flags.Error as error:
        said = " ".join(str(error).split())
        if table := re.match(r"flag --(config\.\S+?)=.*as a ConfigDict", said):
            said += f"; {table[1]} has keys of its own: set one of them, --{table[1]}.NAME=VALUE"
        raise InputError(said) from error


def _parse_without_config(argv: list[str], words: bool = False, reads: tuple[str, ...] = ()) -> list[str]:
    if _asks_for_help(argv):
        print(_about(), flags.FLAGS.main_module_help(), sep="\n")
        sys.exit(0)
    kept = (_with_words if words else _flags)(argv)
    if ours := [name for name in ("config", "workdir", "seeds") if name not in reads and flags.FLAGS[name].present]:
        raise InputError(f"expected flags that this program reads, found --{', --'.join(ours)}; see --help")
    return kept


def _asks_for_help(argv: list[str]) -> bool:
    words = argv[1 : argv.index("--") if "--" in argv else None]
    return any(word.partition("=")[0] in HELP for word in words)


def _about() -> str:
    """What the program that was started does."""
    return sys.modules["__main__"].__doc__ or ""


def _usage() -> str:
    """What the program does and its flags."""
    ours = flags.FLAGS.module_help(flags.FLAGS.find_module_defining_flag("workdir"))
    keys = "  --config.KEY: any key of the config (mmu_jax/study/config.py)"
    return "\n".join((_about(), flags.FLAGS.main_module_help(), ours, keys))


def last(argv: list[str], name: str) -> str | None:
    """The value of the last ``--name``, spelled in any way absl reads; None where there is none."""
    found = None
    for index, word in enumerate(argv[1:], 1):
        flag, equals, value = word.partition("=")
        if word == "--":
            break
        if flag in (f"--{name}", f"-{name}"):
            found = value if equals else "".join(argv[index + 1 : index + 2])
    return found


def load(named: str) -> ConfigDict:
    """The config of ``FILE`` or ``FILE:ARGUMENT``.

    Raises:
      InputError: there is no such file, it is no Python, it has no ``get_config`` that takes what is given, or that
        function refuses its argument: a ``ValueError`` of its own is shown as its sentence. Its other exceptions pass.
    """
    path, colon, argument = named.partition(":")
    if not pathlib.Path(path).is_file():
        raise InputError(f"expected a config file, found no {path or 'name'}; name one in configs/")
    spec = importlib.util.spec_from_file_location("config_to_judge", path)
    if spec is None:
        raise InputError(f"expected a config file in Python, found {path}; name one whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise InputError(f"expected Python in {path}, found none that can be read ({error}); correct it") from error
    except ImportError as error:
        if _origin(error) != module.__name__:  # of a module of ours
            raise
        raise InputError(f"expected what {path} imports, found that there is {error}; install or correct it") from error
    except Stopped:
        raise
    except SystemExit as error:
        raise InputError(f"expected get_config in {path}, found that the file ends the program; remove that") from error
    make = getattr(module, "get_config", None)
    if not callable(make):
        raise InputError(f"expected a function get_config in {path}, found none; write one that returns a ConfigDict")
    given = (argument,) if colon else ()
    try:
        inspect.signature(make).bind(*given)
    except TypeError as error:
        found = f"{argument!r} after the colon" if colon else "no argument after the colon"
        raise InputError(
            f"expected what get_config of {path} takes, found {found} ({error}); correct --config"
        ) from error
    try:
        config = make(*given)
    except ValueError as error:
        raise InputError(str(error)) from error
    except (AttributeError, KeyError, TypeError) as error:
        if not _origin(error).startswith(
            "ml_collections"
        ):  # which raises them for a key that is not there, or of another type
            raise
        raise InputError(
            f"expected keys that a config has, found another in {path} ({' '.join(str(error).split())})"
        ) from error
    except Stopped:
        raise
    except SystemExit as error:
        raise InputError(
            f"expected get_config of {path} to return, found that it ends the program; remove that"
        ) from error
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"expected get_config of {path} to return a ConfigDict, found {type(config).__name__}; correct it"
        )
    return config


def _origin(error: BaseException) -> str:
    """The name of the module whose code raised an exception."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "")


def config_name() -> str:
    """``configs/llava.py:benchmark=mllmu,split=5`` -> ``llava-benchmark-mllmu-split-5``."""
    path, _, argument = flags.FLAGS["config"].config_filename.partition(":")
    return "-".join([pathlib.Path(path).stem, *(part.replace("=", "-") for part in argument.split(",") if part)])


def workdir() -> pathlib.Path:
    return pathlib.Path(WORKDIR.value or pathlib.Path("runs") / config_name())


def numbers(values: list[str], flag: str, kind: type, good: Callable[[Any], bool]) -> list:
    """The values of a list flag; InputError names what is no number, or none that is ``good``."""
    try:
        found = [kind(value) for value in values]
    except ValueError as error:
        raise InputError(f"expected numbers in --{flag}, found {','.join(values)!r} ({error}); correct it") from error
    if not all(map(good, found)) or len(set(found)) < len(found):
        what = "different whole numbers of at least 0" if kind is int else "different finite numbers above 0"
        raise InputError(f"expected {what} in --{flag}, found {','.join(values)!r}; correct it")
    return found


def seeds(default: list[str]) -> list[int]:
    """The values of ``--seeds``, or where it is not there the default."""
    given = SEEDS.value if SEEDS.present else default
    return numbers(given, "seeds", int, lambda seed: 0 <= seed < 2**32)


def given() -> dict[str, Any]:
    """The keys of the config that stand on the command line, dotted, and their values."""
    return dict(config_flags.get_override_values(flags.FLAGS["config"]))


def same_config(workdir: pathlib.Path, without: tuple[str, ...]) -> None:
    """Refuses a workdir that was made with another config, whatever part of it was changed but the keys ``without``; else keeps it.

    Raises:
      InputError: it was, or ``config.json`` there is damaged.
    """
    path, own = workdir / "config.json", CONFIG.value.to_dict()
    for key in without:
        *groups, name = key.split(".")
        functools.reduce(dict.__getitem__, groups, own).pop(name)
    own = json.loads(json.dumps(own))
    if path.exists() and read_json(path, "the config of a workdir") != own:
        raise InputError(
            f"expected the config that {path} holds, found another; give another --workdir, or the old one"
        )
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, own)


def quiet() -> None:
    """Other libraries' advice: transformers says to install torch, which nothing here needs."""
    from absl import logging

    logging.set_verbosity(logging.WARNING)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
