"""What people watch: how runs went, what every replica last said of itself, what failed lately."""

from tinsmith_common.watch.failures import Failure, RecentFailures
from tinsmith_common.watch.history import Report, RunHistory, Step
from tinsmith_common.watch.replicas import ReplicaReport, ReplicaReports

__all__ = [
    "Failure",
    "RecentFailures",
    "ReplicaReport",
    "ReplicaReports",
    "Report",
    "RunHistory",
    "Step",
]
