"""The DataLoader for asyncio and trio: many small loads become few calls of a batch function."""

from . import hooks as hooks
from . import schedules as schedules
from ._batch import LoadHandle as LoadHandle
from ._batch import LoadManyHandle as LoadManyHandle
from ._dataloader import DataLoader as DataLoader
from ._errors import BatchResultError as BatchResultError
from ._errors import KeyNotFoundError as KeyNotFoundError
from ._errors import LoadCancelledError as LoadCancelledError
from ._errors import LoadDeadlockError as LoadDeadlockError
from ._errors import LoaderBusyError as LoaderBusyError
from ._errors import LoaderClosedError as LoaderClosedError
from ._errors import LoaderError as LoaderError
from ._errors import LoaderNotOpenError as LoaderNotOpenError
from ._gather import gather as gather
from ._limits import limit as limit
from ._scope import BatchLoader as BatchLoader
from ._scope import LoaderScope as LoaderScope
from ._scope import batch_loader as batch_loader
from ._scope import current_scope as current_scope
from ._split import split_on_error as split_on_error
from ._statistics import LoaderStatistics as LoaderStatistics
from ._threads import in_thread as in_thread
from ._values import ValueCache as ValueCache

__all__ = (
    "BatchLoader",
    "BatchResultError",
    "DataLoader",
    "KeyNotFoundError",
    "LoadCancelledError",
    "LoadDeadlockError",
    "LoadHandle",
    "LoadManyHandle",
    "LoaderBusyError",
    "LoaderClosedError",
    "LoaderError",
    "LoaderNotOpenError",
    "LoaderScope",
    "LoaderStatistics",
    "ValueCache",
    "batch_loader",
    "current_scope",
    "gather",
    "hooks",
    "in_thread",
    "limit",
    "schedules",
    "split_on_error",
)
