r"""Generative flow networks: samplers that build an object move by move, as pairs of path measures on a graph.

    environment    a graph without cycles: states, legal moves, a reward R(x) > 0 at its ends (`Hypergrid`, `BitSequences`, `IsingLattice`)
    policy         logits of moves forward and backward, and a flow F(s) (`Network`, `Tabular`, `Uniform`)
    GFlowNet       a `measures.AbstractPair`: paths of P by the forward policy, paths of Q from R/Z by the backward policy
    loss           `TrajectoryBalance` and its kin: ``optimize.fit(loss, network, where=learned, optimizer=balance_optimizer(n), ...)``
    exactly        what `measures.assess` estimates, and the distance of the ends from R/Z, by dynamic programming in small environments

The dictionary to thermodynamics, $\beta = 1$. The forward policy is a driven system that starts at the source, the backward policy is the
reversed experiment, which starts from the last equilibrium $R/Z$. Along a path

    work           W = ln P_F(τ) - ln R(x) - ln P_B(τ|x)       the weight of importance sampling is w = R P_B / P_F = e^{-W}
    free energy    ΔF = -ln Z
    Jarzynski      <e^{-W}>_F = e^{-ΔF} = Z                    for any two policies, trained or not
    Crooks         P_F(W) / P_B(W) = e^{W - ΔF}                the reversed process does the work -W: both are seen to cross at ΔF
    dissipation    W - ΔF                                      its mean is KL(P_F || P_B R/Z) >= 0, and its square is trajectory balance

At the optimum $W = \Delta F$ on every path: a balanced network is a reversible process. Papers that set $e^{-\beta W}$ equal to
$P_F/RP_B$ have the sign of the work reversed: the mean of that quantity is not $Z$. Detailed and sub-trajectory balance ask the same of
single moves and of stretches, with $-\ln F(s)$ as the free energy of the paths through $s$.
"""

from thermojax.gflownets._environment import AbstractEnvironment as AbstractEnvironment, State as State
from thermojax.gflownets._environments import (
    BitSequences as BitSequences,
    Hypergrid as Hypergrid,
    IsingLattice as IsingLattice,
    Modes as Modes,
)
from thermojax.gflownets._exact import (
    balanced as balanced,
    Exactly as Exactly,
    exactly as exactly,
    log_moment as log_moment,
    terminal_probabilities as terminal_probabilities,
)
from thermojax.gflownets._graph import check_environment as check_environment, explore as explore, Graph as Graph
from thermojax.gflownets._losses import (
    AbstractBalance as AbstractBalance,
    balance_optimizer as balance_optimizer,
    DetailedBalance as DetailedBalance,
    FlowMatching as FlowMatching,
    learned as learned,
    SubTrajectoryBalance as SubTrajectoryBalance,
    TrajectoryBalance as TrajectoryBalance,
)
from thermojax.gflownets._network import (
    FlowReversal as FlowReversal,
    GFlowNet as GFlowNet,
    Given as Given,
    Kernels as Kernels,
    Trajectories as Trajectories,
)
from thermojax.gflownets._policies import (
    AbstractPolicy as AbstractPolicy,
    Logits as Logits,
    Network as Network,
    Tabular as Tabular,
    Uniform as Uniform,
)
