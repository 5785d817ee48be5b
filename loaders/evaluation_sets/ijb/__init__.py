"""IJB-B and IJB-C as people own them: the original folders, or CVLface's prepared ones; one form behind both."""

from adadistill.loaders.evaluation_sets.ijb.annotations import IjbAnnotations, IjbError, TemplateSubjects
from adadistill.loaders.evaluation_sets.ijb.images import IjbImages
from adadistill.loaders.evaluation_sets.ijb.sets import IjbSet, open_ijb

__all__ = ["IjbAnnotations", "IjbError", "IjbImages", "IjbSet", "TemplateSubjects", "open_ijb"]
