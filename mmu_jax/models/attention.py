"""Softmax attention by the kernel of the platform, and which keys a query looks at.

Plain attention writes a score for every pair of tokens to memory, in float32. A kernel (splash attention on a TPU, cuDNN on a GPU)
makes them tile by tile beside what they are made of, as FlashAttention does (arXiv 2205.14135), and no score is ever written.

Axis letters as in ``mmu_jax.models.layers``; N is K * G, all heads of the queries.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from mmu_jax import sharding

LONG = 256  # tokens: of heads of 128, more of them have more bytes of scores than of queries, keys, values and output
LANES = 128  # of a TPU: tiles are a multiple of them long
TILE = (
    1024 * LANES
)  # numbers of a tile of queries or keys, at most: what a TPU v5e's memory beside its cores holds of the backward pass
PADDING = jnp.iinfo(jnp.int32).min  # the segment of what only fills a tile


@flax.struct.dataclass
class AttentionMask:
    """Which keys a query looks at; with nothing given, all.

    Attributes:
      segment: ``[B,T]`` numbers, where the queries are the keys: those of one number look at each other. Padding has a number too:
        every token looks at one at least, which a softmax wants.
      causal: at none that comes later.
      dense: ``[B,1,T,S]``, True = look: what these two cannot say, instead of them.

    >>> AttentionMask(segment=jnp.array([[1, 1, 0]]), causal=True).whole()[0, 0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """

    segment: jax.Array | None = None
    causal: bool = flax.struct.field(pytree_node=False, default=False)
    dense: jax.Array | None = None

    def whole(self) -> jax.Array | None:
        """All of it ``[B,1,T,S]``; None where every query looks at every key."""
        if self.segment is None:
            return self.dense
        same = self.segment[:, :, None] == self.segment[:, None, :]
        return (jnp.tril(same) if self.causal else same)[:, None]


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask) -> jax.Array:
    """Attention ``[B,T,N,H]``, softmax in float32: ``q [B,T,N,H]``, ``k, v [B,S,K,H]``, each of whose heads G = N / K of q's look at.

    By a kernel where there is one (:func:`tiled`) and the mask is not dense; what is then lowered for another platform is plain.
    """
    mesh, (b, t, _, h) = jax.sharding.get_abstract_mesh(), q.shape
    if mask.dense is not None or not tiled(mesh, b, t, k.shape[2], h, q.dtype):
        return plain(q, k, v, mask)
    platform = sharding.platform(mesh)
    kernels = {LOWERED.get(platform, platform): over_devices(KERNELS[platform], mesh)}
    return jax.lax.platform_dependent(q, k, v, mask, **kernels, default=plain)


def plain(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask) -> jax.Array:
    """:func:`attention` with its scores ``[B,N,T,S]`` in memory."""
    return jax.nn.dot_product_attention(q, k, v, mask=mask.whole())


def tiled(mesh: Mesh | AbstractMesh, rows: int, tokens: int, groups: int, head: int, dtype: DTypeLike) -> bool:
    """Whether a kernel is taken: for keys ``[rows, tokens, groups, head]`` the devices of ``mesh`` have one, and share them evenly.

    >>> tiled(sharding.make_mesh(1), 8, 768, 32, 128, jnp.bfloat16)  # a CPU
    False
    """
    platform, parts = sharding.platform(mesh), mesh.shape
    if platform not in KERNELS or tokens < LONG or rows % parts.get("data", 1) or groups % parts.get("model", 1):
        return False
    return platform != "gpu" or _cudnn_has(head, dtype)


def _cudnn_has(head: int, dtype: DTypeLike) -> bool:
    """NVIDIA's from Ampere on (compute capability 8), in two bytes a number."""
    kind = str(getattr(jax.local_devices()[0], "compute_capability", "")).split(".")[0]
    return kind.isdigit() and int(kind) >= 8 and head <= 128 and head % 8 == 0 and jnp.dtype(dtype).itemsize == 2


def over_devices(kernel: Callable, mesh: AbstractMesh) -> Callable:
    """``kernel(q, k, v, mask)`` on every device for its rows and heads, since the compiler cannot take a kernel apart."""
    if mesh.empty:
        return kernel
    own = P("data", None, "model")
    return jax.shard_map(kernel, in_specs=(own, own, own, P("data")), out_specs=own, check_vma=False)


def splash(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask, *, interpret: bool = False) -> jax.Array:
    """:func:`attention` by the splash kernel that comes with JAX (``jax.experimental.pallas``), which ``interpret`` runs anywhere."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (b, t, n, h), most = q.shape, TILE // max(q.shape[3], LANES)
    (q, k, v), segment = padded(
        (q, k, v), jnp.zeros((b, t), jnp.int32) if mask.segment is None else mask.segment, LANES
    )
    length = q.shape[1]
    tile = max(size for size in range(LANES, min(length, most) + 1, LANES) if length % size == 0)
    seen = (masks.CausalMask if mask.causal else masks.FullMask)((length, length))
    row = kernels.make_splash_mha(
        masks.MultiHeadMask([seen] * n),
        block_sizes=kernels.BlockSizes(*(tile,) * 8),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    q = (q.astype(jnp.float32) * h**-0.5).astype(q.dtype)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    out = jax.vmap(lambda q, k, v, own: row(q, k, v, segment_ids=kernels.SegmentIds(own, own)))(q, k, v, segment)
    return out.swapaxes(1, 2)[:, :t]


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask) -> jax.Array:
    """:func:`attention` by cuDNN, in bfloat16 or float16; it wants an even number of tokens."""
    (b, t, n, _), segment = q.shape, mask.segment
    if segment is not None or t % 2:
        segment = jnp.zeros((b, t), jnp.int32) if segment is None else segment
        (q, k, v), segment = padded((q, k, v), segment, 2)
    seen = AttentionMask(segment).whole()
    if seen is not None and b == 1:
        seen = jnp.repeat(seen, n, axis=1)  # where rows are mapped over, JAX's rule takes no mask that heads share
    return jax.nn.dot_product_attention(q, k, v, mask=seen, is_causal=mask.causal, implementation="cudnn")[:, :t]


def padded(arrays: tuple[jax.Array, ...], segment: jax.Array, multiple: int) -> tuple[list[jax.Array], jax.Array]:
    """``[B,T,...]`` each, and ``segment [B,T]``, with zeros up to a multiple of tokens, which are a segment of their own.

    >>> padded((), jnp.array([[1, 1, 0]]), 4)[1].tolist() == [[1, 1, 0, PADDING]]
    True
    """
    more = (0, -segment.shape[1] % multiple)
    segment = jnp.pad(segment.astype(jnp.int32), ((0, 0), more), constant_values=PADDING)
    return [jnp.pad(x, ((0, 0), more) + ((0, 0),) * (x.ndim - 2)) for x in arrays], segment


KERNELS: dict[str, Callable] = {"tpu": splash, "gpu": cudnn}
LOWERED = {"gpu": "cuda"}  # what JAX calls a platform where it lowers for it
