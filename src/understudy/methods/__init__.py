"""Distillation methods, one file each. Other packages add methods by the entry point ``understudy.methods``."""

from understudy.methods.base import Method
from understudy.methods.bckd import BCKD
from understudy.methods.crosskd import CrossKD
from understudy.methods.cwd import CWD
from understudy.methods.defeat import DeFeat
from understudy.methods.dist2 import Dist2
from understudy.methods.fgd import FGD
from understudy.methods.fine_grained import FineGrained
from understudy.methods.fkd import FKD
from understudy.methods.frs import FRS
from understudy.methods.gid import GID
from understudy.methods.hint import Hint
from understudy.methods.ld import LD
from understudy.methods.mgd import MGD
from understudy.methods.nonlocal_ import NonLocal
from understudy.methods.overhaul import Overhaul
from understudy.methods.pairwise import Pairwise
from understudy.methods.pfi import PFI
from understudy.methods.pkd import PKD
from understudy.methods.rank_mimicking import RankMimicking
from understudy.methods.score_l2 import ScoreL2
from understudy.methods.second_stage import SecondStage
from understudy.methods.soft_labels import SoftLabels
from understudy.plugins import load_plugins

METHODS: dict[str, type[Method]] = {
    # The papers' own.
    "frs": FRS,
    "dist2": Dist2,
    "rank_mimicking": RankMimicking,
    "pfi": PFI,
    # Methods they are compared with.
    "hint": Hint,
    "pairwise": Pairwise,
    "nonlocal": NonLocal,
    "fkd": FKD,
    "overhaul": Overhaul,
    "gid": GID,
    "fine_grained": FineGrained,
    "defeat": DeFeat,
    "soft_labels": SoftLabels,
    "second_stage": SecondStage,
    # Later methods.
    "ld": LD,
    "cwd": CWD,
    "pkd": PKD,
    "fgd": FGD,
    "mgd": MGD,
    "crosskd": CrossKD,
    "bckd": BCKD,
    "score_l2": ScoreL2,
}
"""Every method by name: the package's own, then those of installed plugins."""

METHODS |= load_plugins("understudy.methods", METHODS)
