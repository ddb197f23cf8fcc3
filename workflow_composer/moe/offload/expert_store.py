"""Offloaded experts: a memory-mapped file, a bounded memory per layer, and a thread that transfers experts over a slow link.

The cost of a transfer is simulated, because the page cache would deliver an expert in microseconds: the bytes are copied
from the memory-mapped file, and the link then sleeps until ``bytes / bandwidth`` seconds have passed since the transfer
began. There is one transfer at a time. This models a bus (PCIe) whose transfers need no processor; it does not model a
disk's latency.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workflow_composer.moe.offload.expert_cache import ExpertCache, Keep
from workflow_composer.moe.offload.prefetch import LayerCount

Key = tuple[int, int]


class ExpertFile:
    """The matrices of all experts, one expert after the other, in a memory-mapped file. Close it after use."""

    def __init__(self, path: Path, layers: Mapping[int, Any]) -> None:
        """Write the file from modules with ``gate_up_proj`` [experts, a, b] and ``down_proj`` [experts, c, d]."""
        self._place: dict[int, int] = {}
        self._shapes: dict[int, tuple[torch.Size, torch.Size]] = {}
        self._dtype: dict[int, torch.dtype] = {}
        self.experts: dict[int, int] = {}
        with path.open("wb") as file:
            for layer, module in layers.items():
                up, down = module.gate_up_proj.detach().cpu(), module.down_proj.detach().cpu()
                self._place[layer], self.experts[layer] = file.tell(), len(up)
                self._shapes[layer], self._dtype[layer] = (up.shape[1:], down.shape[1:]), up.dtype
                for one in zip(up, down, strict=True):
                    file.write(b"".join(part.contiguous().view(torch.uint8).numpy().tobytes() for part in one))
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.path = path

    def bytes_of(self, layer: int) -> int:
        """Return the size of one expert of the layer in bytes."""
        up, down = self._shapes[layer]
        return int((up.numel() + down.numel()) * self._dtype[layer].itemsize)

    def read(self, layer: int, expert: int) -> tuple[Tensor, Tensor]:
        """Return the expert's two matrices, as views of the file."""
        up, down = self._shapes[layer]
        start = self._place[layer] + expert * self.bytes_of(layer)
        flat = torch.frombuffer(self._map, dtype=self._dtype[layer], count=up.numel() + down.numel(), offset=start)
        return flat[: up.numel()].view(up), flat[up.numel() :].view(down)

    def room(self, layer: int, count: int) -> tuple[Tensor, Tensor]:
        """Allocate memory for this number of experts of the layer."""
        up, down = self._shapes[layer]
        return torch.empty((count, *up), dtype=self._dtype[layer]), torch.empty((count, *down), dtype=self._dtype[layer])


@dataclass(frozen=True)
class Link:
    """Speed of the simulated link in bytes per second; 0: as fast as a copy."""

    bandwidth: float = 0.0


