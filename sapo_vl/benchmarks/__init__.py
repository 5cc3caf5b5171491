"""Benchmarks. To add one: write a file beside this one, add a row here."""

from sapo_vl.benchmarks.aime25 import AIME25
from sapo_vl.benchmarks.aime26 import AIME26
from sapo_vl.benchmarks.babyvision import BABYVISION
from sapo_vl.benchmarks.base import Benchmark, ItemScores, LeftOut, Row
from sapo_vl.benchmarks.beyondaime import BEYONDAIME
from sapo_vl.benchmarks.chartqa import CHARTQA
from sapo_vl.benchmarks.charxiv import CHARXIV
from sapo_vl.benchmarks.countbench import COUNTBENCH
from sapo_vl.benchmarks.dynamath import DYNAMATH
from sapo_vl.benchmarks.emma import EMMA
from sapo_vl.benchmarks.erqa import ERQA
from sapo_vl.benchmarks.geometry3k import GEOMETRY3K
from sapo_vl.benchmarks.hallusionbench import HALLUSIONBENCH
from sapo_vl.benchmarks.hmmt25 import HMMT25
from sapo_vl.benchmarks.hmmt26 import HMMT26
from sapo_vl.benchmarks.livecodebench import LIVECODEBENCH
from sapo_vl.benchmarks.logicvista import LOGICVISTA
from sapo_vl.benchmarks.mathverse import MATHVERSE
from sapo_vl.benchmarks.mathvision import MATHVISION
from sapo_vl.benchmarks.mathvista import MATHVISTA
from sapo_vl.benchmarks.mmmu import MMMU
from sapo_vl.benchmarks.mmmu_pro import MMMU_PRO
from sapo_vl.benchmarks.mmstar import MMSTAR
from sapo_vl.benchmarks.neulab_visualpuzzles import NEULAB_VISUALPUZZLES
from sapo_vl.benchmarks.realworldqa import REALWORLDQA
from sapo_vl.benchmarks.refcoco import REFCOCO, RENAMED
from sapo_vl.benchmarks.visual_puzzles import VISUAL_PUZZLES
from sapo_vl.benchmarks.visulogic import VISULOGIC
from sapo_vl.benchmarks.wemath import WEMATH
from sapo_vl.benchmarks.zebralogic import ZEBRALOGIC
from sapo_vl.benchmarks.zerobench import ZEROBENCH

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        AIME25,
        AIME26,
        BABYVISION,
        BEYONDAIME,
        CHARTQA,
        CHARXIV,
        COUNTBENCH,
        DYNAMATH,
        EMMA,
        ERQA,
        GEOMETRY3K,
        HALLUSIONBENCH,
        HMMT25,
        HMMT26,
        LIVECODEBENCH,
        LOGICVISTA,
        MATHVERSE,
        *MATHVISION,
        MATHVISTA,
        MMMU,
        *MMMU_PRO,
        MMSTAR,
        NEULAB_VISUALPUZZLES,
        REALWORLDQA,
        *REFCOCO,
        VISUAL_PUZZLES,
        VISULOGIC,
        WEMATH,
        ZEBRALOGIC,
        *ZEROBENCH,
    )
}

__all__ = ["BENCHMARKS", "RENAMED", "Benchmark", "ItemScores", "LeftOut", "Row"]
