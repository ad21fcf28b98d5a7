"""How near to float the packaged nets must stay: the bars of every test that measures them, and why they are there.

The codes of a net's weights are equal on every processor, but what is float around the integers is not: sums are ordered as
each processor's vectors want them, a value on the boundary of two codes falls to the other side, and the layers behind carry
that on. Figures therefore differ by some 0.1 dB (Lite0: 18.995 dB on a Xeon with AMX, 19.025 on Zen 3, 19.1 on Zen 4), and
answers do where two classes are nearly equal. What is wrong costs more. One bit less of all activations takes 1.5 dB from Lite0
and 3.2 from SqueezeNet (19.0 and 36.1 dB), one bit less of all weights 4.6 and 4.7, one scale for all channels of a weight 3.5
from SqueezeNet. The bars lie between: ten times the spread below the figures, and above what one lost bit leaves.
"""

from __future__ import annotations

from typing import NamedTuple


class Bars(NamedTuple):
    """The least of a net on the 20 labelled photos.

    Attributes:
      dynamic: SQNR of the logits in dB with ranges of each run.
      static: With plain min/max over the 16 calibration photos.
      repaired: The best of the repairs of `examples/calibrated.py`, with static ranges.
    """

    dynamic: float
    static: float
    repaired: float


LITE0 = Bars(dynamic=18, static=18, repaired=22)  # figures: 19.0, 19.1, 24.9
SQUEEZENET = Bars(dynamic=34, static=31.5, repaired=34)  # figures: 36.1, 33.2, 36.2

# Of 20 photos. Each net has one or two whose best classes are no farther apart than the noise of a logit or two (0.13 and 0.25
# at a noise of 0.16; 0.05 at 0.13), where either answer is right; what is wrong changes others too.
SAME_ANSWERS = 18

# MiniLM: correlations with human judgement move by up to 0.0045 with the way to find ranges, in either direction. The mean
# cosine to the float vectors is 0.998: the bar allows four times that error, 6 dB.
JUDGEMENT = 0.015
COSINE = 0.992