class ExpertStore:
    """At most ``slots`` experts per layer in memory; the others are in the file.

    `want` prefetches experts; `acquire` waits for one and protects it from eviction until `release`. Acquired experts are
    transferred before wanted ones. One thread makes all transfers; `close` ends it. For use by one computing thread.
    """

    def __init__(
        self,
        file: ExpertFile,
        *,
        slots: int,
        keep: Keep = Keep.LRU,
        link: Link | None = None,
        pinned: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        self.file, self.link = file, link or Link()
        self.counts = {layer: LayerCount() for layer in file.experts}
        self._caches = {layer: ExpertCache(slots, keep, pinned=(pinned or {}).get(layer, ())) for layer in file.experts}
        self._room = {layer: file.room(layer, slots) for layer in file.experts}
        self._changed = threading.Condition()
        self._demanded: deque[Key] = deque()
        self._wanted: deque[Key] = deque()
        self._loading: Key | None = None
        self._ready: set[Key] = set()
        self._in_use: set[Key] = set()
        self._hoped: set[Key] = set()
        self._came_early: set[Key] = set()
        self._error: BaseException | None = None
        self._closed = False
        for layer, cache in self._caches.items():
            for expert in cache.pinned:
                self._copy((layer, expert), cache.place(expert))
                self._ready.add((layer, expert))
        self._thread = threading.Thread(target=self._carry, name="experts", daemon=True)
        self._thread.start()

    @property
    def bytes_in_memory(self) -> int:
        """Memory of all slots in bytes, used or not; fixed at construction."""
        return sum(part.numel() * part.element_size() for room in self._room.values() for part in room)

    def want(self, layer: int, experts: Iterable[int]) -> None:
        """Prefetch these experts of the layer, in this order, when the link is free."""
        with self._changed:
            for expert in experts:
                self._hoped.add((layer, expert))
                if expert not in self._caches[layer] and (layer, expert) not in self._wanted:
                    self._wanted.append((layer, expert))
            self._changed.notify_all()

    def begin(self, layer: int, experts: Sequence[int]) -> None:
        """Take the gate's choice: count it, drop the layer's predictions, and request the missing experts."""
        count, cache = self.counts[layer], self._caches[layer]
        with self._changed:
            self._wanted = deque(key for key in self._wanted if key[0] != layer)
            self._hoped = {key for key in self._hoped if key[0] != layer}
            early = {key for key in self._came_early if key[0] == layer}
            count.useless += sum(key[1] not in experts for key in early)
            self._came_early -= early
            together = len(set(experts) - cache.pinned) <= cache.slots - len(cache.pinned)
            for expert in experts:
                key = (layer, expert)
                count.uses += 1
                cache.use(expert)
                if key in self._ready:
                    count.hits += 1
                elif key == self._loading:
                    count.late += 1
                elif together:
                    self._demand(key)
                if together:
                    self._in_use.add(key)
            self._changed.notify_all()

    def _demand(self, key: Key) -> None:
        self.counts[key[0]].demanded += 1
        self._demanded.append(key)
        self._changed.notify_all()

    def acquire(self, layer: int, expert: int) -> tuple[Tensor, Tensor]:
        """Wait for an expert named in `begin`; return its two matrices, valid until `release`. Raises the thread's error."""
        key = (layer, expert)
        with self._changed:
            start = time.perf_counter()
            self._in_use.add(key)
            if key not in self._ready and key != self._loading and key not in self._demanded:
                # More experts are needed than there are slots: use one after the other.
                self._demand(key)
            while key not in self._ready:
                if self._error is not None:
                    raise self._error
                self._changed.wait()
            self.counts[layer].waited += time.perf_counter() - start
            slot = self._caches[layer].slot(expert)
        assert slot is not None
        up, down = self._room[layer]
        return up[slot], down[slot]

    def release(self, layer: int, expert: int) -> None:
        """Allow the eviction of the expert again."""
        with self._changed:
            self._in_use.discard((layer, expert))
            cache = self._caches[layer]
            if cache.keep is Keep.NOTHING:
                cache.drop(expert)
                self._ready.discard((layer, expert))
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread after its current transfer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _carry(self) -> None:
        try:
            while (task := self._next()) is not None:
                key, slot = task
                begun = time.perf_counter()
                self._copy(key, slot)
                if self.link.bandwidth:
                    left = begun + self.file.bytes_of(key[0]) / self.link.bandwidth - time.perf_counter()
                    time.sleep(max(0.0, left))
                with self._changed:
                    self._loading = None
                    self._ready.add(key)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001  # raised again by `acquire`
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next(self) -> tuple[Key, int] | None:
        """Wait for the next possible transfer and return it; None at the end."""
        with self._changed:
            while not self._closed:
                for queue, demanded in ((self._demanded, True), (self._wanted, False)):
                    while queue:
                        task = self._place(queue[0], demanded=demanded)
                        if task is None and demanded:
                            break  # every slot is in use; a release frees one
                        queue.popleft()
                        if task is not None:
                            return task
                    if queue:
                        break
                self._changed.wait()
            return None

    def _place(self, key: Key, *, demanded: bool) -> tuple[Key, int] | None:
        """Assign a slot to the expert if it has none and one is free or can be freed."""
        layer, expert = key
        cache = self._caches[layer]
        if expert in cache:
            return None
        protected = {e for of, e in self._in_use if of == layer and e in cache}
        if not demanded:
            protected |= {e for of, e in self._hoped if of == layer}
        before = {e for of, e in self._ready if of == layer}
        slot = cache.place(expert, protected)
        if slot is None:
            return None
        self._ready -= {(layer, e) for e in before if e not in cache}
        self._loading = key
        if not demanded:
            self.counts[layer].fetched += 1
            self._came_early.add(key)
        return key, slot

    def _copy(self, key: Key, slot: int | None) -> None:
        assert slot is not None
        for room, part in zip(self._room[key[0]], self.file.read(*key), strict=True):
            room[slot].copy_(part)
