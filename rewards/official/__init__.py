"""The published rules of benchmarks, for comparing with published tables.

In comes a response with its problem, out goes the verdict (1 or 0) of the benchmark's own script, or of the public kit
that its figures come from: laxer than the rewards, odd in places, and partly random. So these are no rewards: no data
set or config can name them, and nothing trains on them. `sapo_vl.benchmarks` names the rule of a benchmark, and
evaluation asks it beside ours. Each is described here in our own words and reads what the readers put into `meta`.
Imports: rewards.answers, rewards.base, and the edit distance of rewards.ocr.
"""

from rewards.base import RewardFn
from rewards.official.choices import erqa, mmstar, visualpuzzles, visulogic
from rewards.official.emma import emma
from rewards.official.letters import mmmu, mmmu_pro, wemath
from rewards.official.mathvision import mathvision
from rewards.official.mathvista import mathvista
from rewards.official.short_answers import chartqa, countbench, dynamath, hallusionbench, realworldqa, zerobench

OFFICIAL: dict[str, RewardFn] = {
    "official_chartqa": chartqa,
    "official_countbench": countbench,
    "official_dynamath": dynamath,
    "official_emma": emma,
    "official_erqa": erqa,
    "official_hallusionbench": hallusionbench,
    "official_mathvision": mathvision,
    "official_mathvista": mathvista,
    "official_mmmu": mmmu,
    "official_mmmu_pro": mmmu_pro,
    "official_mmstar": mmstar,
    "official_neulab_visualpuzzles": visualpuzzles,
    "official_realworldqa": realworldqa,
    "official_visulogic": visulogic,
    "official_wemath": wemath,
    "official_zerobench": zerobench,
}

# As rewards.IN_PROCESS: these end in time proportional to the length of the response.
OFFICIAL_IN_PROCESS = OFFICIAL.keys() - {"official_emma", "official_mathvision"}  # these ask SymPy

__all__ = ["OFFICIAL", "OFFICIAL_IN_PROCESS"]
