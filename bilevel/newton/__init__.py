r"""Newton's method for small smooth programs, exact to rounding.

.. math:: \min_z\ \varphi(z) \quad\text{s.t.}\quad c(z) \le 0,\quad h(z) = 0,\quad l \le z \le u
"""

from bilevel.newton.elastic import Descent, minimise_elastic
from bilevel.newton.program import Answer, FarkasCertificate, Linearisation, Program
from bilevel.newton.solver import solve

__all__ = [
    "Answer",
    "Descent",
    "FarkasCertificate",
    "Linearisation",
    "Program",
    "minimise_elastic",
    "solve",
]
