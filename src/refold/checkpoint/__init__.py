"""Weights from files: tensors only, whole or not at all, every mismatch named.

The layouts of the official repositories and of timm are recognised by their keys, in training and
in deploy form; see `load_checkpoint` and `deploy_state_dict`.
"""

from __future__ import annotations

from refold.checkpoint.deploy import DEFAULT_EPS as DEFAULT_EPS
from refold.checkpoint.deploy import deploy_state_dict as deploy_state_dict
from refold.checkpoint.deploy import to_deploy as to_deploy
from refold.checkpoint.load import LoadReport as LoadReport
from refold.checkpoint.load import MisfitError as MisfitError
from refold.checkpoint.load import load_checkpoint as load_checkpoint
from refold.checkpoint.load import load_in_order as load_in_order
from refold.checkpoint.load import map_checkpoint as map_checkpoint
from refold.checkpoint.read import files_of as files_of
from refold.checkpoint.read import read_state_dict as read_state_dict
from refold.checkpoint.read import read_weights as read_weights
from refold.checkpoint.shards import is_index as is_index
from refold.checkpoint.shards import shards_of as shards_of
from refold.checkpoint.shards import weights_in as weights_in
from refold.checkpoint.write import write_state_dict as write_state_dict
