"""Design of a transport network: which links to build, and with what capacity.

The second application of BLOCC (Jiang et al. 2024, arXiv:2406.10148, section 4.3).
"""

from bilevel.problems.transport.assessment import Assessment, assess
from bilevel.problems.transport.follower import Equilibrium, Passengers
from bilevel.problems.transport.instances import nine_node, three_node
from bilevel.problems.transport.limits import PlanLimits
from bilevel.problems.transport.network import TransportNetwork
from bilevel.problems.transport.planning import Plan, plan_network
from bilevel.problems.transport.problem import transport_problem, transport_start
from bilevel.problems.transport.random_networks import random_network
from bilevel.problems.transport.routes import RoutePool
from bilevel.problems.transport.seville import seville, seville_start
from bilevel.problems.transport.tolls import TollPlan, toll_plan, toll_profit
from bilevel.problems.transport.tolls_search import TollPolish, polish_tolls
from bilevel.problems.transport.true_profit import TrueProfit

__all__ = [
    "Assessment",
    "Equilibrium",
    "Passengers",
    "Plan",
    "PlanLimits",
    "RoutePool",
    "TollPlan",
    "TollPolish",
    "TransportNetwork",
    "TrueProfit",
    "assess",
    "nine_node",
    "plan_network",
    "polish_tolls",
    "random_network",
    "seville",
    "seville_start",
    "three_node",
    "toll_plan",
    "toll_profit",
    "transport_problem",
    "transport_start",
]
