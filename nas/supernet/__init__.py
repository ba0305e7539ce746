"""One set of weights for all networks of a space: trained once, cut into sub-networks, scored.

supernet = SuperNet(space)
trained = train(supernet, data, TrainConfig(epochs=40), "runs/mine/supernet")
result = score(supernet, architecture, data)
model = supernet.extract(architecture, result.statistics)
"""

from nas.supernet.choice import Choice
from nas.supernet.choosing import FitChoiceConfig, fit_choice
from nas.supernet.embed import embed
from nas.supernet.evaluate import EvaluateConfig, Evaluator, Score, fit_statistics, score
from nas.supernet.known_scores import Quality
from nas.supernet.model import Statistics, SuperNet
from nas.supernet.schedule import TrainConfig
from nas.supernet.stored import Trained, load
from nas.supernet.train import train

__all__ = [
    "Choice",
    "EvaluateConfig",
    "Evaluator",
    "FitChoiceConfig",
    "Quality",
    "Score",
    "Statistics",
    "SuperNet",
    "TrainConfig",
    "Trained",
    "embed",
    "fit_choice",
    "fit_statistics",
    "load",
    "score",
    "train",
]
