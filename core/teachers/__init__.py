"""Teachers: where the unit embeddings that students learn from come from.

Two kinds, behind two small protocols. A network embeds the images of the rank's own batch (its results are gathered); a
store of embeddings is read by record id and view, by every rank for the whole global batch, since the sample order is a
function. A teacher that does not load, or does not fit the student or the records, stops the run at the door.
"""

from adadistill.core.teachers.build import build_teacher
from adadistill.core.teachers.cached_teacher import CachedTeacher, expected_identity, record_binding
from adadistill.core.teachers.config import TeacherConfig
from adadistill.core.teachers.interface import (
    BuiltTeacher,
    ImageTeacher,
    LoadedTeacher,
    RecordTeacher,
    TeacherError,
    TeacherIdentity,
)
from adadistill.core.teachers.network_teacher import (
    NetworkTeacher,
    compiles_in_loop,
    computes_in_torch,
    in_loop_teacher,
)
from adadistill.core.teachers.preprocessing import Color, Preprocessing, TeacherNetwork
from adadistill.core.teachers.sources import load_source
from adadistill.core.teachers.stored_embeddings import StoredEmbeddings

__all__ = [
    "BuiltTeacher",
    "CachedTeacher",
    "Color",
    "ImageTeacher",
    "LoadedTeacher",
    "NetworkTeacher",
    "Preprocessing",
    "RecordTeacher",
    "StoredEmbeddings",
    "TeacherConfig",
    "TeacherError",
    "TeacherIdentity",
    "TeacherNetwork",
    "build_teacher",
    "compiles_in_loop",
    "computes_in_torch",
    "expected_identity",
    "in_loop_teacher",
    "load_source",
    "record_binding",
]
