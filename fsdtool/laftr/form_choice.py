"""Which form a function space distance takes: the names of the forms, and the choice between them.

    examples  on the anchors that the summary keeps: every metric and network
    closed    the exact expectation under the stochastic model: fully connected nets, kl2 and squared_error
    sampled   on pseudo-samples under the reference's gates: every metric and network

fsdtool.laftr.distance_forms computes them.  Nothing here imports torch: the command line asks for the names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fsdtool.errors import FsdtoolError
from fsdtool.laftr.gates.policy import policies

if TYPE_CHECKING:
    from fsdtool.network.graph import Graph
    from fsdtool.statistics.anchors import Anchors
    from fsdtool.statistics.component_laws import Statistics

AUTO, EXAMPLES, CLOSED, SAMPLED = "auto", "examples", "closed", "sampled"
NONE = "none"  # of a summary from which no distance can be estimated
FORMS = (AUTO, EXAMPLES, CLOSED, SAMPLED)
SIMULATE = f'use `form="{SAMPLED}"`'


def choose_form(
    form: str,
    metric: str,
    graph: Graph,
    statistics: Statistics,
    anchors: Anchors | None,
    gates: str | None,
    *,
    source: str | Path,
) -> str:
    """'examples', 'closed' or 'sampled'.  Raises FsdtoolError where the form asked for does not exist.

    'auto' takes the anchors, which were closest to the true distances on every data set measured.  For independent
    gates it takes the closed form where that exists: there it is exact.  source: the summary, as an error names it.
    """
    obstacles = []
    if not graph.is_chain():
        obstacles.append("the network is not a plain chain of fully connected layers")
    if metric not in ("kl2", "squared_error"):
        obstacles.append(f"the metric is {metric}, and it knows kl2 and squared_error")
    if metric == "kl2" and statistics.output_hessian is None:
        obstacles.append("the summary has no output Hessian (too many outputs)")
    if not statistics.drawn and (form == SAMPLED or gates is not None or anchors is None):
        remedy = f'use `form="{EXAMPLES}"`' if anchors is not None else "give `data`, or summarize with records"
        raise FsdtoolError(
            f"'{source}' is of a network that takes whole numbers (token ids, categories), of which none can be "
            f"simulated; {remedy}"
        )
    if form == CLOSED and obstacles:
        raise FsdtoolError(f"there is no closed form: {'; '.join(obstacles)}; {SIMULATE}")
    if form == EXAMPLES and anchors is None:
        raise FsdtoolError(f"'{source}' keeps no examples (it was written with `records=False`); {SIMULATE}")
    if form == EXAMPLES and gates is not None:
        raise FsdtoolError(f"kept examples have gates of their own; leave out `gates`, or {SIMULATE}")
    if form != AUTO:
        return form
    if gates is None and anchors is not None:
        return EXAMPLES
    exact = gates in policies() and policies()[gates].has_closed_form
    return CLOSED if exact and not obstacles else SAMPLED
