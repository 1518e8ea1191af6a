"""Names and numbers of the wire format, on which clients outside this repository depend."""

import pytest
from samclip.v1 import samclip_pb2 as pb

FIELDS = {
    "Image": "encoded=1 key=2",
    "ImageInfo": "key=1 width=2 height=3 cached=4",
    "Tensor": "name=1 dtype=2 shape=3* data=4",
    "ModelInfo": "name=1 digest=2 kind=3 dtype=4 graphs=5 uncalibrated=6 without_masks=7 "
    "demonstration=8 image_size=9 sure=10 squash=11",
    "Point": "x=1 y=2 negative=3",
    "Box": "x_min=1 y_min=2 x_max=3 y_max=4",
    "Prompt": "points=1* box=2 mask_input=3 text=4 not_texts=5* examples=6* mask=7",
    "Points": "points=1*",
    "Example": "image=1 box=2 mask=3 points=4 negative=5",
    "CocoRle": "height=1 width=2 counts=3",
    "Polygon": "xy=1*",
    "Polygons": "polygons=1*",
    "Mask": "rle=1 png=2 polygons=3 logits=5 box=6 area=7 predicted_iou=8 stability_score=9 "
    "label=10 label_score=11 object_score=12",
    "Area": "box=1 rle=2",
    "SegmentRequest": "image=1 prompts=2* encoding=3 multimask=4 min_score=5 model=6 tiles=7 "
    "exclusive=8",
    "PromptResult": "masks=1* things=2*",
    "SegmentResponse": "image=1 results=2* model=3",
    "SegmentEverythingRequest": "image=1 points_per_side=2 encoding=3 labels=4* vocabulary=5 "
    "min_label_score=6 model=8 tiles=9",
    "PanopticSegment": "id=1 category_id=2 area=3 bbox=4* iscrowd=5 label=6",
    "Panoptic": "png=1 segments_info=2*",
    "SegmentEverythingResponse": "image=1 masks=2* model=3 panoptic=4",
    "EverythingUpdate": "image=1 found=2* withdrawn=3* progress=4 model=5",
    "ClassifyRequest": "images=1* labels=2* templates=3* top_k=4 areas=5* model=6",
    "Score": "label=1 score=2 similarity=3",
    "ClassifyResult": "image=1 scores=2*",
    "ClassifyResponse": "results=1* model=2",
    "SegmentTextRequest": "image=1 labels=2* background=3 refine=4 encoding=5 model=6 tiles=7",
    "Region": "label=1 score=2 area=3 mask=4",
    "SegmentTextResponse": "image=1 label_map_png=2 regions=3* model=4",
    "ExplainRequest": "image=1 label=2 others=3* model=4",
    "ExplainResponse": "image=1 heat_png=2 low=3 high=4 model=5",
    "IndexItem": "id=1 image=2 metadata=3* vector=4 objects=5",
    "IndexRequest": "collection=1 items=2* objects=3 made_by=4 model=5 tiles=6",
    "ItemError": "id=1 message=2",
    "IndexResponse": "indexed=1 errors=2* replaced=3",
    "SearchRequest": "collection=1 text=2 image=3 id=4 top_k=5 filter=6* offset=7 area=8 "
    "with_text=9 concept=10 example=11 min_score=12 objects=13 model=14",
    "Hit": "id=1 score=2 metadata=3* box=4 mask=5",
    "SearchResponse": "hits=1* model=2 likely_score=3",
    "DeleteRequest": "collection=1 ids=2* all=3 model=4",
    "DeleteResponse": "deleted=1",
    "DescribeRequest": "collection=1 model=2",
    "Collection": "name=1 count=2 dimension=3 model_digest=4 dtype=5 graphs=6 objects=7 version=8",
    "DescribeResponse": "collections=1*",
    "ListItemsRequest": "collection=1 after_id=2 limit=3 ids=4* model=5 inline=6",
    "ListedItem": "id=1 metadata=2* objects=3 vector=4",
    "ListItemsResponse": "items=1*",
    "Concept": "name=1 examples=2 model_digest=3",
    "PutConceptRequest": "name=1 examples=2* model=3",
    "PutConceptResponse": "concept=1 replaced=2",
    "DeleteConceptRequest": "name=1",
    "ListConceptsRequest": "names=1* inline=2 model=3",
    "ListConceptsResponse": "concepts=1* clip=2 sam=3 model=4",
    "EmbedRequest": "image=1 outputs=2* inline=3 size=4 texts=5* model=6",
    "EmbedResponse": "image=1 tensors=2* cached=3 model=4 texts=5",
    "EmbedTextRequest": "texts=1* model=2",
    "EmbedTextResponse": "tensor=1 model=2",
    "ServedModel": "name=1 digest=2 kind=3 default=4 state=5 bytes=6 idle_s=7 without_masks=8 "
    "uncalibrated=9 reason=10 alias_of=11 demonstration=12",
    "ListModelsResponse": "models=1*",
    "GetDecoderRequest": "model=1 known=2",
    "GetDecoderResponse": "onnx=1 digest=2 model=3",
    "AskRequest": "image=1 head=2 parameters=3 encoding=4 model=5",
    "AskResponse": "image=1 result=2 masks=3* tensors=4* pictures=5* model=6",
    "ListHeadsRequest": "head=1",
    "ListedHead": "name=1 description=2 parameters=3 outputs=4* classes=5* reason=6",
    "ListHeadsResponse": "heads=1*",
}
ONEOFS = {
    ("Image", "source"): "encoded key",
    ("Mask", "data"): "rle png polygons logits",
    ("Area", "shape"): "box rle",
    ("SearchRequest", "query"): "text image id concept example",
    ("Example", "place"): "box mask points",
}
ENUMS = {
    "MaskEncoding": "RLE=0 PNG=1 POLYGONS=2 LOGITS=4 PANOPTIC=5",
    "Output": "OUTPUT_UNSPECIFIED=0 SAM=1 CLIP_DENSE=2 CLIP_POOLED=3 REGIONS=4 SAM_FINE=5",
}
RPCS = {
    "SegmentationService": "Segment SegmentEverything "
    "StreamEverything:SegmentEverythingRequest>EverythingUpdate",
    "ClassificationService": "Classify",
    "SemanticSegmentationService": "SegmentText Explain",
    "RetrievalService": "Index Search Delete Describe ListItems",
    "BackboneService": "Embed EmbedText ListModels GetDecoder",
    "CustomHeadService": "Ask ListHeads",
    "ConceptService": "Put:PutConceptRequest>PutConceptResponse "
    "Delete:DeleteConceptRequest>DeleteConceptResponse "
    "List:ListConceptsRequest>ListConceptsResponse",
}


