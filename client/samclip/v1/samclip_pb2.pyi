from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MaskEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RLE: _ClassVar[MaskEncoding]
    PNG: _ClassVar[MaskEncoding]
    POLYGONS: _ClassVar[MaskEncoding]
    LOGITS: _ClassVar[MaskEncoding]
    PANOPTIC: _ClassVar[MaskEncoding]

class Output(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT_UNSPECIFIED: _ClassVar[Output]
    SAM: _ClassVar[Output]
    CLIP_DENSE: _ClassVar[Output]
    CLIP_POOLED: _ClassVar[Output]
    REGIONS: _ClassVar[Output]
    SAM_FINE: _ClassVar[Output]
RLE: MaskEncoding
PNG: MaskEncoding
POLYGONS: MaskEncoding
LOGITS: MaskEncoding
PANOPTIC: MaskEncoding
OUTPUT_UNSPECIFIED: Output
SAM: Output
CLIP_DENSE: Output
CLIP_POOLED: Output
REGIONS: Output
SAM_FINE: Output

class Image(_message.Message):
    __slots__ = ("encoded", "key")
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    encoded: bytes
    key: str
    def __init__(self, encoded: _Optional[bytes] = ..., key: _Optional[str] = ...) -> None: ...

class ImageInfo(_message.Message):
    __slots__ = ("key", "width", "height", "cached")
    KEY_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    key: str
    width: int
    height: int
    cached: bool
    def __init__(self, key: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., cached: _Optional[bool] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("name", "digest", "kind", "dtype", "graphs", "uncalibrated", "without_masks", "demonstration", "image_size", "sure", "squash")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    GRAPHS_FIELD_NUMBER: _ClassVar[int]
    UNCALIBRATED_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_MASKS_FIELD_NUMBER: _ClassVar[int]
    DEMONSTRATION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    SURE_FIELD_NUMBER: _ClassVar[int]
    SQUASH_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    kind: str
    dtype: str
    graphs: str
    uncalibrated: bool
    without_masks: bool
    demonstration: bool
    image_size: int
    sure: float
    squash: bool
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., kind: _Optional[str] = ..., dtype: _Optional[str] = ..., graphs: _Optional[str] = ..., uncalibrated: _Optional[bool] = ..., without_masks: _Optional[bool] = ..., demonstration: _Optional[bool] = ..., image_size: _Optional[int] = ..., sure: _Optional[float] = ..., squash: _Optional[bool] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("x", "y", "negative")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_FIELD_NUMBER: _ClassVar[int]
    x: float
    y: float
    negative: bool
    def __init__(self, x: _Optional[float] = ..., y: _Optional[float] = ..., negative: _Optional[bool] = ...) -> None: ...

class Box(_message.Message):
    __slots__ = ("x_min", "y_min", "x_max", "y_max")
    X_MIN_FIELD_NUMBER: _ClassVar[int]
    Y_MIN_FIELD_NUMBER: _ClassVar[int]
    X_MAX_FIELD_NUMBER: _ClassVar[int]
    Y_MAX_FIELD_NUMBER: _ClassVar[int]
    x_min: float
    y_min: float
    x_max: float
    y_max: float
    def __init__(self, x_min: _Optional[float] = ..., y_min: _Optional[float] = ..., x_max: _Optional[float] = ..., y_max: _Optional[float] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("points", "box", "mask_input", "text", "not_texts", "examples", "mask")
    POINTS_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    MASK_INPUT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NOT_TEXTS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    points: _containers.RepeatedCompositeFieldContainer[Point]
    box: Box
    mask_input: Tensor
    text: str
    not_texts: _containers.RepeatedScalarFieldContainer[str]
    examples: _containers.RepeatedCompositeFieldContainer[Example]
    mask: CocoRle
    def __init__(self, points: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., box: _Optional[_Union[Box, _Mapping]] = ..., mask_input: _Optional[_Union[Tensor, _Mapping]] = ..., text: _Optional[str] = ..., not_texts: _Optional[_Iterable[str]] = ..., examples: _Optional[_Iterable[_Union[Example, _Mapping]]] = ..., mask: _Optional[_Union[CocoRle, _Mapping]] = ...) -> None: ...

class Points(_message.Message):
    __slots__ = ("points",)
    POINTS_FIELD_NUMBER: _ClassVar[int]
    points: _containers.RepeatedCompositeFieldContainer[Point]
    def __init__(self, points: _Optional[_Iterable[_Union[Point, _Mapping]]] = ...) -> None: ...

class Example(_message.Message):
    __slots__ = ("image", "box", "mask", "points", "negative")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_FIELD_NUMBER: _ClassVar[int]
    image: Image
    box: Box
    mask: CocoRle
    points: Points
    negative: bool
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., box: _Optional[_Union[Box, _Mapping]] = ..., mask: _Optional[_Union[CocoRle, _Mapping]] = ..., points: _Optional[_Union[Points, _Mapping]] = ..., negative: _Optional[bool] = ...) -> None: ...

class CocoRle(_message.Message):
    __slots__ = ("height", "width", "counts")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    counts: bytes
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., counts: _Optional[bytes] = ...) -> None: ...

class Polygon(_message.Message):
    __slots__ = ("xy",)
    XY_FIELD_NUMBER: _ClassVar[int]
    xy: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, xy: _Optional[_Iterable[float]] = ...) -> None: ...

