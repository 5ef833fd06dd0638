"""Tables, figures and one page a person reads, made from the JSON files of a workdir.

``results`` and ``attacked`` read and judge numbers, ``answers`` what was said, ``words`` tells them plainly, ``tables``,
``figures`` and ``bars`` show them, ``faces`` the people where they may be shown, ``page`` puts all of it in order.
Several workdirs are read by ``runs``, compared by ``paired`` and told of by ``comparison``, for a paper through ``latex``.
``deletion`` judges what came of a deletion request, ``card`` tells it beside the model.
"""

from mmu_jax.report.page import write
from mmu_jax.report.tables import summary

__all__ = ["summary", "write"]
