"""Networks by name, in the form that trains or the form that deploys; one family a file."""

from __future__ import annotations

from refold.models.alexnet import AlexNet as AlexNet
from refold.models.backbone import Backbone as Backbone
from refold.models.backbone import Feature as Feature
from refold.models.backbone import FeatureInfo as FeatureInfo
from refold.models.cifar_quick import CifarQuick as CifarQuick
from refold.models.face import FaceResNet as FaceResNet
from refold.models.inception import Inception as Inception
from refold.models.margin_losses import AMSoftmax as AMSoftmax
from refold.models.margin_losses import ArcFace as ArcFace
from refold.models.mobilefacenet import GlobalDepthwise as GlobalDepthwise
from refold.models.mobilefacenet import MobileFaceNet as MobileFaceNet
from refold.models.mobilenetv1 import MobileNetV1 as MobileNetV1
from refold.models.mobileone import MobileOne as MobileOne
from refold.models.pspnet import PSPNet as PSPNet
from refold.models.registry import create_model as create_model
from refold.models.registry import list_models as list_models
from refold.models.registry import register_model as register_model
from refold.models.repmlp_cifar import RepMLPCifar as RepMLPCifar
from refold.models.repmlp_resnet import RepMLPResNet as RepMLPResNet
from refold.models.repmlpnet import RepMLPNet as RepMLPNet
from refold.models.repvgg import RepVGG as RepVGG
from refold.models.repvgg_plus import RepVGGPlus as RepVGGPlus
from refold.models.resnet import ResNet as ResNet
from refold.models.resnet_v2 import ResNetV2 as ResNetV2
from refold.models.resnext import ResNeXt as ResNeXt
from refold.models.rmnet import RMNet as RMNet
from refold.models.rmnext import RMNeXt as RMNeXt
from refold.models.rmobilenet import RMobileNet as RMobileNet
from refold.models.rmrep import PairResNet as PairResNet
from refold.models.rmrep import RMRep as RMRep
from refold.models.separable import SeparableConv as SeparableConv
from refold.models.shufflenetv1 import ChannelShuffle as ChannelShuffle
from refold.models.shufflenetv1 import ShuffleNetV1 as ShuffleNetV1
from refold.models.towers import ScaledResidual as ScaledResidual
from refold.models.towers import TowerMaker as TowerMaker
from refold.models.towers import Towers as Towers
from refold.models.vgg import CifarVGG as CifarVGG
from refold.models.zoo import googlenet as googlenet
from refold.models.zoo import timm_model as timm_model
