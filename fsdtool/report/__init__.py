"""What is written for people and programs: rows on stdout, talk on stderr, and the HTML page with its
pictures.  It lays out what estimators found and estimates nothing.
"""

from __future__ import annotations

from fsdtool.util.lazy import public

__getattr__, __all__ = public(
    __name__, Talk="talk", render="console", review="mislabel_page", say="talk", write_page="html"
)
