"""Train with branches, fold, prove, deploy: one engine for one process or many.

What it needs beyond torch (Accelerate, pydantic, PyYAML, torchvision, timm) is
imported when a run starts: `pip install 'refold[train]'`.
"""

from __future__ import annotations

from refold.training.data.datasets import Data as Data
from refold.training.data.datasets import open_data as open_data
from refold.training.loop.progress import Progress as Progress
from refold.training.loop.progress import Reporter as Reporter
from refold.training.loop.progress import RunPlan as RunPlan
from refold.training.recipes.cookbook import list_recipes as list_recipes
from refold.training.recipes.cookbook import load_recipe as load_recipe
from refold.training.run.about import about_at as about_at
from refold.training.run.network import load_run as load_run
from refold.training.run.prediction import Answer as Answer
from refold.training.run.prediction import predict as predict
from refold.training.run.pruned import Course as Course
from refold.training.run.pruned import judge_before as judge_before
from refold.training.run.pruned import plan_course as plan_course
from refold.training.run.pruned import train_pruned as train_pruned
from refold.training.run.restored import network_of as network_of
from refold.training.run.run import Trained as Trained
from refold.training.run.run import train as train
from refold.training.settings import Habits as Habits
from refold.training.stopping import Stopped as Stopped
from refold.training.studies import STUDIES as STUDIES
from refold.training.studies import study as study
