"""Train with branches, fold, prove, deploy: one engine for one process or many.

What it needs beyond torch (Accelerate, torchmetrics, pydantic, PyYAML, torchvision, timm) is
imported when a run begins: `pip install 'refold[train]'`.
"""

from __future__ import annotations

from refold.train.cookbook import list_recipes as list_recipes
from refold.train.cookbook import load_recipe as load_recipe
from refold.train.data import Data as Data
from refold.train.data import open_data as open_data
from refold.train.habits import Habits as Habits
from refold.train.report import Plan as Plan
from refold.train.report import Progress as Progress
from refold.train.report import Reporter as Reporter
from refold.train.restore import network_of as network_of
from refold.train.run import Trained as Trained
from refold.train.run import train as train
from refold.train.stopping import Stopped as Stopped
from refold.train.studies import STUDIES as STUDIES
from refold.train.studies import study as study
