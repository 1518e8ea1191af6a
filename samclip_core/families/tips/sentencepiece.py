"""SentencePiece's BPE models (tokenizer.model) for the tokenizers library.

The file is a message of protobuf, of which ``_SCHEMA`` has the fields that tokens depend on.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from samclip_core.errors import CheckpointError

_SCHEMA = """
name: "sentencepiece.proto"
message_type { name: "Piece"
  field { name: "piece" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "score" number: 2 type: TYPE_FLOAT label: LABEL_OPTIONAL }
  field { name: "type" number: 3 type: TYPE_INT32 label: LABEL_OPTIONAL default_value: "1" } }
message_type { name: "Trainer"
  field { name: "model_type" number: 3 type: TYPE_INT32 label: LABEL_OPTIONAL default_value: "1" }
  field { name: "byte_fallback" number: 35 type: TYPE_BOOL label: LABEL_OPTIONAL } }
message_type { name: "Normalizer"
  field { name: "precompiled_charsmap" number: 2 type: TYPE_BYTES label: LABEL_OPTIONAL } }
message_type { name: "Model"
  field { name: "pieces" number: 1 type_name: "Piece" label: LABEL_REPEATED }
  field { name: "trainer" number: 2 type_name: "Trainer" label: LABEL_OPTIONAL }
  field { name: "normalizer" number: 3 type_name: "Normalizer" label: LABEL_OPTIONAL } }
"""
LONGEST = 256
"""Most characters of a piece: the work for each grows with the square of them."""
_BPE = 2
_NORMAL, _UNKNOWN = 1, 2  # types of pieces


def read_sentencepiece(content: bytes) -> Tokenizer:
    """Build the tokenizer of a tokenizer.model, without padding and truncation.

    Raises CheckpointError if ``content`` is damaged, or a model of another kind than BPE.
    """
    try:
        model = model_class().FromString(content)
    except message.DecodeError as error:
        raise CheckpointError(f"tokenizer.model is no model of SentencePiece ({error})") from error
    if (longest := max((len(one.piece) for one in model.pieces), default=0)) > LONGEST:
        raise CheckpointError(
            f"tokenizer.model has a piece of {longest:,} characters, at most {LONGEST}: download "
            "the file again"
        )
    vocabulary = {one.piece: index for index, one in enumerate(model.pieces)}
    unknown = [one.piece for one in model.pieces if one.type == _UNKNOWN]
    if model.trainer.model_type != _BPE or len(unknown) != 1:
        raise CheckpointError(
            f"tokenizer.model has SentencePiece's model type {model.trainer.model_type} and "
            f"{len(unknown)} unknown pieces: expected BPE ({_BPE}) and one"
        )
    normal = [one for one in model.pieces if one.type == _NORMAL]
    normal.sort(key=lambda one: -one.score)
    splits = ((one.piece[:at], one.piece[at:]) for one in normal for at in range(1, len(one.piece)))
    merges = [pair for pair in splits if vocabulary.keys() >= {*pair}]
    fallback = model.trainer.byte_fallback
    bpe = models.BPE(
        vocabulary, merges, unk_token=unknown[0], fuse_unk=True, byte_fallback=fallback
    )
    tokenizer = Tokenizer(bpe)
    if charsmap := model.normalizer.precompiled_charsmap:
        tokenizer.normalizer = normalizers.Precompiled(charsmap)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    return tokenizer


def model_class() -> Any:
    """Return the class of the file's message, in a pool of its own."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_SCHEMA, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Model"))
