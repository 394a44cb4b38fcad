"""What is written for people and programs: rows in six formats on stdout and talk on stderr, checks of a CI system, and
the HTML page with its pictures.  It lays out what estimators found and estimates nothing.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(__name__, render="console", say="console", write_page="html", review="mislabel_page")
