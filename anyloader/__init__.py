"""The DataLoader for asyncio and trio: many small loads become few calls of a batch function."""

from . import hooks as hooks
from . import schedules as schedules
from ._cache import ValueCache as ValueCache
from ._errors import BatchResultError as BatchResultError
from ._errors import LoadCancelledError as LoadCancelledError
from ._errors import LoadDeadlockError as LoadDeadlockError
from ._errors import LoaderClosedError as LoaderClosedError
from ._errors import LoaderError as LoaderError
from ._errors import LoaderNotOpenError as LoaderNotOpenError
from ._handle import LoadHandle as LoadHandle
from ._handle import LoadManyHandle as LoadManyHandle
from ._loader import DataLoader as DataLoader
from ._scope import BatchLoader as BatchLoader
from ._scope import LoaderScope as LoaderScope
from ._scope import batch_loader as batch_loader
from ._scope import current_scope as current_scope
from ._statistics import LoaderStatistics as LoaderStatistics
from ._threads import in_thread as in_thread

__all__ = (
    "BatchLoader",
    "BatchResultError",
    "DataLoader",
    "LoadCancelledError",
    "LoadDeadlockError",
    "LoadHandle",
    "LoadManyHandle",
    "LoaderClosedError",
    "LoaderError",
    "LoaderNotOpenError",
    "LoaderScope",
    "LoaderStatistics",
    "ValueCache",
    "batch_loader",
    "current_scope",
    "hooks",
    "in_thread",
    "schedules",
)