class Polygons(_message.Message):
    __slots__ = ("polygons",)
    POLYGONS_FIELD_NUMBER: _ClassVar[int]
    polygons: _containers.RepeatedCompositeFieldContainer[Polygon]
    def __init__(self, polygons: _Optional[_Iterable[_Union[Polygon, _Mapping]]] = ...) -> None: ...

class Mask(_message.Message):
    __slots__ = ("rle", "png", "polygons", "logits", "box", "area", "predicted_iou", "stability_score", "label", "label_score", "object_score")
    RLE_FIELD_NUMBER: _ClassVar[int]
    PNG_FIELD_NUMBER: _ClassVar[int]
    POLYGONS_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    AREA_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_IOU_FIELD_NUMBER: _ClassVar[int]
    STABILITY_SCORE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    LABEL_SCORE_FIELD_NUMBER: _ClassVar[int]
    OBJECT_SCORE_FIELD_NUMBER: _ClassVar[int]
    rle: CocoRle
    png: bytes
    polygons: Polygons
    logits: Tensor
    box: Box
    area: int
    predicted_iou: float
    stability_score: float
    label: str
    label_score: float
    object_score: float
    def __init__(self, rle: _Optional[_Union[CocoRle, _Mapping]] = ..., png: _Optional[bytes] = ..., polygons: _Optional[_Union[Polygons, _Mapping]] = ..., logits: _Optional[_Union[Tensor, _Mapping]] = ..., box: _Optional[_Union[Box, _Mapping]] = ..., area: _Optional[int] = ..., predicted_iou: _Optional[float] = ..., stability_score: _Optional[float] = ..., label: _Optional[str] = ..., label_score: _Optional[float] = ..., object_score: _Optional[float] = ...) -> None: ...

class Area(_message.Message):
    __slots__ = ("box", "rle")
    BOX_FIELD_NUMBER: _ClassVar[int]
    RLE_FIELD_NUMBER: _ClassVar[int]
    box: Box
    rle: CocoRle
    def __init__(self, box: _Optional[_Union[Box, _Mapping]] = ..., rle: _Optional[_Union[CocoRle, _Mapping]] = ...) -> None: ...

class SegmentRequest(_message.Message):
    __slots__ = ("image", "prompts", "encoding", "multimask", "min_score", "model", "tiles", "exclusive")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    MULTIMASK_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TILES_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    image: Image
    prompts: _containers.RepeatedCompositeFieldContainer[Prompt]
    encoding: MaskEncoding
    multimask: bool
    min_score: float
    model: str
    tiles: int
    exclusive: bool
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., prompts: _Optional[_Iterable[_Union[Prompt, _Mapping]]] = ..., encoding: _Optional[_Union[MaskEncoding, str]] = ..., multimask: _Optional[bool] = ..., min_score: _Optional[float] = ..., model: _Optional[str] = ..., tiles: _Optional[int] = ..., exclusive: _Optional[bool] = ...) -> None: ...

