"""Find what is wrong with a pair before it is trained, and why a finished run did not help.

:mod:`.before` runs the checks of a config, :mod:`.afterwards` reads the log of a run.
"""

from understudy.diagnosis.findings import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding"]
