"""Programs that some tests need and that pip does not bring: ``@pytest.mark.needs("pdflatex")``."""

import shutil

# Program -> the Debian packages that bring it.
PROGRAMS = {"chromium": "chromium", "pdflatex": "texlive-latex-base texlive-latex-recommended"}


def absent(item):
    """The programs that a test needs and this machine lacks."""
    named = [name for mark in item.iter_markers("needs") for name in mark.args]
    if unknown := [name for name in named if name not in PROGRAMS]:
        raise ValueError(
            f"expected needs(...) of {item.nodeid} among {', '.join(PROGRAMS)}, found {unknown[0]}; add it there"
        )
    return [name for name in named if shutil.which(name) is None]


def advice():
    """A line for every program that this machine lacks."""
    lost = [name for name in PROGRAMS if shutil.which(name) is None]
    return [
        f"tests that need {name} are left out: apt-get install --no-install-recommends {PROGRAMS[name]}"
        for name in lost
    ]