def test_every_message_is_listed() -> None:
    messages = pb.DESCRIPTOR.message_types_by_name.values()
    assert {message.name for message in messages if message.fields} == FIELDS.keys()


@pytest.mark.parametrize("message", FIELDS)
def test_fields(message: str) -> None:
    fields = pb.DESCRIPTOR.message_types_by_name[message].fields
    shown = {f"{f.name}={f.number}{'*' if f.is_repeated else ''}" for f in fields}
    assert shown == set(FIELDS[message].split())


def test_oneofs() -> None:
    for (message, oneof), names in ONEOFS.items():
        fields = pb.DESCRIPTOR.message_types_by_name[message].oneofs_by_name[oneof].fields
        assert [field.name for field in fields] == names.split()


def test_enums() -> None:
    for enum, values in ENUMS.items():
        shown = {f"{v.name}={v.number}" for v in pb.DESCRIPTOR.enum_types_by_name[enum].values}
        assert shown == set(values.split())


def test_services() -> None:
    assert pb.DESCRIPTOR.package == "samclip.v1"
    for service, rpcs in RPCS.items():
        methods = pb.DESCRIPTOR.services_by_name[service].methods_by_name
        for rpc in rpcs.split():
            name, _, types = rpc.partition(":")
            asked, _, answered = types.partition(">")
            method = methods[name]
            assert method.input_type.name == (asked or f"{name}Request")
            assert method.output_type.name == (answered or f"{name}Response")
            assert method.server_streaming is ("Stream" in name)
