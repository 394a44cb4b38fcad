"""What a network is given of an example: one tensor, or several by position or by name, of numbers, whole numbers
(token ids, categories) or truth values (masks).  Here is how several are asked for, packed into one row of numbers so
that the rest of the tool has one tensor for each example, and handed to the network as it takes them.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, Part="part")
