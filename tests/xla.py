"""How the suite compiles. Most of a test is compilation: the same operations, in code that is made quickly.

``tests/programs/test_run.py`` compiles as users do.
"""

QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
