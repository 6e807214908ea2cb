"""Train-time blocks: one convolution that trains as several branches, one paper a file.

All take torch's convolution arguments in torch's order, train as any module, and deploy exactly: by
the library's verbs, by timm's walker, or by themselves (`switch_to_deploy`, `reparameterize`,
`fuse`; `deploy=True` builds the plain form at once).
"""

from __future__ import annotations

from refold.blocks.acb import ACBlock as ACBlock
from refold.blocks.base import BranchedBlock as BranchedBlock
from refold.blocks.base import recompute_branches as recompute_branches
from refold.blocks.dbb import DiverseBranchBlock as DiverseBranchBlock
from refold.blocks.dilated import DilatedReparamBlock as DilatedReparamBlock
from refold.blocks.large_kernel import LargeKernelBlock as LargeKernelBlock
from refold.blocks.layers import BNAndPad as BNAndPad
from refold.blocks.mobileone import MobileOneBlock as MobileOneBlock
from refold.blocks.orepa import OREPABlock as OREPABlock
from refold.blocks.qarepvgg import QARepVGGBlock as QARepVGGBlock
from refold.blocks.repmlp import RepMLPBlock as RepMLPBlock
from refold.blocks.repmlp import RepMLPNetBlock as RepMLPNetBlock
from refold.blocks.repvgg import RepVGGBlock as RepVGGBlock
from refold.blocks.rmrep import RMBlock as RMBlock
from refold.blocks.stacking import LinearBlock as LinearBlock
from refold.blocks.stacking import stack_kernels as stack_kernels
