from . import data as data
from . import evaluation as evaluation
from . import inference as inference
from . import models as models
from . import ops as ops
from . import preprocessing as preprocessing
from . import pretrained as pretrained
from . import report as report
from . import training as training
from .errors import UserError as UserError
from .inference.classifier import load_classifier as load_classifier

__version__: str
