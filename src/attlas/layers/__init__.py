"""Modules: token mixers, blocks, positional layers. Parameters live here; the maths is `attend`'s."""

from attlas.layers.abc_attention import ABCAttention
from attlas.layers.attention import SelfAttention
from attlas.layers.autoformer import (
    AutoCorrelation,
    AutoformerDecoderLayer,
    AutoformerEncoderLayer,
    Decomposition,
    SeasonalNorm,
    auto_correlation,
)
from attlas.layers.block import Block
from attlas.layers.clear import ClearMix, PooledKeys, extrapolated_scale
from attlas.layers.combiner import Combiner
from attlas.layers.contract import Finding, check_mixer
from attlas.layers.convit import GPSA
from attlas.layers.cosformer import CosformerAttention
from attlas.layers.dependencyvit import DependencyBlock, ReversedAttention
from attlas.layers.graphlayoutlm import GraphLayoutAttention, LayoutGraph, layout_graph
from attlas.layers.halonet import HaloAttention, halo_attention
from attlas.layers.joint import KernelMix, SoftmaxMix, StreamAttention, TwoStreamAttention, places
from attlas.layers.maxvit import (
    MaxViTBlock,
    MBConv,
    Partition,
    PartitionAttention,
    block_partition,
    grid_partition,
)
from attlas.layers.mixers import FORMS, MIXERS, MixerEntry, Setting, mixer_entry, register_mixer
from attlas.layers.performer import PerformerAttention
from attlas.layers.relative_bias import RelativeBias
from attlas.layers.rotary import rotary
from attlas.layers.short_conv import ShortConv
from attlas.layers.sparse_rows import SparseHybrid
from attlas.layers.zoology import BaseConv, ImplicitConv

__all__ = [
    "FORMS",
    "GPSA",
    "MIXERS",
    "ABCAttention",
    "AutoCorrelation",
    "AutoformerDecoderLayer",
    "AutoformerEncoderLayer",
    "BaseConv",
    "Block",
    "ClearMix",
    "Combiner",
    "CosformerAttention",
    "Decomposition",
    "DependencyBlock",
    "Finding",
    "GraphLayoutAttention",
    "HaloAttention",
    "ImplicitConv",
    "KernelMix",
    "LayoutGraph",
    "MBConv",
    "MaxViTBlock",
    "MixerEntry",
    "Partition",
    "PartitionAttention",
    "PerformerAttention",
    "PooledKeys",
    "RelativeBias",
    "ReversedAttention",
    "SeasonalNorm",
    "SelfAttention",
    "Setting",
    "ShortConv",
    "SoftmaxMix",
    "SparseHybrid",
    "StreamAttention",
    "TwoStreamAttention",
    "auto_correlation",
    "block_partition",
    "check_mixer",
    "extrapolated_scale",
    "grid_partition",
    "halo_attention",
    "layout_graph",
    "mixer_entry",
    "places",
    "register_mixer",
    "rotary",
]
