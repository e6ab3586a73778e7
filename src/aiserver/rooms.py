"""Opens the rooms that have processes and folders of their own, for as long as a server runs."""

import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from aiserver import settings as s
from aiserver.data import Data, data_folder
from aiserver.files.access import FileAccess, publishes_of
from aiserver.files.handlers import urls_of
from aiserver.files.variant_cache import VariantCache
from aiserver.files.variants import Variants, presets_in
from aiserver.kit.clock import SystemClock
from aiserver.kit.imaging.pool import MOST_CHILDREN, ImagingPool
from aiserver.transforms.handlers import Transforms
from aiserver.transforms.scratch import Scratch
from aiserver.transforms.slots import CoreSlots
from aiserver.work.rooms import QueuedRoom


@asynccontextmanager
async def open_rooms(settings: s.Settings, data: Data) -> AsyncGenerator[Sequence[QueuedRoom]]:
    """Raises StorageError where the data folder cannot be used."""
    imaging = ImagingPool(children=min(MOST_CHILDREN, _cores()))
    with Scratch.opened(data_folder(settings) / "scratch") as scratch:
        variants = _variants(settings, data, imaging, scratch)
        await imaging.start()
        try:
            slots = CoreSlots(max(_cores() // settings[s.WORKERS], 1))
            yield [
                Transforms(imaging=imaging, artifacts=data.artifacts, scratch=scratch, slots=slots),
                variants,
            ]
        finally:
            await variants.close()
            await imaging.stop()


def _variants(settings: s.Settings, data: Data, imaging: ImagingPool, scratch: Scratch) -> Variants:
    folder = data_folder(settings)
    urls = urls_of(settings, data.engine.tables, SystemClock())
    cache = VariantCache(folder / "variants", most_bytes=settings[s.VARIANT_CACHE])
    data.shelf.watch(cache.forget)
    return Variants(
        artifacts=data.artifacts,
        access=FileAccess(data.artifacts, urls, publishes_of(settings, data.ring.publishes)),
        imaging=imaging,
        cache=cache,
        scratch=scratch,
        presets=presets_in(folder / "overrides"),
    )


def _cores() -> int:
    """Those that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
