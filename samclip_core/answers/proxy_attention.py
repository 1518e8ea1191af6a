"""The SAM embedding as attention for the dense CLIP map (ProxyCLIP, arXiv 2408.04883).

CLIP's vectors vary from cell to cell, SAM's are alike within an object. So each cell of the CLIP
map takes the mean of the cells that look the same to SAM.

Shape letters: D width of the CLIP map, E width of the SAM embedding, h w valid cells of the CLIP
map (those that hold picture), N = h·w, Q cells at once.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.dense import clip_side, valid_cells
from samclip_core.answers.request import Output
from samclip_core.answers.zero_shot import softmax, unit
from samclip_core.config import SamClipConfig
from samclip_core.types import ImageFeatures

_ROUNDING = 1e-6  # where all cells are alike, each one's s is 0 but for this
_WEIGHTS_AT_ONCE = 2**22  # 16 MiB


def outputs(config: SamClipConfig) -> tuple[Output, ...]:
    """Return the outputs that ``attend`` reads with the sharpness of a checkpoint."""
    return ("CLIP_DENSE",) if config.fitted.attention is None else ("CLIP_DENSE", "SAM")


def attend(features: ImageFeatures, sharpness: float | None) -> ImageFeatures:
    """Return the features with a dense CLIP map that follows SAM's objects.

    ``sharpness`` is fitted to a checkpoint; None leaves the features unchanged. Otherwise every
    vector becomes the mean of all valid ones, weighted by softmax(``sharpness`` · s), again
    of length 1; s is the cosine of two cells in the SAM embedding minus its mean over the valid
    cells, and cells with s < 0 are left out. Padding is zero. The result replaces ``features``
    wherever the dense map is read::

        maps_Chw = cosine_maps(attend(features, 60.0), text_LD)

    Call it once per request: on one core, 576 cells take 11 ms. ``semantic.refine`` reads the map
    without it: the SAM head finds the outlines itself, and small objects are lost in the mean.
    Features need ``outputs`` of one encoding; otherwise raises ValueError.
    """
    if sharpness is None:
        return features
    dense_Dhw = valid_cells(features)
    key_NE = _keys(features, *dense_Dhw.shape[1:])
    value_ND = dense_Dhw.reshape(len(dense_Dhw), -1).T
    centre_E = key_NE.mean(axis=0)
    attended_ND = np.empty_like(value_ND)
    step = max(1, _WEIGHTS_AT_ONCE // len(key_NE))
    for start in range(0, len(key_NE), step):
        query_QE = key_NE[start : start + step]
        above_QN = query_QE @ (key_NE - centre_E).T
        logit_QN = np.where(above_QN < -_ROUNDING, -np.inf, sharpness * above_QN)
        weight_QN = softmax(logit_QN, axis=1)
        attended_ND[start : start + step] = unit(weight_QN @ value_ND)
    side = clip_side(features)
    map_Dss = np.zeros((len(dense_Dhw), side, side), np.float32)
    map_Dss[:, : dense_Dhw.shape[1], : dense_Dhw.shape[2]] = attended_ND.T.reshape(dense_Dhw.shape)
    return replace(features, clip_dense_Dhw=map_Dss)


def _keys(features: ImageFeatures, rows: int, columns: int) -> NDArray[np.float32]:
    """Return the SAM embedding of each valid cell of the CLIP map, averaged over its area: N×E."""
    sam_Dhw = features.output("SAM")
    sam_side, side = sam_Dhw.shape[-1], clip_side(features)
    valid_h, valid_w = features.geometry.grid(sam_side)
    share_ss = _overlap(side, sam_side)
    pooled_Ehw = (
        share_ss[:rows, :valid_h]
        @ sam_Dhw[:, :valid_h, :valid_w].astype(np.float32)
        @ share_ss[:columns, :valid_w].T
    )
    return unit(pooled_Ehw.reshape(len(pooled_Ehw), -1).T)


def _overlap(cells: int, others: int) -> NDArray[np.float32]:
    """Return the length that each of ``cells`` equal parts of a line shares with ``others``."""
    edge_I, edge_J = np.linspace(0, 1, cells + 1), np.linspace(0, 1, others + 1)
    low_IJ = np.maximum(edge_I[:-1, None], edge_J[:-1])
    high_IJ = np.minimum(edge_I[1:, None], edge_J[1:])
    return (high_IJ - low_IJ).clip(0).astype(np.float32)
