"""The commands, one module each: it parses its options, calls one estimator, hands its rows to `report`, and has a
`COMMAND` by which it is found.  A new command is a new module here.  Estimators are imported inside the commands, so
that help and usage errors do not wait for torch.
"""

from __future__ import annotations

__all__: list[str] = []
