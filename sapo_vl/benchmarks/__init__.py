"""Benchmarks. To add one: write a file beside this one, add a row here."""

from sapo_vl.benchmarks.aime25 import AIME25
from sapo_vl.benchmarks.base import Benchmark, ItemScores, LeftOut, Row
from sapo_vl.benchmarks.beyondaime import BEYONDAIME
from sapo_vl.benchmarks.chartqa import CHARTQA
from sapo_vl.benchmarks.countbench import COUNTBENCH
from sapo_vl.benchmarks.dynamath import DYNAMATH
from sapo_vl.benchmarks.geometry3k import GEOMETRY3K
from sapo_vl.benchmarks.hmmt25 import HMMT25
from sapo_vl.benchmarks.livecodebench import LIVECODEBENCH
from sapo_vl.benchmarks.logicvista import LOGICVISTA
from sapo_vl.benchmarks.mathverse import MATHVERSE
from sapo_vl.benchmarks.mathvision import MATHVISION
from sapo_vl.benchmarks.mathvista import MATHVISTA
from sapo_vl.benchmarks.mmmu import MMMU
from sapo_vl.benchmarks.mmmu_pro import MMMU_PRO
from sapo_vl.benchmarks.realworldqa import REALWORLDQA
from sapo_vl.benchmarks.refcoco import REFCOCO
from sapo_vl.benchmarks.visual_puzzles import VISUAL_PUZZLES
from sapo_vl.benchmarks.wemath import WEMATH
from sapo_vl.benchmarks.zebralogic import ZEBRALOGIC
from sapo_vl.benchmarks.zerobench import ZEROBENCH

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        AIME25,
        BEYONDAIME,
        CHARTQA,
        COUNTBENCH,
        DYNAMATH,
        GEOMETRY3K,
        HMMT25,
        LIVECODEBENCH,
        LOGICVISTA,
        MATHVERSE,
        *MATHVISION,
        MATHVISTA,
        MMMU,
        *MMMU_PRO,
        REALWORLDQA,
        *REFCOCO,
        VISUAL_PUZZLES,
        WEMATH,
        ZEBRALOGIC,
        *ZEROBENCH,
    )
}

__all__ = ["BENCHMARKS", "Benchmark", "ItemScores", "LeftOut", "Row"]
