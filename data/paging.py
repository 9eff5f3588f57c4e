"""Batches of one bucket each, in the order in which the stream completes them.

The stream of rows is walked in thought: each row joins its bucket's queue, and a bucket with
`batch` rows makes the next step. What is left over waits for the next epoch. Counts by block make
any step findable without the walk: a page of rows is labelled only when a step needs it.
B buckets, P rows of a page.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .buckets import Table
from .mix import Mix
from .order import Labels, Order

PAGE = 4096


class Page(NamedTuple):
    """Rows [PAGE * number, PAGE * (number + 1)) of the stream, by bucket."""

    before_B: np.ndarray
    """Rows of each bucket before the page."""
    rows: list[np.ndarray]
    """The page's rows in each bucket."""
    done: list[tuple[int, int, int]]
    """(last row, bucket, which of the bucket's batches) of batches completed, in order."""


class Tally:
    """How many visits of each bucket come before any visit of one source."""

    def __init__(self, order: Order, table: Table, labels: Labels) -> None:
        self.order, self.table, self.labels = order, table, labels
        counts_NB, groups = table.counts_NB, order.groups
        self._group_GB = np.stack(
            [counts_NB[group::groups].sum(0, dtype=np.int64) for group in range(groups)]
        )
        self._groups = functools.lru_cache(4)(self._groups_of)
        self._windows = functools.lru_cache(4)(self._windows_of)
        self.window = functools.lru_cache(16)(self._window_of)

    @property
    def buckets(self) -> int:
        """Number of buckets."""
        return self.table.counts_NB.shape[1]

    def bounds(self, visit: int) -> tuple[np.ndarray, np.ndarray]:
        """Counts before the visit's window, and after it."""
        epoch, window, _ = self._locate(visit)
        group, number = divmod(window, self.order.group_windows)
        before_B, windows = self._groups(epoch)[group], self._windows(epoch, group)
        return before_B + windows[number], before_B + windows[number + 1]

    def before(self, visit: int) -> np.ndarray:
        """Counts before the visit; reads the index lines of its window."""
        epoch, window, offset = self._locate(visit)
        found = self.window(epoch, window)[:offset]
        inside_B = np.bincount(found[found >= 0], minlength=self.buckets)
        return self.bounds(visit)[0] + inside_B

    def _locate(self, visit: int) -> tuple[int, int, int]:
        epoch, window, offset = self.order.locate(np.array([visit]))
        return int(epoch[0]), int(window[0]), int(offset[0])

    def of(self, visits_V: np.ndarray) -> np.ndarray:
        """(V,) bucket of each visit, -1 for none."""
        epochs, windows, offsets = self.order.locate(visits_V)
        found = np.empty(len(visits_V), dtype=np.int64)
        for epoch, window in {*zip(epochs.tolist(), windows.tolist(), strict=True)}:
            here = (epochs == epoch) & (windows == window)
            found[here] = self.window(epoch, window)[offsets[here]]
        return found

    def _groups_of(self, epoch: int) -> np.ndarray:
        """(groups, B): visits of each bucket before each group of the epoch, from visit 0 on."""
        ends = np.cumsum(self._group_GB[self.order.group_order(epoch)], axis=0)
        before = np.concatenate([np.zeros((1, self.buckets), np.int64), ends[:-1]])
        return self._group_GB.sum(0) * epoch + before

    def _windows_of(self, epoch: int, group: int) -> np.ndarray:
        """(windows + 1, B): visits of each bucket before each window of the group."""
        counts = self.table.counts_NB[self.order.group_blocks(epoch, group)].astype(np.int64)
        sums = np.add.reduceat(counts, np.arange(0, len(counts), self.order.window_blocks), axis=0)
        return np.concatenate([np.zeros((1, self.buckets), np.int64), np.cumsum(sums, axis=0)])

    def _window_of(self, epoch: int, window: int) -> np.ndarray:
        """Bucket of each visit in a window, in order."""
        pairs = self.order.window(epoch, window)
        found = np.empty(len(pairs), dtype=np.int16)
        for block in np.unique(pairs[:, 0]):
            here = pairs[:, 0] == block
            found[here] = self.labels(int(block))[pairs[here, 1]]
        return found


