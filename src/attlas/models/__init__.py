"""Whole models, assembled from layers."""

from attlas.models.based import BASEDS, Based, BasedConfig
from attlas.models.clear import JointDenoiser
from attlas.models.convit import ConViT
from attlas.models.dependencyvit import DependencyViT
from attlas.models.freeswim import VideoDenoiser
from attlas.models.graphlayoutlm import GraphLayoutLM, LayoutEncoder, LayoutShape
from attlas.models.halonet import HALONETS, HaloNet, HaloNetConfig, small_halonet
from attlas.models.lamamba import LaMambaDenoiser, LaMambaUNet
from attlas.models.maxvit import MAXVITS, MaxViT, MaxViTConfig, small_maxvit
from attlas.models.recall_net import RecallNet
from attlas.models.small_lm import SmallLM
from attlas.models.small_vision import SmallVision
from attlas.models.window_net import WindowNet

__all__ = [
    "BASEDS",
    "HALONETS",
    "MAXVITS",
    "Based",
    "BasedConfig",
    "ConViT",
    "DependencyViT",
    "GraphLayoutLM",
    "HaloNet",
    "HaloNetConfig",
    "JointDenoiser",
    "LaMambaDenoiser",
    "LaMambaUNet",
    "LayoutEncoder",
    "LayoutShape",
    "MaxViT",
    "MaxViTConfig",
    "RecallNet",
    "SmallLM",
    "SmallVision",
    "VideoDenoiser",
    "WindowNet",
    "small_halonet",
    "small_maxvit",
]
