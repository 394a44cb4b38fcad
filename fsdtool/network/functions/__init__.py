"""Functions of torch that a network may run as they are: products of signals, softmax, norms, recurrent cells, masks.

They have no gates and no weight matrices of their own.  Under changed weights they are run on the changed signals, and
what is differentiated is differentiated through them.  Every module of this package is imported here and registers the
names of its functions, so that a new one is one line, or a new file:

    register("roll")
"""

from __future__ import annotations

from fsdtool.network.functions.known import function, is_known, register, spelling
from fsdtool.util.discovery import modules_of

__all__ = ["function", "is_known", "register", "spelling"]

modules_of(__name__)
