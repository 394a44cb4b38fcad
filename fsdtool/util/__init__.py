"""What any program needs and no field owns: files that appear when they are complete, a batch that halves when
memory runs out, the choice of a device, progress, cells of CSV, checked values by name, text for
a terminal, the modules of a package.  Nothing here knows of
networks, data or summaries.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, BatchSize="memory", choose_device="device")
