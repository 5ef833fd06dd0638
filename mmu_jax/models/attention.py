"""Softmax attention by the kernel of the platform, and which keys a query looks at.

Plain attention writes a score for every pair of tokens to memory, in float32. A kernel (splash attention on a TPU, cuDNN on a GPU)
makes them tile by tile beside what they are made of, as FlashAttention does (arXiv 2205.14135), and no score is ever written.

Axis letters as in ``mmu_jax.models.layers``; N is K * G, all heads of the queries.
"""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from mmu_jax import sharding

LONG = 256  # tokens: of heads of 128, more of them have more bytes of scores than of queries, keys, values and output
LANES = 128  # of a TPU: tiles are a multiple of them long
TILE = 1024 * LANES  # numbers of a tile of queries or keys: of more a TPU v5e's cores do not hold the backward pass
PADDING = jnp.iinfo(jnp.int32).min  # the segment of what only fills a tile
KINDS = ("all", "causal", "segments", "dense")  # of masks


_wanted = jax.make_user_context(True)  # programs that were made under another value are not taken for these


def kernels(wanted: bool) -> contextlib.AbstractContextManager:
    """Whether attention may take a kernel within: False to compare with plain attention, or where a kernel fails.

    >>> with kernels(False):
    ...     tiled(sharding.make_mesh(1), 8, 768, 32, 128, jnp.bfloat16, "causal")
    False
    """
    return _wanted(wanted)


@flax.struct.dataclass
class AttentionMask:
    """Which keys a query looks at, in one of three ways; with none of them at all keys, or those that come no later.

    Attributes:
      valid: ``[B,T]`` bool, of text: a token looks at itself and at the valid tokens before it. At what padding looks is not said.
      segment: ``[B,T]`` numbers, of images: tokens of one number look at each other.
      dense: ``[B,1,T,S]``, True = look: what these cannot say.
      causal: at none that comes later; so it is with ``valid``.
      written: ``[B,1,T,T]``, all of what ``valid`` says, for all layers (:func:`for_layers`).

    >>> AttentionMask(valid=jnp.array([[True, True, False]])).whole()[0, 0].astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    """

    valid: jax.Array | None = None
    segment: jax.Array | None = None
    dense: jax.Array | None = None
    causal: bool = flax.struct.field(pytree_node=False, default=False)
    written: jax.Array | None = None

    def segments(self) -> jax.Array | None:
        """``[B,T]`` int32, of ``valid`` too: padding then looks at padding, since a kernel's softmax wants a key."""
        found = self.segment if self.valid is None else self.valid
        return None if found is None else found.astype(jnp.int32)

    @property
    def kind(self) -> str:
        """Of :data:`KINDS`, what a kernel has to be told."""
        if self.dense is not None:
            return "dense"
        return "segments" if self.segments() is not None else "causal" if self.causal else "all"

    def whole(self) -> jax.Array | None:
        """All of it ``[B,1,T,S]``; None where every query looks at every key, or at those that come no later."""
        if self.written is not None:
            return self.written
        if self.valid is not None:  # spelled with integers it takes XLA's CPU two seconds more to compile a small model
            t = self.valid.shape[1]
            return (jnp.tril(jnp.ones((t, t), bool)) & self.valid.astype(bool)[:, None, :])[:, None]
        if self.segment is not None:
            return (self.segment[:, :, None] == self.segment[:, None, :])[:, None]
        return self.dense


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask) -> jax.Array:
    """Attention ``[B,T,N,H]``, softmax in float32: ``q [B,T,N,H]``, ``k, v [B,S,K,H]``, each of whose heads G = N / K of q's look at.

    By a kernel where there is one (:func:`tiled`) that takes the mask; what is then lowered for another platform is plain.
    """
    mesh, (b, t, _, h) = jax.sharding.get_abstract_mesh(), q.shape
    if not tiled(mesh, b, t, k.shape[2], h, q.dtype, mask.kind):
        return plain(q, k, v, mask)
    platform = sharding.device(mesh).platform
    by_kernel = {LOWERED.get(platform, platform): over_devices(KERNELS[platform].of, mesh)}
    return jax.lax.platform_dependent(q, k, v, mask, **by_kernel, default=plain)


def plain(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask) -> jax.Array:
    """:func:`attention` with its scores ``[B,N,T,S]`` in memory."""
    return jax.nn.dot_product_attention(q, k, v, mask=mask.whole(), is_causal=mask.causal)


def tiled(
    mesh: Mesh | AbstractMesh, rows: int, tokens: int, groups: int, head: int, dtype: DTypeLike, kind: str
) -> bool:
    """Whether a kernel is taken for keys ``[rows, tokens, groups, head]`` and a mask of a ``kind`` (:data:`KINDS`).

    There has to be one on the devices of ``mesh``, they have to share rows and heads evenly, and :func:`kernels` has to allow it.

    >>> tiled(sharding.make_mesh(1), 8, 768, 32, 128, jnp.bfloat16, "causal")  # a CPU
    False
    """
    device = sharding.device(mesh)
    if not _wanted.value or device.platform not in KERNELS or tokens < LONG or not _shares(mesh, rows, groups):
        return False
    return KERNELS[device.platform].takes(kind, tokens, head, dtype, device.device_kind)


def _shares(mesh: Mesh | AbstractMesh, rows: int, groups: int) -> bool:
    """Whether each device can have a part of its own. Without a mesh nobody says which, unless there is one device alone."""
    if mesh.empty:
        return jax.device_count() == 1
    data, model = (mesh.shape.get(axis, 0) for axis in ("data", "model"))
    return data * model == mesh.size and rows % data == 0 and groups % model == 0