class PromptResult(_message.Message):
    __slots__ = ("masks", "things")
    MASKS_FIELD_NUMBER: _ClassVar[int]
    THINGS_FIELD_NUMBER: _ClassVar[int]
    masks: _containers.RepeatedCompositeFieldContainer[Mask]
    things: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, masks: _Optional[_Iterable[_Union[Mask, _Mapping]]] = ..., things: _Optional[_Iterable[int]] = ...) -> None: ...

class SegmentResponse(_message.Message):
    __slots__ = ("image", "results", "model")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    image: ImageInfo
    results: _containers.RepeatedCompositeFieldContainer[PromptResult]
    model: ModelInfo
    def __init__(self, image: _Optional[_Union[ImageInfo, _Mapping]] = ..., results: _Optional[_Iterable[_Union[PromptResult, _Mapping]]] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ...) -> None: ...

class SegmentEverythingRequest(_message.Message):
    __slots__ = ("image", "points_per_side", "encoding", "labels", "vocabulary", "min_label_score", "model", "tiles")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    POINTS_PER_SIDE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    MIN_LABEL_SCORE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TILES_FIELD_NUMBER: _ClassVar[int]
    image: Image
    points_per_side: int
    encoding: MaskEncoding
    labels: _containers.RepeatedScalarFieldContainer[str]
    vocabulary: str
    min_label_score: float
    model: str
    tiles: int
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., points_per_side: _Optional[int] = ..., encoding: _Optional[_Union[MaskEncoding, str]] = ..., labels: _Optional[_Iterable[str]] = ..., vocabulary: _Optional[str] = ..., min_label_score: _Optional[float] = ..., model: _Optional[str] = ..., tiles: _Optional[int] = ...) -> None: ...

class PanopticSegment(_message.Message):
    __slots__ = ("id", "category_id", "area", "bbox", "iscrowd", "label")
    ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_ID_FIELD_NUMBER: _ClassVar[int]
    AREA_FIELD_NUMBER: _ClassVar[int]
    BBOX_FIELD_NUMBER: _ClassVar[int]
    ISCROWD_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    id: int
    category_id: int
    area: int
    bbox: _containers.RepeatedScalarFieldContainer[float]
    iscrowd: int
    label: str
    def __init__(self, id: _Optional[int] = ..., category_id: _Optional[int] = ..., area: _Optional[int] = ..., bbox: _Optional[_Iterable[float]] = ..., iscrowd: _Optional[int] = ..., label: _Optional[str] = ...) -> None: ...

class Panoptic(_message.Message):
    __slots__ = ("png", "segments_info")
    PNG_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_INFO_FIELD_NUMBER: _ClassVar[int]
    png: bytes
    segments_info: _containers.RepeatedCompositeFieldContainer[PanopticSegment]
    def __init__(self, png: _Optional[bytes] = ..., segments_info: _Optional[_Iterable[_Union[PanopticSegment, _Mapping]]] = ...) -> None: ...

class SegmentEverythingResponse(_message.Message):
    __slots__ = ("image", "masks", "model", "panoptic")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PANOPTIC_FIELD_NUMBER: _ClassVar[int]
    image: ImageInfo
    masks: _containers.RepeatedCompositeFieldContainer[Mask]
    model: ModelInfo
    panoptic: Panoptic
    def __init__(self, image: _Optional[_Union[ImageInfo, _Mapping]] = ..., masks: _Optional[_Iterable[_Union[Mask, _Mapping]]] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ..., panoptic: _Optional[_Union[Panoptic, _Mapping]] = ...) -> None: ...

class EverythingUpdate(_message.Message):
    __slots__ = ("image", "found", "withdrawn", "progress", "model")
    class Found(_message.Message):
        __slots__ = ("id", "mask")
        ID_FIELD_NUMBER: _ClassVar[int]
        MASK_FIELD_NUMBER: _ClassVar[int]
        id: int
        mask: Mask
        def __init__(self, id: _Optional[int] = ..., mask: _Optional[_Union[Mask, _Mapping]] = ...) -> None: ...
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    image: ImageInfo
    found: _containers.RepeatedCompositeFieldContainer[EverythingUpdate.Found]
    withdrawn: _containers.RepeatedScalarFieldContainer[int]
    progress: float
    model: ModelInfo
    def __init__(self, image: _Optional[_Union[ImageInfo, _Mapping]] = ..., found: _Optional[_Iterable[_Union[EverythingUpdate.Found, _Mapping]]] = ..., withdrawn: _Optional[_Iterable[int]] = ..., progress: _Optional[float] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ...) -> None: ...