class Paging:
    """Finds the rows of any step."""

    def __init__(
        self,
        mix: Mix,
        orders: Sequence[Order],
        tables: Sequence[Table],
        labels: Sequence[Labels],
        batch: int,
    ) -> None:
        self.mix, self.batch = mix, batch
        self.tallies = [Tally(*one) for one in zip(orders, tables, labels, strict=True)]
        self._at = 0
        self._page = functools.lru_cache(128)(self._page_of)
        self._before = functools.lru_cache(1024)(self._before_of)

    def bucket(self, step: int) -> int:
        """The bucket of a step's batch."""
        return self._batch(step)[1]

    def rows(self, step: int) -> np.ndarray:
        """(batch,) rows of the stream that make a step."""
        _, bucket, number = self._batch(step)
        return self._items(bucket, number * self.batch, (number + 1) * self.batch)

    def frontier(self, step: int) -> int:
        """Rows of the stream that were looked at to make the steps before `step`."""
        return self._batch(step - 1)[0] + 1 if step else 0

    def _batch(self, step: int) -> tuple[int, int, int]:
        page = self._find(step, self._batches)
        return page.done[step - self._batches(page.before_B)]

    def _find(self, target: int, measure: Callable[[np.ndarray], int]) -> Page:
        """The page in which `measure` passes the target; mostly where the last one was found."""
        for near in (self._at, self._at + 1):
            if measure(self._before(near)) <= target < measure(self._before(near + 1)):
                self._at = near
                return self._page(near)
        self._at = self._search(target, measure)
        return self._page(self._at)

    def _items(self, bucket: int, first: int, last: int) -> np.ndarray:
        """Rows of the stream that are items [first, last) of a bucket."""
        parts: list[np.ndarray] = []
        while first < last:
            page = self._find(first, lambda counts_B: int(counts_B[bucket]))
            start = first - int(page.before_B[bucket])
            parts.append(page.rows[bucket][start : start + last - first])
            first += len(parts[-1])
        return np.concatenate(parts)

    def _batches(self, counts_B: np.ndarray) -> int:
        return int((counts_B // self.batch).sum())

    def _search(self, target: int, measure: Callable[[np.ndarray], int]) -> int:
        """The last page before which `measure` is at most `target`; it never falls."""

        def last(known: int, beyond: int, low: Callable[[int], int]) -> int:
            while beyond - known > 1:
                middle = (known + beyond) // 2
                known, beyond = (middle, beyond) if low(middle) <= target else (known, middle)
            return known

        beyond = 1
        while measure(self._bounds(beyond)[0]) <= target:
            beyond *= 2
        # Bounds come from counts alone; only the few pages between them are really labelled.
        sure = last(0, beyond, lambda page: measure(self._bounds(page)[1]))
        beyond = last(sure, beyond, lambda page: measure(self._bounds(page)[0])) + 1
        return last(sure, beyond, lambda page: measure(self._before(page)))

    def _bounds(self, page: int) -> tuple[np.ndarray, np.ndarray]:
        seen = self.mix.before(page * PAGE)
        pairs = [tally.bounds(int(n)) for tally, n in zip(self.tallies, seen, strict=True)]
        low, high = zip(*pairs, strict=True)
        return np.sum(low, axis=0), np.sum(high, axis=0)

    def _before_of(self, page: int) -> np.ndarray:
        seen = self.mix.before(page * PAGE)
        counts = [tally.before(int(n)) for tally, n in zip(self.tallies, seen, strict=True)]
        return np.sum(counts, axis=0)

    def _page_of(self, number: int) -> Page:
        before_B = self._before(number)
        rows = np.arange(number * PAGE, (number + 1) * PAGE)
        source, visits = self.mix.split(rows)
        labels = np.empty(PAGE, dtype=np.int64)
        for index, tally in enumerate(self.tallies):
            labels[source == index] = tally.of(visits[source == index])
        by_bucket = [rows[labels == bucket] for bucket in range(len(before_B))]
        done: list[tuple[int, int, int]] = []
        for bucket, mine in enumerate(by_bucket):
            have = int(before_B[bucket])
            first = -(have + 1) % self.batch  # place of the row that completes the next batch
            for place in range(first, len(mine), self.batch):
                done.append((int(mine[place]), bucket, (have + place) // self.batch))
        return Page(before_B, by_bucket, sorted(done))
