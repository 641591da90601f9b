from .callbacks import EarlyStopping as EarlyStopping
from .callbacks import ReduceLROnPlateau as ReduceLROnPlateau
from .config import default_config as default_config
from .crossval import cross_validate as cross_validate
from .interrupts import Interrupted as Interrupted
from .loop import train_and_evaluate as train_and_evaluate
from .processes import initialize as initialize
from .run_folder import clear as clear