class ClassifyRequest(_message.Message):
    __slots__ = ("images", "labels", "templates", "top_k", "areas", "model")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TEMPLATES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    AREAS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[Image]
    labels: _containers.RepeatedScalarFieldContainer[str]
    templates: _containers.RepeatedScalarFieldContainer[str]
    top_k: int
    areas: _containers.RepeatedCompositeFieldContainer[Area]
    model: str
    def __init__(self, images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., labels: _Optional[_Iterable[str]] = ..., templates: _Optional[_Iterable[str]] = ..., top_k: _Optional[int] = ..., areas: _Optional[_Iterable[_Union[Area, _Mapping]]] = ..., model: _Optional[str] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("label", "score", "similarity")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    SIMILARITY_FIELD_NUMBER: _ClassVar[int]
    label: str
    score: float
    similarity: float
    def __init__(self, label: _Optional[str] = ..., score: _Optional[float] = ..., similarity: _Optional[float] = ...) -> None: ...

class ClassifyResult(_message.Message):
    __slots__ = ("image", "scores")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    image: ImageInfo
    scores: _containers.RepeatedCompositeFieldContainer[Score]
    def __init__(self, image: _Optional[_Union[ImageInfo, _Mapping]] = ..., scores: _Optional[_Iterable[_Union[Score, _Mapping]]] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("results", "model")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[ClassifyResult]
    model: ModelInfo
    def __init__(self, results: _Optional[_Iterable[_Union[ClassifyResult, _Mapping]]] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ...) -> None: ...

class SegmentTextRequest(_message.Message):
    __slots__ = ("image", "labels", "background", "refine", "encoding", "model", "tiles")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    REFINE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TILES_FIELD_NUMBER: _ClassVar[int]
    image: Image
    labels: _containers.RepeatedScalarFieldContainer[str]
    background: bool
    refine: bool
    encoding: MaskEncoding
    model: str
    tiles: int
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., labels: _Optional[_Iterable[str]] = ..., background: _Optional[bool] = ..., refine: _Optional[bool] = ..., encoding: _Optional[_Union[MaskEncoding, str]] = ..., model: _Optional[str] = ..., tiles: _Optional[int] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("label", "score", "area", "mask")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    AREA_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    label: str
    score: float
    area: int
    mask: Mask
    def __init__(self, label: _Optional[str] = ..., score: _Optional[float] = ..., area: _Optional[int] = ..., mask: _Optional[_Union[Mask, _Mapping]] = ...) -> None: ...

class SegmentTextResponse(_message.Message):
    __slots__ = ("image", "label_map_png", "regions", "model")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    LABEL_MAP_PNG_FIELD_NUMBER: _ClassVar[int]
    REGIONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    image: ImageInfo
    label_map_png: bytes
    regions: _containers.RepeatedCompositeFieldContainer[Region]
    model: ModelInfo
    def __init__(self, image: _Optional[_Union[ImageInfo, _Mapping]] = ..., label_map_png: _Optional[bytes] = ..., regions: _Optional[_Iterable[_Union[Region, _Mapping]]] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("image", "label", "others", "model")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    image: Image
    label: str
    others: _containers.RepeatedScalarFieldContainer[str]
    model: str
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., label: _Optional[str] = ..., others: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("image", "heat_png", "low", "high", "model")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    HEAT_PNG_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    image: ImageInfo
    heat_png: bytes
    low: float
    high: float
    model: ModelInfo
    def __init__(self, image: _Optional[_Union[ImageInfo, _Mapping]] = ..., heat_png: _Optional[bytes] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ...) -> None: ...

class IndexItem(_message.Message):
    __slots__ = ("id", "image", "metadata", "vector", "objects")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    image: Image
    metadata: _containers.ScalarMap[str, str]
    vector: bytes
    objects: bytes
    def __init__(self, id: _Optional[str] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., metadata: _Optional[_Mapping[str, str]] = ..., vector: _Optional[bytes] = ..., objects: _Optional[bytes] = ...) -> None: ...

class IndexRequest(_message.Message):
    __slots__ = ("collection", "items", "objects", "made_by", "model", "tiles")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    MADE_BY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TILES_FIELD_NUMBER: _ClassVar[int]
    collection: str
    items: _containers.RepeatedCompositeFieldContainer[IndexItem]
    objects: bool
    made_by: ModelInfo
    model: str
    tiles: int
    def __init__(self, collection: _Optional[str] = ..., items: _Optional[_Iterable[_Union[IndexItem, _Mapping]]] = ..., objects: _Optional[bool] = ..., made_by: _Optional[_Union[ModelInfo, _Mapping]] = ..., model: _Optional[str] = ..., tiles: _Optional[int] = ...) -> None: ...

class ItemError(_message.Message):
    __slots__ = ("id", "message")
    ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    id: str
    message: str
    def __init__(self, id: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class IndexResponse(_message.Message):
    __slots__ = ("indexed", "errors", "replaced")
    INDEXED_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    indexed: int
    errors: _containers.RepeatedCompositeFieldContainer[ItemError]
    replaced: int
    def __init__(self, indexed: _Optional[int] = ..., errors: _Optional[_Iterable[_Union[ItemError, _Mapping]]] = ..., replaced: _Optional[int] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("collection", "text", "image", "id", "concept", "example", "top_k", "filter", "offset", "area", "with_text", "min_score", "objects", "model")
    class FilterEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    CONCEPT_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    AREA_FIELD_NUMBER: _ClassVar[int]
    WITH_TEXT_FIELD_NUMBER: _ClassVar[int]
    MIN_SCORE_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    collection: str
    text: str
    image: Image
    id: str
    concept: str
    example: Example
    top_k: int
    filter: _containers.ScalarMap[str, str]
    offset: int
    area: Area
    with_text: str
    min_score: float
    objects: bool
    model: str
    def __init__(self, collection: _Optional[str] = ..., text: _Optional[str] = ..., image: _Optional[_Union[Image, _Mapping]] = ..., id: _Optional[str] = ..., concept: _Optional[str] = ..., example: _Optional[_Union[Example, _Mapping]] = ..., top_k: _Optional[int] = ..., filter: _Optional[_Mapping[str, str]] = ..., offset: _Optional[int] = ..., area: _Optional[_Union[Area, _Mapping]] = ..., with_text: _Optional[str] = ..., min_score: _Optional[float] = ..., objects: _Optional[bool] = ..., model: _Optional[str] = ...) -> None: ...

class Hit(_message.Message):
    __slots__ = ("id", "score", "metadata", "box", "mask")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    id: str
    score: float
    metadata: _containers.ScalarMap[str, str]
    box: Box
    mask: Mask
    def __init__(self, id: _Optional[str] = ..., score: _Optional[float] = ..., metadata: _Optional[_Mapping[str, str]] = ..., box: _Optional[_Union[Box, _Mapping]] = ..., mask: _Optional[_Union[Mask, _Mapping]] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("hits", "model", "likely_score")
    HITS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LIKELY_SCORE_FIELD_NUMBER: _ClassVar[int]
    hits: _containers.RepeatedCompositeFieldContainer[Hit]
    model: ModelInfo
    likely_score: float
    def __init__(self, hits: _Optional[_Iterable[_Union[Hit, _Mapping]]] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ..., likely_score: _Optional[float] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("collection", "ids", "all", "model")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    collection: str
    ids: _containers.RepeatedScalarFieldContainer[str]
    all: bool
    model: str
    def __init__(self, collection: _Optional[str] = ..., ids: _Optional[_Iterable[str]] = ..., all: _Optional[bool] = ..., model: _Optional[str] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ("deleted",)
    DELETED_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    def __init__(self, deleted: _Optional[int] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("collection", "model")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    collection: str
    model: str
    def __init__(self, collection: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class Collection(_message.Message):
    __slots__ = ("name", "count", "dimension", "model_digest", "dtype", "graphs", "objects", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    GRAPHS_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    count: int
    dimension: int
    model_digest: str
    dtype: str
    graphs: str
    objects: int
    version: int
    def __init__(self, name: _Optional[str] = ..., count: _Optional[int] = ..., dimension: _Optional[int] = ..., model_digest: _Optional[str] = ..., dtype: _Optional[str] = ..., graphs: _Optional[str] = ..., objects: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("collections",)
    COLLECTIONS_FIELD_NUMBER: _ClassVar[int]
    collections: _containers.RepeatedCompositeFieldContainer[Collection]
    def __init__(self, collections: _Optional[_Iterable[_Union[Collection, _Mapping]]] = ...) -> None: ...

class ListItemsRequest(_message.Message):
    __slots__ = ("collection", "after_id", "limit", "ids", "model", "inline")
    COLLECTION_FIELD_NUMBER: _ClassVar[int]
    AFTER_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    collection: str
    after_id: str
    limit: int
    ids: _containers.RepeatedScalarFieldContainer[str]
    model: str
    inline: bool
    def __init__(self, collection: _Optional[str] = ..., after_id: _Optional[str] = ..., limit: _Optional[int] = ..., ids: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ..., inline: _Optional[bool] = ...) -> None: ...

class ListedItem(_message.Message):
    __slots__ = ("id", "metadata", "objects", "vector")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    id: str
    metadata: _containers.ScalarMap[str, str]
    objects: int
    vector: Tensor
    def __init__(self, id: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., objects: _Optional[int] = ..., vector: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class ListItemsResponse(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ListedItem]
    def __init__(self, items: _Optional[_Iterable[_Union[ListedItem, _Mapping]]] = ...) -> None: ...

class Concept(_message.Message):
    __slots__ = ("name", "examples", "model_digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    examples: int
    model_digest: str
    def __init__(self, name: _Optional[str] = ..., examples: _Optional[int] = ..., model_digest: _Optional[str] = ...) -> None: ...

class PutConceptRequest(_message.Message):
    __slots__ = ("name", "examples", "model")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    examples: _containers.RepeatedCompositeFieldContainer[Example]
    model: str
    def __init__(self, name: _Optional[str] = ..., examples: _Optional[_Iterable[_Union[Example, _Mapping]]] = ..., model: _Optional[str] = ...) -> None: ...

class PutConceptResponse(_message.Message):
    __slots__ = ("concept", "replaced")
    CONCEPT_FIELD_NUMBER: _ClassVar[int]
    REPLACED_FIELD_NUMBER: _ClassVar[int]
    concept: Concept
    replaced: bool
    def __init__(self, concept: _Optional[_Union[Concept, _Mapping]] = ..., replaced: _Optional[bool] = ...) -> None: ...

class DeleteConceptRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteConceptResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListConceptsRequest(_message.Message):
    __slots__ = ("names", "inline", "model")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    inline: bool
    model: str
    def __init__(self, names: _Optional[_Iterable[str]] = ..., inline: _Optional[bool] = ..., model: _Optional[str] = ...) -> None: ...

class ListConceptsResponse(_message.Message):
    __slots__ = ("concepts", "clip", "sam", "model")
    CONCEPTS_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    SAM_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    concepts: _containers.RepeatedCompositeFieldContainer[Concept]
    clip: Tensor
    sam: Tensor
    model: ModelInfo
    def __init__(self, concepts: _Optional[_Iterable[_Union[Concept, _Mapping]]] = ..., clip: _Optional[_Union[Tensor, _Mapping]] = ..., sam: _Optional[_Union[Tensor, _Mapping]] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("image", "outputs", "inline", "size", "texts", "model")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    image: Image
    outputs: _containers.RepeatedScalarFieldContainer[Output]
    inline: bool
    size: int
    texts: _containers.RepeatedScalarFieldContainer[str]
    model: str
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., outputs: _Optional[_Iterable[_Union[Output, str]]] = ..., inline: _Optional[bool] = ..., size: _Optional[int] = ..., texts: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("image", "tensors", "cached", "model", "texts")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    image: ImageInfo
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    cached: bool
    model: ModelInfo
    texts: Tensor
    def __init__(self, image: _Optional[_Union[ImageInfo, _Mapping]] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., cached: _Optional[bool] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ..., texts: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class EmbedTextRequest(_message.Message):
    __slots__ = ("texts", "model")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    model: str
    def __init__(self, texts: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ...) -> None: ...

class EmbedTextResponse(_message.Message):
    __slots__ = ("tensor", "model")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    tensor: Tensor
    model: ModelInfo
    def __init__(self, tensor: _Optional[_Union[Tensor, _Mapping]] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServedModel(_message.Message):
    __slots__ = ("name", "digest", "kind", "default", "state", "bytes", "idle_s", "without_masks", "uncalibrated", "reason", "alias_of", "demonstration")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_MASKS_FIELD_NUMBER: _ClassVar[int]
    UNCALIBRATED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ALIAS_OF_FIELD_NUMBER: _ClassVar[int]
    DEMONSTRATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    kind: str
    default: bool
    state: str
    bytes: int
    idle_s: float
    without_masks: bool
    uncalibrated: bool
    reason: str
    alias_of: str
    demonstration: bool
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., kind: _Optional[str] = ..., default: _Optional[bool] = ..., state: _Optional[str] = ..., bytes: _Optional[int] = ..., idle_s: _Optional[float] = ..., without_masks: _Optional[bool] = ..., uncalibrated: _Optional[bool] = ..., reason: _Optional[str] = ..., alias_of: _Optional[str] = ..., demonstration: _Optional[bool] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ServedModel]
    def __init__(self, models: _Optional[_Iterable[_Union[ServedModel, _Mapping]]] = ...) -> None: ...

class GetDecoderRequest(_message.Message):
    __slots__ = ("model", "known")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    model: str
    known: str
    def __init__(self, model: _Optional[str] = ..., known: _Optional[str] = ...) -> None: ...

class GetDecoderResponse(_message.Message):
    __slots__ = ("onnx", "digest", "model")
    ONNX_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    onnx: bytes
    digest: str
    model: ModelInfo
    def __init__(self, onnx: _Optional[bytes] = ..., digest: _Optional[str] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ...) -> None: ...

class AskRequest(_message.Message):
    __slots__ = ("image", "head", "parameters", "encoding", "model")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    image: Image
    head: str
    parameters: _struct_pb2.Struct
    encoding: MaskEncoding
    model: str
    def __init__(self, image: _Optional[_Union[Image, _Mapping]] = ..., head: _Optional[str] = ..., parameters: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., encoding: _Optional[_Union[MaskEncoding, str]] = ..., model: _Optional[str] = ...) -> None: ...

class AskResponse(_message.Message):
    __slots__ = ("image", "result", "masks", "tensors", "pictures", "model")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    MASKS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    image: ImageInfo
    result: _struct_pb2.Struct
    masks: _containers.RepeatedCompositeFieldContainer[Mask]
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    pictures: _containers.RepeatedScalarFieldContainer[bytes]
    model: ModelInfo
    def __init__(self, image: _Optional[_Union[ImageInfo, _Mapping]] = ..., result: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., masks: _Optional[_Iterable[_Union[Mask, _Mapping]]] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., pictures: _Optional[_Iterable[bytes]] = ..., model: _Optional[_Union[ModelInfo, _Mapping]] = ...) -> None: ...

class ListHeadsRequest(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: str
    def __init__(self, head: _Optional[str] = ...) -> None: ...

class ListedHead(_message.Message):
    __slots__ = ("name", "description", "parameters", "outputs", "classes", "reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    parameters: _struct_pb2.Struct
    outputs: _containers.RepeatedScalarFieldContainer[Output]
    classes: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., parameters: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., outputs: _Optional[_Iterable[_Union[Output, str]]] = ..., classes: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ...) -> None: ...

class ListHeadsResponse(_message.Message):
    __slots__ = ("heads",)
    HEADS_FIELD_NUMBER: _ClassVar[int]
    heads: _containers.RepeatedCompositeFieldContainer[ListedHead]
    def __init__(self, heads: _Optional[_Iterable[_Union[ListedHead, _Mapping]]] = ...) -> None: ...
