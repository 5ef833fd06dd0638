"""How the suite compiles. Most of a test is compilation: the same operations, in code that is made quickly.

``tests/programs/test_run.py`` compiles as users do.
"""

from importlib.metadata import version

JAXLIB = tuple(map(int, version("jaxlib").split(".")[:2]))
QUICK = "--xla_backend_optimization_level=0"
if JAXLIB < (0, 11):  # later ones have no other emitters, and end at a flag that they do not know
    QUICK += " --xla_cpu_use_fusion_emitters=false"
