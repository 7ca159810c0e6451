"""Whole models, assembled from layers."""

from attlas.models.clear import JointDenoiser
from attlas.models.convit import ConViT
from attlas.models.dependencyvit import DependencyViT
from attlas.models.freeswim import VideoDenoiser
from attlas.models.graphlayoutlm import GraphLayoutLM, LayoutEncoder, LayoutShape
from attlas.models.halonet import HALONETS, HaloNet, HaloNetConfig, small_halonet
from attlas.models.maxvit import MAXVITS, MaxViT, MaxViTConfig, small_maxvit
from attlas.models.recall_net import RecallNet
from attlas.models.small_lm import SmallLM
from attlas.models.small_net import LastToken, LearnedPositions, MeanToken, SmallNet
from attlas.models.small_vision import SmallVision
from attlas.models.window_net import WindowNet

__all__ = [
    "HALONETS",
    "MAXVITS",
    "ConViT",
    "DependencyViT",
    "GraphLayoutLM",
    "HaloNet",
    "HaloNetConfig",
    "JointDenoiser",
    "LastToken",
    "LayoutEncoder",
    "LayoutShape",
    "LearnedPositions",
    "MaxViT",
    "MaxViTConfig",
    "MeanToken",
    "RecallNet",
    "SmallLM",
    "SmallNet",
    "SmallVision",
    "VideoDenoiser",
    "WindowNet",
    "small_halonet",
    "small_maxvit",
]