def for_layers(
    mask: AttentionMask, rows: int, groups: int, head: int, dtype: DTypeLike, cached: bool
) -> tuple[AttentionMask, jax.Array | None]:
    """A mask as the layers of a text model are best given it, and, unless it is None, in which order ``[B,T]`` of the tokens.

    Where attention will be plain all of a mask is written down, once for all layers. To a kernel that knows of no padding the valid tokens
    of each row come first, unless slots of a cache are theirs (``cached``): causal, they see none. Rows are padded on the right as a rule,
    and keep their order.
    """
    if mask.valid is None:
        return mask, None
    given = (jax.sharding.get_abstract_mesh(), rows, mask.valid.shape[1], groups, head, dtype)
    if tiled(*given, "segments"):
        return mask, None
    if not cached and tiled(*given, "causal"):
        return AttentionMask(causal=True), jnp.argsort(~mask.valid.astype(bool), axis=1, stable=True)
    return mask.replace(written=mask.whole()), None


def over_devices(kernel: Callable, mesh: AbstractMesh) -> Callable:
    """``kernel(q, k, v, mask)`` on every device for its rows and heads, since the compiler cannot take a kernel apart."""
    if mesh.empty:
        return kernel
    own = P("data", None, "model")
    return jax.shard_map(kernel, in_specs=(own, own, own, P("data")), out_specs=own, check_vma=False)


def splash(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask, *, interpret: bool = False) -> jax.Array:
    """:func:`attention` by the splash kernel that comes with JAX (``jax.experimental.pallas``), which ``interpret`` runs anywhere.

    It has no scale: queries are scaled before, and in bfloat16 rounded once more.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splashing
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (b, t, n, h), most = q.shape, TILE // max(q.shape[3], LANES)
    segment = jnp.zeros((b, t), jnp.int32) if mask.segments() is None else mask.segments()
    (q, k, v), segment = padded((q, k, v), segment)
    length, causal = q.shape[1], mask.causal or mask.valid is not None
    tile = max(size for size in range(LANES, min(length, most) + 1, LANES) if length % size == 0)
    seen = (masks.CausalMask if causal else masks.FullMask)((length, length))
    row = splashing.make_splash_mha(
        masks.MultiHeadMask([seen] * n),
        block_sizes=splashing.BlockSizes(*(tile,) * 8),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    q = (q.astype(jnp.float32) * h**-0.5).astype(q.dtype)
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    out = jax.vmap(lambda q, k, v, own: row(q, k, v, segment_ids=splashing.SegmentIds(own, own)))(q, k, v, segment)
    return out.swapaxes(1, 2)[:, :t]


def splash_takes(kind: str, tokens: int, head: int, dtype: DTypeLike, device: str) -> bool:
    """All but a dense mask, on a TPU v4 or later: those before multiply no bfloat16 in a kernel.

    >>> [splash_takes("segments", 577, 64, jnp.float32, device) for device in ("TPU v3", "TPU v5 lite")]
    [False, True]
    """
    return kind != "dense" and device not in ("TPU v2", "TPU v3")


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: AttentionMask) -> jax.Array:
    """:func:`attention` by cuDNN, causal or of all keys: of a mask it would write a gradient as large as scores."""
    odd = q.shape[1] % 2  # which it does not take: causal, nothing looks at one more
    q, k, v = (jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, is_causal=mask.causal, implementation="cudnn")
    return out[:, : out.shape[1] - odd]


def cudnn_takes(kind: str, tokens: int, head: int, dtype: DTypeLike, device: str) -> bool:
    """In two bytes a number, on GPUs of NVIDIA's from Ampere on (compute capability 8).

    >>> cudnn_takes("causal", 768, 128, jnp.bfloat16, "cpu")  # there is none here
    False
    """
    capability = str(getattr(jax.local_devices()[0], "compute_capability", "")).split(".")[0]
    there = capability.isdigit() and int(capability) >= 8 and jnp.dtype(dtype).itemsize == 2
    return there and head <= 128 and head % 8 == 0 and (kind == "causal" or (kind == "all" and tokens % 2 == 0))


def padded(arrays: tuple[jax.Array, ...], segment: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """``[B,T,...]`` each and ``segment [B,T]``, with zeros up to a multiple of :data:`LANES` tokens, a segment of their own.

    >>> padded((), jnp.zeros((1, 250), jnp.int32))[1][0, 249:251].tolist() == [0, PADDING]
    True
    """
    more = (0, -segment.shape[1] % LANES)
    segment = jnp.pad(segment, ((0, 0), more), constant_values=PADDING)
    return [jnp.pad(x, ((0, 0), more) + ((0, 0),) * (x.ndim - 2)) for x in arrays], segment


class Kernel(NamedTuple):
    """A kernel of a platform.

    Attributes:
      of: ``(q, k, v, mask) -> out``, shapes as of :func:`attention`, on one device.
      takes: ``(kind of mask, tokens, head, dtype, device_kind) -> bool``.
    """

    of: Callable
    takes: Callable[[str, int, int, DTypeLike, str], bool]


KERNELS = {"tpu": Kernel(splash, splash_takes), "gpu": Kernel(cudnn, cudnn_takes)}
LOWERED = {"gpu": "cuda"}  # what JAX calls a platform where it lowers for it
