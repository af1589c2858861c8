"""Importing modules that bring much with them, such as torch, without waiting for the garbage collector."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from types import ModuleType


def preload(name: str) -> ModuleType:
    """A module, imported with all that it imports if it isn't there yet.

    While it is imported nothing is collected: what modules make stays until the process ends, and the collector would
    look through it again and again, for a tenth to a fifth of the time that torch takes. It never will: all objects
    that are there by then, the caller's too, are left out of later collections. So only the command line does this.
    """
    if name in sys.modules or not gc.isenabled():
        return import_module(name)
    gc.disable()
    try:
        return import_module(name)
    finally:
        gc.freeze()
        gc.enable()
