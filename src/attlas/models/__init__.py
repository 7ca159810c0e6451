"""Whole models, assembled from layers."""

from attlas.models.attention_classifier import AttentionClassifier, Sentences
from attlas.models.autoformer import Autoformer, SeriesEmbedding
from attlas.models.based import BASEDS, Based, BasedConfig
from attlas.models.clear import JointDenoiser
from attlas.models.cmr import ReweavingNet
from attlas.models.convit import ConViT
from attlas.models.deconstructing import DeconstructedLM, hybrid, standard_layers
from attlas.models.dependencyvit import DependencyViT
from attlas.models.encoder_decoder import CrossBlock, EncoderDecoder, NoMixing, Placed, SeriesTransformer
from attlas.models.equal_size import count_parameters, equal_hidden
from attlas.models.ffnet import FFNETS, FFNet, FFNetConfig, fused_parameters, small_ffnet
from attlas.models.freeswim import VideoDenoiser
from attlas.models.gmn import GMN
from attlas.models.gps import GPSS, GPSConfig, gps_net
from attlas.models.graph_net import GraphNet, pooled
from attlas.models.graphlayoutlm import GraphLayoutLM, LayoutEncoder, LayoutShape
from attlas.models.gt import GTS, GTConfig, graph_transformer
from attlas.models.halonet import HALONETS, HaloNet, HaloNetConfig, small_halonet
from attlas.models.kgat import KGAT, MatrixFactorisation
from attlas.models.lama import RecurrentClassifier
from attlas.models.lamamba import LaMambaDenoiser, LaMambaUNet
from attlas.models.large_gt import LargeGT
from attlas.models.maxvit import MAXVITS, MaxViT, MaxViTConfig, small_maxvit
from attlas.models.minimal import (
    MINIMALS,
    MinimalLayer,
    MinimalViT,
    layer_parameters,
    overdetermination,
)
from attlas.models.ninformer import PatchNet, small_ninformer
from attlas.models.pldr_llm import PLDRLLM, PLDRS, PLDRConfig
from attlas.models.recall_net import RecallNet
from attlas.models.small_lm import SmallLM
from attlas.models.small_net import LastToken, LearnedPositions, MeanToken, SmallNet
from attlas.models.small_vision import SmallVision
from attlas.models.tangnn import TANGNN, TANGNNFLC
from attlas.models.transnormerllm import TRANSNORMERS, TransNormerConfig, TransNormerLLM
from attlas.models.window_net import WindowNet

__all__ = [
    "BASEDS",
    "FFNETS",
    "GMN",
    "GPSS",
    "GTS",
    "HALONETS",
    "KGAT",
    "MAXVITS",
    "MINIMALS",
    "PLDRLLM",
    "PLDRS",
    "TANGNN",
    "TANGNNFLC",
    "TRANSNORMERS",
    "AttentionClassifier",
    "Autoformer",
    "Based",
    "BasedConfig",
    "ConViT",
    "CrossBlock",
    "DeconstructedLM",
    "DependencyViT",
    "EncoderDecoder",
    "FFNet",
    "FFNetConfig",
    "GPSConfig",
    "GTConfig",
    "GraphLayoutLM",
    "GraphNet",
    "HaloNet",
    "HaloNetConfig",
    "JointDenoiser",
    "LaMambaDenoiser",
    "LaMambaUNet",
    "LargeGT",
    "LastToken",
    "LayoutEncoder",
    "LayoutShape",
    "LearnedPositions",
    "MatrixFactorisation",
    "MaxViT",
    "MaxViTConfig",
    "MeanToken",
    "MinimalLayer",
    "MinimalViT",
    "NoMixing",
    "PLDRConfig",
    "PatchNet",
    "Placed",
    "RecallNet",
    "RecurrentClassifier",
    "ReweavingNet",
    "Sentences",
    "SeriesEmbedding",
    "SeriesTransformer",
    "SmallLM",
    "SmallNet",
    "SmallVision",
    "TransNormerConfig",
    "TransNormerLLM",
    "VideoDenoiser",
    "WindowNet",
    "count_parameters",
    "equal_hidden",
    "fused_parameters",
    "gps_net",
    "graph_transformer",
    "hybrid",
    "layer_parameters",
    "overdetermination",
    "pooled",
    "small_ffnet",
    "small_halonet",
    "small_maxvit",
    "small_ninformer",
    "standard_layers",
]
