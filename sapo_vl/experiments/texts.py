"""The sentences of the report that stand in every one."""

HOW_TO_READ = """\
## How to read it

* Intervals are 95%: over seeds, mean +- t(n - 1) s / sqrt(n). Reward at the end is the mean over the last {end} of the
  steps.
* Two arms are compared by seed: with the same seed they begin with the same weights and see the same rows in the same
  order, so chance that hits both is taken out. The test is the paired t-test, which takes the differences as normal;
  its p values are adjusted by Holm's method over the comparisons of one question on one measure.
* *Seen*: the difference has the claimed sign and p (Holm) < {level}. *Contradicted*: the opposite sign and
  p (Holm) < {level}. *Cannot be told apart*: everything else. That does not mean that there is no difference: the
  interval says how large one could be.
* The power is small: n = {seeds} seeds. Of the sign-flip test, which assumes no law, the least possible p is
  {least:g}{never}.
* *Over items* is another question: whether these very models differ on items like these (paired sign-flip test over
  items, each averaged over the seeds). Other seeds give other models, so no verdict rests on it.
* *Collapsed*: the reward at the end is more than {drop:g} below that of the first rollout batch. *Fell from its best*:
  the best mean of any tenth of the steps in a row, minus the end. *Mean gate*, |r - 1| and r are of the last update of
  each step, which is the furthest from the policy that sampled; the gate is f'(r) of the arm's own loss.
"""

SHARED_START = """\
All seeds share data, model and cold start: **the seed varies the order of the rows and the sampled responses, not where
training begins**. Intervals are about that alone."""
OWN_START = "Data, model and cold start are made anew for every seed."

FIGURE_1 = """\
Computed by calling the loss functions with their default settings on responses of one token; nothing was trained. f' is
the weight that multiplies A r grad log pi, f its integral, the surrogate (up to an offset without meaning). GSPO's and
VESPO's ratios are those of a whole response. DAPO and Dr.GRPO are GRPO's function with other settings and reductions.
For A < 0 SAPO's weight does not close on the low side: it ends at sech^2(tau/2) where r goes to 0."""

FIGURE_2 = """\
SAPO at 4 updates a rollout batch; all responses of every {every}th step, in the updates after the first (in the first
one r = 1). z = log r of the tokens of a response, mu_i their mean, Var_i their variance, and
D_i = |mean g(z) - g(mu_i)| with g = sech^2(tau z / 2): what one gate for the whole response would get wrong."""

TRAINING = {
    "4": (
        "SAPO, GSPO, GRPO and GRPO with routing replay",
        """\
The paper's claim: GSPO and GRPO-R2 collapse early; SAPO stays stable and ends higher. 4 updates a rollout batch; the
arms differ in loss and replay alone.""",
    ),
    "5": (
        "the temperature of negative tokens",
        """\
The paper's claim: tau_neg = 1.05 is the most stable, 0.95 clearly the least. tau_pos is 1, and plain SAPO is that of
tau_neg = 1.05. The wider spread (0.5 and 4) is not in the paper.""",
    ),
    "6": (
        "mixed text and images",
        """\
The paper's claim: SAPO improves steadily and beats GSPO and GRPO-R2 at equal compute. 2 updates a rollout batch; every
batch holds exactly the same number of prompts of each task. Routing replay needs experts: the dense model has plain
GRPO instead.""",
    ),
}

STRESS = """\
N is the number of updates per rollout batch; the learning rate is that of the config or a multiple of it. With one
update all losses have the same gradient: what differs there is chance, and shows how large chance is. "One step stale":
every batch was sampled by the weights of the step before."""

SUMMARY = """\
Claims: {told}. Those that were not measured are left out here, and of the stress those that cannot be told apart; all
are in the sections."""
