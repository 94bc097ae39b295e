"""Imported by the process that a sweep's workers are forked from: what every trial needs, once for all of them.

What is set aside by the collector stays shared between the workers: it writes to nothing that it does not look at.
"""

from losskit_cli.importing import import_heavy

import_heavy("losskit_cli.trial_runs")
