"""Helpers of the test suite; ``from support import ...`` in a test file.

``tests`` is deliberately no package: pytest then puts ``tests/`` on ``sys.path`` rather than the
root of the checkout, so that a run against an installed wheel tests the wheel.
"""

from .backends import BACKENDS, SHUFFLED_BACKENDS, VIRTUAL_TIME_BACKENDS, backend_options
from .orders import all_orders, run_choices, run_seeds, run_shuffled
from .recording import Recorder, wait_all_tasks_blocked
from .servers import APPS, SERVERS, Server, serve
from .virtual_time import VirtualTimeLoop

__all__ = [
    "APPS",
    "BACKENDS",
    "SERVERS",
    "SHUFFLED_BACKENDS",
    "VIRTUAL_TIME_BACKENDS",
    "Recorder",
    "Server",
    "VirtualTimeLoop",
    "all_orders",
    "backend_options",
    "run_choices",
    "run_seeds",
    "run_shuffled",
    "serve",
    "wait_all_tasks_blocked",
]
