"""Runs of several processes: who takes part, one collective run, and one clear end if one of them dies.

    with cluster.joined("node1:12321", processes=4, process=0) as crew:      every process, with its own number
        found = streaming.stream(..., key=key)                                  on the devices of all of them

Before JAX is started process 0 calls the roll: it waits at the coordinator's address until every process has called there and been asked
for the same thing, or says who is missing. The connections of the roll call stay open: the end of a process, whatever ended it, closes
its own, and a machine that falls silent misses its beats. The others then end too, within seconds, with a sentence and an exit code. JAX's
own service would abort them with a trace of its stack: it does not hear of it.
"""

from thermojax.cluster._crew import Crew as Crew, exits as exits, joined as joined
from thermojax.cluster._roll_call import check_address as check_address, Seat as Seat
from thermojax.cluster._seats import devices as devices, seat as seat, use_devices as use_devices
from thermojax.cluster._shared import Follower as Follower, Leader as Leader
