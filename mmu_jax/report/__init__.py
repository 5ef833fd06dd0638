"""Tables, figures and one page a person reads, made from the JSON files of a workdir.

``results`` reads and judges numbers, ``tables`` and ``figures`` show them, ``page`` puts them in order.
Several workdirs are read by ``runs``, compared by ``paired`` and told of by ``comparison``, for a paper through ``latex``.
"""

from mmu_jax.report.page import write
from mmu_jax.report.tables import summary

__all__ = ["summary", "write"]
