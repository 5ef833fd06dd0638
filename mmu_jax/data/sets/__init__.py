"""The data sets, one file each: what splits it has, and rows in the schema of ``mmu_jax.data.schema``."""
