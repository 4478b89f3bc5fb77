"""What ``twistd`` finds: the two daemons, named by strings so that listing them imports nothing."""

from twisted.application.service import ServiceMaker

conductor = ServiceMaker(
    "Orchestra conductor",
    "orchestra.conductor.tap",
    "Keeps the durable queue of jobs and hands them to the players.",
    "conductor",
)
player = ServiceMaker(
    "Orchestra player",
    "orchestra.player.tap",
    "Runs this node's scores for the conductor.",
    "player",
)
