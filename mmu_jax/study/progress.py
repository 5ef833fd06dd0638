"""How far a stage is."""

import sys
import time

from mmu_jax import sharding


class Progress:
    """A bar with rate and time left on a terminal, plain lines elsewhere."""

    def __init__(self, name: str, total: int):
        from tqdm import tqdm

        self.name, self.total, self.done, self.spoke = name, total, 0, 0.0
        self.first: tuple[int, float] | None = None  # where and when the first report came: compilation is behind it
        self.bar = tqdm(total=total, desc=name, dynamic_ncols=True) if sharding.main() and sys.stderr.isatty() else None

    def to(self, done: int, values: dict[str, float] | None = None) -> None:
        """``done`` of the total is done; ``values`` are shown beside it."""
        text = "  ".join(f"{name} {value:.3f}" for name, value in (values or {}).items())
        now = time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(done - self.done)
        elif done == self.total or now - self.spoke > 5:
            self.spoke = now
            print(f"  {self.name}: {done}/{self.total}  {self._pace(done, now)}{text}".rstrip(), flush=True)
        self.first, self.done = self.first or (done, now), done

    def _pace(self, done: int, now: float) -> str:
        if self.first is None or done == self.first[0]:
            return ""
        rate = (done - self.first[0]) / max(now - self.first[1], 1e-6)
        return f"{rate:.1f}/s  {(self.total - done) / rate:.0f} s left  "

    def add(self, n: int = 1) -> None:
        self.to(self.done + n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
